"""Every metric that a run logs: what it is, its healthy range, what to do; from `metrics.toml`."""

import difflib
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from surefoot.errors import ConfigError


class Metric(NamedTuple):
    """One logged figure. `unit` is what it counts in; `healthy` and `remedy` are advice."""

    unit: str
    what: str
    healthy: str = "any"
    remedy: str = "nothing to do: it describes the run."


_TABLES = tomllib.loads(Path(__file__).with_name("metrics.toml").read_text(encoding="utf-8"))
METRICS = {name: Metric(**table) for name, table in _TABLES.items()}


def explain(name: str, others: Iterable[str] = ()) -> str:
    """What a metric is, in a few lines of text; `others` are names that an error may suggest."""
    if name.startswith("episode/") and name not in METRICS:
        return (
            f"{name}\n  Mean of info[{name.removeprefix('episode/')!r}] at the last step of the "
            "episodes that ended, where --info-keys names it."
        )
    if name not in METRICS:
        known = [*METRICS, *others]
        matches = [key for key in known if name.lower() in key]
        matches = matches or difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"; did you mean {', '.join(matches[:4])}?" if matches else ""
        raise ConfigError(f"nothing is called {name}{hint} (`surefoot explain` lists them all)")
    metric = METRICS[name]
    return (
        f"{name}  [{metric.unit}]\n  {metric.what}\n  healthy: {metric.healthy}\n"
        f"  if not: {metric.remedy}"
    )
