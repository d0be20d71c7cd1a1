"""Every setting, as frozen dataclasses with real defaults. Nothing here imports JAX.

A group of settings that a caller gives is used unchanged; one that is not given comes from the
preset of the environment (`surefoot.config.presets`).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, NamedTuple

from surefoot.config.validation import (
    limits_of,
    setting,
    settings_group,
    shown,
    traced_values,
    with_arrays,
)
from surefoot.errors import ConfigError


class OwnNetwork(NamedTuple):
    """A network of the user's own: a pure `(init, apply)` pair, Flax's included.

    `init(key, obs) -> params` and `apply(params, obs) -> [*batch, outputs]`, where `obs` is the
    normalised observation (a tree where the space is a Dict or a Tuple). The policy's outputs
    are the parameters of its action distribution, the critic's are one number a row.
    """

    init: Callable[..., Any]
    apply: Callable[..., Any]


class OwnNetworks(NamedTuple):
    """Networks of the user's own in place of the built ones."""

    policy: OwnNetwork | None = None
    critic: OwnNetwork | None = None


_POSITIVE = {"low": 0.0, "open_low": True}
_FRACTION = {"low": 0.0, "high": 1.0}


def _learning_rate(default: float) -> Any:
    return setting(default, "Adam's step size", traced=True, **_POSITIVE)


def _final_fraction(default: float, of: str) -> Any:
    text = f"share of {of} left at the end of the run, falling linearly; 1: constant"
    return setting(default, text, traced=True, **_FRACTION)


def _max_grad_norm(default: float) -> Any:
    return setting(
        default,
        "maximum global norm of a gradient; 0: none",
        traced=True,
        low=0.0,
        off_at_zero=True,
    )


def _advantage_norm(*choices: str) -> Any:
    return setting(choices[0], "rows over which advantages are standardised", choices=choices)


def _ent_coef() -> Any:
    return setting(0.0, "weight of the entropy bonus", traced=True, low=0.0, off_at_zero=True)


def _max_kl(text: str) -> Any:
    return setting(0.01, f"{text}, in nats", traced=True, **_POSITIVE)


def _kl_per_dimension(of: str) -> Any:
    text = f"{of} is for each dimension of a Box, each bit and each choice; otherwise in all"
    return setting(False, text)


def _damping() -> Any:
    return setting(0.1, "added to the diagonal of the Fisher matrix", traced=True, low=0.0)


def _cg_iters() -> Any:
    return setting(10, "maximum conjugate-gradient iterations", low=1)


def _cg_tolerance() -> Any:
    text = "relative residual at which conjugate gradient stops"
    return setting(0.05, text, traced=True, **_FRACTION)


def _fisher_fraction() -> Any:
    text = "share of the states, drawn at random, in a Fisher product"
    return setting(0.25, text, high=1.0, **_POSITIVE)


def _num_epochs() -> Any:
    return setting(10, "passes over each batch", low=1)


def _num_minibatches(default: int) -> Any:
    return setting(default, "minibatches per pass", low=1)


