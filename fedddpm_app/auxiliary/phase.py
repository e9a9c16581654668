"""FedDDPM's phase as a whole: pretraining, then D_aux, when it is first needed, once in a run."""

from collections.abc import Callable, Sequence

from fedddpm_app.auxiliary.generation import Generation
from fedddpm_app.auxiliary.pretraining import PretrainedModel, collect_pretrained, discard_pretrained
from fedddpm_app.auxiliary.stored_set import StoredSet
from fedddpm_app.config import ConfigError
from fedddpm_app.device import cpu_threads
from fedddpm_app.diffusion.unet import is_denoiser
from fedddpm_app.federation.phases import finish_phase, forget_phase
from fedddpm_app.federation.strategy import FederatedStrategy
from fedddpm_app.training.task import TrainingData
from fedddpm_app.weights import Weights

Build = Callable[[Sequence[PretrainedModel]], TrainingData]


class AuxiliaryPhase:
    """Has the clients pretrain, and builds D_aux; a resumed run reads both from its folder.

    Parameters
    ----------
    strategy : FederatedStrategy
        Its ``client_actions`` include ``pretrain`` and ``generate``.
    build : callable
        Returns D_aux, given the pretrained models.
    generates : bool
        Whether ``build`` generates D_aux by ``generate``, which only a diffusion model can do.

    Attributes
    ----------
    data : TrainingData or None
        D_aux on the server's device; None until it is built.
    clients : list of int
        The partition of the client whose model generated each image of D_aux; empty if it was not generated here.
    """

    def __init__(self, strategy: FederatedStrategy, build: Build, *, generates: bool) -> None:
        self.data: TrainingData | None = None
        self.clients: list[int] = []
        self._strategy = strategy
        self._build = build
        self._generates = generates
        self._stored = StoredSet(strategy)
        self._models: list[PretrainedModel] = []
        self._generation: Generation | None = None

    @property
    def digest(self) -> str:
        """The SHA-256 of the stored D_aux; empty if there is none."""
        return self._stored.digest

    @property
    def is_stored(self) -> bool:
        """Whether D_aux is complete, and in the run's folder."""
        return self.data is not None and bool(self._stored.digest)

    def load_again(self, digest: str) -> None:
        """Read the D_aux of a checkpoint; if it was not stored, or is damaged, ``ensure`` builds it."""
        if self.data is None:
            self.data = self._stored.load_again(digest)
            self.clients = self._stored.clients

    def renew(self) -> None:
        """Start another phase: ``ensure`` builds another D_aux, or reads what an earlier process did of it."""
        self.data, self.clients = None, []
        self._stored = StoredSet(self._strategy)

    def end(self) -> None:
        """Remove the pretrained models, and forget that the phase is finished, so that another one can follow."""
        self._models = []
        discard_pretrained(self._strategy.recorder)
        forget_phase(self._strategy.recorder, "auxiliary")

    def pretrained(self, start: Weights | None = None) -> list[PretrainedModel]:
        """Return the pretrained models; the clients train them now if that is still to be done.

        They start from ``start``, or else, with ``pretrain-from = "initial"``, from the run's initial weights. Their
        seeds do not depend on the round.
        """
        if not self._models:
            strategy = self._strategy
            if start is None and strategy.config.fedddpm.pretrain_from == "initial":
                start = strategy.initial_weights
            self._models = collect_pretrained(strategy, start)
        return self._models

    def ensure(self, start: Weights | None = None) -> TrainingData:
        """Return D_aux, after pretraining (see ``pretrained``) and building it if that is still to be done."""
        if self.data is None:
            self.data = self._stored.load()
            self.clients = self._stored.clients
        if self.data is None:
            self.check_generates()
            models, strategy = self.pretrained(start), self._strategy
            with strategy.round_log.own_phase() as span:
                with strategy.accounting.timed("auxiliary"), cpu_threads(strategy.config.run.server_threads):
                    self.data = self._build(models)
                self._stored.check(self.data)
                left_out = self._generation.left_out() if self._generation else {}
                now = strategy.round_log.server_round
                row = {"phase": "auxiliary", "round": now, "aux/num_images": len(self.data), **left_out}
                finish_phase(strategy.recorder, row | span.spent("time/phase_s"))
            if self._generation:
                self._generation.remove_batch_files()
                self._generation = None
        return self.data

    def generate(self, models: Sequence[PretrainedModel]) -> TrainingData:
        """Generate and store D_aux, see ``Generation``."""
        self._generation = Generation(self._strategy, models)
        data = self._generation.run()
        self.clients = self._generation.clients
        self._strategy.recorder.save_auxiliary(data, self.clients)
        return data.to(self._strategy.trainer.device)

    def check_generates(self) -> None:
        """Raise, before pretraining, if the model cannot generate a set."""
        model = self._strategy.trainer.model
        if self._generates and not is_denoiser(model):
            raise ConfigError(
                f"correction-steps = {self._strategy.config.correction.steps}: a {type(model).__name__} is not a "
                "UNet2DModel, so it cannot generate an auxiliary set; give auxiliary_data, override build_auxiliary, "
                "or use correction-steps = 0."
            )

    def drop_models(self) -> None:
        """Remove the pretrained models, which are no longer needed."""
        for model in self._models:
            model.path.unlink(missing_ok=True)
        self._models = []
