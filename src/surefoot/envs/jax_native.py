"""JAX-native environments: a pure reset and step that compile into the training program."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from jaxtyping import Array, Bool, Float, Key, PyTree

from surefoot.types import EnvSpec

_Value = TypeVar("_Value")


class JaxStep(NamedTuple):
    """One transition with same-step autoreset.

    `obs` starts the next episode where one ended; `final_obs` is the true last observation.
    """

    state: PyTree
    obs: PyTree
    reward: Float[Array, ""]
    terminated: Bool[Array, ""]
    truncated: Bool[Array, ""]
    final_obs: PyTree


class JaxEnv(NamedTuple):
    """One environment as pure functions; surefoot vmaps it.

    `reset(key) -> (state, obs)`; `step(drawn, state, action) -> JaxStep`, where `drawn = draw(key)`
    is by default the key itself. Draw there what depends on the key alone, such as the start of
    the next episode: a rollout then draws for many steps at once, which is faster.
    Where a first episode is cut (`Train.stagger`), the next one starts as `reset` starts it, so a
    state that carries something from one episode to the next needs `stagger=False`.
    `action_mask(state)` returns the mask of allowed actions where `spec.masked`, and is None
    otherwise.
    """

    spec: EnvSpec
    reset: Callable[[Key[Array, ""]], tuple[PyTree, PyTree]]
    step: Callable[[Any, PyTree, Any], JaxStep]
    action_mask: Callable[[PyTree], PyTree] | None = None
    draw: Callable[[Key[Array, ""]], Any] = lambda key: key

    def close(self) -> None:
        """Do nothing: the environments' states are arrays of the training state."""

    def visit(self, *, jax: "Callable[[JaxEnv], _Value]", host: Callable[[Any], _Value]) -> _Value:
        """Call `jax` with this environment."""
        return jax(self)
