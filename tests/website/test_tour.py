"""examples/tour.ipynb: it runs, it uses public names only, and what it stores is small and names no place."""

import ast
import re
import sys

import nbformat
import pytest
from typer.main import get_command

import fedddpm_app
from fedddpm_app.cli import app
from tests.conftest import ROOT
from website.repository import NOTEBOOK
from website.tour import execute

FILE = ROOT / NOTEBOOK
TOUR = nbformat.read(FILE, as_version=4)
CODE = [cell for cell in TOUR.cells if cell.cell_type == "code"]
LARGEST = 1_000_000  # bytes


def python_of(cell):
    """Return a cell without its magics; a cell that writes a file has no Python."""
    lines = [] if cell.source.startswith("%%writefile ") else cell.source.splitlines()
    return "\n".join(line for line in lines if not line.startswith("%"))


def outputs_of(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def texts_of(output):
    return [output.get("text", ""), *(str(v) for k, v in output.get("data", {}).items() if k.startswith("text/"))]


def test_the_notebook_is_valid_and_small():
    nbformat.validate(TOUR)
    assert FILE.stat().st_size < LARGEST
    assert all(cell.outputs for cell in CODE if "%load_ext" not in cell.source)


def test_its_outputs_name_no_place_and_no_user():
    for output in outputs_of(TOUR):
        for text in texts_of(output):
            assert not re.search(r"(?<![\w.<])/(?:tmp|home|root|work|Users|var)\b", text), text


def test_its_code_uses_public_names_only():
    commands = get_command(app).commands
    for cell in CODE:
        for node in ast.walk(ast.parse(python_of(cell))):
            if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "fedddpm_app":
                assert node.module == "fedddpm_app"
                assert {alias.name for alias in node.names} <= set(fedddpm_app.__all__)
            elif isinstance(node, ast.ImportFrom):
                assert node.module == "IPython.display" or node.module in sys.stdlib_module_names
            elif isinstance(node, ast.Import):
                assert {alias.name for alias in node.names} <= sys.stdlib_module_names
        for line in (line for line in cell.source.splitlines() if line.startswith("%")):
            word, argument = line.split()[:2]
            known = {"%load_ext": ["fedddpm_app"], "%fedddpm": commands, "%%writefile": [argument]}
            assert argument in known[word]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_notebook_runs(tmp_path):
    """Its bars are one output each, which ends at 100 %."""
    done = execute(tmp_path)
    assert (tmp_path / "tour" / "fedddpm" / "pipeline").is_dir()
    (run,) = (cell for cell in done.cells if cell.source.startswith("%fedddpm run"))
    texts = [text for output in run.outputs for text in texts_of(output)]
    assert sum(len(text.splitlines()) for text in texts) < 150
    steps = re.findall(r"\brun\b.*?([\d,]+)/([\d,]+)", "\n".join(text for text in texts if "━" in text))
    assert steps
    assert all(done == total for done, total in steps[-1:])
