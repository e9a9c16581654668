import json

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedddpm_app.transport.layout import Layout, PayloadError, read

WEIGHTS = {
    "conv.weight": torch.randn(3, 2, 3, 3),
    "scale": torch.tensor(2.5),
    "steps": torch.tensor(7),
    "mask": torch.tensor([True, False, True]),
    "half": torch.randn(5).bfloat16(),
    "double": torch.randn(2, dtype=torch.float64),
    "bytes": torch.arange(3, dtype=torch.uint8),
    "empty": torch.empty(0, 4),
    "turned": torch.randn(4, 3).t(),
}


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(t, second[n]) and t.dtype == second[n].dtype for n, t in first.items()
    )


def test_the_library_reads_what_is_written():
    blob = Layout(WEIGHTS).pack(WEIGHTS)
    assert len(blob) == Layout(WEIGHTS).size
    assert same(safetensors.torch.load(blob), WEIGHTS)
    assert same(read(blob), WEIGHTS)


def test_views_share_the_memory_of_the_blob():
    blob = memoryview(bytearray(Layout(WEIGHTS).pack(WEIGHTS)))
    views = Layout(WEIGHTS).views(blob)
    assert same(views, WEIGHTS)
    views["scale"].fill_(9.0)
    assert Layout(WEIGHTS).views(blob)["scale"] == 9.0


def test_every_tensor_begins_at_a_multiple_of_its_element():
    layout = Layout(WEIGHTS)
    header = json.loads(layout.header[8:])
    for name, entry in header.items():
        assert (len(layout.header) + entry["data_offsets"][0]) % WEIGHTS[name].element_size() == 0


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"a": torch.ones(2)}, "parameter names differ, for example b"),
        ({"a": torch.ones(2), "b": torch.ones(3), "c": torch.ones(1)}, "names differ, for example c"),
        ({"a": torch.ones(1, 2), "b": torch.ones(3)}, r"a is .*'shape': \[1, 2\].* instead of .*'shape': \[2\]"),
        ({"a": torch.ones(2, dtype=torch.float64), "b": torch.ones(3)}, "a is .*F64.* instead of .*F32"),
    ],
)
def test_another_model_is_refused_by_name(other, says):
    layout = Layout({"a": torch.zeros(2), "b": torch.zeros(3)})
    with pytest.raises(PayloadError, match=says):
        layout.views(Layout(other).pack(other))


BLOB = Layout({"a": torch.zeros(2)}).pack({"a": torch.ones(2)})


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"garbage",
        BLOB[:-1],
        BLOB + b"x",
        BLOB[:8],
        (10**15).to_bytes(8, "little") + BLOB[8:],
        BLOB.replace(b'"shape":[2]', b'"shape":[9]'),
        BLOB.replace(b"F32", b"F64"),
        BLOB.replace(b"[0,8]", b"[8,0]"),
        BLOB.replace(b'"a"', b'"b"'),
        BLOB.replace(b"{", b"["),
        b"\x02\0\0\0\0\0\0\0[]",
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
    ],
)
def test_garbage_is_refused(blob):
    assert blob != BLOB
    with pytest.raises(PayloadError):
        Layout({"a": torch.zeros(2)}).views(blob)


@pytest.mark.parametrize("header", [b"[]", b'{"a":1}', b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}', b"{"])
def test_a_blob_that_does_not_say_what_it_holds_is_refused(header):
    with pytest.raises(PayloadError):
        read(len(header).to_bytes(8, "little") + header + b"1234")


def test_a_refusal_is_short_whatever_the_names():
    blob = Layout({"x" * 100_000: torch.zeros(1)}).pack({"x" * 100_000: torch.zeros(1)})
    with pytest.raises(PayloadError) as refusal:
        Layout({"a": torch.zeros(2)}).views(blob)
    assert len(str(refusal.value)) < 400


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(blob):
    with pytest.raises(PayloadError):
        Layout({"a": torch.zeros(2)}).views(blob)
    with pytest.raises(PayloadError):
        read(b"\x01" + blob)
