"""A vote of the clients on held-out images: whether their own models are better there than the mean of these models.

Client i reports the loss of its own model w_i with that model, and later the loss of the mean wbar, on the same images
with the same t and noise. The lower loss has its vote, of weight n_i.
"""

import math
from collections.abc import Sequence

from fedddpm_app import weights as weights_module
from fedddpm_app.auxiliary.uploads import HELD_OUT_LOSS, PretrainedModel
from fedddpm_app.config import Config
from fedddpm_app.federation.cost import FORWARD
from fedddpm_app.federation.messages.records import ARRAYS
from fedddpm_app.federation.strategy import FederatedStrategy
from fedddpm_app.progress import logger, note
from fedddpm_app.training.actions import ActionAnswer, ActionRequest, ClientAction
from fedddpm_app.weights import Weights

NAME = "vote"


# ---- the client half -------------------------------------------------------------------------


def with_held_out_loss(request: ActionRequest, answer: ActionAnswer) -> ActionAnswer:
    """Add the loss of the model in an answer on the held-out images, if there is a finite one."""
    try:
        loss = held_out_loss(request, answer.records[ARRAYS])
    except ValueError:  # such a client does not vote
        return answer
    return ActionAnswer({**answer.metrics, HELD_OUT_LOSS: loss}, answer.records)


def vote(request: ActionRequest) -> ActionAnswer:
    """Return the loss of the received weights on the held-out images."""
    return ActionAnswer({"loss": held_out_loss(request, request.weights)})


def held_out_loss(request: ActionRequest, weights: Weights) -> float:
    """Return the loss of weights on the client's held-out images; raise ``ValueError`` if there is no finite one."""
    weights_module.load_into(request.trainer.model, weights)
    loss, _ = request.task.held_out_loss(request.trainer.model, request.partition_id)
    if not math.isfinite(loss):
        raise ValueError(f"the loss on the held-out images is {loss}")
    return loss


VOTE = ClientAction(vote, metrics=("loss",))


# ---- the server half -------------------------------------------------------------------------


def own_models_win(strategy: FederatedStrategy, models: Sequence[PretrainedModel], mean: Weights) -> bool:
    """Return whether the clients' own models win against their mean; the votes are recorded.

    A client without a loss of its own model, or without an answer, does not vote. A tie is for the mean. With fewer
    votes than ``min-replies`` the mean wins: too few clients have shown that their own models are better.

    Parameters
    ----------
    strategy : FederatedStrategy
        Its ``client_actions`` include ``vote``.
    models : sequence of PretrainedModel
        The clients' own models, with their losses.
    mean : Weights
        The mean of these models.
    """
    own = {model.partition_id: model.held_out_loss for model in models if model.held_out_loss is not None}
    sizes = {model.partition_id: model.num_examples for model in models}
    with strategy.accounting.timed(NAME):
        replies = strategy.ask_clients(NAME, mean, partitions=sorted(own)).answers() if own else []
    losses = {reply.partition_id: reply.number("loss") for reply in replies}
    strategy.accounting.images += sum(voting_images(strategy.config, sizes[client]) for client in losses)
    local = [client for client, loss in losses.items() if own[client] < loss]
    wins = 2 * sum(sizes[client] for client in local) > sum(sizes[client] for client in losses)
    quorum = strategy.config.waiting.quorum(len(models))
    if len(losses) < quorum:
        wins = False
        text = "vote: %d of %d clients voted, fewer than min-replies = %d"
        logger.warning(text, len(losses), len(models), quorum)
    strategy.record(
        **{
            "vote/local": local,
            "vote/local_loss": {str(client): own[client] for client in losses},
            "vote/mean_loss": {str(client): loss for client, loss in losses.items()},
        }
    )
    winner = "their own models teach" if wins else "the mean wins"
    note(f"vote: {len(local)} of {len(losses)} clients for their own model; {winner}")
    return wins


def voting_images(config: Config, num_examples: int) -> float:
    """Return the compute of a client's vote, two losses on its held-out images, in training images."""
    share = config.data.held_out_fraction
    return 2.0 * FORWARD * config.evaluation.eval_draws * num_examples * share / (1.0 - share)
