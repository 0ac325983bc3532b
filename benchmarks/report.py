"""``python -m benchmarks.report``: writes the tables of README.md and docs/ from ``benchmarks/results/``.

A table stands between ``<!-- table NAME -->`` and ``<!-- end -->``; with ``--check`` nothing is written, and a table
that is not what the results say ends with exit code 1.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = ("README.md", "docs/benchmarks.md")

_TABLE = re.compile(r"(?<=<!-- table )(\w+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)


def _ratios(result: Mapping[str, Any], heading: str, digits: int) -> str:
    lines = [f"| {heading} | median | ratio | promised |", "|---|---:|---:|---:|"]
    for row in result["rows"]:
        promised = f"≤ {result['promise']}" if row["name"].startswith("inv ") else ""
        lines.append(f"| {row['name']} | {row['seconds']:.{digits}f} s | {row['ratio']:.2f} | {promised} |")
    return "\n".join(lines) + "\n"


TABLES: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "train": lambda result: _ratios(result, "train, evaluate, register", 2),
    "listing": lambda result: _ratios(result, "list the tasks", 3),
}


def rendered(text: str) -> str:
    """``text`` with each table made anew from the results."""

    def table(match: re.Match[str]) -> str:
        name = match.group(1)
        result = json.loads((RESULTS / f"{name}.json").read_bytes())
        return name + match.group(2) + TABLES[name](result)

    return _TABLE.sub(table, text)


def main() -> None:
    """Write, or with ``--check`` compare, every document."""
    stale = []
    for name in DOCUMENTS:
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        if (new := rendered(text)) != text:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(new, encoding="utf-8")
    if "--check" in sys.argv and stale:
        sys.exit(f"not what benchmarks/results says: {', '.join(stale)}; run: python -m benchmarks.report")


if __name__ == "__main__":
    main()
