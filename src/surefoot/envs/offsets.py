"""Observations that vary by less than float32 resolves near them, such as 1e8 ± 1.

Networks compute in float32, and so do the statistics that take a mean off: what the cast loses
comes back nowhere.
"""

import warnings
from typing import Any

import numpy as np
from gymnasium import spaces

from surefoot.envs.env_errors import subscript

NUM_MEASURED = 1024
"""Observations that are looked at, half a first rollout or a little more."""
FEWEST_STEPS = 10
"""Steps of float32 in the range of an element, below which it tells next to nothing."""
ROUNDING = 1e-11
"""Relative range up to which an element is a constant with float64's rounding."""


def loses_digits(dtype: Any) -> bool:
    """Whether values of this dtype may lose digits in float32."""
    return not np.can_cast(dtype, np.float32)


class OffsetCheck:
    """Notes the ranges of the first observations of a space, and warns of one that is lost."""

    def __init__(self, space: spaces.Space, num_rows: int):
        self._space, self._left = space, max(1, NUM_MEASURED // num_rows)
        self._ranges: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def see(self, obs: Any) -> bool:
        """Take in an observation, or several rows of them; whether more are wanted."""
        with np.errstate(all="ignore"):  # what is not finite is refused elsewhere
            self._see(self._space, obs, "observation")
            self._left -= 1
            if not self._left:
                self._warn()
        return self._left > 0

    def _see(self, space: Any, obs: Any, where: str) -> None:
        if isinstance(space, spaces.Dict | spaces.Tuple):
            parts: Any = space.spaces
            for key, part in parts.items() if isinstance(parts, dict) else enumerate(parts):
                self._see(part, obs[key], f"{where}[{key!r}]")
        elif isinstance(space, spaces.Box) and loses_digits((array := np.asarray(obs)).dtype):
            rows = array.reshape(-1, *space.shape)
            low, high = self._ranges.get(where, (rows[0], rows[0]))
            self._ranges[where] = np.minimum(low, rows.min(0)), np.maximum(high, rows.max(0))

    def _warn(self) -> None:
        for where, (low, high) in self._ranges.items():
            far = np.maximum(np.abs(low), np.abs(high)).astype(np.float64)
            spread, step = high.astype(np.float64) - low, np.spacing(far.astype(np.float32))
            lost = np.argwhere((spread > ROUNDING * far) & (spread < FEWEST_STEPS * step))
            if len(lost):
                at = tuple(lost[0].tolist())
                warnings.warn(
                    f"{where}{subscript(at)} varies too little around {far[at]:.3g} for float32, "
                    f"in which networks compute, and whose steps there are {step[at]:.1g}: "
                    "subtract a constant from it in the environment",
                    stacklevel=2,
                )
                return