@settings_group
class Train:
    """The run: how much experience, from how many environments, how normalised."""

    steps: int = setting(1_000_000, "environment steps, rounded up to whole iterations", low=1)
    seed: int = setting(
        0, "seed of every random number of the run", initial=True, low=0, high=2**31 - 1
    )
    num_envs: int = setting(8, "parallel environments", low=1, high=2**20)
    stagger: bool = setting(
        True,
        "cut the first episode of each of several environments at a random step below the time "
        "limit: otherwise those that end by the limit alone stay in step for the whole run",
    )
    max_envs: int = setting(
        0,
        "maximum environments open at a time, at least num_envs: evaluations during the run play "
        "in those that train, which start new episodes after it; 0: no maximum",
        low=0,
    )
    num_steps: int = setting(
        256, "steps of each environment between two updates", low=1, high=2**24
    )
    blocks: int = setting(
        1,
        "blocks of environments, which may live on different devices; rows are shuffled within "
        "each, so that numbers depend on the blocks and not on the devices",
        low=1,
    )
    gamma: float = setting(0.99, "discount per step", traced=True, **_FRACTION)
    gae_lambda: float = setting(
        0.95, "0: one-step advantage, 1: Monte Carlo advantage", traced=True, **_FRACTION
    )
    obs_norm: bool = setting(True, "normalise observations by running mean and variance")
    obs_clip: float = setting(10.0, "bound on a normalised observation", **_POSITIVE)
    return_norm: bool = setting(True, "divide rewards by the running std of the discounted return")
    reward_clip: float = setting(10.0, "bound on a normalised reward", traced=True, **_POSITIVE)
    vectorization: str = setting(
        "auto",
        "step Gymnasium environments in this process (sync), spread over the cores (cores) or in a "
        "process each (async); auto: over the cores for Gymnasium's own environments, where that "
        "is faster",
        choices=("auto", "sync", "cores", "async"),
    )
    env_timeout_s: float = setting(
        600.0,
        "seconds after which a constructor, reset, step or close that has not returned ends the "
        "run; 0: never",
        low=0.0,
    )
    on_env_error: str = setting(
        "stop",
        "what to do when a Gymnasium environment raises: stop, or restart:N to recreate it, at "
        "most N times in a run",
        choices=("stop", "restart:N"),
        pattern=r"stop|restart:[1-9][0-9]{0,5}",
    )
    strict_env: bool = setting(
        False, "stop when an observation lies outside its space; otherwise such rows are counted"
    )
    action_scale: str = setting(
        "affine", "map [-1, 1] onto a bounded Box, or clip raw actions", choices=("affine", "raw")
    )
    eval_every: int = setting(0, "steps between two evaluations; 0: none during the run", low=0)
    eval_episodes: int = setting(20, "episodes of one evaluation", low=1, high=10**6)
    eval_max_steps: int = setting(
        0,
        "environment steps of one evaluation, all its episodes together; 0: the environment's time "
        "limit for each, or without one 10,000 (or num_steps, if that is more)",
        low=0,
    )
    checkpoint_every: int = setting(
        0,
        "steps between scheduled checkpoints; 0: a tenth of the run",
        low=0,
    )
    reset_at_checkpoints: bool = setting(
        True,
        "reset Gymnasium environments at a scheduled checkpoint once in ten episode limits: from "
        "such a checkpoint a resume is exact",
    )
    keep_checkpoints: int = setting(3, "newest checkpoints kept beside the best one", low=1)
    dispatch: int = setting(10, "iterations of a JAX-native run per call of its program", low=1)
    lens_every: int = setting(
        100,
        "run the expensive diagnostics (cross-fit, shift of the visited states, gradient noise) "
        "every N iterations, at least ten times; 0: never",
        low=0,
    )
    probe_every: int = setting(
        0, "steps between two updates kept for a probe; 0: only those in trouble", low=0
    )
    guard: bool = setting(
        False,
        "shrink each step until its KL is within guard_kl; skip updates while held-out gains are "
        "significantly negative",
    )
    guard_kl: float = setting(
        0.05, "guard: maximum mean KL(old || new) of a step, in nats", traced=True, **_POSITIVE
    )
    guard_worst_kl: float = setting(
        1.0,
        "guard: maximum KL(old || new) in any state of the batch, in nats",
        traced=True,
        **_POSITIVE,
    )
    max_refusals: int = setting(10, "consecutive non-finite updates that stop the run", low=1)
    info_keys: tuple[str, ...] = setting((), "keys of an episode's last info to log under episode/")

    @property
    def affine(self) -> bool:
        """Whether [-1, 1] is mapped onto a Box of actions that has a range."""
        return self.action_scale == "affine"

    @property
    def staggers(self) -> bool:
        """Whether first episodes are cut: one environment alone has none to be in step with."""
        return self.stagger and self.num_envs > 1


