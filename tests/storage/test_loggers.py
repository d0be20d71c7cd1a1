"""What loggers keep of a run that was killed and goes on from an older checkpoint."""

import shutil
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from surefoot.storage.loggers import wandb_logger
from surefoot.storage.run_directory import RunDirectory
from tests.support.cases import case
from tests.support.shell import last_good

pytestmark = pytest.mark.usefixtures("empty_directory")

SOUND = "broken_envs:Sound"


def events():
    """Steps of each figure, as TensorBoard shows them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        found = accumulators.EventAccumulator("run/tensorboard", {"scalars": 0})
        found.Reload()
        return {tag: [each.step for each in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


@case(116)
def test_tensorboard_shows_every_step_once_after_a_kill_and_a_resume(train, command):
    pytest.importorskip("tensorboardX")
    often = ["--checkpoint-every", "64", "--no-reset-at-checkpoints", "--tensorboard"]
    assert train(SOUND, *often).code == 0
    for checkpoint in sorted(Path("run/checkpoints").iterdir())[-2:]:
        shutil.rmtree(checkpoint)  # as of a run that was killed after eight rows
    time.sleep(1.1)  # event files are named by the second
    assert command("resume", "run", "--env", SOUND, "--tensorboard", "--json").code == 0
    rows = last_good(env=SOUND).rows
    assert [row["env_steps"] for row in rows] == list(range(32, 257, 32))
    assert events()["policy/kl_mean"] == [row["env_steps"] for row in rows]
    assert all(len(set(steps)) == len(steps) for steps in events().values())


class Wandb:
    """The part of the package that is used: a run keeps its history, and knows its next step."""

    Error = type("Error", (Exception,), {})

    def __init__(self):
        self.history = []

    def init(self, **given):
        last = self.history[-1][0] + 1 if given["id"] else 0
        ignore = lambda *_, **__: None  # noqa: E731
        return SimpleNamespace(
            id="abc", step=last, log=self.log, finish=ignore, define_metric=ignore
        )

    def log(self, figures, *, step=None):
        step = figures["env_steps"] if step is None else step
        self.history.append((step, figures["gain"]))


@case(116)
def test_weights_and_biases_get_every_step_once_after_a_kill_and_a_resume(monkeypatch):
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    directory = RunDirectory.create(Path("run"), {})
    for first, last in ((1, 5), (3, 9)):
        logger = wandb_logger(directory, "project")
        for iteration in range(first, last):
            logger.row({"iteration": iteration, "env_steps": 32 * iteration, "gain": first})
        logger.close()
    assert wandb.history == [(32 * i, 1 if i < 5 else 3) for i in range(1, 9)]
