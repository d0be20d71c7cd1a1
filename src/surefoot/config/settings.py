"""Every setting, as frozen dataclasses whose unset fields are None until `resolve` fills them.

The order is: library default < preset < configuration file < explicit. Nothing here imports JAX,
so that the command line can refuse a wrong flag at once.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, NamedTuple, TypeVar

from surefoot.config.validation import check, coerce, limits_of, nearest, setting, shown
from surefoot.errors import ConfigError


class OwnNetwork(NamedTuple):
    """A network of the user's own: a pure `(init, apply)` pair, Flax's included.

    `init(key, obs) -> params` and `apply(params, obs) -> [*batch, outputs]`, where `obs` is the
    normalised observation (a tree where the space is a Dict or a Tuple). The policy's outputs
    are the parameters of its action distribution, the critic's are one number a row.
    """

    init: Callable[..., Any]
    apply: Callable[..., Any]


_POSITIVE = {"low": 0.0, "open_low": True}
_FRACTION = {"low": 0.0, "high": 1.0}


@dataclass(frozen=True)
class Train:
    """The run: how much experience, from how many environments, how normalised."""

    steps: int = setting(1_000_000, "environment steps; rounded up to whole iterations", low=1)
    seed: int = setting(0, "seed of every random number of the run", low=0, high=2**31 - 1)
    num_envs: int = setting(8, "environments stepped side by side", low=1)
    num_steps: int = setting(256, "steps of each environment between two updates", low=1)
    blocks: int = setting(
        1,
        "blocks of environments, which may live on different devices: rows are shuffled within "
        "each, so that numbers depend on the blocks and not on the devices",
        low=1,
    )
    gamma: float = setting(0.99, "discount per step", **_FRACTION)
    gae_lambda: float = setting(
        0.95, "0: one-step advantage, 1: Monte Carlo advantage", **_FRACTION
    )
    obs_norm: bool = setting(True, "normalise observations by running mean and variance")
    obs_clip: float = setting(10.0, "bound on a normalised observation", **_POSITIVE)
    return_norm: bool = setting(True, "divide rewards by the running std of the discounted return")
    reward_clip: float = setting(10.0, "bound on a normalised reward", **_POSITIVE)
    vectorization: str = setting(
        "auto",
        "step Gymnasium environments in this process (sync), spread over the cores (cores) or in a "
        "process each (async); auto: over the cores where they are Gymnasium's own and gain by it",
        choices=("auto", "sync", "cores", "async"),
    )
    env_timeout_s: float = setting(
        600.0, "seconds after which a step that has not returned ends the run; 0: never", low=0.0
    )
    on_env_error: str = setting(
        "stop",
        "stop where a Gymnasium environment raises, or restart:N: make it anew, N times in a run",
        choices=("stop", "restart:N"),
        pattern=r"stop|restart:[1-9][0-9]{0,5}",
    )
    strict_env: bool = setting(
        False, "stop where an observation lies outside its space; else such rows are counted"
    )
    action_scale: str = setting(
        "affine", "map [-1, 1] onto a bounded Box, or clip as it is", choices=("affine", "raw")
    )
    eval_every: int = setting(0, "steps between two evaluations; 0: none during the run", low=0)
    eval_episodes: int = setting(20, "episodes of one evaluation", low=1)
    checkpoint_every: int = setting(
        0,
        "steps between scheduled checkpoints; 0: a tenth of the run, ten episodes at least",
        low=0,
    )
    reset_at_checkpoints: bool = setting(
        True, "reseed Gymnasium environments at scheduled checkpoints, so that a resume is exact"
    )
    keep_checkpoints: int = setting(3, "newest checkpoints kept beside the best one", low=1)
    dispatch: int = setting(10, "iterations of a JAX-native run per call of its program", low=1)
    lens_every: int = setting(
        100,
        "iterations between two looks of the lens's dearer part (cross-fit, shift of visits, "
        "gradient noise); 0: never",
        low=0,
    )
    probe_every: int = setting(
        0, "steps between two updates that are kept for a probe; 0: only those in trouble", low=0
    )
    guard: bool = setting(
        False, "walk steps back into guard_kl, and take none while the lens sees no hope"
    )
    guard_kl: float = setting(
        0.05, "guard: largest mean KL(old || new) of a step, in nats", **_POSITIVE
    )
    guard_worst_kl: float = setting(
        1.0, "guard: largest KL(old || new) of any state of the batch, in nats", **_POSITIVE
    )
    max_refusals: int = setting(10, "non-finite updates in a row that stop the run", low=1)
    info_keys: tuple[str, ...] = setting((), "keys of the last info to log under episode/")


@dataclass(frozen=True)
class Network:
    """The policy's and the critic's functions: two multilayer perceptrons, a CNN for MinAtar."""

    hidden: tuple[int, ...] = setting(
        (64, 64), "widths of the hidden layers", low=1, high=16384, fewest=1
    )
    critic_hidden: tuple[int, ...] = setting(
        None, "the critic's widths; unset: as hidden", low=1, high=16384, fewest=1
    )
    activation: str = setting(
        "tanh", "nonlinearity", choices=("tanh", "relu", "swish", "elu", "gelu")
    )
    ortho_init: bool = setting(True, "orthogonal initial weights, gain sqrt(2)")
    head_scale: float = setting(0.01, "gain of the policy's last layer at the start", low=0.0)
    log_std_init: float = setting(0.0, "log standard deviation at the start", low=-5.0, high=2.0)
    distribution: str = setting(
        "gaussian", "distribution of Box actions", choices=("gaussian", "tanh-gaussian")
    )
    shared_torso: bool = setting(False, "one torso for policy and critic (descending rules only)")


@dataclass(frozen=True)
class Critic:
    """The fit of V to the value targets."""

    learning_rate: float = setting(1e-3, "Adam's step size", **_POSITIVE)
    learning_rate_end: float = setting(
        None, "step size at the end of the run; unset: constant", low=0.0
    )
    num_epochs: int = setting(10, "passes over each batch", low=1)
    num_minibatches: int = setting(16, "parts of a pass", low=1)
    max_grad_norm: float = setting(0.5, "bound on the global norm of a gradient; 0: none", low=0.0)
    value_clip: float = setting(0.0, "bound on the change of a value per update; 0: none", low=0.0)
    joint: bool = setting(
        False, "fit inside the policy's own descent, with its epochs and step size"
    )
    vf_coef: float = setting(0.5, "weight of the critic's loss in a joint descent", **_POSITIVE)


def _advantage_norm(*choices: str) -> Any:
    return setting(choices[0], "over which rows advantages are standardised", choices=choices)


def _ent_coef() -> Any:
    return setting(0.0, "weight of the entropy bonus", low=0.0)


@dataclass(frozen=True)
class VPG:
    """Vanilla policy gradient: the tangent direction, and hope."""

    name: ClassVar[str] = "vpg"
    learning_rate: float = setting(5e-3, "Adam's step size", **_POSITIVE)
    learning_rate_end: float = setting(
        None, "step size at the end of the run; unset: constant", low=0.0
    )
    max_grad_norm: float = setting(0.0, "bound on the gradient's global norm; 0: none", low=0.0)
    advantage_norm: str = _advantage_norm("batch", "none")
    ent_coef: float = _ent_coef()


@dataclass(frozen=True)
class NPG:
    """Natural policy gradient: the tangent direction in the geometry of distributions."""

    name: ClassVar[str] = "npg"
    max_kl: float = setting(
        0.01, "radius: mean KL(old || new) the quadratic model allows, in nats", **_POSITIVE
    )
    max_kl_end: float = setting(None, "radius at the end of the run; unset: constant", **_POSITIVE)
    damping: float = setting(0.1, "added to the Fisher matrix's diagonal", low=0.0)
    cg_iters: int = setting(10, "most conjugate-gradient steps", low=1)
    cg_tolerance: float = setting(
        0.05, "relative residual at which conjugate gradient stops", low=0.0, high=1.0
    )
    fisher_fraction: float = setting(
        0.25, "share of states, drawn at random, in a Fisher product", high=1.0, **_POSITIVE
    )
    advantage_norm: str = _advantage_norm("batch", "none")
    ent_coef: float = _ent_coef()


@dataclass(frozen=True)
class TRPO:
    """Trust-region policy optimisation: the natural direction, with a radius that is checked."""

    name: ClassVar[str] = "trpo"
    max_kl: float = setting(
        0.01, "largest mean KL(old || new) a step may reach, in nats", **_POSITIVE
    )
    max_kl_end: float = setting(None, "radius at the end of the run; unset: constant", **_POSITIVE)
    damping: float = setting(0.1, "added to the Fisher matrix's diagonal", low=0.0)
    cg_iters: int = setting(10, "most conjugate-gradient steps", low=1)
    cg_tolerance: float = setting(
        0.05, "relative residual at which conjugate gradient stops", low=0.0, high=1.0
    )
    fisher_fraction: float = setting(
        0.25, "share of states, drawn at random, in a Fisher product", high=1.0, **_POSITIVE
    )
    backtrack_coeff: float = setting(
        0.8, "factor between two tries of the line search", high=1.0, open_high=True, **_POSITIVE
    )
    max_backtracks: int = setting(10, "tries after the full step", low=0)
    advantage_norm: str = _advantage_norm("batch", "none")
    ent_coef: float = _ent_coef()


@dataclass(frozen=True)
class PPOKL:
    """PPO with an adaptive KL penalty instead of a constraint."""

    name: ClassVar[str] = "ppo-kl"
    target_kl: float = setting(
        0.01, "mean KL(old || new) the penalty aims at, in nats", **_POSITIVE
    )
    kl_coef: float = setting(1.0, "penalty per nat at the first update", **_POSITIVE)
    learning_rate: float = setting(3e-4, "Adam's step size", **_POSITIVE)
    learning_rate_end: float = setting(
        None, "step size at the end of the run; unset: constant", low=0.0
    )
    num_epochs: int = setting(10, "passes over each batch", low=1)
    num_minibatches: int = setting(32, "parts of a pass", low=1)
    max_grad_norm: float = setting(0.5, "bound on the gradient's global norm; 0: none", low=0.0)
    advantage_norm: str = _advantage_norm("minibatch", "batch", "none")
    ent_coef: float = _ent_coef()


@dataclass(frozen=True)
class PPO:
    """PPO: a clip instead of a penalty."""

    name: ClassVar[str] = "ppo"
    clip_eps: float = setting(0.2, "the ratio's free range is 1 ± this", **_POSITIVE)
    clip_eps_end: float = setting(None, "range at the end of the run; unset: constant", **_POSITIVE)
    target_kl: float = setting(
        0.0, "stop the epochs once mean KL exceeds 1.5 times this; 0: never", low=0.0
    )
    learning_rate: float = setting(3e-4, "Adam's step size", **_POSITIVE)
    learning_rate_end: float = setting(
        None, "step size at the end of the run; unset: constant", low=0.0
    )
    num_epochs: int = setting(10, "passes over each batch", low=1)
    num_minibatches: int = setting(32, "parts of a pass", low=1)
    max_grad_norm: float = setting(0.5, "bound on the gradient's global norm; 0: none", low=0.0)
    advantage_norm: str = _advantage_norm("minibatch", "batch", "none")
    ent_coef: float = _ent_coef()


Rule = VPG | NPG | TRPO | PPOKL | PPO
RULES: dict[str, type[Rule]] = {rule.name: rule for rule in (VPG, NPG, TRPO, PPOKL, PPO)}
DESCENDING = ("vpg", "ppo-kl", "ppo")
"""The rules that descend a loss by minibatches, and so can fit the critic in the same descent."""

Config = TypeVar("Config", Train, Network, Critic, VPG, NPG, TRPO, PPOKL, PPO)


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run: what `config.json` freezes."""

    env: str
    env_kwargs: Mapping[str, Any]
    preset: str
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

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, the form that `from_dict` and `--config` read."""
        return {
            "env": self.env,
            "env_kwargs": dict(self.env_kwargs),
            "preset": self.preset,
            "rule": {"name": self.rule.name, **asdict(self.rule)},
            "train": asdict(self.train),
            "network": asdict(self.network),
            "critic": asdict(self.critic),
        }


def rules_with(name: str) -> list[str]:
    """The rules that have a setting of this name."""
    return [key for key, rule in RULES.items() if name in limits_of(rule)]


def unlike_defaults(settings: Settings) -> list[str]:
    """The settings that are not the library's defaults, as `max_kl 0.04`.

    The seed is left out, and so is the end of a schedule that does not change.
    """
    told = []
    for section, prefix in (("train", ""), ("network", ""), ("rule", ""), ("critic", "critic ")):
        config = getattr(settings, section)
        defaults = vars(resolve(type(config)()))
        for name, value in vars(config).items():
            start = getattr(config, name.removesuffix("_end"))
            constant = name.endswith("_end") and value == start
            if value != defaults[name] and not constant and name != "seed":
                told.append(f"{prefix}{name} {shown(value)}")
    return told


def refuse_other_kinds(name: str, value: Any, *kinds: type) -> None:
    """Refuse what a caller gave for a group of settings and is neither unset nor of `kinds`.

    Raises:
        ConfigError: shows how to write it.
    """
    if value is None or isinstance(value, kinds):
        return
    inside = value.items() if isinstance(value, Mapping) else ()
    settings = ", ".join(f"{key}={entry!r}" for key, entry in inside) or "..."
    raise ConfigError(
        f"{name}={value!r} is of another kind; give sf.{kinds[0].__name__}({settings})"
    )


def from_mapping(kind: type[Config], table: Mapping[str, Any]) -> Config:
    """One settings dataclass out of a parsed table of a configuration file.

    Raises:
        ConfigError: for an unknown key (with the nearest valid one) or a value of another kind.
    """
    owner = getattr(kind, "name", kind.__name__.lower())
    types = {f.name: f.type for f in fields(kind) if "limits" in f.metadata}
    for key in table:
        if key not in types:
            others = rules_with(key) if kind in RULES.values() else []
            hint = f": it is a setting of {', '.join(others)}" if others else nearest(key, types)
            raise ConfigError(f"{owner} has no setting {key}{hint}")
    config = kind(**{k: coerce(v, types[k], f"{owner}: {k}") for k, v in table.items()})
    check(config)
    return config


def resolve(given: Config, *layers: Mapping[str, Any]) -> Config:
    """`given` with its unset fields filled from `layers`, first one first, then the defaults.

    An `_end` that nobody sets is the value at the start: the setting stays as it is.

    Raises:
        ConfigError: for a value of the wrong kind or outside its limits.
    """
    types = {f.name: f.type for f in fields(given)}
    filled = {}
    for name, limits in limits_of(given).items():
        options = [getattr(given, name), *(layer.get(name) for layer in layers), limits.default]
        value = next((option for option in options if option is not None), None)
        owner = getattr(given, "name", type(given).__name__.lower())
        if value is None and name.endswith("_end"):
            value = filled[name.removesuffix("_end")]
        filled[name] = coerce(value, types[name], f"{owner}: {name}")
    config = replace(given, **filled)
    check(config)
    return config


def check_together(settings: Settings) -> None:
    """Refuse settings that are fine alone and do not fit together.

    Raises:
        ConfigError: for a batch that its minibatches do not divide, a joint or shared critic
            under a rule that takes its own step, and settings that could then never apply.
    """
    rule, critic, batch = settings.rule, settings.critic, settings.batch_size
    shares = settings.network.shared_torso or critic.joint
    if shares and rule.name not in DESCENDING:
        what = "shared_torso" if settings.network.shared_torso else "critic joint"
        raise ConfigError(
            f"{rule.name}: {what} needs a rule that descends a loss ({', '.join(DESCENDING)}); "
            f"{rule.name} takes one step of its own on the policy alone"
        )
    _refuse_idle(settings)
    envs, blocks = settings.train.num_envs, settings.train.blocks
    if envs % blocks:
        raise ConfigError(
            f"train: {blocks} blocks do not divide num_envs {envs}; nearest that do: "
            f"{_nearest_divisors(envs, blocks)}"
        )
    if settings.network.shared_torso and not critic.joint:
        raise ConfigError("network: shared_torso needs --critic-joint: one descent for both")
    parts = {"num_minibatches": getattr(rule, "num_minibatches", 1)}
    if not critic.joint:
        parts["critic num_minibatches"] = critic.num_minibatches
    rows = batch // blocks
    for name, count in parts.items():
        if rows % count:
            of_block = f", {blocks} blocks of {rows}" if blocks > 1 else ""
            raise ConfigError(
                f"{name} {count} does not divide the batch of {batch} "
                f"(num_envs {envs} x num_steps {settings.train.num_steps}{of_block}); "
                f"nearest that do: {_nearest_divisors(rows, count)}"
            )


def _refuse_idle(settings: Settings) -> None:
    """Refuse a guard's radii without a guard: they would not be read."""
    limits = limits_of(settings.train)
    for name in () if settings.train.guard else ("guard_kl", "guard_worst_kl"):
        if getattr(settings.train, name) != limits[name].default:
            flag = name.replace("_", "-")
            raise ConfigError(f"train: {name} is read with a guard only: add --guard to --{flag}")


def _nearest_divisors(batch: int, count: int) -> str:
    divisors = [n for n in range(1, batch + 1) if batch % n == 0]
    below = max(n for n in divisors if n <= max(count, 1))
    above = min((n for n in divisors if n >= count), default=batch)
    return " and ".join(str(n) for n in dict.fromkeys((below, above)))
