"""Decode pictures of any size and mode to uint8 pixels of one shape."""

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
_GREY_MODES = ("1", "L", "LA", "La", "I", "F")  # and the 16-bit modes
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
            decoded.bad.append(f"{split.name_of(row)} ({image})")
            if len(decoded.bad) > config.max_bad_images + _EXTRA_BAD:
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
    """Raise ``ConfigError`` if all images, or more than ``max_bad_images``, cannot be read."""
    if len(bad) > config.max_bad_images or not num_images:
        raise ConfigError(
            f"max-bad-images = {config.max_bad_images}, but {len(bad)} or more images of dataset = "
            f'"{config.dataset}" cannot be read: {"; ".join(bad[:_SHOWN])}. Repair or remove them, or use a larger '
            "number to leave them out."
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


def fit(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """Turn a picture upright, crop its central square and resize it (bicubic, antialiased).

    Returns
    -------
    np.ndarray
        uint8, shape (``channels``, ``size``, ``size``); transparent pixels are blended with white. A picture that
        already has this size keeps its pixels.
    """
    upright = _over_white(_to_8_bits(ImageOps.exif_transpose(image)))
    fitted = ImageOps.fit(upright.convert("L" if channels == 1 else "RGB"), (size, size), Image.Resampling.BICUBIC)
    return np.asarray(fitted).reshape(size, size, channels).transpose(2, 0, 1)


def _in_threads(split: Split, config: DataConfig) -> Iterator[tuple[int, tuple[np.ndarray, bool] | BaseException]]:
    """Yield every row with its pixels and whether it is grey, or with the error of reading it.

    Threads work in parallel here, because PIL releases the GIL.
    """

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
        return fit(image, config.image_size, config.image_channels), is_grey(image)
    except UNREADABLE as error:
        return error


def is_grey(image: Image.Image) -> bool:
    """Return whether a picture is grey; its mode gives the answer, without decoding."""
    return image.mode in _GREY_MODES or image.mode.startswith("I;16")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey values to 8 bits; PIL would clip them."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"{image.mode} pixels have 32 bits and an unknown range: store 8 or 16 bits")
    return image


def _over_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
