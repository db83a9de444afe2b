"""CSV, Markdown, LaTeX, HTML and the terminal say the same, escape what is hostile, and are the same each time."""

from __future__ import annotations

import csv
import json
import random
import re
import subprocess
import sys
from html.parser import HTMLParser
from io import StringIO

import matplotlib
import pandas as pd
import pytest
from rich.console import Console

from robustbench_lpm import reporting
from robustbench_lpm.budgets import format_eps
from robustbench_lpm.reporting import cells, plots
from tests.reporting.conftest import ORDINARY, check, data_of, make_audit, probed

HOSTILE = [
    "<script>alert(1)</script>",
    '" onmouseover="alert(1)" x="',
    "'><img src=x onerror=alert(1)>",
    "</style></svg><b>bold</b>",
    "]]><!-- -->",
    "{{ 7 * 7 }}{% raw %}",
    "a|b`c`*d*_e_[f](g)",
    "=HYPERLINK(1)",
    "+1", "-1", "@sum",
    "100% & #1 $x_1^2$ ~ {y} \\input{z}",
    "$\\frac",
    "_hidden",
    "[bold]markup[/bold]",
    "\x1b[31mred",
    "two\nlines\tand tab",
    "\u202eevil",
    "\ud800",
    "模型",
    "x" * 100,
]  # fmt: skip


