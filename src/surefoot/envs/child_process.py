"""Start Python processes of ours, which leave signals to their parent and run no user's script."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import spawn
from typing import IO

# Not multiprocessing's start, which would run the user's script once more. Ctrl-C and the signals
# that stop a whole job are for the parent to handle, from the first moment on. A handler that does
# nothing ends with an exec; an ignored signal would stay ignored in programs that children run.
_START = """
import signal, sys
for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
    signal.signal(getattr(signal, name), lambda *_: None)
sys.path[:] = sys.argv[{first}:]
from {module} import {function}
{function}()
"""


def start_serving(
    entry: str,
    words: Sequence[str],
    descriptors: Sequence[int],
    *,
    variables: Mapping[str, str] | None = None,
    output: IO[bytes] | None = None,
) -> subprocess.Popen:
    """Start `entry`, as "module:function", with `words` as `sys.argv[1:]` and our `sys.path` after.

    The process has a group of its own and inherits `descriptors`; `output` takes what it prints.
    """
    # Assertions are on, or off, in all processes alike.
    flags = ["-" + "O" * sys.flags.optimize] if sys.flags.optimize else []
    module, _, function = entry.partition(":")
    start = _START.format(module=module, function=function, first=1 + len(words))
    return subprocess.Popen(
        [spawn.get_executable(), *flags, "-c", start, *words, *sys.path],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=variables,
        pass_fds=descriptors,
        # Of its own: the terminal's Ctrl-C goes past it, and what it starts and leaves behind,
        # with our standard output open, can be ended with it.
        process_group=0,
    )
