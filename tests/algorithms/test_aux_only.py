"""The auxiliary-only control: FedDDPM's compute on its auxiliary set, without its rounds."""

import pytest

from fedddpm_app.algorithms.aux_only import AuxiliaryOnly
from fedddpm_app.config import ConfigError, load_config
from tests.algorithms.problems import (
    CLIENTS,
    RATE,
    ROUNDS,
    STEPS,
    gradient,
    gradient_steps,
    make_clients,
    run,
    same,
    start,
)

AUXILIARY = make_clients(4, seed=9)[0]


def test_it_is_gradient_descent_on_the_auxiliary_set():
    """By full batches: the round's clients go through 10 images in each of 4 steps, the set has 4 images."""
    ended = run("aux-only", auxiliary_data=AUXILIARY, correction_steps=3)
    steps = 3 + STEPS * sum(len(a) for a, _ in CLIENTS) // 4
    assert same(ended, gradient_steps(start(), ROUNDS * steps, RATE, lambda x: gradient(AUXILIARY, x)), 1e-12)


def test_fedddpm_is_a_round_of_fedavg_and_then_the_same_steps():
    settings = {"auxiliary_data": AUXILIARY, "correction_steps": 3, "rounds": 1}
    expected = gradient_steps(run("fedavg", rounds=1), 3, RATE, lambda x: gradient(AUXILIARY, x))
    assert same(run("fedddpm", **settings), expected, 1e-12)


@pytest.mark.slow
def test_it_builds_fedddpms_set_and_trains_on_no_client(shared_run):
    control, method = shared_run(algorithm="aux-only"), shared_run(algorithm="fedddpm")
    assert control.phases() == ["pretrain", "auxiliary", "initial", "round", "round"]
    sheets = [sorted((r.path / "auxiliary").glob("*.png")) for r in (control, method)]
    assert [p.read_bytes() for p in sheets[0]] == [p.read_bytes() for p in sheets[1]]
    for row in control.rounds():
        assert row["comm/up_mb"] == 0
        assert row["correct/steps"] == 2 + 4 * 3
        assert "train/loss" not in row


def test_a_run_that_would_train_nothing_is_refused():
    with pytest.raises(ConfigError, match="correction-steps = 0"):
        run("aux-only", auxiliary_data=AUXILIARY, correction_steps=0)


def test_the_progress_counts_the_clients_steps_as_the_servers(run_config):
    config = load_config(run_config | {"correction-batch-size": 16})
    assert AuxiliaryOnly.total_steps(config, 1000) == 4 * 3 + 2 * 2 + 500
