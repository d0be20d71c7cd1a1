"""Train 16 seeds of PPO in one program, and see how much luck there is in one.

Needs: pip install 'surefoot[gymnax]'. Run: python examples/many_seeds.py
"""

import numpy as np

import surefoot as sf

runs = sf.train_many("gymnax:CartPole-v1", sf.PPO(), seeds=range(16), steps=40_000)
for iteration in range(0, len(runs[0].rows), 4):
    returns = [run.rows[iteration].get("episode/return_mean", np.nan) for run in runs]
    low, middle, high = np.nanquantile(returns, [0.0, 0.5, 1.0])
    print(f"iteration {iteration + 1:3d}: median {middle:6.1f}, from {low:6.1f} to {high:6.1f}")
