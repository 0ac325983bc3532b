"""Azure ML by azureml-sdk (SDK v1)."""
