"""Settings of the target webapp."""

from __future__ import annotations

from dataclasses import dataclass

from ml_service.config.fields import number, text


@dataclass(frozen=True)
class WebAppSettings:
    """Target webapp: an endpoint on Azure App Service."""

    name: str = text(
        "WEBAPP_DEPLOYMENT_NAME",
        from_project=True,
        lower=True,
        help="The name of the site. It must be unique in all of Azure.",
    )
    plan: str = text("WEBAPP_PLAN", help="The App Service plan for Linux, in the resource group, that runs the site.")
    slot: str = text(
        "WEBAPP_SLOT",
        help="The deployment slot in which a version starts before it is swapped with production, such as staging "
        "(plans from Standard on). Empty: the image is replaced in place.",
    )
    startup_timeout: float = number(
        "WEBAPP_STARTUP_TIMEOUT", 300, least=1, unit="seconds", help="How long a version may take to become ready."
    )
