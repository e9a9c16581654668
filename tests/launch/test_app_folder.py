"""App folders: that of an installed wheel gives Flower the checkout's bundle; that of `fedddpm new` is the user's."""

import re
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk, build_fab_from_files
from flwr.cli.config_utils import load_and_validate
from flwr.cli.utils import validate_project_name
from hatchling.builders.wheel import WheelBuilder
from typer.testing import CliRunner

from fedddpm_app.cli import app
from fedddpm_app.config import default_run_config
from fedddpm_app.launch import app_folder
from fedddpm_app.launch.flower_run import to_toml
from fedddpm_app.launch.new_app import app_name
from tests.conftest import ROOT, TINY, RunDirectory

runner = CliRunner()
MADE = {"client_app.py", "server_app.py", "pyproject.toml", "l1_proximal.py", "README.md", "LICENSE", ".gitignore"}
OWN = {"algorithm": "l1_proximal:L1Proximal", "algorithm-options": "strength=0.0001"}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A new app folder; modules that another app folder named alike do not take its place."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("client_app", "server_app", "l1_proximal"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    made = runner.invoke(app, ["new", "my app"])
    assert made.exit_code == 0, made.output
    return tmp_path / "my app"


def run_it(folder, *arguments, **overrides):
    config = to_toml(TINY | {"num-rounds": 1} | overrides)
    return runner.invoke(app, ["run", "--app", str(folder), "--engine", "inprocess", "-c", config, *arguments])


def test_flower_gets_the_same_bundle_from_a_wheel_as_from_the_checkout(tmp_path, monkeypatch):
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    package = tmp_path / "site" / "fedddpm_app"
    monkeypatch.setattr(app_folder, "_PACKAGE", package)
    monkeypatch.setattr(app_folder, "packaged_app", lambda: package / "app_files")
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["fab-include"]
    files = [path for pattern in ["pyproject.toml", *patterns] for path in ROOT.glob(pattern.lstrip("/"))]
    expected, _ = build_fab_from_files({path.relative_to(ROOT).as_posix(): path for path in files})
    with app_folder.bundled(package / "app_files") as bundle:
        assert build_fab_from_disk(bundle) == expected
    assert not bundle.exists()
    with app_folder.bundled(ROOT) as bundle:  # a folder of the user is used as it is
        assert bundle == ROOT


def test_a_new_app_has_every_setting_and_runs_its_own_algorithm(own, shared_run):
    assert {path.name for path in own.iterdir()} == MADE
    assert default_run_config(own) == default_run_config() | OWN
    lines = (own / "pyproject.toml").read_text().splitlines()
    _, _, settings = (ROOT / "pyproject.toml").read_text().partition("[tool.flwr.app.config]\n")
    settings = settings.partition("\n[")[0].strip().splitlines()
    assert len([line for line in settings if line not in lines]) == len(OWN)
    result = run_it(own, **{"output-dir": "out", "run-name": "run"})
    assert result.exit_code == 0, result.output
    assert sys.modules["l1_proximal"].__file__ == str(own / "l1_proximal.py")
    assert sys.modules["server_app"].__file__ == str(own / "server_app.py")
    example = {"algorithm": "examples.l1_proximal:L1Proximal", "algorithm_options": OWN["algorithm-options"]}
    assert RunDirectory(own.parent / "out" / "run").losses() == shared_run(**example, num_rounds=1).losses()


def test_flower_accepts_a_new_app_and_sends_code_only(own, tmp_path):
    _, warnings = load_and_validate(own / "pyproject.toml")  # its apps are found, too
    assert warnings == []
    (own / "runs" / "a").mkdir(parents=True)
    (own / "runs" / "a" / "summary.json").write_text("{}")
    (own / "helpers").mkdir()
    (own / "helpers" / "losses.py").touch()
    (tmp_path / "fab").write_bytes(build_fab_from_disk(own))
    sent = {name for name in zipfile.ZipFile(tmp_path / "fab").namelist() if not name.startswith(".info")}
    assert sent == MADE - {".gitignore"} | {"helpers/losses.py"}


@pytest.mark.parametrize("name", ["my app", "2nd_run", "ünï", "42", "x" * 50, "a" * 31 + "-b", "."])
def test_the_name_of_a_new_app_is_one_that_flower_accepts(name):
    validate_project_name(app_name(Path(name)), "name")


@pytest.mark.parametrize(("name", "says"), [("full", "is not an empty folder"), ("full/a.txt", "cannot be written")])
def test_a_new_app_overwrites_nothing(tmp_path, monkeypatch, name, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("mine")
    result = runner.invoke(app, ["new", name])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert re.search(f"{name} {says}", result.stderr)
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "a.txt"]


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("l1_proximal.py", "class L1Proximal(", r'algorithm = "l1_proximal:L1Proximal" cannot be imported .*line 1'),
        ("client_app.py", "import no_such_package", r'clientapp = "client_app:app" .* cannot be imported'),
        ("server_app.py", "app = 3", r'serverapp = "server_app:app" .* is not a ServerApp'),
    ],
)
def test_a_mistake_in_the_users_files_is_one_sentence(own, file, content, says):
    (own / file).write_text(content)
    result = run_it(own)
    assert result.exit_code == 2, result.output
    assert re.search(says, result.stderr)
    assert "Traceback" not in result.output
    assert list(own.parent.glob("runs/*")) == []
