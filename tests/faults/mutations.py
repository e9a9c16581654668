"""Valid records with a few changes: the inputs of the decoder tests, and the limits that they run under.

The default run takes a few dozen inputs per decoder; DECODER_EXAMPLES=10000 takes that many.
"""

import copy
import json
import os
import resource
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

MB = 2**20
_MOST_BYTES = 100_000_000  # that a decoder may allocate for an input of about a kilobyte
MANY = settings(
    max_examples=int(os.environ.get("DECODER_EXAMPLES", "30")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

_NUMBERS = [0, -1, 1.5, 2**31, 2**63, -(2**63), 10**30, 1e308, float("inf"), float("nan")]
_TEXTS = ["", "a/b", "../x", "\ud800", "\0", "F64", "BF16", "F8_E5M2", "U8"]
_LISTS = [[2**31, 2**31], [10**12], [-1], [0, 10**18], [[]], {}]
_ODD = [*_NUMBERS, *_TEXTS, *_LISTS, None, True]
VALUES = st.recursive(
    st.sampled_from(_ODD).map(copy.deepcopy) | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
_DEEP = [b"[" * 3000, b"[" * 900 + b"]" * 900, b'{"a":' * 300 + b"1" + b"}" * 300]
_ODD_BYTES = [*_DEEP, b"9" * 5000, b"1e999", b"NaN", b"\\ud800", b"\0", b"\xff", b'"', b"{", b"},", b"-", b"0" * 9]
_PIECES = st.binary(max_size=6) | st.sampled_from(_ODD_BYTES)


@contextmanager
def bounded() -> Iterator[None]:
    """Make every allocation fail that takes this process more than ``_MOST_BYTES`` above its present size."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + _MOST_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextmanager
def at_most(most: int) -> Iterator[None]:
    """Check that Python takes at most this number of bytes, and the process not much more."""
    tracemalloc.start()
    try:
        with bounded():
            yield
        peak = tracemalloc.get_traced_memory()[1]
        assert peak < most, f"it took {peak / MB:.0f} MB"
    finally:
        tracemalloc.stop()


def sparse(path: Path, size: int, head: bytes = b"{") -> Path:
    """Write a file of any size that takes no room on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)
    return path


@st.composite
def altered(draw: st.DrawFn, value: dict[str, Any]) -> Any:
    """A JSON object with one to three of its values, at any depth, replaced, removed, renamed or added."""
    changed = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(changed))
        if not places:
            break
        holder, key = draw(st.sampled_from(places))
        change = draw(st.sampled_from(["replace", "replace", "remove", "rename", "add"]))
        if change == "add" and isinstance(holder, dict):
            holder[draw(st.text(max_size=8))] = draw(VALUES)
        elif change == "rename" and isinstance(holder, dict):
            holder[draw(st.sampled_from(["", "__metadata__", "\ud800", "x" * 300]))] = holder.pop(key)
        elif change == "remove":
            del holder[key]
        else:
            holder[key] = draw(VALUES)
    return draw(VALUES) if draw(st.integers(0, 19)) == 0 else changed


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each container of a JSON value with each of its keys or indices."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield value, key
        yield from _places(item)


@st.composite
def edited(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes with up to three pieces replaced, removed or inserted, or cut off."""
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(data)))
        data = data[:start] + draw(_PIECES) + data[start + draw(st.integers(0, 8)) :]
    return data[: draw(st.integers(0, len(data)))] if draw(st.integers(0, 9)) == 0 else data


def json_texts(value: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """JSON of an object that is altered, or whose text is edited."""
    return altered(value).map(lambda v: json.dumps(v).encode()) | edited(json.dumps(value).encode())


@st.composite
def blobs(draw: st.DrawFn, blob: bytes) -> bytes:
    """A safetensors blob with another header of the right length, other values, or any bytes changed."""
    end = 8 + int.from_bytes(blob[:8], "little")
    if draw(st.booleans()):
        return draw(edited(blob))
    header = draw(json_texts(json.loads(blob[8:end])))
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + draw(edited(blob[end:]) | st.just(blob[end:]))
