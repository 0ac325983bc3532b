"""Settings of Azure: the workspace, the sign-in, and what a workspace holds."""

from __future__ import annotations

from dataclasses import dataclass

from ml_service.config.fields import flag, secret, text, whole


@dataclass(frozen=True)
class AzureSettings:
    """Azure: the platform azureml, and the targets aci and webapp.

    The names are those of the variable group ``devopsforai-aml-vg``.
    """

    subscription_id: str = text("SUBSCRIPTION_ID", help="The subscription.")
    tenant_id: str = text("TENANT_ID", help="The tenant that the service principal belongs to.")
    resource_group: str = text("RESOURCE_GROUP", help="The resource group.")
    workspace_name: str = text("WORKSPACE_NAME", help="The Azure ML workspace.")
    location: str = text("LOCATION", help="The region in which aci and webapp create what is new.")
    sp_app_id: str = text(
        "SP_APP_ID",
        help="The service principal that signs in. Leave it and its secret empty to sign in as the Azure CLI or as a "
        "managed identity.",
    )
    sp_app_secret: str = secret("SP_APP_SECRET", help="The secret of that service principal.")
    dataset_name: str = text("DATASET_NAME", help="The registered dataset.")
    dataset_version: str = text(
        "DATASET_VERSION",
        "latest",
        help="The dataset's version: a number, or latest, which registers the local file when it is new.",
    )
    datastore_name: str = text("DATASTORE_NAME", help="The datastore that the dataset's file is uploaded to.")
    training_pipeline_name: str = text("TRAINING_PIPELINE_NAME", help="The name of the published training pipeline.")
    environment_name: str = text("AML_ENV_NAME", help="The environment on the compute cluster.")
    rebuild_environment: bool = flag(
        "AML_REBUILD_ENVIRONMENT", False, help="true registers the environment again although the lock is unchanged."
    )
    compute_name: str = text(
        "AML_COMPUTE_CLUSTER_NAME",
        "train-cluster",
        help="The compute cluster. It is created under this name if it is missing, with the next four settings.",
    )
    compute_sku: str = text("AML_COMPUTE_CLUSTER_CPU_SKU", "STANDARD_DS2_V2", help="The size of its nodes.")
    compute_min_nodes: int = whole(
        "AML_CLUSTER_MIN_NODES", 0, least=0, most=1000, unit="nodes", help="How many nodes it keeps when it is idle."
    )
    compute_max_nodes: int = whole(
        "AML_CLUSTER_MAX_NODES", 4, least=1, most=1000, unit="nodes", help="How many nodes it has at most."
    )
    compute_priority: str = text(
        "AML_CLUSTER_PRIORITY", "lowpriority", help="The priority of its nodes: dedicated or lowpriority."
    )
    keys_vault: str = text(
        "SCORING_KEYS_VAULT",
        help="The key vault that holds the two keys of an endpoint of aci or webapp, as secrets called "
        "NAME-primary-key and NAME-secondary-key. Missing ones are created. Without a vault aci keeps keys in "
        "MLOPS_HOME, and webapp in the site's own settings.",
    )
