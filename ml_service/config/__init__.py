"""Configuration: one frozen value, made once from the environment. ``.env.example`` explains each setting."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ml_service.config.fields import read as read_section
from ml_service.config.scoring import ScoringSettings
from ml_service.errors import ConfigurationError, UsageError

PLATFORMS = ("local", "azureml")

_CLUSTER_NAME = r"[a-z0-9](?:[-a-z0-9.]*[a-z0-9])?"
"""How objects and namespaces of a cluster are named."""


@dataclass(frozen=True)
class AzureSettings:
    """Where the Azure workspace is and how to sign in.

    The names are those of the variable group ``devopsforai-aml-vg``. ``keys_vault`` names the key vault that holds the
    endpoints' keys; without it a target keeps them where it can.
    """

    subscription_id: str = ""
    tenant_id: str = ""
    resource_group: str = ""
    workspace_name: str = ""
    location: str = ""
    sp_app_id: str = ""
    sp_app_secret: str = field(default="", repr=False)
    dataset_name: str = ""
    dataset_version: str = "latest"
    datastore_name: str = ""
    training_pipeline_name: str = ""
    environment_name: str = ""
    rebuild_environment: bool = False
    compute_name: str = "train-cluster"
    compute_sku: str = "STANDARD_DS2_V2"
    compute_min_nodes: int = 0
    compute_max_nodes: int = 4
    compute_priority: str = "lowpriority"
    keys_vault: str = ""


@dataclass(frozen=True)
class LocalSettings:
    """The endpoint on this machine. Port 0 asks the system for a free one."""

    port: int = 8080
    startup_timeout: float = 60.0
    drain_timeout: float = 30.0


@dataclass(frozen=True)
class ImageSettings:
    """How the scoring image is built and where it is kept.

    ``registry`` is the name of an Azure Container Registry, or the host (and path) of any other. ``network`` is the
    engine's network that the installation of packages uses; empty means the engine's own choice. ``signing_key`` is a
    PEM file or a secret of an Azure Key Vault; with ``public_key`` what is not signed by it is refused at deployment.
    ``pull_identity`` is the resource id of a managed identity that may pull; ``pull_username`` and ``pull_password``
    are for registries that know no such thing.
    """

    base: str = "python:3.11-slim-bookworm"
    registry: str = ""
    network: str = ""
    index_url: str = field(default="", repr=False)
    signing_key: str = ""
    public_key: Path | None = None
    pull_identity: str = ""
    pull_username: str = ""
    pull_password: str = field(default="", repr=False)


@dataclass(frozen=True)
class DockerSettings:
    """The endpoint on a container engine. ``memory`` is in MB, ``cpus`` in cores, timeouts are in seconds.

    ``name`` names everything that the target makes on the engine, so that several deployments can stand side by side.
    """

    name: str = ""
    port: int = 8090
    bind: str = "127.0.0.1"
    memory: int = 1024
    cpus: float = 1.0
    startup_timeout: float = 60.0
    drain_timeout: float = 30.0


@dataclass(frozen=True)
class AksSettings:
    """The endpoint on a Kubernetes cluster. ``cpu`` is in cores, ``memory_gb`` in GB, timeouts in seconds.

    ``compute_name`` names an attachment of the Azure ML workspace; KUBECONFIG wins over it. ``max_concurrent`` and
    ``scoring_timeout_ms`` are 0 where the scoring server's own defaults are to hold. ``gateway`` is empty, ``mesh`` or
    ``NAMESPACE/NAME``.
    """

    compute_name: str = ""
    context: str = ""
    namespace: str = "default"
    name: str = ""
    min_replicas: int = 1
    max_replicas: int = 10
    target_utilization: int = 70
    cpu: float = 0.5
    memory_gb: float = 0.5
    scoring_timeout_ms: int = 0
    max_concurrent: int = 0
    service_type: str = ""
    host: str = ""
    ingress_class: str = "webapprouting.kubernetes.azure.com"
    tls_secret: str = ""
    gateway: str = ""
    startup_timeout: float = 120.0
    drain_seconds: int = 5
    take_over: bool = False
    canary_min_requests: int = 500


@dataclass(frozen=True)
class AciSettings:
    """The endpoint on Azure Container Instances. ``cpu`` is in cores, ``memory_gb`` in GB, timeouts in seconds.

    ``name`` begins the names of the container groups, ``dns_label`` those of their addresses. With ``tls_image`` a
    second container ends TLS with the PEM files ``tls_certificate`` and ``tls_key``; without it a deployment is refused
    unless ``allow_http``.
    """

    name: str = ""
    dns_label: str = ""
    port: int = 8080
    cpu: float = 1.0
    memory_gb: float = 1.0
    restart_policy: str = "Always"
    allow_http: bool = False
    tls_image: str = ""
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    log_workspace_id: str = ""
    log_workspace_key: str = field(default="", repr=False)
    startup_timeout: float = 300.0
    drain_seconds: float = 60.0


@dataclass(frozen=True)
class WebAppSettings:
    """The endpoint on Azure App Service. ``plan`` is a plan for Linux in the resource group; timeouts are in seconds.

    With ``slot`` a version comes up in that deployment slot and is swapped in; without, it replaces the image in place.
    """

    name: str = ""
    plan: str = ""
    slot: str = ""
    startup_timeout: float = 300.0


@dataclass(frozen=True)
class Settings:
    """Everything a task may need to know. Paths are absolute.

    ``build_id`` is empty when neither ``--build-id`` nor ``BUILD_BUILDID`` was given; the workflows then read the one
    that ``publish`` or ``ci`` minted. ``store`` holds what builds share (pipelines, runs, the default tracking
    store), ``home`` what belongs to this machine (build id, targets). ``env`` is the environment the settings came
    from, for adapters that start processes. ``source_branch`` is where the sources come from; an artifact of another
    branch than ``deploy_branch``, or of another build than ``model_build_id``, is not deployed when these are set.
    """

    root: Path
    home: Path
    store: Path
    platform: str = "local"
    project: str = "diabetes_regression"
    build_id: str = ""
    build_id_source: str = ""
    build_uri: str = ""
    source_branch: str = ""
    deploy_branch: str = ""
    model_build_id: str = ""
    model_name: str = ""
    data_file: Path | None = None
    run_evaluation: bool = True
    allow_run_cancel: bool = True
    require_image: bool = False
    tracking_uri: str = ""
    image_name: str = ""
    smoke_timeout: float = 60.0
    is_ci: bool = False
    azure_pipelines: bool = False
    experiment_name: str = ""
    scoring: ScoringSettings = ScoringSettings()
    local: LocalSettings = LocalSettings()
    image: ImageSettings = ImageSettings()
    docker: DockerSettings = DockerSettings()
    aks: AksSettings = AksSettings()
    aci: AciSettings = AciSettings()
    webapp: WebAppSettings = WebAppSettings()
    azure: AzureSettings = AzureSettings()
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
        """Read ``env``; the keyword arguments are a task's options and win over it.

        Raises:
            ConfigurationError: a setting has a value that cannot be meant.
            UsageError: an unknown platform, or a project that is no folder with a ``project.json``.
        """
        read = _Reader(env)
        chosen_project = project or read.text("MLOPS_PROJECT", "diabetes_regression")
        given_build = build_id or read.text("BUILD_BUILDID")
        data_file = read.text("DATA_FILE")
        public_key = read.text("IMAGE_PUBLIC_KEY")
        home = (root / read.text("MLOPS_HOME", ".mlops")).absolute()
        settings = cls(
            root=root,
            home=home,
            store=(root / read.text("MLOPS_STORE", str(home / "store"))).absolute(),
            platform=platform or read.text("MLOPS_PLATFORM", "local"),
            project=chosen_project,
            build_id=given_build,
            build_id_source="--build-id" if build_id else "BUILD_BUILDID" if given_build else "",
            build_uri=read.text("BUILD_URI"),
            source_branch=read.text("BUILD_SOURCEBRANCH"),
            deploy_branch=read.text("DEPLOY_BRANCH"),
            model_build_id=read.text("MODEL_BUILD_ID"),
            model_name=read.text("MODEL_NAME"),
            data_file=(root / data_file).absolute() if data_file else None,
            run_evaluation=read.flag("RUN_EVALUATION", True),
            allow_run_cancel=read.flag("ALLOW_RUN_CANCEL", True),
            require_image=read.flag("REQUIRE_IMAGE", False),
            tracking_uri=read.text("MLFLOW_TRACKING_URI"),
            image_name=read.text("IMAGE_NAME", chosen_project.replace("_", "-")),
            smoke_timeout=read.number("SMOKE_TIMEOUT", 60.0, least=1),
            is_ci=read.flag("CI", False) or read.flag("TF_BUILD", False),
            azure_pipelines=read.flag("TF_BUILD", False),
            experiment_name=read.text("EXPERIMENT_NAME"),
            scoring=read_section(ScoringSettings, env),
            local=LocalSettings(
                port=read.whole("LOCAL_PORT", 8080, least=0, most=65535),
                startup_timeout=read.number("LOCAL_STARTUP_TIMEOUT", 60.0, least=1),
                drain_timeout=read.number("LOCAL_DRAIN_TIMEOUT", 30.0, least=0),
            ),
            image=ImageSettings(
                base=read.text("IMAGE_BASE", ImageSettings.base),
                registry=read.text("IMAGE_REGISTRY"),
                network=read.text("IMAGE_BUILD_NETWORK"),
                index_url=read.text("PIP_INDEX_URL"),
                signing_key=read.text("IMAGE_SIGNING_KEY"),
                public_key=(root / public_key).absolute() if public_key else None,
                pull_identity=read.text("IMAGE_PULL_IDENTITY"),
                pull_username=read.text("IMAGE_PULL_USERNAME"),
                pull_password=read.text("IMAGE_PULL_PASSWORD"),
            ),
            docker=_docker_target(read, chosen_project),
            aks=_aks(read, chosen_project),
            aci=_aci(read, chosen_project, root),
            webapp=_webapp(read, chosen_project),
            azure=_azure(read),
            env=dict(env),
        )
        settings._check()
        return settings

    @property
    def experiment(self) -> str:
        """The name that groups this project's runs."""
        return self.experiment_name or self.project

    def _check(self) -> None:
        if self.platform not in PLATFORMS:
            raise UsageError(
                f"unknown platform {self.platform!r}",
                where="--platform",
                next_step=f"use one of {', '.join(PLATFORMS)}",
            )
        if not self.project.isidentifier() or not (self.root / self.project / "project.json").is_file():
            known = ", ".join(sorted(p.parent.name for p in self.root.glob("*/project.json"))) or "none"
            raise UsageError(
                f"there is no project {self.project!r} here (a folder with a project.json)",
                where="--project",
                next_step=f"use one of: {known}",
            )
        if self.model_name and not is_plain(self.model_name):
            raise ConfigurationError(
                f"{self.model_name!r} cannot name a model: use letters, digits, dots, dashes or underscores",
                where="MODEL_NAME",
                next_step="unset MODEL_NAME, or set a plain name",
            )
        for name, path in (("MLOPS_HOME", self.home), ("MLOPS_STORE", self.store)):
            if set(str(path)) & set("?%"):
                raise ConfigurationError(
                    "a path with ? or % cannot name the tracking store's database",
                    where=f"{name}={path}",
                    next_step=f"set {name} to a path without these",
                )
        if self.build_id and not is_plain(self.build_id):
            raise UsageError(
                "a build id is 1 to 64 letters, digits, dots, dashes or underscores, and starts with a letter or digit",
                where=self.build_id_source,
                next_step="pass another, such as --build-id 20260101.1",
            )


