"""The means by which a client answers a message."""

from collections.abc import Callable
from dataclasses import dataclass, field

from flwr.app import Context

from fedddpm_app.client.worker import Worker
from fedddpm_app.config import Config, ConfigError
from fedddpm_app.config.site import SitePolicy
from fedddpm_app.federation.messages.records import NUM_PARTITIONS
from fedddpm_app.federation.strategy import FederatedStrategy


@dataclass(frozen=True)
class ClientSetup:
    """The means to answer a message: the run's config, its strategy class, this process's worker, the site's policy."""

    config: Config
    strategy: type[FederatedStrategy]
    get_worker: Callable[[], Worker]
    policy: SitePolicy = field(default_factory=SitePolicy)

    @property
    def worker(self) -> Worker:
        """The worker; it is created on first use."""
        return self.get_worker()


SetUp = Callable[[Context], ClientSetup]


def checked(setup: ClientSetup, context: Context) -> ClientSetup:
    """Return the setup; raise ``ConfigError`` if the run has another number of clients than the node."""
    nodes = context.node_config.get(NUM_PARTITIONS, setup.config.data.num_clients)
    if nodes != setup.config.data.num_clients:
        raise ConfigError(
            f"num-clients = {setup.config.data.num_clients}, but this node has num-partitions = {nodes}: set "
            f"num-clients = {nodes}, or --federation-config 'num-supernodes={setup.config.data.num_clients}'."
        )
    return setup
