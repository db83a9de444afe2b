"""Rows to what people read, and to JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

import rich.table

from benchmarks.driver import Row


@dataclass
class Table:
    """Rows under a title.

    unit: what a rate counts, "images" or "evaluations" (facts of a row); None for no rate.
    images: how many there are where the rows do not say.
    ratio: "speed" is how many times faster than the fastest peer (or than the row's `against`); "time" how many times
        longer than that.
    numbers: what else was derived, for the JSON. columns: facts that are shown, with their headings.
        timed: whether seconds mean anything here.
    """

    title: str
    unit: str | None
    rows: list[Row]
    images: int | None = None
    ratio: Literal["speed", "time"] = "speed"
    notes: list[str] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    timed: bool = True

    def rate(self, row: Row) -> float | None:
        """Images or evaluations in a second."""
        count = row.facts.get(self.unit or "", self.images)
        return count / row.median_seconds if count and row.median_seconds else None

    def ratio_of(self, row: Row, *, tuned: bool = False) -> float | None:
        """Against the fastest peer as it comes (with `tuned`, of all peers in their own memory), or against a row."""
        kinds = {"peer", "tuned peer"} if tuned else {"peer"}
        against = row.contestant.against
        rows = [r for r in self.rows if (r.contestant.name == against if against else r.contestant.kind in kinds)]
        rates = [rate for r in rows if (rate := self.rate(r))]
        own = self.rate(row)
        if not rates or own is None:
            return None
        return own / max(rates) if self.ratio == "speed" else max(rates) / own

    @property
    def has_tuned(self) -> bool:
        return any(row.contestant.kind == "tuned peer" for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Everything that is known, every single timing included."""
        rows = []
        for row in self.rows:
            derived = {"median_seconds": row.median_seconds, "rate": self.rate(row), "ratio": self.ratio_of(row)}
            if self.has_tuned:
                derived["ratio_to_tuned_peers"] = self.ratio_of(row, tuned=True)
            rows.append(asdict(row) | derived)
        return {
            "title": self.title,
            "unit": self.unit and f"{self.unit}/s",
            "ratio": self.ratio,
            "timed": self.timed,
            "columns": self.columns,
            "rows": rows,
            "numbers": self.numbers,
            "notes": self.notes,
        }


def to_rich(table: dict[str, Any]) -> rich.table.Table:
    """What is printed of a table's JSON."""
    caption = "\n".join(remarks(table)) or None
    shown = rich.table.Table(title=table["title"], title_justify="left", caption=caption, caption_justify="left")
    for number, heading in enumerate(headings(table)):
        shown.add_column(heading, justify="right" if number > 1 else "left")
    for row in table["rows"]:
        shown.add_row(*cells(table, row))
    return shown


def headings(table: dict[str, Any]) -> list[str]:
    """Of the columns that a table's JSON has something to say in; the first two are names, the others numbers."""
    return ["contestant", "worker", *(heading for heading, _ in _columns(table))]


def cells(table: dict[str, Any], row: dict[str, Any]) -> list[str]:
    """A row under those headings."""
    contestant = row["contestant"]
    return [contestant["name"], contestant["worker"], *(say(row) for _, say in _columns(table))]


def remarks(table: dict[str, Any]) -> list[str]:
    """What stands under a table: its notes, and who was skipped for what reason."""
    skipped = [f"{row['contestant']['name']}: {row['skipped']}" for row in table["rows"] if row["skipped"]]
    return [*table["notes"], *skipped]


def _columns(table: dict[str, Any]) -> list[tuple[str, Callable[[dict[str, Any]], str]]]:
    rows, unit = table["rows"], table["unit"]
    timed = table["timed"] and any(row["seconds"] for row in rows)
    graded = table["timed"] and any("robust_accuracy" in row["facts"] for row in rows)
    found: list[tuple[str, Callable[[dict[str, Any]], str]]] = []
    if timed:
        found += [
            ("seconds", lambda row: shown(row["median_seconds"])),
            (
                "lowest–highest",
                lambda row: "–".join(shown(ask(row["seconds"])) for ask in (min, max) if row["seconds"]),
            ),
        ]
    if unit:
        found.append((unit, lambda row: shown(row["rate"])))
    if graded:
        found += [
            ("evaluations", lambda row: shown(row["facts"].get("evaluations"))),
            ("accuracy left", lambda row: shown(row["facts"].get("robust_accuracy"))),
        ]
    found += [(heading, partial(_fact, name)) for name, heading in table["columns"].items()]
    if unit:
        found.append((f"× {table['ratio']}", lambda row: shown(row["ratio"])))
    if any("ratio_to_tuned_peers" in row for row in rows):
        found.append(("× any setting", lambda row: shown(row["ratio_to_tuned_peers"])))
    return found


def _range(seconds: list[float]) -> str:
    return f"{shown(min(seconds))}–{shown(max(seconds))}" if seconds else ""


def _fact(name: str, row: dict[str, Any]) -> str:
    return shown(row["facts"].get(name))


def shown(value: float | None) -> str:
    """Three digits that count; nothing for what is not known."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
