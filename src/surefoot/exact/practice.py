"""The rules that train on real environments, applied to a table.

On an exact batch every (state, action) is a row of weight d(s) pi(a|s), so that the mean over rows
is the exact expectation: the result differs from the exact rule's only by the approximations of
the training rule. A sampled batch adds the noise of sampling. No other module of this package
shares code with `formulas` or `rules`.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from surefoot.errors import ConfigError
from surefoot.exact.families import Family, LinearSoftmax, StartingPoint
from surefoot.exact.solution import SolvedPolicy
from surefoot.exact.updates import ExactRule, StepSizes
from surefoot.formulas.conjugate_gradient import fisher_vector_product
from surefoot.formulas.distributions import Categorical, DiagGaussian
from surefoot.rules import UPDATE_RULES
from surefoot.types import Batch, Inputs


def policy_fn(family: Family) -> Callable[[Any, Any], Any]:
    """The family's policies as the rules read them: `inputs.obs` is the state's index."""
    if isinstance(family, LinearSoftmax):
        features = jnp.asarray(family.features)
        return lambda theta, inputs: Categorical(features[inputs.obs] @ theta)
    return lambda theta, inputs: Categorical(theta[inputs.obs])


def table_batch(old: SolvedPolicy, *, rows: int | None = None, seed: int = 0) -> Batch:
    """Every state and action weighted by d(s) pi(a|s), or `rows` drawn from that distribution.

    Terminal states are left out. Advantages are exact in both.
    """
    weights = (old.weights[:, None] * old.policy).reshape(-1)
    flat = np.arange(weights.size)
    if rows is not None and weights.sum() > 0:
        rng = np.random.default_rng(seed)
        flat = rng.choice(weights.size, size=rows, p=weights / weights.sum())
        weights = np.ones(rows)
    states, actions = np.divmod(flat, old.mdp.num_actions)
    # A row of an action ruled out weighs 0, but minus infinity less itself would make its ratio
    # NaN.
    log_probs = np.log(np.maximum(old.policy[states, actions], 1e-300))
    return Batch(
        inputs=Inputs(jnp.asarray(states), None),
        actions=jnp.asarray(actions),
        old_log_probs=jnp.asarray(log_probs),
        advantages=jnp.asarray(old.advantages[states, actions]),
        values=jnp.asarray(old.values[states]),
        value_targets=jnp.asarray(old.q_values[states, actions]),
        weights=jnp.asarray(weights),
        visits=jnp.asarray(old.mdp.horizon * weights / max(weights.sum(), 1e-300)),
        groups=jnp.arange(len(states)),
        return_scale=jnp.ones(()),
    )


def training_update(
    config: Any, *, rows: int | None = None, seed: int = 0, num_updates: int = 1
) -> ExactRule:
    """A training rule as an exact one, in float64; `StepSizes` are ignored.

    The rule's own state (Adam's moments, its count of updates) is kept from one call to the next.

    Args:
        config: the rule's settings (VPG, NPG, TRPO, PPOKL or PPO).
        rows: rows of a sampled batch; None takes the exact one.
        seed: of the samples and of the rule's own draws.
        num_updates: updates that schedules are spread over.
    """
    program: Any = None
    state: Any = None
    updates = 0

    def update(start: StartingPoint, sizes: StepSizes) -> np.ndarray:
        nonlocal program, state, updates
        # In float64 a difference from the exact rule is the training rule's own, not rounding.
        with jax.enable_x64(True):
            old, theta = start.old, jnp.asarray(start.theta)
            parts, count = getattr(config, "num_minibatches", 1), rows or old.policy.size
            if count % parts:
                raise ConfigError(
                    f"num_minibatches {parts} does not divide the batch of {count} rows; give 1"
                )
            if program is None:
                rule = UPDATE_RULES[config.name](
                    config, policy_fn(start.family), float(num_updates)
                )
                program, state = jax.jit(rule.update), rule.init(theta)
            # Another sample for each update, and the same ones in a repeated run.
            batch = table_batch(old, rows=rows, seed=seed + updates)
            key = jax.random.fold_in(jax.random.key(seed), updates)
            theta, state, _ = program(state, theta, batch, key)
            updates += 1
            return np.asarray(theta)

    return update


def update_costs(width: int = 64) -> dict[str, float]:
    """Floating-point operations of the parts of an update, in forward passes of the policy.

    A Gaussian policy 17-width-width-6 on 2048 states, counted by the compiler.
    """
    sizes, rows = (17, width, width, 6), 2048
    layers = [(jnp.ones((a, b)) / a, jnp.zeros(b)) for a, b in itertools.pairwise(sizes)]
    actor = layers, jnp.zeros(sizes[-1])
    critic = [*layers[:-1], (jnp.ones((sizes[-2], 1)) / sizes[-2], jnp.zeros(1))]
    inputs, actions = Inputs(jnp.ones((rows, sizes[0])), None), jnp.ones((rows, sizes[-1]))

    def network(layers, x):
        *hidden, (weight, bias) = layers
        for inner, shift in hidden:
            x = jnp.tanh(x @ inner + shift)
        return x @ weight + bias

    def policy(params, inputs):
        layers, log_std = params
        mean = network(layers, inputs.obs)
        return DiagGaussian(mean, jnp.broadcast_to(log_std, mean.shape))

    def forward(params):
        return policy(params, inputs).mean

    def product(params, vector):
        return fisher_vector_product(policy, params, inputs, jnp.ones(rows))(vector)

    def flops(function, *arguments):
        cost: Any = jax.jit(function).lower(*arguments).compile().cost_analysis()
        return float(cost["flops"])

    one = flops(forward, actor)
    gradient = jax.grad(lambda params: jnp.mean(policy(params, inputs).log_prob(actions)))
    critic_gradient = jax.grad(lambda params: jnp.mean((network(params, inputs.obs) - 1.0) ** 2))
    return {
        "gradient": flops(gradient, actor) / one,
        "linearise": 1.0,
        # The compiler counts the linearisation, itself a forward pass, with the product.
        "product": flops(product, actor, actor) / one - 1.0,
        "rescale": flops(lambda *both: jax.jvp(forward, both[:1], both[1:]), actor, actor) / one,
        "critic_gradient": flops(critic_gradient, critic) / one,
    }
