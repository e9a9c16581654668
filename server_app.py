"""Flower ServerApp. The package has the code; change this file to do more before or after a run."""

from fedddpm_app.apps.server import diffusion_server_app

app = diffusion_server_app()
