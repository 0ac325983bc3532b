"""Azure ML v1 as its SDK sees it: the workspace, the data plane, blob storage, and compute.

Steps are processes of this machine. Validation, roles, quotas and timing are invented.
"""
