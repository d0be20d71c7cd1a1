"""The environment error that ended a run, kept in its directory to be replayed."""

from typing import NamedTuple

import numpy as np
import safetensors.numpy

from surefoot.errors import CheckpointError
from surefoot.storage.files import dump
from surefoot.storage.run_directory import ENV_ERROR_FILES, RunDirectory

MAX_ACTIONS_BYTES = 2**30


class EnvErrorRecord(NamedTuple):
    """An error of one environment, and what reproduces it.

    `actions` are those sent to the environment since `seed`, by name of the part of its action
    space, [step, ...]; `cut` is the step after which its first episode was cut, or 0.
    """

    message: str
    name: str
    index: int
    seed: int
    actions: dict[str, np.ndarray]
    cut: int = 0


def write_env_error(directory: RunDirectory, record: EnvErrorRecord) -> None:
    """Keep the error that ended a run."""
    about = record._asdict()
    # A slice of a larger array would be written as the memory that it lies in.
    whole = {name: np.array(leaf, order="C") for name, leaf in about.pop("actions").items()}
    # The actions first: a record exists once its JSON file does.
    directory.write(ENV_ERROR_FILES[1], safetensors.numpy.save(whole))
    directory.write(ENV_ERROR_FILES[0], dump(about))


def read_env_error(directory: RunDirectory) -> EnvErrorRecord:
    """The error that ended a run; CheckpointError if there is none, or its files are damaged."""
    file = directory.path / ENV_ERROR_FILES[0]
    about = directory.read_json(ENV_ERROR_FILES[0]) if directory.has("config.json") else None
    if about is None:
        env = directory.config.get("env")  # raises where there is no run at all
        raise CheckpointError(
            f"{directory.path}, a run on {env}, has no environment error to replay: none ended it, "
            "or its environments are JAX-native or came as a vector environment",
            name="NO-ENV-ERROR",
        )
    data = directory.read(ENV_ERROR_FILES[1], MAX_ACTIONS_BYTES) or b""
    try:
        actions = safetensors.numpy.load(data)
        same_length = len({len(leaf) for leaf in actions.values()}) <= 1
        index, seed = int(about["index"]), int(about["seed"])
        cut = int(about.get("cut", 0))
        in_range = index >= 0 and 0 <= seed < 2**32 and cut >= 0
        if not (same_length and in_range and all(leaf.size for leaf in actions.values())):
            raise ValueError("not an environment error that surefoot has written")
        return EnvErrorRecord(str(about["message"]), str(about["name"]), index, seed, actions, cut)
    except Exception as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
