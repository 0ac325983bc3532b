"""The package and its artifact: every byte is accounted for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ml_service import package
from ml_service.errors import IntegrityError, UsageError
from ml_service.package import Artifact, hash_files, sha256_of
from ml_service.ports import ModelVersion

VERSION = ModelVersion(
    id="m:3",
    name="m",
    version="3",
    created="2026-01-01T00:00:00+00:00",
    tags={"build_id": "7", "runtime": "script"},
    metrics={"mse": 1.5},
    files={},
)


def sources(directory: Path) -> tuple[Path, Path, Path]:
    """A downloaded version, scoring code and its lock."""
    downloaded, scoring, lock = directory / "downloaded", directory / "scoring", directory / "scoring.txt"
    (downloaded / "model").mkdir(parents=True)
    for name in ("score.py", "signature.json", "examples.json"):
        (downloaded / "model" / name).write_text("{}")
    (downloaded / "metrics.json").write_text("{}")
    (scoring / "__pycache__").mkdir(parents=True)
    (scoring / "__pycache__" / "score.pyc").write_bytes(b"0")
    (scoring / ".hidden").write_text("no")
    (scoring / "score.py").write_text("code")
    lock.write_text("a==1\n")
    return downloaded, scoring, lock


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """An artifact as package-artifact writes it."""
    directory = tmp_path / "artifact"
    directory.mkdir()
    package.build(VERSION, *sources(tmp_path / "sources"), directory / "package")
    package.write_json(directory / "model.json", package.describe(VERSION, directory / "package"))
    return directory


def test_a_package_is_model_scoring_code_and_lock_only(artifact: Path) -> None:
    """No metrics, no byte code, no hidden file."""
    assert sorted(hash_files(artifact / "package")) == [
        "manifest.json",
        "model/examples.json",
        "model/score.py",
        "model/signature.json",
        "scoring/requirements.txt",
        "scoring/score.py",
    ]


def test_the_manifest_says_what_to_load(artifact: Path) -> None:
    """A script runtime loads the project's own script."""
    manifest = package.read_manifest(artifact / "package")
    assert (manifest.runtime, manifest.model_name, manifest.model_version) == ("script", "m", "3")
    assert (manifest.model_file, manifest.signature_file) == ("model/score.py", "model/signature.json")


def test_the_same_content_gives_the_same_package_hash(artifact: Path, tmp_path: Path) -> None:
    """Nothing in a package changes from build to build."""
    again = package.build(VERSION, *sources(tmp_path / "again"), tmp_path / "package")
    assert again == package.verify(artifact / "package")


def test_an_artifact_is_read_back_with_its_identity(artifact: Path) -> None:
    """``model.json`` says where the model came from."""
    read = package.read_artifact(artifact)
    assert isinstance(read, Artifact)
    assert read.package_sha256 == sha256_of(artifact / "package" / "manifest.json")
    assert read.model["id"] == "m:3"
    assert read.model["createdTime"] == VERSION.created
    assert (read.model["tags"], read.model["metrics"]) == (dict(VERSION.tags), dict(VERSION.metrics))


def change(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


def add(path: Path) -> None:
    (path.parent / "added.py").write_text("evil")


@pytest.mark.parametrize(
    "spoil, message",
    [(change, "score.py was changed"), (Path.unlink, "score.py is missing"), (add, "added.py does not belong here")],
)
@pytest.mark.parametrize("folder", ["model", "scoring"])
def test_what_changed_after_packaging_is_named(
    artifact: Path, spoil: Callable[[Path], None], message: str, folder: str
) -> None:
    """A changed, a missing and an added file, of the model or of the scoring code: exit code 8."""
    spoil(artifact / "package" / folder / "score.py")
    with pytest.raises(IntegrityError, match=f"{folder}/{message}"):
        package.read_artifact(artifact)


def test_a_package_with_a_manifest_of_its_own_is_not_this_artifacts(artifact: Path) -> None:
    """A file changed and the manifest mended: ``model.json`` still knows."""
    changed = artifact / "package" / "scoring" / "score.py"
    change(changed)
    manifest = json.loads((artifact / "package" / "manifest.json").read_bytes())
    manifest["files"]["scoring/score.py"] = sha256_of(changed)
    package.write_json(artifact / "package" / "manifest.json", manifest)
    assert package.verify(artifact / "package")
    with pytest.raises(IntegrityError, match="manifest.json was changed"):
        package.read_artifact(artifact)


@pytest.mark.parametrize("said", [{"version": "4"}, {"name": "other"}, {"tags": None}])
def test_another_identity_in_model_json_is_refused(artifact: Path, said: dict[str, Any]) -> None:
    """A withdrawn version must not pass as another."""
    described = json.loads((artifact / "model.json").read_bytes()) | said
    package.write_json(artifact / "model.json", described)
    with pytest.raises(IntegrityError, match="the package is of m:3"):
        package.read_artifact(artifact)


@pytest.mark.parametrize("content", ["", "[]", "null", "{", '{"files": 1}', "\x00"])
def test_a_model_json_that_is_none_is_refused(artifact: Path, content: str) -> None:
    """Truncated or of another shape: exit code 8, by name."""
    (artifact / "model.json").write_text(content)
    with pytest.raises(IntegrityError, match=r"model\.json"):
        package.read_artifact(artifact)


@pytest.mark.parametrize("content", ["", "[]", "null", "{", "{}", '{"format": 1}', '{"format": 99}'])
def test_a_manifest_that_is_none_is_refused(artifact: Path, content: str) -> None:
    """Also one of a format that this version does not know."""
    (artifact / "package" / "manifest.json").write_text(content)
    with pytest.raises(IntegrityError, match=r"manifest\.json"):
        package.read_manifest(artifact / "package")


def test_where_no_artifact_is_the_next_step_is_told(tmp_path: Path) -> None:
    """A missing directory, an empty one and a file in its place."""
    (tmp_path / "file").write_text("")
    for directory in (tmp_path, tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(UsageError, match="run: inv package-artifact"):
            package.read_artifact(directory)
    with pytest.raises(UsageError, match="run: inv package-artifact"):
        package.read_manifest(tmp_path)


def test_byte_code_beside_the_code_is_no_change(artifact: Path) -> None:
    """Python writes it when the scoring code runs."""
    (artifact / "package" / "scoring" / "__pycache__").mkdir()
    (artifact / "package" / "scoring" / "__pycache__" / "score.cpython-311.pyc").write_bytes(b"0")
    assert package.read_artifact(artifact).package_sha256


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """What cannot be written leaves the file before it, and no rest."""
    path = tmp_path / "value.json"
    package.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        package.write_json(path, {"a": object()})
    assert json.loads(path.read_bytes()) == {"a": 1}
    assert os.listdir(tmp_path) == ["value.json"]
