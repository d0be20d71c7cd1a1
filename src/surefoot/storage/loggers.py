"""Log metrics to TensorBoard and Weights & Biases, over environment steps."""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from surefoot.errors import ConfigError
from surefoot.storage.run_directory import RunDirectory


class Logger(NamedTuple):
    """A destination of rows besides `metrics.jsonl`."""

    row: Callable[[Mapping[str, Any]], None]
    close: Callable[[], None]


def tensorboard_logger(directory: Path, env_steps: int) -> Logger:
    """A logger of event files under the run directory; it needs tensorboardX.

    What earlier files have of steps after `env_steps`, where the run continues, is purged.
    """
    package = _package("tensorboardX", "tensorboard")
    writer = package.SummaryWriter(str(directory / "tensorboard"), purge_step=env_steps + 1)

    def log(row: Mapping[str, Any]) -> None:
        for key, value in _numbers(row).items():
            writer.add_scalar(key, value, int(row["env_steps"]))
        writer.flush()  # a kill must leave no gap before the checkpoint that a resume starts from

    return Logger(log, writer.close)


def wandb_logger(directory: RunDirectory, project: str) -> Logger:
    """A logger of a Weights & Biases run, which keeps its id when the run is resumed.

    Raises a ConfigError where wandb is not installed, or does not start (without a login).
    """
    wandb = _package("wandb", "wandb")
    kept = directory.read("wandb-id.txt")
    stored = None if kept is None else kept.decode(errors="replace")
    try:
        run = wandb.init(
            project=project,
            id=stored,
            resume="allow",
            dir=str(directory.path),
            name=directory.path.name,
            config=directory.config,
        )
    except wandb.Error as error:
        raise ConfigError(
            f"--wandb {project}: {error}; run `wandb login`, or set WANDB_MODE=offline",
            name="WANDB",
        ) from error
    if stored is None:
        directory.write("wandb-id.txt", run.id)

    def log(row: Mapping[str, Any]) -> None:
        # It keeps what it has: after a resume from an older checkpoint, rows of steps that it was
        # given before are repetitions.
        if row["env_steps"] >= run.step:
            run.log(_numbers(row), step=int(row["env_steps"]))

    return Logger(log, run.finish)


def _package(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"--{extra} needs {name}: pip install 'surefoot[{extra}]'", name="EXTRA"
        ) from error


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in row.items() if isinstance(value, int | float)}
