import dataclasses
import re

import pytest

from fedddpm_app.apps.resuming import MAY_CHANGE
from fedddpm_app.config import ConfigError, is_due, known_keys, load_config, loading, purposes
from tests.conftest import ROOT


def test_the_defaults_are_complete_and_valid(run_config):
    assert set(known_keys()) == set(run_config)
    config = load_config(run_config)
    assert config.unet.block_out_channels == (8, 16)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.run.seed = 1


@pytest.mark.parametrize(
    ("key", "value", "fix"),
    [
        ("batch-size", -1, "greater than or equal to 0"),
        ("batch-size", 1.5, "valid integer"),
        ("batch-size", True, "valid integer"),
        ("batch-size", "8", "valid integer"),
        ("learning-rate", float("nan"), "finite"),
        ("learning-rate", 0.0, "greater than 0"),
        ("image-size", 7, "use image-size = 8"),
        ("image-size", 2, "use image-size = 4"),
        ("image-size", 100_000, "from 1 to 2048"),
        ("num-clients", 10**9, "less than or equal to 100000"),
        ("diffusion-steps", 10**9, "less than or equal to 100000"),
        ("unet-layers-per-block", 10**6, "less than or equal to 32"),
        ("prediction-type", "eps", "'epsilon', 'v_prediction' or 'sample'"),
        ("auxiliary-sampler", "euler", "'ddpm', 'ddim' or 'dpm-solver++'"),
        ("preview-sampler-steps", 51, "at most 50"),
        ("precision", "fp16", "'auto', 'fp32' or 'bf16'"),
        ("memory-format", "nhwc", "'auto', 'contiguous' or 'channels-last'"),
        ("compile", "yes", "'auto', 'on' or 'off'"),
        ("device", "gpu", "auto, cpu, mps, cuda or cuda:N"),
        ("unet-norm-groups", 3, "multiple of it"),
        ("unet-channels", "8,x", 'such as "16,32"'),
        ("unet-attention-resolutions", "all", 'such as "8,4", or empty'),
        ("unet-channels", "0,8", "multiple"),
        ("unet-attention-resolutions", "5", "8, 4 pixels"),
        ("local-epochs", 1, "exactly one"),
        ("local-steps", 0, "exactly one"),
        ("clients-per-round", 5, "at most 4"),
        ("run-name", "a/b", "plain folder name"),
        ("run-name", "..", "plain folder name"),
        ("warmup-steps", 3, "use warmup-steps = 0"),
        ("seed", -1, "greater than or equal to 0"),
        ("ema-decay", 1.0, "less than 1"),
        ("ema-warmup", -1.0, "greater than or equal to 0"),
    ],
)
def test_an_impossible_value_is_one_sentence_with_key_value_and_fix(run_config, key, value, fix):
    with pytest.raises(ConfigError) as raised:
        load_config(run_config | {key: value})
    sentence = str(raised.value)
    assert key in sentence
    assert str(value) in sentence
    assert fix in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("overrides", "fix"),
    [
        ({"preview-sampler": "ddim", "preview-sampler-steps": 49}, "use 25 or 50"),
        ({"partition": "pathological", "classes-per-client": 11}, "at most 10"),
        ({"beta-schedule": "linear", "beta-start": 0.5}, "below beta-end"),
        ({"unet-channels": "4,4", "unet-attention-resolutions": "8"}, "use more channels"),
        ({"unet-channels": "8,4", "unet-attention-resolutions": "8"}, "use more channels"),
        ({"unet-channels": "8,1000000"}, "use at most 100000 channels"),
    ],
)
def test_values_that_do_not_fit_together_are_refused_with_the_fix(run_config, overrides, fix):
    with pytest.raises(ConfigError, match=re.escape(fix)):
        load_config(run_config | overrides)


@pytest.mark.parametrize(
    "unused",
    [
        {"partition": "disjoint-classes", "num-classes": 2},
        {"beta-schedule": "squaredcos_cap_v2", "beta-start": 0.5},
        {"preview-sampler": "dpm-solver++", "preview-sampler-steps": 49},
    ],
    ids=str,
)
def test_a_key_that_is_not_used_blocks_nothing(run_config, unused):
    load_config(run_config | unused)


