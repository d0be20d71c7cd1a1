"""`surefoot export`: a policy for machines that have NumPy alone."""

import argparse

from surefoot.cli.commands.common import emit


def export_command(options: argparse.Namespace) -> int:
    """Write a run's policy to one file."""
    from surefoot.cli.progress import say
    from surefoot.exporting.export import COMPARED, export
    from surefoot.training.run import load

    run = load(options.path, env=options.env, best=options.best)
    made = export(run, options.file)
    size = sum(leaf.size for leaf in made.arrays.values())
    if options.json:
        told = {"file": str(options.file), "numbers": size, "compared": COMPARED}
        emit({"event": "exported", **told})
    else:
        say(f"{options.file}: {size:,} numbers; {COMPARED:,} actions are those of the run")
        say("play it with NumPy alone: surefoot/exported.py beside it, and load(file)(observation)")
    return 0
