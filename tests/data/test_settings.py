"""Settings that are read off the data, and defaults that do not fit them."""

import shlex
import tomllib

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fedddpm_app.cli import app
from fedddpm_app.config import ConfigError, default_run_config, load_config
from fedddpm_app.data.settings import AUTO_KEYS, DEMO, given_keys, leave_auto, misfit, read_auto
from tests.conftest import ROOT
from tests.data.conftest import png


@pytest.fixture
def pictures(tmp_path):
    """Write pictures of one size, and return the value of the key `dataset`."""

    def write(count, width, height, channels, classes=("",)):
        shape = (height, width) if channels == 1 else (height, width, channels)
        pixels = np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)
        for k, each in enumerate(pixels):
            folder = tmp_path / "pictures" / classes[k % len(classes)]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(each).save(folder / f"{k:03}.png")
        return f"path:{tmp_path / 'pictures'}"

    return write


def sentence(overrides):
    values = default_run_config() | overrides
    return misfit(load_config(values), given_keys(values, overrides))


def test_the_demos_values_are_the_defaults():
    assert {key: default_run_config()[key] for key in DEMO} == DEMO


@pytest.mark.parametrize(
    ("count", "width", "height", "channels", "classes", "levels", "expected"),
    [
        (20, 40, 30, 3, ("",), "16,32", (3, 32, 1)),
        (20, 28, 28, 1, ("a", "b"), "16,32", (1, 28, 2)),
        (20, 28, 28, 1, ("a", "b"), "16,32,32,32", (1, 32, 2)),  # 28 cannot be halved three times
        (20, 5, 5, 1, ("",), "16,32", (1, 8, 1)),
        (10, 300, 200, 3, ("a", "b", "c"), "16,32", (3, 64, 3)),
        (20, 24, 90, 3, ("",), "16,32", (3, 32, 1)),
    ],
)
def test_auto_is_read_off_the_data(pictures, count, width, height, channels, classes, levels, expected):
    values = default_run_config() | {"dataset": pictures(count, width, height, channels, classes)}
    values |= {"unet-channels": levels} | dict.fromkeys(AUTO_KEYS, "auto")
    numbers = read_auto(values)
    assert tuple(numbers[key] for key in AUTO_KEYS) == expected
    load_config(values | numbers)


def test_photographs_are_not_trained_as_grey_digits(pictures):
    name = pictures(200, 40, 30, 3)
    found = sentence({"dataset": name})
    assert '200 of 200 pictures are colour, median 40x30: use image-channels=3 image-size=32 partition="iid"' in found
    assert "image-channels=3" not in sentence({"dataset": name, "image-size": 8, "image-channels": 1})
    assert not sentence({"dataset": name, "image-size": 8, "image-channels": 1, "partition": "iid"})


def test_a_picture_that_announces_too_many_pixels_is_left_to_decoding(pictures, tmp_path):
    name = pictures(20, 40, 30, 3)
    for side in (10_000, 30_000):  # above Pillow's limits for a warning and for an error
        (tmp_path / "pictures" / f"{side}.png").write_bytes(png(side, side, 1, 0, b"").getvalue())
    assert read_auto(default_run_config() | {"dataset": name, "image-size": "auto"}) == {"image-size": 32}


def test_fitting_data_and_the_demo_are_silent(pictures):
    assert not sentence({})
    assert not sentence({"dataset": pictures(100, 8, 8, 1, tuple("0123456789"))})


def test_too_few_images_name_a_number_that_works(pictures):
    found = sentence({"dataset": pictures(30, 8, 8, 1)})
    assert 'use partition="iid" num-clients=2' in found


def test_no_host_of_a_deployment_can_read_numbers_off_all_sites(tmp_path):
    values = default_run_config() | {"partition": "sites", "dataset": "path:/nowhere", "image-size": "auto"}
    for call in (read_auto, lambda values: read_auto(values, str(tmp_path)), leave_auto):
        with pytest.raises(ConfigError, match='image-size = "auto" with partition = "sites"'):
            call(values)


def test_inspect_needs_only_the_data_and_prints_a_command_that_fits(pictures, cache_dir, tmp_path):
    config = f'dataset="{pictures(60, 40, 30, 3)}" cache-dir="{cache_dir}"'
    out = ["--out", str(tmp_path / "partition.png")]
    result = CliRunner().invoke(app, ["data", "inspect", "--app", str(ROOT), "-c", config, *out])
    assert result.exit_code == 0, result.output
    words = shlex.split(result.output.splitlines()[-1])
    assert words[:2] == ["fedddpm", "run"]
    given = tomllib.loads(words[-1].replace(" ", "\n"))
    assert given["image-size"] == 32
    assert not sentence(given)
