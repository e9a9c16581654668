"""FedDDPM+: when it corrects, what it records, and what it does not spend."""

import logging
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedddpm_app.algorithms.fedddpm_plus import FedDDPMPlus, SlowLearningDetector
from fedddpm_app.config import ConfigError, load_config
from fedddpm_app.inprocess.simulate import simulate
from fedddpm_app.progress import parse_note
from tests.algorithms.problems import (
    CLIENTS,
    RATE,
    STEPS,
    Point,
    gradient,
    gradient_steps,
    make_clients,
    quadratic,
    run,
    same,
    shares,
    start,
)

AUXILIARY = make_clients(4, seed=9)[0]


def corrections(curve, algorithm=FedDDPMPlus, **plus):
    """Train on losses that follow a script, whatever is learnt; return the history."""
    script = {}

    class Scripted(algorithm):
        def broadcast(self, server_round):
            script["loss"] = curve[server_round - 1]
            return {}

    def loss(model, batch):
        return 0.0 * model(batch[0]).sum() + script["loss"]

    settings = {"correction_steps": 1, "auxiliary_data": AUXILIARY} | plus
    return simulate(Scripted, Point(), loss, CLIENTS, len(curve), 2, 0.1, **settings)[1]


def corrected_rounds(history):
    return [row["round"] for row in history if "correct/loss" in row]


FALLING_THEN_FLAT = [1.0, 0.8, 0.6, 0.59, 0.58, 0.57, 0.56, 0.55, 0.54, 0.53]


@pytest.mark.parametrize(
    ("curve", "window", "patience", "threshold", "limit", "rounds"),
    [
        (FALLING_THEN_FLAT, 1, 1, 0.05, 1, [4]),
        (FALLING_THEN_FLAT, 1, 2, 0.05, 1, [5]),
        (FALLING_THEN_FLAT, 2, 1, 0.05, 1, [5]),  # 0.6 -> 0.58; 0.8 -> 0.59 was 26 %
        (FALLING_THEN_FLAT, 2, 2, 0.05, 1, [6]),
        (FALLING_THEN_FLAT, 3, 1, 0.0505, 1, [6]),  # 0.6 -> 0.57 is 5 %
        (FALLING_THEN_FLAT, 3, 2, 0.0505, 1, []),  # 0.59 -> 0.56 is 5.08 %, and more later
        (FALLING_THEN_FLAT, 1, 1, 0.05, 2, [4, 6]),  # the window starts anew: 5 is its first round
        (FALLING_THEN_FLAT, 1, 1, 0.05, 0, [4, 6, 8, 10]),
        (FALLING_THEN_FLAT, 2, 1, 0.05, 0, [5, 8]),
        (FALLING_THEN_FLAT, 1, 3, 0.05, 0, [6, 10]),
        (FALLING_THEN_FLAT, 1, 1, 0.0, 0, []),
        ([1.0, 1.0, 1.0], 1, 1, 0.0, 1, []),  # no change is not below 0
        ([1.0, 1.1, 1.0, 1.2], 1, 1, 0.0, 0, [2, 4]),  # worse is below 0
        ([1.0, 0.99, 0.5, 0.49, 0.25, 0.24, 0.23], 1, 2, 0.05, 1, [7]),  # a good round starts the patience anew
        ([-1.0, -1.2, -1.21], 1, 1, 0.05, 1, [3]),  # a loss below zero improves by falling, too
        ([0.0, 0.0, -0.5, 0.1], 1, 1, 0.05, 1, [2]),  # a change from 0 has no relative size: none is slow
    ],
)
def test_it_corrects_exactly_at_these_rounds(curve, window, patience, threshold, limit, rounds):
    plus = {"window": window, "patience": patience, "threshold": threshold, "max_corrections": limit}
    assert corrected_rounds(corrections(curve, **plus)) == rounds


@given(
    curve=st.lists(st.floats(0.1, 1.0), min_size=1, max_size=12),
    window=st.integers(1, 3),
    patience=st.integers(1, 3),
    threshold=st.floats(-0.5, 0.5),
)
def test_the_detector_is_its_definition(curve, window, patience, threshold):
    detector, first, found, expected = SlowLearningDetector(window, threshold, patience), 0, [], []
    for r, signal in enumerate(curve):
        if detector.detects(signal):
            found.append(r)
            detector.restart()
        slow = [
            q - window >= first and (curve[q - window] - curve[q]) / curve[q - window] < threshold
            for q in range(r - patience + 1, r + 1)
        ]
        if r - patience + 1 >= first and all(slow):
            expected.append(r)
            first = r + 1
    assert found == expected


