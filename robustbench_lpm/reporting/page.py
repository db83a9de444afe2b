"""The leaderboard as one HTML file that needs nothing else and asks nothing of the network.

Whatever comes from a card or record passes through jinja2's autoescape; the page's Content-Security-Policy lets no
script run and no style sheet apply but those that are hashed here, and nothing be fetched. Without scripts everything
but the comparison of classifiers is there to be read.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from robustbench_lpm.budgets import format_eps
from robustbench_lpm.records.audits import Audit, Check
from robustbench_lpm.records.runs import RunRecord
from robustbench_lpm.registry.cards import Card, Kind
from robustbench_lpm.reporting import cells, evidence, pictures, provenance, table_library, tables, variants
from robustbench_lpm.reporting.comparisons import Agreement, Comparison, Pair
from robustbench_lpm.reporting.escaping import plain
from robustbench_lpm.reporting.gazes import Gaze
from robustbench_lpm.reporting.plots import WORST, Figure

if TYPE_CHECKING:
    import pandas as pd

TEMPLATES = Path(__file__).parent / "templates"
GALLERY_EXAMPLES = 48  # of three pictures each; models take turns: room for each in results/
# What the table of runs can be filtered by: the column of `tables.table`, its name, and how its values are written.
FILTERS: tuple[tuple[str, str, Any], ...] = (
    ("dataset", "Data set", str),
    ("size", "Size", cells.size),
    ("norm", "Norm", cells.norm),
    ("eps_text", "eps", str),
    ("mc", "M", str),
    ("model", "Model", str),
    ("attack", "Attack", str),
    ("knowledge", "Knowledge", lambda name: "none (control)" if name == tables.CONTROL else name),
    ("verdict", "Audit", cells.verdict),
)
MARKS = {"pass": "✓", "fail": "✕", "undecided": "?"}


@dataclass(frozen=True)
class Rate:
    """A share with its interval, ready to be written and drawn."""

    value: float | None
    low: float | None
    high: float | None

    @property
    def text(self) -> str:
        return cells.percent(self.value)

    @property
    def interval(self) -> str:
        return cells.interval(self.low, self.high)

    @property
    def raw(self) -> str:
        """The share in full precision, for sorting and for programs; empty when there is none."""
        return "" if self.value is None else repr(self.value)


@dataclass(frozen=True)
class Field:
    """One line among a run's details."""

    name: str
    value: str
    code: bool = False


@dataclass(frozen=True)
class Verdict:
    """What an audit came to, ready to be written as a badge and sorted by: failures first, what is not audited last."""

    name: str

    @property
    def text(self) -> str:
        return " ".join(part for part in (MARKS.get(self.name, ""), cells.verdict(self.name)) if part)

    @property
    def raw(self) -> str:
        order = ("fail", "undecided", "pass")
        return str(order.index(self.name)) if self.name in order else ""

    @property
    def style(self) -> str:
        """The class of the badge."""
        return {"pass": "good", "fail": "bad", "undecided": "open"}.get(self.name, "muted")


@dataclass(frozen=True)
class Finding:
    """One check of an audit, ready to be written; `runs` are (anchor, short id) of the other runs compared."""

    name: str
    question: str
    verdict: Verdict
    judged: str
    reference: str
    difference: str
    images: str
    against: str
    note: str
    runs: list[tuple[str, str]]


@dataclass(frozen=True)
class Section:
    """The rankings of one data set, size, norm and M: audited ones first, those of most images before the others."""

    title: str
    parts: list[tables.Ranking]


@dataclass(frozen=True)
class Content:
    """What the page shows beside the two tables."""

    figures: Sequence[Figure] = ()
    comparisons: Sequence[Comparison] = ()
    agreements: Sequence[Agreement] = ()
    gazes: Mapping[tuple[str, int], Gaze] | None = None


