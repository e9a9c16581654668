"""The parts of all clients together have the classes of all examples."""

import pytest

from fedddpm_app.auxiliary.share import batches_of, counts_of
from fedddpm_app.config import default_run_config, load_config


@pytest.mark.parametrize(
    ("clients", "size", "counts", "tolerance"),
    [
        pytest.param(20, 100, [10] * 10, 2, id="half an image per class"),
        pytest.param(100, 5000, [4 + (c % 2) for c in range(100)], 4, id="CIFAR-100, IID"),
        pytest.param(50, 50, [6, 4], 2, id="one image per client"),
        pytest.param(50, 500, [305, 190, 190, 105, 100, 60, 30, 10, 8, 2], 3, id="a long tail"),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_classes_of_the_set_are_those_of_all_examples(clients, size, counts, tolerance, seed):
    given = {"num-clients": clients, "auxiliary-size": size, "seed": seed, "class-conditional": True}
    config = load_config(default_run_config() | given | {"num-classes": len(counts), "partition": "iid"})
    parts = counts_of(config, dict.fromkeys(range(clients), sum(counts)))
    found = sum(batches_of(config, k, part, counts)[0].bincount(minlength=len(counts)) for k, part in enumerate(parts))
    for number, count in zip(found.tolist(), counts, strict=True):
        assert abs(number - size * count / sum(counts)) <= tolerance


def test_a_model_without_classes_has_no_labels():
    config = load_config(default_run_config() | {"class-conditional": False})
    labels, batches = batches_of(config, 1, 7, [])
    assert labels is None
    assert sum(len(batch.seeds) for batch in batches) == 7
