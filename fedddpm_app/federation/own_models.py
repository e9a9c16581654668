"""The collection of the models that clients keep, for the evaluation of a run without a global model.

The models travel in full precision, whatever ``wire-dtype``. Their bytes are ``comm/evaluation_mb``, not a part of
``comm/up_mb``, because the training does not need them.
"""

from typing import TYPE_CHECKING

from fedddpm_app import weights as weights_module
from fedddpm_app.federation.messages.records import ARRAYS, OWN_MODEL
from fedddpm_app.training.actions import ActionAnswer, ActionRequest, ClientAction
from fedddpm_app.weights import Weights

if TYPE_CHECKING:
    from fedddpm_app.federation.strategy import FederatedStrategy

NAME = "collect"


def own_model(request: ActionRequest) -> ActionAnswer:
    """Return the client's model after its last accepted training."""
    return ActionAnswer(records={ARRAYS: request.state[OWN_MODEL]})


COLLECT = ClientAction(own_model, records=(ARRAYS,), exact=True, is_private=True)


def collect_own_models(strategy: "FederatedStrategy") -> dict[int, Weights]:
    """Return the own model of each connected client that has one, by partition id; all are in memory.

    A client that has not trained yet is not asked. A client that is gone, or whose model is not finite, is named in a
    warning and left out. Norms are not judged: the limit is that of a round's change, and this is a whole model.

    Parameters
    ----------
    strategy : FederatedStrategy
        Its ``client_actions`` include ``collect``, and ``keeps_model`` returns True.
    """
    asked = [partition for partition in strategy.clients.present() if strategy.has_model(partition)]
    if not asked:
        return {}
    with strategy.accounting.evaluating():
        like = {ARRAYS: strategy.initial_weights}
        replies = strategy.ask_clients(NAME, partitions=asked, like=like).as_they_come()
        found = {reply.partition_id: weights_module.copy(reply.load()) for reply in replies}
    return dict(sorted(found.items()))
