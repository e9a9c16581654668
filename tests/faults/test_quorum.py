"""A round with too few good replies is abandoned and repeated; when that does not help, the run ends, to be resumed."""

import json
from pathlib import Path

import pytest

import client_app
import server_app
from fedddpm_app.config import ConfigError, load_config
from fedddpm_app.federation.errors import RoundFailedError, TooFewRepliesError
from fedddpm_app.inprocess.grid import run_inprocess
from tests.conftest import RunDirectory
from tests.faults.wrapper import FAULTS, FaultyClientApp

QUICK = {"eval-every": 0, "preview-every": 0, "max-round-retries": 2, "optimizer": "sgd", "gradient-clip": 0.0}


class Outage(FaultyClientApp):
    """Plants each fault only so many times."""

    def __init__(self, faults, times):
        super().__init__(client_app.app, faults)
        self.times = times

    def __call__(self, message, context):
        fault = self._chosen(message, context)
        over = fault is not None and sum(self.seen.values()) > self.times
        return self._app(message, context) if fault is None or over else FAULTS[fault](self._app, message, context)


@pytest.fixture
def run_with(run_config):
    """Run the app with faults that end after a number of them."""

    def run(faults="", times=0, name="run", **overrides):
        resolved = run_config | QUICK | {"run-name": name} | {k.replace("_", "-"): v for k, v in overrides.items()}
        run_inprocess(server_app.app, Outage(faults, times), resolved, 4)
        return RunDirectory(Path(resolved["output-dir"]) / name)

    return run


def final_weights(run):
    folder = max((run.path / "checkpoints").glob("round-*"))
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.safetensors")}


_MORE = {
    "feddyn": {"algorithm": "feddyn"},
    "fedadam": {"algorithm": "fedavg", "aggregator": "fedadam"},
    "local-only": {"algorithm": "local-only"},
    "int8-delta": {"algorithm": "fedavg", "wire-dtype": "int8-delta"},
    "fedphd": {"algorithm": "fedphd", "prune-ratio": 0.25, "prune-round": 2, "num-rounds": 3, "unet-norm-groups": 4},
    "usplit": {"algorithm": "feddiffuse", "feddiffuse-split": "usplit"},
    "fedddpm-plus": {"algorithm": "fedddpm-plus", "plus-threshold": 1e9, "num-rounds": 4},
}
_CASES = [
    pytest.param("train", {"algorithm": "scaffold"}, id="scaffold"),
    pytest.param("pretrain", {"algorithm": "fedddpm"}, id="pretrain", marks=pytest.mark.slow),
    *(pytest.param("train", more, id=name, marks=pytest.mark.slow) for name, more in _MORE.items()),
]


@pytest.mark.parametrize(("phase", "more"), _CASES)
def test_a_repeated_phase_ends_as_if_nothing_had_happened(run_with, phase, more):
    """Three of four clients fail: of a quorum of half of them, one is missing."""
    number = 2 if phase == "train" else 0
    faults = " ".join(f"{phase}:{client}:{number}:raise" for client in range(3))
    run = run_with(faults, 3, **more, min_replies=0.5)
    whole = run_with(name="whole", **more, min_replies=0.5)
    abandoned = [row for row in run.stats if row["phase"] == "abandoned"]
    assert [row["phase"] for row in run.stats if row["phase"] != "abandoned"] == [row["phase"] for row in whole.stats]
    assert [row for row in run.losses() if row] == [row for row in whole.losses() if row]
    assert final_weights(run) == final_weights(whole)
    if phase == "train":
        (row,) = abandoned
        assert (row["round"], row["attempt"]) == (2, 0)
        assert row["reason"].startswith(
            "round 2: 1 of the 4 clients returned a usable reply, fewer than min-replies = 2"
        )
        assert set(row["train/left_out"]) == {"0", "1", "2"}
    assert not any("left_out" in key for row in run.rounds() for key in row)


@pytest.mark.slow
def test_a_round_that_fails_in_every_attempt_ends_the_run_which_can_be_resumed(run_with, run_config):
    with pytest.raises(TooFewRepliesError, match="round 2: none of the 4 clients"):
        run_with("train:*:2:raise", 1000, algorithm="scaffold")
    folder = Path(run_config["output-dir"]) / "run"
    stats = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    assert [row["attempt"] for row in stats if row["phase"] == "abandoned"] == [0, 1, 2]
    assert json.loads((folder / "summary.json").read_text())["status"] == "failed"
    resumed = run_with(algorithm="scaffold", resume=str(folder))
    whole = run_with(name="whole", algorithm="scaffold")
    assert resumed.losses() == whole.losses()
    assert resumed.summary["status"] == "completed"


def test_a_round_whose_replies_are_used_is_not_repeated(run_with):
    """FedDDPM+ pretrains in the middle of a round: when that fails, the run ends."""
    with pytest.raises(RoundFailedError, match="pretrain: none of the 4 clients") as failed:
        run_with("pretrain:*:*:raise", 1000, algorithm="fedddpm-plus", plus_threshold=1e9, num_rounds=3)
    assert type(failed.value) is RoundFailedError


def test_a_repeated_round_samples_again(run_with):
    run = run_with("train:*:1:raise", 2, clients_per_round=2, num_rounds=1, seed=3)
    (abandoned,) = [row for row in run.stats if row["phase"] == "abandoned"]
    assert abandoned["clients"] != run.rounds()[0]["clients"]


@pytest.mark.parametrize(
    ("value", "clients", "needed"),
    [(1, 4, 1), (3, 4, 3), (0.5, 4, 2), (0.5, 5, 3), (1.0, 4, 4), (0.01, 4, 1), (0.3, 10, 3)],
)
def test_min_replies_is_a_number_or_a_share(run_config, value, clients, needed):
    assert load_config(run_config | {"min-replies": value}).waiting.quorum(clients) == needed


@pytest.mark.parametrize("value", [0, -1, 0.0, 1.5, True, "half"])
def test_a_quorum_without_meaning_is_refused(run_config, value):
    with pytest.raises(ConfigError, match="min-replies"):
        load_config(run_config | {"min-replies": value})
