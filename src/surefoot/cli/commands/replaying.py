"""`surefoot replay`: see a fault of an environment again."""

import argparse

from surefoot.cli.commands.common import emit
from surefoot.errors import ConfigError, printable


def replay_command(options: argparse.Namespace) -> int:
    """Step the environment that ended a run to its fault again."""
    if not options.fault:
        raise ConfigError("replay steps to the fault that ended a run: surefoot replay RUN --fault")
    from surefoot.cli.progress import say
    from surefoot.training.replay import replay

    show = (lambda text: None) if options.json else say
    again = replay(options.path, env=options.env, show=show)
    if options.debug:
        raise again
    if options.json:
        emit({"event": "replayed", "name": again.name, "message": str(again)})
    else:
        say(f"it came again: {printable(str(again))}")
        say("--debug shows where; the environment alone, its seed and its actions are enough")
    return 0
