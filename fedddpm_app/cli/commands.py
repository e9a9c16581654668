"""The declarations of all commands; ``deferred`` imports their work when they run."""

import platform
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from fedddpm_app.cli.deferred import done_by
from fedddpm_app.cli.options import (
    LARGEST_MB,
    AppOption,
    DeviceOption,
    Engine,
    LargestOption,
    RunConfigOption,
    SuperlinkOption,
    TotalOption,
)
from fedddpm_app.limits import DELIVERY_MB

# as in ``config.fields``, whose import would take longer than all other work of the help
SAMPLERS = "ddpm | ddim | dpm-solver++"
EXTRACTORS = "auto | classifier | efficientnet-lite0 | inception-v3 | pixels-pca"
_LARGEST_SEED = 2**32 - 1

app = typer.Typer(
    help="Federated training of diffusion models on Flower.", no_args_is_help=True, pretty_exceptions_show_locals=False
)
data = typer.Typer(help="Inspect, check and export the data without training.", no_args_is_help=True)


def print_version(wanted: bool) -> None:
    """Print the versions of this package and of the packages that it stands on, and exit."""
    if wanted:
        on = ", ".join(f"{name} {_version(name)}" for name in ("flwr", "torch", "diffusers"))
        typer.echo(f"fedddpm {_version('fedddpm-app')} ({on}, Python {platform.python_version()})")
        raise typer.Exit


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the versions and exit.")
    ] = False,
) -> None:
    """Federated training of diffusion models on Flower."""


@app.command()
@done_by("start:start")
def run(
    run_config: RunConfigOption = None,
    engine: Annotated[
        Engine, typer.Option(help="simulation: `flwr run` with Ray; inprocess: one process, for debugging.")
    ] = (Engine.simulation),
    federation_config: Annotated[
        str, typer.Option(metavar="TEXT", help="For `flwr run --federation-config`, see above.")
    ] = "",
    app_dir: AppOption = None,
    superlink: SuperlinkOption = "",
    resume: Annotated[str, typer.Option(metavar="RUN", help="Continue the run in this folder, with its config.")] = "",
    resume_previous: Annotated[
        bool, typer.Option("--resume-previous", help="Continue from the checkpoint before the newest one.")
    ] = False,
) -> None:
    """Run an experiment to its end. The exit code is 0 if it completes, 1 if it fails, 2 for a bad config.

    -c takes keys, -c 'algorithm=fedavg seed=1', or a TOML file, -c conf/fedavg.toml.

    Several -c add up; the last one counts for a key in two of them.

    --federation-config has the resources of simulated clients: 'client-resources-num-gpus=0.5'.

    With --superlink the experiment runs on that SuperLink's nodes, and its run directory is fetched at the end.

    --resume continues a run that was killed, failed or interrupted. With --superlink, RUN is a folder on the server's
    host, and -c repeats the run's keys.
    """


@app.command()
@done_by("sample:sample")
def sample(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, or any diffusers pipeline folder.")],
    num_images: Annotated[
        int, typer.Option(min=1, help="Images; a conditional model rounds up to equal numbers per class.")
    ] = 64,
    sampler: Annotated[
        str | None, typer.Option(help=f"{SAMPLERS} | pipeline (its own scheduler); default: dpm-solver++ if it fits.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps; default: 25, or the pipeline's.")] = None,
    eta: Annotated[float | None, typer.Option(min=0, max=1, help="Noise of ddim: 0 = none, the default.")] = None,
    guidance: Annotated[
        float | None, typer.Option(min=0, help="Classifier-free guidance of a model with classes; default: its own.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise that the images start from.")] = 0,
    device: DeviceOption = "auto",
    out: Annotated[
        Path | None, typer.Option(help="PNG file to write; default: in samples/ of the run directory.")
    ] = None,
) -> None:
    """Generate new images with the model of a completed run, and write them as one PNG sheet."""


