"""Every reader of a file that may be damaged or come from elsewhere: only the documented error, in bounded memory."""

import hashlib
import json

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from fedddpm_app.auxiliary.batch_files import BatchFiles
from fedddpm_app.auxiliary.uploads import Upload, UploadFiles
from fedddpm_app.client.state import ClientState, ClientStateError
from fedddpm_app.disk.bounded import read_object
from fedddpm_app.evaluation.extractors import cache
from fedddpm_app.recording.checkpoints import CheckpointError, CheckpointWriter, load_checkpoint
from fedddpm_app.recording.reading import read_run_config
from tests.faults.mutations import MANY, blobs, bounded, json_texts

SHAPE = (2, 1, 2, 2)
IMAGES = torch.arange(8, dtype=torch.uint8).view(SHAPE)
BATCH = save({"images": IMAGES}, {"sha256": hashlib.sha256(IMAGES.numpy().data).hexdigest()})
KEPT = {"control": {"a": torch.ones(2, 3)}, "residual": {"a": torch.ones(2)}}


def test_a_batch_of_images(tmp_path):
    files = BatchFiles(tmp_path)

    @MANY
    @given(blobs(BATCH) | st.just(BATCH))
    def check(content):
        (tmp_path / "key.safetensors").write_bytes(content)
        with bounded():
            found = files.load("key", SHAPE)
        assert found is None or torch.equal(found, IMAGES)
        assert found is not None or content != BATCH

    check()


def test_the_numbers_of_images_of_a_phase(tmp_path):
    files = UploadFiles(tmp_path, "pretrain", Upload)
    files.keep_sizes("start", {0: 5, 3: 7})
    (path,) = tmp_path.iterdir()
    assert files.read_sizes("start") == {0: 5, 3: 7}
    assert files.read_sizes("other") == {}

    @MANY
    @given(json_texts(["start", {"0": 5, "3": 7}]))
    def check(content):
        path.write_bytes(content)
        with bounded():
            found = files.read_sizes("start")
        assert all(isinstance(number, int) for pair in found.items() for number in pair)

    check()
    files.discard()
    assert not path.exists()


@pytest.mark.parametrize("digest_matches", [True, False])
def test_a_clients_state(config, tmp_path, digest_matches):
    """Also a file whose name has the right SHA-256, as any program could write it."""
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    client = ClientState(config, context, "1", 0)
    client.save(1, KEPT)
    (path,) = client.folder.iterdir()
    saved = path.read_bytes()
    path.unlink()
    context.state.config_records.clear()

    @MANY
    @given(blobs(saved) | st.just(saved))
    def check(content):
        digest = hashlib.sha256(content if digest_matches else saved).hexdigest()
        path = client.folder / f"client-0000-round-0001-{digest}.safetensors"
        path.write_bytes(content)
        state, reason = None, ""
        try:
            with bounded():
                state = dict(ClientState(config, context, "1", 0, state_round=1))
        except ClientStateError as error:
            reason = str(error)
        if state is None:
            assert str(path) in reason
            assert content != saved
        else:
            assert digest_matches or content == saved
            assert all(isinstance(t, torch.Tensor) for weights in state.values() for t in weights.values())
        path.unlink()

    check()


def test_an_evaluation_network(tmp_path):
    """A damaged file in the cache is made anew."""
    path = tmp_path / "network.safetensors"

    @MANY
    @given(blobs(BATCH))
    def check(content):
        path.write_bytes(content)
        with bounded():
            found = cache.load_or_create(path, lambda: {"control/a": torch.ones(1)}, ["control/a"])
        assert "control/a" in found

    check()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A run directory with a checkpoint of round 1."""
    writer = CheckpointWriter(tmp_path_factory.mktemp("run"))
    state = {"attributes": {"variate": {"a": torch.ones(2)}, "rounds": {0: 1}, "m": np.ones(3)}, "trainer": {}}
    writer.save(1, {"model": {"a": torch.ones(2, 3)}}, state, {"num_stats": 3}, 1, lambda _: True)
    writer.check()
    return writer.folder


@pytest.mark.parametrize("digest_matches", [True, False])
@pytest.mark.parametrize("name", ["state.json", "state.safetensors", "model.safetensors", "manifest.json"])
def test_a_checkpoint(checkpoint, name, digest_matches):
    """Also one whose manifest has the right SHA-256, as any program could write it."""
    folder = checkpoint / "round-0001"
    whole = {path: path.read_bytes() for path in folder.iterdir()}
    original, manifest = whole[folder / name], folder / "manifest.json"
    is_json = name.endswith("json")

    @MANY
    @given(json_texts(json.loads(original)) if is_json else blobs(original))
    def check(content):
        (folder / name).write_bytes(content)
        if digest_matches and name != manifest.name:
            digests = json.loads(whole[manifest]) | {name: hashlib.sha256(content).hexdigest()}
            manifest.write_text(json.dumps(digests))
        with bounded():
            try:
                found = load_checkpoint(checkpoint.parent, 1)
            except CheckpointError:
                return
        assert found.server_round == 1
        assert digest_matches or name == manifest.name or content == original

    try:
        check()
    finally:
        for path, content in whole.items():
            path.write_bytes(content)


RUN = {"run_config": {"seed": 1, "dataset": "digits", "learning-rate": 0.1}, "run_id": "12", "fab_hash": ""}


def test_the_config_of_a_run(tmp_path):
    path = tmp_path / "config.json"

    @MANY
    @given(json_texts(RUN))
    def check(content):
        path.write_bytes(content)
        with bounded():
            try:
                found = read_run_config(tmp_path)
            except ValueError:
                return
        assert all(isinstance(key, str) for key in found)
        assert read_object(path)["run_config"].keys() == found.keys()

    check()


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", '{"run_config": [["a", 1]]}', "\ufeff{}", "{} {}"])
def test_a_config_of_another_form_is_named(tmp_path, content):
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"\w"):
        read_run_config(tmp_path)
