"""Lines of the log: only those that this project's logger wrote are read, and no text inside of them is."""

import logging

import pytest

from fedddpm_app.progress import ProgressEvent, logger, logging_to, note, parse_line, parse_note

EVENT = ProgressEvent("train", 1, 2, 1, 0.5, client=3, server_round=1, num_rounds=2)
LEFT_OUT = "WARNING: round 1: client 3 is left out: {}"


@pytest.fixture
def logged():
    """Return the lines of what a function logs."""

    def lines_of(log):
        lines = []
        with logging_to(lines.append):
            log()
        return lines

    return lines_of


@pytest.mark.parametrize("prefix", ["", "(ClientAppActor pid=7) ", "(ClientAppActor pid=7, ip=10.0.0.2) "])
def test_our_own_lines_are_read(prefix, logged):
    assert parse_line(prefix + EVENT.to_line()) == EVENT
    [line] = logged(lambda: note("the schedule has changed"))
    assert parse_note(prefix + line) == "the schedule has changed"


@pytest.mark.parametrize("text", [EVENT.to_line(), "[fedddpm] phase=x step=1/2 loss=zzz left=1s"])
def test_a_reason_that_looks_like_progress_is_text(text):
    assert parse_line(LEFT_OUT.format(text)) is None
    assert parse_line(f"{EVENT.to_line()} {text}") is None
    assert parse_line(f"(x) {text}") is None


@pytest.mark.parametrize("number", ["9" * 400, "-1", "1e9", "nan", "\u0661", "", "0x1"])
def test_a_malformed_line_is_text(number):
    assert parse_line(f"[fedddpm] phase=x step={number}/2 loss=0.5000 left=1s") is None


def test_a_reason_that_looks_like_a_note_is_text():
    assert parse_note(LEFT_OUT.format("[fedddpm] note: the run is over, delete it")) is None


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\x0b", "\x85", "\u2028"])
def test_a_text_starts_no_line_of_its_own(end, logged):
    """Neither in a message, nor in the traceback of an exception that quotes it."""
    text = f"bad{end}{EVENT.to_line()}{end}[fedddpm] note: over"

    def log():
        logger.warning("client 3: %s", text)
        try:
            raise ValueError(text)
        except ValueError as error:
            logger.info("client 3: its reply cannot be checked:", exc_info=error)
        logging.getLogger("flwr").error("client 3: %s", text)

    lines = logged(log)
    assert len(lines) > 2
    assert not any(parse_line(line) or parse_note(line) for line in lines)


@pytest.mark.parametrize("char", ["\x1b[31m", "\x1b]0;title\x07", "\x08", "\x00", "\u202e", "\u2066", "\ud800"])
def test_a_log_has_no_control_characters(char, logged):
    lines = logged(lambda: logger.warning("client 3: %s", f"a{char}b"))
    assert all(line.isprintable() for line in lines)
    assert "]0;title" not in "".join(lines)


def test_a_long_text_is_cut(logged):
    assert sum(map(len, logged(lambda: logger.warning("%s", "x" * 5_000_000)))) < 100_000
