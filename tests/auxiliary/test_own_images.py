"""Clients that share images instead of models: the same set, no model on the wire, and no near copies in it."""

from dataclasses import replace

import pytest
import torch

import client_app
from fedddpm_app.algorithms.fedddpm import FedDDPM
from fedddpm_app.auxiliary import own_images, pretraining
from fedddpm_app.auxiliary.gate import Gate
from fedddpm_app.auxiliary.own_images import ImageCollection, image_training
from fedddpm_app.config import ConfigError, load_config
from fedddpm_app.diffusion.unet import create_unet
from fedddpm_app.experiment.task import DiffusionTask
from fedddpm_app.federation.admission import Admission
from fedddpm_app.federation.clients import Clients
from fedddpm_app.federation.errors import TooFewRepliesError
from fedddpm_app.federation.nodes.roll_call import RollCall
from fedddpm_app.inprocess.grid import InProcessGrid
from fedddpm_app.inprocess.recorder import MemoryRecorder
from fedddpm_app.recording.auxiliary_set import load_auxiliary_set
from fedddpm_app.transport import Transport
from fedddpm_app.weights import num_bytes, snapshot

IMAGES = {"auxiliary_sharing": "images"}
UNCHECKED = IMAGES | {"memorization_check": "never"}
CONDITIONAL = {"class_conditional": True, "auxiliary_size": 30}


def stored(run):
    return load_auxiliary_set(run.path / "auxiliary")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        pytest.param(CONDITIONAL, marks=pytest.mark.slow),
        pytest.param({"algorithm": "fedddpm-plus", "plus_threshold": 0.9}, marks=pytest.mark.slow),
    ],
)
def test_the_set_and_the_run_are_those_of_shared_models(shared_run, settings):
    """Bit for bit, with as many images of each client, and its labels."""
    models, images = shared_run(**settings), shared_run(**settings, **UNCHECKED)
    assert stored(images).digest == stored(models).digest
    assert stored(images).clients == stored(models).clients
    assert [row.get("eval/loss") for row in images.rounds()] == [row.get("eval/loss") for row in models.rounds()]
    (row,) = (row for row in images.stats if row["phase"] == "auxiliary")
    assert sum(row["aux/shared"].values()) == row["aux/num_images"] == len(stored(models).clients)


@pytest.mark.slow
def test_a_set_that_is_made_late_starts_from_the_global_model(shared_run):
    late = {"pretrain_from": "global", "num_rounds": 2}
    assert stored(shared_run(**late, **UNCHECKED)).digest == stored(shared_run(**late)).digest


def test_no_model_leaves_a_client_before_round_1(run_app, monkeypatch):
    """The messages themselves: what comes back from clients before their first round are images and labels."""
    records, answer = [], InProcessGrid._answer

    def noted(self, message):
        reply = answer(self, message)
        if reply.has_content():
            arrays = reply.content.array_records.items()
            sizes = [(name, sum(len(array.data) for array in record.values())) for name, record in arrays]
            records.append((message.metadata.message_type, sizes))
        return reply

    monkeypatch.setattr(InProcessGrid, "_answer", noted)
    run = run_app(transport="flat", **IMAGES, **CONDITIONAL)
    first = next(k for k, (kind, _) in enumerate(records) if kind == "train")
    before = [(kind, size) for kind, sizes in records[:first] for size in sizes]
    assert before
    assert {(kind, name) for kind, (name, _) in before} == {("train.share_images", "images")}
    bytes_up = sum(size for _, (_, size) in before)
    assert 30 * (64 + 8) < bytes_up < 30 * (64 + 8) + 4 * 400  # images, labels, and four headers
    assert run.summary["comm/up_mb"] * 1e6 == bytes_up + sum(size for _, sizes in records[first:] for _, size in sizes)


@pytest.mark.parametrize("settings", [IMAGES, {"memorization_check": "always"}])
def test_a_client_learns_its_own_part_alone(run_app, monkeypatch, settings):
    """The parts of others would say how many images they have."""
    asked, answer = {}, InProcessGrid._answer

    def noted(self, message):
        if message.metadata.message_type in ("train.share_images", "train.pretrain"):
            asked[message.metadata.dst_node_id - 1000] = dict(message.content.config_records["values"])
        return answer(self, message)

    monkeypatch.setattr(InProcessGrid, "_answer", noted)
    run_app(**settings, num_rounds=1)
    assert asked == {0: {"count": 4}, 1: {"count": 4}, 2: {"count": 2}, 3: {"count": 2}}


