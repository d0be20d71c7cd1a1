"""An exported policy, with NumPy alone.

This file imports nothing else: copy it beside the exported file onto a machine with NumPy.

    from numpy_policy import NumpyPolicy
    policy = NumpyPolicy.load("policy.npz")
    action = policy(observation)
"""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1
# As in training, from where it cannot be imported: this file stands alone.
MASKED_LOGIT = -1e9


class NumpyPolicy:
    """A policy and its normaliser as arrays; call it with an observation or a batch of them.

    Attributes:
        about: its environment, rule, spaces and network's shape.
        arrays: weights, the normaliser's statistics, bounds of actions.
    """

    def __init__(self, about: dict[str, Any], arrays: dict[str, np.ndarray]):
        self.about, self.arrays = about, arrays

    @classmethod
    def load(cls, path: str | Path) -> "NumpyPolicy":
        """A policy from the file that `surefoot export` wrote; no code in it is run.

        Raises:
            ValueError: for a file of another kind or of a newer format, and where a number is not
                finite.
        """
        data = io.BytesIO(Path(path).read_bytes())
        try:
            with np.load(data, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            about = json.loads(arrays.pop("about").tobytes())
            found = about["format"]
        # NumPy and the unpackers raise what they like for a file that something else has written.
        except Exception as error:
            raise ValueError(f"{path} is not an exported policy: {error}") from error
        if found != FORMAT:
            raise ValueError(f"{path} has format {found}, this file reads {FORMAT}")
        for name, array in arrays.items():
            unbounded = name.startswith("action")  # an action's bounds may be infinite
            if array.dtype.kind not in "biuf" or not (unbounded or np.isfinite(array).all()):
                raise ValueError(f"{path}: {name} holds what is not a finite number")
        return cls(about, arrays)

    def __call__(
        self, obs: Any, *, action_mask: Any = None, rng: np.random.Generator | None = None
    ) -> Any:
        """The action, ready for the environment: scaled, clipped, of its dtype.

        Args:
            obs: one observation as the environment returns it, not normalised, or a batch of them.
            action_mask: True where an action is allowed, flat; for a Dict or Tuple of actions, one
                for each part that has choices.
            rng: draws a sample; without one the action is the most probable.
        """
        leaves = list(_flatten(self.about["observation"], obs))
        if not all(np.isfinite(leaf).all() for _, leaf in leaves):
            raise ValueError(f"an observation that is not finite: {obs}")
        single = np.ndim(leaves[0][1]) == len(leaves[0][0]["shape"])
        if single:
            leaves = [(space, np.asarray(leaf)[None]) for space, leaf in leaves]
            action_mask = _map(lambda mask: np.asarray(mask)[None], action_mask)
        out = self._outputs(leaves)
        action, _, _ = self._act(self.about["action"], out, action_mask, rng, 0)
        return _map(lambda leaf: leaf[0], action) if single else action

    def _outputs(self, leaves: list[tuple[dict[str, Any], Any]]) -> np.ndarray:
        rows, images = len(leaves[0][1]), []
        parts: list[np.ndarray] = [np.zeros((rows, 0), np.float32)]
        for i, (space, leaf) in enumerate(leaves):
            values = np.asarray(leaf)
            if space["kind"] == "Discrete":
                parts.append(_one_hot(values - space["start"], space["n"]))
            elif space["kind"] == "MultiDiscrete":
                columns = values.reshape(rows, -1)
                sizes = zip(space["nvec"], space["starts"], strict=True)
                parts += [_one_hot(columns[:, j] - s, n) for j, (n, s) in enumerate(sizes)]
            else:
                values = values.astype(np.float32)
                if f"mean{i}" in self.arrays:
                    scaled = (values - self.arrays[f"mean{i}"]) / self.arrays[f"std{i}"]
                    clip = np.float32(self.about["obs_clip"])
                    values = np.clip(scaled, -clip, clip)
                images.append(values) if space["image"] else parts.append(values.reshape(rows, -1))
        for j, image in enumerate(images):
            weight, bias = self.arrays[f"conv{j}.weight"], self.arrays[f"conv{j}.bias"]
            windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3), (1, 2))
            seen = np.einsum("bhwcij,ocij->bohw", windows, weight, optimize=True) + bias
            parts.append(self._activate(seen).reshape(rows, -1))
        x = np.concatenate(parts, axis=1).astype(np.float32)
        for j in range(self.about["layers"]):
            x = x @ self.arrays[f"layer{j}.weight"].T + self.arrays[f"layer{j}.bias"]
            if j < self.about["layers"] - 1:
                x = self._activate(x)
        return x

    def _activate(self, x: np.ndarray) -> np.ndarray:
        name = self.about["activation"]
        if name == "tanh":
            return np.tanh(x)
        if name == "relu":
            return np.maximum(x, 0)
        if name == "swish":
            # exp overflows in float32 from 89 on.
            return x / (1 + np.exp(-np.clip(x, -80, 80)))
        if name == "elu":
            # `where` computes both sides, and the unused one must not overflow.
            return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))
        # gelu, in its tanh form
        # A float64 scalar of NumPy would widen the result.
        inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x**3)
        return x * (1 + np.tanh(inner)) / 2

    def _act(
        self, space: dict[str, Any], out: np.ndarray, mask: Any, rng: Any, stds: int
    ) -> tuple[Any, np.ndarray, int]:
        """The action of one part of the space, the remaining outputs, and the deviations used."""
        kind = space["kind"]
        if kind in ("Dict", "Tuple"):
            found: dict[Any, Any] = {}
            for key, part in space["parts"]:
                inner = None
                if mask is not None:
                    inner = mask.get(key) if kind == "Dict" else mask[key]
                found[key], out, stds = self._act(part, out, inner, rng, stds)
            return found if kind == "Dict" else tuple(found.values()), out, stds
        size = space["size"]
        now, rest = out[:, :size], out[:, size:]
        if mask is not None:
            now = np.where(np.reshape(mask, now.shape), now, np.float32(MASKED_LOGIT))
        shape, dtype = (len(out), *space["shape"]), np.dtype(space["dtype"])
        if kind == "Discrete":
            chosen = np.argmax(now + _gumbel(rng, now), axis=1) + space["start"]
            return chosen.astype(dtype), rest, stds
        if kind == "MultiDiscrete":
            columns = np.split(now + _gumbel(rng, now), np.cumsum(space["nvec"])[:-1], axis=1)
            chosen = np.stack([np.argmax(column, axis=1) for column in columns], axis=1)
            return (chosen + space["starts"]).reshape(shape).astype(dtype), rest, stds
        if kind == "MultiBinary":
            # A logit plus logistic noise is positive with the probability sigmoid(logit).
            noise = 0.0 if rng is None else rng.logistic(size=now.shape)
            return (now + noise > 0).reshape(shape).astype(dtype), rest, stds
        if rng is not None:
            deviation = np.exp(self.arrays["log_std"][stds : stds + size])
            now = now + deviation * rng.standard_normal(now.shape)
        return self._box(space, now.reshape(shape)), rest, stds + size

    def _box(self, space: dict[str, Any], action: np.ndarray) -> np.ndarray:
        low, high = self.arrays[f"{space['name']}.low"], self.arrays[f"{space['name']}.high"]
        if self.about["tanh"]:
            action = np.tanh(action)
        if space["scaled"]:
            action = low + (np.clip(action, -1, 1) + 1) / 2 * (high - low)
        dtype = np.dtype(space["dtype"])
        if dtype.kind in "iu":
            action = np.round(action)
        # Before the cast against overflow, after it against rounding.
        return np.clip(np.clip(action, low, high).astype(dtype), low, high)


def _one_hot(values: np.ndarray, size: int) -> np.ndarray:
    return (values.reshape(-1, 1) == np.arange(size)).astype(np.float32)


def _gumbel(rng: np.random.Generator | None, like: np.ndarray) -> Any:
    # The argmax of logits plus Gumbel noise is a sample of their softmax.
    return 0.0 if rng is None else rng.gumbel(size=like.shape)


def _flatten(space: dict[str, Any], value: Any) -> Iterator[tuple[dict[str, Any], Any]]:
    if "parts" not in space:
        yield space, value
    for key, part in space.get("parts", ()):
        yield from _flatten(part, value[key])


def _map(function: Callable[[Any], Any], tree: Any) -> Any:
    """A function of every array in nested dicts and tuples; None stays."""
    if isinstance(tree, dict):
        return {key: _map(function, part) for key, part in tree.items()}
    if isinstance(tree, tuple):
        return tuple(_map(function, part) for part in tree)
    return None if tree is None else function(tree)
