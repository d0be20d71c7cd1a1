"""Rows of metrics to TensorBoard and Weights & Biases, both plotted against environment steps."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from surefoot.errors import ConfigError
from surefoot.storage.run_directory import RunDirectory


class Logger(NamedTuple):
    """Where rows go besides `metrics.jsonl`."""

    row: Callable[[Mapping[str, Any]], None]
    close: Callable[[], None]


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in row.items() if isinstance(value, int | float)}


def tensorboard_logger(directory: Path) -> Logger:
    """Event files under the run directory.

    Raises:
        ConfigError: where tensorboardX is not installed.
    """
    try:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
    except ImportError as fault:
        raise ConfigError(
            "--tensorboard needs tensorboardX: pip install 'surefoot[tensorboard]'", name="EXTRA"
        ) from fault
    writer = SummaryWriter(str(directory / "tensorboard"))

    def log(row: Mapping[str, Any]) -> None:
        for key, value in _numbers(row).items():
            writer.add_scalar(key, value, int(row["env_steps"]))

    return Logger(log, writer.close)


def wandb_logger(directory: RunDirectory, project: str) -> Logger:
    """A Weights & Biases run that keeps its id when the run is resumed.

    Raises:
        ConfigError: where wandb is not installed, or will not start (nobody is logged in).
    """
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError as fault:
        raise ConfigError(
            "--wandb needs wandb: pip install 'surefoot[wandb]'", name="EXTRA"
        ) from fault
    kept = directory.read("wandb-id.txt")
    try:
        run = wandb.init(
            project=project,
            id=kept,
            resume="allow",
            dir=str(directory.path),
            name=directory.path.name,
            config=directory.config,
        )
    except wandb.Error as fault:
        raise ConfigError(
            f"--wandb {project}: {fault}; `wandb login` first, or set WANDB_MODE=offline",
            name="WANDB",
        ) from fault
    if kept is None:
        directory.write("wandb-id.txt", run.id)
    run.define_metric("env_steps")
    run.define_metric("*", step_metric="env_steps")
    return Logger(lambda row: run.log(_numbers(row)), run.finish)
