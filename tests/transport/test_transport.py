import logging
from dataclasses import replace

import psutil
import pytest
import torch
from flwr.app import Array, ArrayRecord

from fedddpm_app.config import ConfigError, TransportConfig, load_config
from fedddpm_app.transport import (
    ClientEnd,
    Expected,
    PayloadError,
    Transport,
    can_read,
    shared,
)
from fedddpm_app.transport.outbox import Outbox

WEIGHTS = {"conv.weight": torch.randn(8, 9), "norm.weight": torch.randn(4), "steps": torch.tensor(3)}
WAYS = [
    ("arrays", "fp32"),
    *((name, dtype) for name in ("flat", "shared-memory") for dtype in ("fp32", "bf16", "int8-delta")),
]


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setattr(shared, "ROOT", tmp_path)
    made = []

    def transport(name, dtype="fp32"):
        made.append(Transport(TransportConfig(name, dtype)))
        return made[-1]

    yield transport
    for each in made:
        each.close()


def unpack(record, dtype="fp32"):
    return ClientEnd(record, dtype, 0).unpack()


def answer_to(request, weights=WEIGHTS, dtype="fp32", partition=1, base=None):
    return ClientEnd(request.record, dtype, partition).pack_trained(weights, base or weights, {})[0]


@pytest.mark.parametrize(("name", "dtype"), WAYS)
def test_weights_go_to_a_client_and_back(make, name, dtype):
    transport = make(name, dtype)
    assert transport.name == name
    down = transport.pack(WEIGHTS)
    given = unpack(down.record, dtype)
    exact = dtype != "bf16"
    assert all(torch.equal(given[n], t) == (exact or not t.is_floating_point()) for n, t in WEIGHTS.items())
    trained = {n: t + 0.01 * torch.randn_like(t) if t.is_floating_point() else t for n, t in given.items()}
    answer = answer_to(down, trained, dtype, 5, given)
    assert answer.record[next(iter(answer.record))].stype == down.record[next(iter(down.record))].stype
    payload = transport.receive(answer.record, transport.expect(WEIGHTS, WEIGHTS if exact else given), 5)
    assert payload.num_bytes == answer.num_bytes
    for each in (payload, payload.on_disk(transport_folder(make))):
        for n, tensor in each.decode().items():
            assert tensor.dtype == WEIGHTS[n].dtype
            assert torch.allclose(tensor, trained[n], atol=0 if dtype == "fp32" else 2e-2)
            assert dtype != "fp32" or torch.equal(tensor, trained[n])


def transport_folder(_):
    return shared.ROOT


def test_int8_takes_a_quarter_and_bf16_half():
    weights = {"conv.weight": torch.randn(512, 512)}
    sizes = []
    for dtype in ("fp32", "bf16", "int8-delta"):
        down = Transport(TransportConfig("flat", dtype)).pack(weights)
        sizes.append(answer_to(down, weights, dtype).num_bytes)
    assert sizes[1] == pytest.approx(sizes[0] / 2, rel=0.01)
    assert sizes[2] == pytest.approx(sizes[0] / 4, rel=0.03)


def test_auto_takes_shared_memory_where_all_can_read_it(make, caplog):
    for readable, name in ((True, "shared-memory"), (False, "flat")):
        transport = make("auto")
        assert can_read(transport.probe())
        transport.settle(readable, WEIGHTS, 4)
        assert transport.name == name
    assert make("flat").probe() is None


def test_auto_takes_messages_where_there_is_no_room(make, caplog):
    transport = make("shared-memory")
    with caplog.at_level(logging.WARNING, "fedddpm"):
        transport.settle(True, {"a": torch.empty(1).expand(10**13)}, 4)
    assert transport.name == "flat"
    assert "models in transit need" in caplog.text
    assert not list(shared.ROOT.iterdir())


def test_auto_takes_messages_where_there_is_no_such_storage(make, monkeypatch, tmp_path):
    monkeypatch.setattr(shared, "ROOT", tmp_path / "nowhere")
    assert make("auto").name == "flat"
    assert make("shared-memory").name == "flat"


def test_a_full_storage_is_not_the_end(make, monkeypatch, caplog):
    """Of the server while it runs, and of a client."""
    transport = make("auto")
    down = transport.pack(WEIGHTS)
    real = shared.write_file

    def full(*_):
        raise OSError(28, "No space left on device")

    for module in ("carriers", "shared"):
        monkeypatch.setattr(f"fedddpm_app.transport.{module}.write_file", full)
    answer = answer_to(down)
    assert torch.equal(
        transport.receive(answer.record, transport.expect(WEIGHTS), 1).decode()["conv.weight"], WEIGHTS["conv.weight"]
    )
    assert unpack(transport.pack(WEIGHTS).record).keys() == WEIGHTS.keys()
    assert transport.name == "flat"
    assert real is not full


