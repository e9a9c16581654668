"""What a client may claim, and how far its change of the weights may reach."""

import contextlib
import itertools
import logging
import math
from dataclasses import replace

import pytest
import torch

from fedddpm_app import weights as weights_module
from fedddpm_app.config import ConfigError, load_config
from fedddpm_app.experiment.task import DiffusionTask
from fedddpm_app.federation import admission as module
from fedddpm_app.federation.accounting import Accounting
from fedddpm_app.federation.admission import Admission, warn_of_decisive, warn_of_warmup
from fedddpm_app.federation.clients import Clients
from fedddpm_app.federation.messages.replies import Reply, ReplyRefusedError
from fedddpm_app.federation.nodes.participants import Participants
from fedddpm_app.transport import Transport
from fedddpm_app.transport.carriers import Expected, Payload
from fedddpm_app.transport.wire import get_wire
from tests.federation.test_streaming import clients, reply, stream

__all__ = ["clients"]


@pytest.fixture
def admission(run_config):
    def make(limit="100x", **overrides):
        changes = {key.replace("_", "-"): value for key, value in overrides.items()}
        return Admission(load_config(run_config | {"max-update-norm": limit} | changes))

    return make


def judged(admission, *norms, own=1.0):
    """The norms that are accepted, in their order."""
    accepted = []
    for norm in norms:
        try:
            admission.judge(Reply(0, None, None, {}, norm), lambda: own)
        except ReplyRefusedError:
            continue
        accepted.append(norm)
    return accepted


# ---- the norm -----------------------------------------------------------------------------------


def test_the_first_updates_are_measured_by_the_models_own_norm(admission):
    assert judged(admission(), 10.1, 9.9, 1e9, 0.5) == [9.9, 0.5]


def test_later_updates_are_measured_by_the_median_of_the_accepted(admission):
    made = admission()
    assert judged(made, 2.0, 3.0, 4.0, 299.0, 400.0, own=10.0) == [2.0, 3.0, 4.0, 299.0]
    assert made.history == {"arrays": [2.0, 3.0, 4.0, 299.0]}
    again = admission()
    again.load_state_dict(made.state_dict())
    assert judged(again, 349.0, 410.0, own=10.0) == [349.0]  # the median is 3.5, then 4


def test_an_honest_client_with_fifty_times_the_steps_is_accepted(admission):
    assert judged(admission(), 1.0, 1.1, 0.9, 50.0, 1.0, 55.0) == [1.0, 1.1, 0.9, 50.0, 1.0, 55.0]


def test_clients_without_a_change_do_not_make_every_change_too_large(admission):
    assert judged(admission(), *[0.0] * 9, 0.9, 1.1, own=1.0) == [*[0.0] * 9, 0.9]


def test_weights_and_changes_of_zero_are_no_measure(admission):
    assert judged(admission(), 5.0, 6.0, own=0.0) == [5.0, 6.0]


@pytest.mark.parametrize(("limit", "accepted"), [("25.0", [24.0]), ("", [24.0, 26.0, 1e9]), ("3e1", [24.0, 26.0])])
def test_the_limit_may_be_a_norm_or_off(admission, limit, accepted):
    assert judged(admission(limit), 24.0, 26.0, 1e9, own=1e-3) == accepted


def test_pretrained_models_are_judged_together(admission):
    verdicts = admission().too_large({0: 2.0, 1: 1e10, 2: 3.0, 3: 0.1}, lambda: 1.0)
    assert list(verdicts) == [1]
    assert verdicts[1].startswith('its update has the norm 1e+10, more than max-update-norm = "100x" allows')
    assert list(admission().too_large({0: 2.0, 1: 1e10}, lambda: 1.0)) == [1]


@pytest.mark.parametrize("value", ["100X", "x", "-1", "nan", "ten", "100 x", "inf", "0x", "0", "0.0e3x"])
def test_another_limit_is_an_error_that_shows_the_forms(run_config, value):
    with pytest.raises(ConfigError, match=r'max-update-norm = .* cannot be used: it should be a multiple .* "100x"'):
        load_config(run_config | {"max-update-norm": value})


def test_the_history_is_bounded(admission, monkeypatch):
    monkeypatch.setattr(module, "_LONGEST_HISTORY", 5)
    made = admission()
    judged(made, *map(float, range(1, 20)))
    assert made.history == {"arrays": [1.0, 2.0, 3.0, 18.0, 19.0]}  # the first ones stay, as a measure