def test_clients_that_copy_are_left_out_and_still_train(run_app, monkeypatch):
    """All images of client 1's model are copies, half of those of client 2: their reasons name the numbers."""
    monkeypatch.setattr(Gate, "copies", copying({1: 1.0, 2: 0.5}))
    run = run_app(**IMAGES)
    (row,) = (row for row in run.stats if row["phase"] == "pretrain")
    assert row["pretrain/clients"] == [0, 3]
    assert sorted(row["pretrain/left_out"]) == ["1", "2"]
    assert row["pretrain/left_out"]["1"].startswith(
        "it shares nothing: 32 of 32 images of its model are near copies of "
    )
    assert row["pretrain/left_out"]["1"].endswith("max-memorized-share = 0.1")
    assert row["pretrain/memorized_share"] == {"0": 0.0, "3": 0.0}
    assert set(stored(run).clients) == {0, 3}
    assert sorted(run.rounds()[-1]["train/client_loss"]) == ["0", "1", "2", "3"]


def copying(shares):
    """Say of each client's images that a share of them are copies, the first ones."""

    def copies(self, images):
        client = Current.partition_id
        return torch.arange(len(images)) < round(shares.get(client, 0) * len(images))

    return copies


class Current:
    partition_id = -1


@pytest.fixture(autouse=True)
def known_client(monkeypatch):
    """``Current`` has the client whose gate is open."""
    for module in (own_images, pretraining):
        original = module.open_gate

        def opened(config, task, partition_id, original=original):
            Current.partition_id = partition_id
            return original(config, task, partition_id)

        monkeypatch.setattr(module, "open_gate", opened)


@pytest.mark.parametrize(
    "algorithm", ["fedddpm", *(pytest.param(n, marks=pytest.mark.slow) for n in ("fedddpm-late", "mixture"))]
)
def test_in_the_other_mode_a_model_that_copies_does_not_leave(run_app, monkeypatch, algorithm):
    monkeypatch.setattr(Gate, "copies", copying({1: 1.0}))
    run = run_app(algorithm=algorithm, memorization_check="always", num_rounds=1, auxiliary_sampler="ddim")
    (row,) = (row for row in run.stats if row["phase"] in ("pretrain", "fine_tune"))
    phase = row["phase"]
    assert row[f"{phase}/clients"] == [0, 2, 3]
    assert list(row[f"{phase}/left_out"]) == ["1"]
    assert "32 of 32 images of its model" in row[f"{phase}/left_out"]["1"]


def test_a_client_without_a_part_is_not_waited_for(run_app):
    """Two images for four clients: two of them have none, and all that have one answer."""
    run = run_app(**UNCHECKED, auxiliary_size=2, min_replies=4, num_rounds=1)
    (row,) = (row for row in run.stats if row["phase"] == "pretrain")
    assert len(row["pretrain/clients"]) == 2
    assert "pretrain/left_out" not in row


def test_near_copies_are_replaced_and_those_that_come_again_are_left_out(run_app, monkeypatch):
    """In the first draw the first image is a copy, and its first two replacements are: the third is none."""
    asked = []

    def copies(self, images):
        asked.append((Current.partition_id, len(images)))
        tries = sum(client == Current.partition_id for client, _ in asked)
        found = torch.zeros(len(images), dtype=torch.bool)
        found[0] = len(images) < 32 and {0: tries < 5, 1: True}.get(Current.partition_id, False)
        return found

    monkeypatch.setattr(Gate, "copies", copies)
    run = run_app(**IMAGES, max_memorized_share=0.5, num_rounds=1)
    (row,) = (row for row in run.stats if row["phase"] == "auxiliary")
    assert [count for client, count in asked if client == 0] == [4, 32, 1, 1, 1]
    assert row["aux/shared"] == {"0": 4, "1": 3, "2": 2, "3": 2}
    assert row["aux/replaced"] == {"0": 1, "1": 0, "2": 0, "3": 0}
    assert row["aux/num_images"] == 11
    assert len(torch.unique(stored(run).data.images.flatten(1), dim=0)) == 11
    assert not (stored(run).data.images == 0).flatten(1).all(1).any(), "no placeholder of a copy is in the set"


