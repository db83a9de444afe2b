"""The leaderboard as one self-contained HTML file without network requests.

Whatever comes from a card or record passes through jinja2's autoescape; the page's Content-Security-Policy
allows only the script and the style sheet that are hashed here, and no requests. Without scripts everything except the
comparison of classifiers can be read.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from robustbench_lpm.budgets import format_eps
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.protocol import ranking
from robustbench_lpm.protocol.ranking import Row, as_rows
from robustbench_lpm.records.audits import Audit, Check
from robustbench_lpm.records.runs import RunRecord
from robustbench_lpm.registry.cards import FOLDERS
from robustbench_lpm.reporting import cells, pictures, tables
from robustbench_lpm.reporting.cells import plain
from robustbench_lpm.reporting.comparisons import Agreement, Comparison, Pair
from robustbench_lpm.reporting.plots import WORST, Figure
from robustbench_lpm.reporting.scanpaths import Gaze

if TYPE_CHECKING:
    import pandas as pd

TEMPLATES = Path(__file__).parent / "templates"
COSTS = ("forwards", "backwards", "glimpses")
GALLERY_EXAMPLES = 48  # of three pictures each; models take turns: enough for each in results/
# The filters of the table of runs: the column of `tables.table`, its name, and how its values are written.
FILTERS: tuple[tuple[str, str, Any], ...] = (
    ("dataset", "Data set", str),
    ("size", "Size", cells.size),
    ("norm", "Norm", cells.norm),
    ("eps_text", "eps", str),
    ("mc", "M", str),
    ("model", "Model", str),
    ("attack", "Attack", str),
    ("knowledge", "Knowledge", lambda name: "none (control)" if name == ranking.CONTROL else name),
    ("verdict", "Audit", cells.verdict),
)
# For each verdict its mark, the class of its badge, and its sort key: failures first, not audited last.
BADGES = {"fail": ("✕ ", "bad", "0"), "undecided": ("? ", "open", "1"), "pass": ("✓ ", "good", "2")}
EXPORT = re.compile(r"export\s*\{([^{}]*)\}\s*;?")
# Text that would end, or nest, the script element of the bundle; it occurs in strings and patterns only.
UNSAFE = re.compile(r"<(?=!--|/?script)", re.IGNORECASE)


def to_html(
    records: Sequence[RunRecord],
    runs: pd.DataFrame,
    ranked: pd.DataFrame,
    audits: Mapping[str, Audit],
    figures: Sequence[Figure] = (),
    comparisons: Sequence[Comparison] = (),
    agreements: Sequence[Agreement] = (),
    gazes: Mapping[tuple[str, int], Gaze] | None = None,
) -> str:
    """The page, for records in the order of `tables.in_order` and what was made from them."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    script = data_tables() + (TEMPLATES / "leaderboard.js").read_text(encoding="utf-8")
    style = (TEMPLATES / "leaderboard.css").read_text(encoding="utf-8")
    drawings = [(figure.attack == WORST, Markup(figure.inline)) for figure in figures]
    return environment.get_template("leaderboard.html.jinja").render(
        cells=cells,
        rate=_rate,
        verdict=_verdict,
        anchor=anchor,
        model_name=ranking.model_name,
        attack_name=ranking.attack_name,
        style=Markup(style),
        style_sha256=_digest(style),
        script=Markup(script),
        script_sha256=_digest(script),
        summary=_summary(runs),
        probes=bool(runs["probe"].any()),
        sections=_sections(ranked),
        main_figures=[drawing for main, drawing in drawings if main],
        other_figures=[drawing for main, drawing in drawings if not main],
        comparisons=_comparison_data(comparisons),
        agreements=agreements,
        filters=_filters(runs),
        runs=_rows(records, runs, audits),
        gallery=[
            _tile(record, example, (gazes or {}).get((record.id, example.picture.index)))
            for record, example in pictures.gallery(records, runs, GALLERY_EXAMPLES)
        ],
    )


@cache
def data_tables() -> str:
    """JavaScript that defines `DataTable`, licence notices included; about 620 kB.

    The package itables carries jQuery and DataTables (both MIT) as one JavaScript module, from which a page of one file
    cannot import. Raises LpmbenchError if the installed itables has another layout.
    """
    bundle = files("itables").joinpath("html", "dt_bundle.js")
    return as_script(bundle.read_text(encoding="utf-8") if bundle.is_file() else "")


