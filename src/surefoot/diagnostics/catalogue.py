"""Every metric that a run logs, each said once: what it is, its healthy range, what to do."""

import difflib
from collections.abc import Iterable
from typing import NamedTuple

from surefoot.errors import ConfigError


class Metric(NamedTuple):
    """One logged figure. `unit` is what it counts in; `healthy` and `remedy` are advice."""

    unit: str
    what: str
    healthy: str
    remedy: str


_NO_REMEDY = "nothing to do: it describes the run."
_JUMP = "above, some state jumps under cover of the average: a smaller step, or a wider network."
_COLLAPSE = "where it collapses while returns are poor: ent_coef above 0, or a smaller step."
_NOT_FINITE = "look at rewards and observations; lower the step size."

METRICS: dict[str, Metric] = {
    "iteration": Metric("iterations", "Updates done so far.", "any", _NO_REMEDY),
    "env_steps": Metric(
        "steps",
        "Environment steps so far; dummy transitions of next-step autoreset are not counted.",
        "any",
        _NO_REMEDY,
    ),
    "episode/count": Metric(
        "episodes",
        "Episodes that ended during this rollout.",
        "1 or more, on most iterations",
        "where it stays 0, episodes are longer than num_steps x iterations: set a time limit, or "
        "collect more steps at once.",
    ),
    "episode/return_mean": Metric(
        "reward",
        "Mean total reward of the episodes that ended during this rollout, as the environment "
        "gave it: undiscounted, not normalised, actions sampled.",
        "rising",
        "where it falls for good, look at policy/kl_mean and critic/explained_variance before it.",
    ),
    "episode/return_min": Metric(
        "reward",
        "Smallest total reward of an episode that ended during this rollout.",
        "any",
        _NO_REMEDY,
    ),
    "episode/return_max": Metric(
        "reward",
        "Largest total reward of an episode that ended during this rollout.",
        "any",
        _NO_REMEDY,
    ),
    "episode/length_mean": Metric(
        "steps", "Mean length of the episodes that ended during this rollout.", "any", _NO_REMEDY
    ),
    "episode/is_success": Metric(
        "share",
        "Share of the episodes that ended during this rollout whose last info said is_success.",
        "rising",
        _NO_REMEDY,
    ),
    "eval/return_mean": Metric(
        "reward",
        "Mean return of fresh episodes under the frozen deterministic policy, on separate "
        "environments.",
        "rising, and near its best at the end",
        "where the end is far below the best, let the radius or the step size fall over the run "
        "(final_fraction), or use `--best` of evaluate.",
    ),
    "eval/return_std": Metric(
        "reward",
        "Standard deviation of the returns of the evaluation's episodes.",
        "small",
        _NO_REMEDY,
    ),
    "eval/length_mean": Metric(
        "steps", "Mean length of the evaluation's episodes.", "any", _NO_REMEDY
    ),
    "eval/success_rate": Metric(
        "share",
        "Share of the evaluation's episodes whose last info said is_success.",
        "rising",
        _NO_REMEDY,
    ),
    "surrogate/promised_gain": Metric(
        "discounted reward",
        "What the surrogate promises over the old policy, on the batch it was fitted to: "
        "horizon x mean of (ratio - 1) x advantage, back in the environment's units.",
        "above 0, and not growing while returns stand still",
        "it flatters, for it is scored on its own data: where returns do not follow it, take more "
        "steps per batch, a smaller radius or more damping.",
    ),
    "lens/promised_gain": Metric(
        "discounted reward",
        "What the surrogate promised for the update before this row's rollout: that row's "
        "surrogate/promised_gain, beside lens/realised_gain of the same update.",
        "above 0",
        "see surrogate/promised_gain.",
    ),
    "lens/insample_promise": Metric(
        "discounted reward",
        "Every lens_every iterations: what the surrogate promises for an update made from half of "
        "the environments (of the episodes, where there is one), scored on that half; mean of the "
        "two halves.",
        "not far above lens/crossfit_promise",
        "far above it, updates follow noise: more steps a batch, more damping, or fewer epochs.",
    ),
    "lens/crossfit_promise": Metric(
        "discounted reward",
        "The same updates scored on the other half of the environments, which they never saw: what "
        "is left is signal. Noisy for one update; look at the mean of several.",
        "above 0",
        "0 or below on average: updates are noise; more steps a batch, or a smaller radius.",
    ),
    "lens/crossfit_low": Metric(
        "discounted reward",
        "Lower end of the 95 % interval of lens/crossfit_promise: how well the other half tells "
        "what these two updates are worth.",
        "any",
        _NO_REMEDY,
    ),
    "lens/crossfit_high": Metric(
        "discounted reward",
        "Upper end of the 95 % interval of lens/crossfit_promise.",
        "above 0",
        "below 0: what the update learned from one half does harm on the other.",
    ),
    "lens/signal_share": Metric(
        "share",
        "lens/crossfit_promise over lens/insample_promise, both smoothed over updates: the part of "
        "a promise that is signal and not noise.",
        "above 0.5 early in a run, above 0.2 later",
        "near 0, updates follow noise: more steps a batch, fewer epochs, more damping, or a "
        "smaller step.",
    ),
    "lens/filtered_ratio": Metric(
        "share",
        "How much of the signal in the last update's promise came true, filtered over all updates "
        "so far by a model in which the gap grows with the square of the step. Before the first "
        "cross-fit the whole promise is taken for signal.",
        "0.5 to 1",
        "below 0.5, states shift under the step: a smaller radius or clip range; near 1, a larger "
        "step would gain more.",
    ),
    "lens/filtered_low": Metric(
        "share", "Lower end of the filter's 95 % band of lens/filtered_ratio.", "any", _NO_REMEDY
    ),
    "lens/filtered_high": Metric(
        "share", "Upper end of the filter's 95 % band of lens/filtered_ratio.", "any", _NO_REMEDY
    ),
    "lens/visitation_shift": Metric(
        "probability",
        "Every lens_every iterations: at least how far the states moved from the last rollout to "
        "this one, in total variation, by a classifier judged on environments it never saw. 0 "
        "where it cannot tell.",
        "below 0.2, or no more than lens/visitation_null",
        "above 0.5 and above its null, the surrogate counts states that are gone: a smaller step.",
    ),
    "lens/visitation_null": Metric(
        "probability",
        "The same classifier, the last rollout's earlier half against its later one: what it says "
        "where the policy did not change.",
        "near 0",
        "where it is large, states move with the time in the episode: a shift of this size is no "
        "update's doing. More environments, or longer rollouts.",
    ),
    "lens/noise_scale": Metric(
        "rows",
        "Every lens_every iterations: rows at which the gradient's noise equals its signal, from "
        "how the environments' own gradients differ. Not logged where no signal is found.",
        "at most a few batches",
        "far above the batch, gradients are noise: more steps a batch.",
    ),
    "lens/expected_cosine": Metric(
        "cosine",
        "Cosine to be expected between the gradients of two independent batches of this size; 0 "
        "where no signal is found.",
        "above 0.1",
        "below, updates are mostly noise: more steps a batch, or a smaller step.",
    ),
    "lens/explained_variance": Metric(
        "share",
        "Part of the discounted returns of this rollout that V explains, which was fitted to "
        "earlier ones; critic/explained_variance is asked of targets that V itself is part of.",
        "above 0",
        "below 0, V is worse than a constant there: more critic epochs, a wider critic, or a "
        "smaller critic learning rate. It means nothing where all returns are equal.",
    ),
    "guard/fraction": Metric(
        "share",
        "Share of the rule's step that the guard kept; 1: the whole step was inside, 0: refused.",
        "1 on most updates",
        "mostly below 1: the rule itself goes too far; a smaller step size or fewer epochs.",
    ),
    "guard/refused": Metric(
        "0 or 1",
        "Whether the guard took no step, because the mean of the last ten lens/crossfit_promise "
        "is negative beyond its interval.",
        "0",
        "1 again and again: the data holds no signal that the rule finds; more steps a batch.",
    ),
    "warnings": Metric(
        "names",
        "Names of the warnings raised at this iteration; `surefoot explain NAME` says what each "
        "rests on and what to do.",
        "absent",
        "see each warning's own remedy.",
    ),
    "lens/realised_gain": Metric(
        "discounted reward",
        "What the update before this row's rollout really gained: horizon x the change of the mean "
        "TD error, from the rollout it learned from to the one after it, under the critic of "
        "before it. No extra steps; noisy for a single update, so look at the mean of many.",
        "on average above 0 and not far below lens/promised_gain",
        "below half the promise on average: a smaller radius where KL is large, more steps a batch "
        "where it is not.",
    ),
    "lens/realised_low": Metric(
        "discounted reward",
        "Lower end of the 95 % interval of lens/realised_gain: Student's over environments, or "
        "over episodes where there is one environment.",
        "closer to the gain with more environments or steps",
        _NO_REMEDY,
    ),
    "lens/realised_high": Metric(
        "discounted reward",
        "Upper end of the 95 % interval of lens/realised_gain.",
        "above 0",
        "below 0: the update did harm; it says why a run falls, not early that it will.",
    ),
    "lens/total_gain": Metric(
        "discounted reward",
        "What all updates so far gained together: the sum of lens/realised_gain. Not logged with "
        "one environment.",
        "rising",
        "standing still while promises go on: see lens/signal_share and lens/filtered_ratio.",
    ),
    "lens/total_low": Metric(
        "discounted reward",
        "Lower end of the 95 % interval of lens/total_gain: Student's over the environments' own "
        "sums, in which the noise that successive gains share cancels.",
        "above 0",
        "below 0: this run alone cannot tell its gain from none.",
    ),
    "lens/total_high": Metric(
        "discounted reward",
        "Upper end of the 95 % interval of lens/total_gain.",
        "above 0",
        "below 0: the updates did harm in sum.",
    ),
    "policy/kl_mean": Metric(
        "nats",
        "Mean over the batch of KL(old || new), exact.",
        "0.002 to 0.05; with trpo at most max_kl",
        "above: a smaller step size, fewer epochs, or a target_kl; near 0: a larger step.",
    ),
    "policy/kl_median": Metric(
        "nats",
        "KL(old || new) that half of the states stay below.",
        "near policy/kl_mean",
        "far below the mean, a few states do all the moving: see policy/kl_worst_share.",
    ),
    "policy/kl_p99": Metric(
        "nats",
        "KL(old || new) that 99 % of the states stay below.",
        "within 20 times the mean",
        "far above the mean, a few states jump under cover of the average: a smaller step, or a "
        "wider network.",
    ),
    "policy/kl_worst_share": Metric(
        "share",
        "Share of the batch's KL that its worst 1 % of states hold.",
        "0.01 (all states move alike) to 0.2",
        "above: few states jump while the mean stays small; a smaller radius or clip range, or a "
        "look at what the observations there have in common.",
    ),
    "policy/kl_worst_state": Metric(
        "nats",
        "Largest KL(old || new) in the batch, what the theorem would bound; a sample's maximum, "
        "so it grows with the batch.",
        "below 1",
        _JUMP,
    ),
    "policy/kl_reverse_mean": Metric(
        "nats",
        "Mean KL(new || old), the other direction.",
        "close to policy/kl_mean",
        "where the two part, the step is beyond the quadratic model: make it smaller.",
    ),
    "policy/tv_mean": Metric(
        "probability",
        "Mean total variation between old and new: exact for one categorical choice and for one "
        "bit, else half the mean of |ratio - 1|.",
        "below 0.2",
        "above: a smaller step size, fewer epochs, or a target_kl.",
    ),
    "policy/tv_worst_state": Metric(
        "probability",
        "Total variation in the worst state; where it has no closed form, an upper bound from "
        "that state's KL.",
        "below 0.7",
        _JUMP,
    ),
    "policy/ratio_min": Metric(
        "ratio", "Smallest new / old probability of an action taken.", "above 0.1", _NO_REMEDY
    ),
    "policy/ratio_max": Metric(
        "ratio",
        "Largest new / old probability of an action taken. The clip does not bound it.",
        "below 5",
        "with ppo, a target_kl; fewer epochs; a smaller step size.",
    ),
    "policy/clip_fraction": Metric(
        "share",
        "Share of rows whose ratio is outside 1 ± 0.2, for every rule alike.",
        "0.05 to 0.3",
        "above 0.5 the later epochs do nothing: fewer epochs or a smaller step size.",
    ),
    "policy/log_ratio_good_p10": Metric(
        "nats",
        "Of the rows with a positive advantage: log(new / old) that a tenth stay below.",
        "above -0.2",
        "far below 0, good actions are made rarer: states drag each other along; a smaller step.",
    ),
    "policy/log_ratio_good_p50": Metric(
        "nats",
        "Of the rows with a positive advantage: the median of log(new / old).",
        "above 0",
        "at 0 or below, the step does not do what its advantages say: a smaller step.",
    ),
    "policy/log_ratio_good_p90": Metric(
        "nats",
        "Of the rows with a positive advantage: log(new / old) that nine tenths stay below.",
        "below 0.5",
        "above, single actions are grasped at: a smaller step or fewer epochs.",
    ),
    "policy/log_ratio_bad_p10": Metric(
        "nats",
        "Of the rows with a negative advantage: log(new / old) that a tenth stay below.",
        "above -1",
        "far below, actions are given up after one look: a smaller step or fewer epochs.",
    ),
    "policy/log_ratio_bad_p50": Metric(
        "nats",
        "Of the rows with a negative advantage: the median of log(new / old).",
        "below 0",
        "at 0 or above, the step does not do what its advantages say: a smaller step.",
    ),
    "policy/log_ratio_bad_p90": Metric(
        "nats",
        "Of the rows with a negative advantage: log(new / old) that nine tenths stay below.",
        "below 0.2",
        "far above 0, bad actions are made commoner: states drag each other along; a smaller step.",
    ),
    "policy/unprotected_fraction": Metric(
        "share",
        "Rows whose ratio left 0.8 to 1.2 in the direction that hurts: less of a good action, or "
        "more of a bad one. There the clip keeps the full gradient.",
        "below 0.1, and below policy/clip_fraction",
        "above: states drag each other along; smaller steps, fewer epochs or a wider network.",
    ),
    "policy/ess_fraction": Metric(
        "share",
        "Effective sample size of the ratios, over the batch: 1 / (1 + chi-squared).",
        "above 0.8",
        "below, the surrogate rests on few rows: a smaller step.",
    ),
    "policy/entropy_old": Metric(
        "nats",
        "Mean entropy before the update (differential for Gaussians, so it may be negative).",
        "falling slowly",
        _COLLAPSE,
    ),
    "policy/entropy": Metric(
        "nats",
        "Mean entropy after the update.",
        "falling slowly",
        _COLLAPSE,
    ),
    "policy/staleness": Metric(
        "nats",
        "Largest difference between a log-probability stored by the rollout and the same one "
        "recomputed at the update.",
        "below 1e-3: rounding only",
        "above, the data is not this policy's: report it.",
    ),
    "critic/loss": Metric(
        "scaled reward²",
        "Half the mean squared error of V, in units of normalised reward; not logged where the "
        "critic is joint.",
        "falling, then steady",
        "see critic/explained_variance.",
    ),
    "critic/gradient_norm": Metric(
        "norm", "Mean norm of the critic's gradients, before the bound on it.", "any", _NO_REMEDY
    ),
    "critic/explained_variance": Metric(
        "share",
        "1 - Var(target - V) / Var(target) with V before the update; 1 is perfect, 0 no better "
        "than a constant, below 0 worse.",
        "above 0.5 after the first tenth of a run; it means nothing where all returns are equal",
        "more critic epochs, a higher critic learning rate, a wider critic, return_norm on.",
    ),
    "normalize/return_scale": Metric(
        "reward",
        "What rewards are divided by: the running std of the discounted return.",
        "settling",
        "where it keeps growing by orders of magnitude, rewards are not stationary.",
    ),
    "normalize/kl": Metric(
        "nats",
        "Mean KL, over some rows, that the new statistics of observations cause in the new policy.",
        "well below policy/kl_mean, after the first iterations",
        "where it is not, observations drift: more steps per batch, or obs_norm off.",
    ),
    "update/loss": Metric(
        "scaled reward", "Mean loss over the descent's minibatches.", "any", _NO_REMEDY
    ),
    "update/gradient_norm": Metric(
        "norm",
        "Norm of the objective's gradient; for descending rules the mean over minibatches, before "
        "the bound on it.",
        "any, not 0",
        "0 means that advantages do not vary: is the reward constant?",
    ),
    "update/epochs": Metric(
        "epochs",
        "Passes over the batch that ran.",
        "num_epochs, or less with a target_kl",
        "1 every time: a smaller step size, or a larger target_kl.",
    ),
    "update/learning_rate": Metric("step size", "Adam's step size.", "any", _NO_REMEDY),
    "update/kl_coef": Metric(
        "scaled reward / nat",
        "ppo-kl's penalty per nat, used in this update.",
        "between 0.01 and 100",
        "at 1e-4 or 1e4 it has no grip: another step size or target_kl.",
    ),
    "update/step_norm": Metric(
        "norm", "Euclidean norm of the step in parameters.", "any", _NO_REMEDY
    ),
    "update/natural_norm": Metric(
        "nats^½",
        "Norm of the step in the Fisher metric, √(xᵀFx).",
        "√(2 x radius) or less",
        _NO_REMEDY,
    ),
    "update/kl_quadratic": Metric(
        "nats",
        "KL of the step by the quadratic model, ½ xᵀFx.",
        "0.7 to 1.5 of policy/kl_mean",
        "outside, curvature comes from too few states: a larger fisher_fraction, a smaller radius.",
    ),
    "update/cg_residual": Metric(
        "relative",
        "|g - Fx| / |g| where conjugate gradient stopped.",
        "below 0.3",
        "above: more cg_iters, or more damping.",
    ),
    "update/cg_iterations": Metric(
        "steps", "Conjugate-gradient steps taken.", "cg_iters or fewer", _NO_REMEDY
    ),
    "update/radius": Metric("nats", "The radius of this update.", "any", _NO_REMEDY),
    "update/accepted": Metric(
        "0 or 1",
        "Whether trpo's line search took a step.",
        "1 on nearly every update",
        "see update/outcome.",
    ),
    "update/outcome": Metric(
        "code",
        "How trpo's step ended: 0 taken, 1 refused for no gain, 2 for too much KL, 3 not finite, "
        "4 no gradient.",
        "0",
        "1: more damping or more data; 2: more backtracks or a larger fisher_fraction; 3: look at "
        "rewards and observations; 4: is the reward constant?",
    ),
    "update/backtracks": Metric(
        "tries",
        "Times trpo shortened its step.",
        "0 or 1",
        "often more: a larger fisher_fraction or a smaller radius.",
    ),
    "update/kl_full_step": Metric(
        "nats",
        "True mean KL of trpo's full step, taken or not; it aims at 0.9 of the radius.",
        "near 0.9 of the radius",
        "far off: a larger fisher_fraction.",
    ),
    "update/finite": Metric(
        "0 or 1",
        "Whether everything the update produced was finite; if not, nothing of it was kept.",
        "1",
        _NOT_FINITE,
    ),
    "update/refusals": Metric(
        "updates", "Updates in a row that were not finite.", "0", _NOT_FINITE
    ),
    "env/outside": Metric(
        "rows",
        "Observations of the rollout that lay outside the bounds of their space (host runs).",
        "0",
        "mend the environment's observation_space or its observations; --strict-env stops at the "
        "first.",
    ),
    "env/restarts": Metric(
        "environments",
        "Environments that raised and were made anew so far, under --on-env-error restart:N.",
        "0",
        "mend the environment; nothing of the episodes that they were in is learned from.",
    ),
    "env/lost": Metric(
        "fragments",
        "Fragments that died with their actor so far, and were collected again under the same "
        "policy (--env-workers).",
        "0",
        "look why its machine or process died; --restarts says how many may.",
    ),
    "env/stale": Metric(
        "fragments",
        "Fragments of another policy than was asked for, so far: refused, and asked for again.",
        "0",
        "nothing of such a fragment is learned from; one is a bug worth reporting.",
    ),
    "time/steps_per_second": Metric(
        "steps / s", "Steps over the iteration's time, compilation left out.", "any", _NO_REMEDY
    ),
    "time/iteration": Metric("s", "The iteration's time, compilation left out.", "any", _NO_REMEDY),
    "time/env": Metric(
        "s",
        "Time inside the environments' step (host runs).",
        "the larger part",
        "where it rules everything: --vectorization cores, or async where it waits.",
    ),
    "time/policy": Metric("s", "Time choosing actions (host runs).", "any", _NO_REMEDY),
    "time/update": Metric("s", "Time in update, critic and diagnostics.", "any", _NO_REMEDY),
    "time/compile": Metric("s", "Time building programs.", "0 after the first", _NO_REMEDY),
}


def explain(name: str, others: Iterable[str] = ()) -> str:
    """What a metric is, in a few lines of text; `others` are names that an error may suggest.

    Raises:
        ConfigError: for an unknown name, with the nearest known ones.
    """
    if name.startswith("episode/") and name not in METRICS:
        return (
            f"{name}\n  Mean of info[{name.removeprefix('episode/')!r}] at the last step of the "
            "episodes that ended, where --info-keys names it."
        )
    if name not in METRICS:
        known = [*METRICS, *others]
        matches = [key for key in known if name.lower() in key]
        matches = matches or difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"; did you mean {', '.join(matches[:4])}?" if matches else ""
        raise ConfigError(f"no metric or warning {name}{hint} (`surefoot explain` lists them all)")
    metric = METRICS[name]
    return (
        f"{name}  [{metric.unit}]\n  {metric.what}\n  healthy: {metric.healthy}\n"
        f"  if not: {metric.remedy}"
    )
