"""The leaderboard as one self-contained HTML file without network requests.

Whatever comes from a card or record passes through jinja2's autoescape, or through JSON and the script's textContent;
the page's Content-Security-Policy allows only the script and the style sheet that are hashed here, and no requests.
Without scripts the sentences, rankings, curves and the table of runs can be read; the details of runs, comparisons and
agreement are drawn by the script from one table of texts, in which each text stands once.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.protocol import ranking
from robustbench_lpm.protocol.ranking import Row, as_rows
from robustbench_lpm.records.audits import Audit, Check
from robustbench_lpm.records.runs import RunRecord
from robustbench_lpm.registry import cards
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
AT_FIRST = 6  # examples that are shown before the rest is unfolded
OWN = "ramlpm"  # the models that the first sentences are about have names that begin so
DATASETS = ("cifar10", "imagenet", "sim2mnist", "digits")  # what the page begins with, in this order; then others
HEADLINES = 4  # datasets that the first sentences are about, at most
# The filters of the table of runs: what they are called, and the text of a row that they choose by.
FILTERS: dict[str, Callable[[Row], str]] = {
    "Ranking": cells.heading,
    "Model": ranking.model_name,
    "Attack": ranking.attack_name,
    "Knowledge": lambda row: "none (control)" if row["knowledge"] == ranking.CONTROL else row["knowledge"],
    "Audit": lambda row: cells.verdict(row["verdict"]),
}
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
    parts = _in_order(ranking.split(ranked))
    rows = _rows(records, runs, ranked, audits)
    tiles = [
        _tile(record, example, (gazes or {}).get((record.id, example.picture.index)))
        for record, example in pictures.gallery(records, runs, GALLERY_EXAMPLES)
    ]
    tiles.sort(key=lambda tile: tile["draw"] is None)  # those with a scanpath first
    # One eps makes a line from the clean accuracy that says no more than the ranking; plots/ has it.
    shown = [figure for figure in figures if figure.attack == WORST and figure.places > 2]
    drawings = {kind: [Markup(f.inline) for f in shown if f.kind == kind] for kind in ("eps", "queries")}
    return environment.get_template("leaderboard.html.jinja").render(
        cells=cells,
        rate=_rate,
        verdict=_verdict,
        anchor=anchor,
        briefly=_briefly,
        model_name=ranking.model_name,
        attack_name=ranking.attack_name,
        style=Markup(style),
        style_sha256=_digest(style),
        script=Markup(script),
        script_sha256=_digest(script),
        summary=_summary(runs),
        headlines=_headlines(parts, audits),
        parts=parts,
        drawings=drawings,
        comparing=bool(comparisons),
        agreeing=bool(agreements),
        filters=_filters(rows, parts),
        runs=rows,
        data=_data(rows, comparisons, agreements, parts),
        first_tiles=tiles[:AT_FIRST],
        other_tiles=tiles[AT_FIRST:],
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


def _in_order(parts: Sequence[list[Row]]) -> list[list[Row]]:
    """The rankings, the main one first: of the first dataset with an audit the audited one of most images. The others
    follow by dataset, audited ones and those of most images first. Where nothing is audited, that of most models is
    the main one."""
    ordered = sorted(parts, key=lambda rows: (_place_of(rows[0]["dataset"]), *_weight(rows)))
    main = next((rows for rows in ordered if _audited(rows)), None)
    main = main or max(ordered, key=len, default=None)
    return ([main] if main else []) + [rows for rows in ordered if rows is not main]


def _place_of(dataset: str) -> tuple[int, str]:
    return (DATASETS.index(dataset) if dataset in DATASETS else len(DATASETS)), dataset


def _weight(rows: Sequence[Row]) -> tuple[Any, ...]:
    return not _audited(rows), rows[0]["mc"], -rows[0]["images"], -len(rows)


def _audited(rows: Sequence[Row]) -> bool:
    return any(row["verdict"] for row in rows)


def _headlines(parts: Sequence[list[Row]], audits: Mapping[str, Audit]) -> list[Row]:
    """For each dataset its RAM-LPM and the best of the other models: rows of the first ranking that has one and
    intervals, with `why` their audits failed."""
    first: dict[str, list[Row]] = {}
    for rows in sorted(parts, key=lambda rows: (not any(row["model"].startswith(OWN) for row in rows), *_weight(rows))):
        measured = [row for row in rows if not cells.missing(row["robust_accuracy"])]
        if measured and not any(cells.missing(row["robust_accuracy_low"]) for row in measured):
            first.setdefault(rows[0]["dataset"], measured)
    found = []
    for dataset in sorted(first, key=_place_of)[:HEADLINES]:
        own = [row for row in first[dataset] if row["model"].startswith(OWN)]
        # Controls are named after the model that they are controls of.
        chosen = sorted(own, key=lambda row: (not row["verdict"], len(model := ranking.model_name(row)), model))[:1]
        chosen += [row for row in first[dataset] if row not in own][:1]
        found += [row | {"why": _reasons(audits.get(row["audited"]))} | _titles(row) for row in chosen]
    return found


def _titles(row: Row) -> dict[str, str]:
    """What the cards of the row's model and dataset call them; "" for what is not registered, or has no title."""
    model, dataset = row["model"], row["dataset"]
    return {
        "model_title": cards.model(model).title if model in cards.names("model") else "",
        "dataset_title": cards.dataset(dataset).title if dataset in cards.names("dataset") else "",
    }