@app.command()
@done_by("evaluate:evaluate")
def evaluate(
    target: Annotated[Path, typer.Argument(metavar="RUN_OR_PIPELINE", help="A run directory, or a pipeline folder.")],
    dataset: Annotated[str | None, typer.Option(help="Data set, as for the key `dataset`.")] = None,
    num_images: Annotated[int, typer.Option(min=2, help="Images to generate.")] = 2000,
    reference: Annotated[str | None, typer.Option(help="Real images to compare with: test | train")] = None,
    extractor: Annotated[str | None, typer.Option(help=EXTRACTORS)] = None,
    inception_weights: Annotated[
        str | None, typer.Option(help="torch-fidelity's weights file; metrics become FID.")
    ] = None,
    sampler: Annotated[str | None, typer.Option(help=f"{SAMPLERS} | pipeline (its own scheduler)")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.")] = None,
    eta: Annotated[float | None, typer.Option(min=0, max=1, help="Noise of ddim; default: the run's ddim-eta.")] = None,
    guidance: Annotated[
        float | None, typer.Option(min=0, help="Classifier-free guidance of a model with classes; default: its own.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images generated per batch.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=_LARGEST_SEED, help="Of the images' noise; default: the run's seed.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; default: the run's server-threads, or all threads.")
    ] = None,
    device: DeviceOption = "auto",
    cache_dir: Annotated[str | None, typer.Option(help="Cache folder, as for the key `cache-dir`.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="JSON file to write; default: evaluation.json in the run, or in this folder.")
    ] = None,
) -> None:
    """Compare generated images with real images; write a table, a JSON file, and plots in the file's folder.

    Options default to the run's config. For another pipeline they default to the app's config and the pipeline's
    own sampler.
    """


@app.command("export")
@done_by("export:export_run")
def export_run(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="The directory of a completed run.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    client: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="The client, in a run whose clients have their own models.")
    ] = None,
    license_id: Annotated[
        str, typer.Option("--license", metavar="ID", help="The model's licence, such as apache-2.0.")
    ] = "",
    samples: Annotated[int, typer.Option(min=0, help="Images on the card's sheet; 0 = no sheet.")] = 40,
    device: DeviceOption = "auto",
    push_to: Annotated[
        str, typer.Option("--push", metavar="REPO", help="Also make this repository on the Hugging Face hub.")
    ] = "",
    public: Annotated[bool, typer.Option("--public", help="Everyone can read the repository; else it is private.")] = (
        False
    ),
) -> None:
    """Write a run's model as a diffusers pipeline with a model card, ready for the Hugging Face hub.

    DIR gets the weights as safetensors, README.md (data, algorithm, metrics with floors, privacy, how to repeat the
    run), and a sheet of generated images. No image of a client, no path and no name of a host is in it.
    """


@app.command()
@done_by("compare:compare")
def compare(
    grid: Annotated[Path, typer.Argument(metavar="GRID.toml", help="A grid file: see docs/comparing.md.")],
    run_config: RunConfigOption = None,
    app_dir: AppOption = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the grid; default: runs/compare-NAME.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Cells at a time; default: as many as the CPUs take.")
    ] = None,
    publish: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write NAME.json, small pictures, and the cells' metrics.")
    ] = None,
    restore: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Take the cells that --publish wrote to this folder.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the plan.")] = False,
    no_run: Annotated[
        bool, typer.Option("--no-run", help="Run no cell: write, and publish, the results of those that are complete.")
    ] = False,
) -> None:
    r"""Compare algorithms: run a grid of rows x conditions x seeds at matched cost, and write its results.

    The next call continues a grid that was stopped, tries failed cells again, and skips complete ones. Ctrl-C stops the
    cells in order. The exit code is 1 if a cell failed, 2 for a bad grid file.

    -c adds keys to \[base] of the grid file, such as 'dataset="path:/data/mnist"'.
    """


@app.command()
@done_by("audit:audit")
def audit(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="The directory of a completed run.")],
    client: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Attack with the images of this client alone.")
    ] = None,
    data_path: Annotated[
        str, typer.Option(metavar="DIR", help="The folder of that client, on its own host, as for a SuperNode.")
    ] = "",
    images: Annotated[int, typer.Option(min=2, help="Most members, and most other images, per model.")] = 500,
    draws: Annotated[int, typer.Option(min=1, help="Noises per image and noise level.")] = 4,
    references: Annotated[
        int, typer.Option(min=0, help="Reference models per model, for the likelihood ratio: 0, or at least 2.")
    ] = 4,
    samples: Annotated[int, typer.Option(min=0, help="Images of the final model to look for copies in.")] = 500,
    device: DeviceOption = "auto",
    cache_dir: Annotated[str | None, typer.Option(help="Cache folder, as for the key `cache-dir`.")] = None,
    algorithm: Annotated[
        str | None, typer.Option(metavar="MODULE:CLASS", help="The class of your own algorithm, if the run has one.")
    ] = None,
    app_dir: AppOption = None,
) -> None:
    """Try known attacks on a run, where its training images are at hand, and say what it leaks.

    It attacks the final model, the clients' own models if they left them (trained again, which gives the same models),
    and the auxiliary set: membership inference, and near copies of training images. The results are audit.json and
    plots/audit.png in the run directory.
    """


