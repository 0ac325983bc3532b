"""The record of a deployed version that aci and webapp keep in Azure: in tags and in settings of the site."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from ml_service.common.errors import not_pushed
from ml_service.config import Settings
from ml_service.config.scoring import server_options
from ml_service.ports import Release


@dataclass(frozen=True)
class Version:
    """A version as it runs. ``image`` is named by digest; ``since`` is UTC, ISO 8601, empty until it serves."""

    image: str
    package: str
    name: str
    version: str
    build: str
    since: str = ""

    @classmethod
    def of(cls, release: Release) -> Version:
        """Return the version that ``release`` is.

        Raises:
            UsageError: its image was never pushed, so that Azure cannot have it.
        """
        if not release.image or not release.image_digest:
            raise not_pushed("Azure")
        return cls(
            image=f"{release.image}@{release.image_digest}",
            package=release.package_sha256,
            name=release.model_name,
            version=release.model_version,
            build=release.build_id,
        )

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Version | None:
        """Return the version that ``tags`` describe."""
        names = asdict(cls("", "", "", "", ""))
        parts = {name: tags[f"mlops-{name}"] for name in names if f"mlops-{name}" in tags}
        return cls(**parts) if "image" in parts else None

    def tags(self) -> dict[str, str]:
        """Return it as tags, one for each part: a tag holds at most 256 characters."""
        return {f"mlops-{name}": value for name, value in asdict(self).items()}

    @classmethod
    def from_text(cls, text: str) -> Version | None:
        """Return the version that a setting tells of."""
        return cls(**json.loads(text)) if text else None

    def text(self) -> str:
        """As the text of a setting."""
        return json.dumps(asdict(self), sort_keys=True)

    @property
    def digest(self) -> str:
        """The image's digest."""
        return self.image.partition("@")[2]

    @property
    def model(self) -> dict[str, str]:
        """As a status tells it."""
        return {"name": self.name, "version": self.version}

    def same_as(self, other: Version | None) -> bool:
        """Return whether image and package are the same, so that both answer alike."""
        return other is not None and (self.image, self.package) == (other.image, other.package)

    def serving_now(self) -> Version:
        """Return the same version with the present time."""
        return replace(self, since=datetime.now(UTC).isoformat(timespec="seconds"))

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"


def scoring_options(settings: Settings) -> dict[str, str]:
    """Return how the scoring server is to run, for every address that it may be asked at. Never a key."""
    return {**server_options(settings.env, settings.scoring), "SCORING_HOST": "0.0.0.0"}
