"""Play episodes of a policy, paired with those of other policies by common random numbers.

Each random number belongs to an episode and a step of it, and to no policy. Episode 7 of the new
policy starts where episode 7 of the old one did, has the same chances and draws its actions from
the same noise; they differ only by what the policies do. So differences of returns vary much less
than those of independent episodes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.vector.utils import create_empty_array
from jaxtyping import Array, Bool, Float, Int, PyTree

from surefoot.analysis.probe.policies import GROUP, PolicyFunctions
from surefoot.analysis.probe.settings import ProbeSettings
from surefoot.envs.host import HostEnv
from surefoot.envs.jax_native import JaxEnv
from surefoot.networks.spaces import as_jax_dtype, masks_of, own_dtype
from surefoot.training.random_keys import Purpose, env_seeds, run_key
from surefoot.types import EnvSpec

MIN_EPISODES, MAX_EPISODES = 16, 512
MAX_TRAJECTORY_BYTES = 64 * 2**20
"""Memory of trajectories, by which the number of JAX-native episodes side by side is chosen."""
CHECKED_STEPS = 10
"""Steps of the host episode that is played twice, to find out whether it repeats."""


class Trajectories(NamedTuple):
    """Steps side by side, `[time, column]`; of episodes, not meaningful past their end."""

    obs: PyTree
    action_mask: PyTree | None
    actions: PyTree
    rewards: Float[np.ndarray | Array, "time column"]


class PlayedEpisodes(NamedTuple):
    """Whole episodes of one policy: discounted returns up to the end, the time limit or the cut.

    Where not terminated, an episode would go on from `last_obs`, the true last observation.
    """

    returns: Float[np.ndarray | Array, " episode"]
    lengths: Int[np.ndarray | Array, " episode"]
    terminated: Bool[np.ndarray | Array, " episode"]
    last_obs: PyTree
    trajectories: Trajectories | None

    def values_ahead(self, functions: PolicyFunctions) -> Float[np.ndarray, " episode"]:
        """Value of the rest of each cut episode, by the critic; 0 without one."""
        if functions.value is None:
            return np.zeros(len(self.lengths))
        return np.where(self.terminated, 0.0, functions.value(self.last_obs))


class JaxPlayer:
    """Plays episodes of a JAX-native environment, up to `group` at once, cut at step `limit`.

    They are `paired`: those of one number have common random numbers.
    """

    default_budget, paired = 1_000_000, True

    def __init__(self, env: JaxEnv, functions: PolicyFunctions, settings: ProbeSettings):
        self._env, self.functions, self._gamma = env, functions, settings.gamma
        self._key = run_key(settings.seed, 0, Purpose.PROBE)
        self.limit = settings.episode_limit(env.spec.max_episode_steps)
        obs = jax.eval_shape(env.reset, jax.random.key(0))[1]
        step_bytes = 16 + sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(obs))
        fitting = MAX_TRAJECTORY_BYTES // (step_bytes * self.limit)
        self.group = int(np.clip(fitting, MIN_EPISODES, MAX_EPISODES))
        # Parameters are data of one program; a policy made of functions is part of its program.
        static = ("keep",) if functions.exact else ("keep", "policy")
        self._program = jax.jit(self._play, static_argnames=static)

    def play(self, policy: Any, first: int, count: int, *, keep: bool) -> PlayedEpisodes:
        """Episodes `first` to `first + count - 1`, at most `group`; `keep` their trajectories."""
        program = partial(self._program, policy=policy, keep=keep)
        found, time = jax.device_get(program(jnp.int32(first), jnp.int32(count)))
        # The buffer has room for the longest episode that is allowed.
        steps = jax.tree.map(lambda leaf: leaf[:time, :count], found.trajectories)
        found = jax.tree.map(lambda leaf: leaf[:count], found._replace(trajectories=None))
        return found._replace(trajectories=steps)

    def close(self) -> None:
        """No-op."""

    def _play(
        self, first: Int[Array, ""], count: Int[Array, ""], *, policy: Any, keep: bool
    ) -> tuple[PlayedEpisodes, Int[Array, ""]]:
        """`count` episodes, and the steps of the longest; the rest of the group never starts."""
        size = self.group
        keys = jax.vmap(partial(jax.random.fold_in, self._key))(first + jnp.arange(size))

        def advance(carry):
            t, state, obs, running, played = carry
            mask, action, step = self._step(policy, keys, t, state, obs)
            rewards, kept = step.reward.astype(played.returns.dtype), played.trajectories
            if keep:
                seen = Trajectories(obs, mask, action, rewards)
                kept = jax.tree.map(lambda rows, new: rows.at[t].set(new), kept, seen)
            played = PlayedEpisodes(
                # Episodes that have ended go on in the program, and count no more.
                played.returns + jnp.where(running, rewards * self._gamma**t, 0.0),
                played.lengths + running,
                played.terminated | (running & step.terminated),
                # After an end `step.obs` belongs to the next episode, which is not played.
                jax.tree.map(partial(_where, running), step.final_obs, played.last_obs),
                kept,
            )
            running &= ~(step.terminated | step.truncated)
            return t + 1, step.state, step.obs, running, played

        state, obs = jax.vmap(self._env.reset)(_keys_at(keys, 0)[1])
        empty = None
        if keep:
            mask, action, _ = jax.eval_shape(partial(self._step, policy, keys, 0), state, obs)
            one = Trajectories(obs, mask, action, jnp.zeros(size))
            empty = jax.tree.map(lambda x: jnp.zeros((self.limit, *x.shape), x.dtype), one)
        zeros = jnp.zeros(size), jnp.zeros(size, jnp.int32), jnp.zeros(size, bool)
        nothing = PlayedEpisodes(*zeros, obs, empty)
        start = jnp.int32(0), state, obs, jnp.arange(size) < count, nothing
        end = jax.lax.while_loop(lambda c: jnp.any(c[3]) & (c[0] < self.limit), advance, start)
        return end[4], end[0]

    def _step(self, policy: Any, keys: Any, t: Any, state: Any, obs: Any) -> Any:
        """Masks, actions and transitions of all episodes at step t."""
        env = self._env
        mask = jax.vmap(env.action_mask)(state) if env.action_mask else None
        # The keys of 0 have drawn the first state.
        action_keys, step_keys = _keys_at(keys, t + 1)
        action, sent = jax.vmap(partial(self.functions.act, policy))(obs, mask, action_keys)
        return mask, action, jax.vmap(env.step)(jax.vmap(env.draw)(step_keys), state, sent)


def _keys_at(keys: Any, t: Any) -> tuple[Any, Any]:
    """Two keys of each episode at a step: of the action, and of the transition or reset."""
    both = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, t)))(keys)
    return both[:, 0], both[:, 1]


def _where(chosen: Array, new: Array, old: Array) -> Array:
    return jnp.where(chosen.reshape(-1, *(1,) * (new.ndim - 1)), new, old)


class HostPlayer:
    """Plays episodes of Gymnasium environments, in groups, around one call of the policy a step.

    Environments are opened one by one, with the validation and time-outs of training: episodes of
    a group end at different steps, and none is stepped past its end. An episode's random numbers
    follow from its place in a group. More than `max_envs` episodes
    are played in lots, one after another; 0: no maximum.
    """

    group, default_budget = GROUP, 200_000

    def __init__(
        self,
        open_env: Callable[[], Any],
        make_functions: Callable[[EnvSpec], PolicyFunctions],
        settings: ProbeSettings,
        *,
        max_envs: int = 0,
    ):
        self._open, self._max_envs = open_env, max_envs or GROUP
        self._envs: list[HostEnv] = [open_env()]
        self._spec = self._envs[0].spec
        self.functions = make_functions(self._spec)
        self._gamma, self._seed = settings.gamma, settings.seed
        self.limit = settings.episode_limit(self._spec.max_episode_steps)
        self.paired: bool | None = None

    def play(self, policy: Any, first: int, count: int, *, keep: bool) -> PlayedEpisodes:
        """Episodes `first` to `first + count - 1` of one group; `keep` their trajectories."""
        if self.paired is None:
            # Found out once, with two short episodes, before the first ones that count.
            self.paired = self._repeats(policy)
        lots = [
            self._play(policy, range(start, end), keep=keep, limit=self.limit)
            for start, end in lots_of(first, count, self._max_envs)
        ]
        return lots[0] if len(lots) == 1 else _joined(lots)

    def close(self) -> None:
        """Close the environments."""
        for env in self._envs:
            env.close()

    def _repeats(self, policy: Any) -> bool:
        """Whether an episode is the same when it is played again."""
        plays = (self._play(policy, range(1), keep=True, limit=CHECKED_STEPS) for _ in range(2))
        return all(map(np.array_equal, *map(jax.tree.leaves, plays)))

    def _play(self, policy: Any, episodes: range, *, keep: bool, limit: int) -> PlayedEpisodes:
        group, first = divmod(episodes.start, GROUP)
        mine = slice(first, first + len(episodes))
        obs, masks = self._reset(mine, group)
        running, terminated = np.zeros((2, GROUP), bool)
        running[mine] = True
        returns, lengths = np.zeros(GROUP), np.zeros(GROUP, np.int64)
        kept: list[Trajectories] = []
        for t in range(limit):
            if not running.any():
                break
            actions, sent = self.functions.act_group(policy, obs, masks, group, t)
            sent, rewards = own_dtype(self._spec.action_space, sent), np.zeros(GROUP)
            if keep:
                # Copies, for `_write` changes these in place. `rewards` is shared on purpose: it is
                # filled in below, as each environment steps.
                seen = jax.tree.map(np.array, (obs, masks, actions))
                kept.append(Trajectories._make([*seen, rewards]))
            for row in map(int, np.flatnonzero(running)):
                step = self._at(row).step(jax.tree.map(lambda leaf, i=row: leaf[i : i + 1], sent))
                rewards[row], terminated[row] = step.rewards[0], step.terminated[0]
                running[row] = not (step.terminated[0] or step.truncated[0])
                lengths[row] += 1
                # After an end `step.obs` belongs to the next episode, which is not played.
                if running[row]:
                    _write((obs, masks), row, (step.obs, step.action_mask))
                elif step.truncated[0]:
                    _write(obs, row, jax.tree.map(lambda leaf: leaf[None], step.final_obs[0]))
            returns += self._gamma**t * rewards
        found = PlayedEpisodes(returns, lengths, terminated, obs, None)
        found = jax.tree.map(lambda leaf: leaf[mine], found)
        if not keep:
            return found
        steps = jax.tree.map(lambda *leaves: np.stack(leaves)[:, mine], *kept)
        return found._replace(trajectories=steps)

    def _reset(self, rows: slice, group: int) -> tuple[PyTree, PyTree | None]:
        """First observations and masks of some of a group's episodes; zeros elsewhere."""
        # By place in the group, so that an episode is the same in whatever lot it is played.
        seeds = env_seeds(self._seed, group, GROUP, Purpose.PROBE)
        empty = create_empty_array(self._spec.observation_space, n=GROUP)
        obs = jax.tree.map(as_jax_dtype, empty)
        masks = masks_of(self._spec, {}, GROUP) if self._spec.masked else None
        for row in range(GROUP)[rows]:
            # Opened when first needed: a small budget needs few.
            while row % self._max_envs >= len(self._envs):
                self._envs.append(self._open())
            _write((obs, masks), row, self._at(row).reset([seeds[row]]))
        return obs, masks

    def _at(self, row: int) -> HostEnv:
        """The environment of a place in the group; another place of its lot has another one."""
        return self._envs[row % self._max_envs]


