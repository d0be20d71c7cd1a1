"""One exact update and its report; MDPs from every source; MDPs that are sampled."""

import json

import gymnasium
import jax
import numpy as np
import pytest

from surefoot.cli.parser import main
from surefoot.config.settings import PPO
from surefoot.envs.env_id import imports_nothing
from surefoot.envs.tabular import tabular_env
from surefoot.errors import ConfigError
from surefoot.exact import (
    BOUNDS,
    StepSizes,
    UpdatePath,
    corridor,
    find_mdp,
    find_rule,
    learning_curve,
    optimal_policy,
    random_mdp,
    report_update,
    ridge,
    solve,
    starting_point,
    time_limited_return,
    update_path,
    updated,
)
from surefoot.exact.practice import training_update
from surefoot.exact.registry import optimal_episode_return

WANTED = {
    "ppo": {
        "eta_old": 0.979,
        "eta_new": -4.052,
        "surrogate_new": 4.471,
        "promised_gain": 3.492,
        "realised_gain": -5.031,
        "kl_mean": 0.134,
        "ratio_max": 4.8,
    },
    "trpo": {"surrogate_new": 1.658, "eta_new": 1.558, "kl_mean": 0.01},
}


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def reported(capsys, *arguments):
    assert main(["exact", *arguments, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.core
@pytest.mark.parametrize("rule", list(WANTED))
def test_the_corridor_by_command_gives_the_figures_of_the_theory(capsys, rule):
    (found,) = reported(capsys, "corridor", rule)
    for name, value in WANTED[rule].items():
        assert found[name] == pytest.approx(value, abs=5e-4), name
    assert found["edge_of_trust_kl"] == pytest.approx(0.0368, abs=5e-5)
    assert found["break_even_kl"] == pytest.approx(0.0672, abs=5e-5)
    assert found["best_eta"] == pytest.approx(1.767, abs=5e-4)
    assert found["best_kl"] == pytest.approx(0.0283, abs=1e-4)
    assert found["ratio"] == found["realised_gain"] / found["promised_gain"]
    assert set(found["bounds"]) == set(BOUNDS)
    assert all(low <= found["eta_new"] for low in found["bounds"].values())


def test_every_flag_of_a_family_reaches_it(capsys):
    (found,) = reported(
        capsys, "corridor", "--m", "3", "--B", "7", "--gamma", "0.8", "--p-old", "0.3"
    )
    old = solve(corridor(m=3, B=7.0, gamma=0.8), np.tile([0.7, 0.3], (3, 1)))
    assert found["eta_old"] == pytest.approx(old.eta, rel=1e-12)
    (stays,) = reported(capsys, "corridor", "--stay")
    assert stays["eta_old"] != reported(capsys, "corridor")[0]["eta_old"]
    (small,) = reported(capsys, "ridge", "--max-kl", "1e-4")
    assert small["kl_mean"] == pytest.approx(1e-4)
    (free,) = reported(capsys, "corridor", "pi", "--tabular")
    assert free["kl_mean"] is None
    assert free["realised_gain"] > 0
    (wide,) = reported(capsys, "corridor", "ppo", "--clip-eps", "0.1")
    assert wide["ratio_max"] == pytest.approx(1 + 0.1 * 0.95 / 0.05)
    (vanilla,) = reported(capsys, "corridor", "vpg", "--learning-rate", "1e-6")
    assert vanilla["ratio"] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.thorough
def test_the_training_rule_on_the_exact_batch_lands_where_the_closed_form_does(capsys):
    (exact,) = reported(capsys, "ridge", "trpo", "--max-kl", "1e-3")
    (trained,) = reported(capsys, "ridge", "trpo", "--max-kl", "1e-3", "--batch", "exact")
    assert 0.8e-3 < trained["kl_mean"] <= 1e-3
    assert 0.9 < trained["promised_gain"] / exact["promised_gain"] < 1.0
    seeds = [("--batch", "500", "--seed", seed) for seed in ("1", "1", "2")]
    gains = [reported(capsys, "random:3", "trpo", *flags)[0]["realised_gain"] for flags in seeds]
    assert gains[0] == gains[1] != gains[2]
    (everything,) = reported(capsys, "random:3", "trpo", "--batch", "exact")
    (usual,) = reported(capsys, "corridor", "ppo", "--batch", "exact")
    assert usual["ratio_max"] < 1.1, "ten small steps: no exact rule's setting may reach the rule"
    (faster,) = reported(capsys, "corridor", "ppo", "--batch", "exact", "--learning-rate", "0.01")
    assert faster["ratio_max"] > 1.05 * usual["ratio_max"]
    assert gains == pytest.approx([everything["realised_gain"]] * 3, rel=0.3)
    assert everything["realised_gain"] not in gains


def test_learning_curves_reach_the_optimum_and_say_where_they_are(capsys):
    rules = ("npg", "trpo", "ppo", "pi")
    flags = ("--iterations", "40", "--gamma", "0.999")
    lines = reported(capsys, "FrozenLake-v1", *rules, *flags)
    best = lines[-1]
    assert best["time_limited_return"] == pytest.approx(0.740, abs=5e-4)
    assert best["time_limited_optimum"] == pytest.approx(0.7442, abs=5e-5)
    for rule, line in zip(rules, lines, strict=False):
        assert line["rule"] == rule
        assert len(line["etas"]) == 41
        assert line["etas"][-1] == pytest.approx(best["eta"], abs=1e-8)
    assert main(["exact", "FrozenLake-v1", *rules, *flags]) == 0
    assert "0.7442" in capsys.readouterr().out


def test_ppo_kl_adapts_its_weight_over_a_curve():
    start, sizes = starting_point(find_mdp("FrozenLake-v1", {})), StepSizes(kl_coef=100.0)
    rule = find_rule("ppo-kl")
    first = start.old.kl(updated(start, "ppo-kl", sizes).policy)
    kls = learning_curve(start, "ppo-kl", rule, sizes, iterations=30).kls
    assert kls[0] == first < 0.001
    assert 0.01 / 1.6 < np.median(kls[15:]) < 0.02


def test_a_picture_is_drawn_where_it_is_asked_for(empty_directory, capsys):
    assert main(["exact", "corridor", "ppo", "--plot"]) == 0
    assert "exact-corridor-ppo.png" in capsys.readouterr().out
    assert (empty_directory / "exact-corridor-ppo.png").read_bytes()[:4] == b"\x89PNG"
    assert main(["exact", "ridge", "--plot", "a.png", "--iterations", "3"]) == 0
    assert (empty_directory / "a.png").stat().st_size > 10_000
    assert main(["exact", "ridge", "--plot", "nowhere/a.png"]) == 7


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["coridor"], 2, "did you mean corridor?"),
        (["CartPole-v1"], 2, "has no transition table"),
        (["corridor", "trp0"], 2, "exact rules are vpg, npg, trpo"),
        (["corridor", "pi"], 2, "--tabular"),
        (["corridor", "--gamma", "1"], 2, "gamma is 1.0; give a discount in [0, 1)"),
        (["corridor", "--p-old", "1.5"], 2, "a probability in (0, 1)"),
        (["corridor", "--max-kl", "-1"], 2, "max_kl must be above 0"),
        (
            ["corridor", "--num-states", "3"],
            2,
            "takes no num_states; it takes m, B, gamma",
        ),
        (["corridor", "--B", "-1"], 2, "give a cost of at least 0"),
        (["random:x"], 2, "the seed must be a number"),
        (["random:"], 2, "the seed must be a number"),
        (["random:1", "--concentration", "-1"], 2, "concentration is -1"),
        (["random:1", "--reward-density", "2"], 2, "reward_density is 2"),
        (["random:1", "--p-old", "0.3"], 2, "has 3"),
        (["corridor", "--max-kl", "inf"], 2, "finite"),
        (["ended.npz"], 2, "every state is terminal"),
        (["corridor", "ppo", "trpo"], 2, "--iterations"),
        (["corridor", "ppo", "--max-kl", "0.1"], 2, "--max-kl applies to npg, trpo, not ppo"),
        (["corridor", "trpo", "--learning-rate", "1"], 2, "applies to vpg, not trpo"),
        (["corridor", "--seed", "1"], 2, "--seed needs sampled rows: add --batch N"),
        (["corridor", "--batch", "9", "--seed", "-1"], 2, "at least 0"),
        (["bad.npz", "--m", "3"], 2, "takes no m"),
        (["ridge", "--policy", "half.npy", "--p-old", "0.2"], 2, "give one of them"),
        (["corridor", "cpi", "--batch", "exact"], 2, "--batch needs a training rule"),
        (["corridor", "--batch", "many"], 2, "`exact` or a number"),
        (["missing.npz"], 2, "cannot be read"),
        (["bad.npz"], 2, "transitions[0, 1] sums to 0.9"),
        (["half.npz"], 2, "has no rewards"),
        (["empty.npz"], 2, "was not written by np.savez"),
        (["cut.npz"], 2, "was not written by np.savez"),
        (["one.npz"], 2, "was not written by np.savez"),
        (["random:²"], 2, "the seed must be a number"),
        (["corridor", "--policy", "wrong.npy"], 2, "the policy has shape (4, 3); give (4, 2)"),
    ],
)
def test_wrong_input_gets_one_line(capsys, empty_directory, arguments, code, text):
    P = np.tile(np.eye(2)[:, None], (1, 2, 1))
    P[0, 1] = 0.9, 0.0
    np.savez(empty_directory / "bad.npz", transitions=P, rewards=np.zeros((2, 2)), gamma=0.9)
    np.savez(empty_directory / "half.npz", transitions=P)
    (empty_directory / "empty.npz").touch()
    (empty_directory / "cut.npz").write_bytes((empty_directory / "bad.npz").read_bytes()[:200])
    np.save(empty_directory / "one.npy", P)
    (empty_directory / "one.npy").rename(empty_directory / "one.npz")
    ends = np.ones(2, bool)
    np.savez(empty_directory / "ended.npz", transitions=P, rewards=np.zeros((2, 2)), terminal=ends)
    np.save(empty_directory / "wrong.npy", np.full((4, 3), 1 / 3))
    np.save(empty_directory / "half.npy", np.full((2, 2), 0.5))
    assert main(["exact", *arguments]) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert text in lines[0]