def test_small_clients_share_nothing(run_app, config):
    sizes = sizes_of(config)
    least = sorted(sizes)[1]
    run = run_app(**IMAGES, min_images_to_share=least, num_rounds=1)
    (row,) = (row for row in run.stats if row["phase"] == "pretrain")
    assert row["pretrain/clients"] == [k for k, size in enumerate(sizes) if size >= least]
    assert "min-images-to-share" in next(iter(row["pretrain/left_out"].values()))


def test_a_run_without_any_image_ends_with_the_reason_and_asks_nobody_twice(run_app, monkeypatch):
    trained = []
    original = own_images.train_own
    monkeypatch.setattr(own_images, "train_own", lambda *args: trained.append(1) or original(*args))
    monkeypatch.setattr(Gate, "copies", copying(dict.fromkeys(range(4), 1.0)))
    with pytest.raises(TooFewRepliesError, match=r"none of the 4 .*; client 0: it shares nothing: 32 of 32 images"):
        run_app(**IMAGES, max_round_retries=3)
    assert len(trained) == 4


def test_a_set_is_removed_at_the_end_if_it_is_not_to_be_kept(run_app):
    run = run_app(keep_auxiliary=False, num_rounds=1)
    assert not (run.path / "auxiliary").exists()
    assert run.summary["images/auxiliary"] == 12


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"init-from-pretrained": True}, "averages the clients' models: use init-from-pretrained = false"),
        ({"algorithm": "fedddpm-kd"}, 'learns from the clients\' models: use algorithm = "fedddpm"'),
        ({"algorithm": "fedddpm-late"}, "learns from the clients' models"),
        ({"algorithm": "mixture"}, "generates from the clients' models on the server"),
    ],
)
def test_what_needs_the_models_refuses_images(run_app, settings, reason):
    with pytest.raises(ConfigError, match=f'auxiliary-sharing = "images", but .*{reason}.*"models"'):
        run_app(**IMAGES, **settings)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: r | {"images": torch.zeros_like(r["images"])}, "are constant: the model is not usable"),
        (lambda r: r | {"labels": r["labels"] + 10}, "a label is not in 0 to 9"),
        (lambda r: r | {"images": r["images"][:-1]}, "bytes instead of"),
        (lambda r: {"images": r["images"]}, "bytes instead of"),
    ],
    ids=["constant", "no class", "too few", "without labels"],
)
def test_records_that_cannot_be_images_are_refused(run_app, monkeypatch, change, reason):
    """All clients but the first one send such a record."""
    original, packed = own_images._packed, []

    def pack(*arguments):
        packed.append(original(*arguments))
        return change(packed[-1]) if len(packed) > 1 else packed[-1]

    monkeypatch.setattr(own_images, "_packed", pack)
    run = run_app(**UNCHECKED, **CONDITIONAL, num_rounds=1)
    (row,) = (row for row in run.stats if row["phase"] == "pretrain")
    assert row["pretrain/clients"] == [0]
    assert all(reason in text for text in row["pretrain/left_out"].values())