@app.command()
@done_by("report:report")
def report(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN_OR_COMPARISON", help="A run directory, or the folder of a comparison.")
    ],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: report.html in that folder.")] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Write it again after each round; an open page renews itself.")
    ] = False,
    closest_pairs: Annotated[
        bool, typer.Option("--closest-pairs", help="Also show the training images that samples resemble most.")
    ] = False,
) -> None:
    """Write one HTML file about a run or a comparison, which opens offline, on a phone, and on paper.

    A run may still be going on. The file has the plots, images, metrics, costs, faults and the configuration. It has
    no path of this machine; a warning of the log that it quotes may name a host.
    """


@app.command()
@done_by("ledger:ledger")
def ledger(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="The directory of a run with algorithm = pdfed.")],
) -> None:
    """Verify the ledger of a run of peers: who submitted, voted for and chose which model; draw the provenance.

    The picture is plots/provenance.png in the run directory. The exit code is 1 if a line of the ledger was changed.
    """


@app.command()
@done_by("fetch:fetch")
def fetch(
    run_id: Annotated[str, typer.Argument(help="The run's number in `flwr run` or `flwr ls`.")],
    superlink: SuperlinkOption = "",
    out: Annotated[Path, typer.Option(help="Parent folder of the run's folder.")] = Path("runs"),
    largest_mb: LargestOption = LARGEST_MB,
    total_mb: TotalOption = DELIVERY_MB,
) -> None:
    """Copy the run directory of a deployed run to this machine, over the connection that starts runs."""


@app.command()
@done_by("clean:clean")
def clean(
    runs: Annotated[Path, typer.Argument(metavar="[RUNS]", help="Parent folder of run directories.")] = Path("runs"),
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    resumable: Annotated[
        bool, typer.Option("--resumable", help="Also remove what a stopped run needs to be resumed.")
    ] = False,
    headless: Annotated[
        bool, typer.Option("--headless", help="Also stop runs that go on although their command was killed.")
    ] = False,
) -> None:
    """Show what dead runs left on this machine (shared memory, temporary folders, processes), and remove it.

    Run directories stay; only files that a run removes at its end are removed from them. Things of other users, and of
    runs that are alive, are not touched.
    """


@app.command()
@done_by("new:new")
def new(folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or an empty folder.")]) -> None:
    """Write an app folder for an algorithm of your own, which `fedddpm run --app DIR` and `flwr run DIR` accept."""


@app.command()
@done_by("config:config")
def config(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[WORD]...", help="Show only keys with these words.")
    ] = None,
    used: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Show the values of a run that differ from the defaults.")
    ] = None,
    app_dir: AppOption = None,
) -> None:
    """List the keys of --run-config with type, default, and meaning with unit.

    The output into a file or a pipe is TOML, which --run-config reads again.
    """


app.add_typer(data, name="data")


@data.callback()
def data_main() -> None:
    """Inspect, check and export the data without training."""


@data.command()
@done_by("data:inspect")
def inspect(
    run_config: RunConfigOption = None,
    app_dir: AppOption = None,
    out: Annotated[
        Path | None, typer.Option(help="PNG file for the plot of the partition; by default partition.png.")
    ] = None,
) -> None:
    """Print the splits, and each client's images and classes, and plot the partition. Accepts a run's keys.

    Without these keys, image size, channels, number of classes and partition fit the data. The last line is a command
    that runs with them.
    """


@data.command()
@done_by("data:site")
def site(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of one site's images (its data-path).")],
    run_config: RunConfigOption = None,
    app_dir: AppOption = None,
    partition_id: Annotated[int, typer.Option(min=0, help="The site's partition-id.")] = 0,
) -> None:
    """Print the images that a SuperNode with this data-path trains on, or the error. Accepts a run's keys."""


@data.command()
@done_by("data:export")
def export(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="New folder to write one sub-folder per client to.")],
    run_config: RunConfigOption = None,
    app_dir: AppOption = None,
) -> None:
    """Write each client's images, and the test split, to a separate sub-folder, for `partition="sites"`."""