def test_rounds_equal_the_reference():
    """The detector on the losses that numpy computes, and the corrections that follow from it; 8 rounds, float64."""
    w, signals, done, expected = start(), [], 0, []
    for r in range(1, 9):
        local, losses = [], []
        for client in CLIENTS:
            a, b = (tensor.numpy() for tensor in client)
            x, seen = w, []
            for _ in range(STEPS):
                seen.append((a / 2 * (x - b) ** 2).sum(1).mean())
                x = x - RATE * gradient(client, x)
            local.append(x)
            losses.append(np.mean(seen))
        w, signals = shares(CLIENTS) @ np.stack(local), [*signals, shares(CLIENTS) @ losses]
        if len(signals) > 1 and (signals[-2] - signals[-1]) / signals[-2] < 0.15 and done < 2:
            w, signals, done = gradient_steps(w, 3, RATE, lambda x: gradient(AUXILIARY, x)), [], done + 1
            expected.append(r)
    settings = {"threshold": 0.15, "max_corrections": 2, "correction_steps": 3, "auxiliary_data": AUXILIARY}
    weights, history = simulate("fedddpm-plus", Point(), quadratic, CLIENTS, 8, STEPS, RATE, **settings)
    assert corrected_rounds(history) == expected
    assert len(expected) == 2
    assert same(weights["x"].numpy(), w)


def test_every_decision_is_recorded():
    history = corrections(FALLING_THEN_FLAT[:6], threshold=0.05, patience=2)
    assert [row["plus/verdict"] for row in history] == ["waiting", "learning", "learning", "slow", "correct", "waiting"]
    assert [row["plus/signal"] for row in history] == pytest.approx(FALLING_THEN_FLAT[:6])
    assert [row["plus/slow_rounds"] for row in history] == [0, 0, 0, 1, 2, 0]
    assert [row["plus/corrections"] for row in history] == [0, 0, 0, 0, 1, 1]
    assert {row["plus/threshold"] for row in history} == {0.05}
    assert history[0]["plus/improvement"] is None
    assert history[1]["plus/improvement"] == pytest.approx(0.2)
    exhausted = corrections([1.0, 1.0, 1.0, 1.0], threshold=0.05)
    assert [row["plus/verdict"] for row in exhausted] == ["waiting", "correct", "waiting", "exhausted"]


def test_decisions_are_shown(run_app, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("fedddpm"), "propagate", True)
    run_app(algorithm="fedddpm-plus", num_rounds=2, plus_threshold=1e9)
    notes = dict.fromkeys(text for text in map(parse_note, caplog.messages) if text)
    shown = [text for text in notes if text.startswith("round")]
    assert len(shown) == 2
    assert shown[0].startswith("round 1: train-loss")
    assert shown[0].endswith(": waiting")
    assert shown[1].endswith(": correct")


def test_never_slow_is_fedavg_bit_for_bit_and_spends_nothing(shared_run):
    plus, fedavg = shared_run(algorithm="fedddpm-plus", plus_threshold=-1e9), shared_run(algorithm="fedavg")
    for key in ("train/loss", "eval/loss", "eval/ema_loss", "comm/up_mb", "comm/down_mb"):
        assert [row[key] for row in plus.rounds()] == [row[key] for row in fedavg.rounds()]
    assert plus.phases() == ["initial", "round", "round"]
    assert (run("fedddpm-plus", threshold=-1e9) == run("fedavg")).all()


@pytest.mark.slow
def test_the_auxiliary_set_is_made_when_first_needed_and_is_the_same(shared_run):
    settings = {"algorithm": "fedddpm-plus", "num_rounds": 3, "plus_threshold": 1e9}
    lazy, eager = shared_run(**settings), shared_run(**settings, plus_auxiliary="eager")
    assert lazy.phases() == ["initial", "round", "pretrain", "auxiliary", "round", "round"]
    assert eager.phases() == ["pretrain", "auxiliary", "initial", "round", "round", "round"]
    assert sorted(map(str, lazy.losses())) == sorted(map(str, eager.losses()))
    sheets = [sorted((r.path / "auxiliary").glob("*.png")) for r in (lazy, eager)]
    assert [p.read_bytes() for p in sheets[0]] == [p.read_bytes() for p in sheets[1]]
    for r in (lazy, eager):
        assert sum(row.get("comm/up_mb", 0) for row in r.stats) == pytest.approx(r.summary["comm/up_mb"])