def test_a_table_of_ones_own_and_a_policy_of_ones_own(capsys, empty_directory):
    mdp = random_mdp(4, num_states=3, num_actions=2)
    np.savez(
        empty_directory / "mine.npz",
        transitions=mdp.transitions,
        rewards=mdp.rewards,
        gamma=0.7,
        start=mdp.start,
    )
    policy = np.array([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]])
    np.save(empty_directory / "pi.npy", policy)
    (found,) = reported(capsys, "mine.npz", "npg", "--policy", "pi.npy")
    assert found["mdp"] == "mine"
    assert found["eta_old"] == solve(mdp._replace(gamma=0.7), policy).eta


def walked(env, policy, *, episodes, rng):
    """Mean undiscounted return of a Gymnasium environment, played."""
    total = 0.0
    for episode in range(episodes):
        obs, _ = env.reset(seed=int(rng.integers(2**31)) if episode == 0 else None)
        done = False
        while not done:
            obs, reward, terminated, truncated, _ = env.step(rng.choice(4, p=policy[obs]))
            total, done = total + reward, terminated or truncated
    return total / episodes


def test_the_table_of_an_environment_says_what_playing_it_gives():
    mdp, rng = find_mdp("FrozenLake-v1", {"is_slippery": True}), np.random.default_rng(0)
    policy = 0.7 * optimal_policy(mdp) + 0.3 / 4
    expected = time_limited_return(mdp, policy, max_steps=100)
    env = gymnasium.make("FrozenLake-v1", disable_env_checker=True)
    assert walked(env, policy, episodes=600, rng=rng) == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize(("name", "ends"), [("FrozenLake-v1", 5), ("Taxi-v4", 4)])
