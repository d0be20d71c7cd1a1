"""rejax's PPO: its training iterations alone, without the evaluations it would add."""

from typing import Any

from answer import serve


def start(duel: dict[str, Any]):
    """A round is one compiled loop over its training iterations."""
    import jax
    from rejax import PPO

    batch = duel["num_envs"] * duel["num_steps"]
    algorithm = PPO.create(
        env=duel["env"],
        agent_kwargs={"activation": "tanh", "hidden_layer_sizes": (64, 64)},
        num_envs=duel["num_envs"],
        num_steps=duel["num_steps"],
        num_epochs=duel["num_epochs"],
        num_minibatches=batch // duel["minibatch"],
        learning_rate=3e-4,
        gamma=0.99,
    )
    count = duel["peer_rounds"]
    loop = jax.jit(
        lambda state: jax.lax.fori_loop(0, count, lambda _, s: algorithm.train_iteration(s), state)
    )
    held = [jax.block_until_ready(loop(algorithm.init_state(jax.random.key(0))))]

    def play() -> int:
        held[0] = jax.block_until_ready(loop(held[0]))
        return count * batch

    return play


serve(start)
