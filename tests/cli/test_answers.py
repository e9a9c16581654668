"""The command answers at once, and knows the keys."""

import inspect
import json
import subprocess
import sys
import tomllib
from importlib import import_module
from typing import get_args

import pytest
import typer
from typer.testing import CliRunner

from fedddpm_app.cli import app
from fedddpm_app.cli import commands as declarations
from fedddpm_app.config import Extractor, Sampler, default_run_config, load_config, read_overrides
from fedddpm_app.config.reference import choices, list_keys
from tests.conftest import ROOT

HEAVY = ("torch", "diffusers", "datasets", "flwr", "flwr_datasets", "ray", "matplotlib", "sklearn", "numpy")
runner = CliRunner()


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False, env=environment or None
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["run", "--help"],
        ["run", "--app", str(ROOT), "-c", "algorithm=fedavgg"],
        ["run", "--app", str(ROOT), "-c", "algorithm=fedavg lr=0.1"],
        ["config", "ema"],
    ],
    ids=" ".join,
)
def test_a_quick_answer_imports_nothing_heavy(arguments):
    """Seconds depend on the machine; the imports do not."""
    code = (
        "import pathlib, sys; from fedddpm_app.cli import app\n"
        f"try: app({arguments!r})\n"
        "except SystemExit: pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules])\n"
        "status = pathlib.Path('/proc/self/status')\n"
        "print(status.read_text().partition('VmHWM:')[2].split()[0] if status.exists() else 0)"
    )
    *_, heavy, memory = python(code).stdout.splitlines()
    assert heavy == "[]"
    assert int(memory) < 120_000  # KB at most at any time; Linux alone has this number


@pytest.mark.slow
def test_a_client_does_not_import_what_it_does_not_need():
    answer = python(
        "import sys, fedddpm_app.apps.client; print([n for n in ('matplotlib', 'sklearn', 'ray') if n in sys.modules])"
    )
    assert answer.stdout.strip() == "[]", answer.stderr


def commands(group, path=()):
    """The path and the declaration of every command."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = list(commands(typer.main.get_group(app)))


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[" ".join(path) for path, _ in COMMANDS])
def test_a_command_and_its_work_have_the_same_arguments(path, command):
    module, _, name = command.callback.place.partition(":")
    work = getattr(import_module(f"fedddpm_app.cli.{module}"), name)
    assert {parameter.name for parameter in command.params} - {"help"} == set(inspect.signature(work).parameters)


@pytest.mark.parametrize("path", [(), ("data",), *(path for path, _ in COMMANDS)], ids=" ".join)
def test_no_help_is_cut_at_80_columns(path):
    answer = runner.invoke(app, [*path, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    assert answer.exit_code == 0
    assert "…" not in answer.output


def test_square_brackets_in_a_help_are_no_markup():
    text = runner.invoke(app, ["compare", "--help"], env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"}).output
    assert "-c adds keys to [base] of the grid file" in text


def test_the_help_of_run_says_that_files_are_taken():
    assert "TOML file, -c" in runner.invoke(app, ["run", "--help"]).output


def test_the_help_lists_the_samplers_and_extractors():
    assert declarations.SAMPLERS.split(" | ") == list(get_args(Sampler))
    assert declarations.EXTRACTORS.split(" | ") == list(get_args(Extractor))


def test_the_version():
    assert runner.invoke(app, ["--version"]).output.startswith("fedddpm 0.1.0 (flwr ")


def config(*arguments):
    answer = runner.invoke(app, ["config", "--app", str(ROOT), *arguments])
    return answer.exit_code, answer.stdout, answer.stderr


def test_every_key_is_listed_with_type_default_and_meaning():
    code, text, _ = config()
    assert code == 0
    assert tomllib.loads(text) == default_run_config()  # a pipe gets a file that -c reads
    assert [key.name for key in list_keys()] == list(default_run_config())
    assert all(key.type and key.heading and key.meaning for key in list_keys())
    assert "# --- local training\n" in text
    assert "round-timeout = 3600.0  # number > 0; seconds to wait for a client's reply in a round\n" in text
    assert "image-size = 8  # integer >= 1 <= 2048; pixels, square" in text


def test_a_search_finds_names_meanings_and_short_names():
    assert {"ema-decay", "server-ema-decay"} <= set(tomllib.loads(config("ema")[1]))
    assert set(tomllib.loads(config("krum", "average")[1])) == {"aggregator-selected"}
    assert set(tomllib.loads(config("Batch_Size=4 local")[1])) == {"batch-size"}
    assert "learning-rate" in tomllib.loads(config("lr")[1])
    code, _, error = config("xyzzy")
    assert (code, "no key has this" in error) == (2, True)


def test_the_values_of_a_run_that_differ(tmp_path):
    values = default_run_config() | {"seed": 3, "dataset": "path:/a", "gone": 1}
    (tmp_path / "config.json").write_text(json.dumps({"run_config": values}))
    code, text, _ = config("--used", str(tmp_path))
    assert code == 0
    assert tomllib.loads(text) == {"seed": 3, "dataset": "path:/a"}
    assert "seed = 3  # default: 0; integer" in text
    assert "gone = 1 is not a key of this version" in text
    code, _, error = config("--used", str(tmp_path / "none"))
    assert (code, "give the folder of a run" in error) == (2, True)


def complete(shell, line):
    words = {"COMP_WORDS": line, "COMP_CWORD": "3"} if shell == "bash" else {"_TYPER_COMPLETE_ARGS": line}
    action = {"_TYPER_COMPLETE_FISH_ACTION": "get-args"} if shell == "fish" else {}
    environment = {"_FEDDDPM_COMPLETE": f"complete_{shell}", **words, **action}
    return runner.invoke(app, [], env=environment, prog_name="fedddpm").output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_keys_and_values_are_completed(shell):
    assert "seed=1 num-rounds=" in complete(shell, "fedddpm run -c 'seed=1 num-r")
    assert "partition=dirichlet" in complete(shell, "fedddpm run -c partition=d")
    assert 'algorithm="fedavg"' in complete(shell, "fedddpm run -c 'algorithm=\"feda").replace('""', '"')
    assert "class-conditional=true" in complete(shell, "fedddpm run -c class-conditional=")


def test_the_choices_of_a_key_are_its_values():
    for key in list_keys():
        for choice in choices(key.name):
            given = read_overrides("-c", [f"{key.name}={choice}"], {key.name: "text"} if key.type == "text" else {})
            assert given.problems == []
    assert load_config(default_run_config()).data.partition in choices("partition")


def test_a_deleted_current_folder_is_named(tmp_path, monkeypatch):
    (folder := tmp_path / "gone").mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    answer = runner.invoke(app, ["config", "ema"])
    assert answer.exit_code == 2
    assert "The current folder was deleted" in answer.stderr
