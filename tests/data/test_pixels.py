"""One picture: the values of its file, turned to uint8 pixels; and what it may cost."""

import gzip
import io
import os
import struct
import tracemalloc

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fedddpm_app.data import decoding
from fedddpm_app.data.decoding import Decoded, decode
from fedddpm_app.data.idx import read_idx
from fedddpm_app.data.pixels import fit, is_grey, peak_of_16_bits
from fedddpm_app.data.splits import Split
from tests.data.conftest import noise, picture, png

EXAMPLES = settings(max_examples=int(os.environ.get("TABLE_EXAMPLES", "25")), deadline=None)
VALUES = np.arange(64, dtype=np.uint16).reshape(8, 8)
DEEP = VALUES * 1040  # 0 to 65520
GREY = np.rint(DEEP / 257)


def opened(image, kind, **options):
    """A picture as its file gives it."""
    content = io.BytesIO()
    image.save(content, kind, **options)
    return Image.open(io.BytesIO(content.getvalue()))


def pgm(values, most):
    return Image.open(io.BytesIO(b"P5\n8 8\n%d\n" % most + values.astype(">u2").tobytes()))


def rows(count):
    """A table without the images, as a split has it."""
    return Dataset.from_dict({"row": np.arange(count)})


def split_of(images):
    """A split of pictures that are already open."""
    return Split(rows(len(images)), images.__getitem__, str)


def test_a_picture_of_the_right_size_is_not_changed():
    pixels = noise(1, (8, 8))[0]
    assert np.array_equal(fit(Image.fromarray(pixels), 8, 1)[0], pixels)
    rgb = noise(1, (8, 8, 3))[0]
    assert np.array_equal(fit(Image.fromarray(rgb), 8, 3), rgb.transpose(2, 0, 1))


def test_the_middle_square_is_kept():
    wide = np.zeros((4, 8), np.uint8)
    wide[:, 2:6] = 200
    assert (fit(Image.fromarray(wide), 4, 1) == 200).all()


def test_sixteen_bit_images_are_scaled_not_clipped():
    values = np.array([[0, 257], [25700, 65535]], dtype=np.uint16).repeat(4, 0).repeat(4, 1)
    assert fit(Image.fromarray(values), 8, 1)[0, ::7, ::7].tolist() == [[0, 1], [100, 255]]


