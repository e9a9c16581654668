"""A site's policy against a run's config: what the site declines, what it makes stricter, and where its files are."""

from collections.abc import Mapping
from dataclasses import replace

from fedddpm_app.config import Config, PrivatePhase
from fedddpm_app.config.fields import Scalar
from fedddpm_app.config.site import SitePolicy
from fedddpm_app.federation.messages.records import ARRAYS, DATA_PATH
from fedddpm_app.training.actions import ClientAction
from fedddpm_app.training.declined import DeclinedError

# keys of a run, and of --node-config, which alone counts at a site
PLACES = ("state-dir", "cache-dir", "inception-weights")


def is_site(node_config: Mapping[str, Scalar]) -> bool:
    """Return whether a node is a site: it has a folder of its own or a policy. Simulated clients have neither."""
    return any(key == DATA_PATH or key.startswith(SitePolicy.PREFIX) for key in node_config)


def at_site(run_config: Mapping[str, Scalar], node_config: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return the run config with the places of the node where it is a site: the server chooses none there."""
    own = {key: node_config.get(key, "") for key in PLACES} if is_site(node_config) else {}
    return {**run_config, **own}


def stricter(config: Config, policy: SitePolicy) -> Config:
    """Return the config with the stricter of the run's and the site's limits."""
    sharing, share = config.sharing, min(config.sharing.max_memorized_share, policy.max_memorized_share)
    if policy.max_memorized_share < 1:
        sharing = replace(sharing, memorization_check="always", max_memorized_share=share)
    if policy.min_images:
        sharing = replace(sharing, min_images_to_share=max(sharing.min_images_to_share, policy.min_images))
    return replace(config, sharing=sharing)


def check_run(config: Config, policy: SitePolicy) -> None:
    """Raise ``DeclinedError`` if the site takes no part in runs of this algorithm."""
    if policy.allowed and config.run.algorithm not in policy.allowed:
        raise DeclinedError(
            f'this site does not take part: algorithm = "{config.run.algorithm}", and site-algorithms = '
            f'"{policy.algorithms}"'
        )


def check_round(config: Config, policy: SitePolicy, server_round: int) -> None:
    """Raise ``DeclinedError`` for a round after the site's last one, or one without the privacy that it wants."""
    _check_number(policy, server_round)
    _check_masked(config, policy)
    _check_epsilon(config, policy, "train")


def check_evaluation(policy: SitePolicy) -> None:
    """Raise ``DeclinedError`` for a loss on the site's images, if it wants privacy."""
    if policy.max_epsilon:
        raise DeclinedError(
            f"this site reports no loss on its images, which has no noise: site-max-epsilon = {policy.max_epsilon:g}"
        )


def check_action(config: Config, policy: SitePolicy, name: str, action: ClientAction, server_round: int) -> None:
    """Raise ``DeclinedError`` for an action that says something of the site's images against the policy."""
    if policy.max_epsilon and not action.is_private:
        raise DeclinedError(
            f'the answer to "{name}" depends on its images without noise: site-max-epsilon = {policy.max_epsilon:g}'
        )
    returns_model = ARRAYS in action.records
    if not (returns_model or action.trains):
        return
    _check_number(policy, server_round)
    _check_masked(config, policy)
    _check_epsilon(config, policy, "pretrain" if action.is_checked else "train")
    if returns_model and not policy.shares_models:
        raise DeclinedError(
            f'this site shares no model of its own, which "{name}" asks for: site-shares-models = false; with '
            'FedDDPM, auxiliary-sharing = "images" asks for images instead'
        )
    limits = {"site-max-memorized-share": policy.max_memorized_share < 1, "site-min-images": policy.min_images > 0}
    if not action.is_checked and any(limits.values()):
        key = next(key for key, is_set in limits.items() if is_set)
        raise DeclinedError(f'this site shares nothing that was not checked, as "{name}" does not: {key} is set')


def _check_number(policy: SitePolicy, server_round: int) -> None:
    if policy.max_rounds and server_round > policy.max_rounds:
        raise DeclinedError(f"this site does not train in round {server_round}: site-max-rounds = {policy.max_rounds}")


def _check_masked(config: Config, policy: SitePolicy) -> None:
    if policy.secure_aggregation and not config.secure.aggregation:
        raise DeclinedError(
            "this site trains only where its updates are masked: secure-aggregation = false, and "
            "site-secure-aggregation = true"
        )


def _check_epsilon(config: Config, policy: SitePolicy, phase: PrivatePhase) -> None:
    epsilon = config.dp.of(phase).epsilon
    if policy.max_epsilon and not 0 < epsilon <= policy.max_epsilon:
        raise DeclinedError(
            f"this site trains with privacy only: {phase}-dp-epsilon = {epsilon:g}, and site-max-epsilon = "
            f"{policy.max_epsilon:g}"
        )
    delta = config.dp.of(phase).delta
    if policy.max_epsilon and delta > policy.max_delta:
        raise DeclinedError(
            f"this site's images are not protected enough: {phase}-dp-delta = {delta:g}, and site-max-delta = "
            f"{policy.max_delta:g}"
        )
    if policy.max_epsilon and not config.dp.dp_secret_noise:
        raise DeclinedError(
            "this site trains with secret noise only: dp-secret-noise = false derives it from the run's seed, which "
            f"the server knows, and site-max-epsilon = {policy.max_epsilon:g}"
        )
