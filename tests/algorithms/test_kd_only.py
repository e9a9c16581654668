"""The distillation-only control: FedDDPM-KD without the clients' rounds, at the same cost."""

from fedddpm_app.algorithms.aux_only import AuxiliaryOnly
from fedddpm_app.algorithms.fedddpm_kd import FedDDPMKD
from fedddpm_app.algorithms.kd_only import DistillationOnly
from fedddpm_app.config import load_config


def test_it_distils_and_trains_on_no_client(shared_run):
    control = shared_run(algorithm="kd-only")
    assert control.phases() == ["pretrain", "auxiliary", "initial", "round", "round"]
    for row in control.rounds():
        assert row["comm/up_mb"] == 0
        assert row["correct/steps"] == 2 + 9  # 4 clients x 3 steps, each of which costs 3/4 of a distillation step
        assert "train/loss" not in row


def test_its_loss_is_that_of_the_distillation(shared_run):
    kd, noise = (shared_run(algorithm=name).rounds()[-1]["correct/loss"] for name in ("kd-only", "aux-only"))
    assert kd < noise


def test_it_costs_as_much_as_the_method_whose_control_it_is(run_config):
    config, sizes = load_config(run_config), [300, 400, 500, 100]
    assert DistillationOnly.cost(config, sizes).steps == FedDDPMKD.cost(config, sizes).steps
    assert DistillationOnly.cost(config, sizes).models_up == AuxiliaryOnly.cost(config, sizes).models_up == 4
