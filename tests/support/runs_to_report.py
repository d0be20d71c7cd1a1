"""Made-up rows and run directories for tests of the report."""

import json

import numpy as np


def rows_of_a_run(count=60, *, batch=2048, seed=0, collapse=False, rule="trpo"):
    """Rows with every figure of a report, of a run that learns, and may then collapse."""
    rng = np.random.default_rng(seed)
    rows, level = [], 20.0
    for k in range(1, count + 1):
        done = k / count
        falling = collapse and done > 0.7
        level += (-3.0 if falling else 1.0) * 400.0 / count * (0.5 + rng.random())
        level = max(level, 15.0)
        promise = 10.0 * 40.0 / count * (1.1 - done) * (0.8 + 0.4 * rng.random())
        share = 0.75 - 0.5 * done
        kl = 0.009 * (8.0 if falling else 1.0) * (0.8 + 0.4 * rng.random())
        row = {
            "iteration": k,
            "env_steps": batch * k,
            "episode/count": 12,
            "episode/return_mean": level,
            "episode/return_min": 0.6 * level,
            "episode/return_max": 1.3 * level,
            "episode/length_mean": level,
            "surrogate/promised_gain": promise,
            "policy/kl_mean": kl,
            "policy/kl_median": 0.6 * kl,
            "policy/kl_p99": 6.0 * kl * (3.0 if falling else 1.0),
            "policy/kl_worst_state": 15.0 * kl * (4.0 if falling else 1.0) * (0.5 + rng.random()),
            "policy/kl_worst_share": min(0.9, 0.06 * (5.0 if falling else 1.0)),
            "policy/clip_fraction": 0.1 + 0.3 * falling,
            "policy/unprotected_fraction": 0.04,
            "policy/entropy": 0.69 * (1.1 - done),
            "critic/explained_variance": 0.8 - 1.5 * falling,
            "lens/explained_variance": 0.6 - 1.5 * falling + 0.1 * rng.normal(),
            "lens/signal_share": share,
            "lens/filtered_ratio": 0.9 - 0.8 * falling,
            "lens/filtered_low": 0.5 - 0.8 * falling,
            "lens/filtered_high": 1.3 - 0.8 * falling,
            "time/iteration": 0.1,
        }
        for sign, way in (("good", 1.0), ("bad", -1.0)):
            middle = 0.02 * way
            for name, off in (("p10", -0.1), ("p50", 0.0), ("p90", 0.1)):
                row[f"policy/log_ratio_{sign}_{name}"] = middle + off * (2.0 if falling else 1.0)
        if rule == "trpo":
            row |= {
                "update/cg_residual": 0.03 * (1 + rng.random()),
                "update/kl_quadratic": 0.009,
                "update/kl_full_step": kl,
                "update/backtracks": int(rng.random() < 0.1),
                "update/accepted": int(rng.random() > 0.02),
            }
        else:
            row |= {
                "update/gradient_norm": 0.1,
                "update/epochs": 10.0,
                "update/learning_rate": 3e-4,
            }
        if k > 1:
            before = rows[-1]["surrogate/promised_gain"]
            gain = before * rows[-1]["lens/signal_share"] * (0.9 - 1.5 * falling)
            gain += 40.0 / count * rng.normal()
            row |= {
                "lens/promised_gain": before,
                "lens/realised_gain": gain,
                "lens/realised_low": gain - 90.0 / count,
                "lens/realised_high": gain + 90.0 / count,
            }
        if k % max(1, count // 12) == 0:
            row |= {
                "eval/return_mean": 1.1 * level,
                "eval/return_std": 0.2 * level,
                "lens/insample_promise": promise,
                "lens/crossfit_promise": share * promise,
                "lens/visitation_shift": 0.08 + 0.4 * falling,
                "lens/visitation_null": 0.02 * rng.random(),
                "lens/noise_scale": 3000.0,
                "lens/expected_cosine": 0.5 - 0.3 * done,
            }
        if falling and done > 0.72:
            row["warnings"] = "kl-large" + (" clip" if k % 3 == 0 else "")
        rows.append(row)
    return rows


def write_run(path, rows, **config):
    """A run directory of these rows, without a checkpoint."""
    path.mkdir(parents=True)
    settings = {
        "env": "CartPole-v1",
        "env_kwargs": {},
        "preset": "none",
        "rule": {"name": "trpo"},
        "train": {"steps": 2048 * 60, "eval_episodes": 20},
        "versions": {"surefoot": "0.2.0"},
    }
    (path / "config.json").write_text(json.dumps(settings | config))
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (path / "metrics.jsonl").write_text(text)
    return path
