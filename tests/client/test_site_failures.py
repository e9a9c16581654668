"""What a failure at a site says to the server."""

import pytest

from fedddpm_app.client.site_failures import public_text
from fedddpm_app.client.state import ClientStateError
from fedddpm_app.config import ConfigError, without_paths


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("its state: /home/jane/x.safetensors does not exist", "its state: <path> does not exist"),
        ("/data/x.csv: row 3 has no text", "<path>: row 3 has no text"),
        ('dataset = "site:/data/Doe, Jane" has the label -1', "dataset = <path> has the label -1"),
        ("[Errno 2] No such file or directory: '/srv/Doe, Jane.png'", "[Errno 2] No such file or directory: <path>"),
        (r"C:\data\x and ~jane/x and ~/x", "<path> and <path> and <path>"),
        ('dataset = "ylecun/mnist", wire-dtype = "bf16": 1/2 of 3 and/or 4', None),
        ("see https://flower.ai/docs", None),
    ],
)
def test_a_path_is_left_out_of_a_text(text, sent):
    assert without_paths(text) == (text if sent is None else sent)


@pytest.mark.parametrize(
    ("error", "sent"),
    [
        (ConfigError("num-clients = 2: use 3."), "num-clients = 2: use 3."),
        (ConfigError("/data/Doe.png is damaged", public="a picture is damaged"), "a picture is damaged"),
        (
            ClientStateError('its state is lost: "/home/Dr Anna Meier/y" does not exist'),
            "its state is lost: <path> does not exist",
        ),
        (KeyError("Doe, Jane"), "the log of its SuperNode has the text of this error"),
        (OSError(2, "No such file", "/data/Doe.png"), "the log of its SuperNode has the text of this error"),
    ],
)
def test_only_our_own_sentences_leave_a_site(error, sent):
    assert public_text(error) == sent


def test_a_class_of_somebody_else_is_not_one_of_ours():
    other = type("ConfigError", (ValueError,), {"__module__": "hospital"})
    assert "Doe" not in public_text(other("Doe, Jane"))
