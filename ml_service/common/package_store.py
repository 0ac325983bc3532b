"""A target's own copies of the packages that it serves: a rollback verifies a version with its package's examples."""

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
        """Return where the copy is, or would be."""
        return self._directory / sha256

    def find(self, sha256: str) -> Path | None:
        """Return the copy, or None where there is none: another machine may have deployed the package."""
        path = self.path(sha256)
        return path if path.is_dir() else None

    def add(self, release: Release) -> None:
        """Copy the release's package, unless there is a sound copy already. Each file is checked against its hash.

        Raises:
            IntegrityError: the package is not what the release says.
            OSError: the disk is full or not writable.
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
            package.verify(temporary)
            temporary.replace(copy)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def keep_only(self, hashes: Collection[str]) -> None:
        """Remove every copy but those with these hashes, and what interrupted copies left behind."""
        for path in self._directory.glob("*"):
            if path.name not in hashes:
                shutil.rmtree(path, ignore_errors=True)
