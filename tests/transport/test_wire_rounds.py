"""Whole runs over every transport and wire-dtype."""

import logging
from pathlib import Path

import pytest

from fedddpm_app.transport import ClientEnd
from tests.algorithms.problems import make_clients, run


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{"algorithm": "fedavg"}, {"algorithm": "scaffold"}],
    ids=str,
)
def test_transports_give_the_same_run_bit_for_bit(shared_run, settings):
    runs = [shared_run(**settings, transport=way) for way in ("shared-memory", "flat", "arrays")]
    assert runs[0].losses() == runs[1].losses() == runs[2].losses()
    weights = [sorted((each.path / "checkpoints").rglob("*.safetensors")) for each in runs]
    assert weights[0]
    assert len({tuple(path.read_bytes() for path in paths) for paths in weights}) == 1


@pytest.mark.slow
def test_fewer_bytes_come_back_and_the_run_is_about_the_same(run_app, run_config):
    settings = {"algorithm": "fedavg", "transport": "flat", "num_rounds": 2, "local_steps": 20, "num_clients": 2}
    runs = {dtype: run_app(wire_dtype=dtype, **settings) for dtype in ("fp32", "bf16", "int8-delta")}
    up = {dtype: each.rounds()[-1]["comm/up_mb"] for dtype, each in runs.items()}
    assert up["bf16"] == pytest.approx(up["fp32"] / 2, rel=0.15)
    assert up["int8-delta"] < 0.5 * up["fp32"]  # of a model this small, much goes in full
    exact = runs["fp32"].rounds()[-1]["eval/loss"]
    for dtype in ("bf16", "int8-delta"):
        assert runs[dtype].rounds()[-1]["eval/loss"] == pytest.approx(exact, rel=0.02)
        assert runs[dtype].rounds()[-1]["eval/loss"] != exact
    assert not list(Path(str(run_config["state-dir"])).rglob("*.safetensors"))


def test_a_client_keeps_what_rounding_lost_beside_its_algorithms_state(run_app, monkeypatch):
    """SCAFFOLD's variates and the residual go through the same file; both are there in the next round."""
    seen = []
    real = ClientEnd.pack_trained
    monkeypatch.setattr(ClientEnd, "pack_trained", lambda *args: seen.append(len(args[-1])) or real(*args))
    run_app(algorithm="scaffold", wire_dtype="int8-delta", num_rounds=2)
    assert seen[:4] == [0, 0, 0, 0]
    assert all(count > 0 for count in seen[4:])
    assert len(seen) == 8


@pytest.mark.parametrize(("rule", "says"), [("fedmedian", True), ("krum", True), ("fedavg", False), ("fedadam", False)])
def test_rules_that_hold_all_replies_say_what_that_takes(rule, says, caplog):
    clients = make_clients(3, 5, 2, 4)
    with caplog.at_level(logging.INFO, "fedddpm"):
        run("fedavg", clients, rounds=1, aggregator=rule)
    assert ("holds all 4 replies of a round" in caplog.text) == says


@pytest.mark.slow
def test_the_server_folds_one_reply_at_a_time(monkeypatch):
    """With many clients no more than a few of their models are alive at once."""
    import gc
    import weakref

    from fedddpm_app.weights import RunningMean

    alive, most = [], []
    fold = RunningMean.fold

    def spy(self, weights, factor):
        tensor = next(iter(weights.values()))
        alive.append(weakref.ref(tensor))
        gc.collect()
        most.append(sum(ref() is not None for ref in alive))
        fold(self, weights, factor)

    monkeypatch.setattr(RunningMean, "fold", spy)
    run("fedavg", make_clients(*[3] * 10), rounds=1)
    assert len(most) == 10
    assert max(most) <= 3


def test_a_client_that_lost_its_residual_goes_on_without_it(run_app, run_config, monkeypatch, caplog):
    from fedddpm_app.client.state import ClientState

    monkeypatch.setattr(logging.getLogger("fedddpm"), "propagate", True)
    save = ClientState.save

    def lose(self, server_round, state):
        save(self, server_round, state)
        next(self.folder.glob(f"{self._prefix}-round-{server_round:04d}-*")).unlink()

    monkeypatch.setattr(ClientState, "save", lose)
    run = run_app(algorithm="fedavg", wire_dtype="int8-delta", num_rounds=2)
    assert len(run.rounds()[-1]["train/client_loss"]) == 4
    assert "the rounding error of its last reply is lost" in caplog.text
