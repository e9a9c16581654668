"""The `fedddpm` command: run, new, sample, evaluate, fetch, data."""

import typer

from fedddpm_app.cli import data
from fedddpm_app.cli.evaluate import evaluate
from fedddpm_app.cli.fetch import fetch
from fedddpm_app.cli.new import new
from fedddpm_app.cli.run import run
from fedddpm_app.cli.sample import sample

app = typer.Typer(
    help="Federated training of diffusion models on Flower.", no_args_is_help=True, pretty_exceptions_show_locals=False
)
app.command()(run)
app.command()(sample)
app.command()(evaluate)
app.command()(fetch)
app.command()(new)
app.add_typer(data.app, name="data")


@app.callback()
def main() -> None:
    """Federated training of diffusion models on Flower."""
