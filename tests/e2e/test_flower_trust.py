"""What Flower itself gives against strangers: docs/security.md relies on it.

A SuperNode with ``--trusted-entities`` is tested by Flower's own functions and without its Hub, from which the
SuperLink gets an app and its reviews.
"""

import base64
import hashlib
import json

import pytest
from cryptography.hazmat.primitives import serialization
from flwr.app import Message, RecordDict
from flwr.supercore.fab import Fab
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.primitives.asymmetric_ed25519 import create_message_to_sign, generate_key_pair, sign_message
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.config_loader import load_control_authn_plugin
from flwr.superlink.servicer.control.control_handlers import _format_verification
from flwr.supernode.start_client_internal import _pull_and_store_message, _verify_fab

APP = b"the bytes of an app"


@pytest.fixture(scope="module")
def officer():
    """The key of the officer who reviews apps, and the file of ``--trusted-entities`` with its public half."""
    private, public = generate_key_pair()
    text = public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private, {"fpk_officer": text.decode()}


def app_from_hub(content, private, key_id="fpk_officer"):
    """An app as the SuperLink gets it from the Hub, with a review."""
    signed_at = 1_790_000_000
    signature = sign_message(private, create_message_to_sign(hashlib.sha256(content).digest(), signed_at))
    text = base64.urlsafe_b64encode(signature).rstrip(b"=").decode()
    review = {"public_key_id": key_id, "signature": text, "signed_at": signed_at}
    return Fab(hashlib.sha256(content).hexdigest(), content, _format_verification([review]))


def test_an_app_that_the_officer_signed_is_accepted(officer):
    private, trusted = officer
    fab = app_from_hub(APP, private)
    assert json.loads(fab.verifications["fpk_officer"])["signed_at"]
    assert _verify_fab(fab, trusted)


def test_an_app_that_was_changed_after_its_review_is_refused(officer):
    private, trusted = officer
    fab = app_from_hub(APP, private)
    assert not _verify_fab(Fab(fab.hash_str, APP + b" and more", fab.verifications), trusted)


def test_an_app_that_someone_else_signed_in_the_officers_name_is_refused(officer):
    _, trusted = officer
    other, _ = generate_key_pair()
    assert not _verify_fab(app_from_hub(APP, other), trusted)
    assert not _verify_fab(app_from_hub(APP, other, "fpk_other"), trusted)


def test_an_app_that_a_user_sends_from_a_folder_is_refused_before_it_is_stored(officer, monkeypatch):
    """As `flwr run .` and `fedddpm run` do: the SuperLink has no review of it, so the site answers with an error."""
    _, trusted = officer
    answers = []
    monkeypatch.setattr("flwr.supernode.start_client_internal._insert_message", lambda reply, *_: answers.append(reply))

    class State:
        def get_run(self, _):
            return None

    class Run:
        fab_hash = hashlib.sha256(APP).hexdigest()

    for name, value in (("_run_id", 7), ("_node_id", 1), ("_task_id", 1)):
        monkeypatch.setattr(TaskIdentity, name, value)
    message = Message(RecordDict(), 1, "train")
    _pull_and_store_message(
        state=State(),
        object_store=ObjectStoreFactory().store(),
        node_config={},
        receive=lambda: (message, None),
        get_run=lambda _: Run(),
        get_fab=lambda *_: Fab(Run.fab_hash, APP, {}),
        pull_object=None,
        confirm_message_received=None,
        trusted_entities=trusted,
    )
    [answer] = answers
    assert answer.error.reason == "The FAB could not be verified."


def test_the_open_version_has_no_accounts_for_the_control_api(monkeypatch):
    """With this variable, the SuperLink does not start, so nobody takes it for protected."""
    monkeypatch.setenv("FLWR_OIDC_ENABLED", "1")
    with pytest.raises(SystemExit, match="unavailable in this Flower distribution"):
        load_control_authn_plugin()
