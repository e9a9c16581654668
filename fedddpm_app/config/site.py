"""What a site allows: settings of its own, which the server's config cannot override."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedddpm_app.config.dp import Delta
from fedddpm_app.config.errors import ConfigError
from fedddpm_app.config.fields import STRICT, CountOrZero, FloatOrZero, Scalar
from fedddpm_app.config.loading import keys_of, load_group
from fedddpm_app.config.sharing import Share
from fedddpm_app.config.toml_files import read_file
from fedddpm_app.config.words import advice

FILE = "site-policy"

Names = Annotated[
    str, Field(pattern=r"^[^,\s]*(\s*,\s*[^,\s]+)*$", description="it should be names with commas between")
]


@dataclass(frozen=True, config=STRICT)
class SitePolicy:
    """The settings of a site; the defaults allow everything.

    Attributes
    ----------
    algorithms : str
        The values of ``algorithm`` that the site takes part in, with commas between them; empty for all.
    shares_models : bool
        Whether a model of its own may leave, apart from the updates of the rounds.
    max_rounds : int
        The last round that it trains in; 0 for no limit.
    min_images : int
        The fewest training images with which a model of its own, or images of it, may leave.
    max_memorized_share : float
        As the run's ``max-memorized-share``; below 1, the site checks also where the run does not.
    max_epsilon : float
        The largest privacy budget of a phase in which it trains; 0 for none: it also trains without a budget.
    max_delta : float
        The largest delta of such a budget; it has an effect with ``max_epsilon``.
    secure_aggregation : bool
        Whether it trains only in runs with ``secure-aggregation``.
    """

    PREFIX: ClassVar[str] = "site-"
    algorithms: Names = ""
    shares_models: bool = True
    max_rounds: CountOrZero = 0
    min_images: CountOrZero = 0
    max_memorized_share: Share = 1.0
    max_epsilon: FloatOrZero = 0.0
    max_delta: Delta = 1e-5
    secure_aggregation: bool = False

    @property
    def allowed(self) -> tuple[str, ...]:
        """The names of the algorithms; empty for all."""
        return tuple(name.strip() for name in self.algorithms.split(",") if name.strip())


def read_policy(node_config: Mapping[str, Scalar]) -> SitePolicy:
    """Return the policy of a node: that of the file that ``site-policy`` names, and then that of its other keys.

    Raises
    ------
    ConfigError
        If the file, a key or a value is wrong: nothing is then allowed.
    """
    given = {key: value for key, value in node_config.items() if key.startswith(SitePolicy.PREFIX)}
    values, problems = read_file(FILE, str(given[FILE])) if FILE in given else ({}, [])
    values |= {key: value for key, value in given.items() if key != FILE}
    known = [*keys_of(SitePolicy)]
    problems += [
        f"{key} = {value!r}: a site has no such key; {advice(key, known)}"
        for key, value in values.items()
        if key not in known
    ]
    policy, invalid = load_group(SitePolicy, values)
    if problems or invalid or not isinstance(policy, SitePolicy):
        raise ConfigError("this site's policy cannot be used, so it takes no part: " + " ".join([*problems, *invalid]))
    return policy
