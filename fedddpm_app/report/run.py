"""The report of a run."""

from pathlib import Path

from fedddpm_app.recording.status import COMPLETED
from fedddpm_app.report.blocks import Facts, Page, Section, cell
from fedddpm_app.report.curves import classes, final_metrics, losses, metrics_over_rounds
from fedddpm_app.report.decisions import decisions, privacy
from fedddpm_app.report.facts import costs, faults, holders
from fedddpm_app.report.images import closest_pairs, images
from fedddpm_app.report.pictures import Pictures
from fedddpm_app.report.reading import StoredRun
from fedddpm_app.report.settings import settings

_HEADLINES = ("fid", "fd-", "class-tv", "memorized-share", "recall", "kd-")  # the starts of names, best first


def run_page(directory: Path, *, pairs: bool = False, refresh: int = 0) -> Page:
    """Return the report of a run directory, at any time of the run.

    Parameters
    ----------
    directory : Path
        The run directory; files that are missing or damaged leave their part out.
    pairs : bool
        Whether it shows the closest pairs, which contain training images.
    refresh : int
        Seconds after which a browser reads the file again while the run goes on; 0 = never.
    """
    run, pictures = StoredRun(directory), Pictures(directory)
    shown = images(run, pictures)
    sections = [
        Section("result", "Result", [*_headlines(run), *final_metrics(run)]),
        Section("data", "Who holds what", holders(run)),
        Section("curves", "Losses and metrics", [*losses(run), *metrics_over_rounds(run), *classes(run)], by_cost=True),
        Section("images", "Images: real, auxiliary, generated", shown),
        Section("pairs", "Closest pairs", closest_pairs(run, pictures) if pairs else []),
        Section("decisions", "Decisions and other values", decisions(run)),
        Section("costs", "Communication and time", costs(run)),
        Section("faults", "Faults and refusals", faults(run)),
        Section("privacy", "Privacy", privacy(run)),
        Section("settings", "Configuration", settings(run)),
    ]
    state = run.status.state
    return Page(run.name, "run", state, _summary(run), sections, 0 if run.status.is_final else refresh)


def _summary(run: StoredRun) -> str:
    """Return one sentence about algorithm, data and progress."""
    done = run.rounds[-1].round if run.rounds else 0
    keys = ("algorithm", "dataset", "num-clients", "partition", "num-rounds", "seed")
    algorithm, dataset, clients, partition, rounds, seed = (cell(run.config.get(key)) for key in keys)
    return (
        f"{algorithm} on {dataset}, {clients} clients, partition {partition}: {done} of {rounds} rounds, seed {seed}."
    )


def _headlines(run: StoredRun) -> list[Facts]:
    """Return the first final metrics with their floors; before the end, the last loss."""
    chosen = [metric for start in _HEADLINES for metric in run.metrics if metric["name"].startswith(start)][:3]
    found = [
        (metric["name"], cell(metric.get("value")), f"floor {cell(metric.get('floor'))}, {better} is better")
        for metric in chosen
        for better in [cell(metric.get("better"))]
    ]
    last = run.rounds[-1] if run.rounds else None
    if last is not None:
        for key, name in (("eval/ema_loss", "loss, test split"), ("train/loss", "loss, clients")):
            if (value := last.number(key)) is not None:
                found.append((name, cell(value), f"after round {last.round}"))
                break
    if run.status.state != COMPLETED and run.lines:
        found.append(("last line", run.lines[-1].name, "of stats.jsonl"))
    return [Facts(found)] if found else []
