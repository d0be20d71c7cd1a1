"""How a side answers: a line of JSON for its start, and one for each round it is asked for."""

import json
import sys
import time
from collections.abc import Callable
from typing import Any


def serve(start: Callable[[dict[str, Any]], Callable[[], int]]) -> None:
    """Answer the rounds that are asked for on standard input.

    Args:
        start: given the duel, gets everything ready (compilation and one first round included) and
            returns the function of a round, which returns how many environment steps it made.
    """
    duel, out = json.loads(sys.argv[1]), sys.stdout
    sys.stdout = sys.stderr
    began = time.perf_counter()
    play = start(duel)
    _say(out, {"ready_s": time.perf_counter() - began})
    for _ in sys.stdin:
        began = time.perf_counter()
        steps = play()
        _say(out, {"steps": steps, "seconds": time.perf_counter() - began})


def _say(out: Any, what: dict[str, Any]) -> None:
    out.write(json.dumps(what) + "\n")
    out.flush()
