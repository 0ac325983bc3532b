"""The package: the directory that a deployment is made of, and the artifact that carries it.

See docs/package-format.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_service.errors import IntegrityError, UsageError
from ml_service.ports import ModelVersion

FORMAT = 1
MANIFEST = "manifest.json"
MODEL_JSON = "model.json"

_MODEL_FILES = {"onnx": "model/model.onnx", "script": "model/score.py"}


@dataclass(frozen=True)
class Manifest:
    """The content of ``manifest.json``. ``files`` maps a path in the package to its SHA-256 (hex)."""

    runtime: str
    model_name: str
    model_version: str
    model_file: str
    signature_file: str
    examples_file: str
    files: Mapping[str, str]


@dataclass(frozen=True)
class Artifact:
    """The output of ``package-artifact``: ``model.json`` as a value, and the package beside it."""

    directory: Path
    package: Path
    package_sha256: str
    model: Mapping[str, Any]


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below ``directory``, by path relative to it, sorted; byte code is no content."""
    return {path.relative_to(directory).as_posix(): sha256_of(path) for path in _content(directory)}


def _content(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.rglob("*")):
        if "__pycache__" not in path.parts and (path.is_symlink() or not path.is_dir()):
            yield path


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` whole or not at all: a reader never sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=2, sort_keys=True)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def build(version: ModelVersion, model_directory: Path, scoring: Path, scoring_lock: Path, package: Path) -> str:
    """Make ``package`` of a model version and the scoring code; returns the package hash.

    ``model_directory`` holds the version's ``model/``. ``package`` must not exist. The same model and code give the
    same bytes.
    """
    shutil.copytree(model_directory / "model", package / "model")
    shutil.copytree(scoring, package / "scoring", ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".*"))
    shutil.copyfile(scoring_lock, package / "scoring" / "requirements.txt")
    runtime = version.tags.get("runtime", "onnx")
    manifest = {
        "format": FORMAT,
        "runtime": runtime,
        "model": {
            "name": version.name,
            "version": version.version,
            "file": _MODEL_FILES[runtime],
            "signature": "model/signature.json",
            "examples": "model/examples.json",
        },
        "files": hash_files(package),
    }
    write_json(package / MANIFEST, manifest)
    return sha256_of(package / MANIFEST)


def read_manifest(package: Path) -> Manifest:
    """Read ``package/manifest.json``.

    Raises:
        UsageError: there is no package.
        IntegrityError: the manifest is not one, or of another format.
    """
    path = package / MANIFEST
    try:
        raw = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(
            "there is no package here", where=str(package), next_step="run: inv package-artifact"
        ) from None
    except ValueError as error:
        raise IntegrityError(f"is not JSON ({error})", where=str(path), next_step="package the model again") from None
    try:
        if raw["format"] != FORMAT:
            raise IntegrityError(f"has format {raw['format']}, this version reads {FORMAT}", where=str(path))
        model = raw["model"]
        return Manifest(
            runtime=raw["runtime"],
            model_name=model["name"],
            model_version=model["version"],
            model_file=model["file"],
            signature_file=model["signature"],
            examples_file=model["examples"],
            files=dict(raw["files"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"is not a package's manifest ({error!r})", where=str(path)) from None


def verify(package: Path) -> str:
    """Compare every file of ``package`` with its manifest; returns the package hash.

    Raises:
        UsageError: there is no package.
        IntegrityError: a file was changed, removed or added after packaging; names each.
    """
    expected = read_manifest(package).files
    actual = {path: digest for path, digest in hash_files(package).items() if path != MANIFEST}
    compare_files(expected, actual, where=package, next_step="package the model again: inv package-artifact")
    return sha256_of(package / MANIFEST)


def compare_files(expected: Mapping[str, str], actual: Mapping[str, str], *, where: Path, next_step: str) -> None:
    """Raise IntegrityError naming every file whose hash differs, that is missing, or that should not be there."""
    wrong = [f"{path} was changed" for path in expected.keys() & actual.keys() if expected[path] != actual[path]]
    wrong += [f"{path} is missing" for path in expected.keys() - actual.keys()]
    wrong += [f"{path} does not belong here" for path in actual.keys() - expected.keys()]
    if wrong:
        raise IntegrityError("; ".join(sorted(wrong)), where=str(where), next_step=next_step)


def copy_registered(candidate: Path, files: Mapping[str, str], directory: Path) -> Path:
    """Copy just what a registration lists, so that a version holds these bytes and no other; returns ``directory``.

    Raises:
        IntegrityError: a file is not the one whose hash was noted.
    """
    for name in files:
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(candidate / name, target)
    compare_files(files, hash_files(directory), where=candidate, next_step="train again")
    return directory


def describe(version: ModelVersion, package: Path) -> dict[str, Any]:
    """Return the content of ``model.json`` for ``version`` and the ``package`` made of it."""
    return {
        "id": version.id,
        "name": version.name,
        "version": version.version,
        "createdTime": version.created,
        "tags": dict(version.tags),
        "metrics": dict(version.metrics),
        "package_sha256": sha256_of(package / MANIFEST),
        "files": {f"package/{path}": digest for path, digest in hash_files(package).items()},
    }


def read_artifact(directory: Path) -> Artifact:
    """Read and verify an artifact: ``model.json``, the manifest, and every file against both.

    Raises:
        UsageError: the directory holds no artifact.
        IntegrityError: something in it is not what was packaged.
    """
    path = directory / MODEL_JSON
    try:
        model = json.loads(path.read_bytes())
        expected = {str(name): str(digest) for name, digest in model["files"].items()}
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            "there is no artifact here",
            where=str(directory),
            next_step="run: inv package-artifact, or pass --artifact DIR",
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise IntegrityError("is not what package-artifact writes", where=str(path)) from None
    package = directory / "package"
    package_sha256 = verify(package)
    actual = {f"package/{name}": digest for name, digest in hash_files(package).items()}
    compare_files(expected, actual, where=directory, next_step="package the model again: inv package-artifact")
    _refuse_other_model(model, read_manifest(package), path)
    return Artifact(directory, package, package_sha256, model)


def _refuse_other_model(model: Mapping[str, Any], manifest: Manifest, path: Path) -> None:
    """``model.json`` is covered by no hash, so what it says of the model's identity must be what the package says."""
    declared = (model.get("name"), model.get("version"))
    if declared != (manifest.model_name, manifest.model_version) or not isinstance(model.get("tags"), dict):
        raise IntegrityError(
            f"says {declared[0]}:{declared[1]}, the package is of {manifest.model_name}:{manifest.model_version}",
            where=str(path),
            next_step="package the model again: inv package-artifact",
        )