def test_transparency_lies_over_white_and_exif_turns_pictures_upright(tmp_path):
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert (fit(clear, 4, 3) == 255).all()
    lying = Image.fromarray(np.array([[10, 200], [10, 200]], np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    lying.save(tmp_path / "a.png", exif=exif)
    assert fit(Image.open(tmp_path / "a.png"), 2, 1)[0].tolist() == [[200, 10], [200, 10]]


@pytest.mark.parametrize(
    ("image", "brightest"),
    [
        pytest.param(opened(Image.fromarray(DEEP), "PNG"), 65520 / 257, id="png"),
        pytest.param(opened(Image.fromarray(DEEP), "TIFF"), 65520 / 257, id="tiff"),
        pytest.param(
            opened(Image.frombytes("I;16B", (8, 8), DEEP.astype(">u2").tobytes()), "TIFF"), 65520 / 257, id="big-endian"
        ),
        pytest.param(pgm(DEEP, 65535), 65520 / 257, id="pgm-16"),
        pytest.param(pgm(VALUES * 65, 4095), 255, id="pgm-12"),
        pytest.param(pgm(VALUES * 16, 1008), 255, id="pgm-10"),
    ],
)
def test_grey_values_have_the_bit_depth_of_the_file(image, brightest):
    assert is_grey(image)
    assert np.abs(fit(image, 8, 1)[0] - VALUES / 63 * brightest).max() <= 0.51


@pytest.mark.parametrize(("photometric", "expected"), [(1, [[0, 128], [255, 255]]), (0, [[255, 127], [0, 0]])])
@pytest.mark.parametrize("bits", [12, 16])
def test_a_tiff_gives_its_bits_and_whether_zero_is_white(bits, photometric, expected):
    rows = {12: bytes([0x00, 0x08, 0x00, 0xFF, 0xFF, 0xFF]), 16: struct.pack("<4H", 0, 0x8080, 0xFFFF, 0xFFFF)}[bits]
    tags = {256: 2, 257: 2, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 2, 279: len(rows)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    content = b"II*\0" + struct.pack("<I", 8 + len(rows)) + rows + struct.pack("<H", len(tags)) + entries + bytes(4)
    if (bits, photometric) == (12, 0):  # Pillow does not read it
        with pytest.raises(OSError, match="cannot identify"):
            Image.open(io.BytesIO(content))
        return
    image = Image.open(io.BytesIO(content))
    assert fit(image, 2, 1)[0].tolist() == expected
    assert (peak_of_16_bits(image) == 0) is (bits == 12)


@pytest.mark.parametrize(("bits", "value"), [(1, 1), (2, 2), (4, 5), (8, 77), (16, 5200)])
def test_the_transparent_grey_of_a_png_has_its_bit_depth(bits, value):
    row = {1: b"\x40", 2: b"\x20", 4: b"\x05", 8: b"\x00\x4d", 16: b"\x00\x00\x14\x50"}[bits]  # black, then value
    file = png(2, 2, bits, 0, (b"\0" + row) * 2, (b"tRNS", struct.pack(">H", value)))
    assert fit(Image.open(file), 2, 1)[0].tolist() == [[0, 255], [0, 255]]


def test_the_transparent_colour_of_a_png_of_16_bits_is_found():
    row = struct.pack(">6H", 0, 0, 0, 5200, 0, 300)
    file = png(2, 2, 16, 2, (b"\0" + row) * 2, (b"tRNS", struct.pack(">3H", 5200, 0, 300)))
    assert fit(Image.open(file), 2, 3)[:, 0].T.tolist() == [[0, 0, 0], [255, 255, 255]]


def test_a_grey_png_of_16_bits_with_alpha_is_grey():
    file = png(2, 2, 16, 4, (b"\0" + struct.pack(">4H", 0, 65535, 65535, 0)) * 2)
    assert is_grey(Image.open(file))
    assert fit(Image.open(file), 2, 1)[0].tolist() == [[0, 255], [0, 255]]


@pytest.mark.parametrize(("mode", "colour"), [("LAB", (128, 128, 128)), ("CMYK", (0, 0, 0, 136)), ("HSV", (0, 0, 119))])
@pytest.mark.parametrize("channels", [1, 3])
def test_other_colour_spaces_are_converted(mode, colour, channels):
    assert np.abs(fit(Image.new(mode, (8, 8), colour), 8, channels).astype(int) - 119).max() <= 1
    assert not is_grey(opened(Image.new(mode, (8, 8), colour), "TIFF") if mode != "HSV" else Image.new(mode, (8, 8)))


@pytest.mark.parametrize(
    ("pixels", "says"), [(np.ones((4, 4), np.int32), "signed or have 32 bits"), (np.ones((4, 4), np.float32), "floats")]
)
def test_values_of_unknown_range_are_refused(pixels, says):
    with pytest.raises(ValueError, match=says):
        fit(opened(Image.fromarray(pixels), "TIFF"), 4, 1)


def decoded(images, data_config, **changes):
    config = data_config(image_size=4, **changes)
    return decode(split_of(images), config, np.zeros((len(images), *config.image_shape), np.uint8), lambda _: None)


@pytest.mark.parametrize(("step", "hint"), [(65, "values up to 4095 only, as with 12 bits"), (1040, None)])
def test_twelve_bits_in_a_file_of_sixteen_get_a_hint(data_config, caplog, step, hint):
    decoded([opened(Image.fromarray(VALUES * step), "PNG")] * 2, data_config)
    assert "multiply their values by 16" in caplog.text if hint else not caplog.text
    assert (hint or "") in caplog.text


@pytest.mark.parametrize(
    ("side", "says"),
    [(8193, "it has 67,125,249 pixels, above the limit of 67,108,864"), (2**31 - 1, "pixels, above the limit of")],
)
def test_a_picture_that_announces_too_many_pixels_is_bad_and_not_decoded(data_config, side, says):
    files = [io.BytesIO(), png(side, side, 8, 0, b"")]
    picture(np.random.default_rng(0)).save(files[0], "PNG")
    split = Split(rows(2), lambda row: Image.open(files[row]), str)
    config = data_config(image_size=4, max_bad_images=1)
    tracemalloc.start()
    result = decode(split, config, np.zeros((2, *config.image_shape), np.uint8), lambda _: None)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    assert (result.rows, len(result.bad)) == ([0], 1)
    assert says in result.bad[0]


def test_a_large_jpeg_is_reduced_while_it_is_decoded(data_config, monkeypatch):
    monkeypatch.setattr(decoding, "_LARGE", 1000)
    image = opened(Image.new("RGB", (160, 128), (200, 200, 200)), "JPEG")
    assert decoded([image], data_config) == Decoded(rows=[0])
    assert image.size == (20, 16)


@pytest.mark.filterwarnings("ignore")  # Pillow's, of damaged tags
@EXAMPLES
@given(
    kind=st.sampled_from(["PNG", "TIFF", "GIF", "BMP", "PPM", "JPEG", "WEBP", "TGA"]),
    changes=st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=4),
    cut=st.integers(0, 30),
)
def test_a_damaged_picture_is_a_bad_picture(kind, changes, cut):
    content = io.BytesIO()
    picture(np.random.default_rng(0)).save(content, kind)
    damaged = bytearray(content.getvalue())
    for where, value in changes:
        damaged[where % len(damaged)] = value
    split = Split(rows(1), lambda _: Image.open(io.BytesIO(damaged[: len(damaged) - cut])), str)
    config = type("Config", (), {"image_size": 4, "image_channels": 3})
    found = decoding._read(split, 0, config)
    assert isinstance(found, Exception) or found[0].shape == (3, 4, 4)


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((2**32 - 1, 65535, 65535), "an image has 1 to"),
        ((2**32 - 1, 28, 28), "does not hold"),
        ((2**32 - 1,), "does not hold"),
        ((2**32 - 1, 0, 28), "an image has 1 to"),
        ((10, 20000, 20000), "an image has 1 to"),
        ((1,) * 200, "claims 200 dimensions"),
        ((), "claims 0 dimensions"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_memory_is_taken_for_what_a_file_holds_not_for_what_it_claims(tmp_path, shape, says, suffix):
    content = struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape) + bytes(200)
    path = tmp_path / f"train-images-idx3-ubyte{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    tracemalloc.start()
    with pytest.raises(ValueError, match=says):
        read_idx(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@EXAMPLES
@given(
    header=st.one_of(
        st.binary(max_size=24),
        st.builds(
            lambda sizes, rest: struct.pack(f">BBBB{len(sizes)}I", 0, 0, 8, len(sizes), *sizes) + rest,
            st.lists(st.one_of(st.integers(0, 5), st.integers(0, 2**32 - 1)), max_size=6),
            st.binary(max_size=60),
        ),
    ),
    packed=st.booleans(),
)
def test_no_idx_header_raises_anything_but_a_value_error(tmp_path_factory, header, packed):
    path = tmp_path_factory.getbasetemp() / f"fuzz-{os.getpid()}{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(header) if packed else header)
    try:
        found = read_idx(path)
    except ValueError:
        return
    assert found.tobytes() == header[4 + 4 * header[3] :]
