"""A target's own copies of the packages that it serves, so that they can be asked for their examples later."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from ml_service import package
from ml_service.errors import IntegrityError, MlopsError
from ml_service.ports import Release


class PackageStore:
    """Package directories by their hash."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, sha256: str) -> Path:
        """Where the copy is, or would be."""
        return self._directory / sha256

    def find(self, sha256: str) -> Path | None:
        """The copy, if there is one here: another machine may have deployed it."""
        path = self.path(sha256)
        return path if path.is_dir() else None

    def add(self, release: Release) -> None:
        """Have a copy, and be sure of every byte of it.

        Raises:
            IntegrityError: the package is not what the release says.
        """
        if package.verify(release.package) != release.package_sha256:
            raise IntegrityError(
                "is not the package that was planned", where=str(release.package), next_step="deploy it again"
            )
        copy = self.path(release.package_sha256)
        if copy.exists():
            with suppress(MlopsError):
                package.verify(copy)
                return
            shutil.rmtree(copy)
        temporary = copy.with_name(f".{copy.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            shutil.copytree(release.package, temporary, ignore=shutil.ignore_patterns("__pycache__"))
            temporary.replace(copy)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def keep_only(self, hashes: Collection[str]) -> None:
        """Remove every copy but these."""
        for path in self._directory.glob("*"):
            if path.name not in hashes:
                shutil.rmtree(path, ignore_errors=True)
