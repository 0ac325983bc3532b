"""Services of Azure answered on this machine, at the wire. Nothing here imports the rest of the repository."""
