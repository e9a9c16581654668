import dataclasses
import itertools
import logging
from collections import Counter

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Error, Message
from safetensors.torch import load_file, save_file

import client_app
from fedddpm_app.algorithms.fedddpm import FedDDPM
from fedddpm_app.auxiliary import generation, requests, sampler
from fedddpm_app.auxiliary.batch_files import BatchFiles
from fedddpm_app.auxiliary.generation import Generation
from fedddpm_app.auxiliary.requests import Request, Requests
from fedddpm_app.auxiliary.uploads import PretrainedModel
from fedddpm_app.config import load_config
from fedddpm_app.diffusion.images import DivergedError
from fedddpm_app.diffusion.unet import create_unet
from fedddpm_app.experiment.task import DiffusionTask
from fedddpm_app.federation.admission import Admission
from fedddpm_app.federation.clients import Clients
from fedddpm_app.federation.errors import RoundFailedError
from fedddpm_app.federation.messages import deadlines
from fedddpm_app.federation.messages.replies import GONE
from fedddpm_app.federation.nodes.roll_call import RollCall
from fedddpm_app.inprocess.grid import InProcessGrid
from fedddpm_app.recording.recorder import RunRecorder
from fedddpm_app.transport import Transport
from fedddpm_app.transport.layout import Layout
from fedddpm_app.weights import snapshot

SHARES = [6, 3, 2, 1]  # in batches of 2: 3, 2, 1 and 1 of them
BATCHES, GENERATE = 7, "train.generate"


@pytest.fixture
def plan(run_config, tmp_path, monkeypatch):
    """Return a fresh run's generation of 12 images from four models, in batches of 2."""
    monkeypatch.setattr(logging.getLogger("fedddpm"), "propagate", True)
    numbers = itertools.count()

    def make(grid_type=InProcessGrid, seed=0, **overrides):
        changes = {key.replace("_", "-"): value for key, value in overrides.items()}
        resolved = run_config | {"auxiliary-batch-size": 2, "transport": "flat"} | changes
        config = load_config(resolved)
        recorder = RunRecorder(tmp_path / f"run-{next(numbers)}", tmp_path / "durable")
        strategy = FedDDPM(config, recorder, DiffusionTask(config))
        strategy.grid = grid_type(client_app.app, 4, resolved)
        strategy.transport = Transport(config.transport)
        roll_call = RollCall(strategy.grid, 4, 1.0)
        found = roll_call.start(1)
        strategy.clients = Clients(found, strategy.accounting, strategy.transport, Admission(config), roll_call)
        models = []
        for client, count in enumerate(SHARES):
            path = recorder.scratch / f"{client}.safetensors"
            save_file(snapshot(create_unet(config.unet, config.data, seed + client)), path)
            models.append(
                PretrainedModel(
                    partition_id=client, num_examples=count, label_counts=[count, *[0] * 8, count], loss=0.0, path=path
                )
            )
        return Generation(strategy, models)

    return make


@pytest.fixture
def calls(monkeypatch):
    """The batches drawn, by whomever."""
    seen = []
    draw = sampler.sample_batch

    def spy(model, scheduler, batch, **options):
        seen.append(batch)
        return draw(model, scheduler, batch, **options)

    monkeypatch.setattr(sampler, "sample_batch", spy)
    return seen


def stop_after(monkeypatch, module, name, count):
    """Raise, as Ctrl-C does, in place of the call ``count`` + 1 of a function."""
    function, done = getattr(module, name), itertools.count()

    def stopping(*args, **kwargs):
        if next(done) == count:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    monkeypatch.setattr(module, name, stopping)


def test_a_stopped_generation_goes_on_where_it_was(plan, calls, monkeypatch, tmp_path):
    whole = plan(cache_dir=str(tmp_path / "other")).run()
    plan().remove_batch_files()
    with monkeypatch.context() as patch:
        stop_after(patch, sampler, "sample_batch", 2)
        with pytest.raises(KeyboardInterrupt):
            plan().run()
    calls.clear()
    again = plan()
    assert torch.equal(again.run().images, whole.images)
    assert len(calls) == BATCHES - 2
    again.remove_batch_files()
    assert not (tmp_path / "durable" / "auxiliary").exists()
    calls.clear()
    assert torch.equal(plan().run().images, whole.images)
    assert len(calls) == BATCHES


