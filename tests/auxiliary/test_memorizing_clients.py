"""Clients with 22 images each, whose models memorise all of them: nothing of these models leaves."""

import pytest

from fedddpm_app.algorithms.fedddpm import FedDDPM
from fedddpm_app.auxiliary import own_images, pretraining
from fedddpm_app.auxiliary.gate import open_gate
from fedddpm_app.auxiliary.uploads import COUNT
from fedddpm_app.client.worker import Worker
from fedddpm_app.config import default_run_config, load_config
from fedddpm_app.experiment.task import DiffusionTask
from fedddpm_app.training.declined import DeclinedError
from fedddpm_app.weights import snapshot

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("memorizing")]  # its model is trained once
FEW = {"num-clients": 58, "partition": "iid", "held-out-fraction": 0.12}


@pytest.fixture(scope="module")
def trained(cache_dir):
    """The model of client 0 after the default pretraining, and a worker that need not train it again."""
    config = load_config(default_run_config() | FEW | {"cache-dir": str(cache_dir)})
    worker = Worker(config, DiffusionTask(config))
    assert len(worker.task.train_data(0)) == 22
    return worker, worker.trainer.train(
        snapshot(worker.task.create_model()),
        worker.task.train_data(0),
        steps=config.pretrain.steps,
        seed=0,
        learning_rate=config.pretrain.learning_rate,
        learning_rate_schedule="cosine",
        ema_decay=config.training.ema_decay,
    )


@pytest.fixture
def ask(trained, monkeypatch):
    """Ask client 0 for its part of D_aux, 22 images, with settings."""
    worker, result = trained
    for module in (own_images, pretraining):
        monkeypatch.setattr(module, "train_own", lambda request, *_: (result, 22))

    def act(action, **settings):
        changes = {key.replace("_", "-"): value for key, value in settings.items()}
        config = load_config(default_run_config() | FEW | {"cache-dir": worker.config.data.cache_dir} | changes)
        worker.config = config
        return worker.act(FedDDPM.client_actions[action], 0, 0, {}, {COUNT: 22})

    return act


def test_the_model_does_not_leave(ask):
    with pytest.raises(DeclinedError, match=r"(3[0-2]) of 32 images of its model are near copies of its 22 training"):
        ask("pretrain", memorization_check="always")
    assert "arrays" in ask("pretrain", memorization_check="never").records


def test_no_copy_leaves_as_an_image(trained, ask):
    with pytest.raises(DeclinedError, match=r"(3[0-2]) of 32 images of its model are near copies"):
        ask("share_images", auxiliary_sharing="images")
    unchecked = ask("share_images", auxiliary_sharing="images", memorization_check="never")
    gate = open_gate(trained[0].config, trained[0].task, 0)
    assert gate.copies(unchecked.records["images"]["images"]).double().mean() > 0.9, "without the check they leave"
    with pytest.raises(DeclinedError, match="its 22 images and those in their place are near copies"):
        ask("share_images", auxiliary_sharing="images", max_memorized_share=1.0)