def as_script(module: str) -> str:
    """A JavaScript module as a script that defines `DataTable`, its default export."""
    exports = EXPORT.findall(module)
    default = re.findall(r"(?:^|,)\s*([\w$]+)\s+as\s+default\s*(?=,|$)", exports[0]) if len(exports) == 1 else []
    if len(default) != 1:
        raise LpmbenchError("The installed itables holds no DataTables that the page can use; install itables 2.9.")
    body = UNSAFE.sub(r"\\x3c", EXPORT.sub("", module))
    return f'const DataTable = (() => {{ "use strict";\n{body}\nreturn {default[0]}; }})();\n'


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
    """The data for the script's comparisons, as JSON that is safe inside a script element."""
    content = [
        {
            "budget": comparison.budget,
            "notes": {classifier["name"]: classifier["notes"] for classifier in comparison.classifiers},
            "attacks": comparison.attacks,
            "pairs": [_pair_data(pair) for pair in comparison.pairs],
        }
        for comparison in comparisons
    ]
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _rate(row: Row, name: str) -> dict[str, Any]:
    """A share with its interval, as text and for drawing; raw, in full precision, for sorting."""
    numbers = (row[name + end] for end in ("", "_low", "_high"))
    value, low, high = (None if cells.missing(number) else float(number) for number in numbers)
    raw = "" if value is None else repr(value)
    return {"value": value, "low": low, "high": high, "raw": raw, "text": cells.percent(value),
            "interval": cells.interval(low, high)}  # fmt: skip


def _verdict(name: str) -> dict[str, str]:
    """The verdict of an audit or a check, as a badge and for sorting."""
    mark, style, raw = BADGES.get(name, ("", "muted", ""))
    return {"name": name, "text": f"{mark}{cells.verdict(name)}", "style": style, "raw": raw}


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


def _sections(ranked: pd.DataFrame) -> list[tuple[str, list[list[Row]]]]:
    """Title and rankings of each data set, size, norm and M: those audited and those of most images first."""
    found: dict[str, list[list[Row]]] = {}
    parts = ranking.split(ranked)
    for part in sorted(parts, key=lambda rows: (not any(row["verdict"] for row in rows), -rows[0]["images"])):
        row = part[0]
        title = f"{row['dataset']} · {cells.size(row['size'])} · {cells.norm(row['norm'])} · M = {row['mc']}"
        found.setdefault(title, []).append(part)
    return list(found.items())


def _rows(records: Sequence[RunRecord], runs: pd.DataFrame, audits: Mapping[str, Audit]) -> list[Row]:
    """The table of runs with the details behind each row; `anchor` is what a leaderboard cell links to."""
    rows, first = as_rows(runs), dict[str, Row]()
    for record, row in zip(records, rows, strict=True):
        row["anchor"] = anchor(record.id) + ("-again" if record.id in first else "")
        first.setdefault(record.id, row)
        row["details"] = [(name, plain(text), code) for name, text, code in _details(record, row) if text]
        row["record_notes"] = [plain(note) for note in record.notes]
        row["failures"] = [_failure(failure) for failure in record.failures]
        row["attempts"] = _attempts(record)
    for row in rows:
        audit = audits.get(row["record"])
        row["findings"] = [_finding(check, row["record"], first) for check in audit.checks] if audit else []
        row["audit_command"] = plain(audit.command) if audit else ""
        # For a probe, the rows of the runs whose audit used it.
        judged = sorted(name for name, by in audits.items() if any(row["record"] in c.records for c in by.checks))
        row["serves"] = [first[name] for name in judged if name in first] if row["probe"] else []
    return rows


def _finding(check: Check, judged: str, known: Mapping[str, Row]) -> dict[str, Any]:
    """One check of an audit for the page; runs: (anchor, short id) of others, with no anchor if they are not in it."""
    numbers = dict(zip(("judged", "reference", "difference"), cells.evidence(check), strict=False))
    return numbers | {
        "name": plain(check.name),
        "question": plain(check.question),
        "verdict": _verdict(check.verdict),
        "images": cells.count(check.images) if check.images else cells.MISSING,
        "against": plain(check.against),
        "note": plain(check.note),
        "runs": [(anchor(r) if r in known else "", plain(r)[:8]) for r in check.records if r != judged],
    }


