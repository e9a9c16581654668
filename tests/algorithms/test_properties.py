"""Properties that every algorithm has, over the whole registry."""

import numpy as np
import pytest
import torch

from fedddpm_app.algorithms import REGISTRY
from tests.algorithms.problems import (
    CLIENTS,
    LONG_RUN,
    OPTIMUM,
    PAIR,
    RATE,
    ROUNDS,
    STEPS,
    check_fixed_point,
    gradient,
    gradient_steps,
    make_clients,
    run,
    same,
    start,
)

NEVER = {"threshold": -1e9}
AUXILIARY = make_clients(4, seed=9)[0]
# what makes an algorithm add nothing to plain local training
NEUTRAL = {
    "fedavg": {},
    "fedddpm": {"correction_steps": 0},
    "fedddpm-plus": NEVER,
    "fedprox": {"mu": 0.0},
    "scaffold": {},
    "feddyn": None,  # h / alpha does not vanish
    "fednova": {},
    "moon": {"mu": 0.0},
    "feddiffuse": {"split": "full"},
    "fedphd": {"num_edges": 1, "prune_ratio": 0.0},
    "pdfed": None,  # a point generates no images: test_pdfed
    "centralized": {},
    "local-only": {},
    "aux-only": None,  # its steps grow with the set: test_aux_only
    "fedddpm-kd": {"correction_steps": 0},
    "fedddpm-late": None,  # it fine-tunes: test_fedddpm_late
    "kd-only": None,  # needs a diffusion model
    "mixture": {"pretrain_steps": ROUNDS * STEPS},
}
# the algorithm with all that it adds
FULL = {
    "fedavg": {},
    "fedddpm": {"correction_steps": 3, "auxiliary_data": AUXILIARY},
    "fedddpm-plus": {"correction_steps": 3, "auxiliary_data": AUXILIARY, "threshold": 1e9},
    "fedprox": {"mu": 0.7},
    "scaffold": {"option": "II"},
    "feddyn": {"alpha": 0.7},
    "fednova": {},
    "moon": {"mu": 0.7},
    "feddiffuse": {"split": "full"},  # a point has no parts: test_feddiffuse
    "fedphd": {"num_edges": 1, "prune_ratio": 0.0},  # clients draw their edges, so that their order counts: test_fedphd
    "pdfed": None,  # a point generates no images: test_pdfed
    "centralized": {},
    "local-only": {},
    "aux-only": {"correction_steps": 3, "auxiliary_data": AUXILIARY},
    "fedddpm-kd": None,  # a point generates no images: test_fedddpm_kd
    "fedddpm-late": {"correction_steps": 0, "pretrain_steps": 3},
    "kd-only": None,
    "mixture": {"pretrain_steps": 3},
}
ON_POINTS = [name for name, settings in FULL.items() if settings is not None]
STEPS_COUNT_CLIENTS = {"centralized", "aux-only"}  # takes as many steps as all clients together
UNIFORM = {"scaffold", "feddyn"}  # clients count alike, whatever they hold


@pytest.mark.parametrize("name", REGISTRY)
def test_the_tables_name_every_algorithm(name):
    assert name in NEUTRAL, f"add {name} to NEUTRAL, with the settings that make it FedAvg, or None"
    assert name in FULL, f"add {name} to FULL, with the settings that use all of it"


@pytest.mark.parametrize("name", [name for name in REGISTRY if NEUTRAL.get(name) is not None])
def test_one_client_is_local_training(name):
    alone = run(name, CLIENTS[:1], **NEUTRAL[name])
    expected = gradient_steps(start(), ROUNDS * STEPS, RATE, lambda x: gradient(CLIENTS[0], x))
    assert same(alone, expected, 1e-12)


@pytest.mark.parametrize("name", ON_POINTS)
def test_the_order_of_clients_changes_nothing(name):
    assert same(run(name, **FULL[name]), run(name, CLIENTS[::-1], **FULL[name]), 1e-12)


@pytest.mark.parametrize("name", sorted(set(ON_POINTS) - STEPS_COUNT_CLIENTS))
def test_every_client_twice_changes_nothing(name):
    twice = [client for client in CLIENTS for _ in range(2)]
    assert same(run(name, **FULL[name]), run(name, twice, **FULL[name]), 1e-12)


@pytest.mark.parametrize("name", sorted(set(ON_POINTS) - STEPS_COUNT_CLIENTS - UNIFORM))
def test_a_client_twice_counts_as_one_of_double_weight(name):
    first, *others = CLIENTS
    double = tuple(torch.cat([tensor, tensor]) for tensor in first)
    twice, once = (run(name, clients, **FULL[name]) for clients in ([first, first, *others], [double, *others]))
    assert same(twice, once, 1e-12), f"clients do not count by examples; if they count alike, add {name} to UNIFORM"


@pytest.mark.parametrize("name", sorted(UNIFORM))
def test_where_clients_count_alike_the_size_of_a_data_set_changes_nothing(name):
    first, *others = CLIENTS
    double = tuple(torch.cat([tensor, tensor]) for tensor in first)
    assert same(run(name, **FULL[name]), run(name, [double, *others], **FULL[name]), 1e-12)


@pytest.mark.parametrize("name", ON_POINTS)
def test_the_same_seed_repeats_bit_for_bit(name):
    settings = FULL[name] | {"batch_size": 2, "correction_batch_size": 2}
    runs = [run(name, seed=seed, **settings) for seed in (3, 3, 4)]
    assert (runs[0] == runs[1]).all()
    assert (runs[0] != runs[2]).any()


@pytest.mark.parametrize("name", ["fedddpm", "fedddpm-plus", "fedprox", "moon", "feddiffuse", "fedphd"])
def test_with_nothing_added_it_is_fedavg_bit_for_bit(name):
    assert (run(name, **NEUTRAL[name]) == run("fedavg")).all()


@pytest.mark.parametrize("name", ["fedddpm", "fedddpm-plus", "fedprox", "feddyn", "scaffold", "fednova", "moon"])
def test_what_it_adds_changes_the_outcome(name):
    steps = [2, 4, 6] if name == "fednova" else STEPS
    assert not same(run(name, local_steps=steps, **FULL[name]), run("fedavg", local_steps=steps), 1e-4)


def test_scaffold_is_fedavg_in_the_first_round_of_equal_clients():
    clients = make_clients(4, 4, 4)
    assert same(run("scaffold", clients, rounds=1), run("fedavg", clients, rounds=1), 1e-12)
    assert not same(run("scaffold", clients, rounds=2), run("fedavg", clients, rounds=2), 1e-4)


def test_fednova_is_fedavg_where_all_take_the_same_steps():
    assert same(run("fednova"), run("fedavg"), 1e-12)
    assert same(run("fednova", momentum=0.9), run("fedavg", momentum=0.9), 1e-12)


@pytest.mark.parametrize("name", ["scaffold", "feddyn"])
def test_two_quadratics_end_at_the_exact_optimum_and_fedavg_does_not(name):
    check_fixed_point(name)
    assert np.abs(run("fedavg", PAIR, **LONG_RUN) - OPTIMUM).max() > 0.1
