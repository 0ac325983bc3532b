"""Azure Resource Manager for container groups, web apps, registries, tags and key vaults.

A container group or site that is accepted really runs, on the container engine of this machine. Its host name leads to
the container through the same proxy. Validation, prices, quotas and timing are invented.
"""
