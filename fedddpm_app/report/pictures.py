"""The pictures of a run as parts of a page: read with limits, written anew, and small enough together."""

import base64
import io
from pathlib import Path

from PIL import Image

from fedddpm_app import limits
from fedddpm_app.report.blocks import Picture

_TOTAL_BYTES = 2_000_000  # of all pictures: base64 makes four thirds of it, and the library and values take the rest
_ONE_BYTES = 600_000
_LARGEST_SIDE = 1600  # pixels: of a tall strip, or of a screen


class Pictures:
    """Reads pictures of a folder as long as there is room for them.

    Parameters
    ----------
    folder : Path
        The run directory or comparison; a link that leads out of it is not read, as it may come from somewhere else.

    Attributes
    ----------
    left_out : list of str
        The names of the pictures that are not shown, with the reason.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._left = _TOTAL_BYTES
        self.left_out: list[str] = []

    def read(self, path: Path, title: str, alt: str, *, wide: bool = False) -> list[Picture]:
        """Return the picture in a PNG; nothing without the file, or if it is damaged or there is no room."""
        if not path.is_file():
            return []
        if not path.resolve().is_relative_to(self._folder):
            self.left_out.append(f"{path.name} is a link to another folder")
            return []
        try:
            data, kind, (width, height) = _encoded(path)
        except (OSError, ValueError, Image.DecompressionBombError, SyntaxError) as error:
            self.left_out.append(f"{path.name} cannot be read ({type(error).__name__})")
            return []
        if len(data) > self._left:
            self.left_out.append(f"{path.name} does not fit: open it in the run directory")
            return []
        self._left -= len(data)
        url = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
        return [Picture(title, alt, url, width, height, wide)]


def _encoded(path: Path) -> tuple[bytes, str, tuple[int, int]]:
    """Return the bytes of a picture, their format, and its size in pixels."""
    with Image.open(path, formats=["PNG"]) as opened:
        if opened.width * opened.height > limits.PIXELS:
            raise ValueError("it has too many pixels")
        picture = opened.convert("RGB")
    picture.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE), Image.Resampling.LANCZOS)
    data = _saved(picture, "PNG")
    if len(data) <= _ONE_BYTES // 4:
        return data, "png", picture.size
    for quality in (90, 75, 50):
        data = _saved(picture, "WEBP", quality=quality, method=4)
        if len(data) <= _ONE_BYTES:
            break
    return data, "webp", picture.size


def _saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()