def is_plain(name: str) -> bool:
    """Whether ``name`` may be a build id or a model's name.

    They become folder names, tags, queries and log lines: nothing in them may be a path or a command.
    """
    allowed = all(c.isascii() and (c.isalnum() or c in "._-") for c in name)
    return allowed and name[:1].isalnum() and len(name) <= 64


def _docker_target(read: _Reader, project: str) -> DockerSettings:
    default = DockerSettings()
    return DockerSettings(
        name=read.text("DOCKER_NAME", project.replace("_", "-")),
        port=read.whole("DOCKER_PORT", default.port, least=1, most=65535),
        bind=read.text("DOCKER_BIND", default.bind),
        memory=read.whole("DOCKER_MEMORY_MB", default.memory, least=64, most=1 << 20),
        cpus=read.number("DOCKER_CPUS", default.cpus, least=0.1),
        startup_timeout=read.number("DOCKER_STARTUP_TIMEOUT", default.startup_timeout, least=1),
        drain_timeout=read.number("DOCKER_DRAIN_TIMEOUT", default.drain_timeout, least=0),
    )


def _aks(read: _Reader, project: str) -> AksSettings:
    default = AksSettings()
    settings = AksSettings(
        compute_name=read.text("AKS_COMPUTE_NAME"),
        context=read.text("AKS_CONTEXT"),
        namespace=read.text("AKS_NAMESPACE", default.namespace),
        name=read.text("AKS_DEPLOYMENT_NAME", project.replace("_", "-")).lower(),
        min_replicas=read.whole("AKS_MIN_REPLICAS", default.min_replicas, least=1, most=1000),
        max_replicas=read.whole("AKS_MAX_REPLICAS", default.max_replicas, least=1, most=1000),
        target_utilization=read.whole("AKS_TARGET_UTILIZATION", default.target_utilization, least=1, most=100),
        cpu=read.number("AKS_CPU", default.cpu, least=0.01),
        memory_gb=read.number("AKS_MEMORY_GB", default.memory_gb, least=0.0625),
        scoring_timeout_ms=read.whole("AKS_SCORING_TIMEOUT_MS", 0, least=0, most=3_600_000),
        max_concurrent=read.whole("AKS_MAX_CONCURRENT_REQUESTS", 0, least=0, most=1 << 20),
        service_type=read.text("AKS_SERVICE_TYPE"),
        host=read.text("AKS_HOST"),
        ingress_class=read.text("AKS_INGRESS_CLASS", default.ingress_class),
        tls_secret=read.text("AKS_TLS_SECRET"),
        gateway=_gateway(read, read.text("AKS_NAMESPACE", default.namespace)),
        startup_timeout=read.number("AKS_STARTUP_TIMEOUT", default.startup_timeout, least=1),
        drain_seconds=read.whole("AKS_DRAIN_SECONDS", default.drain_seconds, least=1, most=600),
        take_over=read.flag("AKS_TAKE_OVER", default.take_over),
        canary_min_requests=read.whole("CANARY_MIN_REQUESTS", default.canary_min_requests, least=1, most=1 << 30),
    )
    if settings.min_replicas > settings.max_replicas:
        raise ConfigurationError(
            f"is more than AKS_MAX_REPLICAS={settings.max_replicas}",
            where=f"AKS_MIN_REPLICAS={settings.min_replicas}",
            next_step="set both so that the first is at most the second",
        )
    if settings.service_type not in ("", "ClusterIP", "NodePort", "LoadBalancer"):
        raise ConfigurationError(
            f"{settings.service_type!r} is no type of a Service",
            where="AKS_SERVICE_TYPE",
            next_step="use ClusterIP, NodePort or LoadBalancer, or unset it",
        )
    if settings.gateway and not settings.host:
        raise ConfigurationError(
            "needs a host, for which the Gateway sends requests here",
            where="AKS_GATEWAY",
            next_step="set AKS_HOST to the name that clients use, or unset AKS_GATEWAY",
        )
    return settings


