"""The package on disk: read its manifest and verify every file against its SHA-256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scoring_service.errors import PackageError, quote
from scoring_service.model.signature import Signature

MANIFEST = "manifest.json"
FORMAT = 1
RUNTIMES = ("onnx", "script")
NEXT_STEP = "package the model again: inv package-artifact"


@dataclass(frozen=True)
class Package:
    """A verified package.

    ``model_bytes`` is the content whose hash was verified. The model is loaded from it: the file is not read again.
    """

    directory: Path
    runtime: str
    name: str
    version: str
    sha256: str
    model_file: Path
    model_sha256: str
    model_bytes: bytes = field(repr=False)
    signature: Signature
    examples: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class _Manifest:
    """``manifest.json``, of which ``sha256`` is the hash; ``files`` maps each file to its own."""

    path: Path
    sha256: str
    runtime: str
    name: str
    version: str
    model: str
    signature: str
    examples: str
    files: Mapping[str, str]


def read_package(directory: Path) -> Package:
    """Return the package in ``directory``, every file of which was compared with its hash in the manifest.

    Raises:
        PackageError: the manifest is invalid, or a file is missing, added or changed; the message names it.
    """
    manifest = _read_manifest(directory / MANIFEST)
    _refuse_other_files(directory, manifest.files)
    needed = {manifest.model: b"", manifest.signature: b"", manifest.examples: b""}
    for name, digest in manifest.files.items():
        content = _read_verified(directory, name, digest)
        if name in needed:
            needed[name] = content
    if missing := [name for name in needed if name not in manifest.files]:
        raise PackageError(f"has no hash of {', '.join(missing)}", where=str(manifest.path), next_step=NEXT_STEP)
    return Package(
        directory=directory,
        runtime=manifest.runtime,
        name=manifest.name,
        version=manifest.version,
        sha256=manifest.sha256,
        model_file=directory / manifest.model,
        model_sha256=manifest.files[manifest.model],
        model_bytes=needed[manifest.model],
        signature=Signature.from_json(needed[manifest.signature], str(directory / manifest.signature)),
        examples=_examples(needed[manifest.examples], str(directory / manifest.examples)),
    )


def _read_manifest(path: Path) -> _Manifest:
    try:
        content = path.read_bytes()
        manifest = json.loads(content)
        if manifest["format"] != FORMAT:
            raise PackageError(f"has format {manifest['format']}, this version reads {FORMAT}", where=str(path))
        model, runtime = manifest["model"], str(manifest["runtime"])
        names = {"model": str(model["file"]), **{key: str(model[key]) for key in ("signature", "examples")}}
        identity = {key: str(model[key]) for key in ("name", "version")}
        files = {str(name): str(digest) for name, digest in manifest["files"].items()}
    except FileNotFoundError:
        raise PackageError("there is no package here", where=str(path.parent), next_step=NEXT_STEP) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PackageError(f"is not a package's manifest ({error!r})", where=str(path), next_step=NEXT_STEP) from None
    if runtime not in RUNTIMES:
        raise PackageError(f"has the unknown runtime {quote(runtime)}", where=str(path), next_step=NEXT_STEP)
    return _Manifest(path, hashlib.sha256(content).hexdigest(), runtime, **identity, **names, files=files)


def _refuse_other_files(directory: Path, hashes: Mapping[str, str]) -> None:
    """Refuse a file without a hash: a script could import it. Byte code is exempt because it is never read."""
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if "__pycache__" in path.parts or (path.is_dir() and not path.is_symlink()):
            continue
        if name not in hashes and name != MANIFEST:
            raise PackageError(f"{name} does not belong here", where=str(directory), next_step=NEXT_STEP)


def _read_verified(directory: Path, name: str, digest: str) -> bytes:
    try:
        content = (directory / name).read_bytes()
    except OSError:
        raise PackageError(f"{name} is missing", where=str(directory), next_step=NEXT_STEP) from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise PackageError(f"{name} was changed after packaging", where=str(directory), next_step=NEXT_STEP)
    return content


def _examples(raw: bytes, where: str) -> tuple[Mapping[str, Any], ...]:
    try:
        examples = tuple(json.loads(raw)["examples"])
        for example in examples:
            example["request"]["data"], example["response"]
    except (ValueError, KeyError, TypeError) as error:
        raise PackageError(f"holds no examples ({error!r})", where=where, next_step="train again") from None
    return examples
