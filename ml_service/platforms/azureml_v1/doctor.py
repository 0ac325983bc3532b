"""``inv doctor --platform azureml``: check settings, sign-in, compute and quota, in seconds and without changes."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

from ml_service.azure_devops import sanitize_log_line
from ml_service.config import Settings
from ml_service.errors import INSTALL, MlopsError, UnavailableError
from ml_service.platforms.azureml_v1.assets import refuse_failed
from ml_service.platforms.azureml_v1.sdk import attempt, connect, import_sdk, require
from ml_service.ports import Finding

# Source: https://learn.microsoft.com/azure/azure-resource-manager/management/resource-name-rules
_NAMES = {
    "AML_COMPUTE_CLUSTER_NAME": (
        "azure.compute_name",
        r"[A-Za-z][A-Za-z0-9-]{0,14}[A-Za-z0-9]",
        "2 to 16 letters, digits, dashes",
    ),
    "WORKSPACE_NAME": (
        "azure.workspace_name",
        r"[A-Za-z0-9][\w-]{2,32}",
        "3 to 33 letters, digits, dashes, underscores",
    ),
    "EXPERIMENT_NAME": ("experiment_name", r"|[A-Za-z0-9][\w-]{0,254}", "up to 255 letters, digits, dashes"),
    "DATASET_NAME": ("azure.dataset_name", r"|[A-Za-z0-9][\w.-]{0,254}", "up to 255 letters, digits, dashes, dots"),
    "AML_CLUSTER_PRIORITY": ("azure.compute_priority", "lowpriority|dedicated", "lowpriority or dedicated"),
}


def diagnose(settings: Settings) -> Sequence[Finding]:
    """Check settings, names, SDK, sign-in and workspace, compute and quota. Skip what cannot work after a failure."""
    findings = [_python(), *_names(settings)]
    findings.append(_check("settings", lambda: _required(settings)))
    findings.append(_check("azureml-sdk", _sdk))
    if not all(finding.ok for finding in findings):
        return findings
    workspaces: list[Any] = []

    def open_workspace() -> str:
        workspace = connect(settings)
        workspaces.append(workspace)
        return f"{workspace.name} in {workspace.location}"

    findings.append(_check("workspace", open_workspace))
    for workspace in workspaces:
        findings.append(_check("compute", functools.partial(_compute, settings, workspace)))
        findings.append(_check("quota", functools.partial(_quota, settings, workspace)))
    return findings


def _check(subject: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(subject, True, sanitize_log_line(check()))
    except MlopsError as error:
        return Finding(subject, False, f"{error.where}: {error.what}" if error.where else error.what, error.next_step)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", sys.version_info[:2] < (3, 12), f"{version}; azureml-sdk needs 3.11 or less", INSTALL)


def _names(settings: Settings) -> list[Finding]:
    findings = []
    for setting, (attribute, pattern, rule) in _NAMES.items():
        value = attrgetter(attribute)(settings)
        if value and not re.fullmatch(pattern, value):
            findings.append(Finding(setting, False, f"invalid name {sanitize_log_line(value)!r}", f"use {rule}"))
    if settings.azure.compute_min_nodes > settings.azure.compute_max_nodes:
        findings.append(Finding("AML_CLUSTER_MIN_NODES", False, "is more than AML_CLUSTER_MAX_NODES", "set it to 0"))
    return findings


def _required(settings: Settings) -> str:
    require(settings.azure, "subscription_id", "resource_group", "workspace_name")
    return "subscription, resource group and workspace are named"


def _sdk() -> str:
    return f"azureml-core {import_sdk().VERSION}"


def _compute(settings: Settings, workspace: Any) -> str:
    from azureml.core.compute import ComputeTarget

    azure = settings.azure
    where = f"compute of workspace {workspace.name}"
    clusters = attempt(lambda: ComputeTarget.list(workspace), where)
    for cluster in clusters:
        if cluster.name == azure.compute_name:
            refuse_failed(cluster, f"compute cluster {cluster.name} of workspace {workspace.name}")
            return f"{cluster.name} is there: {cluster.provisioning_state}"
    return f"{azure.compute_name} is not there: publish creates it"


def _quota(settings: Settings, workspace: Any) -> str:
    from azureml.core.compute import AmlCompute

    azure = settings.azure
    where = f"quota of {workspace.location}"
    sizes = attempt(lambda: AmlCompute.supported_vmsizes(workspace), where)
    size = next((each for each in sizes if each["name"].lower() == azure.compute_sku.lower()), None)
    if size is None:
        raise UnavailableError(
            f"there is no size {azure.compute_sku}", where=where, next_step="set AML_COMPUTE_CLUSTER_CPU_SKU"
        )
    cores = int(size["vCPUs"]) * azure.compute_max_nodes
    needed = f"{azure.compute_max_nodes} nodes of {azure.compute_sku} need {cores} cores"
    kind = "lowpriority" if azure.compute_priority == "lowpriority" else _family(azure.compute_sku)
    for usage in attempt(lambda: AmlCompute.list_usages(workspace), where):
        if kind in str(usage["name"]["value"]).lower():
            return _compare(needed, cores, int(usage["limit"]) - int(usage["currentValue"]), where)
    return f"{needed}; Azure lists no quota for them"


def _family(sku: str) -> str:
    """Return the name under which Azure counts the cores of a size: STANDARD_DS2_V2 belongs to standarddsv2family."""
    series, _, version = sku.lower().removeprefix("standard_").partition("_")
    return f"standard{re.sub(r'[0-9]+', '', series)}{version}family"


def _compare(needed: str, cores: int, free: int, where: str) -> str:
    if cores > free:
        raise UnavailableError(
            f"{needed}, {free} are free",
            where=where,
            next_step="set AML_CLUSTER_MAX_NODES to less, or ask for more quota",
        )
    return f"{needed}, {free} are free"
