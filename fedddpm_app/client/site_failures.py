"""What a failure at a site says to the server: its kind, and no name, path or content of a file.

The site's own log has the whole error. Only sentences of this package leave the site, and without paths: an error of a
library may quote anything that it read. A sentence about the site's files has another text for others, see
``ConfigError``.
"""

from flwr.app import Context, Error, Message

from fedddpm_app.client.policy import is_site
from fedddpm_app.config import without_paths
from fedddpm_app.federation.flower_internals import ErrorCode
from fedddpm_app.federation.messages.reasons import OWN
from fedddpm_app.federation.messages.records import PARTITION_ID
from fedddpm_app.progress import configure_logging, logger

_IN_THE_LOG = "the log of its SuperNode has the text of this error"


def failure_at_site(error: Exception, message: Message, context: Context) -> Message | None:
    """Log an error of a site, and return it as a reply; None for a client that is no site."""
    if not is_site(context.node_config):
        return None
    configure_logging()
    logger.error("client %s failed:", context.node_config.get(PARTITION_ID), exc_info=error)
    reason = f"<class '{type(error).__name__}'>:<'{public_text(error)}'>"  # in Flower's form
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)


def public_text(error: Exception) -> str:
    """Return the text of an error that may leave the site."""
    is_ours = type(error).__module__.startswith("fedddpm_app.") and type(error).__name__.endswith(OWN)
    return getattr(error, "public", "") or (without_paths(str(error)) if is_ours else _IN_THE_LOG)
