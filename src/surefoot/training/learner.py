"""A run's pure functions, tied together from its settings, its networks and its environment.

What differs between rules is the `UpdateRule` alone; between kinds of environment, what collects.
"""

from typing import Any

from surefoot.config.settings import Settings
from surefoot.diagnostics.lens import LensState
from surefoot.envs.jax_native import JaxEnv
from surefoot.networks.actor_critic import Actor, ActorCritic
from surefoot.training.batch import Metrics
from surefoot.training.inspect import inspect, look
from surefoot.training.learn import learn
from surefoot.training.random_keys import Purpose, run_key
from surefoot.training.rollout_jax import EnvLoop, collect_jax
from surefoot.training.state import LoopState, Parts, make_parts, start_loop
from surefoot.types import EnvSpec, Episodes, Rollout


class Learner:
    """The pure functions of a run, from state to state.

    Each takes the run's traced numbers as its last argument, so that they are data of its program;
    left out, they are constants.
    """

    def __init__(
        self,
        settings: Settings,
        spec: EnvSpec,
        network: ActorCritic,
        env: JaxEnv | None = None,
    ):
        self.settings, self.spec, self._network, self._env = settings, spec, network, env
        self.traced = settings.traced()
        self.parts = self._parts(None)

    def _parts(self, traced: Any) -> Parts:
        if traced is None:
            traced = self.traced
        return make_parts(self.settings, self.spec, self._network, self._env, traced)

    @property
    def actor(self) -> Actor:
        """What acting needs besides parameters."""
        return self.parts.actor

    def init(self, seed: Any) -> LoopState:
        """The state before the first iteration."""
        return start_loop(self.parts, seed)

    def learn(
        self, state: LoopState, rollout: Rollout, episodes: Episodes, traced: Any = None
    ) -> tuple[LoopState, Metrics]:
        """Learn from a rollout, then look at what the update did."""
        parts = self._parts(traced)
        after, learned = learn(parts, state.learn, rollout)
        lens, metrics = inspect(parts, state.lens, state.learn, after, learned, (rollout, episodes))
        return LoopState(after, lens, state.env), metrics

    def look(
        self, state: LoopState, rollout: Rollout, traced: Any = None
    ) -> tuple[LensState, Metrics]:
        """The expensive figures of the update that this state makes of this rollout."""
        return look(self._parts(traced), state.lens, state.learn, rollout)

    def collect(self, state: LoopState) -> tuple[EnvLoop, Rollout, Episodes]:
        """A rollout of JAX-native environments."""
        assert self._env is not None
        assert state.env is not None
        learn = state.learn
        action_key, step_key = (
            run_key(learn.seed, learn.iteration, each) for each in (Purpose.ACTION, Purpose.STEP)
        )
        return collect_jax(
            self._env,
            self.actor,
            self.settings,
            learn.params["policy"],
            learn.obs_stats,
            state.env,
            keys=(action_key, step_key),
            rows=self.parts.rows,
        )

    def iterate(self, state: LoopState, traced: Any = None) -> tuple[LoopState, Metrics]:
        """Collect a rollout of JAX-native environments and learn from it."""
        loop, rollout, episodes = self.collect(state)
        return self.learn(state._replace(env=loop), rollout, episodes, traced)

    def collect_and_look(self, state: LoopState, traced: Any = None) -> tuple[LensState, Metrics]:
        """`look` at the update that comes next in a JAX-native run."""
        return self.look(state, self.collect(state)[1], traced)
