"""The pictures of a run: plots, sheets and the strip over the rounds, also of extreme runs."""

import json
import math
from contextlib import contextmanager

import pytest
import torch
from PIL import Image

from fedddpm_app.apportion import spread_out
from fedddpm_app.diffusion.images import ImageTensors
from fedddpm_app.recording import curves, plots, samples, sheets, style
from fedddpm_app.recording.curves import plot_losses, plot_metrics
from fedddpm_app.recording.layout import round_sheet
from fedddpm_app.recording.plots import plot_classes, plot_partition
from fedddpm_app.recording.samples import (
    MAX_ROUNDS,
    names_of,
    save_auxiliary_sheets,
    save_rounds,
    save_samples,
)
from fedddpm_app.recording.sheets import Texts, read_tiles, save_pairs, save_sheet, shortened
from fedddpm_app.recording.style import class_labels, printable

# A test before may have left a file open; the garbage collector closes it, perhaps during a test of this file.
pytestmark = pytest.mark.filterwarnings("error", "ignore::ResourceWarning")

ODD_NAMES = ["$x_1$", "a_b", "猫", "", "line\nbreak", "$$", "\\$y^{", "\x00", "long " * 20]


def images(count, channels=1, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)


def metric(**changes):
    about = {"n": 8, "weights": "ema", "sampler": "ddim", "steps": 50, "reference": "test", "better": "lower"}
    return about | {"name": "class-tv", "value": 0.1, "floor": 0.05, "floor_std": None} | changes


def opened(path):
    with Image.open(path) as picture:
        picture.load()
    return picture


def inside(tile):
    """The image of a tile, without its frame, as a grey tensor."""
    pixels = torch.frombuffer(bytearray(tile.convert("L").tobytes()), dtype=torch.uint8)
    return pixels.reshape(tile.height, tile.width)[1:-1, 1:-1]


@pytest.fixture
def figures(monkeypatch):
    """The figures that plots draw."""
    kept = []

    @contextmanager
    def keeping(*arguments):
        with style.open_figure(*arguments) as figure:
            kept.append(figure)
            yield figure

    for module in (curves, plots):
        monkeypatch.setattr(module, "open_figure", keeping)
    return kept


@pytest.fixture
def texts(monkeypatch):
    """The texts of the sheets that are saved, and their numbers of images."""
    kept = []
    monkeypatch.setattr(samples, "save_sheet", lambda images, path, columns, texts: kept.append((texts, len(images))))
    return kept


def rounds(*losses, key="eval/loss"):
    return [{"round": k, key: loss} for k, loss in enumerate(losses)]


@pytest.mark.parametrize(
    "stats",
    [
        rounds(1.2, 0.3, 0.25, 0.24),
        rounds(0.2, 0.101, 0.1, 0.099),
        rounds(1.2, *(0.05 + 0.5 / k for k in range(1, 500))),
        rounds(1.0, *(10.0**-k for k in range(1, 6))),
        [*rounds(1.0), *rounds(math.nan, 0.3, 0.29, 0.1, key="train/loss")[1:]],
    ],
    ids=["usual", "hardly changes", "500 rounds", "orders of magnitude", "only round 0 of the test split"],
)
def test_the_loss_of_round_0_does_not_flatten_the_later_ones(tmp_path, figures, stats):
    plot_losses(stats, tmp_path / "losses.png")
    axes = figures[0].axes[0]
    place = math.log if axes.get_yscale() == "log" else float
    later = [place(row[key]) for row in stats if row["round"] for key in row if key != "round"]
    low, high = map(place, axes.get_ylim())
    assert max(later) - min(later) > 0.3 * (high - low)
    assert low < min(later) < max(later) < high
    assert ("above the plot" in axes.get_title("left")) == (high < place(stats[0]["eval/loss"]))


def test_a_single_later_round_is_shown_beside_round_0(tmp_path, figures):
    for losses in ((1.2,), (1.2, 0.3)):
        plot_losses(rounds(*losses), tmp_path / "losses.png")
        assert figures[-1].axes[0].get_ylim()[1] > 1.2
    assert [f.axes[0].get_title("left") for f in figures] == ["no losses after round 0", ""]


def test_the_curves_of_losses_differ_in_a_print_in_grey(tmp_path, figures):
    keys = ("train/loss", "client-eval/loss", "correct/loss", "eval/loss", "eval/ema_loss")
    plot_losses([dict.fromkeys(keys, 1 / k) | {"round": k} for k in range(1, 200)], tmp_path / "losses.png")
    lines = figures[0].axes[0].lines
    assert len({(line.get_linestyle(), line.get_linewidth(), line.get_marker()) for line in lines}) == len(keys)
    assert all(len(line.get_xdata()[:: line.get_markevery()]) <= 20 for line in lines)


