"""The command `export`."""

import argparse

from surefoot.cli.commands.common import emit


def export_command(options: argparse.Namespace) -> int:
    """Export a run's policy to one file."""
    from surefoot.cli.progress import say
    from surefoot.exporting.export import COMPARED, export
    from surefoot.training.run import load

    run = load(options.path, env=options.env, best=options.best)
    made = export(run, options.file)
    size = sum(leaf.size for leaf in made.arrays.values())
    if options.json:
        record = {"file": str(options.file), "numbers": size, "compared": COMPARED}
        emit({"event": "exported", **record})
    else:
        say(f"{options.file}: {size:,} numbers; {COMPARED:,} actions equal the run's")
        say(
            "play it with NumPy alone: copy surefoot/exporting/numpy_policy.py, then "
            "NumpyPolicy.load(file)(observation)"
        )
    return 0
