"""The Dockerfile's steps, executed without Docker: in a clean environment, with its own paths for the image's."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

# the image is built once
pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900), pytest.mark.xdist_group("image")]
DOCKERFILE = ROOT / "docker" / "Dockerfile"


def steps_of(text):
    """The instructions of the first stage, as (word, rest)."""
    lines = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    first, _, _ = "\n".join(lines).partition("\nFROM python:${PYTHON}-slim-bookworm\n")
    return [tuple(line.split(maxsplit=1)) for line in first.splitlines() if line.strip()]


def allowed(name):
    """Whether .dockerignore lets a file into the build."""
    return f"!{name}" in (ROOT / ".dockerignore").read_text().splitlines()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The virtual environment that the first stage makes."""
    root = tmp_path_factory.mktemp("image")
    here = {"/opt/venv": root / "opt" / "venv", "/src": root / "src"}
    (root / "opt").mkdir()

    def on_this_machine(text):
        for path, place in here.items():
            text = re.sub(rf"(?<![\w/]){path}\b", str(place), text)
        return text

    variables = {key: value for key, value in os.environ.items() if key == "HOME" or key.startswith("PIP_")}
    variables["PATH"] = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    folder = root
    for word, rest in steps_of(DOCKERFILE.read_text()):
        if word == "ARG":
            name, _, value = rest.partition("=")
            variables[name] = value.strip('"')
        elif word == "ENV":
            for pair in shlex.split(rest):
                name, value = pair.split("=", 1)
                variables[name] = on_this_machine(value).replace("$PATH", variables["PATH"])
        elif word == "WORKDIR":
            folder = here[rest]
            folder.mkdir()
        elif word == "COPY":
            *sources, target = shlex.split(rest)
            assert target == "./"
            for source in sources:
                assert allowed(source), f".dockerignore keeps {source} out of the build"
                shutil.copy(ROOT / source, folder)
        elif word == "RUN":
            done = subprocess.run(
                ["sh", "-c", on_this_machine(rest)],
                cwd=folder,
                env=variables,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{rest}\n{done.stdout}{done.stderr}"
        else:
            assert word == "FROM"
    return here["/opt/venv"], variables


def test_the_image_has_all_that_the_apps_and_the_programs_need(built, tmp_path):
    """As Flower unpacks it: the app's files in a folder that comes first on the path, nothing of ours installed."""
    venv, variables = built
    for name in ("client_app.py", "server_app.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "fedddpm_app", tmp_path / "fedddpm_app")
    check = "import client_app, server_app, fedddpm_app, opacus; print(fedddpm_app.__file__)"
    done = subprocess.run(
        [venv / "bin" / "python", "-c", check], cwd=tmp_path, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path))
    for program in ("flower-superlink", "flower-supernode", "flower-superexec", "flwr"):
        assert (venv / "bin" / program).exists()
    for needed in ("healthy.py", "register.sh"):
        assert allowed(f"docker/{needed}")
        assert os.access(ROOT / "docker" / needed, os.X_OK)


def test_a_cuda_image_is_refused_where_torch_is_a_cpu_build(built):
    venv, variables = built
    torch_cuda = subprocess.run(
        [venv / "bin" / "python", "-c", "import torch; print(torch.version.cuda)"],
        env=variables, capture_output=True, text=True, check=True,
    )  # fmt: skip
    check = [venv / "bin" / "python", str(ROOT / "docker" / "requirements.py"), "--check", "cuda"]
    done = subprocess.run(check, env=variables, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (torch_cuda.stdout.strip() != "None")
    assert done.returncode == 0 or "name an index by TORCH_INDEX" in done.stderr
