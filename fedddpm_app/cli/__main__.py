"""`python -m fedddpm_app.cli`."""

from fedddpm_app.cli import app

app()
