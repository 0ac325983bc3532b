"""Build the image of the proxy on an engine that has none: see proxy_container.py."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

from ml_service.config import ImageSettings
from ml_service.images.build import follow_build
from ml_service.ports import Progress

if TYPE_CHECKING:
    from docker import DockerClient

_FOLDER = Path(__file__).parent
_ROOT = _FOLDER.parents[2]
_DOCKERFILE = "Dockerfile"


def provide(client: DockerClient, settings: ImageSettings, progress: Progress) -> str:
    """Return the name of the proxy's image; build it when this engine has no image of the same content."""
    context = _context()
    name = f"mlops-front:{hashlib.sha256(context + settings.base.encode()).hexdigest()[:16]}"
    if not client.images.list(name=name):
        progress("building the image of the proxy, once for this engine")
        stream = client.api.build(
            fileobj=io.BytesIO(context),
            custom_context=True,
            dockerfile=_DOCKERFILE,
            tag=name,
            buildargs={"BASE": settings.base, **({"PIP_INDEX_URL": settings.index_url} if settings.index_url else {})},
            network_mode=settings.network or None,
            rm=True,
            forcerm=True,
            decode=True,
        )
        follow_build(stream, progress)
    return name


def _context() -> bytes:
    """Return the build context: two modules in packages of their own, and nothing else of ours."""
    files = {
        _DOCKERFILE: (_FOLDER / "proxy.Dockerfile").read_bytes(),
        "requirements.txt": (_ROOT / "requirements" / "front.txt").read_bytes(),
        "ml_service/__init__.py": b"",
        "ml_service/common/__init__.py": b"",
        "ml_service/targets/__init__.py": b"",
        "ml_service/targets/docker/__init__.py": b"",
        "ml_service/common/proxy.py": (_ROOT / "ml_service" / "common" / "proxy.py").read_bytes(),
        "ml_service/targets/docker/proxy_container.py": (_FOLDER / "proxy_container.py").read_bytes(),
    }
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()