def test_an_unknown_key_names_the_nearest(run_config):
    with pytest.raises(ConfigError, match=re.escape("batchsize = 4: there is no such key; did you mean batch-size?")):
        load_config(run_config | {"batchsize": 4})


def test_a_missing_key_is_named(run_config):
    del run_config["seed"]
    with pytest.raises(ConfigError, match="seed is missing"):
        load_config(run_config)


def test_epochs_become_steps_that_cover_the_data(run_config):
    training = load_config(run_config | {"local-steps": 0, "local-epochs": 2, "batch-size": 32}).training
    assert training.steps_for(33) == 3  # 66 examples in batches of 32
    assert training.steps_for(32) == 2


@pytest.mark.parametrize(
    ("decay", "warmup", "expected"),
    [
        (0.5, 0.0, [1.0, 3.0, 10.0, 13.0]),  # d = 0, then 1/2: (1 + 5) / 2, (3 + 17) / 2 = 10, (10 + 16) / 2
        (0.9, 1.0, [1.0, 3.0, 23 / 3, 39 / 4]),  # d = 1/2, 2/3, 3/4: the plain mean
        (0.5, 3.0, [1.0, 4.0, 11.8, 13.9]),  # d = 1/4, 2/5, 1/2: (1 + 3 * 5) / 4, (2 * 4 + 3 * 17) / 5, then 1/2
        (0.0, 3.0, [1.0, 5.0, 17.0, 16.0]),
    ],
)
def test_an_average_uses_its_decay(run_config, decay, warmup, expected):
    """By hand, for the weights 1, 5, 17, 16."""
    training = load_config(run_config | {"ema-warmup": warmup}).training
    average, averages = float("nan"), []
    for update, weight in enumerate([1.0, 5.0, 17.0, 16.0], start=1):
        d = training.ema_decay_at(decay, update)
        average = weight if d == 0 else d * average + (1 - d) * weight
        averages.append(average)
    assert averages == pytest.approx(expected)


def test_is_due_every_so_many_rounds_and_at_the_end():
    assert [r for r in range(1, 8) if is_due(3, r, 7)] == [3, 6, 7]
    assert [r for r in range(1, 8) if is_due(0, r, 7)] == [7]


def test_the_groups_follow_the_headings_of_pyproject():
    """A heading has one file in ``config/``, whose groups hold its keys, all of them and no others."""
    section = (ROOT / "pyproject.toml").read_text().partition("[tool.flwr.app.config]")[2].partition("\n[tool.")[0]
    by_heading = {}
    for line in section.splitlines():
        if line.startswith("# --- "):
            keys = by_heading.setdefault(line.removeprefix("# --- "), set())
        elif "=" in line and not line.startswith("#"):
            keys.add(line.partition("=")[0].strip())
    by_file = {}
    for group in loading.GROUPS.values():
        by_file.setdefault(group.__module__, set()).update(loading.keys_of(group))
    assert sorted(map(sorted, by_heading.values())) == sorted(map(sorted, by_file.values()))


@pytest.mark.timeout(10)
@pytest.mark.parametrize(("steps", "fix"), [(1000, "use 40 or 50, or"), (99_991, "use 1 or 99991, or"), (100_000, "")])
def test_any_number_of_diffusion_steps_is_checked_at_once(run_config, steps, fix):
    given = {"diffusion-steps": steps, "preview-sampler-steps": 64 if steps == 1000 else 50}
    if not fix:
        load_config(run_config | given)
        return
    with pytest.raises(ConfigError, match=f"does not divide diffusion-steps = {steps}, as DDIM requires: {fix}"):
        load_config(run_config | given)


def test_purposes_are_of_keys_that_exist():
    """A name that ends in "-" stands for several keys."""
    groups = [value for name, value in vars(purposes).items() if name.isupper()]
    for name in [name for group in groups for name in group]:
        found = [key for key in known_keys() if key == name or (name.endswith("-") and key.startswith(name))]
        assert found, name
    assert len(groups) == 7


def test_a_key_that_changes_weights_may_not_change_on_a_resume():
    changing = ("seed", "learning-rate", "batch-size", "num-clients", "partition", "algorithm", "wire-dtype", "device")
    assert not [key for key in changing if key.startswith(MAY_CHANGE)]
