"""The `fedddpm` command.

``commands`` declares all commands and imports nothing heavy, so that the help and the completions of a shell come at
once. Every other module does the work of a command, and is imported when the command runs.
"""

from fedddpm_app.cli.commands import app

__all__ = ["app"]
