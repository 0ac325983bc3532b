"""What everything that talks to Azure Resource Manager shares."""
