"""The target on Azure App Service."""
