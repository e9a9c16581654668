"""The chain of entries: what is added is verified, and any change shows."""

import json
import math

import pytest

from fedddpm_app.peers.ledger import NOTHING, Ledger, line, read_ledger, verify
from fedddpm_app.peers.rules import LedgerError
from fedddpm_app.recording.files import append_line, keep_lines
from tests.peers.stories import GENESIS, STORY, build, choice, joined, submission, vote, write


def test_a_ledger_is_verified_read_and_continued(tmp_path):
    ledger, entries = build()
    verify(entries, ledger.head)
    assert (ledger.length, entries[0]["previous"]) == (len(STORY), NOTHING)
    for entry, (kind, facts) in zip(entries, STORY, strict=True):
        assert entry.items() >= {"kind": kind, **facts}.items()
    path = write(tmp_path / "ledger.jsonl", entries)
    assert read_ledger(path) == (entries, False)
    first = Ledger(keep_lines(path, 9))
    assert first.head == entries[8]["hash"]
    assert [first.entry(kind, facts) for kind, facts in STORY[9:]] == entries[9:]


def test_the_line_that_is_recorded_is_the_line_that_is_sealed(tmp_path):
    _, entries = build()
    assert write(tmp_path / "ledger.jsonl", entries).read_text().splitlines() == [line(entry) for entry in entries]


def test_equal_facts_give_equal_ledgers_whatever_their_order():
    assert build()[0].head == build([(kind, dict(reversed(facts.items()))) for kind, facts in STORY])[0].head
    assert build()[0].head != build([("genesis", GENESIS[1] | {"seed": 4}), *STORY[1:]])[0].head


@pytest.mark.parametrize("change", ["another", "removed", "added"])
def test_a_changed_byte_shows(tmp_path, change):
    _, entries = build()
    path = write(tmp_path / "ledger.jsonl", entries)
    content = path.read_bytes()
    for place in [*range(0, len(content), 13), *range(len(content) - 60, len(content))]:
        new = {"another": bytes([content[place] ^ 1]), "removed": b"", "added": content[place : place + 1] + b" "}[
            change
        ]
        path.write_bytes(content[:place] + new + content[place + 1 :])
        assert shows(path), (place, content[place : place + 9])


def shows(path):
    try:
        entries, torn = read_ledger(path)
        verify(entries)
    except LedgerError:
        return True
    return torn


@pytest.mark.parametrize(
    ("change", "number"),
    [
        (lambda e: [*e[:4], *e[5:]], 5),
        (lambda e: [*e[:4], e[5], e[4], *e[6:]], 5),
        (lambda e: [*e[:4], e[3], *e[4:]], 5),
        (lambda e: e[1:], 1),
        (lambda e: [*e[:6], e[6] | {"loss": 9.0}, *e[7:]], 7),
        (lambda e: [*e[:6], e[6] | {"loss": math.nan}, *e[7:]], 7),
        (lambda e: [], 1),
    ],
    ids=["removed", "swapped", "repeated", "no genesis", "changed", "NaN", "empty"],
)
def test_changed_lines_are_named_by_their_number(change, number):
    with pytest.raises(LedgerError, match=f"^line {number} ") as caught:
        verify(change(build()[1]))
    assert caught.value.number == number


def test_lines_that_are_missing_at_the_end_show_against_a_head():
    ledger, entries = build()
    verify(entries[:-1])
    with pytest.raises(LedgerError, match=f"line {len(entries) - 1} has the hash"):
        verify(entries[:-1], ledger.head)


@pytest.mark.parametrize(
    ("text", "says"),
    [(b"{}x", "line 2 is not JSON"), (b"[1]", "line 2 is not an entry"), (b'{"a":1}', "line 2 was changed"),
     (b'{"a": NaN}', "line 2 is not JSON"), (b"\xff", "line 2 is not JSON"), (b"", "line 2 is not JSON")],
)  # fmt: skip
def test_a_line_that_is_no_entry_is_named(tmp_path, text, says):
    _, entries = build()
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(line(entries[0]).encode() + b"\n" + text + b"\n")
    with pytest.raises(LedgerError, match=says):
        read_ledger(path)


def test_an_unfinished_last_line_is_left_out_and_repaired_by_the_next_one(tmp_path):
    _, entries = build()
    path = write(tmp_path / "ledger.jsonl", entries[:5])
    path.write_bytes(path.read_bytes()[:-20])
    assert read_ledger(path) == (entries[:4], True)
    append_line(path, entries[4])
    assert read_ledger(path) == (entries[:5], False)


