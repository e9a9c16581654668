"""FedDDPM's phase as a whole: the clients' own models, then D_aux, when it is first needed."""

from collections.abc import Callable, Sequence

from fedddpm_app import weights as weights_module
from fedddpm_app.auxiliary.collection import ModelCollection
from fedddpm_app.auxiliary.generation import Generation
from fedddpm_app.auxiliary.own_images import ImageCollection, OwnImages, image_training, joined, row_of
from fedddpm_app.auxiliary.pretraining import OwnTraining
from fedddpm_app.auxiliary.stored_set import StoredSet
from fedddpm_app.auxiliary.uploads import PretrainedModel, Upload, UploadFiles
from fedddpm_app.config import ConfigError
from fedddpm_app.device import cpu_threads
from fedddpm_app.diffusion.images import ImageTensors
from fedddpm_app.diffusion.unet import is_denoiser
from fedddpm_app.federation.flower_internals import is_deployed
from fedddpm_app.federation.phases import START, counted_phase, finish_phase, finished_phase, forget_phase
from fedddpm_app.federation.strategy import FederatedStrategy
from fedddpm_app.training.task import TrainingData
from fedddpm_app.weights import Weights

Build = Callable[[Sequence[PretrainedModel]], TrainingData]


class AuxiliaryPhase:
    """Has the clients train own models, and builds D_aux; a resumed run reads both from its folder.

    With ``auxiliary-sharing = "images"``, each client generates its part of D_aux, and its model stays there.

    Parameters
    ----------
    strategy : FederatedStrategy
        Its ``client_actions`` include ``generate`` and that of ``training``.
    training : OwnTraining
        The training of the own models.
    build : callable
        Returns D_aux, given the models.
    generates : bool
        Whether ``build`` generates D_aux by ``generate``, which only a diffusion model can do.

    Attributes
    ----------
    data : TrainingData or None
        D_aux on the server's device; None until it is built.
    clients : list of int
        The partition of the client whose model generated each image of D_aux; empty if ``generate`` did not make it.
    """

    def __init__(self, strategy: FederatedStrategy, training: OwnTraining, build: Build, *, generates: bool) -> None:
        self.data: TrainingData | None = None
        self.clients: list[int] = []
        self._strategy = strategy
        self._training = training
        self._build = build
        self._generates = generates
        self._stored = StoredSet(strategy)
        self._is_of_earlier_round = False
        self._models: list[PretrainedModel] = []
        self._images: list[OwnImages] = []
        self._generation: Generation | None = None
        self._generated: TrainingData | None = None

    @property
    def digest(self) -> str:
        """The SHA-256 of the stored D_aux; empty if there is none."""
        return self._stored.digest

    @property
    def is_stored(self) -> bool:
        """Whether D_aux is complete, and in the run's folder."""
        return self.data is not None and bool(self._stored.digest)

    def load_again(self, digest: str) -> None:
        """Read the D_aux of a checkpoint; if it was not stored, or is damaged, ``ensure`` builds it from the uploads.

        ``digest`` is empty if the set was not stored.
        """
        if self.data is None:
            self._is_of_earlier_round = True
            self.data = self._stored.load_again(digest)
            self.clients = self._stored.clients

    def renew(self) -> None:
        """Start another phase: ``ensure`` builds another D_aux, or reads what an earlier process did of it."""
        self.data, self.clients, self._models, self._images = None, [], [], []
        self._is_of_earlier_round = False
        self._stored = StoredSet(self._strategy)

    def end(self) -> None:
        """Remove the files of the own models, and of what is finished of the phase."""
        self._models = []
        ModelCollection(self._strategy, self._training, None).discard()
        forget_phase(self._strategy.recorder, "auxiliary")

    def pretrained(self, start: Weights | None = None) -> list[PretrainedModel]:
        """Return the clients' own models; the clients train them now if that is still to be done.

        They start from ``start``, or else, with ``pretrain-from = "initial"``, from the run's initial weights. The
        seeds of pretraining do not depend on the round.
        """
        if not self._models:
            self._models = ModelCollection(self._strategy, self._training, self._start(start)).run()
        return self._models

    def ensure(self, start: Weights | None = None) -> TrainingData:
        """Return D_aux, after ``pretrained`` and building it if that is still to be done."""
        if self.data is None:
            known = self._start(start)
            digest = weights_module.digest(known) if known else self._start_of_earlier_round()
            self.data = self._stored.load(digest, self._training.name)
            self.clients = self._stored.clients
            if self.data is None:
                self.check_generates()
                self.data = self._finish(self._prepared(start), digest)
        return self.data

    def _prepared(self, start: Weights | None) -> Callable[[], TrainingData]:
        """Have the clients do their part; return the server's."""
        if self._strategy.config.auxiliary.sharing == "models":
            models = self.pretrained(start)
            return lambda: self._build(models)
        if not self._images:
            training = image_training(self._strategy.config)
            self._images = ImageCollection(self._strategy, training, self._start(start)).run()
        return lambda: self._store(*joined(self._images))

    def _start(self, start: Weights | None) -> Weights | None:
        """Return the weights that own trainings start from; None if they are those of an earlier round."""
        if start is None and self._strategy.config.fedddpm.pretrain_from == "initial":
            return self._strategy.initial_weights
        return None if self._is_of_earlier_round else start

    def _start_of_earlier_round(self) -> str:
        return str((finished_phase(self._strategy.recorder, "auxiliary") or {}).get(START, ""))

    def _finish(self, build: Callable[[], TrainingData], start: str) -> TrainingData:
        """Build D_aux, and write the line of the phase."""
        strategy = self._strategy
        is_counted = counted_phase(strategy.recorder, "auxiliary", start)  # its set was lost, or could not be stored
        with strategy.round_log.own_phase() as span:
            accounting, threads = strategy.accounting, strategy.config.run.server_threads
            with accounting.timed("auxiliary"), accounting.counted_before(is_counted), cpu_threads(threads):
                data = build()
            if data is not self._generated:
                self.clients = []
            self._stored.check(data)
            facts = self._generation.left_out() if self._generation else row_of(self._images)
            row = {"phase": "auxiliary", "round": strategy.round_log.server_round, "aux/num_images": len(data)}
            row[START] = start
            finish_phase(strategy.recorder, row | facts | span.spent("time/phase_s"))
        if self._generation:
            self._generation.remove_batch_files()
        self._generation = self._generated = None
        return data

    def generate(self, models: Sequence[PretrainedModel]) -> TrainingData:
        """Generate and store D_aux, see ``Generation``."""
        self._generation = Generation(self._strategy, models)
        data = self._generation.run()
        return self._store(data, self._generation.clients)

    def _store(self, data: ImageTensors, clients: list[int]) -> TrainingData:
        self.clients = clients
        self._strategy.recorder.save_auxiliary(data, clients)
        self._generated = data.to(self._strategy.trainer.device)
        return self._generated

    def check_generates(self) -> None:
        """Raise, before pretraining, if the model cannot generate a set."""
        model, config = self._strategy.trainer.model, self._strategy.config
        if config.checks_memorization and not is_denoiser(model):
            raise ConfigError(
                f"clients check their models by generated images, but a {type(model).__name__} is not a UNet2DModel, "
                'and cannot generate any: use memorization-check = "never".'
            )
        if self._generates and not is_denoiser(model):
            raise ConfigError(
                f"correction-steps = {config.correction.steps}: a {type(model).__name__} is not a "
                "UNet2DModel, so it cannot generate an auxiliary set; give auxiliary_data, override build_auxiliary, "
                "or use correction-steps = 0."
            )

    def drop_uploads(self) -> None:
        """Remove the files of own models, or of the clients' images, which are no longer needed.

        In a simulation with ``membership-attack``, the models stay in ``unfinished`` until the end of the run.
        """
        strategy = self._strategy
        attacks = strategy.config.evaluation.membership_attack != "none" and not is_deployed(strategy.grid.run)
        if self._strategy.config.auxiliary.sharing == "images" or not attacks:
            UploadFiles(strategy.recorder.unfinished, self._training.name, Upload).discard()
        self._models, self._images = [], []