def _reasons(audit: Audit | None) -> list[str]:
    """The questions of an audit that the answer is no to, with the numbers."""
    failed = [check for check in audit.checks if check.verdict == "fail" and check.decides] if audit else []
    told = [(check.question, *cells.evidence(check)[:2]) for check in failed]
    return [plain(f"{question} No: {judged} against {reference}.") for question, judged, reference in told]


def _briefly(row: Row) -> tuple[str, str]:
    """The names of the strongest attacks without their settings, and what is against a rank beside the verdict; of
    several the first, and how many more."""
    attacks = list(dict.fromkeys(re.sub(r" \([^()]*\)", "", row["strongest_attack"]).split(", ")))
    against: list[str] = []
    for note in row["notes"].split("; "):
        head, _, rest = note.partition(": ")
        if head == "audit failed":
            against += rest.split(", ")
        elif head not in ("audit undecided", "not audited, as others here are"):
            against.append(head.removeprefix("audit "))
    return _first_of(attacks) or cells.MISSING, _first_of(against)


def _first_of(names: Sequence[str]) -> str:
    return names[0] + (f" + {len(names) - 1}" if len(names) > 1 else "") if names else ""


def _filters(rows: Sequence[Row], parts: Sequence[list[Row]]) -> list[tuple[str, list[str], str]]:
    """For each choice above the table of runs its name, the texts of its values, two at least, and that which it begins
    with. Notes on each row the places of its values."""
    found = []
    for name, text in FILTERS.items():
        values = list(dict.fromkeys(map(text, rows)))
        if name == "Ranking":
            values = [heading for part in parts if (heading := cells.heading(part[0])) in values]
        elif name != "Audit":
            values.sort()
        if len(values) > 1:
            found.append((name, values, values[0] if name == "Ranking" else ""))
            for row in rows:
                row["choices"].append(values.index(text(row)))
    return found


