"""What a run reports at its start: settings without effect, and averages that do not reach their decay."""

import logging

import pytest

from fedddpm_app.algorithms import get_algorithm
from fedddpm_app.config import default_run_config, load_config
from fedddpm_app.federation.start_notes import start_notes
from tests.conftest import ROOT


def notes_of(**overrides):
    run_config = default_run_config(ROOT) | {key.replace("_", "-"): value for key, value in overrides.items()}
    config = load_config(run_config)
    return start_notes(get_algorithm(config), config, run_config)


@pytest.mark.parametrize(
    ("overrides", "note"),
    [
        ({"algorithm": "fedavg", "moon_mu": 2.0}, 'moon-mu = 2.0 is set, but has no effect: algorithm = "fedavg" does'),
        (
            {"algorithm": "examples.correct_early:CorrectEarly", "plus_window": 2},
            'plus-window = 2 is set, but has no effect: algorithm = "examples.correct_early:CorrectEarly" does not use',
        ),
        ({"dirichlet_alpha": 2.0}, 'has no effect: partition = "disjoint-classes" does not use it'),
        ({"aggregator_tau": 0.5}, 'has no effect: aggregator = "fedavg" does not use it'),
        ({"eval_images": 0, "eval_sampler": "ddim"}, "has no effect: eval-images = 0 does not use it"),
        ({"correction_steps": 0, "auxiliary_size": 5}, "has no effect: correction-steps = 0"),
        ({"algorithm": "aux-only", "learning_rate": 0.5}, "clients do not train in the rounds"),
        ({"algorithm": "local-only", "server_ema_decay": 0.5}, 'algorithm = "local-only" has no global model'),
        ({"algorithm": "moon", "moon_mu": 0.0, "moon_temperature": 2.0}, "has no effect: moon-mu = 0"),
        (
            {"algorithm": "fedddpm-plus", "plus_window": 9, "plus_threshold": 0.5},
            "the first correction needs 10 rounds",
        ),
        (
            {"algorithm": "fedavg", "preview_sampler": "ddpm", "eval_final_sampler": "ddpm", "ddim_eta": 1.0},
            'ddim-eta = 1.0 is set, but has no effect: no sampler of the run is "ddim"',  # fedavg has no D_aux
        ),
        ({"loss_weighting": "sigmoid-log-snr"}, 'has no effect: prediction-type = "epsilon" does not use it'),
        ({"algorithm": "mixture", "local_steps": 3, "warmup_steps": 0}, "trains nothing in the rounds"),
        ({"algorithm": "mixture", "auxiliary_size": 3}, 'algorithm = "mixture" has no auxiliary set'),
        ({"num_rounds": 1, "server_ema_decay": 0.9}, "with num-rounds = 1"),
        ({"server_ema_decay": 0.0, "ema_decay": 0.0, "ema_warmup": 3.0}, "the run has no moving average"),
        (
            {"server_ema_decay": 0.9, "ema_warmup": 9.0, "ema_decay": 0.5},
            "server-ema-decay = 0.9 is not reached: with ema-warmup = 9.0 the decay is 0.25 after 4 rounds",
        ),
        (
            {"ema_decay": 0.9999, "ema_warmup": 9.0},
            "ema-decay = 0.9999 is not reached: with ema-warmup = 9.0 the decay is 0.989 after 800 steps",
        ),
        ({"server_ema_decay": 0.9}, "after 4 rounds, 73% of the average are still the weights of the first round"),
        ({"ema_decay": 0.9999}, "after 800 steps, 92% of the average are still the weights of the first step"),
    ],
    ids=str,
)
def test_a_setting_that_does_not_do_what_it_says_is_one_note(overrides, note):
    (only,) = notes_of(**overrides)
    assert note in only


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"server_ema_decay": 0.0, "ema_decay": 0.0},
        {"server_ema_decay": 0.25, "ema_warmup": 9.0, "ema_decay": 0.95},  # reached in the last round
        {"algorithm": "fedavg", "moon_mu": 1.0},  # the default
        {"algorithm": "moon", "moon_mu": 2.0},
        {"ddim_eta": 1.0, "preview_sampler": "ddpm", "eval_final_sampler": "ddpm"},  # D_aux has it
        {"loss_weighting": "sigmoid-log-snr", "prediction_type": "sample"},
        {"correction_steps": 0, "init_from_pretrained": True, "pretrain_steps": 700, "ema_decay": 0.9},
    ],
    ids=str,
)
def test_nothing_is_reported_of_settings_that_have_their_effect(overrides):
    assert notes_of(**overrides) == []


def test_a_run_reports_it(run_app, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("fedddpm"), "propagate", True)
    caplog.set_level(logging.INFO, "fedddpm")
    run_app(algorithm="fedavg", num_rounds=1, moon_mu=2.0)
    assert "[fedddpm] note: moon-mu = 2.0 is set, but has no effect" in caplog.text
