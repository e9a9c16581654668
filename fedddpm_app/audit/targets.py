"""The models of a run that attacks are tried on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch.nn import Module

from fedddpm_app.algorithms import get_algorithm
from fedddpm_app.algorithms.fedddpm import FedDDPM
from fedddpm_app.audit.pools import Pool, pool_of
from fedddpm_app.auxiliary.pretraining import train_own
from fedddpm_app.auxiliary.uploads import PretrainedModel, UploadFiles
from fedddpm_app.config import Config, ConfigError
from fedddpm_app.device import cpu_threads, resolve_device
from fedddpm_app.diffusion.ensemble import find_ensembles, number_of
from fedddpm_app.diffusion.images import ImageTensors
from fedddpm_app.diffusion.pipelines import load_pipeline
from fedddpm_app.diffusion.unet import create_unet
from fedddpm_app.experiment.task import DiffusionTask
from fedddpm_app.progress import note
from fedddpm_app.recording.files import read_lines
from fedddpm_app.recording.layout import STATS, UNFINISHED
from fedddpm_app.recording.reading import row_of
from fedddpm_app.seeding import derive_seed
from fedddpm_app.training.actions import ActionRequest
from fedddpm_app.training.privacy_ledger import PrivacyLedger
from fedddpm_app.training.trainer import create_trainer
from fedddpm_app.transport.wire import down_dtype, get_wire
from fedddpm_app.weights import Weights, load_into, snapshot


class Kind(StrEnum):
    """What is attacked; a part of the names of metrics."""

    FINAL = "final"
    OWN = "own-models"
    AUXILIARY = "auxiliary"


@dataclass(frozen=True)
class Target:
    """A model, and how another one like it is trained.

    Attributes
    ----------
    name : str
        For readers.
    kind : Kind
        A final model, or a client's own model that left it.
    pool : Pool
        All images for attacks on it.
    load : callable
        Returns the model.
    train : callable
        Returns a reference model: ``(images, number) -> model``.
    """

    name: str
    kind: Kind
    pool: Pool
    load: Callable[[], Module]
    train: Callable[[ImageTensors, int], Module]


class Targets:
    """Finds the targets of a run.

    Parameters
    ----------
    run_dir : Path
        The directory of a completed run.
    config : Config
        Its config.
    task : DiffusionTask
        Its task, with the images.
    clients : sequence of int
        The clients whose images this host has.
    """

    def __init__(self, run_dir: Path, config: Config, task: DiffusionTask, clients: Sequence[int]) -> None:
        self._run_dir = run_dir
        self._config = config
        self._training = without_limits(config)
        self._task = task
        self._clients = clients
        self._conditional = config.data.class_conditional

    def final(self) -> list[Target]:
        """Return the run's final models: the global one, or those of the clients."""
        found = []
        for name, ensemble in find_ensembles(self._run_dir).items():
            for number, folder in ensemble.folders.items():
                client = number if ensemble.of_clients else number_of(name) if name else None
                if client is None:
                    pool = pool_of(self._task.data, self.trained(), conditional=self._conditional)
                    whole = self._loading(folder), self._train_as_in_rounds
                    found.append(Target("global model", Kind.FINAL, pool, *whole))
                elif client in self._clients:
                    pool, load = self._pool(client), self._loading(folder)
                    train = self._trainer_of(client) if ensemble.of_clients else self._train_as_in_rounds
                    found.append(Target(f"model of client {client}", Kind.FINAL, pool, load, train))
        return found

    def uploaded(self) -> list[Target]:
        """Return the clients' own models of FedDDPM that left them.

        At the end of a run with ``membership-attack`` they are still there. Later they are trained again, which gives
        the same, where nothing secret and no earlier global model went into them.
        """
        algorithm = get_algorithm(self._config)
        if not issubclass(algorithm, FedDDPM) or not algorithm.pretrains(self._config):
            return []
        if self._config.auxiliary.sharing == "images":
            note('auxiliary-sharing = "images": the clients\' own models have not left them, and are not attacked')
            return []
        stored = UploadFiles(self._run_dir / UNFINISHED, "pretrain", PretrainedModel).read("")
        if not stored and self._config.dp.pretrain.is_private and self._config.dp.dp_secret_noise:
            note("the clients' own models were trained privately, with noise that is not kept: they are not attacked")
            return []
        if algorithm.own_training(self._config).name != "pretrain" or self._config.fedddpm.pretrain_from != "initial":
            note("the clients' own models were trained from a global model that is not kept: they are not attacked")
            return []
        uploaders = self._uploaders()
        return [
            Target(
                f"own model of client {client}, uploaded",
                Kind.OWN,
                self._pool(client),
                self._uploaded(client, stored.get(client)),
                self._trainer_of(client),
            )
            for client in self._clients
            if client in uploaders
        ]

    def _uploaded(self, client: int, stored: PretrainedModel | None) -> Callable[[], Module]:
        return lambda: self._model(stored.load()) if stored else self._pretrained(client)

    def trained(self) -> list[int]:
        """Return the clients of this host whose images the final model has seen; all if the run does not say."""
        found = set(self._uploaders())
        if get_algorithm(self._config).trains_on_clients:
            for row in self._rows("round"):
                found |= set(row.get("clients", ())) - set(map(int, row.get("train/left_out", ())))
        return [client for client in self._clients if client in found or not found]

    def check_clients(self) -> None:
        """Raise ``ConfigError`` if no model of the run has seen images of this host's clients."""
        if not self.trained():
            named = ", ".join(map(str, self._clients))
            raise ConfigError(f"client {named} took no part in {self._run_dir}: no model has seen its images.")

    def _uploaders(self) -> list[int]:
        """Return the clients whose own models have arrived."""
        return list(row_of(self._rows("pretrain"), "pretrain").get("pretrain/clients", []))

    def _rows(self, phase: str) -> list[dict[str, Any]]:
        """Return the objects of a phase in ``stats.jsonl``."""
        path = Path(self._run_dir) / STATS
        try:
            rows = read_lines(path)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read ({error}); give another run.") from error
        return [row for row in rows if row.get("phase") == phase]

    # ---- models ---------------------------------------------------------------------------------

    def _pool(self, client: int) -> Pool:
        return pool_of(self._task.data, [client], conditional=self._conditional)

    def _loading(self, folder: Path) -> Callable[[], Module]:
        return lambda: load_pipeline(folder).unet.to(resolve_device(self._config.run.device))

    def _pretrained(self, client: int, images: ImageTensors | None = None, number: int = 0) -> Module:
        """Train a client's own model as in the run, or one of the same kind on other images with other seeds.

        Models on other images are trained without privacy, so that they know them.
        """
        config, start = self._training, snapshot(self._task.create_model())
        if images is None:
            config, start = _without_checks(self._config), self._sent(start)
        task = self._task if images is None else _With(self._task, images)
        trainer = create_trainer(config, task)
        purpose, server_round = ("pretrain", None) if images is None else ("audit", number)
        with cpu_threads(self._config.run.client_threads), TemporaryDirectory() as folder:
            account = PrivacyLedger(Path(folder) / "again.json")
            request = ActionRequest(config, task, trainer, client, 0, start, ledger=account)
            result, _ = train_own(request, self._config.pretrain.steps, purpose, server_round)
        return self._model(self._sent(result.weights) if images is None else result.weights)

    def _sent(self, weights: Weights) -> Weights:
        """Return weights as they arrive by the run's ``wire-dtype``."""
        wire = get_wire(down_dtype(self._config.transport.wire_dtype))
        return wire.decode(wire.encode(weights, weights), weights, weights)

    def _trainer_of(self, client: int) -> Callable[[ImageTensors, int], Module]:
        return lambda images, number: self._pretrained(client, images, number)

    def _train_as_in_rounds(self, images: ImageTensors, number: int) -> Module:
        """Train a reference on images in one place, as many steps as a client of mean size takes in all rounds."""
        config, trainer = self._config, create_trainer(self._config, self._task)
        sizes = [len(self._task.data.client(client).train) for client in self._clients]
        steps = config.run.num_rounds * config.training.steps_for(max(1, sum(sizes) // len(sizes)))
        with cpu_threads(config.run.client_threads):
            result = trainer.train(
                snapshot(self._task.create_model()),
                images.to(trainer.device),
                steps=steps,
                seed=derive_seed(config.run.seed, "audit", number),
                ema_decay=config.training.ema_decay,
            )
        return self._model(result.weights)

    def _model(self, weights: Weights) -> Module:
        model: Module = create_unet(self._config.unet, self._config.data, self._config.run.seed)
        load_into(model, weights)
        return model.to(resolve_device(self._config.run.device)).eval()


class _With(DiffusionTask):
    """A task whose clients all have the same other images."""

    def __init__(self, task: DiffusionTask, images: ImageTensors) -> None:
        self.__dict__.update(task.__dict__)
        self._replaced = images.to(resolve_device(task.config.run.device))

    def train_data(self, partition_id: int) -> ImageTensors:
        """Return the other images."""
        return self._replaced


def _without_checks(config: Config) -> Config:
    return replace(config, sharing=replace(config.sharing, memorization_check="never", min_images_to_share=1))


def without_limits(config: Config) -> Config:
    """Return the config for trainings on this host alone: whatever comes out, nothing leaves."""
    dp = replace(config.dp, pretrain_dp_epsilon=0.0, train_dp_epsilon=0.0)
    return replace(_without_checks(config), dp=dp)
