"""The display of a run in progress: a live panel on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from surefoot.analysis.text import duration
from surefoot.cli.commands.common import SECONDS_BETWEEN_LINES
from surefoot.config.settings import Settings, non_default
from surefoot.diagnostics.catalogue import METRICS
from surefoot.training.callback import Callback

LONG_ITERATION = 120.0
"""Seconds from which an iteration is announced with the `--num-steps` that shortens it..."""
SHORT_ITERATION = 20.0
"""...to about this many."""
_EVALUATION = "eval/return_mean"
_SHOWN = (
    ("return", "episode/return_mean", "{:.1f}"),
    ("evaluation", _EVALUATION, "{:.1f}"),
    ("promised gain", "surrogate/promised_gain", "{:.3g}"),
    ("KL mean", "policy/kl_mean", "{:.4f}"),
    ("KL worst state", "policy/kl_worst_state", "{:.3f}"),
    ("entropy", "policy/entropy", "{:.3f}"),
    ("explained variance", "critic/explained_variance", "{:.2f}"),
)


class Progress(Callback):
    """A callback that draws the progress of a run."""

    def __init__(self) -> None:
        # Standard output is for results and JSON lines.
        self._console = Console(stderr=True)
        self._live: Live | None = None
        self._latest: dict[str, Any] = {}
        self._evaluated = 0
        self._seconds = dict.fromkeys(("env", "policy", "update", "compile"), 0.0)
        self._busy = 0.0
        # So that the first row is printed at once.
        self._last_line = -SECONDS_BETWEEN_LINES
        self._compiling = ""
        self._rollout = ""
        self._rolled: tuple[int, float] | None = None  # steps at the first look, and when
        self._announced = False

    def on_start(self, run: Any, plan: Any) -> None:
        """Say what is about to happen, then show it."""
        settings: Settings = run.settings
        self._plan, self._first = plan, run.iteration
        self._title = f"{settings.rule.name} on {settings.env}"
        cut = ""
        if plan.reset_every:
            within = plan.reset_every < plan.iterations
            cut = f", exact every {plan.reset_every}" * within + ", exact at the end" * (not within)
        if plan.cut_share:
            cut += f", which cuts at most {plan.cut_share:.0%} of episodes"
        self._print(
            f"{self._title}: {plan.iterations} iterations of "
            f"{settings.train.num_envs} x {settings.train.num_steps} steps, seed "
            f"{settings.train.seed}; checkpoint every {plan.checkpoint_every} iterations{cut}"
        )
        changed = non_default(settings)
        if changed:
            self._print(f"non-default settings: {', '.join(changed)}")
        self._start = time.monotonic()
        if self._console.is_terminal:
            self._live = Live(self._draw(), console=self._console, refresh_per_second=8)
            self._live.start()

    def on_compile(self, what: str) -> None:
        """Say that a program is being built, which takes seconds."""
        self._compiling = what
        if self._live:
            self._live.update(self._draw())
        else:
            self._print(f"compiling {what} ...")

    def on_rollout(self, done: int, steps: int) -> None:
        """Show how far a rollout is that takes seconds."""
        now, self._compiling = time.monotonic(), ""
        if self._rolled is None or done <= self._rolled[0]:
            self._rolled = done, now
            return
        first, since = self._rolled
        rate = (done - first) / (now - since)
        self._rollout = (
            f"rollout {done:,}/{steps:,} steps, {duration((steps - done) / rate)} left in it"
        )
        if steps / rate > LONG_ITERATION and not self._announced:
            self._announced = True
            self._print(
                f"an iteration takes about {duration(steps / rate)}: {steps:,} steps of every "
                f"environment; --num-steps {max(1, round(SHORT_ITERATION * rate))} would take "
                f"{duration(SHORT_ITERATION)}"
            )
        if self._live:
            self._live.update(self._draw())
        elif now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            iteration = self._latest.get("iteration", self._first) + 1
            self._print(f"{iteration}/{self._plan.iterations}  {self._rollout}")

    def on_row(self, run: Any, row: Mapping[str, Any]) -> None:
        """Take in one iteration."""
        self._compiling, self._rollout, self._rolled = "", "", None
        # Not every row has every figure: the panel keeps the newest of each.
        self._latest |= row
        if _EVALUATION in row:
            self._evaluated = row["env_steps"]
        for part in self._seconds:
            self._seconds[part] += row.get(f"time/{part}", 0.0)
        # Without compilation, which the iterations that are left do not repeat.
        self._busy += row["time/iteration"]
        last = self._done() >= self._plan.iterations
        if self._live:
            self._live.update(self._draw())
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES or last:
            self._last_line = time.monotonic()
            self._print(self._line())

    def on_end(self, run: Any) -> None:
        """Leave the last picture standing."""
        if self._live:
            self._live.update(self._draw())
            self._live.stop()
            self._live = None

    def _print(self, text: str) -> None:
        """One record on one line, however long."""
        # Rich would colour numbers and paths, and break the line at the window's width.
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _done(self) -> int:
        return self._latest.get("iteration", self._first)

    def _left(self) -> str:
        done = self._done() - self._first
        left = self._plan.iterations - self._done()
        return duration(self._busy / done * left) if done else "-"

    def _line(self) -> str:
        row = self._latest
        parts = [f"{row['iteration']}/{self._plan.iterations}", f"{row['env_steps']:,} steps"]
        # A line of a log has room for the first few only.
        for label, key, form in _SHOWN[:5]:
            if key in row:
                parts.append(f"{label} {form.format(row[key])}{self._age(key)}")
        parts += [f"{row['time/steps_per_second']:,.0f} steps/s", f"{self._left()} left"]
        return "  ".join(parts)

    def _age(self, key: str) -> str:
        """Of which step a figure is, where not of the newest row."""
        old = key == _EVALUATION and self._evaluated < self._latest["env_steps"]
        return f" (at {self._evaluated:,})" if old else ""

    def _draw(self) -> Panel:
        row, done = self._latest, self._done()
        head = Table.grid(expand=True, padding=(0, 1))
        head.add_column(ratio=1)
        head.add_column(justify="right")
        rate = row.get("time/steps_per_second")
        speed = f"{rate:,.0f} steps/s" if rate else ""
        status = f"compiling {self._compiling} ..." if self._compiling else self._rollout
        status = status or f"{self._left()} left"
        head.add_row(
            ProgressBar(total=self._plan.iterations, completed=done),
            Text(f"{done}/{self._plan.iterations}  {speed}  {status}"),
        )
        body = Table.grid(padding=(0, 2))
        for label, key, form in _SHOWN:
            if key in row:
                unit = METRICS[key].unit
                value = form.format(row[key]) + self._age(key)
                body.add_row(Text(label, style="dim"), value, Text(unit, "dim"))
        if row:
            body.add_row(
                Text("steps", style="dim"), f"{row['env_steps']:,}", Text(self._shares(), "dim")
            )
        return Panel(Group(head, body), title=Text(self._title), title_align="left")

    def _shares(self) -> str:
        """The split of time; compilation is on top of it, in seconds."""
        *working, compilation = self._seconds.items()
        total = sum(seconds for _, seconds in working)
        parts = [f"{part} {seconds / total:.0%}" for part, seconds in working if total > 0]
        return ", ".join([*parts, f"compilation {duration(compilation[1])}"])