@pytest.mark.parametrize("claimed", [5, *(pytest.param(number, marks=pytest.mark.slow) for number in (0, 1.5))])
def test_another_number_of_images_than_asked_for_is_refused(run_app, monkeypatch, claimed):
    declared = FedDDPM.client_actions["share_images"]

    def lie(request):
        answer = declared.run(request)
        more = {"images": claimed} if request.partition_id else {}
        return replace(answer, metrics={**answer.metrics, **more})

    monkeypatch.setitem(FedDDPM.client_actions, "share_images", replace(declared, run=lie))
    run = run_app(**UNCHECKED, num_rounds=1)
    (row,) = (row for row in run.stats if row["phase"] == "pretrain")
    assert row["pretrain/clients"] == [0]
    assert row["pretrain/left_out"]["1"] == f"it shares {claimed:g} images, but was asked for 4"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("memorized-share", 1.5),
        *(pytest.param(*claim, marks=pytest.mark.slow) for claim in (("generated", -1), ("replaced", 1e9))),
    ],
)
def test_claims_that_cannot_be_true_are_refused(run_app, monkeypatch, key, value):
    declared = FedDDPM.client_actions["share_images"]

    def lie(request):
        answer = declared.run(request)
        return replace(answer, metrics={**answer.metrics, **({key: value} if request.partition_id == 2 else {})})

    monkeypatch.setitem(FedDDPM.client_actions, "share_images", replace(declared, run=lie))
    run = run_app(**UNCHECKED, num_rounds=1)
    (row,) = (row for row in run.stats if row["phase"] == "pretrain")
    assert row["pretrain/clients"] == [0, 1, 3]
    assert row["pretrain/left_out"]["2"].startswith(f"{key} is {value:g}, which is not between 0 and ")


class Sites(InProcessGrid):
    """Nodes of which some are away, and a server that is killed when so many have answered."""

    def __init__(self, run_config, away=(), killed_after=None):
        super().__init__(client_app.app, 4, run_config)
        self.away, self.left = away, killed_after

    def get_node_ids(self):
        return [node for node in self.contexts if node - 1000 not in self.away]

    def _answer(self, message):
        if message.metadata.message_type == "train.share_images" and self.left is not None:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
        return super()._answer(message)


@pytest.mark.parametrize(("first", "second"), [((), [0]), ((), [2]), ([3], ())])
def test_parts_of_a_resumed_run_are_those_of_its_start(run_config, tmp_path, monkeypatch, first, second):
    """Sites are counted anew by each process: one that is away is not, and a part that was not sent is missing."""
    monkeypatch.setattr("fedddpm_app.inprocess.grid._PULL_SECONDS", 0.0)
    resolved = run_config | {key.replace("_", "-"): value for key, value in UNCHECKED.items()}
    config, recorder = load_config(resolved), MemoryRecorder(tmp_path)

    def collect(away, **more):
        strategy = FedDDPM(config, recorder, DiffusionTask(config))
        strategy.grid, strategy.transport = Sites(resolved, away, **more), Transport(config.transport)
        call = RollCall(strategy.grid, 4, 0.2)
        strategy.clients = Clients(call.start(1), strategy.accounting, strategy.transport, Admission(config), call)
        strategy.clients.admission.sizes = {p: 400 for p in range(4) if p not in away}  # as the survey counts them
        start = snapshot(create_unet(config.unet, config.data, 0))
        uploads = ImageCollection(strategy, image_training(config), start).run()
        return {upload.partition_id: upload.count for upload in uploads}

    with pytest.raises(KeyboardInterrupt):
        collect(first, killed_after=2)
    parts = dict.fromkeys(set(range(4)) - {*first}, 12 // (4 - len(first)))
    assert collect(second) == {p: count for p, count in parts.items() if p < 2 or p not in second}


@pytest.mark.slow
@pytest.mark.parametrize("settings", [IMAGES, UNCHECKED, {"memorization_check": "always"}])
def test_the_expected_cost_is_that_of_a_run(shared_run, run_config, settings):
    """There are no copies; a check of a part of D_aux with less than 32 images generates 32 images."""
    run = shared_run(**settings)
    config = load_config(run_config | {key.replace("_", "-"): value for key, value in settings.items()})
    cost = FedDDPM.cost(config, sizes_of(config))
    extra = {"models": 4 * (32 - 3), "images": 4 * 32 if config.checks_memorization else 0}[config.auxiliary.sharing]
    more = extra * 2 / 3 / 8  # denoising steps, forward alone, images per gradient step
    assert run.summary["compute/steps"] == pytest.approx(cost.steps + more)
    model = num_bytes(create_unet(config.unet, config.data, 0).state_dict())
    assert run.summary["comm/up_mb"] * 1e6 == pytest.approx(
        cost.models_up * model, rel=0.15
    )  # headers, for tiny models


def sizes_of(config):
    return DiffusionTask(config).client_sizes()