def test_states_that_only_ends_reach_are_terminal(name, ends):
    mdp = find_mdp(name, {})
    assert mdp.terminal.sum() == ends
    assert mdp.num_states == gymnasium.make(name, disable_env_checker=True).observation_space.n


def test_a_sampled_table_follows_its_law_and_its_clock():
    mdp = find_mdp("FrozenLake-v1", {})
    env = tabular_env(mdp, "tabular:FrozenLake-v1")
    keys = jax.random.split(jax.random.key(0), 20_000)
    state = (jax.numpy.int32(14), jax.numpy.int32(3))
    steps = jax.jit(jax.vmap(lambda key: env.step(env.draw(key), state, 2)))(keys)
    shares = np.bincount(np.asarray(steps.final_obs), minlength=16) / 20_000
    np.testing.assert_allclose(shares, mdp.transitions[14, 2], atol=0.015)
    np.testing.assert_array_equal(steps.terminated, mdp.terminal[np.asarray(steps.final_obs)])
    np.testing.assert_allclose(steps.reward, mdp.rewards[14, 2], rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(steps.obs)[np.asarray(steps.terminated)], 0)
    late = env.step(env.draw(keys[0]), (jax.numpy.int32(0), jax.numpy.int32(99)), 0)
    assert bool(late.truncated)
    assert not bool(late.terminated)
    assert int(late.state[1]) == 0