def _gateway(read: _Reader, namespace: str) -> str:
    """``NAMESPACE/NAME``, also where only the name is given; ``mesh`` stays as it is."""
    value = read.text("AKS_GATEWAY")
    if value and not re.fullmatch(rf"(?:{_CLUSTER_NAME}/)?{_CLUSTER_NAME}", value):
        raise ConfigurationError(
            f"{value!r} names no Gateway",
            where="AKS_GATEWAY",
            next_step="use NAMESPACE/NAME, NAME (in AKS_NAMESPACE) or mesh, or unset it",
        )
    return value if value in ("", "mesh") or "/" in value else f"{namespace}/{value}"


def _aci(read: _Reader, project: str, root: Path) -> AciSettings:
    default = AciSettings()
    name = read.text("ACI_DEPLOYMENT_NAME", project.replace("_", "-")).lower()
    certificate, key = read.text("ACI_TLS_CERTIFICATE"), read.text("ACI_TLS_KEY")
    settings = AciSettings(
        name=name,
        dns_label=read.text("ACI_DNS_LABEL", name).lower(),
        port=read.whole("ACI_PORT", default.port, least=1, most=65535),
        cpu=read.number("ACI_CPU", default.cpu, least=0.1),
        memory_gb=read.number("ACI_MEMORY_GB", default.memory_gb, least=0.1),
        restart_policy=read.text("ACI_RESTART_POLICY", default.restart_policy),
        allow_http=read.flag("ACI_ALLOW_HTTP", default.allow_http),
        tls_image=read.text("ACI_TLS_IMAGE"),
        tls_certificate=(root / certificate).absolute() if certificate else None,
        tls_key=(root / key).absolute() if key else None,
        log_workspace_id=read.text("ACI_LOG_WORKSPACE_ID"),
        log_workspace_key=read.text("ACI_LOG_WORKSPACE_KEY"),
        startup_timeout=read.number("ACI_STARTUP_TIMEOUT", default.startup_timeout, least=1),
        drain_seconds=read.number("ACI_DRAIN_SECONDS", default.drain_seconds, least=0),
    )
    if settings.tls_image and not (settings.tls_certificate and settings.tls_key):
        raise ConfigurationError(
            "needs a certificate and its key",
            where="ACI_TLS_IMAGE",
            next_step="set ACI_TLS_CERTIFICATE and ACI_TLS_KEY to PEM files",
        )
    if settings.restart_policy not in ("Always", "OnFailure", "Never"):
        raise ConfigurationError(
            f"{settings.restart_policy!r} is no restart policy",
            where="ACI_RESTART_POLICY",
            next_step="use Always, OnFailure or Never",
        )
    return settings


