"""Writes `docs/metrics.md` from the table in `surefoot.diagnostics.catalogue`.

Run: python docs/write_metrics.py
"""

from pathlib import Path

from surefoot.diagnostics.catalogue import METRICS

HEAD = """# Metrics

Every figure that a run logs, one row an iteration, for every rule alike. `surefoot explain NAME`
says the same on the command line. Figures of an update are taken on the batch it learned from,
after the update. Written by `docs/write_metrics.py`.
"""


def page() -> str:
    """The page's text."""
    lines = [HEAD]
    for group in dict.fromkeys(name.partition("/")[0] for name in METRICS if "/" in name):
        lines.append(
            f"## {group}\n\n| metric | unit | what | healthy | if not |\n|---|---|---|---|---|"
        )
        for name, metric in METRICS.items():
            if name.startswith(group + "/"):
                cells = (f"`{name}`", *metric)
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    Path(__file__).with_name("metrics.md").write_text(page(), encoding="utf-8")
