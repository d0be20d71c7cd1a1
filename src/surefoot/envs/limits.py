"""What environments may do before a run ends with an error."""

from typing import NamedTuple

from surefoot.config.settings import Train


class EnvLimits(NamedTuple):
    """Strictness, time-out and number of restarts.

    Attributes:
        strict: treat an observation outside its space as an error.
        timeout_s: maximum seconds per step; 0 for no limit.
        restarts: maximum number of environments that raise and are recreated.
    """

    strict: bool = False
    timeout_s: float = 0.0
    restarts: int = 0

    @classmethod
    def from_settings(cls, train: Train) -> "EnvLimits":
        """The limits of a run."""
        _, _, restarts = train.on_env_error.partition(":")
        return cls(train.strict_env, train.env_timeout_s, int(restarts or 0))


DEFAULT_LIMITS = EnvLimits()
