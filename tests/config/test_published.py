"""The files of conf/published: what their heads must say, the table of docs/published.md, and two steps of each."""

import math
import re
import tomllib

import pytest
import torch

from fedddpm_app.config import default_run_config, load_config
from fedddpm_app.diffusion.unet import create_unet
from tests.conftest import ROOT

FIELDS = ("Published", "By", "Model", "Different", "Time", "Run")
PUBLISHED = sorted((ROOT / "conf" / "published").glob("*.toml"))
LONGER = ("pdfed-cifar10", "feddiffuse-fashion")  # every client has a model of its own
SMALL = {
    "dataset": "digits",
    "image-size": 8,
    "image-channels": 1,
    "unet-channels": "8,16",
    "unet-layers-per-block": 1,
    "unet-norm-groups": 4,
    "unet-attention-resolutions": "4",
    "num-rounds": 1,
    "local-steps": 2,
    "local-epochs": 0,
    "batch-size": 8,
    "auxiliary-sampler": "dpm-solver++",
    "auxiliary-sampler-steps": 2,
    "pdfed-samples": 10,
    "eval-images": 0,
    "eval-final-images": 0,
    "eval-draws": 1,
    "preview-images": 10,
    "preview-sampler": "dpm-solver++",
    "preview-sampler-steps": 2,
}


def head_of(path):
    """The fields of the comment at the top of a file; a line that goes on is indented."""
    lines = path.read_text().splitlines()
    comment = [line.removeprefix("# ") for line in lines[: next(k for k, x in enumerate(lines) if x[:1] != "#")]]
    parts = re.split(r"\n(?! )", "\n".join(comment))
    return dict(" ".join(part.split()).split(": ", 1) for part in parts)


def row_of(path):
    """The row of a file in the table of the docs."""
    head = head_of(path)
    link = f"[`{path.name}`](../conf/published/{path.name})"
    return f"| {' | '.join([link, *(head[name] for name in FIELDS[:-1])])} |"


@pytest.fixture(params=PUBLISHED, ids=lambda path: path.stem)
def path(request):
    return request.param


def test_a_head_says_what_is_published_by_whom_and_what_it_takes(path):
    head = head_of(path)
    assert tuple(head) == FIELDS
    assert re.search(r"arXiv (id|\d{4}\.\d{4,5})", head["By"])
    assert "theirs" in head["Model"] or "demo" in head["Model"]
    assert "core" in head["Time"]
    assert head["Run"].startswith(f"fedddpm run -c conf/published/{path.name}")


def test_a_model_has_as_many_parameters_as_the_head_says(path):
    config = load_config(default_run_config(ROOT) | tomllib.loads(path.read_text()))
    with torch.device("meta"):
        model = create_unet(config.unet, config.data, seed=0)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert head_of(path)["Model"].startswith(f"{count:,} parameters")


def test_the_docs_have_the_heads_in_one_table():
    rows = [line for line in (ROOT / "docs" / "published.md").read_text().splitlines() if line.startswith("| [")]
    wanted = [row_of(path) for path in PUBLISHED]
    assert rows == wanted, "the rows of docs/published.md must be:\n" + "\n".join(wanted)


@pytest.mark.parametrize(
    "path",
    [pytest.param(each, id=each.stem, marks=[pytest.mark.slow] if each.stem in LONGER else []) for each in PUBLISHED],
)
def test_the_first_two_steps_of_each_run_at_a_tiny_size(path, shared_run):
    """With its own algorithm, optimiser, loss, schedules and partition."""
    settings = tomllib.loads(path.read_text())
    clients = min(5, settings["num-clients"])
    trained = min(2, clients) if settings.get("clients-per-round") else clients
    some = {"num-clients": clients, "clients-per-round": trained % clients}
    run = shared_run(**(settings | SMALL | some))
    (only,) = run.rounds()
    assert run.summary["status"] == "completed"
    assert math.isfinite(only["train/loss"])
    generated = only["compute/steps"] - 2 * trained
    assert generated == 0 or (settings["algorithm"] == "pdfed" and generated > 0)