def to_html(
    records: Sequence[RunRecord],
    runs: pd.DataFrame,
    ranked: pd.DataFrame,
    audits: Mapping[str, Audit],
    content: Content,
) -> str:
    """The page, for records in the order of `tables.in_order` and what was made from them."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    script = table_library.script() + (TEMPLATES / "leaderboard.js").read_text(encoding="utf-8")
    style = (TEMPLATES / "leaderboard.css").read_text(encoding="utf-8")
    figures = [(figure, Markup(figure.inline)) for figure in content.figures]
    return environment.get_template("leaderboard.html.jinja").render(
        cells=cells,
        rate=_rate,
        verdict=Verdict,
        anchor=anchor,
        style=Markup(style),
        style_sha256=_digest(style),
        script=Markup(script),
        script_sha256=_digest(script),
        summary=_summary(runs),
        probes=bool(runs["probe"].any()),
        sections=_sections(ranked),
        main_figures=[pair for pair in figures if pair[0].attack == WORST],
        other_figures=[pair for pair in figures if pair[0].attack != WORST],
        comparisons=_comparison_data(content.comparisons),
        agreements=content.agreements,
        filters=_filters(runs),
        runs=_rows(records, runs, audits),
        gallery=[
            _tile(record, example, (content.gazes or {}).get((record.id, example.picture.index)))
            for record, example in pictures.gallery(records, runs, GALLERY_EXAMPLES)
        ],
    )


def _digest(text: str) -> str:
    """The sha256 of an inline script or style sheet, as a Content-Security-Policy names it."""
    return b64encode(sha256(text.encode()).digest()).decode()


def _filters(runs: pd.DataFrame) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """For each choice above the table of runs its column, its name, and its values with their text, two at least."""
    found = []
    for column, name, text in FILTERS:
        by = runs.sort_values("eps")[column] if column == "eps_text" else runs[column].sort_values()
        values = list(dict.fromkeys(by))
        if len(values) > 1:
            found.append((column, name, [(str(value), text(value)) for value in values]))
    return found


def _pair_data(pair: Pair) -> dict[str, Any]:
    """A pair for the script: numbers to draw with, and their sizes in per cent as text, rounded as everywhere."""
    numbers = {name: round(value, 6) if isinstance(value, float) else value for name, value in vars(pair).items()}
    shown = ("first_accuracy", "second_accuracy", "difference", "low", "high")
    return numbers | {
        "texts": {name: cells.percent(None if numbers[name] is None else abs(getattr(pair, name))) for name in shown}
    }


def _comparison_data(comparisons: Sequence[Comparison]) -> Markup:
    """What the script compares classifiers with, as JSON that may stand inside a script element."""
    content = [
        {
            "budget": comparison.budget,
            "notes": {classifier.name: classifier.notes for classifier in comparison.classifiers},
            "attacks": comparison.attacks,
            "pairs": [_pair_data(pair) for pair in comparison.pairs],
        }
        for comparison in comparisons
    ]
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _number(value: Any) -> float | None:
    return None if cells.missing(value) else float(value)


def _rate(row: dict[str, Any], name: str) -> Rate:
    return Rate(*(_number(row[name + end]) for end in ("", "_low", "_high")))


def _summary(runs: pd.DataFrame) -> str:
    ordinary = runs[~runs["probe"]]
    probes = len(runs) - len(ordinary)
    counts = {
        "run": len(ordinary),
        **({"probe": probes} if probes else {}),
        "model": len(ordinary[["model", "model_variant"]].drop_duplicates()),
        "attack": ordinary["attack"].nunique(),
        "data set": ordinary["dataset"].nunique(),
    }
    return ", ".join(f"{count} {noun}{'' if count == 1 else 's'}" for noun, count in counts.items())


def _sections(ranked: pd.DataFrame) -> list[Section]:
    found: dict[tuple[str, ...], Section] = {}
    for part in sorted(tables.split(ranked), key=lambda part: (not part.audited, -part.rows[0]["images"])):
        words = part.dataset, cells.size(part.size), cells.norm(part.norm), f"M = {part.mc}"
        found.setdefault(words, Section(" · ".join(words), [])).parts.append(part)
    return list(found.values())


def _rows(records: Sequence[RunRecord], runs: pd.DataFrame, audits: Mapping[str, Audit]) -> list[dict[str, Any]]:
    """The table of runs with the details behind each row; `anchor` is what a leaderboard cell links to."""
    known = {record.id for record in records}
    rows: list[dict[str, Any]] = [{str(k): v for k, v in row.items()} for row in runs.to_dict("records")]
    seen: set[str] = set()
    for record, row in zip(records, rows, strict=True):
        row["anchor"] = anchor(row["record"]) + ("-again" if row["record"] in seen else "")
        seen.add(row["record"])
        row["details"] = _details(record, row)
        row["record_notes"] = [plain(note) for note in record.notes]
        row["failures"] = [_failure(failure) for failure in record.failures]
        row["findings"] = _findings(audits[record.id], known) if record.id in audits else []
        row["audit_command"] = plain(audits[record.id].command) if record.id in audits else ""
    first = {row["record"]: row for row in reversed(rows)}
    for row in rows:
        row["serves"] = _served(row, audits, first)
    return rows


def _findings(audit: Audit, known: set[str]) -> list[Finding]:
    """The checks of an audit, in its order; runs that are not in the page are named without a link to them."""
    return [_finding(check, audit.record, known) for check in audit.checks]


def _finding(check: Check, judged: str, known: set[str]) -> Finding:
    return Finding(
        name=plain(check.name),
        question=plain(check.question),
        verdict=Verdict(check.verdict),
        judged=evidence.number(check, check.judged),
        reference=evidence.number(check, check.reference),
        difference=evidence.difference(check),
        images=cells.count(check.images) if check.images else cells.MISSING,
        against=plain(check.against),
        note=plain(check.note),
        runs=[
            (anchor(record) if record in known else "", plain(record)[:8])
            for record in check.records
            if record != judged  # a row need not lead to itself
        ],
    )


def _served(
    row: dict[str, Any], audits: Mapping[str, Audit], rows: Mapping[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """Of a probe, the rows of the runs whose audit compared them with it."""
    judged = [name for name, audit in audits.items() if any(row["record"] in check.records for check in audit.checks)]
    return [rows[name] for name in sorted(judged) if name in rows] if row["probe"] else []


def anchor(record_id: str) -> str:
    """The id of a run's row in the page."""
    return f"run-{record_id[:16]}"