def test_the_optimal_return_is_known_for_tables_only():
    assert optimal_episode_return("tabular:FrozenLake-v1", {}) == pytest.approx(0.7442, abs=5e-5)
    assert optimal_episode_return("tabular:corridor", {}) is None
    assert optimal_episode_return("CartPole-v1", {}) is None


def test_a_name_says_whether_it_imports_something():
    for name in ("CartPole-v1", "gymnax:CartPole-v1", "tabular:Taxi-v4", "tabular:random:3"):
        assert imports_nothing(name)
    for name in ("mine:Env-v0", "tabular:mine:Env-v0"):
        assert not imports_nothing(name)


def test_landmarks_are_where_they_say():
    path = update_path(starting_point(ridge()), find_rule("trpo"), StepSizes())
    half, broken, best = path.landmarks
    assert path.realised(half) == pytest.approx(0.5 * path.promised(half), rel=1e-9)
    assert path.realised(broken) == pytest.approx(0.0, abs=1e-9)
    for other in (0.98, 1.02):
        assert path.realised(best) > path.realised(other * best)


def test_an_edge_of_trust_is_found_however_far_the_update_goes_beyond_it(capsys):
    for rate in ("3", "300", "3000"):
        (found,) = reported(capsys, "corridor", "vpg", "--learning-rate", rate)
        assert found["edge_of_trust_kl"] == pytest.approx(0.0368, abs=5e-5)


def test_a_path_to_a_policy_that_rules_actions_out_is_a_mixture_and_ends_there():
    mdp = random_mdp(0)
    old, new = solve(mdp, np.full((6, 3), 1 / 3)), solve(mdp, optimal_policy(mdp))
    path = UpdatePath(old, new)
    assert path.end == 1.0
    np.testing.assert_allclose(path.at(0.25), 0.75 * old.policy + 0.25 * new.policy)
    assert path.landmarks.best == pytest.approx(1.0, abs=1e-6)


def test_an_update_that_promises_nothing_has_no_ratio_and_no_edge():
    start = starting_point(random_mdp(1, reward_density=0.0))
    found = report_update(update_path(start, find_rule("trpo"), StepSizes()))
    assert found.ratio is None
    assert found.edge_of_trust_kl is None
    assert found.realised_gain == 0


def test_rules_may_follow_flags(capsys):
    first = reported(capsys, "corridor", "ppo", "--gamma", "0.9")
    assert reported(capsys, "corridor", "--gamma", "0.9", "ppo") == first


def test_minibatches_that_do_not_divide_an_exact_batch_are_refused():
    start = starting_point(corridor())
    with pytest.raises(ConfigError, match="num_minibatches 32 does not divide the batch of 8"):
        training_update(PPO())(start, StepSizes())


def test_a_given_policy_must_fit():
    with pytest.raises(ConfigError, match=r"policy\[1\] sums to 0.9"):
        starting_point(ridge(), policy=np.array([[0.5, 0.5], [0.5, 0.4]]))
