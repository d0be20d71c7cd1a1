"""What may go wrong, and what is promised: the list that the tests are held to.

Beside each promise how others stand, from reading their code (Stable-Baselines3 2.9.2, CleanRL,
Brax 0.14.2, RLlib 2.60, in this order): + kept, ~ partly or as a raw Python error, - not kept,
. does not apply, ? not established.
"""

import ast
from pathlib import Path
from typing import NamedTuple

import pytest


class Case(NamedTuple):
    """One case: its area, what happens, what is promised, and how others stand."""

    area: str
    happens: str
    promise: str
    others: str


_C, _E, _N, _R, _S, _D, _X = (
    "Configuration",
    "Environments",
    "Numbers",
    "Checkpoints and runs",
    "Signals and resources",
    "Several devices and machines",
    "Sharing",
)
_F, _W, _L = "Files and programs of others", "Wrong in silence", "Work lost, or stuck"

CASES = {
    1: Case(
        _C,
        "an unknown flag or key",
        "exit 2 before anything is opened, with the nearest known",
        "~+~~",
    ),
    2: Case(_C, "a value out of its range", "exit 2 with the range", "~-~~"),
    3: Case(
        _C,
        "a batch that its minibatches do not divide",
        "exit 2 with sizes that work; no row is dropped",
        "~-+~",
    ),
    4: Case(_C, "a batch of one, advantages standardised", "trains, and stays finite", "+-++"),
    5: Case(_C, "a rule or distribution that does not fit the space", "exit 2 naming both", "++.~"),
    6: Case(
        _C,
        "an unknown environment, or a package that is missing",
        "exit 2 with what to install",
        "~~~~",
    ),
    7: Case(
        _C,
        "a configuration file with code or a path where a number belongs",
        "exit 2; nothing is evaluated or imported",
        "...?",
    ),
    8: Case(
        _C, "a network that no memory holds", "exit 2 with its size, before it is built", "----"
    ),
    9: Case(
        _E,
        "step raises",
        "exit 4: exception, environment, seed, step, action; replay meets it again",
        "~-.+",
    ),
    10: Case(
        _E,
        "step raises under --on-env-error restart:3",
        "made anew; nothing of its episode is learned from; the fourth is exit 4",
        "--.+",
    ),
    11: Case(_E, "the third constructor raises", "exit 4 with its number", "~~.~"),
    12: Case(_E, "step never returns", "exit 4 after env_timeout_s; no process is left", "--.+"),
    13: Case(
        _E,
        "an environment's process is killed",
        "exit 4 within 5 s: environments, pid, signal",
        "~..+",
    ),
    14: Case(
        _E,
        "an exception that cannot be pickled, or sys.exit",
        "exit 4 with its text, no hang",
        "~~.?",
    ),
    15: Case(
        _E,
        "NaN in an observation",
        "exit 3: environment, key, element, step; nothing was learned from it",
        "~---",
    ),
    16: Case(_E, "an infinite or NaN reward", "exit 3 likewise", "~---"),
    17: Case(
        _E,
        "an observation of another shape, from reset or step",
        "exit 3; one number is never spread over many",
        "~~+~",
    ),
    18: Case(
        _E, "float64 in a space of float32", "cast, with one warning; beyond float32 exit 3", "~~+~"
    ),
    19: Case(
        _E,
        "objects, words, or whole numbers beyond 32 bits",
        "exit 3, nothing wraps around",
        "??.?",
    ),
    20: Case(
        _E,
        "an observation outside its space",
        "counted, with one warning; --strict-env: exit 3",
        "~-.~",
    ),
    21: Case(_E, "an environment for Gym before 0.26", "exit 3 with how to mend it", "+-.~"),
    22: Case(_E, "terminated and truncated at once", "an end: no bootstrap", "+~++"),
    23: Case(_E, "truncation", "the value of the true last observation is bootstrapped", "+-~+"),
    24: Case(_E, "every autoreset mode", "the same targets; an unknown mode is exit 3", ".-.~"),
    25: Case(
        _E,
        "an environment that rewrites the array it gave",
        "stored rows stay as they were",
        "+?.?",
    ),
    26: Case(_E, "an episode that never ends", "rows go on, memory is flat", "+++?"),
    27: Case(_E, "episodes of one step", "finite and right returns", "~?+?"),
    28: Case(_E, "environments in one process or in several", "the same run, bit for bit", "+.+?"),
    29: Case(_E, "environments of unlike spaces", "exit 3 naming the two", "-~.~"),
    30: Case(_E, "an environment that prints", "--json stays lines of JSON", "--.-"),
    31: Case(
        _N,
        "a constant reward",
        "no NaN; natural steps leave the policy as it is, bit for bit",
        "++++",
    ),
    32: Case(_N, "one action", "no entropy, no step, exit 0", "????"),
    33: Case(_N, "100,000 actions, or 1,000 numbers an action", "trains; KL finite", "????"),
    34: Case(
        _N,
        "rewards times a million, or over a million",
        "no NaN; trpo's measured KL within its radius",
        "~~~~",
    ),
    35: Case(
        _N,
        "updates that are not finite",
        "none is applied; exit 5 after so many in a row, with a dump",
        "---~",
    ),
    36: Case(
        _N,
        "a Fisher product that is not finite or curves the wrong way",
        "no step; the reason is logged",
        "~...",
    ),
    37: Case(
        _N,
        "a line search that finds nothing",
        "old parameters, bit for bit; training goes on",
        "+...",
    ),
    38: Case(_N, "a ratio beyond exp(80)", "capped; no inf in a row of metrics", "---~"),
    39: Case(
        _N, "a standard deviation that drifts", "its logarithm stays within its bounds", "--??"
    ),
    40: Case(
        _N, "actions as sent", "inside their space and of its dtype; stored as sampled", "++++"
    ),
    41: Case(_N, "a Box without bounds, or with one", "no NaN from scaling", "~+.?"),
    42: Case(_N, "counters beyond 31 and 53 bits", "exact", "++++"),
    43: Case(_N, "JAX_ENABLE_X64", "trains, resumes, no fault of dtype", "..?."),
    44: Case(_N, "shapes that change", "a program is built for few shapes and no more", "..-."),
    45: Case(
        _R,
        "a kill anywhere in a save",
        "the previous or the new checkpoint loads; leftovers go",
        "-.~-",
    ),
    46: Case(_R, "a full disk in a save", "exit 7; the last good checkpoint stays", "--~-"),
    47: Case(_R, "an output directory that cannot be one", "exit 7 before a first step", "-~-~"),
    48: Case(
        _R,
        "a file cut short",
        "exit 6 with both sizes; going on takes the one before, and says so",
        "~.~~",
    ),
    49: Case(_R, "a flipped bit", "exit 6 by digest", "~~--"),
    50: Case(_R, "a hostile pickle under our name", "exit 6; it does not run", "-~+-"),
    51: Case(
        _R,
        "a manifest with a path, a link or a device",
        "exit 6; nothing outside is opened",
        "..-?",
    ),
    52: Case(
        _R,
        "a small file that claims much, or JSON without end",
        "exit 6 in a second and 200 MB",
        "-???",
    ),
    53: Case(_R, "a newer format", "exit 6 naming what reads it", "---~"),
    55: Case(_R, "another environment or network", "exit 6, field by field", "+~~~"),
    56: Case(_R, "a stop anywhere, and going on", "as if never stopped, bit for bit", "----"),
    57: Case(_R, "three stops, the last in a save", "the same", "----"),
    58: Case(_R, "schedules behind a stop", "go on where they were", "~.-~"),
    59: Case(_R, "going on with a finished run", "exit 0, nothing rewritten", "-.-?"),
    60: Case(
        _R, "going on with other settings", "exit 2 listing them, unless they are named", "-.--"
    ),
    61: Case(
        _R, "going on under other versions", "allowed, with a warning that equality is off", "...?"
    ),
    62: Case(
        _R,
        "two runs in one directory",
        "the second: exit 7 naming host and pid; a dead one's lock is taken",
        "-~-+",
    ),
    63: Case(
        _R,
        "a kill in a row of metrics",
        "the half row is passed over; going on leaves no gap and no double",
        "--.?",
    ),
    64: Case(
        _R, "old checkpoints are removed", "never the newest that is whole, nor the best", "...~"
    ),
    65: Case(_R, "the normaliser after training", "used, and never moved", "~-+~"),
    66: Case(_S, "SIGTERM, SIGUSR1", "saved, exit 143 with the command to go on", "---~"),
    67: Case(
        _S, "SIGINT, once and twice", "saved, exit 130; at once, the last checkpoint stays", "~~~~"
    ),
    68: Case(_S, "the trainer is killed", "its processes are gone within 5 s", "~..~"),
    69: Case(_S, "standard output closes", "no traceback", "????"),
    70: Case(_S, "memory runs out", "exit 8 with sizes and what to make smaller", "~~~~"),
    71: Case(_S, "no room in /dev/shm", "it is not used", "+..~"),
    72: Case(
        _S,
        "a thousand vectors opened and closed",
        "descriptors, threads and processes as before",
        "????",
    ),
    73: Case(_S, "the clock jumps", "limits and rates go on", "????"),
    74: Case(
        _D,
        "a rank is killed",
        "all go on from the last checkpoint, to the bits of a run in peace",
        "???~",
    ),
    75: Case(_D, "the coordinator is killed", "the same", "???~"),
    76: Case(
        _D, "a rank is stuck", "ended within the heartbeat's time, then as when killed", "??-~"
    ),
    77: Case(
        _D,
        "ranks die again and again",
        "after the restarts that are allowed exit 9, with the log of each rank",
        "???+",
    ),
    78: Case(_D, "SIGTERM to one rank", "all save the same step, exit 143", "??-~"),
    79: Case(
        _D,
        "other numbers of devices and processes",
        "the same numbers, to rounding; the same bits for as many devices",
        "----",
    ),
    80: Case(_D, "replicas that differ", "exit 5 at the next chunk, naming the rank", "??~?"),
    81: Case(
        _D,
        "ranks with other settings, code or versions",
        "exit 2 before they compute together",
        "----",
    ),
    82: Case(
        _D,
        "an environment actor is killed",
        "its fragment is collected again under the same policy: the batch is full, none is stale",
        "???~",
    ),
    83: Case(_D, "a fragment of an older policy", "refused and counted", "???~"),
    84: Case(_X, "no network", "runs on one machine need none, and none is tried", "...~"),
    85: Case(_X, "ports", "none is opened", "...-"),
    86: Case(_X, "a run from an address", "refused: only a directory is read", "~-.."),
    87: Case(
        _X, "a run that names code", "nothing is imported; exit 6 with the command to type", "-.+-"
    ),
    88: Case(
        _X, "control characters and secrets", "neither reaches the terminal or the run", "----"
    ),
    89: Case(
        _F,
        "a run whose configuration names a module",
        "exit 6 with how to name it; nothing is imported, whatever the id looks like",
        "????",
    ),
    90: Case(
        _F,
        "a file of the current directory has the name of a library's module",
        "the library is imported, and the file never",
        "????",
    ),
    91: Case(
        _F,
        "a module of the user's that is broken, ends the program, or is named by its path",
        "exit 2 with its file and line, or its name",
        "????",
    ),
    92: Case(
        _F,
        "a file of a run is a link, a pipe, a device, a directory or far too large",
        "exit 6 or passed over, at once; nothing is written through a link",
        "????",
    ),
    93: Case(
        _F,
        "weights of a checkpoint are not finite, though its digests are right",
        "exit 6 naming them; and none is stored",
        "????",
    ),
    94: Case(
        _F,
        "rows, counters and settings of other types, copies beside checkpoints",
        "read past, or exit 2 or 6 in one line",
        "????",
    ),
    95: Case(
        _F,
        "a run directory is replaced, or a forked process writes to it",
        "the run stops with exit 7; nothing lands in another run",
        "????",
    ),
    96: Case(
        _W,
        "an observation or a reward beyond all measure, or a large mean that hardly varies",
        "statistics stay finite and right; nothing not finite is stored",
        "????",
    ),
    97: Case(
        _W,
        "--checkpoint-every below ten episode limits, or no limit known",
        "checkpoints as often as asked; between resets they are not exact",
        "????",
    ),
    98: Case(
        _W,
        "an observation of NaN to a policy, trained or exported",
        "ValueError: no action is guessed",
        "????",
    ),
    99: Case(
        _L,
        "a callback raises, Ctrl-C once or twice, SIGHUP",
        "the last good state is stored; the run is in the exception, a KeyboardInterrupt",
        "????",
    ),
    100: Case(
        _L,
        "a stop in a rollout of minutes, or while a program is compiled",
        "a word at once; the stop acts at the next step, the rollout is dropped",
        "????",
    ),
    101: Case(
        _L,
        "episodes of an evaluation that never end",
        "a budget of steps; what was played counts, and what was cut is said",
        "????",
    ),
    102: Case(
        _L,
        "loading a policy of sixteen slow environments",
        "no environment is made; an evaluation makes as many as it plays",
        "????",
    ),
    103: Case(
        _W,
        "a function returns the same environment at every call",
        "exit 2: no instance is stepped in two places",
        "????",
    ),
    104: Case(
        _W,
        "an action mask that is missing later, or holds no truth values",
        "exit 3 naming the environment, the step and the value",
        "????",
    ),
    105: Case(
        _W,
        "an environment that changes the working directory",
        "everything lands in the run's directory all the same",
        "????",
    ),
    106: Case(
        _F,
        "an MDP's file of other content, spoilt, or of claims that no memory holds",
        "exit 2 in one line",
        "????",
    ),
    107: Case(
        _W,
        "arrays of two or three axes that are no images, and images of bytes",
        "vectors, normalised, unless uint8 or --images all; bytes are scaled to [0, 1]",
        "????",
    ),
    108: Case(
        _W,
        "float64 or whole numbers that vary by less than float32 resolves, such as 1e8 ± 1",
        "one warning that names the part of the observation, and what to do",
        "????",
    ),
    109: Case(
        _W,
        "a JAX-native environment breaks its contract",
        "exit 3 before the first update: what, found, expected",
        "????",
    ),
    110: Case(
        _W,
        "an environment draws from `random` or `numpy.random` themselves",
        "the same run for the same seed; the caller's generators stay as they were",
        "????",
    ),
    111: Case(
        _W,
        "a wrapper in the environment normalises rewards or observations",
        "one warning that names it, the setting that does the same, and what differs",
        "????",
    ),
    112: Case(
        _W,
        "an environment ends its process, whatever the exit code",
        "in another process exit 4; in this one nothing reads the run as finished",
        "????",
    ),
    113: Case(
        _L,
        "an instance that the user gave, in training, evaluation and after them",
        "it stays open, with its changes; copies have them too, or exit 2 asks for a function",
        "????",
    ),
    114: Case(
        _L,
        "a simulator of which there can be one (--max-envs 1)",
        "training, evaluation, resume and probe take turns with it",
        "????",
    ),
    115: Case(
        _L,
        "a constructor, reset, step or close that never returns, or a process left behind",
        "exit 4 after env_timeout_s, in another process also where it keeps Python's lock; what "
        "it has started ends with it",
        "????",
    ),
    116: Case(
        _W,
        "a kill, and going on from an older checkpoint, with TensorBoard or Weights & Biases",
        "every step stands once",
        "????",
    ),
    117: Case(
        _W,
        "going on with other settings that --override names",
        "each is what trains, or exit 2 where the state already holds its effect; what was done "
        "before is probed, played and reported with the settings of its time",
        "????",
    ),
    118: Case(
        _L,
        "SIGINT, SIGTERM or SIGHUP while anything is imported, opened, compiled or evaluated",
        "a line at once, exit 130 or 143",
        "????",
    ),
    119: Case(
        _E,
        "an exception that is no Exception (GeneratorExit, CancelledError, one's own)",
        "ENV-CRASH with its place, exit 4",
        "????",
    ),
    120: Case(
        _E,
        "infos with numbers that no float holds, objects, keys that are no strings",
        "passed over: only scalars are read",
        "????",
    ),
    121: Case(
        _E,
        "a space that is None; a function that makes a vector environment",
        "named before the first step",
        "????",
    ),
    122: Case(
        _E,
        "a vector that takes one seed, or whose ends have another shape or lack final_obs",
        "seeded as it takes it; named",
        "????",
    ),
    123: Case(
        _C,
        "arguments that an environment does not take, or lacks",
        "exit 2 with their names, before anything is made",
        "????",
    ),
    124: Case(
        _C,
        "an environment variable that JAX or Matplotlib refuses",
        "exit 2 with its name",
        "????",
    ),
    125: Case(
        _C,
        "JAX's settings for debugging (JAX_DEBUG_NANS, strict promotion, no jit)",
        "do not apply inside; a warning",
        "????",
    ),
    126: Case(
        _F,
        "an exported policy of other content, or not finite",
        "ValueError with the file's name",
        "????",
    ),
    127: Case(
        _F,
        "a run that claims sizes beyond any use: a thousand million environments, 3,000 layers",
        "exit 2 at once, with the field's name",
        "????",
    ),
    128: Case(
        _D,
        "Ray's raylet or GCS is killed or hangs, or an actor keeps Python's lock",
        "exit 9 after 20 s, after env_timeout_s an actor's; the last state is stored, a complete "
        "run is complete, no process of that Ray stays",
        "????",
    ),
    129: Case(
        _W,
        "each of several environments records videos under the same name",
        "each writes files of its own, evaluations too",
        "????",
    ),
    130: Case(
        _C,
        "own networks of other outputs, or with parameters in less than float32",
        "named before anything is learned; outputs in less are computed with in float32",
        "????",
    ),
    131: Case(
        _C,
        "a directory that is no path, environment arguments that are no dictionary",
        "named in one line",
        "????",
    ),
}


def case(number: int):
    """Marks the test of a case."""
    assert number in CASES
    return pytest.mark.case(number)


def names_by_case() -> dict[int, set[str]]:
    """Names of the test functions that are marked with each case: the fast ones, if there are."""
    fast: dict[int, set[str]] = {}
    slow: dict[int, set[str]] = {}
    for path in Path(__file__).parents[1].glob("**/test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            marks = getattr(node, "decorator_list", ())
            found = slow if any(ast.unparse(mark)[-9:] == "mark.slow" for mark in marks) else fast
            for mark in marks:
                if isinstance(mark, ast.Call) and getattr(mark.func, "id", "") == "case":
                    found.setdefault(mark.args[0].value, set()).add(node.name)
    return slow | fast


def pytest_collection_modifyitems(items):
    """As a plugin (`-p cases`): notes each test's cases in the XML of its results."""
    for item in items:
        for mark in item.iter_markers("case"):
            item.user_properties.append(("case", mark.args[0]))
