"""The pictures of a run directory: plots and sheets of images. A picture that cannot be written gives a warning."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from fedddpm_app.diffusion.images import ImageTensors
from fedddpm_app.recording.curves import plot_losses, plot_metrics
from fedddpm_app.recording.files import optional
from fedddpm_app.recording.layout import AUXILIARY, PLOTS, SAMPLES, auxiliary_sheet, round_sheet
from fedddpm_app.recording.plots import plot_classes, plot_partition
from fedddpm_app.recording.samples import (
    REAL_SHEET,
    names_of,
    save_auxiliary_sheets,
    save_clients,
    save_real,
    save_rounds,
    save_samples,
)
from fedddpm_app.recording.sheets import save_pairs
from fedddpm_app.recording.sink import Sink


class RunPictures:
    """Writes the pictures of a run.

    Parameters
    ----------
    directory : Path
        The run directory; its name is part of the titles.

    Attributes
    ----------
    sink : Sink or None
        What also gets the sheets of images.
    """

    def __init__(self, directory: Path) -> None:
        self.sink: Sink | None = None
        self._directory = directory
        self._plots = directory / PLOTS

    def save_partition(self, counts: Tensor, class_names: Sequence[str]) -> None:
        """Plot the clients' training images per class; ``counts`` is int64 of shape (clients, classes)."""
        with optional(self._plots):
            plot_partition(counts, class_names, self._plots / "partition.png")

    def save_auxiliary(self, data: ImageTensors, clients: list[int], class_names: Sequence[str]) -> None:
        """Write a sheet per client of its images in D_aux; ``clients`` holds the partition id of each image."""
        folder = self._directory / AUXILIARY
        with optional(folder):
            save_auxiliary_sheets(data, clients, folder, self._directory.name, class_names)
            for client in sorted(set(clients)):
                self._pass_on(auxiliary_sheet(folder, client), f"auxiliary/client-{client:04d}", of_clients=True)

    def save_samples(
        self,
        images: Tensor,
        server_round: int,
        about: str,
        *,
        of_clients: bool,
        labels: Tensor | None = None,
        class_names: Sequence[str] = (),
        name: str = "",
    ) -> None:
        """Write a round's sheet of generated images, and the strip over the rounds.

        ``about`` is the part of the title about weights and sampler; ``name`` identifies one of several models.
        ``of_clients``: the images are of clients' own models.
        """
        folder = self._directory / SAMPLES
        owner = f"{self._directory.name}{name and ', '}{name}"
        title = f"{owner}, round {server_round}: {about}"
        with optional(folder):
            path = round_sheet(folder, server_round, name)
            save_samples(images, path, title, labels, class_names)
            self._pass_on(path, f"samples/{name or 'model'}", server_round, of_clients)
            save_rounds(folder, f"{owner}, {about}", name, names_of(labels, class_names))

    def save_real(self, data: ImageTensors, count: int, class_names: Sequence[str]) -> None:
        """Write a sheet of about ``count`` real images of the test split, once."""
        folder = self._directory / SAMPLES
        if not (folder / REAL_SHEET).exists():
            with optional(folder):
                save_real(data, folder / REAL_SHEET, count, "Real images of the test split", class_names)

    def save_clients(self, images: Mapping[str, Tensor], server_round: int, about: str) -> None:
        """Write one sheet with a row for each client's model; ``images`` are uint8 (N, C, H, W), by model."""
        folder = self._directory / SAMPLES
        with optional(folder):
            title = f"{self._directory.name}, round {server_round}: {about}"
            path = round_sheet(folder, server_round, "clients")
            save_clients(images, path, title)
            self._pass_on(path, "samples/clients", server_round, of_clients=True)

    def save_classes(self, metric: Mapping[str, object], class_names: Sequence[str], name: str = "") -> None:
        """Plot the classes of the metric ``class-tv``; ``name`` identifies the model if a run has several."""
        path = self._plots / f"classes{name and '-'}{name}.png"
        with optional(path):
            plot_classes(metric, class_names, path, name)

    def save_pairs(
        self, generated: Tensor, train: Tensor, ratios: Tensor, threshold: float, folder: str, name: str = ""
    ) -> None:
        """Write a sheet of images above their closest training images into ``samples`` or ``auxiliary``."""
        path = self._directory / folder / f"closest-pairs{name and '-'}{name}.png"
        with optional(path):
            kind = "auxiliary set" if folder == AUXILIARY else f"final model{name and ' of '}{name}"
            save_pairs(generated, train, ratios, threshold, path, f"{self._directory.name}, {kind}")
            self._pass_on(path, f"{folder}/{path.stem}", of_clients=True)  # it has training images

    def save_curves(self, stats: Sequence[Mapping[str, object]]) -> None:
        """Plot the losses and the metrics in the lines of ``stats.jsonl``."""
        with optional(self._plots):
            if stats:
                plot_losses(stats, self._plots / "losses.png", self._directory.name)
                plot_metrics(stats, self._plots / "metrics.png", self._directory.name)

    def _pass_on(self, path: Path, name: str, server_round: int | None = None, of_clients: bool = False) -> None:
        """Give a sheet to the sink; without images, none was written."""
        if self.sink is not None and path.is_file():
            self.sink.picture(path, name, server_round=server_round, of_clients=of_clients)