@settings_group
class Network:
    """The policy's and the critic's networks: multilayer perceptrons, a small CNN on images."""

    hidden: tuple[int, ...] = setting(
        (64, 64), "widths of the hidden layers", low=1, high=16384, fewest=1, most=64
    )
    critic_hidden: tuple[int, ...] = setting(
        (), "widths of the critic's hidden layers; none: as hidden", low=1, high=16384, most=64
    )
    images: str = setting(
        "auto",
        "observations that a CNN reads, unnormalised: those of uint8 (auto), all of three axes, or "
        "none; others are flattened",
        choices=("auto", "all", "none"),
    )
    activation: str = setting(
        "tanh", "nonlinearity", choices=("tanh", "relu", "swish", "elu", "gelu")
    )
    ortho_init: bool = setting(True, "orthogonal initial weights, gain sqrt(2)", initial=True)
    head_scale: float = setting(
        0.01, "initial gain of the policy's last layer", initial=True, low=0.0
    )
    log_std_init: float = setting(
        0.0, "initial log standard deviation", initial=True, low=-5.0, high=2.0
    )
    std_per_dimension: bool = setting(
        True,
        "the initial standard deviation is of each dimension of a Box; otherwise of the whole "
        "action, and each of d dimensions has 1/√d of it",
        initial=True,
    )
    distribution: str = setting(
        "gaussian",
        "distribution of Box actions; of a clipped one, all that is beyond a bound is one action",
        choices=("gaussian", "clipped-gaussian", "tanh-gaussian"),
    )
    shared_torso: bool = setting(
        False, "share one torso between policy and critic (rules that descend a loss only)"
    )


@settings_group
class Critic:
    """The fit of V to the value targets."""

    learning_rate: float = _learning_rate(1e-3)
    final_fraction: float = _final_fraction(1.0, "learning_rate")
    num_epochs: int = _num_epochs()
    num_minibatches: int = _num_minibatches(16)
    max_grad_norm: float = _max_grad_norm(0.5)
    value_clip: float = setting(
        0.0,
        "bound on the change of a value per update; 0: none",
        traced=True,
        low=0.0,
        off_at_zero=True,
    )
    joint: bool = setting(
        False, "fit the critic in the policy's own descent, with its epochs and step size"
    )
    vf_coef: float = setting(
        0.5, "weight of the critic's loss in a joint descent", traced=True, **_POSITIVE
    )


@settings_group
class VPG:
    """Vanilla policy gradient: one Adam step along the gradient of the surrogate."""

    name: ClassVar[str] = "vpg"
    learning_rate: float = _learning_rate(5e-3)
    final_fraction: float = _final_fraction(0.0, "learning_rate")
    max_grad_norm: float = _max_grad_norm(0.0)
    advantage_norm: str = _advantage_norm("batch", "none")
    ent_coef: float = _ent_coef()


@settings_group
class NPG:
    """Natural policy gradient: a step along F⁻¹g to the radius of the quadratic model."""

    name: ClassVar[str] = "npg"
    max_kl: float = _max_kl("radius: mean KL(old || new) in the quadratic model")
    kl_per_dimension: bool = _kl_per_dimension("max_kl")
    final_fraction: float = _final_fraction(0.1, "max_kl")
    damping: float = _damping()
    cg_iters: int = _cg_iters()
    cg_tolerance: float = _cg_tolerance()
    fisher_fraction: float = _fisher_fraction()
    advantage_norm: str = _advantage_norm("batch", "none")
    ent_coef: float = _ent_coef()


@settings_group
class TRPO:
    """Trust-region policy optimisation: the natural step, with a radius that is checked."""

    name: ClassVar[str] = "trpo"
    max_kl: float = _max_kl("radius: maximum mean KL(old || new) of a step")
    kl_per_dimension: bool = _kl_per_dimension("max_kl")
    final_fraction: float = _final_fraction(0.1, "max_kl")
    damping: float = _damping()
    cg_iters: int = _cg_iters()
    cg_tolerance: float = _cg_tolerance()
    fisher_fraction: float = _fisher_fraction()
    backtrack_coeff: float = setting(
        0.8,
        "factor between two trials of the line search",
        traced=True,
        high=1.0,
        open_high=True,
        **_POSITIVE,
    )
    max_backtracks: int = setting(10, "maximum backtracking steps", low=0)
    damped_scale: bool = setting(
        False,
        "measure the full step with the damping, up to the radius; otherwise without it, up to 0.9 "
        "of the radius",
    )
    advantage_norm: str = _advantage_norm("batch", "none")
    ent_coef: float = _ent_coef()


