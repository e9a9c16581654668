"""The table of faults, in-process: several faults share a run, on different clients and in different rounds."""

import json
import math
import re
from pathlib import Path

import pytest

import client_app
import server_app
from fedddpm_app.inprocess.grid import InProcessGrid, run_inprocess
from tests.conftest import RunDirectory
from tests.faults.table import SHORT, TABLE
from tests.faults.wrapper import FaultyClientApp

CLIENTS = 6
NAMED = {"pretrain": "pretrain", "generate": "generate", "train": "train", "evaluate": "client-eval"}
SMALL = {
    "num-clients": CLIENTS,
    "partition": "iid",
    "local-steps": 1,
    "pretrain-steps": 1,
    "correction-steps": 1,
    "auxiliary-size": 18,
    "preview-every": 0,
    "preview-images": 1,
    "transport": "flat",
}


@pytest.fixture
def run_with(run_config):
    """Run the app, six clients, with planted faults: a mapping of (phase, partition, round) to the row's fault."""
    numbers = iter(range(100))

    def run(faults, **overrides):
        places = {f"{phase}:{client}:{number}:{fault}" for (phase, client, number), fault in faults.items()}
        resolved = run_config | SMALL | {key.replace("_", "-"): value for key, value in overrides.items()}
        resolved["run-name"] = f"run-{next(numbers)}"
        app = FaultyClientApp(client_app.app, " ".join(places))
        run_inprocess(server_app.app, app, resolved, CLIENTS)
        assert set(app.seen) == places
        return RunDirectory(Path(resolved["output-dir"]) / resolved["run-name"])

    return run


def row_of(fault, phase):
    return next(row for row in TABLE if (row.fault, row.phase) == (fault, phase))


def line_of(run, phase, number):
    """The line of ``stats.jsonl`` on a phase."""
    if phase in ("train", "evaluate"):
        return run.rounds()[number - 1]
    return next(row for row in run.stats if row["phase"] == {"generate": "auxiliary"}.get(phase, phase))


def check(run, faults):
    """Each fault is named with its reason in its phase, and nothing else is; the client is back in the next round."""
    assert run.summary["status"] == "completed"
    expected = {}
    for (phase, client, number), fault in faults.items():
        reason, named = row_of(fault, phase).reason, line_of(run, phase, number).get(f"{NAMED[phase]}/left_out", {})
        if reason is None:
            assert str(client) not in named
            continue
        expected.setdefault((phase, number), set()).add(str(client))
        assert re.search(reason, named[str(client)]), (phase, fault, named)
        assert len(named[str(client)]) <= 300
        assert named[str(client)].isprintable()
        if phase == "train" and number < len(run.rounds()):
            assert str(client) in run.rounds()[number]["train/client_loss"]
    for row in run.stats:
        for key in (key for key in row if key.endswith("left_out")):
            phase = next(phase for phase, name in NAMED.items() if key == f"{name}/left_out")
            assert set(row[key]) == expected.pop((phase, row.get("round", 0)))
    assert not expected
    assert all(math.isfinite(row["train/loss"]) and row["train/loss"] < 100 for row in run.rounds())


