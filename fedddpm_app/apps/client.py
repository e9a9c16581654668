"""The ClientApp: the package's handlers with the diffusion task of the run config."""

import functools

from flwr.app import Context
from flwr.clientapp import ClientApp

from fedddpm_app.algorithms import get_algorithm
from fedddpm_app.client.handlers import create_client_app
from fedddpm_app.client.policy import at_site, check_run, stricter
from fedddpm_app.client.setup import ClientSetup
from fedddpm_app.client.worker import Worker
from fedddpm_app.config import Config, load_config
from fedddpm_app.config.site import read_policy
from fedddpm_app.data.settings import read_auto
from fedddpm_app.experiment.task import DiffusionTask
from fedddpm_app.federation.messages.records import DATA_PATH
from fedddpm_app.progress import configure_logging


def diffusion_client_app() -> ClientApp:
    """Return the ClientApp that trains the diffusion model of the run config with its algorithm."""
    return create_client_app(set_up)


@functools.lru_cache(maxsize=1)
def get_worker(config: Config, data_path: str) -> Worker:
    """Return this process's worker for a run config and a site's folder; it is created on first use."""
    return Worker(config, DiffusionTask(config, data_path))


def set_up(context: Context) -> ClientSetup:
    """Read the run config and the site's policy; the worker stays in memory between messages."""
    configure_logging()  # here, because Ray's actors get the app itself, and do not import the app's module
    data_path = str(context.node_config.get(DATA_PATH, ""))
    policy = read_policy(context.node_config)
    run_config = at_site(context.run_config, context.node_config)
    asked = load_config({**run_config, **read_auto(run_config, data_path)})
    check_run(asked, policy)  # before the algorithm's module is imported
    strategy, config = get_algorithm(asked), stricter(asked, policy)
    return ClientSetup(config, strategy, lambda: get_worker(config, data_path), policy)