@settings_group
class PPOKL:
    """PPO with an adaptive KL penalty instead of a constraint."""

    name: ClassVar[str] = "ppo-kl"
    target_kl: float = _max_kl("mean KL(old || new) that the penalty aims at")
    kl_per_dimension: bool = _kl_per_dimension("target_kl")
    kl_coef: float = setting(
        1.0, "penalty per nat at the first update", traced=True, initial=True, **_POSITIVE
    )
    learning_rate: float = _learning_rate(3e-4)
    final_fraction: float = _final_fraction(0.0, "learning_rate")
    num_epochs: int = _num_epochs()
    num_minibatches: int = _num_minibatches(32)
    max_grad_norm: float = _max_grad_norm(0.5)
    advantage_norm: str = _advantage_norm("minibatch", "batch", "none")
    ent_coef: float = _ent_coef()


@settings_group
class PPO:
    """PPO: the ratio is clipped instead of constrained."""

    name: ClassVar[str] = "ppo"
    clip_eps: float = setting(0.2, "the ratio is clipped to 1 ± this", traced=True, **_POSITIVE)
    target_kl: float = setting(
        0.0,
        "skip the remaining epochs once mean KL(old || new) exceeds 1.5 times this, in nats; "
        "0: never",
        traced=True,
        low=0.0,
        off_at_zero=True,
    )
    learning_rate: float = _learning_rate(3e-4)
    final_fraction: float = _final_fraction(0.0, "learning_rate")
    num_epochs: int = _num_epochs()
    num_minibatches: int = _num_minibatches(32)
    max_grad_norm: float = _max_grad_norm(0.5)
    advantage_norm: str = _advantage_norm("minibatch", "batch", "none")
    ent_coef: float = _ent_coef()


@settings_group
class Parallel:
    """Devices, processes and machines of a run. They decide where it is computed, not what."""

    devices: int = setting(1, "devices of each process", low=1)
    cluster: str = setting(
        "none",
        "auto: this is one of several processes, which a scheduler started; ray: start them on Ray",
        choices=("none", "auto", "ray"),
    )
    workers: int = setting(2, "processes started on Ray", low=1)
    env_workers: int = setting(0, "Ray actors that step Gymnasium environments; 0: none", low=0)
    address: str = setting(
        "", "address of a running Ray cluster, such as auto; none: start a local one"
    )
    restarts: int = setting(3, "how often lost workers are restarted", low=0)

    @property
    def uses_ray(self) -> bool:
        """Whether Ray is needed."""
        return self.cluster == "ray" or self.env_workers > 0


Rule = VPG | NPG | TRPO | PPOKL | PPO
RULES: dict[str, type[Rule]] = {rule.name: rule for rule in (VPG, NPG, TRPO, PPOKL, PPO)}
DESCENDING = ("vpg", "ppo-kl", "ppo")
"""The rules that descend a loss by minibatches, and so can fit the critic in the same descent."""
GROUPS = ("rule", "train", "network", "critic")


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run: what `config.json` holds."""

    env: str
    env_kwargs: Mapping[str, Any]
    rule: Any
    train: Train
    network: Network
    critic: Critic

    @property
    def num_iterations(self) -> int:
        """Iterations of the run, fixed before it starts: steps over the batch, rounded up."""
        return math.ceil(self.train.steps / self.batch_size)

    @property
    def batch_size(self) -> int:
        """Rows of one iteration, dummy ones included."""
        return self.train.num_envs * self.train.num_steps

    def with_train(self, **fields: Any) -> "Settings":
        """These settings with fields of `train` changed."""
        return replace(self, train=replace(self.train, **fields))

    def traced(self) -> dict[str, Any]:
        """The numbers that are data of the compiled program, `with_arrays` puts in their place.

        Discounts, step sizes, radii and clips, and the number of updates over which some decay.
        """
        groups = {name: traced_values(getattr(self, name)) for name in GROUPS}
        return {**groups, "num_updates": float(self.num_iterations)}

    def with_arrays(self, traced: Mapping[str, Any]) -> "Settings":
        """These settings with arrays in the place of the traced numbers, inside a program."""
        groups = {name: with_arrays(getattr(self, name), traced[name]) for name in GROUPS}
        return replace(self, **groups)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, the form of `config.json` and of a `--config` file."""
        return {
            "env": self.env,
            "env_kwargs": dict(self.env_kwargs),
            "rule": {"name": self.rule.name, **asdict(self.rule)},
            "train": asdict(self.train),
            "network": asdict(self.network),
            "critic": asdict(self.critic),
        }


