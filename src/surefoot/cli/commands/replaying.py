"""The command `replay`."""

import argparse

from surefoot.cli.commands.common import emit
from surefoot.errors import ConfigError, printable


def replay_command(options: argparse.Namespace) -> int:
    """Replay the environment error that ended a run."""
    if not options.fault:
        raise ConfigError(
            "replay repeats the environment error that ended a run: surefoot replay RUN --fault"
        )
    from surefoot.cli.progress import say
    from surefoot.training.replay import replay

    show = (lambda text: None) if options.json else say
    error = replay(options.path, env=options.env, show=show)
    if options.debug:
        raise error
    if options.json:
        emit({"event": "replayed", "name": error.name, "message": str(error)})
    else:
        say(f"reproduced: {printable(str(error))}")
        say("--debug shows where; the environment alone, its seed and its actions are enough")
    return 0
