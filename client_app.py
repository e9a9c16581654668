"""Flower ClientApp. The package has the code; change this file to wrap the app, such as with Flower's mods."""

from fedddpm_app.apps.client import diffusion_client_app

app = diffusion_client_app()
