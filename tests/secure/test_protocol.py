"""The secure sum of a round: what comes out, who may drop out when, and what a client never does."""

import copy

import numpy as np
import pytest

from fedddpm_app.secure import keys
from fedddpm_app.secure.errors import ProtocolError, WrongShareError
from fedddpm_app.secure.masks import Vector, add_mask
from tests.secure.parties import SESSION, TOLD, Parties, signed, vector

VALUES = [
    vector(1, -2, 2**31 - 1),
    vector(10, 20, 5, wide=(2**62,)),
    vector(-100, 0, 0, wide=(-9,)),
    vector(0, 0, 2, wide=(1,)),
]


def test_a_mask_that_is_subtracted_again_leaves_nothing():
    numbers = Vector(np.arange(200_000, dtype="<u4"), np.arange(3, dtype="<u8"))  # several blocks
    add_mask(numbers, bytes(range(32)))
    assert (numbers.narrow == np.arange(200_000)).mean() < 0.001
    assert (numbers.wide != np.arange(3)).all()
    add_mask(numbers, bytes(range(32)), subtract=True)
    assert (numbers.narrow == np.arange(200_000)).all()
    assert (numbers.wide == np.arange(3)).all()


def test_masks_of_different_seeds_look_random_and_differ():
    first, second = (Vector.zeros(100_000, 1) for _ in range(2))
    add_mask(first, bytes(32))
    add_mask(second, bytes(31) + b"\x01")
    assert abs(first.narrow.mean() / 2**32 - 0.5) < 0.005  # 5 standard deviations
    assert (first.narrow == second.narrow).mean() < 0.001


def test_the_sum_is_exact_modulo_its_range():
    """1 + 10 - 100 = -89, 2^31 - 1 + 5 + 2 = 2^31 + 6 = -2^31 + 6 modulo 2^32; wide 7 + 2^62 - 9 + 1."""
    parties = Parties(VALUES).until_upload()
    assert signed(parties.server.unmask(parties.reveal(), TOLD)) == ([-89, 18, -(2**31) + 6], [2**62 - 1])


def test_an_upload_hides_its_numbers_and_two_uploads_of_the_same_differ():
    parties, again = Parties(VALUES).until_upload(), Parties(VALUES).until_upload()
    for client, masked in parties.uploads.items():
        plain, other = VALUES[client], again.uploads[client]
        assert not (masked.narrow == plain.narrow).any()
        assert not (masked.wide == plain.wide).any()
        assert not (masked.narrow == other.narrow).any()


@pytest.mark.parametrize("step", ["publish", "make_shares", "upload", "reveal"])
def test_a_client_may_be_lost_before_every_step(step):
    """Client 1 is gone: the sum of the others comes out, and after its upload its numbers are in it."""
    parties, revealed = Parties(VALUES), {}
    for name in ("publish", "make_shares", "upload", "reveal"):
        revealed = getattr(parties, name)(gone=[1] if name == step else [])
    expected = ([-89, 18, -(2**31) + 6], [2**62 - 1]) if step == "reveal" else ([-99, -2, -(2**31) + 1], [-1])
    assert signed(parties.server.unmask(revealed, TOLD)) == expected
    assert parties.server.dropped == ([1] if step == "upload" else [])


def test_too_few_revealed_shares_give_no_sum():
    parties = Parties(VALUES).until_upload()  # 0.66 of 4 clients: 3
    revealed = parties.reveal(gone=[0, 3])
    with pytest.raises(ProtocolError, match="2 clients revealed shares, and 3 are needed"):
        parties.server.unmask(revealed, TOLD)


def test_a_client_reveals_one_of_two_secrets_whatever_it_is_asked_later():
    parties = Parties(VALUES).until_upload()
    first = parties.client(0).reveal(SESSION, [0, 1, 2, 3], [])
    assert parties.client(0).reveal(SESSION, [0, 1, 2, 3], []) == first
    with pytest.raises(ProtocolError, match="never reveals both"):
        parties.client(0).reveal(SESSION, [0, 2, 3], [1])
    assert parties.client(0).reveal(SESSION, [0, 1, 2, 3], []) == first