def _details(record: RunRecord, row: dict[str, Any]) -> list[Field]:
    configuration = record.configuration
    dataset, evaluation = configuration["dataset"], configuration["evaluation"]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(record.versions.items()))
    hardware = record.timing.get("hardware")
    model = configuration["model"]
    fields = [
        Field("Reproduce", row["command"], code=True),
        Field("Record", row["record"], code=True),
        Field("Folder", record.folder_name, code=True),
        Field("Model", f"{model['name']}: {model['entry']}, {_settings(model.get('parameters', {}))}".rstrip(", ")),
        Field("Model card", _place("model", provenance.model_card(record)), code=True),
        Field("Checkpoint sha256", str(model.get("weights_sha256") or "no weights"), code=True),
        Field("Attack card", _place("attack", provenance.attack_card(record)), code=True),
        Field("Data sha256", str(dataset.get("data_sha256", "")), code=True),
        Field("Images", f"{row['images']} of {len(dataset['indices'])}, image set {row['image_set']}"),
        Field(
            "Seed and draws", f"seed {evaluation['seed']}, K = {row['draws']} grading draws, M = {row['mc']} averaged"
        ),
        Field("Gradient mode", row["gradient_mode"]),
        Field("Strongest attack" if row["members"] else "Strongest gradient mode", _chosen(record, row)),
        Field("Noise control", variants.noise_text(variants.noise_modes(record))),
        Field("Target", _target(row["target"], record)),
        Field("Attack settings", _settings(configuration["attack"]["parameters"])),
        Field("Mean cost per image", _cost(row)),
        Field("Executed on", _settings(record.execution)),
        Field("Hardware", _settings(hardware) if isinstance(hardware, dict) else ""),
        Field("Versions", versions),
    ]
    return [Field(f.name, plain(f.value), f.code) for f in fields if f.value]


def _chosen(record: RunRecord, row: dict[str, Any]) -> str:
    """What was chosen for how many images, such as "detached 60, reparameterised 4 (images)"."""
    return f"{row['chosen']} (images)" if record.choices else ""


def _place(kind: Kind, card: Card | None) -> str:
    return provenance.place(kind, card) if card else ""


def _target(target: str, record: RunRecord) -> str:
    """The class that a run aimed at, by its name if there is one."""
    return pictures.class_name(int(target), record.class_names) if target.isdecimal() else target


def _settings(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in sorted(values.items()))


def _cost(row: dict[str, Any]) -> str:
    return ", ".join(f"{cells.count(row[name])} {name}" for name in ("forwards", "backwards", "glimpses"))


def _failure(failure: dict[str, Any]) -> str:
    """One failed block in one line: which examples, and whatever else was recorded of it."""
    indices = failure.get("indices", [])
    reason = _settings({key: value for key, value in failure.items() if key != "indices"})
    return plain(f"{len(indices)} example(s), {_span(indices)}: {reason}")


def _span(indices: Sequence[int]) -> str:
    shown = ", ".join(map(str, indices[:8]))
    return f"index {shown}{', …' if len(indices) > 8 else ''}"


def _tile(record: RunRecord, example: pictures.Example, gaze: Gaze | None) -> dict[str, Any]:
    picture, names = example.picture, record.class_names
    said = [pictures.class_name(prediction.label, names) for prediction in (example.clean, example.attacked)]
    truth = pictures.class_name(example.label, names)
    budget = f"{cells.norm(record.norm)} eps {format_eps(record.eps)}"
    panels = (
        ("original", picture.clean, f"predicted {example.clean.named(names)}", gaze and gaze.clean),
        (f"perturbation × {example.factor}", example.amplified, "", None),
        ("adversarial", picture.adversarial, f"predicted {example.attacked.named(names)}", gaze and gaze.adversarial),
    )
    return {
        "model": plain(record.model),
        "attack": plain(record.attack),
        "turn": " → ".join(said),
        "where": f"{plain(record.dataset)} image {picture.index}, true class {truth}",
        "budget": budget if record.mc == 1 else f"{budget}, M = {record.mc}",
        "fooled": example.fooled,
        "anchor": anchor(record.id),
        "pixelated": max(picture.clean.shape[1:]) <= pictures.THUMBNAIL,
        "draw": gaze.draw + 1 if gaze else None,
        "panels": [(title, pictures.data_uri(image), caption, path) for title, image, caption, path in panels],
    }