def test_a_colour_of_a_run_has_one_meaning():
    meanings = (style.CLIENTS, style.SERVER, style.TEST, style.OTHERS, style.GENERATED, style.REAL, style.FLOOR)
    assert len({*meanings, style.WARNING}) == 8
    assert len(set(style.SERIES)) == len(style.SERIES)


@pytest.mark.parametrize("classes", [10, 100, 1000])
def test_every_class_is_on_its_axis_or_the_axis_says_which_are_named(tmp_path, figures, classes):
    names = [f"a rather long name of the class {k}" for k in range(classes)]
    plot_partition(torch.ones(3, classes).long(), names, tmp_path / "partition.png")
    axes = figures[0].axes[0]
    step = 1 if classes < 1000 else round(classes / len(axes.get_xticks()))
    assert list(axes.get_xticks()) == list(range(0, classes, step))
    assert axes.get_xlabel() == ("class" if step == 1 else f"class ({step} columns per name)")


def test_every_class_is_on_the_axis_of_the_generated_classes(tmp_path, figures):
    plot_classes(metric(class_counts={"generated": [1] * 30, "real": [2] * 30}), ODD_NAMES, tmp_path / "classes.png")
    assert len(figures[0].axes[0].get_yticklabels()) == 30


def test_a_sheet_says_its_classes_or_that_there_are_none(tmp_path, texts):
    save_samples(images(4), tmp_path / "s.png", "about", None, [])
    save_samples(images(4), tmp_path / "s.png", "about", torch.tensor([0, 0, 1, 1]), ["cat"])
    (plain, _), (classes, _) = texts
    assert plain.title == "about, 4 images of 8x8 pixels; the model has no classes."
    assert (classes.title, classes.rows) == ("about, 4 images of 8x8 pixels; 2 of each class.", ["cat", "class 1"])


def test_a_sheet_of_the_auxiliary_set_names_its_client_and_has_a_row_per_class(tmp_path, texts):
    labels = torch.tensor([1, 0, 1, 2, *[0] * 30])
    data, clients = ImageTensors(images(34), labels), [3] * 3 + [5] * 31
    save_auxiliary_sheets(data, clients, tmp_path, "run", ["cat", "dog"])
    (third, count), (fifth, _) = texts
    assert "3 images of 8x8 pixels from the pretrained model of client 3, by class" in third.title
    assert (third.rows, count) == (["cat (1)", "dog (2)"], 20)
    assert third.empty == frozenset(range(20)) - {0, 10, 11}
    assert fifth.rows == ["cat (30)", "class 2 (1)"]
    many = torch.arange(34)
    save_auxiliary_sheets(ImageTensors(images(34), many), [0] * 34, tmp_path, "run", [])
    assert texts[2][0].rows[0] == "class 0 to class 9"


def test_a_title_is_above_the_tiles_and_a_text_fits_its_tile(tmp_path):
    save_sheet(images(2), tmp_path / "s.png", 2, Texts("title", empty=frozenset([1])))
    assert json.loads(opened(tmp_path / "s.png").info["grid"])["row_tops"][0] > 20
    assert read_tiles(tmp_path / "s.png")[1].getcolors() == [(66 * 66, (255, 255, 255))]
    assert shortened("cat", 64) == "cat"
    assert shortened("automobile", 64).startswith("a")
    assert sheets._width(shortened("automobile", 64)) <= 64


def test_the_strip_over_the_rounds_names_the_class_of_each_column(tmp_path):
    labels = torch.arange(3).repeat_interleave(4)
    heights = []
    for classes in ([], names_of(labels, ["cat"])):
        for server_round in (1, 2):
            save_sheet(images(12), round_sheet(tmp_path, server_round))
        save_rounds(tmp_path, "run", "", classes)
        heights.append(opened(tmp_path / "rounds.png").height)
    assert heights[1] == heights[0] + 20


def test_any_class_name_has_a_label_of_its_own():
    labels = class_labels(["猫", "", "$a_b$", "x" * 99 + "1", "x" * 99 + "2", "x\ny"], 7)
    assert labels[1:3] == ["#1", "$a_b$"]
    assert labels[5:] == ["x y", "6"]
    assert len(set(labels)) == 7
    assert max(map(len, labels)) <= 28
    assert printable("\U0001f9ff" * 3 + "\ue000") is None


