"""Every random number of a run comes from its seed, the iteration and a purpose."""

import jax
import numpy as np
import pytest

from surefoot.training.random_keys import Purpose, env_seeds, run_key

pytestmark = pytest.mark.core


def test_every_seed_iteration_and_purpose_has_a_key_of_its_own():
    names = [(s, i, p) for s in range(3) for i in range(5) for p in Purpose]
    keys = {name: tuple(jax.random.key_data(run_key(*name)).tolist()) for name in names}
    assert len(set(keys.values())) == len(names)
    assert keys == {n: tuple(jax.random.key_data(run_key(*n)).tolist()) for n in names}


def test_every_environment_has_seeds_of_its_own_at_every_reset():
    purposes = (Purpose.RESET, Purpose.EVALUATION)
    lists = [env_seeds(s, i, 8, p) for s in range(3) for i in (0, 4, 8) for p in purposes]
    seeds = np.ravel(lists)
    assert len(np.unique(seeds)) == len(seeds)
    assert seeds.min() >= 0
    assert seeds.max() < 2**31, "what Gymnasium takes"
    assert env_seeds(0, 4, 8, Purpose.RESET) == lists[2]


def test_more_environments_do_not_change_the_seeds_of_the_first():
    assert env_seeds(7, 0, 16, Purpose.RESET)[:8] == env_seeds(7, 0, 8, Purpose.RESET)
