"""`fedddpm data`: inspect, check and export the data without training."""

import shlex
from dataclasses import replace
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text
from torch import Tensor

from fedddpm_app.cli.common import RUN_CONFIG, console, find_app, read_config, refuse, say
from fedddpm_app.cli.work_view import WorkView
from fedddpm_app.config import (
    Config,
    ConfigError,
    Scalar,
    default_run_config,
    kinds_of_keys,
    load_config,
    read_overrides,
)
from fedddpm_app.config.auto import AUTO, AUTO_KEYS
from fedddpm_app.data.dataset import FederatedDataset, open_dataset
from fedddpm_app.data.export import export_sites
from fedddpm_app.data.settings import as_words, fitting_settings, given_keys, read_auto
from fedddpm_app.data.sites import SITES
from fedddpm_app.data.store import StoredSplit
from fedddpm_app.launch.flower_run import to_toml
from fedddpm_app.recording.plots import plot_partition

_MAX_COLUMNS = 20  # with more classes, the table has no column per class


def inspect(run_config: list[str] | None, app_dir: Path | None, out: Path | None) -> None:
    """Print the splits and the clients, and plot the partition; ``commands.inspect`` describes the arguments."""
    if out and out.suffix.lower() != ".png":
        refuse(f"--out {out} is not a PNG file: give a name that ends in .png.")
    try:
        given = read_overrides(RUN_CONFIG, run_config or [], kinds_of_keys())
        if given.problems:
            raise ConfigError("\n".join(given.problems))
        with WorkView(console):
            config, settings = _fit(default_run_config(find_app(app_dir)), given.values)
            command = shlex.quote(" ".join(to_toml(given.values | settings).splitlines()))
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
    plot = out or Path("partition.png")
    try:
        plot_partition(table, names, plot)
    except OSError as error:
        problem = f"{plot} cannot be written ({error.strerror or error})"
        if out:
            refuse(f"--out {problem}: give another file.")
        say(f"no plot: {problem}; give a writable file with --out.")
    else:
        say(f"plot: {plot.resolve()}")
    say(f"fedddpm run{f' --app {shlex.quote(str(app_dir))}' if app_dir else ''} -c {command}")


def site(folder: Path, run_config: list[str] | None, app_dir: Path | None, partition_id: int) -> None:
    """Print the images of one site; ``commands.site`` describes the arguments."""
    try:
        config = _load(app_dir, run_config)
        dataset = open_dataset(replace(config.data, partition=SITES), config.run.seed, str(folder.absolute()))
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


def export(folder: Path, run_config: list[str] | None, app_dir: Path | None) -> None:
    """Write a folder per client; ``commands.export`` describes the arguments."""
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
        f"image-channels={config.data.image_channels} num-classes={config.data.num_classes} "
        f"min-partition-size={config.data.min_partition_size}'"
    )


def _load(app_dir: Path | None, run_config: list[str] | None) -> Config:
    """Return the app's run config with the overrides applied."""
    return read_config(find_app(app_dir), run_config)[0]


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
