"""Import MLflow's client without what it does on import: usage reports, long timeouts, pandas.

Nothing else imports MLflow, so that its environment variables are set before. The import takes seconds: import this
module when it is needed.
"""

from __future__ import annotations

import logging
import os

from ml_service import telemetry
from ml_service.hide_module import hidden

telemetry.turn_off()
# An unreachable server is reported in seconds; MLflow's own default keeps people waiting for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

# MLflow imports pandas where it is installed, and works without. The client needs none of it, and it costs a second.
with hidden("pandas"):
    from mlflow import MlflowClient
    from mlflow.entities import Metric, RunTag
    from mlflow.entities.model_registry import ModelVersion as MlflowVersion
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

__all__ = ["Metric", "MlflowClient", "MlflowException", "MlflowVersion", "RunTag", "SQLAlchemyError", "open_client"]

logging.getLogger("alembic").setLevel(logging.WARNING)
# What MLflow logs as an error, traceback included, it also raises, and here that becomes a message.
logging.getLogger("mlflow").setLevel(logging.CRITICAL)


def open_client(uri: str) -> MlflowClient:
    """Return a client whose tracking store and model registry are both at ``uri``."""
    with hidden("pandas"):
        return MlflowClient(uri, uri)