@pytest.mark.parametrize(
    ("answered", "dropped"),
    [
        ([0, 1, 2, 3], [1]),  # both secrets of client 1
        ([0, 1], [2, 3]),  # fewer than the threshold
        ([0, 1, 2], []),  # client 3 is in neither list
        ([1, 2, 3], [0]),  # it is told that its own upload is missing
        ([0, 1, 2, 7], [3]),
    ],
)
def test_a_client_takes_part_in_no_other_sum(answered, dropped):
    parties = Parties(VALUES).until_upload()
    with pytest.raises(ProtocolError, match="is not one that this client takes part in"):
        parties.client(0).reveal(SESSION, answered, dropped)
    with pytest.raises(ProtocolError, match="step 5"):  # nor does it try another one
        parties.client(0).reveal(SESSION, [0, 1, 2, 3], [])


def test_no_step_is_done_twice_or_out_of_turn():
    parties = Parties(VALUES)
    parties.publish()
    with pytest.raises(ProtocolError, match="follows on step 2, not on 1"):
        parties.client(0).receive(SESSION, {}, {})
    parties.make_shares()
    with pytest.raises(ProtocolError, match="step 2"):
        parties.client(0).share(SESSION, parties.server.public, 3)
    parties.upload()
    for repeated in (
        lambda: parties.receive(0),
        lambda: parties.client(0).mask(SESSION, vector(1, 2, 3), TOLD),
    ):
        with pytest.raises(ProtocolError, match="not on 4"):
            repeated()
    with pytest.raises(ProtocolError, match="it does not know this session"):
        parties.client(0).reveal(b"another", [0, 1, 2, 3], [])
    parties.stores[0].clear()  # a node that was restarted
    with pytest.raises(ProtocolError, match="it was restarted"):
        parties.client(0).reveal(SESSION, [0, 1, 2, 3], [])


def test_a_client_notices_keys_and_shares_that_are_not_as_they_should_be():
    parties = Parties(VALUES)
    parties.publish()
    public = dict(parties.server.public)
    with pytest.raises(ProtocolError, match="does not have this client's own keys"):
        parties.client(0).share(SESSION, public | {0: public[1]}, 3)
    parties.publish()
    with pytest.raises(ProtocolError, match="too few"):
        parties.client(0).share(SESSION, parties.server.public, 2)  # not more than half
    parties.publish()
    parties.make_shares()
    sealed, promised = parties.server.sealed_for(0), parties.server.promised_to(0)
    with pytest.raises(ProtocolError, match="shares of client 1 were changed"):
        parties.client(0).receive(SESSION, sealed | {1: sealed[2]}, promised)
    with pytest.raises(ProtocolError, match="shares came from 1 peers"):
        parties.client(1).receive(SESSION, {0: parties.server.sealed_for(1)[0]}, promised)
    with pytest.raises(ProtocolError, match="the shares of client 3 are not those that it has promised"):
        parties.client(2).receive(SESSION, parties.server.sealed_for(2), parties.server.promised_to(2) | {3: bytes(64)})


def lied(revealed, client, about=0, part=0):
    """What a client reveals, with another share of the seed or the key of one client."""
    lists = [[*each] for each in revealed[client]]
    lists[part][about] = lists[part][about][:-1] + bytes([lists[part][about][-1] ^ 1])
    return revealed | {client: tuple(lists)}


@pytest.mark.parametrize(("part", "gone", "expected"), [(0, [], 36), (1, [8], 36 - 8)])
def test_clients_that_reveal_wrong_shares_are_passed_over_and_known(part, gone, expected):
    """Clients 1 and 4 of 9, of whose shares 6 are needed: whatever their places are, and of seeds and keys alike."""
    parties = Parties([vector(n) for n in range(9)]).until_upload(gone)
    revealed = lied(lied(parties.reveal(), 1, part=part), 4, part=part)
    assert signed(parties.server.unmask(revealed, TOLD))[0] == [expected]
    assert parties.server.liars == {1, 4}


