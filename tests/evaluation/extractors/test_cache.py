import multiprocessing
import time

import pytest
import torch

from fedddpm_app.evaluation.extractors.cache import load_or_create


def never():
    raise AssertionError("computed again")


def test_weights_are_computed_once_and_leave_no_partial_file(tmp_path):
    path = tmp_path / "new" / "w.safetensors"
    weights = {"w": torch.randn(3)}
    assert load_or_create(path, lambda: weights) is weights
    assert torch.equal(load_or_create(path, never)["w"], weights["w"])
    assert not list(path.parent.glob("*.partial"))


@pytest.mark.parametrize("content", [b"", b"no safetensors", None], ids=["empty", "other", "cut off"])
def test_a_file_that_cannot_be_read_is_written_again(tmp_path, content):
    path = tmp_path / "w.safetensors"
    load_or_create(path, lambda: {"w": torch.zeros(100)})
    path.write_bytes(path.read_bytes()[:-50] if content is None else content)
    assert load_or_create(path, lambda: {"w": torch.ones(100)})["w"].sum() == 100
    assert load_or_create(path, never)["w"].sum() == 100


def test_a_failure_leaves_nothing_behind_and_the_next_one_computes(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(AssertionError):
        load_or_create(path, never)
    assert not path.exists()
    assert load_or_create(path, lambda: {"w": torch.ones(1)})["w"] == 1


def compute_slowly(path, mark):
    def create():
        mark.touch(exist_ok=False)
        time.sleep(0.3)
        return {"w": torch.full((4,), 7.0)}

    assert load_or_create(path, create)["w"].sum() == 28


def test_two_processes_at_once_compute_once(tmp_path):
    context = multiprocessing.get_context("fork")
    jobs = [
        context.Process(target=compute_slowly, args=(tmp_path / "w.safetensors", tmp_path / "mark")) for _ in range(3)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(30)
    assert [job.exitcode for job in jobs] == [0, 0, 0]
