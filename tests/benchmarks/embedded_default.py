"""The embedded default for several seeds: time, memory and the judge's win rates.

    python tests/benchmarks/embedded_default.py --seeds 3 --out FOLDER

The first run prepares the small world in a fresh cache, the others reuse it. Prints a table and one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def run_default(seed: int, folder: Path) -> dict[str, Any]:
    """Run the default as a user would, and return what the benchmark shows of it."""
    command = [sys.executable, "-m", "llm.align", "--seed", str(seed), "--out", str(folder / f"seed-{seed}")]
    started = time.monotonic()
    subprocess.run(command, env=os.environ | {"BRAIN_CACHE": str(folder / "cache")}, check=True)
    seconds = time.monotonic() - started
    summary = json.loads((folder / f"seed-{seed}" / "summary.json").read_text())
    rates = {when: summary[when]["judge_win_rate"] for when in ("before", "after")}
    gigabytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return {"seed": seed, "seconds": round(seconds, 1), "peak_gib": round(gigabytes, 2), **rates}


def holds(row: dict[str, Any], limit: float) -> bool:
    """Whether a run kept the promise: 25 points more, over 70 %, intervals apart, within the time."""
    before, after = row["before"], row["after"]
    rise = after["estimate"] - before["estimate"]
    return rise >= 0.25 and after["estimate"] > 0.7 and after["low"] > before["high"] and row["seconds"] < limit


def main() -> None:
    """Run the seeds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = []
    for seed in range(options.seeds):
        row = run_default(seed, options.out)
        rows.append(row | {"holds": holds(row, 360 if seed == 0 else 180)})
    print(f"\n{'seed':<6}{'seconds':<10}{'peak GiB':<10}{'judge before':<24}{'judge after':<24}holds")
    for row in rows:
        rates = ("{estimate:.1%} [{low:.1%}, {high:.1%}]".format(**row[when]) for when in ("before", "after"))
        print(
            "{seed:<6}{seconds:<10}{peak_gib:<10}".format(**row)
            + "".join(f"{r:<24}" for r in rates)
            + str(row["holds"])
        )
    print(json.dumps({"cores": os.cpu_count(), "rows": rows}))


if __name__ == "__main__":
    main()
