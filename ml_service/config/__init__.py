"""The settings of the tasks: one frozen value, made once from the environment.

Each setting is declared where its value is, with name, type, default, unit, range and help. The declarations
also make .env.example and the tables of docs/ (tools/settings_reference.py, by ``inv lint --fix``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from ml_service.config.aci import AciSettings
from ml_service.config.aks import AksSettings
from ml_service.config.azure import AzureSettings
from ml_service.config.core import PLATFORMS, CoreSettings, is_plain
from ml_service.config.docker import DockerSettings
from ml_service.config.fields import read, read_text, values
from ml_service.config.image import ImageSettings
from ml_service.config.local import LocalSettings
from ml_service.config.scoring import ScoringSettings
from ml_service.config.webapp import WebAppSettings

__all__ = [
    "PLATFORMS",
    "SECTIONS",
    "AciSettings",
    "AksSettings",
    "AzureSettings",
    "CoreSettings",
    "DockerSettings",
    "ImageSettings",
    "LocalSettings",
    "ScoringSettings",
    "Settings",
    "WebAppSettings",
    "is_plain",
]


@dataclass(frozen=True)
class Settings(CoreSettings):
    """All settings. ``env`` is the environment that they come from, for adapters that start processes."""

    scoring: ScoringSettings = ScoringSettings()
    image: ImageSettings = ImageSettings()
    local: LocalSettings = LocalSettings()
    docker: DockerSettings = DockerSettings()
    aks: AksSettings = AksSettings()
    azure: AzureSettings = AzureSettings()
    aci: AciSettings = AciSettings()
    webapp: WebAppSettings = WebAppSettings()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def from_env(
        cls,
        env: Mapping[str, str],
        root: Path,
        *,
        platform: str | None = None,
        project: str | None = None,
        build_id: str | None = None,
    ) -> Settings:
        """Read ``env``; the keyword arguments are a task's options and take precedence.

        Raises:
            ConfigurationError: a setting has a value that is not what its declaration expects.
            UsageError: an unknown platform, or a project that is not a folder with a ``project.json``.
        """
        project_name = deployment_name(project or read_text(env, "MLOPS_PROJECT") or cls.project)
        options = {"platform": platform, "project": project, "build_id": build_id}
        core = values(cls, env, root=root, project_name=project_name)
        core |= {name: option for name, option in options.items() if option}
        core.setdefault("store", core["home"] / "store")
        core["is_ci"] = core["is_ci"] or core["azure_pipelines"]
        if core.get("build_id"):
            core["build_id_source"] = "--build-id" if build_id else "BUILD_BUILDID"
        sections: dict[str, Any] = {
            name: read(section, env, root=root, project_name=project_name) for name, section in SECTIONS.items()
        }
        settings = cls(root=root, **core, **sections, env=dict(env))
        settings.check()
        return settings


def deployment_name(project: str) -> str:
    """Return the name that a deployment of ``project`` has where nobody chose another: with dashes, as names in DNS."""
    return project.replace("_", "-")


SECTIONS: dict[str, Any] = {name: hint for name, hint in get_type_hints(Settings).items() if is_dataclass(hint)}
"""The class of each section of ``Settings``, by the name of its field."""
