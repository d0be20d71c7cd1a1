"""The pictures of docs/lens.md, from a run's report: `python docs/write_lens_pictures.py RUN`.

The run was `surefoot train Hopper-v5 trpo --seed 0 --eval-every 50000 --lens-every 10`.
"""

import base64
import re
import sys
from pathlib import Path

from surefoot.analysis.report import report

PICTURES = {"promise": "gains", "lies": "lies", "distance": "kl", "critic": "critic"}

if __name__ == "__main__":
    page = report(Path(sys.argv[1])).page
    for section, name in PICTURES.items():
        found = re.search(
            rf"<section id='{section}'>.*?<img [^>]*src=[\"']data:image/svg\+xml;base64,([^\"']+)",
            page,
            re.DOTALL,
        )
        assert found, section
        file = Path(__file__).parent / "pictures" / f"lens-{name}.svg"
        file.write_bytes(base64.b64decode(found[1]))
        print(file)