class Page(HTMLParser):
    """What a browser would find in the page: elements, attributes, and the text of each model's cell."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.attributes, self.models, self.svg_texts = [], [], [], []
        self.rows, self.scripts, self._inside = {}, [], None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        self.attributes += attributes
        found = dict(attributes)
        if tag == "tr" and found.get("id", "").startswith("run-"):
            self.rows[found["id"]] = []
        if tag == "td" and "data-order" in found and self.rows:
            list(self.rows.values())[-1].append(found["data-order"])
        if tag == "script":
            self.scripts.append(found.get("type", ""))
        if tag == "span":
            self._inside = None  # what stands beside a name
        if tag == "text" or (tag == "th" and found.get("class") == "model"):
            self._inside = self.svg_texts if tag == "text" else self.models
            self._inside.append("")

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self._inside = None

    def handle_endtag(self, tag):
        if tag in ("text", "th", "span"):
            self._inside = None

    def handle_data(self, data):
        if self._inside is not None:
            self._inside[-1] += data


def exports(records, out):
    return {str(path.relative_to(out)): path.read_bytes() for path in reporting.write_report(records, out)}


@pytest.fixture(scope="module")
def matrix(make):
    return [
        make(model, attack, eps=eps / 255, robust=robust / eps, knowledge=knowledge, draws=draws, stored=1)
        for model, robust, draws in (("cnn", 0.5, 1), ("ram", 0.75, 4))
        for attack, knowledge in (("pgd", "white-box"), ("noise", "none"))
        for eps in (1, 2, 4)
    ]


@pytest.fixture(scope="module")
def files(matrix, tmp_path_factory):
    return {name: content.decode() for name, content in exports(matrix, tmp_path_factory.mktemp("matrix")).items()}


def test_files_are_written_html_last(files):
    names = list(files)
    assert names[:4] == ["leaderboard.csv", "leaderboard.md", "leaderboard.tex", "leaderboard.json"]
    assert names[-1] == "leaderboard.html"
    assert len([name for name in names if name.endswith(".svg")]) == 2
    assert [name for name in names if "/Linf/" in name] == [
        "robustbench/digits/Linf/ram.json", "robustbench/digits/Linf/cnn.json",
    ]  # fmt: skip


def test_csv_holds_the_table_in_full_precision(matrix, files):
    lines = list(csv.DictReader(StringIO(files["leaderboard.csv"])))
    table = reporting.table(matrix).drop(columns="probe")
    assert list(lines[0]) == list(table.columns)
    for column in table.columns:
        texts = [line[column] for line in lines]
        if pd.api.types.is_float_dtype(table[column]):
            assert [float(cell or "nan") for cell in texts] == pytest.approx(
                list(table[column]), rel=1e-15, abs=0, nan_ok=True
            )
        else:
            assert texts == ["" if pd.isna(value) else str(value) for value in table[column]]


def test_all_formats_agree(matrix, files):
    page = Page(files["leaderboard.html"])
    markdown = {line.split(" | ")[-1].strip(" |"): line for line in files["leaderboard.md"].splitlines()}
    latex = {line.split(" & ")[-1].strip(" \\"): line for line in files["leaderboard.tex"].splitlines()}
    for row in reporting.table(matrix).to_dict("records"):
        short = row["record"][:12]
        for rate in ("clean_accuracy", "robust_accuracy"):
            text = cells.with_interval(row[rate], row[f"{rate}_low"], row[f"{rate}_high"])
            assert cells.markdown(text) in markdown[short]
            assert cells.latex(text) in latex[short]
            assert repr(row[rate]) in page.rows[f"run-{row['record'][:16]}"]


def test_json_holds_what_the_other_formats_hold(matrix, files):
    content = json.loads(files["leaderboard.json"])
    for line, row in zip(csv.DictReader(StringIO(files["leaderboard.csv"])), content["runs"], strict=True):
        assert [*line, "class_names"] == list(row)
        for column, cell in line.items():
            value = row[column]
            assert cell == ("" if value is None else str(value)) or float(cell) == value, column
    ranked = {(row["model"], row["eps"]): row for row in content["rankings"]}
    for pair in (pair for found in content["comparisons"] for pair in found["pairs"]):
        eps = next(e for _, e in ranked if f"eps {format_eps(e)}, " in budget_of(content, pair))
        if pair["attack"] == "lowest over all attacks":
            for side in ("first", "second"):
                assert pair[f"{side}_accuracy"] == pytest.approx(
                    ranked[pair[side].removesuffix(", M = 1"), eps]["robust_accuracy"], abs=1e-12
                )
    for name, text in files.items():
        if name.startswith("robustbench/"):
            told = json.loads(text)
            row = ranked[told["name"], 1 / 255]
            assert told["autoattack_acc"] == f"{100 * row['robust_accuracy']:.2f}"
            assert told["lpmbench"]["robust_accuracy"] == row["robust_accuracy"]
            assert told["lpmbench"]["rank"] == row["rank"]
    shown = {budget: pairs for budget, _, _, pairs in data_of(files["leaderboard.html"])["comparisons"]}
    assert set(shown) == {found["budget"] for found in content["comparisons"]}
    for found in content["comparisons"]:
        for here, there in zip(shown[found["budget"]], found["pairs"], strict=True):
            rates = [cells.percent(there[name]) for name in ("first_accuracy", "second_accuracy", "difference")]
            assert here[:3] == [there["attack"], there["first"], there["second"]]
            assert here[6:10] == [str(there["images"]), *rates]
            assert here[10] == [cells.percent(there["low"]), cells.percent(there["high"])]
            assert here[11] == ("apart" if there["low"] > 0 or there["high"] < 0 else "")
            assert here[12:] == [str(there["first_better"]), str(there["second_better"])]


def test_json_names_the_classes_that_have_more_than_a_number(make, tmp_path):
    records = [make("a", class_names={0: "coat", 1: "1"}), make("b", class_names={0: "<script>"}), make("c")]
    content = json.loads(exports(records, tmp_path)["leaderboard.json"])
    assert {run["model"]: run["class_names"] for run in content["runs"]} == {
        "a": {"0": "coat"}, "b": {"0": "<script>"}, "c": {},
    }  # fmt: skip


def test_json_compares_a_model_with_the_average_of_its_runs(make, tmp_path):
    records = [make("a", draws=4), make("a", draws=4, mc=10, robust=0.75, parameters={"steps": 5})]
    (found,) = json.loads(exports(records, tmp_path)["leaderboard.json"])["comparisons"]
    assert found["classifiers"] == [
        {"name": "a, M = 1", "model": "a", "mc": 1, "notes": ""},
        {"name": "a, M = 10", "model": "a", "mc": 10, "notes": ""},
    ]
    told = {(p["attack"], p["first"], p["first_attack"], p["second"], p["second_attack"]) for p in found["pairs"]}
    assert ("pgd (settings differ)", "a, M = 1", "pgd (steps=10)", "a, M = 10", "pgd (steps=5)") in told


def budget_of(content, pair):
    return next(found["budget"] for found in content["comparisons"] if pair in found["pairs"])


def test_rankings_agree(matrix, files):
    for row in reporting.leaderboard(matrix).to_dict("records"):
        robust = cells.with_interval(row["robust_accuracy"], row["robust_accuracy_low"], row["robust_accuracy_high"])
        clean = cells.with_interval(row["clean_accuracy"], row["clean_accuracy_low"], row["clean_accuracy_high"])
        texts = [cells.MISSING, row["model"], clean, robust, row["strongest_attack"], "not audited"]
        assert "| " + " | ".join(map(cells.markdown, texts)) + " |" in files["leaderboard.md"]
        assert " & ".join(map(cells.latex, texts)) in files["leaderboard.tex"]
        link = rf'href="#run-{row["record"][:16]}"[^>]*>{cells.percent(row["robust_accuracy"])}<'
        assert re.search(link, files["leaderboard.html"])


def test_verdicts_are_told_in_every_format(make, tmp_path):
    records = [make("good", robust=0.5), make("bad", robust=0.7), make("open", robust=0.6), make("none", robust=0.4)]
    verdicts = ("pass", "fail", "undecided")
    audits = {r.id: make_audit(r, check(v)) for r, v in zip(records, verdicts, strict=False)}
    files = {path.name: path.read_text() for path in reporting.write_report(records, tmp_path, audits)}
    for model, word in (("good", "passed"), ("bad", "failed"), ("open", "undecided"), ("none", "not audited")):
        for name in ("leaderboard.md", "leaderboard.tex"):
            assert [line for line in files[name].splitlines() if model in line and word in line], (name, model)
    assert "audit failed: white-box vs black-box" in files["leaderboard.md"]
    lines = {line["model"]: line for line in csv.DictReader(StringIO(files["leaderboard.csv"]))}
    assert [lines[model]["verdict"] for model in ("good", "bad", "open", "none")] == [*verdicts, ""]
    assert lines["bad"]["audit"] == "white-box vs black-box: 62.0 % against 40.1 %, difference [14.1, 29.7]"


def test_same_records_same_bytes(matrix, files, tmp_path):
    shuffled = random.Random(0).sample(matrix, len(matrix))
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red"}):
        again = exports(shuffled, tmp_path)
    assert {name: content.encode() for name, content in files.items()} == again


def test_plots_of_an_older_report_go_and_other_files_stay(make, tmp_path):
    old = set(reporting.write_report([make("a", eps=eps / 255) for eps in (2, 4)], tmp_path))
    own = tmp_path / "plots" / "own-abc123.svg"
    own.write_text("<svg/>")
    new = set(reporting.write_report([make("a", "spsa", eps=eps / 255) for eps in (2, 4)], tmp_path))
    assert any(path.suffix == ".svg" for path in old - new)
    assert set(tmp_path.glob("plots/*.svg")) == {path for path in new if path.suffix == ".svg"} | {own}


def test_a_report_without_records_says_so(tmp_path):
    files = exports([], tmp_path)
    assert b"There are no runs yet" in files["leaderboard.html"]


@pytest.fixture(scope="module")
def hostile_files(make, tmp_path_factory):
    records = [
        make(name, name, notes=[name], dataset=name if name == HOSTILE[0] else "digits", stored=1,
             choice=[cells.plain(name)] * 40, attack_identity={"members": {name: name}},
             class_names={0: name, 1: f"{name} too"} if name != "\ud800" else {})  # which no file can hold
        for name in HOSTILE
    ]  # fmt: skip
    audits = {}
    for record, name in zip(records, HOSTILE, strict=True):
        hostile = check("fail", name, question=name, against=name, note=name, records=(name,))
        audits[record.id] = make_audit(record, hostile, command=name)
    out = tmp_path_factory.mktemp("hostile")
    return {str(path.relative_to(out)): path.read_text() for path in reporting.write_report(records, out, audits)}


def test_hostile_names_stay_text_in_html(hostile_files):
    page = Page(hostile_files["leaderboard.html"])
    assert page.scripts == ["application/json", ""]
    assert not {"b", "iframe", "object", "embed", "foreignObject"} & set(page.elements)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    for name in HOSTILE:
        assert cells.plain(name) in page.models
    images = [value for name, value in page.attributes if name == "src"]
    assert all(value.startswith("data:image/png;base64,") for value in images)
    assert "49" not in page.models


def test_hostile_names_stay_text_in_plots(hostile_files):
    svgs = [content for name, content in hostile_files.items() if name.endswith(".svg")]
    texts = [text for svg in svgs for text in Page(svg).svg_texts]
    for name in HOSTILE[:-1]:
        assert plots.shortened(name, plots.LINE // 2) in texts
    assert svgs
    assert not any(re.search(r"<(script|img|b)\b", svg) for svg in svgs)


def test_hostile_names_stay_in_their_markdown_cell(hostile_files):
    lines = [line for line in hostile_files["leaderboard.md"].splitlines() if line.startswith("|")]
    counts = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
    assert counts == {8, 15}  # the rankings, the runs
    assert "<" not in hostile_files["leaderboard.md"]


def test_hostile_names_are_no_commands_in_latex(hostile_files):
    tex = hostile_files["leaderboard.tex"]
    body = "\n".join(line for line in tex.splitlines() if not line.startswith("%"))
    assert not re.search(r"\\(input|frac)", body)
    assert not re.search(r"(?<!\\)[$#~^_%]", body)
    assert re.sub(r"\\[{}]", "", body).count("{") == re.sub(r"\\[{}]", "", body).count("}")


def test_hostile_names_stay_text_in_json(hostile_files):
    content = json.loads(hostile_files["leaderboard.json"])
    assert {cells.plain(name) for name in HOSTILE} == {row["model"] for row in content["runs"]}
    for name, text in hostile_files.items():
        if name.startswith("robustbench/"):
            assert re.fullmatch(r"robustbench/[\w.-]+/Linf/\w[\w.-]*\.json", name)
            assert json.loads(text)["unreliable"] is not None
    html = hostile_files["leaderboard.html"]
    assert not set("<>&") & set(re.search(r'id="data">(.*?)</script>', html).group(1))
    data = data_of(html)
    assert {note for _, notes, *_ in data["runs"] for note in notes} == set(map(cells.plain, HOSTILE))
    names = [name for _, classifiers, *_ in data["comparisons"] for name, _ in classifiers]
    assert f"{cells.plain(HOSTILE[1])}, M = 1" in names


def test_no_cell_of_the_csv_is_a_formula(hostile_files):
    lines = list(csv.DictReader(StringIO(hostile_files["leaderboard.csv"])))
    for line in lines:
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in line.values())
    assert "'=HYPERLINK(1)" in {line["model"] for line in lines}
    assert not any("\x1b" in content for content in hostile_files.values())


def test_known_defects_are_told_in_every_format(make, tmp_path):
    files = exports([make(notes=["Known defect: probes the clean image only."])], tmp_path)
    for name in ("leaderboard.csv", "leaderboard.md", "leaderboard.tex", "leaderboard.html"):
        assert b"Known defect: probes the clean image only." in files[name], name


def test_probes_stand_apart(make, tmp_path):
    found, judged = probed(make)
    probes = {record.id for name, record in found.items() if name not in ORDINARY}
    runs = {found[name].id for name in ORDINARY}
    files = {path.name: path.read_text() for path in reporting.write_report(list(found.values()), tmp_path, judged)}
    for name, expected in (("leaderboard.csv", runs), ("probes.csv", probes)):
        assert {line["record"] for line in csv.DictReader(StringIO(files[name]))} == expected
    content = json.loads(files["leaderboard.json"])
    for part, expected in (("runs", runs), ("probes", probes)):
        assert {row["record"] for row in content[part]} == expected
    for name in ("leaderboard.md", "leaderboard.tex"):
        shown = {what for what, record in found.items() if record.id[:12] in files[name]}
        assert shown == set(ORDINARY)
        assert f"{len(probes)} probe runs of audits are in probes.csv." in files[name]
    reporting.write_report([found[name] for name in ORDINARY], tmp_path, judged)
    assert not (tmp_path / "probes.csv").exists()


def test_a_pivot_over_the_csv_gives_the_numbers_of_the_runs(make, tmp_path):
    found, judged = probed(make)
    reporting.write_report(list(found.values()), tmp_path, judged)
    runs = pd.read_csv(tmp_path / "leaderboard.csv")
    pivot = runs.pivot(index="model", columns="attack", values="robust_accuracy")  # fails where a cell has two runs
    for name in ORDINARY:
        record = found[name]
        assert pivot.loc[record.model, record.attack] == pytest.approx(record.robust_accuracy.value)


def printed(*records, audits=None):
    console = Console(file=StringIO(), width=100)
    reporting.terminal_table(records, console, audits or {})
    return console.file.getvalue()


def test_the_terminal_shows_one_line_per_run_and_columns_when_needed(make):
    text = printed(make("cnn", robust=0.5), make("ram", robust=0.25, draws=4))
    assert "50.0 [35.2, 64.8]" in text
    assert len(text.strip().splitlines()) == 3
    a, b = make("a", failed=4, mc=10), make("b")
    more = printed(a, b, audits={b.id: make_audit(b, check("fail"))})
    for column in ("Failed", " M ", "Audit"):
        assert (column in text, column in more) == (False, True)
    assert [line.split()[-1] for line in more.strip().splitlines()[1:]] == ["failed", "–"]
    found, judged = probed(make)
    assert len(printed(*found.values(), audits=judged).strip().splitlines()) == 1 + len(ORDINARY)


def test_names_are_neither_markup_nor_control_codes_in_the_terminal(make):
    text = printed(make("[bold]x[/bold]", "\x1b[31my"))
    assert "[bold]x[/bold]" in text
    assert "\x1b" not in text


def test_reporting_imports_no_torch():
    code = (
        "import sys; from robustbench_lpm import reporting; "
        "from robustbench_lpm.reporting import exports, page, pictures, plots, studies; "
        "reporting.leaderboard([]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
