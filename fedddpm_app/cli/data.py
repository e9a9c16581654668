"""`fedddpm data`: inspect, check and export the data without training."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text
from torch import Tensor

from fedddpm_app.cli.common import AppOption, RunConfigOption, console, find_app, parse_overrides, refuse, say
from fedddpm_app.cli.console import WorkView
from fedddpm_app.config import Config, ConfigError, Scalar, default_run_config, load_config
from fedddpm_app.data.dataset import FederatedDataset, open_dataset
from fedddpm_app.data.export import export_sites
from fedddpm_app.data.settings import AUTO, AUTO_KEYS, as_words, fitting_settings, given_keys, read_auto
from fedddpm_app.data.store import StoredSplit
from fedddpm_app.launch.flower_run import to_toml
from fedddpm_app.recording.plots import plot_partition

app = typer.Typer(help="Inspect, check and export the data without training.", no_args_is_help=True)
_MAX_COLUMNS = 20  # with more classes, the table has no column per class


@app.callback()
def main() -> None:
    """Inspect, check and export the data without training."""


@app.command()
def inspect(
    run_config: RunConfigOption = None,
    app_dir: AppOption = None,
    out: Annotated[Path, typer.Option(help="PNG file for the plot of the partition.")] = Path("partition.png"),
) -> None:
    """Print the splits, and each client's images and classes, and plot the partition. Accepts a run's keys.

    Without these keys, image size, channels, number of classes and partition fit the data. The last line is a command
    that runs with them.
    """
    if out.suffix.lower() != ".png":
        refuse(f"--out {out} is not a PNG file: give a name that ends in .png.")
    try:
        overrides = parse_overrides("--run-config", run_config or [])
        with WorkView(console):
            config, settings = _fit(default_run_config(find_app(app_dir)), overrides)
            command = shlex.quote(to_toml(overrides | settings))
            dataset = open_dataset(config.data, config.run.seed)
            stored, table = dataset.splits, dataset.label_table
    except ConfigError as error:
        refuse(str(error))
    console.print(_splits_table(stored, config))
    console.print(_clients_table(dataset, table, config))
    names, unassigned = dataset.class_names, dataset.num_unassigned
    if unassigned:
        say(f"with this partition, no client gets {unassigned:,} images of the training split")
    if config.data.image_channels == 1 and stored["train"].info.num_grey == 0:
        say("colour images become grey: image-channels = 1")
    if any(name != str(k) for k, name in enumerate(names)):
        say("classes: " + ", ".join(f"{k} {name}" for k, name in enumerate(names)))
    try:
        plot_partition(table, names, out)
    except OSError as error:
        refuse(f"--out {out} cannot be written ({error.strerror}): give another file.")
    say(f"plot: {out.resolve()}")
    say(f"fedddpm run{f' --app {shlex.quote(str(app_dir))}' if app_dir else ''} -c {command}")


@app.command()
def site(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of one site's images (its data-path).")],
    run_config: RunConfigOption = None,
    app_dir: AppOption = None,
    partition_id: Annotated[int, typer.Option(min=0, help="The site's partition-id.")] = 0,
) -> None:
    """Print the images that a SuperNode with this data-path trains on, or the error. Accepts a run's keys."""
    try:
        config = _load(app_dir, run_config)
        dataset = open_dataset(config.data, config.run.seed, str(folder.absolute()))
        with WorkView(console):
            rows, labels = dataset.client(partition_id), dataset.train.labels
    except ConfigError as error:
        refuse(str(error))
    console.print(_splits_table(dataset.splits, replace(config, data=replace(config.data, dataset=str(folder)))))
    if labels is not None:
        counts = labels[rows.train].bincount(minlength=config.data.num_classes).tolist()
        held = zip(dataset.class_names, counts, strict=True)
        say("classes: " + ", ".join(f"{count} {name}" for name, count in held if count))
    say(f"this site trains on {len(rows.train):,} images and evaluates on {len(rows.held_out):,} other images")


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="New folder to write one sub-folder per client to.")],
    run_config: RunConfigOption = None,
    app_dir: AppOption = None,
) -> None:
    """Write each client's images, and the test split, to a separate sub-folder, for `partition="sites"`."""
    try:
        config = _load(app_dir, run_config)
        with WorkView(console):
            dataset = open_dataset(config.data, config.run.seed)
            written = export_sites(dataset, folder)
            names, has_labels = dataset.class_names, dataset.train.labels is not None
    except ConfigError as error:
        refuse(str(error))
    for path in written:
        say(str(path))
    names = names or [str(label) for label in range(config.data.num_classes)] if has_labels else []
    say("Use them with:")
    say(
        f'--run-config \'partition="sites" dataset="path:{folder.resolve()}" num-clients={config.data.num_clients} '
        f'class-names="{",".join(names)}" image-size={config.data.image_size} '
        f"image-channels={config.data.image_channels}'"
    )


