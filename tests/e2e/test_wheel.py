"""The wheel in a clean environment: the dependencies of this one, but nothing of the checkout; in an empty folder."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from fedddpm_app.launch.flower_run import to_toml
from fedddpm_app.launch.simulation import SimulationRun
from tests.conftest import ROOT, TINY, RunDirectory

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("wheel")]
SETTINGS = TINY | {"num-rounds": 1, "node-timeout": 150.0, "output-dir": "runs"}


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The wheel of the checkout, after a check that the wheel of the sdist is the same."""
    made, unpacked, again = (tmp_path_factory.mktemp(name) for name in ("dist", "unpacked", "again"))
    build = [sys.executable, "-m", "hatchling", "build"]
    subprocess.run([*build, "-t", "sdist", "-t", "wheel", "-d", str(made)], cwd=ROOT, check=True)
    (sdist,), (wheel,) = made.glob("*.tar.gz"), made.glob("*.whl")
    subprocess.run(["tar", "xzf", str(sdist), "-C", str(unpacked)], check=True)
    (source,) = unpacked.iterdir()
    subprocess.run([*build, "-t", "wheel", "-d", str(again)], cwd=source, check=True)
    assert (again / wheel.name).read_bytes() == wheel.read_bytes()
    return wheel


@pytest.fixture(scope="module")
def installed(dist, tmp_path_factory):
    """The programs of an environment that has the wheel."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(folder, symlinks=True)
    here = Path(sysconfig.get_path("scripts"))
    site = next(folder.glob("lib/python*/site-packages"))
    # a plain path: the .pth files there, such as that of an editable install, are not read
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for script in (*here.glob("flwr*"), *here.glob("flower-*"), here / "ray"):
        body = script.read_text().partition("\n")[2]
        (folder / "bin" / script.name).write_text(f"#!{folder}/bin/python\n{body}")
        (folder / "bin" / script.name).chmod(0o755)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(folder / "bin" / "python"),
        "install",
        "--no-deps",
        "--no-index",
    ]
    subprocess.run([*pip, str(dist)], check=True)
    return folder / "bin"


@pytest.fixture
def command(installed, tmp_path, monkeypatch):
    """Run a program of the environment in an empty folder; its output, after a check of the exit code."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    empty = tmp_path / "empty"
    empty.mkdir()

    def run(program, *arguments, code=0, **variables):
        done = subprocess.run(
            [installed / program, *arguments],
            cwd=empty,
            env=os.environ | {"PATH": f"{installed}:/usr/bin:/bin"} | variables,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    run.folder = empty
    return run


def test_every_command_works_in_an_empty_folder(command, installed, shared_run):
    where = command("python", "-c", "import fedddpm_app; print(fedddpm_app.__file__)")
    assert where.startswith(str(installed.parent))
    assert "1293" in command("fedddpm", "data", "inspect")
    assert "sites/site-0003" in command("fedddpm", "data", "export", "sites")
    for name, *options in (("here", "--engine", "inprocess"), ("ray",)):
        command("fedddpm", "run", *options, "-c", to_toml(SETTINGS | {"run-name": name}))
        run = RunDirectory(command.folder / "runs" / name)
        assert run.summary["status"] == "completed"
        assert run.losses() == shared_run(num_rounds=1).losses()
    example = {"algorithm": "examples.loss_weighted:LossWeighted", "run-name": "example"}
    command("fedddpm", "run", "--engine", "inprocess", "-c", to_toml(SETTINGS | example))
    command("fedddpm", "report", "runs/ray")
    assert "vegaEmbed" in (command.folder / "runs" / "ray" / "report.html").read_text(encoding="utf-8")
    command("fedddpm", "sample", "runs/ray", "--num-images", "4", "--steps", "2", "--out", "sheet.png")
    command("fedddpm", "evaluate", "runs/ray", "--num-images", "40", "--steps", "2")
    assert (command.folder / "runs" / "ray" / "evaluation.json").exists()
    assert "next to pyproject.toml" in command("fedddpm", "run", "-c", 'algorithm="mine:Mine"', code=2)


@pytest.mark.long
def test_a_new_app_runs_with_both_commands_and_both_engines(command, shared_run):
    command("fedddpm", "new", "mine")
    example = {"algorithm": "examples.l1_proximal:L1Proximal", "algorithm_options": "strength=0.0001"}
    expected = shared_run(**example, num_rounds=1).losses()
    for name, *options in (("here", "--engine", "inprocess"), ("ray",)):
        command("fedddpm", "run", "--app", "mine", *options, "-c", to_toml(SETTINGS | {"run-name": name}))
        assert RunDirectory(command.folder / "runs" / name).losses() == expected
    with SimulationRun(command.folder / "mine", {}, {}) as home:
        flower = {key: value for key, value in home.environment.items() if key.startswith(("FLWR", "RAY"))}
        federation = ("--federation-config", "num-supernodes=4 client-resources-num-cpus=1")
        config = to_toml(SETTINGS | {"run-name": "flwr"})
        command("flwr", "run", "mine", "--stream", *federation, "--run-config", config, **flower)
    assert RunDirectory(command.folder / "runs" / "flwr").losses() == expected
