"""What was measured, as Markdown: `python -m benchmarks.markdown FILE.json ...` prints docs/performance.md's tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def tables(content: dict[str, Any]) -> str:
    """All tables of one run of the benchmarks, under what they were measured on."""
    hardware, versions = content["hardware"], content["versions"]
    gpus = ", ".join(hardware["gpus"]) or "no GPU"
    machine = f"{hardware['processor']}, {hardware['cores']} cores, {gpus}; {content['threads']} threads"
    made = f"torch {versions['torch']}, lpmbench {versions['robustbench-lpm']}; medians of {content['rounds']} rounds"
    parts = [f"*{machine}; {made}.*"]
    for group in content["groups"].values():
        parts += [_table(table) for table in group["tables"]]
    return "\n\n".join(parts)


def _table(table: dict[str, Any]) -> str:
    rows = [row for row in table["rows"] if row["skipped"] is None]
    known = {name for row in rows for name in row["facts"]}
    columns = table["columns"]
    timed = table["timed"]
    headings = [
        "", *(["seconds", "range"] if timed else []), *([table["unit"]] if table["unit"] else []),
        *(["evaluations"] if "evaluations" in known and timed else []),
        *(["accuracy left"] if "robust_accuracy" in known and timed else []),
        *columns.values(), *([f"× {table['ratio']}"] if table["unit"] else []),
    ]  # fmt: skip
    lines = [f"**{table['title']}**", "", _line(headings), _line(["---"] + ["---:"] * (len(headings) - 1))]
    for row in rows:
        facts = row["facts"]
        cells = [row["contestant"]["name"]]
        if timed:
            cells += [_shown(row["median_seconds"]), f"{_shown(min(row['seconds']))}–{_shown(max(row['seconds']))}"]
        if table["unit"]:
            cells.append(_shown(row["rate"]))
        if "evaluations" in known and timed:
            cells.append(str(int(facts.get("evaluations", 0)) or ""))
        if "robust_accuracy" in known and timed:
            cells.append(_percent(facts.get("robust_accuracy")))
        cells += [_shown(facts.get(name)) for name in columns]
        if table["unit"]:
            cells.append("" if row["ratio"] is None else f"{row['ratio']:.2f}")
        lines.append(_line(cells))
    notes = [
        *table["notes"],
        *(f"{row['contestant']['name']}: {row['skipped']}" for row in table["rows"] if row["skipped"]),
    ]
    return "\n".join([*lines, *(f"\n{note}" for note in notes)])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _shown(value: float | None) -> str:
    """Three digits that count."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


if __name__ == "__main__":
    print("\n\n".join(tables(json.loads(Path(path).read_text())) for path in sys.argv[1:]))