def test_progress_counts_the_images_that_are_there_already(plan, caplog):
    caplog.set_level(logging.INFO, "fedddpm")
    plan().run()
    caplog.clear()
    plan().run()
    assert [r.getMessage().split()[3] for r in caplog.records if "client=0" in r.getMessage()] == [
        "step=2/6",
        "step=4/6",
        "step=6/6",
    ]


@pytest.mark.slow
def test_a_run_that_differs_takes_nothing_over(plan, calls, monkeypatch):
    plan().run()
    others = [
        {"seed": 1},
        {"auxiliary_batch_size": 1},
        {"auxiliary_sampler": "ddpm"},
        {"auxiliary_sampler_steps": 5},
        {"beta_schedule": "linear"},
        {"prediction_type": "sample"},
        {"server_threads": 2},
        {"auxiliary_generation": "nodes"},
        {"class_conditional": True},
    ]
    for other in others:
        calls.clear()
        plan(**other).run()
        again = 11 if "auxiliary_batch_size" in other else BATCHES  # the share of one image has one batch of one
        assert len(calls) == again, other
    calls.clear()
    plan(learning_rate=0.5).run()  # of no matter here
    assert not calls
    monkeypatch.setattr(sampler.AuxiliarySampler, "precision", "bf16")
    plan().run()
    assert len(calls) == BATCHES


@pytest.mark.parametrize("damage", ["cut", "pixel", "shape", "empty"])
def test_a_damaged_part_is_drawn_again_with_a_warning(plan, calls, tmp_path, caplog, damage):
    whole = plan().run()
    path = sorted((tmp_path / "durable" / "auxiliary").glob("*.safetensors"))[0]
    content = path.read_bytes()
    if damage == "shape":
        BatchFiles(path.parent).save(path.stem, torch.zeros(5, 1, 8, 8, dtype=torch.uint8))
    else:
        flipped = content[:-1] + bytes([content[-1] ^ 1])
        path.write_bytes({"cut": content[:-9], "pixel": flipped, "empty": b""}[damage])
    calls.clear()
    assert torch.equal(plan().run().images, whole.images)
    assert len(calls) == 1
    assert "are damaged" in caplog.text
    assert path.read_bytes() == content


def test_a_folder_that_cannot_be_written_loses_nothing_but_the_parts(plan, tmp_path, caplog):
    (tmp_path / "durable").write_text("a file")
    assert len(plan().run()) == 12
    assert "cannot be kept" in caplog.text


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("size", [2, 5, 250])
def test_nodes_draw_what_the_server_draws_bit_for_bit(plan, conditional, size, caplog):
    settings = {"class_conditional": conditional, "auxiliary_batch_size": size}
    here, there = (plan(**settings, auxiliary_generation=where).run() for where in ("server", "nodes"))
    assert torch.equal(here.images, there.images)
    assert len(here.images.flatten(1).unique(dim=0)) == 12
    assert not conditional or torch.equal(here.labels, there.labels)
    assert "the server generates" not in caplog.text


def test_a_node_gets_its_own_model_and_a_few_batches_at_a_time(plan, monkeypatch):
    asked = []

    class Spy(InProcessGrid):
        def _answer(self, message):
            if message.metadata.message_type == GENERATE:
                asked.append((message.metadata.dst_node_id - 1000, len(message.content["values"]["seeds"])))
            return super()._answer(message)

    monkeypatch.setattr(requests, "_BATCHES_PER_MESSAGE", 2)
    made = plan(Spy, auxiliary_generation="nodes")
    made.run()
    assert asked == [(0, 4), (1, 3), (2, 2), (3, 1), (0, 2)]
    accounting = made._strategy.accounting
    model = accounting.bytes_down / len(asked)
    assert model == Layout(load_file(made._shares[0].model.path)).size
    assert accounting.bytes_up == sum(
        Layout({"images": torch.empty(count, 1, 8, 8, dtype=torch.uint8)}).size for _, count in asked
    )


