"""Rows to what people read, and to JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
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

    def to_rich(self) -> rich.table.Table:
        """What is printed."""
        skipped = [f"{row.contestant.name}: {row.skipped}" for row in self.rows if row.skipped]
        caption = "\n".join([*self.notes, *skipped]) or None
        table = rich.table.Table(title=self.title, title_justify="left", caption=caption, caption_justify="left")
        timed = self.timed and any(row.seconds for row in self.rows)
        accurate = any("robust_accuracy" in row.facts for row in self.rows)
        table.add_column("contestant")
        table.add_column("worker")
        headings = [
            *(["seconds", "lowest–highest"] if timed else []),
            *([f"{self.unit}/s"] if self.unit else []),
            *(["evaluations"] if accurate else []),
            *(["accuracy left"] if accurate else []),
            *self.columns.values(),
            *(["× speed" if self.ratio == "speed" else "× time"] if self.unit else []),
            *(["× any setting"] if self.has_tuned else []),
        ]
        for heading in headings:
            table.add_column(heading, justify="right")
        for row in self.rows:
            table.add_row(row.contestant.name, row.contestant.worker, *self._cells(row, timed, accurate))
        return table

    def _cells(self, row: Row, timed: bool, accurate: bool) -> list[str]:
        facts, low_high = row.facts, (min(row.seconds), max(row.seconds)) if row.seconds else None
        return [
            *([_shown(row.median_seconds, 3), "–".join(_shown(s, 3) for s in low_high or ())] if timed else []),
            *([_shown(self.rate(row), 1)] if self.unit else []),
            *([_shown(facts.get("evaluations"), 0)] if accurate else []),
            *([_shown(facts.get("robust_accuracy"), 3)] if accurate else []),
            *[_shown(facts.get(name), 0 if name.endswith("_mib") else 4) for name in self.columns],
            *([_shown(self.ratio_of(row), 2)] if self.unit else []),
            *([_shown(self.ratio_of(row, tuned=True), 2)] if self.has_tuned else []),
        ]


def _shown(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
