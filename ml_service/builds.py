"""Which build work is done for.

Given by the caller, or minted by ``publish`` and ``ci`` and read by the other tasks.
"""

from __future__ import annotations

import secrets
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ml_service.config import Settings, is_plain
from ml_service.errors import UsageError
from ml_service.ports import Build


@dataclass(frozen=True)
class ResolvedBuild:
    """A build and where its id comes from, for the line that each task prints first."""

    build: Build
    source: str

    def __str__(self) -> str:
        return f"build {self.build.id} ({self.source})"


def mint(settings: Settings) -> ResolvedBuild:
    """The given build id, or a new one, which later tasks on this machine then read."""
    if settings.build_id:
        return _resolved(settings, settings.build_id, settings.build_id_source)
    # Time for people, randomness so that two at once never share one.
    new = f"{datetime.now(UTC):%Y%m%d.%H%M%S}.{secrets.token_hex(2)}"
    path = _path(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".build-id.{new}")
    temporary.write_text(new + "\n", encoding="ascii")
    temporary.replace(path)
    return _resolved(settings, new, "minted now")


def current(settings: Settings) -> ResolvedBuild:
    """The given build id, or the one minted last.

    Raises:
        UsageError: none was given and none minted.
    """
    if settings.build_id:
        return _resolved(settings, settings.build_id, settings.build_id_source)
    path = _path(settings)
    if not path.exists():
        raise UsageError(
            "no build id: none given, none minted here yet",
            where=str(path),
            next_step="run: inv publish, or pass --build-id ID",
        )
    minted = path.read_text(encoding="ascii", errors="replace").strip()
    if not is_plain(minted):
        raise UsageError(
            "holds no build id", where=str(path), next_step="run: inv publish, which mints one, or pass --build-id ID"
        )
    return _resolved(settings, minted, f"from {path}")


def _path(settings: Settings) -> Path:
    return settings.home / "build-id"


def _resolved(settings: Settings, build_id: str, source: str) -> ResolvedBuild:
    return ResolvedBuild(Build(build_id, settings.build_uri, git_commit(settings.root)), source)


def git_commit(root: Path) -> str:
    """The commit that is checked out, with ``-dirty`` when files differ from it; empty outside a repository."""
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return f"{commit}-dirty" if _git(root, "status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()
