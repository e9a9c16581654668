"""`fedddpm ledger`: verify the ledger of a run of peers, summarise it, and draw its provenance."""

from collections.abc import Sequence
from pathlib import Path

import typer
from rich import box
from rich.table import Table

from fedddpm_app.cli.common import FAILED, console, refuse, say
from fedddpm_app.cli.writing import failing_to_write
from fedddpm_app.peers.ledger import LEDGER, Entry, StoredLedger, read_ledger, verify
from fedddpm_app.peers.rules import LedgerError
from fedddpm_app.peers.summary import PeerSummary, Submission, best, peers_of, submissions_of
from fedddpm_app.recording.files import writing
from fedddpm_app.recording.lanes import Model, plot_provenance
from fedddpm_app.recording.layout import PLOTS

PICTURE = "provenance.png"


def ledger(run_dir: Path) -> None:
    """Verify, print and draw; ``commands.ledger`` describes the argument."""
    path = run_dir / LEDGER
    if not path.is_file():
        refuse(f"RUN = {run_dir}: there is no {LEDGER} in it; give the directory of a run with algorithm = pdfed.")
    try:
        stored = _verified(path)
    except LedgerError as error:
        say(f"{path} is not valid: {error}.")
        raise typer.Exit(FAILED) from error
    except OSError as error:
        refuse(f"{path} cannot be read ({error.strerror}): make it readable.")
    if stored.torn:
        say(
            f"{path}: line {len(stored.entries) + 1} is unfinished, as a process that is killed leaves it, and is left "
            "out here; fedddpm run --resume removes it."
        )
    submissions = submissions_of(stored.entries)
    _print_peers(peers_of(stored.entries), run_dir.resolve().name)
    _print_best(submissions)
    if submissions:
        _draw(submissions, run_dir)
    say(f"{path}: {_count(len(stored.entries), 'entry', 'entries')}, the chain is valid, head {_head(stored.entries)}")


def _verified(path: Path) -> StoredLedger:
    stored = read_ledger(path)
    verify(stored.entries)
    return stored


def _print_peers(peers: Sequence[PeerSummary], run: str) -> None:
    table = Table(title=f"{run}: peers", title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    for column in ("peer", "submissions", "steps", "votes", "chosen by itself", "by others"):
        table.add_column(column, justify="right")
    for peer in peers:
        table.add_row(*(f"{number:,}" for number in peer))
    console.print(table)


def _print_best(submissions: Sequence[Submission]) -> None:
    """Print the best submission with and without the novelty term."""
    for name, found in (
        ("Q-N", best(submissions, lambda one: one.quality)),
        ("distance alone", best(submissions, lambda one: one.distance)),
    ):
        if found is None:
            say(f"best by {name}: nobody voted")
            continue
        say(
            f"best by {name}: submission {found.number} of peer {found.peer} ({found.digest[:12]}), Q-N "
            f"{found.quality:.4g}, distance {found.distance:.4g}, means of {_count(found.num_votes, 'vote', 'votes')}"
        )


def _draw(submissions: Sequence[Submission], run_dir: Path) -> None:
    models = [Model(one.digest, one.peer, one.number, one.time, one.parents, one.quality) for one in submissions]
    path = run_dir / PLOTS / PICTURE
    with failing_to_write(), writing(path):
        plot_provenance(models, path, "Q-N, mean of the votes", run_dir.resolve().name)
    say(f"provenance: {path}")


def _head(entries: Sequence[Entry]) -> str:
    return str(entries[-1]["hash"])[:12]


def _count(number: int, one: str, several: str) -> str:
    return f"{number:,} {one if number == 1 else several}"
