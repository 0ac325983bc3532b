"""Sign-in, errors, leases and secrets, for every module that calls Azure."""