@pytest.mark.parametrize("order", [*itertools.islice(itertools.permutations(range(6)), 0, 720, 149)])
def test_verdicts_do_not_depend_on_the_order_of_arrival(config, grid, tmp_path, order):
    transport = Transport(replace(config.transport, transport="flat", wire_dtype="fp32"))
    made = Clients(Participants({p: 100 + p for p in range(6)}), Accounting(), transport, Admission(config), None)
    values = {0: 1.0, 1: 2.0, 2: 1e6, 3: 3.0, 4: 90.0, 5: 500.0}
    made.admission.history = {"arrays": [1.0, 1.0]}
    messages = [reply(made, p, value=values[p]) for p in order]
    seen = stream(made, messages)
    assert [r.partition_id for r in seen.by_partition(tmp_path)] == [0, 1, 3, 4]
    assert list(seen.refused) == [2, 5]
    assert made.admission.history["arrays"][2:] == pytest.approx([v * math.sqrt(3) for v in (1.0, 2.0, 3.0, 90.0)])
    assert not list(tmp_path.iterdir())


# ---- further records ----------------------------------------------------------------------------


def with_record(made, norms, first=None):
    """The norms of a further record that are accepted, in their order."""
    accepted = []
    for norm in norms:
        with contextlib.suppress(ReplyRefusedError):
            made.judge(Reply(0, None, None, {}, 1.0, {"extra": norm}), lambda: 100.0, first or {})
            accepted.append(norm)
    return accepted


def test_a_further_record_is_measured_by_the_accepted_ones_or_by_the_first_ones(admission):
    made = admission()
    assert with_record(made, [5.0, 7.0, 6.0, 1e10, 599.0, 5e3]) == [5.0, 7.0, 6.0, 599.0]
    later = [*[1e-3] * 30, 599.0, 601.0]  # a client that takes part for the first time changes more than the others
    assert with_record(made, later) == [*[1e-3] * 30, 599.0]
    assert with_record(admission(), [1e-3, 1e10]) == [1e-3, 1e10]  # fewer than three cannot be compared
    assert with_record(admission(), [1e-3, 1e10], first={"extra": [1e-3, 1e10, 2e-3]}) == [1e-3]
    assert with_record(admission(), [0.0, 0.0, 0.0, 0.0, 5.0]) == [0.0, 0.0, 0.0, 0.0, 5.0]


@pytest.mark.parametrize(("limit", "most"), [("100x", 99.0), ("7.5x", 7.0), ("25.0", 99.0), ("", 1e9)])
def test_the_key_also_limits_further_records(admission, limit, most):
    made = admission(limit)
    with_record(made, [1.0, 1.0, 1.0])
    assert with_record(made, [7.0, 99.0, 1e9]) == [each for each in (7.0, 99.0, 1e9) if each <= most]


def test_the_reason_names_the_record_and_the_key(admission):
    text = (
        r'its record extra has the norm 1e\+10, more than 100 times the median, which is 2 \(max-update-norm = "100x"\)'
    )
    with pytest.raises(ReplyRefusedError, match=f"^{text}$"):
        admission().judge(Reply(0, None, None, {}, None, {"extra": 1e10}), lambda: 1.0, {"extra": [2.0, 2.0, 1e10]})


@pytest.mark.parametrize("order", [*itertools.islice(itertools.permutations(range(6)), 0, 720, 149)])
def test_verdicts_on_further_records_do_not_depend_on_the_order_of_arrival(clients, tmp_path, order):
    values = {0: 1e10, 1: 2.0, 2: float("nan"), 3: 1.0, 4: 90.0, 5: 500.0}
    seen = stream(clients, [reply(clients, p, value=1.0, extra=values[p]) for p in order], extra=True)
    assert [r.partition_id for r in seen.by_partition(tmp_path)] == [1, 3, 4]
    assert list(seen.refused) == [2, 0, 5]
    assert clients.admission.history["extra"] == pytest.approx([v * math.sqrt(3) for v in (2.0, 1.0, 90.0)])
    again = [reply(clients, p, value=1.0, extra=1e10 if p == 0 else 1.0) for p in order]  # now each one has a measure
    assert [r.partition_id for r in stream(clients, again, extra=True).by_partition(tmp_path)] == [1, 2, 3, 4, 5]
    assert not list(tmp_path.iterdir())


def test_two_clients_with_further_records_need_not_wait(clients, tmp_path):
    replies = [reply(clients, p, extra=1.0) for p in (1, 0)]
    assert [r.partition_id for r in stream(clients, replies, [0, 1], extra=True).by_partition(tmp_path)] == [0, 1]


def test_the_answers_of_an_action_are_judged_together(clients):
    replies = [reply(clients, p, value=1.0, extra=1e10 if p == 0 else 1.0) for p in range(5)]
    replies += [reply(clients, 5, value=1e6, extra=1.0)]
    seen = stream(clients, replies, extra=True)
    assert [r.partition_id for r in seen.answers()] == [1, 2, 3, 4]
    assert set(seen.refused) == set(clients.refusals) == {0, 5}