def _webapp(read: _Reader, project: str) -> WebAppSettings:
    default = WebAppSettings()
    return WebAppSettings(
        name=read.text("WEBAPP_DEPLOYMENT_NAME", project.replace("_", "-")).lower(),
        plan=read.text("WEBAPP_PLAN"),
        slot=read.text("WEBAPP_SLOT"),
        startup_timeout=read.number("WEBAPP_STARTUP_TIMEOUT", default.startup_timeout, least=1),
    )


def _azure(read: _Reader) -> AzureSettings:
    default = AzureSettings()
    return AzureSettings(
        subscription_id=read.text("SUBSCRIPTION_ID"),
        tenant_id=read.text("TENANT_ID"),
        resource_group=read.text("RESOURCE_GROUP"),
        workspace_name=read.text("WORKSPACE_NAME"),
        location=read.text("LOCATION"),
        sp_app_id=read.text("SP_APP_ID"),
        sp_app_secret=read.text("SP_APP_SECRET"),
        dataset_name=read.text("DATASET_NAME"),
        dataset_version=read.text("DATASET_VERSION", default.dataset_version),
        datastore_name=read.text("DATASTORE_NAME"),
        training_pipeline_name=read.text("TRAINING_PIPELINE_NAME"),
        environment_name=read.text("AML_ENV_NAME"),
        rebuild_environment=read.flag("AML_REBUILD_ENVIRONMENT", default.rebuild_environment),
        compute_name=read.text("AML_COMPUTE_CLUSTER_NAME", default.compute_name),
        compute_sku=read.text("AML_COMPUTE_CLUSTER_CPU_SKU", default.compute_sku),
        compute_min_nodes=read.whole("AML_CLUSTER_MIN_NODES", default.compute_min_nodes, least=0, most=1000),
        compute_max_nodes=read.whole("AML_CLUSTER_MAX_NODES", default.compute_max_nodes, least=1, most=1000),
        compute_priority=read.text("AML_CLUSTER_PRIORITY", default.compute_priority),
        keys_vault=read.text("SCORING_KEYS_VAULT"),
    )


