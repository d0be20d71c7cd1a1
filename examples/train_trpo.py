"""Train TRPO on CartPole, look at what its updates did, and use the policy.

Run: python examples/train_trpo.py
"""

import surefoot as sf


def show(row):
    """Print one line an iteration; returning True would stop the run."""
    print(
        f"{row['env_steps']:7d} steps  return {row.get('episode/return_mean', float('nan')):6.1f}  "
        f"promised gain {row['surrogate/promised_gain']:6.2f}  KL {row['policy/kl_mean']:.4f}"
    )
    return row.get("episode/return_mean", 0.0) >= 495.0


run = sf.train("CartPole-v1", sf.TRPO(max_kl=0.01), steps=100_000, seed=0, callback=show)
print("evaluation:", run.evaluate(episodes=20)["return_mean"])
print("push the cart", ["left", "right"][int(run.policy([0.0, 0.0, 0.05, 0.0]))])
