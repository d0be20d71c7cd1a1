"""Train on an environment of your own, with an action mask.

Run: python examples/own_environment.py
"""

import gymnasium
import numpy as np

import surefoot as sf


class Shop(gymnasium.Env):
    """Buy or sell one item a day at a price that swings; what you do not own you cannot sell."""

    observation_space = gymnasium.spaces.Dict(
        price=gymnasium.spaces.Box(0.0, 10.0, (1,)), stock=gymnasium.spaces.Discrete(6)
    )
    action_space = gymnasium.spaces.Discrete(3)  # wait, buy, sell

    def _see(self):
        price = 5.0 + 4.0 * np.sin(self.day / 3.0)
        mask = np.array([True, self.stock < 5, self.stock > 0])
        return {"price": np.array([price], np.float32), "stock": self.stock}, {"action_mask": mask}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.day, self.stock = int(self.np_random.integers(20)), 0
        self.last = self.day + 60
        return self._see()

    def step(self, action):
        obs, _ = self._see()
        change = (0, 1, -1)[int(action)]
        self.stock, self.day = self.stock + change, self.day + 1
        obs_after, info = self._see()
        return obs_after, float(-change * obs["price"][0]), False, self.day >= self.last, info


if __name__ == "__main__":
    run = sf.train(Shop, steps=60_000, seed=0)
    print("a day's trading earns", run.evaluate(episodes=20)["return_mean"])
