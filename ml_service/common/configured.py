"""Which targets ``inv status`` shows when none is named: those that somebody uses from here."""

from __future__ import annotations

from typing import Any

from ml_service.config import SECTIONS, Settings, deployment_name
from ml_service.config.fields import read, read_text


def is_configured(settings: Settings, target: str, *variables: str) -> bool:
    """Return whether the settings differ from an empty environment's, or this machine has deployed to ``target``.

    Values are compared, not names: a copy of .env.example that nobody has changed configures nothing.

    Args:
        variables: names of variables that are no settings of ours and point to the target, too.
    """
    project_name = deployment_name(settings.project)
    section: Any = read(SECTIONS[target], {}, root=settings.root, project_name=project_name)
    return (
        getattr(settings, target) != section
        or any(read_text(settings.env, name) for name in variables)
        or (settings.home / "targets" / target).is_dir()
    )