@pytest.mark.parametrize("counts", [torch.zeros(1, 1), torch.arange(9).tile(2, 1), torch.ones(30, 20)])
def test_any_partition_is_plotted_alike_twice_and_without_warnings(tmp_path, counts):
    paths = [tmp_path / name for name in ("1.png", "2.png")]
    for path in paths:
        plot_partition(counts.long(), ODD_NAMES, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("classes", [1, 9])
def test_the_classes_are_plotted_by_any_name(tmp_path, classes):
    counts = {"generated": [5, *[0] * (classes - 1)], "real": [0] * classes}
    plot_classes(metric(class_counts=counts, value=None), ODD_NAMES, tmp_path / "classes.png")
    assert opened(tmp_path / "classes.png").width > 500


def test_curves_of_no_one_and_many_rounds_with_nan(tmp_path):
    many = [{"round": k, "eval/loss": 1 / k, "eval/metrics": [metric(value=None, floor=math.nan)]} for k in (1, 2, 3)]
    lost = {"round": 4, "eval/loss": math.nan, "eval/ema_loss": None, "correct/loss": 0.1, "correct/steps": 3}
    huge = {"round": 5, "eval/loss": 1e308, "train/loss": -1e308}
    for rows in ([], [lost], many[:1], [huge], [{"round": 0, "eval/loss": 9.0}, *many, lost]):
        plot_losses(rows, tmp_path / "losses.png", "a_$run$")
        assert opened(tmp_path / "losses.png").width > 500
    plot_metrics([lost], tmp_path / "metrics.png")
    assert not (tmp_path / "metrics.png").exists()
    plot_metrics(many, tmp_path / "metrics.png")
    assert opened(tmp_path / "metrics.png").width > 500


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 28), (3, 96)])
def test_the_tiles_of_a_sheet_are_its_images_whatever_texts_surround_them(tmp_path, channels, size):
    sheet = images(5, channels, size)
    for name, texts in (("plain", None), ("texts", Texts("caption " * 30, ["a", "b"], ["", "1"], frozenset()))):
        path = tmp_path / f"{name}.png"
        save_sheet(sheet, path, 3, texts)
        tiles = read_tiles(path)
        assert len(tiles) == 5
        for tile, image in zip(tiles, sheet, strict=True):
            scale = (tile.width - 2) // size
            shown = torch.frombuffer(bytearray(tile.tobytes()), dtype=torch.uint8).reshape(*tile.size, 3)
            assert torch.equal(shown[1:-1:scale, 1:-1:scale].permute(2, 0, 1), image.expand(3, -1, -1))
    Image.new("L", (9, 9)).save(tmp_path / "other.png")
    with pytest.raises(ValueError, match=r"other.png is not a sheet"):
        read_tiles(tmp_path / "other.png")


@pytest.mark.parametrize(("classes", "each", "columns"), [(10, 4, 4), (100, 1, 10), (30, 20, 20), (1, 3, 3)])
def test_rows_are_classes_and_many_classes_share_rows(tmp_path, classes, each, columns):
    labels = torch.arange(classes).repeat_interleave(each)
    save_samples(images(len(labels)), tmp_path / "s.png", "about", labels, ODD_NAMES)
    assert f'"columns": {columns},' in opened(tmp_path / "s.png").info["grid"]


def test_only_pairs_below_the_threshold_are_marked_and_copies_always(tmp_path):
    ratios = torch.tensor([0.0, 0.2, 0.4])
    for threshold, marked in ((0.0, 1), (0.3, 2)):
        save_pairs(images(3), images(3, seed=1), ratios, threshold, tmp_path / "pairs.png")
        frames = [tile.getpixel((0, 0)) for tile in read_tiles(tmp_path / "pairs.png")]
        assert frames == [*[(192, 0, 0)] * marked, *[(64, 64, 64)] * (3 - marked)] * 2


def test_the_strip_shows_every_round_until_there_are_many(tmp_path):
    for server_round in range(1, MAX_ROUNDS + 8):
        save_sheet(images(12, seed=server_round), round_sheet(tmp_path, server_round))
    save_sheet(images(12), round_sheet(tmp_path, 1, "client-0000"))
    save_rounds(tmp_path, "run")
    tiles = read_tiles(tmp_path / "rounds.png")
    assert len(tiles) == 10 * MAX_ROUNDS
    last = read_tiles(round_sheet(tmp_path, MAX_ROUNDS + 7))
    assert torch.equal(inside(tiles[-10]), inside(last[0]))
    save_rounds(tmp_path, "run", "client-0000")  # one round is not a strip
    assert not (tmp_path / "rounds-client-0000.png").exists()


@pytest.mark.parametrize(("count", "most"), [(1, 12), (12, 12), (13, 12), (1000, 12)])
def test_the_first_and_the_last_of_many_are_shown(count, most):
    shown = spread_out(count, most)
    assert (shown[0], shown[-1], len(set(shown))) == (0, count - 1, min(count, most))
