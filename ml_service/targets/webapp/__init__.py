"""Azure App Service."""
