"""Write and read the artifact: the model, the scoring code and, where one was built, the image."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_service import builds, package
from ml_service.config import Settings
from ml_service.console import Console
from ml_service.errors import (
    IntegrityError,
    NotRegisteredError,
    UsageError,
)
from ml_service.ports import (
    ModelVersion,
    Platform,
    Release,
)
from ml_service.workflows.registry import find_version
from ml_service.workflows.training import NOT_REGISTERED, model_name, untrained


def package_artifact(
    settings: Settings, platform: Platform, console: Console, *, output: Path, model: str = ""
) -> package.Artifact:
    """Write ``output/model.json`` and ``output/package/``, and return them as an artifact.

    They hold the model that this build registered, or the one that ``model`` names (``champion`` or ``NAME:VERSION``).

    Raises:
        NotRegisteredError: the build registered no model.
        UsageError: the version is withdrawn, or the build ran no training.
    """
    if model:
        version = find_version(settings, platform, model)
    else:
        version = _model_of_build(settings, platform, console)
    if version.withdrawn:
        raise UsageError(
            f"{version.reference} is withdrawn: {version.withdrawn}", where="--model", next_step="package another"
        )
    with _replacing(output) as fresh:
        with tempfile.TemporaryDirectory(dir=fresh.parent, prefix=".model-") as downloaded:
            platform.download(version, Path(downloaded))
            lock = settings.root / "requirements" / "scoring.txt"
            package.build(version, Path(downloaded), settings.root / "scoring", lock, fresh / "package")
        package.write_json(fresh / package.MODEL_JSON, _model_json(settings, version, fresh / "package"))
    artifact = package.read_artifact(output)
    console.line(f"packaged {version.reference} as {output}: package {artifact.package_sha256[:12]}")
    return artifact


def _model_of_build(settings: Settings, platform: Platform, console: Console) -> ModelVersion:
    resolved = builds.current(settings)
    console.line(str(resolved))
    version = platform.model_of_build(model_name(settings), resolved.build.id)
    if version:
        return version
    if not platform.runs(settings.project, resolved.build.id):
        raise untrained(resolved.build.id, "package-artifact")
    raise NotRegisteredError(
        NOT_REGISTERED, where=f"build {resolved.build.id}", next_step="package another: --model champion"
    )


def _model_json(settings: Settings, version: ModelVersion, directory: Path) -> dict[str, Any]:
    """Return ``model.json``: the model, and the commit of the scoring code, which may be newer than the training's."""
    origin = {"branch": settings.source_branch, "packaging_commit": builds.git_commit(settings.root)}
    return {**package.describe(version, directory), **origin}


def refuse_other_files(directory: Path) -> None:
    """Refuse to replace a directory that holds something else than an artifact.

    Raises:
        UsageError: it does.
    """
    if directory.exists() and any(directory.iterdir()) and not (directory / package.MODEL_JSON).exists():
        raise UsageError(
            "the directory holds something else than an artifact",
            where=str(directory),
            next_step="choose another --output",
        )


@contextmanager
def _replacing(directory: Path) -> Iterator[Path]:
    """Make a directory to fill, which replaces ``directory`` when the block ends without an error."""
    refuse_other_files(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}-"))
    try:
        fresh.chmod(0o755)
        yield fresh
        old = fresh.with_name(fresh.name + ".old")
        if directory.exists():
            directory.rename(old)
        fresh.rename(directory)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def check_artifact(settings: Settings, console: Console, artifact: Path) -> package.Artifact:
    """Report which model an artifact holds, and return the artifact.

    Raises:
        UsageError: it is of another branch than DEPLOY_BRANCH, or of another build than MODEL_BUILD_ID.
        IntegrityError: its content is not what was packaged.
    """
    content = package.read_artifact(artifact)
    refuse_foreign(settings, content)
    name, version = str(content.model["name"]), str(content.model["version"])
    console.output("model_name", name)
    console.output("model_version", version)
    console.line(f"Model {name}:{version} of build {_build_of(content)}, package {content.package_sha256[:12]}")
    return content


def _build_of(artifact: package.Artifact) -> str:
    return str(artifact.model["tags"].get("build_id", ""))


def refuse_foreign(settings: Settings, artifact: package.Artifact) -> None:
    """Check that an artifact may be deployed from here.

    Raises:
        UsageError: it is of another branch than DEPLOY_BRANCH, or of another build than MODEL_BUILD_ID.
    """
    wanted, branch = settings.deploy_branch, str(artifact.model.get("branch", ""))
    if wanted and wanted.removeprefix("refs/heads/") != branch.removeprefix("refs/heads/"):
        raise UsageError(
            f"was made on {branch or 'no branch'}, and only {wanted} is deployed",
            where=str(artifact.directory),
            next_step="deploy an artifact of that branch, or change DEPLOY_BRANCH",
        )
    build = settings.model_build_id
    if not build:
        return
    if not (build.isascii() and build.isdigit()):
        raise UsageError(
            f"invalid build id {build!r}: expected digits only",
            where="MODEL_BUILD_ID",
            next_step="take the number after buildId= in the address of the training pipeline's run",
        )
    if build != _build_of(artifact):
        raise UsageError(
            f"is of build {_build_of(artifact)}, and build {build} was asked for",
            where=str(artifact.directory),
            next_step="download that build's artifact",
        )


def release(artifact: package.Artifact) -> Release:
    """Return what a target needs to know of an artifact and, where one was built, its image.

    Raises:
        IntegrityError: the image was built from another package.
    """
    image = _read_image(artifact)
    return Release(
        package=artifact.package,
        package_sha256=artifact.package_sha256,
        model_name=str(artifact.model["name"]),
        model_version=str(artifact.model["version"]),
        build_id=str(artifact.model["tags"].get("build_id", "")),
        image=str(image.get("repository") or ""),
        image_digest=str(image.get("digest") or ""),
    )


def _read_image(artifact: package.Artifact) -> Mapping[str, Any]:
    path = artifact.directory / "image.json"
    if not path.exists():
        return {}
    image = _image_in(path)
    if image.get("package_sha256") != artifact.package_sha256:
        raise IntegrityError("is the image of another package", where=str(path), next_step="run: inv build-image")
    return image


def _image_in(path: Path) -> Mapping[str, Any]:
    try:
        image: Mapping[str, Any] = dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError):
        raise IntegrityError(
            "is not what build-image writes", where=str(path), next_step="run: inv build-image"
        ) from None
    return image
