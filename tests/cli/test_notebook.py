"""The command in a notebook: one output of bars that changes, and an error for a command that fails."""

from io import StringIO

import IPython.display
import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

import fedddpm_app
from fedddpm_app.cli import bars
from fedddpm_app.cli.common import PlainConsole
from fedddpm_app.cli.run_view import RunView
from fedddpm_app.cli.work_view import WorkView
from fedddpm_app.progress import ProgressEvent, logger


class Output:
    """An output of a cell; it keeps what a reader sees."""

    def __init__(self, shown):
        self.pictures = [self.text_of(shown)]

    def update(self, shown):
        self.pictures.append(self.text_of(shown))

    @staticmethod
    def text_of(shown):
        console = PlainConsole(file=StringIO(), width=100)
        console.print(shown.get_renderable())
        return console.file.getvalue()


@pytest.fixture
def outputs(monkeypatch):
    """Return the outputs that are displayed, in a notebook in which every change is drawn."""
    found = []

    def display(shown, display_id):
        assert display_id
        found.append(Output(shown))
        return found[-1]

    monkeypatch.setattr(IPython.display, "display", display)
    monkeypatch.setattr(bars, "_REDRAW_EVERY_SECONDS", 0.0)
    return found


@pytest.fixture
def console(monkeypatch):
    console = PlainConsole(file=StringIO(), width=100)
    monkeypatch.setattr(console, "is_jupyter", True)
    return console


def test_a_run_is_one_output_whose_bars_end_at_their_end(outputs, console):
    with RunView(20, console) as view:
        for client in (0, 1):
            for step in range(1, 11):
                view.line(ProgressEvent("train", step, 10, 0, 0.5, client, 1, 1).to_line())
    (output,) = outputs
    assert "starting" in output.pictures[0]
    for part in ("client 0", "client 1", "10/10", "20/20"):
        assert part in output.pictures[-1]
    assert console.file.getvalue() == ""


def test_work_without_progress_shows_nothing(outputs, console):
    with WorkView(console):
        pass
    assert outputs == []
    with WorkView(console):
        logger.info(ProgressEvent("decode", 5, 5, 0).to_line())
    assert "5/5" in outputs[0].pictures[-1]


def test_the_extension_gives_the_command(capsys):
    shell = InteractiveShell()
    fedddpm_app.load_ipython_extension(shell)
    shell.run_line_magic("fedddpm", "--version")
    assert capsys.readouterr().out.startswith("fedddpm 0.")
    with pytest.raises(UsageError, match="exit code 2"):
        shell.run_line_magic("fedddpm", "run -c 'lr=0.1'")
