"""``python -m benchmarks.listing``: ``inv --list`` here against a bare ``inv --list`` of one empty task."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import Contender, hold, rounds, summary, write_results

ROOT = Path(__file__).resolve().parent.parent
BARE, OURS = "one empty task", "inv --list"
AT_MOST = 1.5

_EMPTY = '''from invoke import task


@task
def empty(c):
    """Does nothing."""
'''


def main() -> None:
    """Time both, write the results, hold our ratio to its promise."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.listing", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    command = [sys.executable, "-m", "invoke", "--list"]
    with tempfile.TemporaryDirectory(prefix="benchmark-") as directory:
        (Path(directory) / "tasks.py").write_text(_EMPTY)
        contenders = [
            Contender(BARE, lambda: (command, Path(directory), {})),
            Contender(OURS, lambda: (command, ROOT, {})),
        ]
        rows = summary(rounds(contenders, args.rounds), BARE)
    for row in rows:
        print(f"{row['name']:<24} {row['seconds']:7.3f} s  {row['ratio']:5.2f}")
    write_results("listing", {"rounds": args.rounds, "promise": AT_MOST, "rows": rows})
    hold(rows, OURS, AT_MOST)


if __name__ == "__main__":
    main()
