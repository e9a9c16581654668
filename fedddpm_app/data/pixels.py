"""From one picture of any size and mode to uint8 pixels of one shape.

Pillow's mode does not say how a file stores its values (a PGM of 12 bits has the mode of 32 bits, a grey PNG of 16 bits
with alpha has the mode of colour), so the bit depth, the colour and the transparent value are those of the file.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from fedddpm_app import limits

Image.MAX_IMAGE_PIXELS = limits.PIXELS // 2  # Pillow refuses twice as many, also of a picture in a picture
_RUN_BY_OTHERS = ("EPS", "WMF")
_GREY_MODES = ("1", "L", "LA", "La", "I", "F")  # and the 16-bit modes
_GREY_STEP = {"1": 255, "L;2": 85, "L;4": 17}  # a PNG of fewer than 8 bits: from its values to Pillow's
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # of TIFF


def fit(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """Turn a picture upright, crop its central square and resize it (bicubic, antialiased).

    Returns
    -------
    np.ndarray
        uint8, shape (``channels``, ``size``, ``size``); transparent pixels are blended with white. A picture that
        already has this size keeps its pixels.

    Raises
    ------
    ValueError
        When its grey values have an unknown range.
    """
    transparent = _transparent_value(image)
    upright = ImageOps.exif_transpose(image)
    if transparent is not None:
        upright.info["transparency"] = transparent
    opaque = _over_white(_to_8_bits(upright, image))
    if opaque.mode not in ("L", "RGB"):  # some modes convert to RGB only
        opaque = opaque.convert("L" if opaque.mode in _GREY_MODES else "RGB")
    mode = "L" if channels == 1 else "RGB"
    colours = opaque if opaque.mode == mode else opaque.convert(mode)
    fitted = ImageOps.fit(colours, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(fitted).reshape(size, size, channels).transpose(2, 0, 1)


def open_picture(source: Path | io.BytesIO) -> Image.Image:
    """Open a picture; its pixels are not read yet.

    Formats whose reader starts another program are refused, whatever the ending of the file is: the code in an EPS file
    is run by Ghostscript, and a WMF file is drawn by the system.
    """
    Image.init()
    if isinstance(source, Path) and not source.is_file() and source.exists():
        raise ValueError("it is a device or a pipe")
    return Image.open(source, formats=[name for name in Image.ID if name not in _RUN_BY_OTHERS])


def is_grey(image: Image.Image) -> bool:
    """Return whether a file that is not decoded yet stores grey values."""
    return image.mode in _GREY_MODES or image.mode.startswith("I;16") or _raw_mode(image).startswith("LA;")


def peak_of_16_bits(image: Image.Image) -> int:
    """Return the largest value of a grey picture whose file has 16 bits; 0 for any other picture."""
    if not image.mode.startswith("I;16") or _bits(image) != 16:
        return 0
    return int(np.asarray(image).max(initial=0))


def _raw_mode(image: Image.Image) -> str:
    """Return Pillow's name for the way in which a file stores pixels; empty once it is decoded."""
    tiles = getattr(image, "tile", None)
    args = tiles[0].args if tiles else ""
    return str(args[0] if isinstance(args, tuple) and args else args)


def _bits(image: Image.Image) -> int:
    """Return the bits of a 16-bit mode that the file uses: a TIFF can have 12."""
    return int(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))[0])


def _transparent_value(image: Image.Image) -> object:
    """Return a PNG's transparent value on Pillow's scale; None if there is none or Pillow has it right."""
    value, raw = image.info.get("transparency"), _raw_mode(image)
    if isinstance(value, int) and raw in _GREY_STEP and image.mode in ("1", "L"):
        return value * _GREY_STEP[raw]
    if isinstance(value, tuple) and raw == "RGB;16B":  # Pillow keeps the upper 8 bits of every value
        return tuple(part >> 8 for part in value)
    return None


def _to_8_bits(image: Image.Image, file: Image.Image) -> Image.Image:
    """Scale grey values of 12 and 16 bits to 8 bits, where Pillow would clip them."""
    if not image.mode.startswith("I"):
        if image.mode == "F":
            raise ValueError("its pixels are floats, whose range is unknown: store 8 or 16 bits")
        return image
    if image.mode == "I" and file.format != "PPM":  # Pillow scales a PGM of 9 to 16 bits to 0 to 65535
        raise ValueError("its pixels are signed or have 32 bits, so their range is unknown: store 8 or 16 bits")
    values, most = np.asarray(image).astype(np.uint32), 2 ** _bits(file) - 1  # 65535 * 255 needs 24 bits
    grey = values * 255
    grey += most // 2
    grey //= most
    if getattr(file, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey = 255 - grey
    layer = Image.fromarray(grey.astype(np.uint8))
    if isinstance(image.info.get("transparency"), int):
        layer.putalpha(Image.fromarray((values != image.info["transparency"]).astype(np.uint8) * 255))
    return layer


def _over_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