@pytest.mark.parametrize(
    ("kind", "facts", "says"),
    [
        (*GENESIS, "is a second genesis"),
        ("note", {}, "unknown kind 'note'"),
        (*joined(1), "peer 1 joined, but it is present"),
        ("joined", {"peer": 2}, "is a joined without time"),
        ("joined", {"peer": 2, "time": 2.0}, r"has the time 2.0, before that of an earlier line, 2.5"),
        ("left", {"peer": 2, "time": 2.5}, "left of peer 2, which has not joined or has left"),
        (*submission(1, 1, ["a1"], "x"), "submission 1 of peer 1 instead of 3"),
        (*submission(1, 4, ["a1"], "x"), "submission 4 of peer 1 instead of 3"),
        (*submission(1, 3, ["a3", "zz"], "x"), "has the parents a3 and zz instead of a3 and b2"),
        (*submission(1, 3, ["b2"], "x"), "has the parents b2 instead of a3 and b2"),
        (*submission(1, 3, ["start"], "x"), "has the parents start instead of"),
        (*submission(1, 3, [], "x"), r"parents = \[\], which is no such fact of a submission"),
        (*submission(0, 4, ["start"], "x"), "of peer 0, which has not chosen what it trains on from"),
        (*submission(2, 1, ["start"], "x"), "peer 2, which has not joined"),
        (*submission(1, 3, ["a3"], "x", steps=-1), "steps = -1"),
        (*submission(1, 3, ["a3"], "x", time=10**400), "is no such fact of a submission"),
        (*submission(1, 3, ["a3"], "x", time=1), "has the time 1, before"),
        ("joined", {"peer": True, "time": 9}, "peer = True"),
        (*vote(0, "start"), "is a vote for start, which is not the latest submission of peer 0"),
        (*vote(1, "a2"), "is a vote for a2, which is not the latest submission of peer 0"),
        (*vote(1, "b2"), "is a second vote of peer 1 on the same submission"),
        (*vote(2, "a3"), "peer 2, which has not joined"),
        (*choice(0, "zz"), "is a choice for zz, which is not the latest submission of peer 0"),
        (*choice(0, "a3", author=1), "is a choice for a3, which is not the latest submission of peer 1"),
        (*choice(1, "a3"), "is a choice of peer 1, which has not submitted what it trains"),
        ("choice", {"peer": 0, "chosen": "a3", "author": 0}, "is a choice without value"),
    ],
)
def test_what_may_not_follow_is_refused_and_changes_nothing(kind, facts, says):
    ledger, entries = build([*STORY, vote(1, "a3"), vote(1, "b2"), choice(1, "a3")])
    with pytest.raises(LedgerError, match=f"line {len(entries) + 1} .*{says}"):
        ledger.entry(kind, facts)
    assert (ledger.head, ledger.length) == (entries[-1]["hash"], len(entries))
    ledger.entry(*submission(1, 3, ["a3", "b2"], "b1"))  # the weights of an earlier one are no error


@pytest.mark.parametrize(
    ("changed", "facts", "says"),
    [
        (5, {"value": 2.0}, "line 6 has the value 2.0, but the votes before it give 1.0"),
        (7, {"score": 5.0}, "line 8 has the score 5.0, but its terms give 1.0"),
        (7, {"distance": -2.0, "score": -1.0}, "line 10 is a choice that the votes before it do not allow: .*is -1"),
        (12, {"parents": ["a1"]}, "line 13 has 1 parents with node = 'merge'"),
        (0, {"node": "select"}, "line 13 has 2 parents with node = 'select'"),
        (0, {"with_novelty": False}, "line 5 has the score 2.0, but its terms give 1.5"),
    ],
)
def test_choices_that_do_not_follow_from_the_votes_are_named(changed, facts, says):
    """Whoever writes a ledger can seal anything, but the choices must still follow."""
    story = [(kind, fact | facts if k == changed else fact) for k, (kind, fact) in enumerate(STORY)]
    _, entries = build(story)
    with pytest.raises(LedgerError, match=says):
        verify(entries)


@pytest.mark.parametrize(
    ("story", "says"),
    [
        ((*STORY[:9], choice(1, "b1")), "line 10 chooses the submission of peer 1, but .* is that of peer 0"),
        ((*STORY, choice(1, "a3")), "line 19 is a choice that .* candidates have no own score"),
    ],
)
def test_a_choice_of_another_one_or_without_votes_is_named(story, says):
    with pytest.raises(LedgerError, match=says):
        verify(build(story)[1])


def test_votes_of_others_count_in_a_choice_as_the_genesis_says():
    """Beside their means, a1 has 2/3 of peer 1 and 0.4 of peer 2."""

    def story(own_vote=0.5, num_examples=10):
        return (
            ("genesis", GENESIS[1] | {"own_vote": own_vote}),
            *[("joined", {"peer": peer, "time": 0.0}) for peer in range(3)],
            submission(0, 1, ["start"], "a1"),
            vote(2, "a1", 1.0, 1.0),
            submission(1, 1, ["start"], "b1"),
            vote(1, "a1", 2.0, 0.0),
            vote(1, "b1"),
            vote(2, "b1", 7.0, 1.0, num_examples),
            choice(1, "a1", 0.5 * 2 / 3 + 0.5 * 0.4),
        )

    verify(build(story())[1])
    with pytest.raises(LedgerError, match=r"line 11 has the value 0.53\d+, but the votes before it give 0.66"):
        verify(build(story(own_vote=1.0))[1])
    with pytest.raises(LedgerError, match=r"line 11 is a choice that .* needs at least 1"):
        verify(build(story(num_examples=0))[1])


def test_nothing_comes_before_the_genesis():
    with pytest.raises(LedgerError, match="line 1 is a joined before the genesis"):
        Ledger().entry(*joined(0))


@pytest.mark.parametrize("facts", [{"peer": 2, "time": 3, "hash": "x"}, {"peer": 2, "time": math.inf}])
def test_facts_that_a_line_cannot_hold_are_refused(facts):
    ledger, entries = build()
    with pytest.raises(ValueError, match=r"facts are called hash|not JSON compliant"):
        ledger.entry("joined", facts)
    assert ledger.length == len(entries)
    assert json.loads(line(entries[0]))["names"] == ["fedddpm", "Zürich"]
