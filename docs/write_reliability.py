"""Writes `docs/reliability.md`: what may go wrong, what is promised, and the tests that show it.

Run: python docs/write_reliability.py        (runs those tests, some minutes)
"""

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.cases import CASES, names_by_case  # noqa: E402

HEAD = """# Reliability

What may go wrong, what surefoot promises for it, and the tests that make it go wrong
and look. `pytest -m case` runs them (those marked slow too with `-m "case and slow"`). Written by
`docs/write_reliability.py`.

A fault is one line, `surefoot: error[NAME]: what, where, what to do`, and an exit code: 2 wrong
command or settings, 3 an environment that breaks its contract, 4 one that crashed or hung, 5
updates that are not finite or replicas that differ, 6 a checkpoint that is missing, damaged,
hostile or of another run, 7 storage, 8 memory, 9 a process that is gone, 130 and 143 stopped by a
signal and saved, 1 a bug of ours. No traceback without `--debug`. What was done stays: the last
good checkpoint is named in the line, and `surefoot resume RUN` goes on from it.

Beside each promise stands how others do, from reading their code (S Stable-Baselines3 2.9.2, C
CleanRL, B Brax 0.14.2, R RLlib 2.60): + kept, ~ partly or as a raw Python error, - not kept, . does
not apply, ? not established.
"""

LIMITS = """## Long runs, and files with anything in them

`python -m benchmarks.soak` trains a million host steps and ten million JAX-native ones twice, once
in peace and once killed by SIGKILL at random rows and given the same command again, and compares
the last checkpoints, the rows and the memory. Twenty kills, ten of each: checkpoints equal to the
bit, rows equal and without a gap or a double, nothing left behind; memory grew by 2.8 MB in 700,000
host steps and by 2.9 MB in 7,000,000 JAX-native ones ([results/soak.json](results/soak.json)).
`pytest -m slow tests/storage/test_fuzz.py` changes files of a run at random 200,000 times (2,000
times in the fast tests), and passed: each is read or refused by name within a second, and nothing
outside of the run is opened.

## Limits

* A hang in native code that holds the interpreter's lock stops the thread that watches as well;
  nothing in the process can end it. In another process it is ended like any other; but the first
  environments are always in this one, with `--vectorization cores` and `async` too.
* `env_timeout_s` is the time of one step or reset of all environments of a process, of one
  constructor and of one `close`; of the constructors of another process, all together, as many
  times as it has environments. An environment of another process has five seconds to close: then
  it is killed, and the run ends as it would have.
* A process that an environment starts in this one and leaves behind keeps our standard output
  open, so that what reads it waits; in another process it is killed when they are closed.
* An instance is copied with what its Python objects hold. A handle that is a bare number, such as a
  connection to a simulator, cannot be told from any other number: give a function.
* Weights & Biases keep the rows that they were given before a kill; offline they know of none.
* `env_timeout_s` needs the main thread and a free SIGALRM: in another thread, or where a program
  uses that signal itself, a hang is not ended.
* `--on-env-error restart:N` is for exceptions; a process that is killed ends the run.
* An environment that calls `os._exit` ends the process that steps it. In the one that trains
  nothing can be said any more, and the exit code is the environment's: the run is unfinished, as
  `resume`, `report` and `compare` say. In another (`--vectorization cores` or `async`, all but
  environment 0) it is a named error.
* The generators of `random` and `numpy.random` are seeded at seeded resets, not around steps. What
  a callback draws meanwhile is missing there, several processes are another run than one, and
  trainings in threads share them. `numpy.random.default_rng()` without a seed, spaces that sample
  and libraries of C are not seeded.
* Wrappers that normalise are found by their names, and not inside an `AsyncVectorEnv`.
* Offsets that float32 loses are looked for in the first 1,024 observations, where they are float64:
  Gymnasium's own vectors have cast them before where the space is of float32.
* The numbers of JAX-native environments are looked at in a run's first chunk; later ones show as
  refused updates.
* Under `--on-env-error restart:N` rows of the lost episode that an earlier rollout had are learned
  from already. N counts from the start of the process, and of each evaluation anew.
* What is shown at the end of an episode that terminated is read by nobody: of environments that
  surefoot builds its shape and dtype are looked at, its numbers are not. Bounds (`env/outside`) are
  counted for observations that are acted on. What a Dict has beside its space is passed over.
* The one warning of a cast comes where a reset already gives the other dtype.
* A lock holds on file systems that have locks; where they have none, a warning says so.
* An environment that depends on something beside its seed and its actions cannot be replayed;
  `replay` says so. Actions are kept since the last seed, at most 64 MB of them.
* Equality to the bit holds on one kind of machine with the same versions.
"""


def page(passed: Iterable[int]) -> str:
    """The page's text, from the cases whose tests passed."""
    tests = names_by_case()
    count = len(set(passed))
    lines = [
        HEAD,
        f"**{count} of {len(CASES)}** cases are kept, each by the tests named beside it.",
    ]
    for area in dict.fromkeys(case.area for case in CASES.values()):
        lines += [f"\n## {area}\n", "| | what happens | promised | S C B R | shown by |"]
        lines.append("|---|---|---|---|---|")
        for number, case in CASES.items():
            if case.area == area:
                names = (
                    ", ".join(f"`{name}`" for name in sorted(tests.get(number, ())))
                    or "nothing yet"
                )
                cells = (str(number), case.happens, case.promise, " ".join(case.others), names)
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", LIMITS])


def run_tests() -> set[int]:
    """Run the tests of the cases; those that all of their tests keep."""
    with tempfile.NamedTemporaryFile(suffix=".xml") as file:
        # The tests marked slow too: some cases have no others.
        command = [sys.executable, "-m", "pytest", "-q", "-n2", "-m", "case"]
        command += [f"--junitxml={file.name}"]
        given = os.environ | {"PYTHONPATH": str(ROOT / "tests")}  # where the plugin is
        subprocess.run(
            [*command, "-p", "tests.support.cases", "tests"], cwd=ROOT, env=given, check=False
        )
        seen: set[int] = set()
        failed: set[int] = set()
        for each in ET.parse(file.name).getroot().iter("testcase"):
            bad = each.find("failure") is not None or each.find("error") is not None
            for one in each.iter("property"):
                if one.get("name") == "case":
                    (failed if bad else seen).add(int(str(one.get("value"))))
    return seen - failed


if __name__ == "__main__":
    target = Path(__file__).with_name("reliability.md")
    target.write_text(page(run_tests()), encoding="utf-8")