def test_models_pretrained_for_the_start_are_removed_when_nothing_is_corrected(run_app):
    run = run_app(algorithm="fedddpm-plus", init_from_pretrained=True, plus_threshold=-1e9)
    assert run.phases() == ["pretrain", "initial", "round", "round"]
    assert not (run.path / "scratch").exists()


@pytest.mark.slow
def test_the_probe_is_a_fixed_part_with_fixed_noise(shared_run):
    settings = {"algorithm": "fedddpm-plus", "plus_signal": "probe-loss", "plus_threshold": -1e9}
    run = shared_run(**settings, plus_probe_images=5)
    assert run.phases() == ["pretrain", "auxiliary", "initial", "round", "round"]
    signals = [row["plus/signal"] for row in run.rounds()]
    assert all(math.isfinite(signal) for signal in signals)
    assert signals != [row["plus/signal"] for row in shared_run(**settings, plus_probe_images=12).rounds()]
    frozen = shared_run(**settings, learning_rate=1e-12)
    first, second = (row["plus/signal"] for row in frozen.rounds())
    assert first == pytest.approx(second, rel=1e-6)  # the same weights: the same signal


def test_the_probe_is_the_loss_of_the_clients_mean_on_the_auxiliary_set():
    def signals(**settings):
        _, history = simulate(
            "fedddpm-plus",
            Point(),
            quadratic,
            CLIENTS,
            2,
            2,
            0.1,
            signal="probe-loss",
            auxiliary_data=AUXILIARY,
            correction_steps=1,
            threshold=-1e9,
            **settings,
        )
        return [row["plus/signal"] for row in history]

    def loss_after(server_round, data):
        model = Point(run("fedavg", rounds=server_round, local_steps=2, lr=0.1).tolist())
        return pytest.approx(float(quadratic(model, data).detach()), rel=1e-12)

    assert signals() == [loss_after(1, AUXILIARY), loss_after(2, AUXILIARY)]
    ends = tuple(tensor[[0, 3]] for tensor in AUXILIARY)
    assert signals(probe_images=2)[0] == loss_after(1, ends)


@pytest.mark.parametrize("needed", [{"plus-signal": "probe-loss"}, {"plus-auxiliary": "eager"}], ids=str)
def test_a_set_that_is_needed_early_cannot_come_from_a_later_model(run_config, needed):
    odd = {"algorithm": "fedddpm-plus", "pretrain-from": "global"} | needed
    with pytest.raises(ConfigError, match='pretrain-from = "global" postpones pretraining'):
        FedDDPMPlus.check_config(load_config(run_config | odd))


def test_a_lazy_set_cannot_be_probed(run_config):
    odd = {"algorithm": "fedddpm-plus", "plus-signal": "probe-loss", "plus-auxiliary": "lazy"}
    with pytest.raises(ConfigError, match='plus-auxiliary = "lazy" does not work with plus-signal = "probe-loss"'):
        FedDDPMPlus.check_config(load_config(run_config | odd))


@pytest.mark.parametrize(
    ("window", "patience", "limit", "most"), [(1, 1, 1, 1), (1, 1, 0, 5), (2, 2, 0, 2), (9, 9, 1, 0)]
)
def test_the_steps_of_a_run_count_the_corrections_that_it_can_have(run_config, window, patience, limit, most):
    settings = {"plus-window": window, "plus-patience": patience, "plus-max-corrections": limit, "num-rounds": 10}
    config = load_config(run_config | settings)
    assert FedDDPMPlus.num_corrections(config) == most
    curve = [1.0] * 10
    plus = {"window": window, "patience": patience, "max_corrections": limit, "threshold": 0.1}
    assert len(corrected_rounds(corrections(curve, **plus))) == most


def test_a_probe_without_corrections_costs_nothing(run_config):
    given = run_config | {"algorithm": "fedddpm-plus", "plus-signal": "probe-loss"}
    costs = [
        FedDDPMPlus.cost(load_config(given | {"correction-steps": k, "plus-probe-images": n}), [100] * 4).steps
        for k, n in ((0, 2), (0, 12), (2, 2), (2, 12))
    ]
    assert costs[0] == costs[1]
    assert costs[2] < costs[3]
