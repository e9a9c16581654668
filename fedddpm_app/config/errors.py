"""The error of a run config, and the texts of other errors: what another party wrote becomes one line of text."""

import re
import unicodedata

from fedddpm_app.limits import LONGEST_REASON, LONGEST_TEXT

_SHOWN = 200  # characters
_READ = 4  # times as much of a text is searched for paths as is shown
_QUOTED_OR_ABSOLUTE = re.compile(
    r"""(["'])(?:[a-z]+:)?(?:~|[A-Za-z]:)?[/\\][^"']*\1"""  # in quotes, where it may hold spaces
    r"""|(?<![\w.:/\\])(?:[a-z]+:)?(?:~[\w-]*|[A-Za-z]:)?[/\\](?=[^\s/\\])[^\s"'<>|;:,]*"""
)
_RELATIVE = re.compile(
    r"(?:(?<![\w.)\]/])|\bpath:)(?:~|\.{1,2})?(?:/[^\s/:;,'\"()\[\]<>]+)+/?|\b[A-Za-z]:\\[^\s;,'\"]+"
)
_FILE = re.compile(
    r"[^\s/\\'\"<>=(]+\.(?:png|jpe?g|tiff?|bmp|gif|webp|dcm|nii|np[yz]|parquet|csv|jsonl?)\b", re.IGNORECASE
)
_ESCAPES = re.compile(  # of a terminal: CSI (colours, cursor), OSC and other strings (titles, links), two-byte ones;
    # no string reaches over the start of the next one, so that the search takes linear time
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x90\x98\x9c-\x9f]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]"
)
_INVISIBLE = "Cf"  # Unicode category of characters without a glyph: directions (bidi), zero width


class ConfigError(ValueError):
    """A run config that cannot be used; the message names the key, its value and the fix, a line for each problem.

    Parameters
    ----------
    text : str
        The message.
    public : str, optional
        What a site sends in place of a message about its own files.
    """

    def __init__(self, text: str, public: str = "") -> None:
        super().__init__(text)
        self.public = public


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; without a message, the name of the error's type."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def printable(text: str) -> str:
    """Return a text that every log and terminal can take: lone surrogates, as another party may send, are escaped."""
    return text.encode(errors="backslashreplace").decode()


def shown(value: object) -> str:
    """Return a value for a message, at most as long as two lines."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def plain(text: str) -> str:
    """Return a text as one line without control characters: no escape sequences, line ends, or changes of direction."""
    if text.isprintable():
        return text
    shown = (char for char in _ESCAPES.sub("", text) if unicodedata.category(char) != _INVISIBLE)
    return "".join(char if char.isprintable() else " " for char in shown)


def one_line(text: str, longest: int = LONGEST_REASON) -> str:
    """Return another party's text as one plain line with single spaces, cut off after ``longest`` characters."""
    line = " ".join(plain(text[:LONGEST_TEXT]).split())
    return line if len(line) <= longest else line[: longest - 3] + "..."


def without_paths(text: str) -> str:
    """Return a text, cut, with ``<path>`` in the place of a path, and ``<file>`` in that of a name of a data file."""
    text = text[: _READ * LONGEST_REASON]  # the patterns take the square of a text's length
    for pattern in (_QUOTED_OR_ABSOLUTE, _RELATIVE):
        text = pattern.sub("<path>", text)
    return _FILE.sub("<file>", text)
