"""What was measured, as Markdown: `python -m benchmarks.markdown FILE.json ...` prints docs/performance.md's tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.tables import cells, headings, remarks


def tables(content: dict[str, Any]) -> str:
    """All tables of one run of the benchmarks, under what they were measured on."""
    hardware, versions = content["hardware"], content["versions"]
    gpus = ", ".join(hardware["gpus"]) or "no GPU"
    machine = f"{hardware['processor']}, {hardware['cores']} cores, {gpus}; {content['threads']} threads"
    made = f"torch {versions['torch']}, lpmbench {versions['robustbench-lpm']}; rounds: {content['rounds']}"
    groups = content["groups"].values()
    return "\n\n".join([f"*{machine}; {made}.*", *(_table(table) for group in groups for table in group["tables"])])


def _table(table: dict[str, Any]) -> str:
    named = headings(table)
    lines = [f"**{table['title']}**", "", _line(named), _line(["---"] * 2 + ["---:"] * (len(named) - 2))]
    lines += [_line(cells(table, row)) for row in table["rows"]]
    return "\n".join([*lines, *(f"\n{remark}" for remark in remarks(table))])


def _line(words: list[str]) -> str:
    return f"| {' | '.join(words)} |"


if __name__ == "__main__":
    print("\n\n".join(tables(json.loads(Path(path).read_text())) for path in sys.argv[1:]))
