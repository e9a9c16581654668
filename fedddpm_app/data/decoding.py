"""Decode all pictures of a split in threads, and count those that cannot be read."""

import os
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from fedddpm_app import limits
from fedddpm_app.config import ConfigError, DataConfig, first_line
from fedddpm_app.data.pixels import fit, is_grey, peak_of_16_bits
from fedddpm_app.data.splits import Split
from fedddpm_app.progress import logger

_Image = tuple[np.ndarray, bool, int]  # pixels, whether the file is grey, the peak of its 16 bits
UNREADABLE = (  # the errors of Pillow's readers for damaged files
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    AttributeError,
    TypeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_LARGE = 2**24  # pixels; larger pictures are decoded one at a time, and a JPEG is reduced while it is decoded
_DRAFT = 4  # how many times larger than the result such a JPEG stays
_ONE_LARGE = threading.Lock()
_FEW_BITS = 14  # the most bits of cameras and scanners that store fewer than 16
_EXTRA_BAD = 100  # further bad images to find before decoding stops with an error
_SHOWN = 10  # bad images that the error names
_BLOCK = 64  # images per thread task
_MAX_THREADS = 8


@dataclass
class Decoded:
    """The result of decoding a split.

    Attributes
    ----------
    rows : list of int
        The rows whose images can be read; ``pixels[:len(rows)]`` are these images.
    bad : list of str
        The images that cannot be read, each with its name and the reason.
    num_grey : int
        How many of the images that can be read are grey; the others are colour images.
    peak : int
        The largest value of grey images of 16 bits; 0 without such images.
    """

    rows: list[int] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    num_grey: int = 0
    peak: int = 0


def decode(split: Split, config: DataConfig, pixels: np.ndarray, on_progress: Callable[[int], None]) -> Decoded:
    """Decode a split into ``pixels``, in the order of its rows.

    Parameters
    ----------
    split : Split
        N images.
    config : DataConfig
        Image size and channels; ``max_bad_images`` is the number of images that may be left out.
    pixels : np.ndarray
        uint8, shape (N, ``image_channels``, ``image_size``, ``image_size``); filled in place.
    on_progress : callable
        Called with the number of images processed so far.

    Raises
    ------
    ConfigError
        When more than ``max_bad_images`` images cannot be read. Decoding stops after a hundred more, so that the
        error can name several of them.
    """
    decoded = Decoded()
    for done, (row, image) in enumerate(_in_threads(split, config), start=1):
        if isinstance(image, BaseException):
            decoded.bad.append(f"{split.name_of(row)} ({first_line(image)})")
            if len(decoded.bad) > config.max_bad_images + _EXTRA_BAD:
                check_bad(decoded.bad, len(decoded.rows), config)
        else:
            pixels[len(decoded.rows)], grey, peak = image
            decoded.rows.append(row)
            decoded.num_grey += grey
            decoded.peak = max(decoded.peak, peak)
        on_progress(done)
    check_bad(decoded.bad, len(decoded.rows), config)
    _hint_at_few_bits(decoded, config)
    return decoded


def check_bad(bad: list[str], num_images: int, config: DataConfig) -> None:
    """Raise ``ConfigError`` if all images, or more than ``max_bad_images``, cannot be read; a site sends the counts."""
    if len(bad) > config.max_bad_images or not num_images:
        many = f"max-bad-images = {config.max_bad_images}, but {len(bad)} or more images of"
        fix = "Repair or remove them, or use a larger number to leave them out."
        raise ConfigError(
            f'{many} dataset = "{config.dataset}" cannot be read: {"; ".join(bad[:_SHOWN])}. {fix}',
            public=f"{many} this site cannot be read; its log names them. {fix}",
        )


def check_mixture(num_grey: int, num_images: int, config: DataConfig) -> None:
    """Raise ``ConfigError`` if a data set mixes grey and colour images and ``mixed_channels`` is ``error``."""
    if config.mixed_channels == "error" and 0 < num_grey < num_images:
        kind = "grey" if config.image_channels == 1 else "colour"
        raise ConfigError(
            f'mixed-channels = "error", and dataset = "{config.dataset}" holds {num_grey} grey and '
            f'{num_images - num_grey} colour images: use mixed-channels = "convert" to make all of them {kind} '
            f"(image-channels = {config.image_channels}), or leave one kind out."
        )


def _in_threads(split: Split, config: DataConfig) -> Iterator[tuple[int, _Image | BaseException]]:
    """Yield every row with its pixels and whether it is grey, or with the error of reading it.

    Threads work in parallel here, because PIL releases the GIL.
    """

    def block(rows: range) -> list[tuple[int, _Image | BaseException]]:
        return [(row, _read(split, row, config)) for row in rows]

    threads = min(_MAX_THREADS, os.cpu_count() or 1)
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as executor:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # pixels.py has a smaller limit
        for start in range(0, len(split), wave := _BLOCK * threads * 4):
            stop = min(start + wave, len(split))
            for done in executor.map(block, [range(k, min(k + _BLOCK, stop)) for k in range(start, stop, _BLOCK)]):
                yield from done


def _read(split: Split, row: int, config: DataConfig) -> _Image | BaseException:
    try:
        image = split.read(row)
        if image.width * image.height > limits.PIXELS:
            raise ValueError(
                f"it has {image.width} x {image.height} pixels, above the limit of {limits.PIXELS:,}: reduce it"
            )
        if image.width * image.height <= _LARGE:
            return _pixels(image, config)
        with _ONE_LARGE:
            if image.format == "JPEG":
                image.draft(None, (_DRAFT * config.image_size, _DRAFT * config.image_size))
            return _pixels(image, config)
    except Image.DecompressionBombError as error:  # its text has the number of pixels first
        stated = next(iter(re.findall(r"\d+", str(error))), "0")
        return ValueError(f"it has {int(stated):,} pixels, above the limit of {limits.PIXELS:,}: reduce it")
    except UNREADABLE as error:
        return error


def _pixels(image: Image.Image, config: DataConfig) -> _Image:
    grey = is_grey(image)
    return fit(image, config.image_size, config.image_channels), grey, peak_of_16_bits(image)


def _hint_at_few_bits(decoded: Decoded, config: DataConfig) -> None:
    """Warn if no picture of 16 bits uses the upper bits, as those of a 12-bit camera: they are nearly black."""
    bits = decoded.peak.bit_length()
    if 0 < bits <= _FEW_BITS:
        logger.warning(
            'dataset = "%s": its pictures of 16 bits use values up to %d only, as with %d bits, so they become dark: '
            "multiply their values by %d before use.",
            config.dataset,
            decoded.peak,
            bits,
            2 ** (16 - bits),
        )