def test_a_file_is_refused_where_none_travels(make):
    shared_memory, flat = make("shared-memory"), make("flat")
    answer = answer_to(shared_memory.pack(WEIGHTS))
    with pytest.raises(PayloadError, match="do not travel in files"):
        flat.receive(answer.record, flat.expect(WEIGHTS), 1)


def test_the_size_is_compared_before_the_file_is_read(make, monkeypatch):
    transport = make("shared-memory")
    answer = answer_to(transport.pack(WEIGHTS), {"a": torch.ones(1)})
    monkeypatch.setattr(shared, "map_file", None)
    with pytest.raises(PayloadError, match="bytes instead of"):
        transport.receive(answer.record, transport.expect(WEIGHTS), 1)


def test_a_flat_reply_of_another_dtype_is_refused(make):
    transport = make("flat", "int8-delta")
    answer = answer_to(transport.pack(WEIGHTS))
    with pytest.raises(PayloadError, match="differ"):
        transport.receive(answer.record, transport.expect(WEIGHTS, WEIGHTS), 1)
    arrays = Transport(TransportConfig("arrays", "fp32")).pack(WEIGHTS)
    with pytest.raises(PayloadError, match="not as wire-dtype = int8-delta"):
        transport.receive(arrays.record, transport.expect(WEIGHTS, WEIGHTS), 1)


@pytest.mark.parametrize("stype", ["fedddpm.flat", "fedddpm.file"])
def test_garbage_in_any_way_is_refused(make, stype):
    transport = make("shared-memory")
    for data in (b"", b"{}", b"garbage" * 100):
        record = ArrayRecord({"weights": Array("uint8", (len(data),), stype, data)})
        with pytest.raises(PayloadError):
            transport.receive(record, Expected(WEIGHTS), 1)


def test_the_same_weights_are_packed_once_and_the_last_file_is_removed(make):
    transport = make("shared-memory")
    outbox, source = Outbox(transport), object()
    first = outbox.pack("arrays", source, WEIGHTS)
    assert outbox.pack("arrays", source, WEIGHTS) is first
    second = outbox.pack("arrays", object(), WEIGHTS)
    assert [path.name for path in shared.ROOT.glob("*/down-*")] == [second.file.name]
    outbox.pack("variate", source, WEIGHTS)
    assert len(list(shared.ROOT.glob("*/down-*"))) == 2


def test_arrays_are_sent_as_they_are(run_config):
    with pytest.raises(ConfigError, match=r'wire-dtype = "bf16" cannot be used with transport = "arrays"'):
        load_config(run_config | {"transport": "arrays", "wire-dtype": "bf16"})


def test_settings_are_kept(config):
    assert Transport(replace(config.transport, transport="arrays")).settings.wire_dtype == "fp32"


def test_what_was_sent_in_files_is_read_after_the_storage_filled_up(make, monkeypatch):
    transport = make("auto")
    first = transport.pack(WEIGHTS)
    answer = answer_to(first)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("fedddpm_app.transport.carriers.write_file", full)
        second = transport.pack(WEIGHTS)
    assert transport.name == "flat"
    assert second.file is None
    assert unpack(first.record).keys() == WEIGHTS.keys()
    assert transport.receive(answer.record, transport.expect(WEIGHTS), 1).decode().keys() == WEIGHTS.keys()
    transport.release(first)
    transport.close()
    assert not list(shared.ROOT.iterdir())


def test_a_probe_that_cannot_be_written_is_none(make, monkeypatch):
    transport = make("auto")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedddpm_app.transport.carriers.write_file", full)
    assert transport.probe() is None
    assert transport.name == "flat"


def test_replies_on_disk_hold_no_file_open(make, tmp_path):
    transport = make("flat")
    answer = answer_to(transport.pack(WEIGHTS))
    before = psutil.Process().num_fds()
    waiting = [transport.receive(answer.record, transport.expect(WEIGHTS), 1).on_disk(tmp_path) for _ in range(20)]
    assert psutil.Process().num_fds() == before
    assert len(list(tmp_path.glob("reply-*"))) == 20
    assert torch.equal(waiting[0].decode()["conv.weight"], WEIGHTS["conv.weight"])
    waiting.clear()
    assert not list(tmp_path.glob("reply-*"))


def test_a_model_in_bfloat16_stays_so():
    weights = {"w": torch.randn(3).bfloat16()}
    record = Transport(TransportConfig("flat", "fp32")).pack(weights).record
    assert torch.equal(unpack(record)["w"], weights["w"])


def test_a_dtype_that_cannot_travel_is_named():
    with pytest.raises(ConfigError, match=r"w is torch.complex64"):
        Transport(TransportConfig("flat", "fp32")).pack({"w": torch.ones(1, dtype=torch.complex64)})
