"""Settings that hold on every platform and target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ml_service.config.fields import flag, number, path, text
from ml_service.errors import ConfigurationError, UsageError

PLATFORMS = ("local", "azureml")


@dataclass(frozen=True)
class CoreSettings:
    """Every platform and target.

    Paths are absolute. ``store`` holds what builds share (pipelines, runs, the default tracking store), ``home`` what
    belongs to this machine (build id, targets). ``build_id`` is empty when neither ``--build-id`` nor BUILD_BUILDID is
    set. The workflows then read the one that ``publish`` or ``ci`` generated.
    """

    root: Path
    home: Path = path(
        "MLOPS_HOME", ".mlops", help="Where this machine keeps its state: the build id, deployed packages, logs."
    )
    store: Path = path(
        "MLOPS_STORE",
        fallback="store in MLOPS_HOME",
        help="Where the local platform keeps published pipelines, runs and models. Several homes may share one.",
    )
    platform: str = text(
        "MLOPS_PLATFORM",
        "local",
        help="Where models are trained, tracked and registered: local (this machine, no account) or azureml.",
    )
    project: str = text("MLOPS_PROJECT", "diabetes_regression", help="The ML project: a folder with a project.json.")
    build_id: str = text(
        "BUILD_BUILDID",
        help="The build that the work is done for. Azure Pipelines sets it. Leave it empty when you work by hand: "
        "publish and ci generate an id, and the other tasks use that one.",
    )
    build_id_source: str = ""
    build_uri: str = text("BUILD_URI", help="Where a person looks at the build.")
    source_branch: str = text(
        "BUILD_SOURCEBRANCH",
        help="The branch that the sources come from. Azure Pipelines sets it, and it is written into the artifact.",
    )
    deploy_branch: str = text("DEPLOY_BRANCH", help="The only branch whose artifacts are deployed. Empty: any.")
    model_build_id: str = text(
        "MODEL_BUILD_ID", help="The only build, in digits, whose artifact is deployed. Empty: any."
    )
    model_name: str = text(
        "MODEL_NAME",
        help="The name under which models are registered. Empty: model_name in the project's project.json.",
    )
    data_file: Path | None = path("DATA_FILE", help="The training data. Empty: data in the project's project.json.")
    run_evaluation: bool = flag(
        "RUN_EVALUATION",
        True,
        help="false registers the candidate without comparing it with the champion. It is fixed when the pipeline is "
        "published.",
    )
    allow_run_cancel: bool = flag(
        "ALLOW_RUN_CANCEL",
        True,
        help="true ends the run of a candidate that is not better as canceled, false as completed. Neither registers "
        "a model.",
    )
    require_image: bool = flag(
        "REQUIRE_IMAGE",
        False,
        help="true makes build-image fail where there is no container engine. Otherwise it is skipped.",
    )
    image_name: str = text("IMAGE_NAME", from_project=True, help="The repository name of the scoring image.")
    experiment_name: str = text(
        "EXPERIMENT_NAME", fallback="the project's name", help="The experiment that groups the runs, on every platform."
    )
    tracking_uri: str = text(
        "MLFLOW_TRACKING_URI",
        help="Where the local platform tracks runs and models: an MLflow tracking server, or any store that MLflow "
        "knows. Empty: SQLite in MLOPS_STORE.",
    )
    smoke_timeout: float = number(
        "SMOKE_TIMEOUT", 60, least=1, unit="seconds", help="How long the whole smoke test of an endpoint may take."
    )
    is_ci: bool = flag("CI", False, help="Set by most CI systems. ci then undeploys at its end, and nothing is asked.")
    azure_pipelines: bool = flag(
        "TF_BUILD",
        False,
        help="Set by Azure Pipelines. It means CI, shows no key, and turns on output variables and logging commands.",
    )

    @property
    def experiment(self) -> str:
        """The name that groups this project's runs."""
        return self.experiment_name or self.project

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            ConfigurationError: a name or path cannot be used as what it stands for.
            UsageError: an unknown platform, a project that is not a folder with a ``project.json``, or a build id that
                could be a path or a command.
        """
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
        for name, folder in (("MLOPS_HOME", self.home), ("MLOPS_STORE", self.store)):
            if set(str(folder)) & set("?%"):
                raise ConfigurationError(
                    "a path with ? or % cannot name the tracking store's database",
                    where=f"{name}={folder}",
                    next_step=f"set {name} to a path without these",
                )
        if self.build_id and not is_plain(self.build_id):
            raise UsageError(
                "a build id is 1 to 64 letters, digits, dots, dashes or underscores, and starts with a letter or digit",
                where=self.build_id_source,
                next_step="pass another, such as --build-id 20260101.1",
            )


def is_plain(name: str) -> bool:
    """Return whether ``name`` may be a build id or a model's name.

    They become folder names, tags, queries and log lines: nothing in them may be a path or a command.
    """
    allowed = all(c.isascii() and (c.isalnum() or c in "._-") for c in name)
    return allowed and name[:1].isalnum() and len(name) <= 64
