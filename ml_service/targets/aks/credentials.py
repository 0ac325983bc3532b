"""Find the cluster of the target aks and sign in to it, by KUBECONFIG or by asking Azure. See docs/aks.md."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ml_service.config import Settings
from ml_service.errors import INSTALL, ConfigurationError, UnavailableError
from ml_service.targets.aks.client import Cluster

MANAGEMENT = "https://management.azure.com"

AKS_SERVER_APPLICATION = "6dae42f8-4368-4678-94ff-3960e28e3630"
"""The Entra application of every AKS cluster. Source: https://learn.microsoft.com/azure/aks/kubelogin-authentication"""

_COMPUTES_API = "2024-04-01"
_CLUSTER_ID = re.compile(
    r"/subscriptions/(?P<subscription>[^/]+)/resourceGroups/(?P<group>[^/]+)/providers/"
    r"Microsoft\.ContainerService/managedClusters/(?P<name>[^/]+)",
    re.IGNORECASE,
)

Token = Callable[[str], str]
"""A function that returns an Entra access token for a scope."""


@dataclass(frozen=True)
class ClusterId:
    """A managed cluster in Azure."""

    subscription: str
    resource_group: str
    name: str


def connect(settings: Settings) -> Cluster:
    """Return a client of the cluster that KUBECONFIG names, else of the one behind the compute AKS_COMPUTE_NAME.

    Raises:
        ConfigurationError: neither is set, KUBECONFIG is not valid, or a library is missing.
        UnavailableError: Azure does not answer or refuses.
    """
    try:
        from kubernetes import client, config
        from urllib3.exceptions import InsecureRequestWarning
    except ImportError:
        raise ConfigurationError(
            "the package kubernetes is not installed",
            where="kubernetes",
            next_step=INSTALL,
        ) from None
    namespace, kubeconfig = settings.aks.namespace, settings.env.get("KUBECONFIG", "")
    configuration = client.Configuration()
    try:
        if kubeconfig:
            config.load_kube_config(
                kubeconfig, context=settings.aks.context or None, client_configuration=configuration
            )
        else:
            from_azure = _from_azure(settings)
            config.load_kube_config_from_dict(from_azure, client_configuration=configuration)
    except (config.ConfigException, OSError) as error:
        raise ConfigurationError(
            f"invalid kubeconfig: expected a context with a cluster and a user: {error}",
            where=f"KUBECONFIG={kubeconfig}" if kubeconfig else "AKS_COMPUTE_NAME",
            next_step="run: az aks get-credentials, and set KUBECONFIG to the file",
        ) from None
    configuration.retries = 1
    if not configuration.verify_ssl:
        # urllib3 warns at every request. Once is enough for somebody who turned verification off in the file.
        warnings.filterwarnings("once", category=InsecureRequestWarning)
    return Cluster(client.ApiClient(configuration), namespace)


def _from_azure(settings: Settings) -> Mapping[str, Any]:
    if not settings.aks.compute_name:
        raise ConfigurationError(
            "no cluster is named",
            where="target aks",
            next_step="set KUBECONFIG, or AKS_COMPUTE_NAME (the cluster's name in the Azure ML workspace)",
        )
    from ml_service.azure import identity

    signed_in = identity.credential(settings)
    token = functools.partial(identity.token, signed_in)
    return kubeconfig_of(signed_in, resolve(settings, token), token)


def resolve(settings: Settings, token: Token, management: str = MANAGEMENT) -> ClusterId:
    """Return the managed cluster behind a compute that is attached to the Azure ML workspace.

    Source: https://learn.microsoft.com/rest/api/azureml/compute/get

    Raises:
        ConfigurationError: the compute is not an AKS cluster.
        UnavailableError: Azure does not answer, or does not know the compute.
    """
    import requests

    azure, name = settings.azure, settings.aks.compute_name
    where = f"AKS_COMPUTE_NAME={name}"
    url = (
        f"{management}/subscriptions/{azure.subscription_id}/resourceGroups/{azure.resource_group}/providers/"
        f"Microsoft.MachineLearningServices/workspaces/{azure.workspace_name}/computes/{name}"
    )
    headers = {"Authorization": f"Bearer {token(f'{MANAGEMENT}/.default')}"}
    try:
        response = requests.get(url, params={"api-version": _COMPUTES_API}, headers=headers, timeout=30)
    except requests.RequestException as error:
        raise UnavailableError(
            f"Azure cannot be reached ({type(error).__name__})", where=where, next_step="check the network"
        ) from None
    if response.status_code != 200:
        raise UnavailableError(
            f"Azure answers {response.status_code} for this compute of workspace {azure.workspace_name}",
            where=where,
            next_step="check the name in the workspace's list of attached computes, and the identity's role there",
        )
    match = _CLUSTER_ID.fullmatch(str(response.json().get("properties", {}).get("resourceId", "")))
    if not match:
        raise ConfigurationError(
            "is not attached to an AKS cluster", where=where, next_step="name a compute of the type AKS or Kubernetes"
        )
    return ClusterId(match["subscription"], match["group"], match["name"])


def kubeconfig_of(signed_in: Any, cluster: ClusterId, token: Token) -> Mapping[str, Any]:
    """Return the cluster's kubeconfig for a user, with an Entra token where local accounts are off.

    Raises:
        ConfigurationError: the library is not installed.
        UnavailableError: Azure does not answer or refuses.
    """
    import yaml

    try:
        from azure.core.exceptions import AzureError
        from azure.mgmt.containerservice import ContainerServiceClient
    except ImportError:
        raise ConfigurationError(
            "the package azure-mgmt-containerservice is not installed",
            where="azure",
            next_step=INSTALL,
        ) from None
    try:
        clusters = ContainerServiceClient(signed_in, cluster.subscription).managed_clusters
        raw = clusters.list_cluster_user_credentials(cluster.resource_group, cluster.name).kubeconfigs[0].value
    except AzureError as error:
        raise UnavailableError(
            f"Azure refuses the credentials: {str(error).splitlines()[0]}",
            where=f"AKS cluster {cluster.name}",
            next_step="give the identity the role Azure Kubernetes Service Cluster User",
        ) from None
    return with_entra_token(yaml.safe_load(raw), token)


def with_entra_token(kubeconfig: dict[str, Any], token: Token) -> Mapping[str, Any]:
    """Replace a program that would get a token (kubelogin) by a token. ``kubeconfig`` is changed and returned."""
    for entry in kubeconfig["users"]:
        if {"exec", "auth-provider"} & set(entry["user"]):
            entry["user"] = {"token": token(f"{AKS_SERVER_APPLICATION}/.default")}
    return kubeconfig