@pytest.mark.parametrize("wire", ["fp32", "bf16", "int8-delta"])
def test_the_norm_is_that_of_the_decoded_change(wire):
    generator = torch.Generator().manual_seed(0)
    start = {"a": torch.randn(700, 3, generator=generator), "b.bias": torch.randn(5, generator=generator)}
    start["steps"] = torch.tensor(3)
    trained = {"a": start["a"] + 0.1, "b.bias": start["b.bias"] * 3, "steps": torch.tensor(10**9)}
    sent = get_wire(wire).encode(trained, start)
    payload = Payload(sent, Expected(start, wire, start), 0)
    decoded = payload.decode()
    expected = math.sqrt(sum(float(((decoded[k] - start[k]).double() ** 2).sum()) for k in ("a", "b.bias")))
    assert payload.update_norm() == pytest.approx(expected, rel=1e-5)


def test_distances_are_read_in_chunks(monkeypatch):
    weights = {"a": torch.arange(10.0), "n": torch.tensor(5), "c": torch.full((2, 2), 2.0, dtype=torch.float64)}
    zero = weights_module.zeros_like(weights)
    whole = weights_module.distance(weights, zero)
    assert whole == pytest.approx(math.sqrt(285 + 16))
    assert weights_module.norm(weights) == whole
    monkeypatch.setattr(weights_module, "_CHUNK", 3)
    assert weights_module.distance(weights, zero) == pytest.approx(whole)
    weights["a"][7] = float("nan")
    assert not weights_module.distance(weights, zero) < math.inf


# ---- the number of images -----------------------------------------------------------------------


@pytest.mark.parametrize(("count", "says"), [(10_000_000, "max-examples-per-client = 1000000"), (360, "359 images")])
def test_a_client_claims_no_more_images_than_it_has(admission, count, says):
    made = admission()
    made.sizes = {0: 359}
    made.check_examples(0, 359)
    made.check_examples(0, 1)
    made.check_examples(1, 360)
    with pytest.raises(ReplyRefusedError, match=f"num-examples is {count}, .*{says}"):
        made.check_examples(0, count)


@pytest.fixture
def of_sites(config):
    """The admission of a run whose clients say how many images they have."""
    return Admission(replace(config, data=replace(config.data, partition="sites")))


def test_a_site_that_adds_images_during_a_run_takes_part_with_them(of_sites):
    of_sites.sizes = {0: 359}
    of_sites.check_examples(0, 718)
    with pytest.raises(
        ReplyRefusedError, match=r"719, but it had 359 images at the start: at most 718 .*resume the run"
    ):
        of_sites.check_examples(0, 719)
    of_sites.load_state_dict({"sizes": {0: 5, 1: 7}, "history": {}})  # a resumed run has counted again
    assert of_sites.sizes == {0: 359, 1: 7}


def test_a_client_that_was_not_counted_claims_no_more_than_all_others_have(of_sites):
    of_sites.check_examples(3, 10**6)  # in the check of the data itself
    of_sites.sizes = {0: 300, 1: 200}
    of_sites.finish_count()
    of_sites.check_examples(3, 500)
    with pytest.raises(ReplyRefusedError, match=r"501, but it did not pass the check of the data: at most 500 images"):
        of_sites.check_examples(3, 501)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.9, 0.99])
def test_every_honest_number_of_held_out_images_is_accepted(admission, share):
    made = admission(held_out_fraction=share)
    for total in range(2, 400):
        held_out = min(max(1, round(total * share)), total - 1)  # as ``FederatedDataset`` does
        made.sizes = {0: total - held_out}
        made.check_examples(0, held_out, held_out=True)
    made.sizes = {0: 100}
    with pytest.raises(ReplyRefusedError, match="held-out images"):
        made.check_examples(0, 20_000, held_out=True)


def test_one_client_with_nearly_all_images_is_a_warning(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("fedddpm"), "propagate", True)
    warn_of_decisive({0: 359, 1: 359, 2: 359})
    warn_of_decisive({0: 359})
    assert not caplog.text
    warn_of_decisive({0: 359, 1: 10**6})
    assert "client 1 has 1000000 of all 1000359 images (99.96 %)" in caplog.text
    assert "max-examples-per-client" in caplog.text


def test_epochs_that_end_before_the_warm_up_are_a_warning(config, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("fedddpm"), "propagate", True)
    training = replace(config.training, local_steps=0, local_epochs=2, batch_size=16, warmup_steps=10)
    warn_of_warmup(training, {0: 81, 1: 200})
    warn_of_warmup(replace(training, local_steps=5, local_epochs=0), {0: 15})  # refused before
    assert not caplog.text
    warn_of_warmup(training, {0: 81, 1: 80, 2: 15})
    assert "client 1, 2: the 10 steps of local-epochs = 2 are not more than warmup-steps = 10" in caplog.text


def test_the_server_knows_the_sizes_that_it_can_see(config):
    task = DiffusionTask(config)
    assert task.client_sizes() == [len(task.train_data(p)) for p in range(4)]
    assert min(task.client_sizes()) > 100
