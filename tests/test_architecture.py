"""The arrows between the rooms (design.md): who may import whom."""

import ast

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "fedddpm_app"
BASE = {"config", "seeding", "weights", "progress"}
MAY_IMPORT = {
    "config": set(),
    "seeding": set(),
    "weights": set(),
    "progress": set(),
    "diffusion": BASE | {"device"},
    "drawing": BASE | {"acceleration", "device", "diffusion"},
    "device": BASE,
    "optimization": BASE,
    "task": BASE,
    "acceleration": BASE,
    "hooks": BASE | {"task"},
    "training": BASE | {"acceleration", "device", "hooks", "optimization", "task"},
    "federation": BASE | {"acceleration", "device", "diffusion", "drawing", "hooks", "task", "training"},
    "algorithms": BASE | {"device", "diffusion", "federation", "hooks", "optimization", "task", "training"},
    "data": BASE | {"diffusion"},
    "evaluation": BASE | {"diffusion", "task"},
    "recording": BASE | {"diffusion"},
    "worker": BASE | {"device", "diffusion", "drawing", "hooks", "task", "training"},
    "diffusion_task": BASE | {"data", "device", "diffusion", "evaluation", "task"},
    "in_memory_task": BASE | {"task"},
    "handlers": BASE | {"device", "diffusion", "federation", "hooks", "worker"},
    "hyperparameters": BASE | {"algorithms", "federation"},
    "simulate": BASE
    | {"device", "algorithms", "federation", "handlers", "hyperparameters", "in_memory_task", "task", "worker"},
    "measuring": BASE | {"data", "device", "evaluation"},
    "assessment": BASE | {"diffusion", "evaluation", "federation", "recording"},
    "monitor": BASE | {"assessment", "device", "diffusion", "evaluation", "federation", "recording"},
    "flower_run": BASE,
    "delivery": set(),
    "simulation": BASE | {"flower_run"},
    "console": BASE,
}
WITHOUT_FLOWER = BASE | {"device", "diffusion", "optimization", "training", "data", "evaluation", "worker"}
WITHOUT_FLOWER |= {"acceleration", "drawing", "measuring", "task", "hooks", "diffusion_task", "in_memory_task"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            yield from (f"{module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(path):
    mine = room(path)
    if mine in ("cli", "__init__"):
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "fedddpm_app":
            assert parts[1] == mine or parts[1] in MAY_IMPORT[mine], f"{path} imports {name}"
        if parts[0] == "flwr":
            assert mine not in WITHOUT_FLOWER, f"{path} imports {name}"
        assert parts[0] not in ("client_app", "server_app"), f"{path} imports {name}"


def test_every_room_is_known():
    assert {room(path) for path in MODULES} - {"cli", "__init__"} == set(MAY_IMPORT)
