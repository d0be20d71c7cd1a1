"""Export a trained policy as one file of arrays, for machines with NumPy alone."""

import io
import json
from pathlib import Path
from typing import Any

import gymnasium.spaces as spaces
import jax
import numpy as np
from gymnasium.vector.utils import batch_space

from surefoot.errors import ConfigError
from surefoot.exporting.numpy_policy import FORMAT, NumpyPolicy
from surefoot.formulas.running_stats import standard_deviation
from surefoot.networks.actor_critic import LOG_STD_BOUNDS
from surefoot.networks.spaces import (
    has_range,
    image_range,
    is_image,
    leaf_spaces,
    mask_size,
    shape_of,
)
from surefoot.storage.files import replace_file
from surefoot.training.run import Run

COMPARED = 1000
"""Observations on which the exported policy must act as the run's policy does."""


def export(run: Run, path: str | Path) -> NumpyPolicy:
    """Write a run's policy to a file that `NumpyPolicy.load` reads with NumPy alone.

    It includes the normaliser, and the squash, scaling, clipping and dtypes of the actions.

    Args:
        run: as loaded.
        path: the file, usually `policy.npz`.

    Raises:
        ConfigError: for a network of the user's own, and where the exported policy does not act as
            the run's does on `COMPARED` observations, or a name that does not end in .npz;
            nothing is written then.
        StorageError: where the file cannot be written.
    """
    if Path(path).suffix != ".npz":
        text = f"{path}: a policy is exported as arrays of NumPy; give a name that ends in .npz"
        raise ConfigError(text, name="FORMAT")
    made = NumpyPolicy(*_describe(run))
    _compare(run, made)
    about = np.frombuffer(json.dumps(made.about).encode(), np.uint8)
    arrays: dict[str, Any] = {"about": about, **made.arrays}
    # In memory first: given a path, `savez` appends .npz, and a kill would leave half a file.
    file = io.BytesIO()
    np.savez(file, **arrays)
    replace_file(Path(path), file.getvalue())
    return made


def _describe(run: Run) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    policy, spec, settings = run.policy, run.learner.spec, run.settings
    net = policy.params["net"]
    if not (isinstance(net, dict) and set(net) == {"torso", "head"}):
        raise ConfigError(
            f"{settings.env}: a network of your own cannot be exported; its parameters are in the "
            "checkpoint's arrays.safetensors"
        )
    tanh = settings.network.distribution == "tanh-gaussian"
    arrays: dict[str, np.ndarray] = {}
    for i, stats in enumerate(policy.obs_stats):
        if stats is not None:
            arrays[f"mean{i}"] = np.asarray(stats.mean)
            arrays[f"std{i}"] = np.asarray(standard_deviation(stats))
    layers = [*net["torso"].layers, *net["head"]]
    for kind, modules in (("conv", net["torso"].convolutions), ("layer", layers)):
        for j, module in enumerate(modules):
            arrays[f"{kind}{j}.weight"] = np.asarray(module.weight)
            arrays[f"{kind}{j}.bias"] = np.asarray(module.bias)
    images = settings.network.images
    seen = [leaf for leaf in leaf_spaces(spec.observation_space) if is_image(leaf, images)]
    for j, leaf in enumerate(seen):
        # The first layer is linear, so it takes in the scale of the image that it reads.
        arrays[f"conv{j}.weight"] = arrays[f"conv{j}.weight"] / np.float32(image_range(leaf))
    if "log_std" in policy.params:
        # The training policy clips it at each use; clipped here, it needs no bounds in the file.
        arrays["log_std"] = np.clip(np.asarray(policy.params["log_std"]), *LOG_STD_BOUNDS)
    scaled = tanh or settings.train.affine
    about = {
        "format": FORMAT,
        "env": settings.env,
        "rule": settings.rule.name,
        "env_steps": run.env_steps,
        "observation": _space(spec.observation_space, "obs", arrays, images, scaled=False),
        "action": _space(spec.action_space, "action", arrays, "none", scaled=scaled),
        "activation": settings.network.activation,
        "layers": len(layers),
        "obs_clip": settings.train.obs_clip,
        "tanh": tanh,
    }
    return about, arrays


def _space(
    space: spaces.Space, name: str, arrays: dict[str, np.ndarray], images: str, *, scaled: bool
) -> dict[str, Any]:
    """A space as plain values; the bounds of actions go to the arrays."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        named = isinstance(space, spaces.Dict)
        # Sorted by key, the order in which JAX flattens a dictionary.
        inner = sorted(space.spaces.items()) if named else enumerate(space.spaces)
        parts = [
            [key, _space(part, f"{name}.{key}", arrays, images, scaled=scaled)]
            for key, part in inner
        ]
        return {"kind": "Dict" if named else "Tuple", "parts": parts}
    about: dict[str, Any] = {
        "kind": type(space).__name__,
        "shape": list(shape_of(space)),
        "dtype": str(space.dtype),
        "image": is_image(space, images),
        "size": mask_size(space),
        "name": name,
    }
    if isinstance(space, spaces.Discrete):
        return about | {"n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        sizes, starts = space.nvec.reshape(-1), space.start.reshape(-1)
        return about | {"nvec": sizes.tolist(), "starts": starts.tolist()}
    if isinstance(space, spaces.Box) and name.startswith("action"):
        arrays[f"{name}.low"], arrays[f"{name}.high"] = space.low, space.high
        size = int(np.prod(shape_of(space)))
        return about | {"size": size, "scaled": scaled and has_range(space)}
    return about


def _observations(run: Run) -> Any:
    """A batch drawn from the space; of what is normalised, half at the statistics' own scale."""
    rng = np.random.default_rng(0)
    space = batch_space(run.learner.spec.observation_space, COMPARED)
    space.seed(0)
    leaves, structure = jax.tree.flatten(space.sample())
    half = COMPARED // 2
    for leaf, stats in zip(leaves, run.policy.obs_stats, strict=True):
        if stats is not None:
            noise = rng.standard_normal((half, *leaf.shape[1:]))
            leaf[:half] = np.asarray(stats.mean) + noise * np.asarray(standard_deviation(stats))
    return jax.tree.unflatten(structure, leaves)


def _compare(run: Run, made: NumpyPolicy) -> None:
    obs = _observations(run)
    wrong = np.zeros(COMPARED, bool)
    with jax.default_matmul_precision("highest"):  # an accelerator's own is coarser
        expected = jax.tree.leaves(run.policy(obs))
    for ours, theirs in zip(expected, jax.tree.leaves(made(obs)), strict=True):
        if theirs.dtype != ours.dtype or theirs.shape != ours.shape:
            same = np.zeros(COMPARED, bool)
        elif ours.dtype.kind == "f":
            # Sums in another order differ in the last digits of float32.
            same = np.isclose(theirs, ours, rtol=1e-4, atol=1e-4)
        else:
            same = theirs == ours
        wrong |= ~same.reshape(COMPARED, -1).all(1)
    if wrong.any():
        raise ConfigError(
            f"{run.settings.env}: {wrong.sum()} of {COMPARED} exported actions differ from the "
            "run's, so nothing was written. This is a bug in surefoot; please report it",
            name="EXPORT",
        )