class _Reader:
    """Typed reads of an environment.

    An unset and an empty variable are the same: pipelines pass unset ones as empty.
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env

    def text(self, name: str, default: str = "") -> str:
        value = self._env.get(name, "").strip()
        # Azure Pipelines leaves the macro of an undefined variable as it is: "$(NAME)".
        return default if not value or value == f"$({name})" else value

    def flag(self, name: str, default: bool) -> bool:
        value = self.text(name, str(default)).lower()
        if value in ("1", "true", "yes", "on"):
            return True
        if value in ("0", "false", "no", "off"):
            return False
        raise ConfigurationError(
            f"{value!r} is neither true nor false", where=name, next_step=f"set {name}=true or false"
        )

    def number(self, name: str, default: float, *, least: float) -> float:
        value = self.text(name, str(default))
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not least <= number < float("inf"):
            raise ConfigurationError(
                f"{value!r} is not a number of at least {least}", where=name, next_step=f"unset {name}, or set a number"
            )
        return number

    def whole(self, name: str, default: int, *, least: int, most: int) -> int:
        value = self.text(name, str(default))
        if not value.isdecimal() or not least <= int(value) <= most:
            raise ConfigurationError(
                f"{value!r} is not a whole number from {least} to {most}",
                where=name,
                next_step=f"unset {name}, or set a number in that range",
            )
        return int(value)