def _load(app_dir: Path | None, run_config: list[str] | None) -> Config:
    """Return the app's run config with the overrides applied, and with numbers for the keys that are auto."""
    values = default_run_config(find_app(app_dir)) | parse_overrides("--run-config", run_config or [])
    return load_config(values | read_auto(values))


def _fit(defaults: dict[str, Scalar], overrides: dict[str, Scalar]) -> tuple[Config, dict[str, Scalar]]:
    """Return a config that fits the data, and the settings that make it fit; keys that the user gave stay."""
    values = defaults | overrides
    given = given_keys(values, overrides)
    values |= {key: AUTO for key in AUTO_KEYS if key not in given}
    settings = read_auto(values)
    config = load_config(values | settings)
    changes = fitting_settings(config, given)
    if changes:
        say(f"{as_words(changes)}: the defaults do not fit these data")
        config = load_config(values | settings | changes)
    return config, settings | changes


def _splits_table(stored: dict[str, StoredSplit], config: Config) -> Table:
    size, channels = config.data.image_size, config.data.image_channels
    table = _table(f"{config.data.dataset}, as {size}x{size}x{channels}", "split", "images", "of them grey", "left out")
    table.add_column("classes", justify="right")
    table.add_column("SHA-256")
    for split, part in stored.items():
        info, labels = part.info, part.data.labels
        classes = "no labels" if labels is None else str(int((labels.bincount() > 0).sum()))
        counts = (f"{info.num_images:,}", f"{info.num_grey:,}", str(len(info.bad)), classes)
        table.add_row(split, *counts, info.digest[:16])
    return table


def _clients_table(dataset: FederatedDataset, counts: Tensor, config: Config) -> Table:
    """Return a table with a row per client: its training images, in total and per class, and its held-out images."""
    num_classes = counts.shape[1]
    each = [str(k) for k in range(num_classes)] if num_classes <= _MAX_COLUMNS else ["classes"]
    title = f'partition = "{config.data.partition}", seed = {config.run.seed}: images that a client trains on'
    table = _table(title, "client", "images", "held out", *(each if num_classes > 1 else []))
    for partition_id, (client, own) in enumerate(zip(dataset.clients, counts, strict=True)):
        table.add_row(str(partition_id), str(len(client.train)), str(len(client.held_out)), *_cells(own))
    table.add_section()
    held_out = sum(len(client.held_out) for client in dataset.clients)
    table.add_row("all", str(int(counts.sum())), str(held_out), *_cells(counts.sum(0)))
    return table


def _cells(counts: Tensor) -> list[str]:
    """Return a client's images per class. Many classes give only the number of its classes, one class gives no cell."""
    if len(counts) <= 1:
        return []
    if len(counts) > _MAX_COLUMNS:
        return [str(int((counts > 0).sum()))]
    return [str(count) if count else "·" for count in counts.tolist()]


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table