def lots_of(first: int, count: int, size: int) -> list[tuple[int, int]]:
    """Ranges of at most `size` episodes, from `first` on."""
    last = first + count
    return [(start, min(start + size, last)) for start in range(first, last, size)]


def _joined(lots: list[PlayedEpisodes]) -> PlayedEpisodes:
    """Episodes that were played one lot after another; trajectories are padded with zeros."""
    rest = [lot._replace(trajectories=None) for lot in lots]
    found = jax.tree.map(lambda *leaves: np.concatenate(leaves), *rest)
    kept = [lot.trajectories for lot in lots if lot.trajectories is not None]
    if not kept:
        return found
    length = max(len(each.rewards) for each in kept)

    def join(*leaves: np.ndarray) -> np.ndarray:
        pads = [[(0, length - len(leaf))] + [(0, 0)] * (leaf.ndim - 1) for leaf in leaves]
        return np.concatenate([np.pad(*pair) for pair in zip(leaves, pads, strict=True)], axis=1)

    return found._replace(trajectories=jax.tree.map(join, *kept))


def _write(rows: PyTree, row: int, values: PyTree) -> None:
    """Write the arrays of one environment, whose leading axis has length 1, into a row."""
    for target, value in zip(jax.tree.leaves(rows), jax.tree.leaves(values), strict=True):
        target[row] = value[0]