def _attempts(record: RunRecord) -> dict[str, Any] | None:
    """Accuracy after 1, 2, ... K attempts on a stochastic model: the points of a curve 100 x 100, and some in words."""
    if not record.stochastic or len(record.outcomes) == 0 or record.predictions.shape[1] < 2:
        return None
    shares = record.robust_attempts
    last = len(shares)
    points = [f"{100 * k / (last - 1):.1f},{100 - 100 * share:.1f}" for k, share in enumerate(shares)]
    told = [f"{k}: {100 * shares[k - 1]:.1f} %" for k in sorted({1, 2, 5, 10, last}) if k <= last]
    return {"points": " ".join(points), "told": ", ".join(told), "last": last}


def anchor(record_id: str) -> str:
    """The id of a run's row in the page."""
    return f"run-{record_id[:16]}"


def _details(record: RunRecord, row: Row) -> list[tuple[str, str, bool]]:
    """Name and text of each line of a run's details, and whether it is set as code."""
    configuration, model = record.configuration, record.configuration["model"]
    dataset, evaluation, hardware = configuration["dataset"], configuration["evaluation"], record.timing.get("hardware")
    model_card, attack_card = tables.model_card(record), tables.attack_card(record)
    draws = f"seed {evaluation['seed']}, K = {row['draws']} grading draws, M = {row['mc']} averaged"
    chosen = "Strongest attack" if row["members"] else "Strongest gradient mode"
    target = row["target"]  # a class, or how one was chosen
    return [
        ("Reproduce", row["command"], True),
        ("Record", row["record"], True),
        ("Folder", record.folder_name, True),
        ("Model", f"{model['name']}: {model['entry']}, {_settings(model.get('parameters', {}))}".rstrip(", "), False),
        ("Model card", f"{FOLDERS['model']}/{model_card.name}.toml" if model_card else "", True),
        ("Checkpoint sha256", str(model.get("weights_sha256") or "no weights"), True),
        ("Attack card", f"{FOLDERS['attack']}/{attack_card.name}.toml" if attack_card else "", True),
        ("Data sha256", str(dataset.get("data_sha256", "")), True),
        ("Images", f"{row['images']} of {len(dataset['indices'])}, image set {row['image_set']}", False),
        ("Seed and draws", draws, False),
        ("Gradient mode", row["gradient_mode"], False),
        (chosen, f"{row['chosen']} (images)" if record.choices else "", False),
        ("Noise control", ranking.noise_text(record), False),
        ("Target", pictures.class_name(int(target), record.class_names) if target.isdecimal() else target, False),
        ("Attack settings", _settings(configuration["attack"]["parameters"]), False),
        ("Mean cost per image", ", ".join(f"{cells.count(row[name])} {name}" for name in COSTS), False),
        ("Executed on", _settings(record.execution), False),
        ("Hardware", _settings(hardware) if isinstance(hardware, dict) else "", False),
        ("Versions", ", ".join(f"{name} {version}" for name, version in sorted(record.versions.items())), False),
    ]


def _settings(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in sorted(values.items()))


def _failure(failure: Mapping[str, Any]) -> str:
    """One failed block in one line: its examples, and everything else recorded about it."""
    indices = failure.get("indices", [])
    shown = ", ".join(map(str, indices[:8])) + (", …" if len(indices) > 8 else "")
    reason = _settings({key: value for key, value in failure.items() if key != "indices"})
    return plain(f"{len(indices)} example(s), index {shown}: {reason}")


def _tile(record: RunRecord, example: pictures.Example, gaze: Gaze | None) -> dict[str, Any]:
    picture, names = example.picture, record.class_names
    both, (factor, amplified) = (example.clean, example.attacked), example.amplified
    truth = pictures.class_name(example.label, names)
    budget = f"{cells.norm(record.threat)} eps {format_eps(record.eps)}"
    said = [f"predicted {pictures.named(prediction, names)}" for prediction in both]
    panels = (
        ("original", picture.clean, said[0], gaze and gaze.clean),
        (f"perturbation × {factor}", amplified, "", None),
        ("adversarial", picture.adversarial, said[1], gaze and gaze.adversarial),
    )
    return {
        "model": plain(record.model),
        "attack": plain(record.attack),
        "turn": " → ".join(pictures.class_name(label, names) for label, *_ in both),
        "where": f"{plain(record.dataset)} image {picture.index}, true class {truth}",
        "budget": budget if record.mc == 1 else f"{budget}, M = {record.mc}",
        "misclassified": example.misclassified,
        "anchor": anchor(record.id),
        "pixelated": max(picture.clean.shape[1:]) <= pictures.THUMBNAIL,
        "draw": gaze.draw + 1 if gaze else None,
        "panels": [(title, pictures.data_uri(image), caption, path) for title, image, caption, path in panels],
    }
