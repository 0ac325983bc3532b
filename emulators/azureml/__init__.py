"""Azure ML v1 as its SDK sees it: the workspace, the data plane, blob storage, and compute.

It answers what this project calls and 501 to anything else. Steps are processes of this machine. Validation, roles,
quotas and timing are invented: see docs/azure-ml.md.
"""
