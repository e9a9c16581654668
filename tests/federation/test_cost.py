"""The cost of a run: what it is expected to be is what it turns out to be."""

import pytest

from fedddpm_app.algorithms import REGISTRY, get_algorithm
from fedddpm_app.config import load_config
from fedddpm_app.data.dataset import open_dataset
from fedddpm_app.federation.accounting import Accounting, Span

MAY_COST_LESS = {"fedddpm-plus": "its correction may not happen", "fedddpm-late": "a part of a step is not spent"}

HEADERS = {
    "fedphd": 0.06,  # of this tiny model: the list of tensors in a message stays when the tensors shrink
    "pdfed": 0.06,  # the scores of 100 samples beside this tiny model
}


@pytest.mark.parametrize("name", REGISTRY)
def test_a_run_costs_as_much_as_expected(name, shared_run, run_config):
    run = shared_run(algorithm=name)
    config = load_config(run_config | {"algorithm": name})
    expected = get_algorithm(config).cost(config, open_dataset(config.data, config.run.seed).check())
    assert run.summary["compute/steps"] == pytest.approx(sum(row.get("compute/steps", 0) for row in run.stats))
    if name in MAY_COST_LESS:
        assert 0 < run.summary["compute/steps"] <= expected.steps
    else:
        assert run.summary["compute/steps"] == pytest.approx(expected.steps)
    model = shared_run(algorithm="fedavg").summary["comm/up_mb"] / 8  # 4 clients, 2 rounds
    assert run.summary["comm/up_mb"] / model <= expected.models_up * (1 + HEADERS.get(name, 0)) + 1e-6


PRIVATE = {"train-dp-epsilon": 5.0, "pretrain-dp-epsilon": 5.0, "dp-secret-noise": False}


def test_a_private_run_costs_as_much_as_expected_with_several_draws_per_image(shared_run, run_config):
    """Both of its phases, each image of which goes three times through the model in a step."""
    overrides = PRIVATE | {"dp-noise-multiplicity": 3}
    run = shared_run(**{key.replace("-", "_"): value for key, value in overrides.items()})
    config = load_config(run_config | overrides)
    sizes = open_dataset(config.data, config.run.seed).check()
    cost, once = (get_algorithm(each).cost(each, sizes) for each in (config, load_config(run_config | PRIVATE)))
    assert run.summary["compute/steps"] == pytest.approx(cost.steps)
    assert cost.steps - once.steps == 2 * (4 * 3 + 2 * 4 * 3)  # of 4 clients: 3 steps of pretraining, and of each round


def test_fractions_of_a_step_add_up():
    accounting = Accounting(images_per_step=32)
    span = Span(accounting)
    accounting.images += 32 * 100 + 1000 * 50 / 3
    assert span.spent("time/round_s")["compute/steps"] == pytest.approx(100 + 1000 * 50 / 96)
    again = Accounting(images_per_step=32)
    again.add(span.spent("time/round_s"))
    assert again.summary()["compute/steps"] == accounting.summary()["compute/steps"]
    again.load_state_dict(accounting.state_dict())
    assert again.images == accounting.images


@pytest.mark.parametrize(
    ("overrides", "more"),
    [
        ({"algorithm": "fedavg", "num-rounds": 4}, 2.0),
        ({"algorithm": "fedavg", "clients-per-round": 2}, 0.5),
        ({"algorithm": "fedavg", "batch-size": 16}, 1.0),  # in steps of 16 images
        ({"algorithm": "moon", "moon-representation": ""}, 4 / 3),  # without a previous model in the first of 2 rounds
        ({"algorithm": "fedprox"}, 1.0),
        ({"algorithm": "centralized"}, 1.0),
        ({"algorithm": "scaffold"}, 1.0),
        ({"algorithm": "fedavg", "train-dp-epsilon": 5.0, "dp-noise-multiplicity": 4}, 4.0),
        ({"algorithm": "fedavg", "dp-noise-multiplicity": 4}, 1.0),  # which has no effect without a budget
    ],
    ids=str,
)
def test_the_steps_of_an_algorithm_against_those_of_fedavg(run_config, overrides, more):
    sizes = [300, 400, 500, 100]
    fedavg, other = (load_config(run_config | changes) for changes in ({"algorithm": "fedavg"}, overrides))
    steps = [get_algorithm(config).cost(config, sizes).steps for config in (fedavg, other)]
    assert steps[1] / steps[0] == pytest.approx(more)


def test_scaffold_sends_twice_as_much_and_takes_a_whole_gradient_by_option_one(run_config):
    sizes = [320, 400, 480, 80]
    config = load_config(run_config | {"algorithm": "scaffold", "scaffold-option": "I"})
    cost = get_algorithm(config).cost(config, sizes)
    assert (cost.models_up, cost.models_down) == (16, 16)
    assert cost.steps == 2 * (4 * 3 + sum(sizes) / 8)


def test_without_a_batch_size_the_unit_is_an_image(run_config):
    config = load_config(run_config | {"algorithm": "fedavg", "batch-size": 0})
    assert get_algorithm(config).cost(config, [30, 50, 10, 10]).steps == 2 * 3 * 100
