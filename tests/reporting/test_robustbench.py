"""The files that RobustBench's tools read: which there are, and what they say."""

from __future__ import annotations

import json

import pytest

from robustbench_lpm.protocol.ranking import ranking
from robustbench_lpm.registry import cards
from robustbench_lpm.reporting import robustbench, tables
from tests.reporting.conftest import check, make_audit

# Every file of RobustBench's own has these, https://github.com/RobustBench/robustbench, model_info/.
KEYS = {
    "link": str, "name": str, "authors": str, "additional_data": bool, "number_forward_passes": int, "dataset": str,
    "venue": str, "architecture": str, "eps": str, "clean_acc": str, "reported": str, "autoattack_acc": str,
}  # fmt: skip


def files(*records, audits=None):
    ranked = ranking(tables.table(records, audits or {}))
    return {name: json.loads(text) for name, text in robustbench.to_robustbench(records, ranked).items()}


def test_a_file_says_what_the_ranking_says(make):
    a, b = make("a", robust=0.25, clean=0.975), make("a", "spsa", robust=0.5, clean=0.975)
    found = files(a, b, audits={a.id: make_audit(a, check("fail"))})
    told = found["robustbench/digits/Linf/a.json"]
    for key, kind in KEYS.items():
        assert isinstance(told[key], kind), key
    assert (told["clean_acc"], told["autoattack_acc"], told["eps"]) == ("97.50", "25.00", "8/255")
    assert told["unreliable"] is True
    assert "Not AutoAttack" in told["footnote"]
    assert (told["lpmbench"]["record"], told["lpmbench"]["rank"]) == (a.id, None)
    assert told["lpmbench"]["read_from"] == [a.id]


def test_each_norm_has_one_budget_that_of_most_images(make):
    found = files(make("a", eps=0.1), make("a", eps=0.2, images=80), make("a", eps=1.0, norm="l2"))
    assert {name: told["eps"] for name, told in found.items()} == {
        "robustbench/digits/L2/a.json": "1",
        "robustbench/digits/Linf/a.json": "0.2",
    }


@pytest.mark.parametrize("change", [{"images": 19}, {"mc": 10}, {"knowledge": "none"}])
def test_what_their_format_would_mislead_about_has_no_file(make, change):
    assert files(make("a", **change)) == {}


def test_a_registered_model_leads_to_its_paper(make):
    configuration = make("ramlpm").configuration
    assert files(make("ramlpm"))["robustbench/digits/Linf/ramlpm.json"]["link"] == ""  # another model of that name
    record = make("ramlpm")
    card = cards.model("ramlpm")
    configuration["model"] |= {
        "entry": card.entry,
        "parameters": card.parameters,
        "weights_sha256": card.weights.sha256,
    }
    record.configuration = configuration
    told = files(record)["robustbench/digits/Linf/ramlpm.json"]
    assert (told["link"], told["architecture"]) == ("https://arxiv.org/abs/2002.05388", "RamLpm")
    assert told["authors"] == "Kiritani and Ono"


AUTHORS = [
    ("Kiritani and Ono 2020, arXiv 2002.05388, made smaller", "Kiritani and Ono"),
    ("He et al. 2016, arXiv 1512.03385; torchvision.models.resnet", "He et al."),
    ("Croce 2020", "Croce"),
    ("in the manner of Carlini and Wagner 2017, arXiv 1608.04644, table I", None),  # who did not make this model
    ("In the manner of Carlini and Wagner 2017", None),
    ("torchvision 2024", None),
    ("drawn by tools/draw_panda.py", None),
    ("", None),
]


@pytest.mark.parametrize(("source", "authors"), AUTHORS)
def test_authors_are_those_of_the_paper_that_a_source_begins_with(source, authors):
    found = robustbench.AUTHORS.match(source)
    assert (found.group(1) if found else None) == authors


def test_names_that_would_leave_the_folder_do_not(make):
    found = files(make("../../etc/passwd"), make("..", attack="q"))
    assert len(found) == 2
    assert all(name.startswith("robustbench/digits/Linf/") and ".." not in name for name in found)
