"""The arrows between the rooms: which module may import which, by the prefix of its path."""

import ast
import re
import subprocess

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "fedddpm_app"
GROUND = {"apportion", "config", "device", "disk", "limits", "progress", "seeding", "shapes", "weights"}
INTERNALS = "federation/flower_internals"
MAY_IMPORT = {  # the longest prefix of a module's path counts
    "config": {"limits"},
    "limits": set(),
    "seeding": set(),
    "weights": set(),
    "shapes": {"weights"},
    "progress": {"config", "limits"},
    "apportion": set(),
    "disk": {"limits"},
    "disk/security": {"config"},
    "device": {"config"},
    "diffusion": GROUND,
    "training": GROUND,
    "transport": GROUND,
    "data": GROUND | {"diffusion"},
    "evaluation": GROUND | {"diffusion", "training/task"},
    "recording": GROUND | {"diffusion", INTERNALS},
    "tracking": GROUND | {"recording/layout", "recording/status"},
    "secure": GROUND | {INTERNALS},
    "federation": GROUND | {"diffusion/images", "secure", "training", "transport"},
    "client": GROUND | {"federation", "secure", "training", "transport"},
    "client/worker": GROUND | {"training"},
    "auxiliary": GROUND | {"diffusion", "federation", "training", "transport"},
    "auxiliary/gate": GROUND | {"diffusion", "evaluation", "training"},
    "auxiliary/sampler": GROUND | {"diffusion", "training"},
    "auxiliary/share": GROUND | {"diffusion"},
    "hierarchy": set(),
    "peers": GROUND | {"diffusion", "evaluation"},
    "peers/private": GROUND | {"diffusion", "evaluation", "peers", "training/task"},
    "peers/mail": GROUND | {"federation", "peers", "training"},
    "peers/cost": GROUND | {"diffusion", "federation"},
    "peers/book": GROUND | {"federation", "peers", "training"},
    "peers/relay": GROUND | {"federation", "peers", "training"},
    "peers/report": GROUND | {"federation", "peers", "training"},
    "algorithms": GROUND | {"auxiliary", "diffusion", "federation", "hierarchy", "peers", "training"},
    "audit": GROUND
    | {"algorithms", "auxiliary", "data", "diffusion", "evaluation", "experiment", "training"}
    | {"recording/files", "recording/layout", "recording/reading", "transport/wire"},
    "audit/final": GROUND | {"audit", "diffusion", "evaluation", "experiment", "training/declined"},
    "audit/saving": GROUND | {"audit", "evaluation", "recording"},
    "experiment": GROUND | {"data", "diffusion", "evaluation", "federation", "recording", "training"},
    "experiment/task": GROUND | {"data", "diffusion", "evaluation", "training"},
    "experiment/evaluators": GROUND | {"data", "evaluation"},
    "apps": GROUND | {"algorithms", "client", "data", "experiment", "federation", "recording", "tracking"},
    "apps/server": GROUND
    | {"algorithms", "apps", "audit/final", "data", "evaluation/metrics", "experiment", "federation", "recording"}
    | {"tracking"},
    "export": GROUND
    | {"algorithms", "data/sources", "diffusion", "federation/description", "launch/flower_run", "recording"},
    "inprocess": GROUND | {"algorithms", "client", "federation", "training"},
    "launch": GROUND | {INTERNALS, "recording", "transport/shared"},
    "launch/guardian": {"disk/owned", "launch/homes"},  # it waits beside a run, and stays light
    "launch/delivery": set(),  # it is sent to another host alone
    "compare": GROUND
    | {"algorithms", "data", "evaluation/extractors", "evaluation/metrics", "federation/cost", "recording"},
    "report": GROUND | {"compare", "export/privacy", "federation/security_log", "recording"},
    "__init__": None,
    "cli": None,
}
WITHOUT_FLOWER = (
    *("apportion", "auxiliary/sampler", "client/worker", "config", "data", "device", "diffusion", "disk"),
    *(
        "evaluation",
        "experiment/evaluators",
        "experiment/task",
        "hierarchy",
        "limits",
        "peers",
        "progress",
        "seeding",
        "shapes",
        "training",
        "weights",
    ),
)
TRACKED = subprocess.run(
    ["git", "ls-files", "fedddpm_app"], cwd=ROOT, capture_output=True, text=True, check=False
).stdout.split()
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if not TRACKED or str(path.relative_to(ROOT)) in TRACKED)


def place(path):
    """The path of a module in the package, such as ``training/trainer``."""
    return path.relative_to(PACKAGE).with_suffix("").as_posix().removesuffix("/__init__")


def is_in(module, prefixes):
    return any(module == prefix or module.startswith(f"{prefix}/") for prefix in prefixes)


def room(module):
    """The longest known prefix of a module's path."""
    return max((known for known in MAY_IMPORT if is_in(module, [known])), key=len, default=None)


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module or ''}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=place)
def test_imports_follow_the_arrows(path):
    mine = place(path)
    allowed = MAY_IMPORT[room(mine)]
    for name in imports(path):
        first, _, rest = name.partition(".")
        other = rest.replace(".", "/")
        if first == "fedddpm_app" and allowed is not None:
            same_room = room(mine) == mine.partition("/")[0] == other.partition("/")[0]
            assert same_room or is_in(other, allowed), f"{mine} imports {name}"
        if first == "flwr":
            assert rest, f"{mine} imports all of flwr"
            assert not is_in(mine, WITHOUT_FLOWER), f"{mine} imports {name}"
        assert first not in ("client_app", "server_app"), f"{mine} imports {name}"


def test_flowers_internals_are_imported_in_one_file():
    public = ("flwr.app.", "flwr.clientapp.", "flwr.serverapp.")
    others = [path for path in MODULES if place(path) != INTERNALS]
    found = [(place(path), name) for path in others for name in imports(path) if name.startswith("flwr.")]
    assert [(module, name) for module, name in found if not name.startswith(public)] == []


def test_every_room_is_known():
    assert [place(path) for path in MODULES if room(place(path)) is None] == []
    assert [known for known in MAY_IMPORT if not any(is_in(place(path), [known]) for path in MODULES)] == []


def test_the_map_has_every_room_and_names_only_files_that_exist():
    rows = [line.split(" | ") for line in (ROOT / "docs" / "code.md").read_text().splitlines() if "`/" not in line]
    rooms = {row[0].removeprefix("| ").strip("`/"): row for row in rows if row[0].startswith("| `")}
    folders = {path.parent.relative_to(PACKAGE).as_posix() for path in MODULES if path.name == "__init__.py"}
    inner = {"evaluation/extractors"}  # named in the row of its room
    assert rooms.keys() == folders - {"."} - inner
    for name, row in rooms.items():
        for file in re.findall(r"`([\w/.]+)`", row[2]):
            assert (PACKAGE / name / file).exists(), f"{name}: {file}"
    loose = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}
    assert all(f"`{name}`" in (ROOT / "docs" / "code.md").read_text() for name in loose)


def test_few_files_lie_loose():
    loose = [place(path) for path in MODULES if "/" not in place(path) and path.name != "__init__.py"]
    assert len(loose) <= 7, loose
