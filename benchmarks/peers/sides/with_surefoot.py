"""surefoot, through `train` itself: metrics, lens and all that a user's run does."""

import os
import threading
import traceback
from typing import Any

from answer import serve


def start(duel: dict[str, Any]):
    """The run goes on in a thread of its own, and waits between two rounds."""
    import surefoot as sf

    batch = duel["num_envs"] * duel["num_steps"]
    every = duel["rounds"]
    train = {"num_envs": duel["num_envs"], "num_steps": duel["num_steps"]}
    # The peers' own loops neither scale observations nor rewards.
    train |= {"obs_norm": False, "return_norm": False, "steps": 10**9, "checkpoint_every": 10**8}
    rule: Any = sf.PPO(num_epochs=duel["num_epochs"], num_minibatches=batch // duel["minibatch"])
    critic = sf.Critic(joint=True)
    if duel["rule"] == "trpo":
        rule = sf.TRPO(cg_iters=15, cg_tolerance=1e-10, fisher_fraction=1.0)
        parts = batch // duel["minibatch"]
        critic = sf.Critic(num_epochs=duel["num_epochs"], num_minibatches=parts)
    if duel["own_defaults"]:
        rule, critic = sf.TRPO(), None
    go, done = threading.Semaphore(0), threading.Semaphore(0)
    warm = max(10, 2 * every // 10 * 10) if duel["ours"].startswith("gymnax:") else 3

    def pause(row: dict[str, Any]) -> None:
        played = row["iteration"] - warm
        if played >= 0 and played % every == 0:
            done.release()
            go.acquire()

    def work() -> None:
        try:
            sf.train(duel["ours"], rule, train=sf.Train(**train), critic=critic, callback=pause)
        finally:
            # Whoever waits for a round must not wait for ever.
            traceback.print_exc()
            os._exit(1)

    threading.Thread(target=work, daemon=True).start()
    done.acquire()

    def play() -> int:
        go.release()
        done.acquire()
        return every * batch

    return play


serve(start)
