"""The description of an algorithm: its parts, its keys and its cost, which are known before a run."""

import types
from collections.abc import Mapping, Sequence, Set
from typing import Any, ClassVar

from torch import nn

from fedddpm_app.config import Config, ConfigError, keys_of_algorithms
from fedddpm_app.federation.aggregation import check_rule
from fedddpm_app.federation.cost import Cost, of_images
from fedddpm_app.federation.privacy.clients import check_clients_private
from fedddpm_app.federation.privacy.examples import check_private
from fedddpm_app.federation.privacy.secure_checks import check_secure
from fedddpm_app.training.actions import ClientAction
from fedddpm_app.training.hooks import TrainingHook


class AlgorithmDescription:
    """What a class says about its algorithm without a run; a base of ``FederatedStrategy``.

    Attributes
    ----------
    hook : type of TrainingHook
        The client half of the algorithm.
    client_actions : mapping of str to ClientAction
        The actions of clients besides training and evaluation, by name; each name is a Python identifier.
    key_prefix : str
        The prefix of the run-config keys of this algorithm; users of ``simulate`` may omit it.
    uses_keys : sequence of str
        Other run-config keys of single algorithms that this class reads, or their prefixes, and keys that it reads
        although they have another purpose; subclasses inherit them.
    state_attributes : sequence of str
        The attributes that change over the rounds: checkpoints contain them, and a resumed run gets them back. Each is
        a tensor, array, number, text or None, a list or dict of them (such as weights), or an object with
        ``state_dict`` and ``load_state_dict``. Subclasses inherit them.
    fixed_on_resume : sequence of str
        The run-config keys that may not change when a run is resumed, in addition to those of all algorithms.
    own_aggregation : str
        The reason why another ``aggregator`` cannot replace the algorithm's server step; empty if it can.
    trains_on_clients : bool
        Whether clients train in a round; if not, a round is ``after_aggregation`` alone.
    evaluates_on_clients : bool
        Whether clients evaluate the global weights on their held-out images after a round.
    models_per_exchange : int
        The models' worth of weights that travel in each direction between the server and a client of a round.
    train_metrics, evaluate_metrics : sequence of str
        The metrics that every reply must have; Flower averages them, weighted by ``num-examples``.
    """

    hook: ClassVar[type[TrainingHook]] = TrainingHook
    client_actions: ClassVar[Mapping[str, ClientAction]] = types.MappingProxyType({})
    key_prefix: ClassVar[str] = ""
    uses_keys: ClassVar[Sequence[str]] = ()
    state_attributes: ClassVar[Sequence[str]] = ()
    fixed_on_resume: ClassVar[Sequence[str]] = ()
    own_aggregation: ClassVar[str] = ""
    trains_on_clients: ClassVar[bool] = True
    evaluates_on_clients: ClassVar[bool] = True
    models_per_exchange: ClassVar[int] = 1
    train_metrics: Sequence[str] = ("loss", "final-loss", "steps", "seconds")
    evaluate_metrics: Sequence[str] = ("loss",)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Add the inherited client actions and state attributes to those that a subclass names."""
        super().__init_subclass__(**kwargs)
        attributes = [vars(base).get("state_attributes", ()) for base in reversed(cls.__mro__)]
        cls.state_attributes = tuple(dict.fromkeys(name for names in attributes for name in names))
        named = [vars(base).get("client_actions", {}) for base in reversed(cls.__mro__)]
        cls.client_actions = {name: action for actions in named for name, action in actions.items()}
        for name in cls.client_actions:
            if not name.isidentifier():
                raise TypeError(f'{cls.__name__}.client_actions: "{name}" must be a Python identifier.')

    @classmethod
    def keeps_model(cls, config: Config) -> bool:
        """Return whether a client keeps its trained model for its next round, and for evaluation.

        A client can then get a part of the weights alone, see ``FederatedStrategy.exchanged``.
        """
        return False

    @classmethod
    def stays_at_clients(cls, config: Config, model: nn.Module) -> Set[str]:
        """Return the names of a model's weights that a client never returns in a round; see ``keeps_model``."""
        return frozenset()

    @classmethod
    def reads_single_replies(cls) -> str:
        """Return the name of a method that reads or chooses the weights of single clients; empty without one."""
        return ""

    @classmethod
    def keeps_state(cls, config: Config) -> bool:
        """Return whether a client keeps a state between its rounds."""
        return cls.hook.keeps_state or cls.keeps_model(config)

    @classmethod
    def has_global_model(cls, config: Config) -> bool:
        """Return whether there is one model for all clients, which the run evaluates.

        Without it, clients evaluate their own models, which their states hold, and the run evaluates those of
        ``FederatedStrategy.evaluated``.
        """
        return True

    @classmethod
    def check_config(cls, config: Config) -> None:
        """Raise ``ConfigError`` for values that this algorithm cannot use."""
        if cls.own_aggregation and config.run.aggregator != "fedavg":
            raise ConfigError(
                f'aggregator = "{config.run.aggregator}" has no meaning with algorithm = "{config.run.algorithm}": '
                f'{cls.own_aggregation}; use aggregator = "fedavg".'
            )
        check_rule(config)
        check_private(cls, config)
        check_secure(cls, config)
        check_clients_private(cls, config)

    @classmethod
    def keys_without_effect(cls, config: Config) -> dict[str, str]:
        """Return the run-config keys that have no effect with this algorithm and config, each with the reason.

        Keys of single algorithms have an effect only if this class or a base names them: ``key_prefix``, ``uses_keys``.
        """
        named = [(vars(base).get("key_prefix", ""), *vars(base).get("uses_keys", ())) for base in cls.__mro__]
        own = tuple(name for names in named for name in names if name)
        reason = f'algorithm = "{config.run.algorithm}" does not use it'
        unused = {key: reason for key in keys_of_algorithms() if not key.startswith(own)}
        if config.run.num_rounds == 1:
            unused["server-ema-decay"] = "with num-rounds = 1 the moving average is the weights of that round"
        return unused

    @classmethod
    def averages(cls, config: Config) -> dict[str, tuple[int, str]]:
        """Return the key of each moving average of the run, with the number and the name of its updates."""
        return {"server-ema-decay": (config.run.num_rounds, "round")}

    @classmethod
    def total_steps(cls, config: Config, client_steps: int) -> int:
        """Return a run's optimiser steps, to estimate its time; ``client_steps`` of them are in the clients' rounds."""
        return client_steps

    @classmethod
    def cost(cls, config: Config, sizes: Sequence[int]) -> Cost:
        """Return the expected cost of a complete run, to compare algorithms at equal cost.

        Parameters
        ----------
        config : Config
            The run's config.
        sizes : sequence of int
            Every client's number of training images.
        """
        num_clients, rounds = config.data.num_clients, config.run.num_rounds
        per_round = config.run.clients_per_round or num_clients
        first = num_clients * (1.0 - (1.0 - per_round / num_clients) ** rounds)  # expected clients that take part
        steps_for, images_of = config.training.steps_for, cls.hook.training_images
        of_first, of_later = (
            sum(images_of(config, size, steps_for(size), is_first=is_first) for size in sizes) / len(sizes)
            for is_first in (True, False)
        )
        images = first * of_first + (rounds * per_round - first) * of_later
        traffic = cls.traffic(config, first) if cls.trains_on_clients else Cost()
        return of_images(config, images) + traffic

    @classmethod
    def compute_of_round(cls, config: Config, server_round: int) -> float:
        """Return the compute of a client's step in a round, as a share of that of the run's first model (here: 1)."""
        return 1.0

    @classmethod
    def traffic(cls, config: Config, first: float) -> Cost:
        """Return the models' worth of weights that all rounds exchange.

        ``first`` is the expected number of clients that take part; in its first round, a client has no state.
        """
        exchanges = config.run.num_rounds * (config.run.clients_per_round or config.data.num_clients)
        models = exchanges * cls.models_per_exchange
        return Cost(0.0, models, models)