def test_too_few_true_shares_are_blamed_on_those_that_revealed_others():
    parties = Parties(VALUES).until_upload()
    with pytest.raises(WrongShareError, match="2 of the shares of client 0 are those that it made, and 3 are") as error:
        parties.server.unmask(lied(lied(parties.reveal(), 2), 3), TOLD)
    assert error.value.clients == [2, 3]


def test_a_client_whose_own_shares_give_another_seed_is_blamed():
    """Its shares are as promised, but the digest of its seed is not."""
    parties = Parties(VALUES)
    parties.publish()
    parties.make_shares()
    parties.server.digests[1] = bytes(32)
    parties.upload()
    with pytest.raises(WrongShareError, match="the shares of client 1 do not give the seed that it promised") as error:
        parties.server.unmask(parties.reveal(), TOLD)
    assert error.value.clients == [1]


@pytest.mark.parametrize(
    ("lie", "gone", "reason"),
    [
        ("a long seed", [], "do not give the seed that it promised"),
        ("no padding", [], "do not belong together"),
        ("one index", [], "do not belong together"),
        ("no padding", [1], "do not belong together"),  # of its key
        ("one index", [1], "do not belong together"),
    ],
)
def test_a_client_whose_shares_are_as_promised_and_give_no_secret_is_blamed(lie, gone, reason):
    parties = Parties(VALUES, lies={1: lie}).until_upload(gone)
    with pytest.raises(WrongShareError, match=f"the shares of client 1 {reason}") as error:
        parties.server.unmask(parties.reveal(), TOLD)
    assert error.value.clients == [1]
    assert not parties.server.liars


def test_a_client_that_reveals_wrong_shares_of_all_costs_no_time(monkeypatch):
    """To combine shares takes a third of a second with 48 clients: it is done once for each secret."""
    parties, tries, combine = Parties([vector(1, 2, 3)] * 9).until_upload(), [], keys.combine

    def counted(*given):
        tries.append(given)
        return combine(*given)

    monkeypatch.setattr(keys, "combine", counted)
    revealed = parties.reveal()
    revealed[3] = ([bytes(each) for each in map(len, revealed[3][0])], [])
    assert signed(parties.server.unmask(revealed, TOLD))[0] == [9, 18, 27]
    assert len(tries) == 9


def test_secrets_do_not_outlive_the_upload():
    parties = Parties(VALUES).until_upload()
    assert not {"seed", "mask-private", "seal-private"} & parties.stores[0].keys()


def test_a_client_whose_store_goes_back_to_an_earlier_step_does_no_step_again():
    """With shares of both secrets of client 1, its numbers would be known."""
    parties = Parties(VALUES).until_upload()
    before = copy.deepcopy(parties.stores)
    first = parties.client(0).reveal(SESSION, [0, 1, 2, 3], [])
    parties.stores = copy.deepcopy(before)
    with pytest.raises(ProtocolError, match="never reveals both"):
        parties.client(0).reveal(SESSION, [0, 2, 3], [1])
    assert parties.client(0).reveal(SESSION, [0, 1, 2, 3], []) == first
    parties.publish()
    parties.stores = before
    with pytest.raises(ProtocolError, match="another session has begun"):
        parties.client(0).reveal(SESSION, [0, 1, 2, 3], [])


def test_masks_of_clients_that_were_told_different_things_stay_in_the_sum():
    parties = Parties(VALUES)
    parties.publish()
    parties.make_shares()
    for client, told in enumerate((TOLD, TOLD, b"another total", TOLD)):
        parties.receive(client)
        masked = Vector(VALUES[client].narrow.copy(), VALUES[client].wide.copy())
        parties.client(client).mask(SESSION, masked, told)
        parties.server.add(client, masked)
    numbers, _ = signed(parties.server.unmask(parties.reveal(), TOLD))
    assert not {*numbers} & {-89, 18, -(2**31) + 6}
