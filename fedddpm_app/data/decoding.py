"""From pictures of any size and kind to uint8 pixels of one shape."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageOps

from fedddpm_app.config import ConfigError, DataConfig
from fedddpm_app.data.splits import Split

UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    AttributeError,
    NotImplementedError,
    Image.DecompressionBombError,
)
_GREY_MODES = ("1", "L", "LA", "La", "I", "F")  # and those of 16 bits
_MORE_BAD = 100  # images that are still looked at when it is known that there are too many bad ones
_SHOWN = 10  # of them named
_BLOCK = 64  # images per task of a thread
_MAX_THREADS = 8


@dataclass
class Decoded:
    """What decoding a split gave.

    Attributes
    ----------
    rows : list of int
        The rows that could be read; ``pixels[:len(rows)]`` are their images.
    bad : list of str
        What could not be read, each with its name and the reason.
    num_grey : int
        How many of those that could be read are grey; the rest is colour.
    """

    rows: list[int] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    num_grey: int = 0


def decode(split: Split, config: DataConfig, pixels: np.ndarray, on_progress: Callable[[int], None]) -> Decoded:
    """Decode a split into ``pixels``, in the order of its rows.

    Parameters
    ----------
    split : Split
        N images.
    config : DataConfig
        Size and channels; ``max_bad_images`` that may be left out.
    pixels : np.ndarray
        uint8, shape (N, ``image_channels``, ``image_size``, ``image_size``); written.
    on_progress : callable
        Called with the number of images done.

    Raises
    ------
    ConfigError
        When more than ``max_bad_images`` cannot be read; after a hundred more, so that many are known at once.
    """
    decoded = Decoded()
    for done, (row, image) in enumerate(_in_threads(split, config), start=1):
        if isinstance(image, BaseException):
            decoded.bad.append(f"{split.name_of(row)} ({image})")
            if len(decoded.bad) > config.max_bad_images + _MORE_BAD:
                check_bad(decoded.bad, len(decoded.rows), config)
        else:
            fitted, is_grey = image
            pixels[len(decoded.rows)] = fitted
            decoded.rows.append(row)
            decoded.num_grey += is_grey
        on_progress(done)
    check_bad(decoded.bad, len(decoded.rows), config)
    return decoded


def check_bad(bad: list[str], num_images: int, config: DataConfig) -> None:
    """Raise ``ConfigError`` where more images than ``max_bad_images``, or all, cannot be read."""
    if len(bad) > config.max_bad_images or not num_images:
        raise ConfigError(
            f'max-bad-images = {config.max_bad_images}, but of dataset = "{config.dataset}" {len(bad)} or more cannot '
            f"be read: {'; '.join(bad[:_SHOWN])}. Mend or remove them, or use a larger number: they are left out."
        )


def check_mixture(num_grey: int, num_images: int, config: DataConfig) -> None:
    """Raise ``ConfigError`` for grey and colour images in one data set where ``mixed_channels`` is ``error``."""
    if config.mixed_channels == "error" and 0 < num_grey < num_images:
        kind = "grey" if config.image_channels == 1 else "colour"
        raise ConfigError(
            f'mixed-channels = "error", and dataset = "{config.dataset}" holds {num_grey} grey and '
            f'{num_images - num_grey} colour images: use mixed-channels = "convert" to make all of them {kind} '
            f"(image-channels = {config.image_channels}), or leave one kind out."
        )


def fit(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """Turn a picture upright, crop its middle square, and resize it (bicubic, antialiased).

    Returns
    -------
    np.ndarray
        uint8, shape (``channels``, ``size``, ``size``); transparency over white. A picture of this size is not
        changed.
    """
    upright = _over_white(_to_8_bits(ImageOps.exif_transpose(image)))
    fitted = ImageOps.fit(upright.convert("L" if channels == 1 else "RGB"), (size, size), Image.Resampling.BICUBIC)
    return np.asarray(fitted).reshape(size, size, channels).transpose(2, 0, 1)


def _in_threads(split: Split, config: DataConfig) -> Iterator[tuple[int, tuple[np.ndarray, bool] | BaseException]]:
    """Yield every row with its pixels and whether it is grey, or with why it cannot be read; PIL frees the GIL."""

    def block(rows: range) -> list[tuple[int, tuple[np.ndarray, bool] | BaseException]]:
        return [(row, _read(split, row, config)) for row in rows]

    threads = min(_MAX_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as executor:
        for start in range(0, len(split), wave := _BLOCK * threads * 4):
            stop = min(start + wave, len(split))
            for done in executor.map(block, [range(k, min(k + _BLOCK, stop)) for k in range(start, stop, _BLOCK)]):
                yield from done


def _read(split: Split, row: int, config: DataConfig) -> tuple[np.ndarray, bool] | BaseException:
    try:
        image = split.read(row)
        return fit(image, config.image_size, config.image_channels), _is_grey(image)
    except UNREADABLE as error:
        return error


def _is_grey(image: Image.Image) -> bool:
    return image.mode in _GREY_MODES or image.mode.startswith("I;16")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits, which PIL would clip."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"{image.mode} pixels of 32 bits, whose range is not known: store 8 or 16 bits")
    return image


def _over_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
