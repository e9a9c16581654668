"""A client's reason as one short line, in every form in which Flower and Ray report it."""

import time

import pytest
from flwr.app import Error

from fedddpm_app.config import one_line, without_paths
from fedddpm_app.federation.messages.reasons import reason_of
from fedddpm_app.limits import LONGEST_TEXT


def by_ray(error, message):
    """The reason that Flower's simulation makes of an exception in an actor, whose cause is in the traceback."""
    trace = (
        "\x1b[36mray::ClientAppActor.run()\x1b[39m (pid=5, ip=1.2.3.4, actor_id=0a, repr=<x.ClientAppActor object>)\n"
        '  File "/a/ray_actor.py", line 59, in run\n    out_message = app(message=message, context=context)\n'
        f'  File "/a/handlers.py", line 9, in train\n    fail()\n{error}: {message}\n\n'
        "The above exception was the direct cause of the following exception:\n\n"
        "\x1b[36mray::ClientAppActor.run()\x1b[39m (pid=5, ip=1.2.3.4, actor_id=0a, repr=<x.ClientAppActor object>)\n"
        '  File "/a/ray_actor.py", line 65, in run\n    raise ClientAppException(str(ex)) from ex\n'
        "flwr.clientapp.client_app.ClientAppException: \n"
        f"Exception ClientAppException occurred. Message: {message}"
    )
    return f"<class 'ray.exceptions.RayTaskError(ClientAppException)'>:<'{trace}'>"


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        ("<class 'ValueError'>:<'no data'>", "ValueError: no data"),
        ("<class 'fedddpm_app.config.errors.ConfigError'>:<'num-clients = 4: use 5.'>", "num-clients = 4: use 5."),
        (
            "<class 'x.ClientAppException'>:<'\nException ClientAppException occurred. Message: a'>",
            "ClientAppException: a",
        ),
        ("disk full", "disk full"),
        ("a\nb\r\n\t\x1b[31mc\x1b[0m\x00 d\u2028e", "a b c d e"),
        ("\x1b]0;title\x07a\x1b]8;;http://x\x1b\\b\x1b(0c\x9b2Jd\x1b[2Ke\x1b", "abcde"),
        ("<class 'ValueError'>:<'a\u202eb\u2066c\u200bd\ufeff'>", "ValueError: abcd"),
        ("[red]a[/]", "[red]a[/]"),
        ("", "the client failed without a reason"),
        (None, "the client failed without a reason"),
        (by_ray("ValueError", "no data"), "ValueError: no data"),
        (by_ray("torch.cuda.OutOfMemoryError", "2 GiB"), "OutOfMemoryError: 2 GiB"),
        (by_ray("fedddpm_app.config.errors.ConfigError", "use 5."), "use 5."),
        (by_ray("ValueError", "two\n    lines"), "ValueError: two lines"),
        ("<class 'ray.exceptions.ObjectLostError'>:<'The actor\ndied'>", "ObjectLostError: The actor died"),
    ],
)
def test_a_reason_is_one_line_with_the_name_of_the_exception(reason, line):
    assert reason_of(Error(0, reason)) == line


@pytest.mark.parametrize("wrap", [str, lambda text: by_ray("ValueError", text), lambda text: f"<class 'X'>:<'{text}'>"])
def test_megabytes_give_a_short_line(wrap):
    line = reason_of(Error(0, wrap("x" * 5_000_000)))
    assert len(line) == 300
    assert line.endswith("x...")
    assert "Traceback" not in line
    assert "File" not in line
    assert len(reason_of(Error(0, wrap("\n" * 5_000_000)))) < 300


def test_a_short_line_stays_as_it_is():
    assert one_line("a" * 300) == "a" * 300


@pytest.mark.parametrize("part", ["\x9d", "\x1b]", "\x1b[0", "\x9b", "/a", "a.", "'/", "~/"])
def test_a_long_text_is_cleaned_in_a_short_time(part):
    """A search that takes the square of the length took 38 seconds for a text of ``LONGEST_TEXT`` characters."""
    text, began = part * LONGEST_TEXT, time.process_time()
    one_line(text)
    without_paths(text)
    assert time.process_time() - began < 2.0