def rules_with(name: str) -> list[str]:
    """The rules that have a setting of this name."""
    return [key for key, rule in RULES.items() if name in limits_of(rule)]


def non_default(settings: Settings) -> list[str]:
    """The settings that differ from the library's defaults, as `max_kl 0.04`; not the seed."""
    found = []
    for section, prefix in (("train", ""), ("network", ""), ("rule", ""), ("critic", "critic ")):
        group = getattr(settings, section)
        for name, limits in limits_of(group).items():
            value = getattr(group, name)
            if value != limits.default and name != "seed":
                found.append(f"{prefix}{name} {shown(value)}")
    return found


def check_kind(name: str, value: Any, *kinds: type) -> None:
    """Refuse a group of settings that is neither None nor of `kinds`.

    Raises:
        ConfigError: shows how to write it.
    """
    if value is None or isinstance(value, kinds):
        return
    inside = value.items() if isinstance(value, Mapping) else ()
    settings = ", ".join(f"{key}={entry!r}" for key, entry in inside) or "..."
    raise ConfigError(f"{name} must be sf.{kinds[0].__name__}({settings}), got {value!r}")


def check_together(settings: Settings) -> None:
    """Refuse settings that are valid alone and do not fit together.

    Raises:
        ConfigError: for a batch that its minibatches do not divide, a joint or shared critic
            under a rule that takes its own step, and settings that would be ignored.
    """
    rule, critic, train = settings.rule, settings.critic, settings.train
    shares = settings.network.shared_torso or critic.joint
    if shares and rule.name not in DESCENDING:
        what = "shared_torso" if settings.network.shared_torso else "critic joint"
        raise ConfigError(
            f"{rule.name}: {what} needs a rule that descends a loss ({', '.join(DESCENDING)}); "
            f"{rule.name} takes one step of its own on the policy alone"
        )
    if settings.network.shared_torso and not critic.joint:
        raise ConfigError("network: shared_torso needs --critic-joint: one descent for both")
    limits = limits_of(train)
    for name in () if train.guard else ("guard_kl", "guard_worst_kl"):
        if getattr(train, name) != limits[name].default:
            flag = name.replace("_", "-")
            raise ConfigError(f"train: {name} needs a guard: add --guard to --{flag}")
    if 0 < train.max_envs < train.num_envs:
        raise ConfigError(
            f"train: num_envs {train.num_envs} is more than max_envs {train.max_envs}; set "
            f"--num-envs {train.max_envs}"
        )
    if train.num_envs % train.blocks:
        raise ConfigError(
            f"train: {train.blocks} blocks do not divide num_envs {train.num_envs}; nearest that "
            f"do: {_nearest_divisors(train.num_envs, train.blocks)}"
        )
    counts = {"num_minibatches": getattr(rule, "num_minibatches", 1)}
    if not critic.joint:
        counts["critic num_minibatches"] = critic.num_minibatches
    # A minibatch has equal shares of all blocks, so minibatches must divide one block.
    rows = settings.batch_size // train.blocks
    for name, count in counts.items():
        if rows % count:
            of_block = f", {train.blocks} blocks of {rows}" if train.blocks > 1 else ""
            raise ConfigError(
                f"{name} {count} does not divide the batch of {settings.batch_size} "
                f"(num_envs {train.num_envs} x num_steps {train.num_steps}{of_block}); "
                f"nearest that do: {_nearest_divisors(rows, count)}"
            )


def _nearest_divisors(batch: int, count: int) -> str:
    divisors = [n for n in range(1, batch + 1) if batch % n == 0]
    below = max(n for n in divisors if n <= max(count, 1))
    above = min((n for n in divisors if n >= count), default=batch)
    return " and ".join(str(n) for n in dict.fromkeys((below, above)))
