"""Which build work is done for: given, or generated once and read by the tasks after."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ml_service import builds
from ml_service.config import Settings, is_plain
from ml_service.errors import UsageError


def settings(root: Path, build_id: str = "") -> Settings:
    """Settings of an empty repository."""
    source = "--build-id" if build_id else ""
    return Settings(root=root, home=root / "home", store=root / "store", build_id=build_id, build_id_source=source)


def test_a_given_build_id_is_used_and_not_kept(tmp_path: Path) -> None:
    """Two builds on one machine do not see each other's id."""
    assert str(builds.given_or_new(settings(tmp_path, "7"))) == "build 7 (--build-id)"
    assert builds.current(settings(tmp_path, "8")).build.id == "8"
    assert not (tmp_path / "home").exists()


def test_a_new_id_is_read_by_the_tasks_after(tmp_path: Path) -> None:
    """Each says where it has the id from."""
    generated = builds.given_or_new(settings(tmp_path))
    found = builds.current(settings(tmp_path))
    assert generated.source == "generated now"
    assert is_plain(generated.build.id)
    assert (found.build.id, found.source) == (generated.build.id, f"from {tmp_path / 'home' / 'build-id'}")


def test_every_new_id_is_another(tmp_path: Path) -> None:
    """Also within one second."""
    ids = [builds.given_or_new(settings(tmp_path)).build.id for _ in range(20)]
    assert len(set(ids)) == 20
    assert builds.current(settings(tmp_path)).build.id == ids[-1]
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["build-id"]


def test_without_an_id_the_next_step_is_told(tmp_path: Path) -> None:
    """Nothing given and nothing generated is an error of usage."""
    with pytest.raises(UsageError, match="run: inv publish"):
        builds.current(settings(tmp_path))


@pytest.mark.parametrize("content", [b"", b"../../etc\n", b"\xff\xfe\x00", b"##vso[task.complete]\n"])
def test_a_damaged_build_id_file_is_named(tmp_path: Path, content: bytes) -> None:
    """What it holds is neither used nor printed."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "build-id").write_bytes(content)
    with pytest.raises(UsageError) as caught:
        builds.current(settings(tmp_path))
    assert caught.value.where == str(tmp_path / "home" / "build-id")


def git(root: Path, *arguments: str) -> None:
    """Run git as nobody in particular."""
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)


def test_the_commit_is_told_and_whether_files_differ_from_it(tmp_path: Path) -> None:
    """Outside a repository it is empty; a new file that git does not know is no difference."""
    assert builds.git_commit(tmp_path) == ""
    git(tmp_path, "init", "--quiet")
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    clean = builds.git_commit(tmp_path)
    (tmp_path / "other").write_text("new")
    assert len(clean) == 40
    assert builds.git_commit(tmp_path) == clean
    (tmp_path / "file").write_text("2")
    assert builds.git_commit(tmp_path) == f"{clean}-dirty"