def _data(
    rows: Sequence[Row], comparisons: Sequence[Comparison], agreements: Sequence[Agreement], parts: Sequence[list[Row]]
) -> Markup:
    """What the script draws, as JSON that is safe inside a script element. Numbers stand for texts, each told once."""
    main = f"{cells.threat(parts[0][0])}, {parts[0][0]['images_text']}" if parts else ""
    texts: dict[str, int] = {}
    content = {
        "runs": _numbered([row["details"] for row in rows], texts),
        "comparisons": _numbered(
            [_comparison_data(found) for found in sorted(comparisons, key=lambda found: found.budget != main)], texts
        ),
        "agreements": _numbered([_agreement_data(found) for found in agreements], texts),
    }
    text = json.dumps({"texts": list(texts), **content}, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _numbered(value: Any, texts: dict[str, int]) -> Any:
    """The same with each text, or number as text, replaced by its place in `texts`; lists and None stay."""
    if value is None:
        return None
    if isinstance(value, list | tuple):
        return [_numbered(entry, texts) for entry in value]
    return texts.setdefault(str(value), len(texts))


def _comparison_data(comparison: Comparison) -> list[Any]:
    """Budget, classifiers with their notes, attacks, pairs; accuracies in per cent, rounded as everywhere."""
    classifiers = [(classifier["name"], classifier["notes"]) for classifier in comparison.classifiers]
    return [comparison.budget, classifiers, comparison.attacks, [_pair_data(pair) for pair in comparison.pairs]]


def _pair_data(pair: Pair) -> list[Any]:
    bounds = None if pair.low is None or pair.high is None else (cells.percent(pair.low), cells.percent(pair.high))
    apart = pair.low is not None and pair.high is not None and (pair.low > 0 or pair.high < 0)
    return [
        pair.attack, pair.first, pair.second, pair.first_attack, pair.second_attack, pair.note, pair.images,
        cells.percent(pair.first_accuracy), cells.percent(pair.second_accuracy), cells.percent(pair.difference), bounds,
        "apart" if apart else "", pair.first_better, pair.second_better,
    ]  # fmt: skip


def _agreement_data(found: Agreement) -> list[Any]:
    """Model, budget, images, and for each attack: name, misclassified, alone, agreement with each in per cent."""
    attacks = zip(found.attacks, found.misclassified, found.alone, found.shares, strict=True)
    told = [(name, wrong, alone, list(map(cells.percent, shares))) for name, wrong, alone, shares in attacks]
    return [found.model, found.budget, found.images, told]


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
    word = cells.verdict(name)
    return {"name": name, "text": f"{mark}{word}", "style": style, "raw": raw, "mark": mark, "word": word}


def _summary(runs: pd.DataFrame) -> str:
    ordinary = runs[~runs["probe"]]
    probes = len(runs) - len(ordinary)
    counts = {
        "run": len(ordinary),
        "model": len(ordinary[["model", "model_variant"]].drop_duplicates()),
        "attack": ordinary["attack"].nunique(),
        "dataset": ordinary["dataset"].nunique(),
    }
    told = ", ".join(f"{count} {noun}{'' if count == 1 else 's'}" for noun, count in counts.items())
    return f"{told}; {probes} more run{'' if probes == 1 else 's'} of audits in probes.csv" if probes else told


def _rows(
    records: Sequence[RunRecord], runs: pd.DataFrame, ranked: pd.DataFrame, audits: Mapping[str, Audit]
) -> list[Row]:
    """The table of runs with the details behind each row; `anchor` is what a leaderboard cell links to.

    Probes are left out, but for those that a number of the ranking is read from.
    """
    named = {record for row in as_rows(ranked) for record in (row["record"], *row["read_from"].split(", "))}
    pairs = [
        (record, row)
        for record, row in zip(records, as_rows(runs), strict=True)
        if not row["probe"] or record.id in named
    ]
    known: dict[str, Row] = {}
    for record, row in pairs:
        row["anchor"] = anchor(record.id) + ("-again" if record.id in known else "")
        row["choices"] = []
        known.setdefault(record.id, row)
    for record, row in pairs:
        audit = audits.get(record.id)
        row["details"] = [
            f"{ranking.model_name(row)} under {ranking.attack_name(row)}, {cells.heading(row)}",
            list(map(plain, record.notes)),
            list(map(_failure, record.failures)),
            list(_verdict(row["verdict"]).values())[1:3] if audit else None,
            [_finding(check, record.id, known) for check in audit.checks] if audit else [],
            _attempts(record),
            [(name, plain(text), "code" if code else "") for name, text, code in _details(record, row, audit) if text],
            # For a probe, the runs whose audit used it.
            [
                (known[name]["anchor"], f"{ranking.model_name(known[name])} under {ranking.attack_name(known[name])}")
                for name, by in sorted(audits.items())
                if row["probe"] and name in known and any(record.id in check.records for check in by.checks)
            ],
        ]
    return [row for _, row in pairs]


def _finding(check: Check, judged: str, known: Mapping[str, Row]) -> list[Any]:
    """One check of an audit for the page, and of each other run its anchor, "" if it is not in the page, and short
    id."""
    numbers = cells.evidence(check)[:3]
    images = cells.count(check.images) if check.images else cells.MISSING
    others = [(anchor(r) if r in known else "", plain(r)[:8]) for r in check.records if r != judged]
    told = [plain(text) for text in (check.name, check.question, check.note)]
    return [*told, *list(_verdict(check.verdict).values())[:3], *numbers, images, plain(check.against), others]


def _attempts(record: RunRecord) -> list[Any] | None:
    """Accuracy after 1, 2, ... K attempts on a stochastic model: some in words, the points of a curve 100 x 100, K."""
    if not record.stochastic or len(record.outcomes) == 0 or record.predictions.shape[1] < 2:
        return None
    shares = record.robust_attempts
    last = len(shares)
    points = [f"{100 * k / (last - 1):.0f},{100 - 100 * share:.0f}" for k, share in enumerate(shares)]
    told = [f"{k}: {100 * shares[k - 1]:.1f} %" for k in sorted({1, 2, 5, 10, last}) if k <= last]
    return [", ".join(told), " ".join(points), last]


def anchor(record_id: str) -> str:
    """The id of a run's row in the page."""
    return f"run-{record_id[:16]}"


def _details(record: RunRecord, row: Row, audit: Audit | None) -> list[tuple[str, str, bool]]:
    """Name and text of each line of a run's details, and whether it is set as code."""
    configuration, model = record.configuration, record.configuration["model"]
    dataset, evaluation, hardware = configuration["dataset"], configuration["evaluation"], record.timing.get("hardware")
    model_card, attack_card = tables.model_card(record), tables.attack_card(record)
    draws = f"seed {evaluation['seed']}, K = {row['draws']} grading draws, M = {row['mc']} averaged"
    chosen = "Strongest attack" if row["members"] else "Strongest gradient mode"
    target = row["target"]  # a class, or how one was chosen
    return [
        ("Audited by", audit.command if audit else "", True),
        ("Reproduce", row["command"], True),
        ("Record", row["record"], True),
        ("Folder", record.folder_name, True),
        ("Model", f"{model['name']}: {model['entry']}, {_settings(model.get('parameters', {}))}".rstrip(", "), False),
        ("Model card", f"{FOLDERS['model']}/{model_card.name}.toml" if model_card else "", True),
        ("Checkpoint sha256", str(model.get("weights_sha256") or "no weights"), True),
        ("Attack card", f"{FOLDERS['attack']}/{attack_card.name}.toml" if attack_card else "", True),
        ("Data sha256", str(dataset.get("data_sha256", "")), True),
        (
            "Images",
            f"{row['images']} of {len(dataset['indices'])}: {row['images_text']}, set {row['image_set']}",
            False,
        ),
        ("Seed and draws", draws, False),
        ("Gradient mode", row["gradient_mode"], False),
        (chosen, f"{row['chosen']} (images)" if record.choices else "", False),
        ("Noise control", ranking.noise_text(record), False),
        ("Target", pictures.class_name(int(target), record.class_names) if target.isdecimal() else target, False),
        ("Knowledge", row["knowledge"], False),
        ("Target hit", "" if cells.missing(row["target_rate"]) else f"{cells.percent(row['target_rate'])} %", False),
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
    budget = f"{cells.norm(record.threat)} eps {cells.eps(record.eps, record.threat)}"
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