def over_rounds(faults, phase, each):
    """Spread a phase's faults over rounds, ``each`` of them in a round, so that no client fails twice in a row."""
    return {(phase, k % CLIENTS, 1 + k // each): fault for k, fault in enumerate(faults)}


def over_clients(faults, phase):
    return {(phase, k, 0): fault for k, fault in enumerate(faults)}


def raising(faults):
    """The same clients fail in the same phases, in the simplest way."""
    return {place: "raise" for place, fault in faults.items() if row_of(fault, place[0]).reason}


@pytest.mark.slow
def test_a_fault_of_each_kind_costs_its_client_one_phase_and_the_others_nothing(run_with):
    """Whatever the fault, the others' result is that of a run in which the client just fails."""
    accepted = [fault for fault in SHORT["train"] if row_of(fault, "train").reason is None]
    refused = [fault for fault in SHORT["train"] if fault not in accepted]
    faults = over_clients(SHORT["pretrain"], "pretrain") | over_rounds(refused, "train", 3)
    faults |= over_rounds(SHORT["evaluate"], "evaluate", 2)
    run, simplest = run_with(faults, num_rounds=3), run_with(raising(faults), num_rounds=3)
    check(run, faults)
    check(simplest, raising(faults))
    assert run.losses() == simplest.losses()
    assert accepted == ["sign-flip"]  # has the norm of a large honest update: a robust rule is for it


@pytest.mark.slow
def test_images_of_nodes_that_cannot_be_used_are_generated_by_the_server(run_with, monkeypatch):
    faults = over_clients(SHORT["generate"], "generate") | {("train", 5, 1): "sign-flip"}
    run, good = (run_with(each, num_rounds=1, auxiliary_generation="nodes") for each in (faults, {}))
    check(run, faults)
    images = [
        [path.read_bytes() for path in sorted(each.path.glob("auxiliary/dataset/*.arrow"))] for each in (run, good)
    ]
    assert len(images[0]) == 1
    assert images[0] == images[1]
    pull = InProcessGrid.pull_messages
    monkeypatch.setattr(
        InProcessGrid, "pull_messages", lambda self, ids: [m for m in pull(self, ids) for _ in range(2)]
    )
    assert run_with({}, num_rounds=1, auxiliary_generation="nodes").losses() == good.losses()  # all replies come twice


_PLACES = [pytest.param(k, marks=[] if k == 0 else pytest.mark.slow) for k in range(4)]


@pytest.mark.parametrize("part", _PLACES)
def test_peers_with_faults_leave_and_the_others_go_on(run_with, part):
    """A quarter of the faults of a training, each in the first submission of another peer, and one in a vote."""
    refused = [fault for fault in SHORT["train"] if row_of(fault, "train").reason is not None]
    faults = {("submit", k, 1): fault for k, fault in enumerate(refused[part::4][: CLIENTS - 2])}
    faults["score", CLIENTS - 1, 1] = "raise"
    run = run_with(faults, algorithm="pdfed", pdfed_samples=4, pdfed_validators=1, pdfed_speed_spread=1.0)
    named = run.rounds()[0]["train/left_out"]
    assert sorted(named) == sorted({str(client) for _, client, _ in faults})
    for (phase, client, _), fault in faults.items():
        assert re.search(row_of(fault, "train").reason, named[str(client)]), (phase, fault, named)
        assert len(named[str(client)]) <= 300
    ledger = [json.loads(line) for line in (run.path / "ledger.jsonl").read_text().splitlines()]
    left = [entry["peer"] for entry in ledger if entry["kind"] == "left"]
    assert sorted(left) == sorted(client for _, client, _ in faults)
    numbers = run.rounds()[-1]["pdfed/submissions"]
    assert numbers == {str(k): 2 for k in range(CLIENTS - 1)}  # they are back in the second round


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["flat", pytest.param("shared-memory", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "phase", [pytest.param(name, marks=[pytest.mark.long] * (name in ("train", "evaluate"))) for name in NAMED]
)
def test_the_whole_table(run_with, phase, transport):
    faults = [row.fault for row in TABLE if row.phase == phase]
    if phase in ("train", "evaluate"):
        plan = over_rounds(faults, phase, 2)
        rounds = max(number for _, _, number in plan) + 1
        check(run_with(plan, num_rounds=rounds, algorithm="scaffold", transport=transport), plan)
        return
    where = {"generate": "nodes", "pretrain": "server"}[phase]
    num_runs = math.ceil(len(faults) / (CLIENTS - 1))
    for first in range(num_runs):  # neighbours in the table are in different runs: most updates of a run are honest
        plan = over_clients(faults[first::num_runs], phase)
        check(run_with(plan, num_rounds=1, auxiliary_generation=where, transport=transport), plan)
