"""A trained policy as one file of arrays, for machines that have NumPy and nothing else."""

import io
import json
from pathlib import Path
from typing import Any

import gymnasium.spaces as spaces
import jax
import numpy as np

from surefoot.errors import ConfigError
from surefoot.exporting.numpy_policy import FORMAT, Exported
from surefoot.formulas.running_stats import standard_deviation
from surefoot.networks.actor_critic import LOG_STD_BOUNDS
from surefoot.networks.spaces import has_range, is_image, leaf_spaces, mask_size, shape_of
from surefoot.storage.checkpoint import replace_file, storage
from surefoot.training.run import Run

COMPARED = 1000
"""Observations on which the exported policy must act as the one in the run does."""


def export(run: Run, path: str | Path) -> Exported:
    """Write a run's policy to a file that `numpy_policy.load` reads with NumPy alone.

    The normaliser, the squash, scaling, clipping and dtypes of the actions are part of it.

    Args:
        run: as loaded; its policy is the one that is written.
        path: the file, by custom `policy.npz`.

    Raises:
        ConfigError: for a network of the user's own, and where what was written would not act as
            the run's policy does on `COMPARED` observations; nothing is left then.
        StorageError: where it cannot be written.
    """
    made = Exported(*_described(run))
    _compare(run, made)
    about = np.frombuffer(json.dumps(made.about).encode(), np.uint8)
    arrays: dict[str, Any] = {"about": about, **made.arrays}
    file = io.BytesIO()
    np.savez(file, **arrays)
    with storage(Path(path), "writing"):
        replace_file(Path(path), file.getvalue())
    return made


def _described(run: Run) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
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
    for j, convolution in enumerate(net["torso"].convolutions):
        arrays[f"conv{j}.weight"] = np.asarray(convolution.weight)
        arrays[f"conv{j}.bias"] = np.asarray(convolution.bias)
    layers = [*net["torso"].mlp.layers, *net["head"].layers]
    for j, layer in enumerate(layers):
        arrays[f"layer{j}.weight"] = np.asarray(layer.weight)
        arrays[f"layer{j}.bias"] = np.asarray(layer.bias)
    if "log_std" in policy.params:
        arrays["log_std"] = np.clip(np.asarray(policy.params["log_std"]), *LOG_STD_BOUNDS)
    scaled = tanh or settings.train.action_scale == "affine"
    about = {
        "format": FORMAT,
        "env": settings.env,
        "rule": settings.rule.name,
        "env_steps": run.env_steps,
        "observation": _space(spec.observation_space, "obs", arrays, scaled=False),
        "action": _space(spec.action_space, "action", arrays, scaled=scaled),
        "activation": settings.network.activation,
        "layers": len(layers),
        "obs_clip": settings.train.obs_clip,
        "tanh": tanh,
    }
    return about, arrays


def _space(
    space: spaces.Space, name: str, arrays: dict[str, np.ndarray], *, scaled: bool
) -> dict[str, Any]:
    """A space as plain values; the bounds of actions go to the arrays."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        named = isinstance(space, spaces.Dict)
        parts = sorted(space.spaces.items()) if named else enumerate(space.spaces)
        told = [[key, _space(part, f"{name}.{key}", arrays, scaled=scaled)] for key, part in parts]
        return {"kind": "Dict" if named else "Tuple", "parts": told}
    about: dict[str, Any] = {
        "kind": type(space).__name__,
        "shape": list(shape_of(space)),
        "dtype": str(space.dtype),
        "image": is_image(space),
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
    """Half drawn from the space, half from where the normaliser has seen them."""
    space, rng = run.learner.spec.observation_space, np.random.default_rng(0)
    space.seed(0)
    drawn = [space.sample() for _ in range(COMPARED)]
    stats = dict(zip(map(id, leaf_spaces(space)), run.policy.obs_stats, strict=True))

    def rows(part: Any, *values: Any) -> np.ndarray:
        found = np.stack(values)
        seen = stats.get(id(part))
        if seen is not None:
            half = COMPARED // 2
            noise = rng.standard_normal((half, *found.shape[1:]))
            found = np.array(found)
            found[:half] = np.asarray(seen.mean) + noise * np.asarray(standard_deviation(seen))
        return found

    def by_leaf(part: Any, values: list[Any]) -> Any:
        if isinstance(part, spaces.Dict):
            return {key: by_leaf(part[key], [v[key] for v in values]) for key in part.spaces}
        if isinstance(part, spaces.Tuple):
            inner = enumerate(part.spaces)
            return tuple(by_leaf(one, [v[i] for v in values]) for i, one in inner)
        return rows(part, *values)

    return by_leaf(space, drawn)


def _compare(run: Run, made: Exported) -> None:
    obs = _observations(run)
    wrong = np.zeros(COMPARED, bool)
    with jax.default_matmul_precision("highest"):  # an accelerator's own is coarser
        expected = jax.tree.leaves(run.policy(obs))
    pairs = zip(expected, jax.tree.leaves(made(obs)), strict=True)
    for ours, theirs in pairs:
        if theirs.dtype != ours.dtype or theirs.shape != ours.shape:
            same = np.zeros(COMPARED, bool)
        elif ours.dtype.kind == "f":
            same = np.isclose(theirs, ours, rtol=1e-4, atol=1e-4)
        else:
            same = theirs == ours
        wrong |= ~same.reshape(COMPARED, -1).all(1)
    if wrong.any():
        raise ConfigError(
            f"{run.settings.env}: of {COMPARED} actions {wrong.sum()} differ from the run's; "
            "nothing was written. This is a bug: report it",
            name="EXPORT",
        )
