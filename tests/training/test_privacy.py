"""What private steps spend, by Opacus's accountant, and the ledger that keeps count of them."""

import json
import math

import pytest
from opacus.accountants import RDPAccountant, analysis

from fedddpm_app.config import Budget, ConfigError, load_config
from fedddpm_app.training import privacy
from fedddpm_app.training.privacy import PrivacyBudgetError, Spent, epsilon_of, noise_multiplier_for, total_delta
from fedddpm_app.training.privacy_ledger import PrivacyLedger, begin

MNIST = Spent("train", 256 / 60_000, 1.1, 60 * 60_000 // 256)
BUDGET = Budget(3.0, 1e-5)


def test_the_epsilon_of_the_textbook_example():
    """MNIST by DP-SGD with batches of 256 of 60,000, sigma = 1.1 and 60 epochs at delta = 1e-5.

    TensorFlow Privacy's tutorial has 3.01, by the first conversion from RDP (Mironov 2017). Opacus has used the tighter
    one of Balle et al. 2020 since version 1.1, which gives 2.60.
    """
    assert epsilon_of([MNIST], 1e-5) == pytest.approx(2.597, abs=0.001)
    orders = RDPAccountant.DEFAULT_ALPHAS
    rdp = analysis.rdp.compute_rdp(q=MNIST.sample_rate, noise_multiplier=1.1, steps=MNIST.steps, orders=orders)
    assert min(r + math.log(1e5) / (a - 1) for a, r in zip(orders, rdp, strict=True)) == pytest.approx(3.01, abs=0.01)


def test_one_step_on_all_examples_is_the_gaussian_mechanism():
    """RDP of order a is a / (2 sigma^2); the bound epsilon = 1/(2 s^2) + sqrt(2 ln(1/delta)) / s is never exceeded."""
    found = epsilon_of([Spent("train", 1.0, 2.0, 1)], 1e-5)
    assert 1.9 < found < 1 / 8 + (2 * 11.513) ** 0.5 / 2  # 2.524
    assert epsilon_of([Spent("train", 1.0, 2.0, 4)], 1e-5) == pytest.approx(
        epsilon_of([Spent("train", 1.0, 1.0, 1)], 1e-5), rel=1e-9
    )
    assert epsilon_of([], 1e-5) == 0


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0, 100.0])
def test_the_noise_is_solved_for_nearly_all_of_the_budget(epsilon):
    sigma = noise_multiplier_for(Budget(epsilon, 1e-5), 0.1, 500)
    assert 0.98 * epsilon < epsilon_of([Spent("train", 0.1, sigma, 500)], 1e-5) <= epsilon


def test_a_budget_that_no_noise_reaches_is_a_sentence():
    with pytest.raises(PrivacyBudgetError, match=r"epsilon = 0.001 at delta = 1e-05 cannot be reached by 500 steps"):
        noise_multiplier_for(Budget(0.001, 1e-5), 0.1, 500)


def test_the_phases_compose_and_more_steps_cost_more():
    pretraining, rounds = Spent("pretrain", 0.1, 1.0, 100), Spent("train", 0.2, 1.5, 100)
    alone = [epsilon_of([each], 1e-5) for each in (pretraining, rounds)]
    assert max(alone) < epsilon_of([pretraining, rounds], 1e-5) < sum(alone)


def test_a_ledger_adds_up_over_processes_and_stops_at_the_budget(tmp_path):
    sigma = noise_multiplier_for(BUDGET, 0.1, 30)
    path = tmp_path / "privacy" / "client.json"
    for done in (10, 20, 30):
        spent = PrivacyLedger(path).spend(Spent("train", 0.1, sigma, 10), BUDGET)
        assert spent == [Spent("train", 0.1, sigma, done)]
    before = path.read_bytes()
    with pytest.raises(PrivacyBudgetError, match=r"^1 more private steps after 30 would spend epsilon = .*train-dp-ep"):
        PrivacyLedger(path).spend(Spent("train", 0.1, sigma, 1), BUDGET)
    assert path.read_bytes() == before
    assert PrivacyLedger(path).spend(Spent("pretrain", 0.1, sigma, 30), BUDGET) == [
        Spent("train", 0.1, sigma, 30),
        Spent("pretrain", 0.1, sigma, 30),
    ]  # each phase has a budget of its own


@pytest.mark.parametrize("content", ["", "[]", '{"spent": [{"phase": "train"}]}', "null"])
def test_a_damaged_ledger_spends_nothing(tmp_path, content):
    path = tmp_path / "client.json"
    path.write_text(content)
    with pytest.raises(PrivacyBudgetError, match=r"record of spent privacy cannot be read .* restore client.json"):
        PrivacyLedger(path).spend(Spent("train", 0.1, 9.0, 1), BUDGET)
    assert path.read_text() == content


def test_steps_are_written_down_before_they_are_taken(run_config, tmp_path):
    config = load_config(run_config | {"train-dp-epsilon": 3.0, "batch-size": 10, "dp-clip": 0.5})
    ledger = PrivacyLedger(tmp_path / "client.json")
    found = begin(config, "train", ledger, num_examples=100, steps=3, planned=6)
    assert (found.sample_rate, found.clip, found.multiplicity, found.secret) == (0.1, 0.5, 1, True)
    assert json.loads(ledger.path.read_text())["spent"] == [
        {"phase": "train", "sample_rate": 0.1, "noise_multiplier": found.noise_multiplier, "steps": 3}
    ]
    again = begin(config, "train", ledger, num_examples=100, steps=3, planned=6)
    assert again.noise_multiplier == found.noise_multiplier
    assert found.epsilon < again.epsilon <= 3.0
    assert again.epsilon > 2.9
    assert again.total_epsilon == again.epsilon
    assert begin(config, "pretrain", None, num_examples=100, steps=3, planned=3) is None
    with pytest.raises(RuntimeError, match="needs a ledger"):
        begin(config, "train", None, num_examples=100, steps=3, planned=6)


@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "rate"), [(0, 1.0), (50, 0.5), (1000, 1.0)])
def test_the_sampling_rate_is_the_batch_over_the_images(run_config, tmp_path, batch_size, rate):
    config = load_config(run_config | {"train-dp-epsilon": 3.0, "batch-size": batch_size})
    found = begin(config, "train", PrivacyLedger(tmp_path / "a"), num_examples=100, steps=1, planned=1)
    assert found.sample_rate == rate


def test_a_delta_that_protects_no_image_is_refused(run_config, tmp_path):
    config = load_config(run_config | {"train-dp-epsilon": 3.0, "train-dp-delta": 0.01})
    with pytest.raises(PrivacyBudgetError, match=r"train-dp-delta = 0.01 protects no single one of its 100 images"):
        begin(config, "train", PrivacyLedger(tmp_path / "a"), num_examples=100, steps=1, planned=1)


def test_the_delta_of_both_phases_is_the_larger_one(run_config):
    both = {"train-dp-epsilon": 3.0, "train-dp-delta": 1e-6, "pretrain-dp-epsilon": 1.0, "pretrain-dp-delta": 1e-5}
    assert total_delta(load_config(run_config | both)) == 1e-5
    assert total_delta(load_config(run_config | both | {"pretrain-dp-epsilon": 0.0})) == 1e-6


def test_without_opacus_a_private_run_says_what_to_install(monkeypatch):
    monkeypatch.setattr(privacy, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r'train-dp-epsilon = 3.0 needs Opacus .*: pip install "opacus'):
        privacy.check_opacus("train-dp-epsilon", 3.0)
