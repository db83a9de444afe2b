"""The tables and figures for papers hold the numbers of the runs, under the names that a person gave."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from robustbench_lpm import reporting
from robustbench_lpm.records.runs import RunRecord
from robustbench_lpm.reporting import paper
from tests.reporting.conftest import Make, probed


@pytest.fixture
def found(make: Make) -> list[RunRecord]:
    """Two models under three attacks at two budgets; the second has not met one of them."""
    robust = {("cnn", "pgd"): 0.5, ("cnn", "fgsm"): 0.7, ("ram", "pgd"): 0.6, ("cnn", "noise"): 0.9}
    some = [
        make(model, attack, robust=share, knowledge="none" if attack == "noise" else "white-box", eps=0.1)
        for (model, attack), share in robust.items()
    ]
    return [*some, make("cnn", "pgd", robust=0.8, eps=0.05), make("ram", "pgd", robust=0.75, eps=0.05)]


def rows_of(latex: str) -> list[dict[str, str]]:
    """The rows of the tables in a LaTeX file, cells by heading."""
    rows = []
    for body in re.findall(r"\\toprule\n(.*?)\\bottomrule", latex, re.DOTALL):
        heading, *lines = [line.removesuffix(r" \\").split(" & ") for line in body.splitlines() if "&" in line]
        rows += [dict(zip(heading, line, strict=True)) for line in lines]
    return rows


def test_attacks_by_models_controls_first_and_the_best_bold(found: list[RunRecord], tmp_path: Path) -> None:
    at_one = [record for record in found if record.eps == 0.1]
    paths, notes = reporting.write_paper(at_one, tmp_path, "attacks", title="Mine & yours", audits={})
    assert [path.name for path in paths] == ["table-attacks.tex", "figure-attacks.pdf", "figure-attacks.svg"]
    assert notes == []
    text = paths[0].read_text()
    assert rows_of(text) == [
        {"Model": "cnn", "Clean": r"\textbf{90.0}", "noise": r"\textbf{90.0}", "fgsm": r"\textbf{70.0}", "pgd": "50.0"},
        {"Model": "ram", "Clean": r"\textbf{90.0}", "noise": "--", "fgsm": "--", "pgd": r"\textbf{60.0}"},
    ]
    assert r"\caption{Mine \& yours}" in text
    assert r"\label{tab:attacks}" in text
    assert text.count(r"\begin{table}") == 1


def test_eps_by_models_as_in_the_ranking(found: list[RunRecord], tmp_path: Path) -> None:
    path, *_ = reporting.write_paper(found, tmp_path, "eps", audits={})[0]
    cnn, ram = rows_of(path.read_text())
    assert list(cnn.values()) == ["cnn", r"\textbf{90.0}", r"\textbf{80.0}", "50.0"]
    assert list(ram.values()) == ["ram", r"\textbf{90.0}", "75.0", r"\textbf{60.0}"]
    assert len({heading for heading in cnn if heading.startswith("eps ")}) == 2
    runs = reporting.table(found, {})
    ranked = runs.dropna(subset="ranked_accuracy").set_index(["model", "eps"])["ranked_accuracy"].to_dict()
    assert ranked == {("cnn", 0.1): 0.5, ("ram", 0.1): 0.6, ("cnn", 0.05): 0.8, ("ram", 0.05): 0.75}


def test_a_lower_probe_counts_as_in_the_ranking_and_is_no_attack_of_the_table(make: Make) -> None:
    known, audits = probed(make, twice=0.25)
    runs = reporting.table(list(known.values()), audits)
    ranked = reporting.leaderboard(list(known.values()), audits)
    names = {(row.model, row.model_variant): row.model for row in runs.itertuples()}
    (table,) = paper.tables(runs, "eps", names)
    assert ranked["probe"].any()  # it decides
    for row in ranked.itertuples():
        assert table.rows[row.model][table.columns[1]][0] == pytest.approx(row.robust_accuracy)
    shown = {column for one in paper.tables(runs, "attacks", names) for column in one.columns}
    assert runs["probe"].any()
    assert shown == {"Clean", *runs.loc[~runs["probe"], "attack"]}


def test_intervals_stand_where_they_are_asked_for(found: list[RunRecord], tmp_path: Path) -> None:
    (record,) = [r for r in found if (r.model, r.attack, r.eps) == ("cnn", "pgd", 0.1)]
    rate = record.robust_accuracy
    assert rate.low is not None
    assert rate.high is not None
    bounds = f"{{[}}{100 * rate.low:.1f}, {100 * rate.high:.1f}{{]}}"
    for intervals in (True, False):
        path, *_ = reporting.write_paper(found, tmp_path, "eps", intervals=intervals, audits={})[0]
        assert (bounds in path.read_text()) is intervals


def test_what_cannot_be_compared_has_a_table_of_its_own(found: list[RunRecord], make: Make, tmp_path: Path) -> None:
    paths, _ = reporting.write_paper([*found, make("cnn", "pgd", norm="l2", eps=0.1)], tmp_path, "eps", audits={})
    labels = re.findall(r"\\label\{(.*?)\}", paths[0].read_text())
    assert labels == ["tab:eps", "tab:eps-2"]
    assert [path.name for path in paths[1:]] == [
        "figure-eps.pdf", "figure-eps.svg", "figure-eps-2.pdf", "figure-eps-2.svg",
    ]  # fmt: skip


def test_averages_and_models_of_one_name_are_told_apart_without_hashes(make: Make, tmp_path: Path) -> None:
    shared = {"draws": 4, "eps": 0.1}
    several = [
        make("Sequential", weights="a" * 64, robust=0.5, **shared),
        make("Sequential", weights="b" * 64, robust=0.25, **shared),
        make("ram", mc=5, **shared),
    ]
    (path, *_), notes = reporting.write_paper(several, tmp_path, "attacks", audits={})
    assert {row["Model"] for row in rows_of(path.read_text())} == {"Sequential (1)", "Sequential (2)", "ram, M = 5"}
    (note,) = notes
    assert "(1) weights aaaaaaaa, (2) weights bbbbbbbb" in note
    assert "name=" in note
    (path, *_), notes = reporting.write_paper(several[1:], tmp_path, "attacks", audits={})
    assert {row["Model"] for row in rows_of(path.read_text())} == {"Sequential", "ram, M = 5"}
    assert notes == []


@pytest.mark.parametrize("layout", ["attacks", "eps"])
def test_figures_are_pdf_and_svg_with_the_title_and_the_same_again(
    layout: str, found: list[RunRecord], tmp_path: Path
) -> None:
    at_one = found if layout == "eps" else [record for record in found if record.eps == 0.1]
    (_, pdf, svg), _ = reporting.write_paper(at_one, tmp_path / "a", layout, title="A title of mine", audits={})
    (_, *again), _ = reporting.write_paper(at_one[::-1], tmp_path / "b", layout, title="A title of mine", audits={})
    assert pdf.read_bytes().startswith(b"%PDF")
    text = "".join(ElementTree.parse(svg).getroot().itertext())
    assert "A title of mine" in text
    assert "cnn" in text
    assert [path.read_bytes() for path in (pdf, svg)] == [path.read_bytes() for path in again]


def test_runs_with_failed_examples_are_left_out(make: Make, tmp_path: Path) -> None:
    for layout in ("attacks", "eps"):
        found = [make("cnn", "pgd", eps=0.1), make("ram", "pgd", eps=0.1, failed=3)]
        (path, *_), _ = reporting.write_paper(found, tmp_path, layout, audits={})
        assert [row["Model"] for row in rows_of(path.read_text())] == ["cnn"]
