"""Overrides as people type them: pairs such as ``seed=1 algorithm=fedavg``, and TOML files.

A text without quotes is read as its key requires: as a text for a key of text, else as a number, true or false. All
problems of all texts are collected, so that they can be reported at once.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fedddpm_app.config.errors import shown
from fedddpm_app.config.fields import Kind, Scalar
from fedddpm_app.config.toml_files import find_file, read_file
from fedddpm_app.config.words import nearest

_BETWEEN = re.compile(r"[\s,;\ufeff]*")
_BETWEEN_LINES = re.compile(r"(?:[\s,;\ufeff]|#[^\n]*)*")  # of a text with several lines, which may hold comments
_NAME = re.compile(r"[^\s=]*\s*")
_SPACES = re.compile(r"\s*")
_WORD = re.compile(r"\S+")
_NEXT_PAIR = re.compile(r"([^\s=]+)\s*=")
_QUOTED = re.compile(r"\"(?:[^\"\\\n]|\\.)*\"|'[^'\n]*'")
_END_OF_PAIR = re.compile(r"[\s,;]|$")
_INTEGER = re.compile(r"[+-]?[0-9]+(_[0-9]+)*")
_FLOAT = re.compile(r"[+-]?(([0-9][0-9_]*\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|inf|nan)")
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_ESCAPES = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", '"': '"', "\\": "\\"}
_SHOWN = 200  # characters of a word in a message
_TYPOGRAPHIC = "“”„‟‘’‚«»`´"


@dataclass
class Overrides:
    """The values that texts give, and everything that is wrong with the texts.

    Attributes
    ----------
    values : dict
        The value of each key; a later text counts.
    problems : list of str
        One sentence each.
    """

    values: dict[str, Scalar] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read_overrides(option: str, texts: Sequence[str], kinds: Mapping[str, Kind]) -> Overrides:
    """Read the texts of an option.

    Parameters
    ----------
    option : str
        The option's name, for messages.
    texts : sequence of str
        Each holds pairs, or the path of a TOML file, which pairs may follow.
    kinds : mapping
        What each known key takes.
    """
    overrides = Overrides()
    for text in texts:
        path, pairs = find_file(text)
        if path:
            values, problems = read_file(option, path)
            overrides.values |= values
            overrides.problems += problems
        reader = _Pairs(option, pairs, kinds)
        overrides.values |= reader.read()
        overrides.problems += reader.problems
    return overrides


class _Pairs:
    """Reads the pairs of one text."""

    def __init__(self, option: str, text: str, kinds: Mapping[str, Kind]) -> None:
        self.option, self.text, self.kinds = option, text, kinds
        self.problems: list[str] = []
        self._at = 0

    def read(self) -> dict[str, Scalar]:
        """Return the pairs; ``problems`` has the sentences about all words that are not a pair."""
        values: dict[str, Scalar] = {}
        for key, value in self._pairs():
            if key in values:
                self._problem(
                    f"{key} is given twice ({shown(values[key])} and {shown(value)}); leave one of the two out"
                )
            values[key] = value
        return values

    def _pairs(self) -> Iterator[tuple[str, Scalar]]:
        between = _BETWEEN_LINES if "\n" in self.text.strip() else _BETWEEN
        self._skip(between)
        while self._at < len(self.text):
            start, name = self._at, self._skip(_NAME).strip()
            if not self.text.startswith("=", self._at):
                self._problem_of_word(name)
            elif not name:
                self._problem(f"{shown(self._skip(_WORD))} has no key in front of '='; write 'key=value'")
            else:
                self._at += 1
                value = self._value(name)
                if value is not None:
                    yield name, value
            self._at = max(self._at, start + 1)
            self._skip(between)

    def _value(self, key: str) -> Scalar | None:
        """Read the value of a key; None after a problem."""
        before = self._at
        self._skip(_SPACES)
        follower = _NEXT_PAIR.match(self.text, self._at) if self._at > before else None
        if self._at == len(self.text) or (follower and follower.group(1) in self.kinds):
            empty = f', or {key}="" for an empty text' if self.kinds.get(key) == "text" else ""
            self._problem(f"{key} has no value; write {key}=value{empty}")
            return None
        if self.text[self._at] in "\"'":
            return self._quoted(key)
        return self._bare(key)

    def _quoted(self, key: str) -> str | None:
        found = _QUOTED.match(self.text, self._at)
        if not found:
            rest, self._at = self.text[self._at :], len(self.text)
            self._problem(f"{key}={rest[:_SHOWN]}: the quote is not closed; end the text with the same quote")
            return None
        self._at = found.end()
        if not _END_OF_PAIR.match(self.text, self._at):
            tail = self._skip(_WORD)
            self._problem(
                f"{key}={found.group()}{tail}: {tail} follows the closing quote; put a space between pairs, or write "
                "double quotes around a text with an apostrophe"
            )
            return None
        inside = found.group()[1:-1]
        return inside if found.group()[0] == "'" else self._unescaped(key, inside)

    def _unescaped(self, key: str, text: str) -> str | None:
        """Resolve the escapes of a text in double quotes, as TOML does."""
        try:
            return _ESCAPE.sub(lambda m: chr(int(m[1] or m[2], 16)) if m[1] or m[2] else _ESCAPES[m[3]], text)
        except (KeyError, ValueError, OverflowError):
            self._problem(
                f"{key}={shown(text)}: a backslash in double quotes starts an escape; use single quotes, or two "
                "backslashes"
            )
            return None

    def _bare(self, key: str) -> Scalar | None:
        """Read a value without quotes: up to a space, without a comma at its end, or up to the next pair."""
        start, word = self._at, self._skip(_WORD)
        joined = next((m for m in re.finditer(r"[,;]([^\s=,;]+)=", word) if m.group(1) in self.kinds), None)
        if joined:
            word, self._at = word[: joined.start()], start + joined.start()
        word = word.rstrip(",;")
        if not word or word[0] == "=":
            fault = "has two equals signs" if word else "has no value"
            self._problem(f"{key}={word} {fault}; write {key}={word.lstrip('=') or 'value'}")
            return None
        if '"' in word or word[0] in _TYPOGRAPHIC:
            self._problem(f"{key}={word[:_SHOWN]}: write straight double quotes around the whole text")
            return None
        return _to_scalar(word, self.kinds.get(key))

    def _problem_of_word(self, word: str) -> None:
        if word.endswith(".toml"):
            fix = "is a file, which comes first or has an option of its own"
        elif word in self.kinds:
            fix = f"has no value; write {word}=value"
        else:
            close = nearest(word.partition(":")[0], self.kinds)
            fix = f"has no value; write {close or 'key'}=value, and quotes around a text with spaces"
            fix += "; the name of a file ends in .toml" if "/" in word else ""
        self._problem(f"{word[:_SHOWN]} {fix}")

    def _problem(self, sentence: str) -> None:
        self.problems.append(f"{self.option} {sentence}.")

    def _skip(self, pattern: re.Pattern[str]) -> str:
        """Move behind a match at the present place, and return its text."""
        found = pattern.match(self.text, self._at)
        self._at = found.end() if found else self._at
        return found.group() if found else ""


def _to_scalar(word: str, kind: Kind | None) -> Scalar:
    """Read a word without quotes as its key requires; a word that does not fit stays a text, which is refused later."""
    if kind == "text":
        return word
    if kind != "number" and word.lower() in ("true", "false"):
        return word.lower() == "true"
    try:
        if _INTEGER.fullmatch(word):
            return int(word)
        if _FLOAT.fullmatch(word):
            return float(word)
    except ValueError:  # more digits than Python reads
        pass
    return word
