"""What others wrote, on the user's terminal: it is text, whatever it looks like."""

import json
from io import StringIO

import pytest
from typer.main import get_command

from fedddpm_app.cli import app
from fedddpm_app.cli.common import PlainConsole
from fedddpm_app.cli.result_tables import print_summary
from fedddpm_app.cli.run_view import RunView
from fedddpm_app.progress import ProgressEvent

LEFT_OUT = "WARNING: round 1: client 3 is left out: {}"


@pytest.fixture
def shown():
    """Return what a view prints for lines of a log."""

    def show(*lines):
        out = StringIO()
        view = RunView(None, PlainConsole(file=out, width=500))
        for line in lines:
            view.line(line)
        return out.getvalue()

    return show


@pytest.mark.parametrize(
    "reason",
    [
        ProgressEvent("train", 2, 2, 0, 0.0, client=0, server_round=9, num_rounds=9).to_line(),
        "[fedddpm] phase=x step=1/2 loss=zzz left=1s",
        "[fedddpm] note: the run is over",
        "FutureWarning: DeprecationWarning: Since flwr 1.32 Manually terminating ClientAppActor",
        "[red]x[/] [/]",
    ],
)
def test_a_client_cannot_change_how_its_own_line_is_shown(shown, reason):
    assert shown(LEFT_OUT.format(reason)) == f"{LEFT_OUT.format(reason)}\n"


def test_a_client_cannot_hide_the_lines_of_others(shown):
    hidden = "WARNING: round 1: client 4 is left out: disk full"
    assert hidden in shown(LEFT_OUT.format("the run failed: all is well"), hidden)


@pytest.mark.parametrize(
    "line",
    [
        "/usr/lib/torch/x.py:12: FutureWarning: use y",
        "WARNING: /usr/lib/torch/x.py:12: DeprecationWarning: use y",
        "WARNING :   Since flwr 1.32, z",
        "(ClientAppActor pid=7) WARNING :   Manually terminating ClientAppActor",
    ],
)
def test_warnings_for_programmers_are_not_shown(shown, line):
    assert shown(line) == ""


def test_the_summary_of_another_host_is_text(tmp_path):
    """A fetched one, that is, which a server wrote."""
    text = "[red]a[/] [/b] \x1b]0;title\x07\x1b[2Jend\u202e"
    summary = {"status": f"failed{text}", "error": text, f"loss{text}": 1.0}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    out = StringIO()
    print_summary(tmp_path, PlainConsole(file=out, width=200))
    assert "[red]a[/] [/b]" in out.getvalue()
    assert not set("\x1b\x07\u202e") & set(out.getvalue())


def test_every_argument_and_option_has_help():
    """Versions of typer and click that do not fit each other lose it."""
    commands = {**get_command(app).commands}
    while groups := {name: each for name, each in commands.items() if hasattr(each, "commands")}:
        for name, group in groups.items():
            del commands[name]
            commands |= {f"{name} {inner}": command for inner, command in group.commands.items()}
    shown = {(name, each.name): each.help for name, command in commands.items() for each in command.params}
    assert len(shown) > 50
    assert [place for place, text in shown.items() if not text] == []