def test_a_stopped_generation_on_nodes_goes_on_where_it_was(plan, calls, monkeypatch):
    whole = plan().run()
    monkeypatch.setattr(generation, "_MESSAGES_IN_FLIGHT", 1)
    with monkeypatch.context() as patch:
        stop_after(patch, Clients, "accept", 1)
        with pytest.raises(KeyboardInterrupt):
            plan(auxiliary_generation="nodes").run()
    calls.clear()
    assert torch.equal(plan(auxiliary_generation="nodes").run().images, whole.images)
    assert len(calls) == BATCHES - 3


def images(shape=(6, 1, 8, 8), dtype=np.uint8):
    return Array(np.zeros(shape, dtype))


def claiming(array, shape):
    """An array whose npy header claims another shape, padded to the same length."""
    claim = str(shape).encode()
    data = array.data.replace(b"(6, 1, 8, 8)", claim.ljust(12) if len(claim) < 12 else claim)
    return Array(dtype="uint8", shape=shape, stype="numpy.ndarray", data=data)


BAD = {
    "an error": lambda m: Message(Error(0, "out of memory"), reply_to=m),
    "no record": lambda m: {},
    "another name": lambda m: {"images": ArrayRecord({"pictures": images()})},
    "an array more": lambda m: {"images": ArrayRecord({"images": images(), "more": images()})},
    "fewer images": lambda m: {"images": ArrayRecord({"images": images((5, 1, 8, 8))})},
    "larger images": lambda m: {"images": ArrayRecord({"images": images((6, 1, 9, 9))})},
    "floats": lambda m: {"images": ArrayRecord({"images": images(dtype=np.float32)})},
    "a pickle": lambda m: {"images": ArrayRecord({"images": Array("uint8", (6, 1, 8, 8), "pickle", b"x")})},
    "a huge claim": lambda m: {"images": ArrayRecord({"images": claiming(images(), (10**12, 1, 8, 8))})},
    "bytes missing": lambda m: {
        "images": ArrayRecord({"images": Array("uint8", (6, 1, 8, 8), "numpy.ndarray", images().data[:-1])})
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("bad", [*BAD, "no answer"])
def test_the_server_draws_what_a_node_does_not(plan, caplog, bad, monkeypatch):
    class Odd(InProcessGrid):
        def _answer(self, message):
            reply = super()._answer(message)
            if message.metadata.message_type != GENERATE or message.metadata.dst_node_id != 1000 or bad == "no answer":
                return reply
            changed = BAD[bad](message)
            if isinstance(changed, Message):
                return changed
            del reply.content["images"]
            for name, record in changed.items():
                reply.content[name] = record
            return reply

        def pull_messages(self, message_ids):
            replies = super().pull_messages(message_ids)
            silent = bad == "no answer"
            return [m for m in replies if not (silent and "images" in m.content and m.metadata.src_node_id == 1000)]

    monkeypatch.setattr(deadlines, "START_SECONDS", 0.0)
    timeout = 3.0 if bad == "no answer" else 60.0
    drawn = plan(Odd, auxiliary_generation="nodes", pretrain_timeout=timeout).run()
    assert torch.equal(drawn.images, plan().run().images)
    assert caplog.text.count("the server generates the missing ones of client 0") == 1
    assert "of client 1" not in caplog.text


def test_the_server_draws_for_a_client_that_is_away_since_the_start_of_a_resumed_run(plan, caplog):
    class Away(InProcessGrid):
        def get_node_ids(self):
            return [node for node in self.contexts if node != 1001]

    made = plan(Away, auxiliary_generation="nodes")
    assert torch.equal(made.run().images, plan().run().images)
    assert made.left_out() == {"generate/left_out": {"1": GONE}}
    assert caplog.text.count("the server generates the missing ones of client") == 1


def unusable(monkeypatch, *clients, images=None):
    """Have the models of some clients generate NaN, or these images, wherever they are sampled."""
    draw = sampler.AuxiliarySampler.sample

    def sample(self, weights, batches):
        marked = int(weights["conv_out.bias"][0])
        for batch, drawn in zip(batches, draw(self, weights, batches), strict=True):
            if marked in clients and images is None:
                raise DivergedError("NaN")
            yield drawn if marked not in clients else images(batch.kept)

    monkeypatch.setattr(sampler.AuxiliarySampler, "sample", sample)


def marked(generation):
    """Write each client's number into its model, so that a sampler knows whose it is."""
    for share in generation._shares:
        weights = load_file(share.model.path)
        weights["conv_out.bias"].fill_(share.model.partition_id)
        save_file(weights, share.model.path)
    generation._divide([share.model for share in generation._shares])
    return generation


def constant(count):
    return torch.full((count, 1, 8, 8), 7, dtype=torch.uint8)


@pytest.mark.parametrize("where", ["server", "nodes"])
@pytest.mark.parametrize("images", [None, constant])
def test_a_client_whose_model_is_not_usable_is_left_out(plan, monkeypatch, caplog, calls, where, images):
    all_good = marked(plan(auxiliary_generation=where))
    whole = all_good.run()
    all_good.remove_batch_files()
    unusable(monkeypatch, 1, images=images)
    calls.clear()
    others = marked(plan(auxiliary_generation=where))
    made = others.run()
    assert len(made) == 12  # the numbers of images are 6, 2 and 1: by largest remainder, 8, 3 and 1 of the set
    assert [others.clients.count(client) for client in range(4)] == [8, 0, 3, 1]
    assert torch.equal(made.images[:6], whole.images[:6])
    assert torch.equal(made.images[8:10], whole.images[9:11])
    assert torch.equal(made.images[11], whole.images[11])
    assert list(others.left_out()["aux/left_out"]) == ["1"]
    assert "client 1 is left out of the set, and the others share its part: " in caplog.text
    batches = 4 + 2 + 1  # those of the first division are not generated again: 3, 1 and 1 of them
    node = {"server": 0, "nodes": 2 if images else 1}[where]  # client 1's, until the first is found to be unusable
    assert len(calls) == batches + node + 1
    others.remove_batch_files()
    assert not others._files.folder.exists()


@pytest.mark.parametrize("where", ["server", "nodes"])
def test_a_model_that_draws_nan_ends_the_run_with_the_key_to_change(plan, monkeypatch, where):
    def diverged(*args, **kwargs):
        raise DivergedError("NaN")

    monkeypatch.setattr(sampler, "sample_batch", diverged)
    with pytest.raises(RoundFailedError, match="images of client 0: NaN; lower pretrain-learning-rate = "):
        plan(auxiliary_generation=where).run()


def test_bf16_is_for_cuda_alone(config):
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, precision="bf16"))
    auxiliary_sampler = sampler.AuxiliarySampler(config, create_unet(config.unet, config.data, 0))
    assert auxiliary_sampler.precision == "fp32"
    auxiliary_sampler.device = torch.device("cuda")
    assert auxiliary_sampler.precision == "bf16"


def test_a_client_that_hangs_does_not_take_the_places_of_others(plan):
    shares = plan(auxiliary_batch_size=1)._shares
    pending = Requests(shares, lambda share, indices: (Request(share, indices, None), None))
    asked, taken = [], Counter()

    def ask():
        while (new := pending.next()) is not None:
            asked.append(new[0])

    ask()
    assert max(Counter(request.share.model.partition_id for request in asked).values()) <= 2
    while asked:
        request = asked.pop(0)
        if request.share.model.partition_id != 0:  # which never answers
            taken[request.share.model.partition_id] += len(request.indices)
            pending.answered(request)
            ask()
    assert taken == {share.model.partition_id: len(share.batches) for share in shares[1:]}
