"""The page stands alone: it asks nothing of the network, runs one script, and leads every number to its run."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256

import numpy as np
import pytest

from robustbench_lpm import reporting
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.protocol.ranking import ranking
from robustbench_lpm.registry import cards
from robustbench_lpm.reporting import page, tables
from robustbench_lpm.statistics import first_half
from tests.reporting.conftest import ORDINARY, check, data_of, make_audit, probed


def render(*records, audits=None):
    """The page without its plots, which take long to draw."""
    records, audits = tables.in_order(records), audits or {}
    runs = reporting.table(records, audits)
    return page.to_html(records, runs, ranking(runs), audits)


def details(html):
    """By the title of each run's details: name and text of its lines."""
    return {title: {name: text for name, text, _ in lines} for title, *_, lines, _ in data_of(html)["runs"]}


def lines_of(html):
    """The lines of the details of the page's only run."""
    (lines,) = details(html).values()
    return lines


@pytest.fixture(scope="module")
def whole(make, tmp_path_factory):
    """A page with all that it may have."""
    records = [
        make(model, attack, eps=eps / 255, stored=1) for model in "ab" for attack in ("p", "q") for eps in (1, 2)
    ]
    records.append(make("rgb", stored=1, shape=(3, 8, 8), dataset="photos"))
    return reporting.write_report(records, tmp_path_factory.mktemp("out"), {})[-1].read_text(encoding="utf-8")


def test_nothing_is_fetched(whole):
    html = without_script(whole)  # DataTables names addresses in its notices and messages, and asks for none
    assert not re.search(r"https?://|@import|url\((?!#)", html)
    addresses = re.findall(r'\b(?:src|href|xlink:href)="([^"]*)"', html)
    assert addresses
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert "<script" not in html


def without_script(html):
    """The page without its script, and without the data that the script reads."""
    return re.sub(r'<script( type="application/json"[^>]*)?>.*?</script>', "", html, flags=re.DOTALL)


def test_the_policy_admits_only_the_script_of_the_page(whole):
    html = whole
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL).group(1)
    digest = b64encode(sha256(script.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html).group(1)
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL).group(1)
    sheet = b64encode(sha256(style.encode()).digest()).decode()
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules == {
        "default-src": "'none'", "base-uri": "'none'", "form-action": "'none'", "img-src": "data:",
        "script-src": f"'sha256-{digest}'", "style-src": f"'sha256-{sheet}'", "style-src-attr": "'unsafe-inline'",
    }  # fmt: skip
    assert re.findall(r"<script(?! type=\"application/json\")", without_script(html)) == []
    assert len(re.findall(r"<script>", html)) == 1


def test_ids_are_unique_and_links_lead_somewhere(whole):
    ids = re.findall(r'\bid="([^"]*)"', whole)
    assert len(ids) == len(set(ids))
    targets = re.findall(r'\bhref="#([^"]*)"', whole) + re.findall(r"url\(#([^)]*)\)", whole)
    assert set(targets) <= set(ids)


def test_details_lead_back_to_the_run(make):
    record = make(weights="c" * 64, seed=17, failed=2)
    html = render(record)
    lines = lines_of(html)
    assert (lines["Record"], lines["Checkpoint sha256"], lines["Data sha256"]) == (record.id, "c" * 64, "d" * 64)
    assert lines["Reproduce"] == "lpmbench attack --model 'cnn' --attack 'pgd'"
    assert lines["Seed and draws"].startswith("seed 17")
    assert "lpmbench 0.1.0" in lines["Versions"]
    assert lines["Images"].startswith("38 of 40: first 40 images")
    ((_, _, (failure,), *_),) = data_of(html)["runs"]
    assert "OutOfMemory: <b>too big</b>" in failure  # text, which the script sets as text
    assert "2 failed" in html
    assert "<b>" not in html


@pytest.mark.parametrize(("draws", "dashes"), [(1, 3), (4, 0)])
def test_a_deterministic_model_has_dashes_for_what_needs_draws(make, draws, dashes):
    html = render(make(draws=draws))
    assert html.count('<td class="number wide" data-order="">–</td>') == dashes  # majority, worst, flips


def test_every_column_but_the_first_can_be_sorted(make):
    html = render(make())
    table = re.search(r'<table id="runs-table">.*?</thead>', html, re.DOTALL).group()
    kinds = re.findall(r'<th scope="col" class="(\w+)', table)  # what the script makes sortable, by mouse and by key
    assert len(kinds) == 14
    assert kinds[0] == "fixed"
    assert set(kinds[1:]) == {"text", "number"}


def test_models_on_other_images_are_told_apart(make):
    html = html_of_ranking(render(make("a"), make("b", first_index=5)))
    assert html.count("M = 1, first 40 images") == html.count("M = 1, images 5 to 44") == 2  # heading, and region
    assert html.count("<table") == 2
    assert html_of_ranking(render(make("a"), make("b"))).count("<table") == 1


def tiles(html):
    """The captions and alternative texts of the gallery, a list for each tile."""
    found = re.findall(r'<figure class="tile">.*?</figure>', html, re.DOTALL)
    texts = r'alt="([^"]*)"|class="(?:says|turn)[^"]*">([^<]*)<|<span>([^<]*)</span></figcaption>'
    return [[a or b or c for a, b, c in re.findall(texts, tile)] for tile in found]


def test_classes_of_examples_go_by_their_names(make):
    html = render(make(stored=1, robust=0.0, dataset="fashion", class_names={0: "coat", 1: "shirt"}, mc=10))
    assert tiles(html) == [[
        "original, fashion image 0, true class coat, predicted coat", "predicted coat",
        "perturbation × 10, fashion image 0, true class coat",
        "adversarial, fashion image 0, true class coat, predicted shirt", "predicted shirt",
        "coat → shirt", "fashion image 0, true class coat",
    ]]  # fmt: skip
    assert "L∞ eps 8/255, M = 10" in html


@pytest.mark.parametrize("names", [{}, {0: "0", 1: "1"}, {7: "coat"}])
def test_classes_without_a_name_go_by_their_number(make, names):
    ((*_, turn, where),) = tiles(render(make(stored=1, robust=0.0, draws=4, class_names=names)))
    assert (turn, where) == ("0 → 1", "digits image 0, true class 0")


def test_the_name_of_a_class_is_text(make):
    evil = '<script>alert(1)</script>" onerror="alert(1)'
    html = render(make(stored=1, robust=0.0, target=3, class_names={0: evil, 3: evil}))
    assert html.count("<script") == 2  # the page's own, and its data
    assert "<img src=x" not in html
    assert not re.search(r'<[^>]* onerror="', html)
    escaped = "&lt;script&gt;alert(1)&lt;/script&gt;&#34; onerror=&#34;alert(1)"
    assert f"{escaped} (0) → {escaped} (3)" in html
    assert lines_of(html)["Target"] == f"{evil} (3)"


@pytest.mark.parametrize(("target", "names", "shown"), [(3, {3: "gibbon"}, "gibbon"), (3, {}, "3")])
def test_a_target_goes_by_its_name(make, target, names, shown):
    assert lines_of(render(make(target=target, class_names=names)))["Target"] == shown


def test_details_lead_to_the_registered_cards(make):
    lines = lines_of(render(registered(make)))
    assert (lines["Model card"], lines["Attack card"]) == ("models/ramlpm.toml", "attacks/pgd.toml")
    assert lines["Checkpoint sha256"] == cards.model("ramlpm").weights.sha256
    assert "Model card" not in lines_of(render(make("ramlpm")))  # another model of that name
    assert "Attack card" not in lines_of(render(make(attack="pgd")))


def test_a_worst_case_leads_to_its_card(make):
    told = {"entry": "worst case", "members": {"pgd": "9" * 64}}
    html = render(make(attack="worst-case", attack_identity=told))
    assert lines_of(html)["Attack card"] == "attacks/worst-case.toml"


OTHERS = [{"entry": "m:f"}, {"parameters": {"glimpses": 3}}, {"weights_sha256": "b" * 64}, {"name": "no such model"}]


@pytest.mark.parametrize("other", OTHERS)
def test_the_card_of_another_model_is_not_named(make, other):
    record = registered(make)
    assert tables.model_card(record) == cards.model("ramlpm")
    record.configuration["model"] |= other
    assert tables.model_card(record) is None


def registered(make):
    """A record of a registered model under a registered attack."""
    record, card = make("ramlpm", parameters={"steps": 3}), cards.model("ramlpm")
    told = {"entry": card.entry, "parameters": card.parameters, "weights_sha256": card.weights.sha256}
    record.configuration["model"] |= told
    record.configuration["attack"]["entry"] = cards.attack("pgd").entry
    return record


def test_an_interval_is_drawn_as_a_whisker_only_where_there_is_one(make):
    assert 'class="whisker"' in render(make(images=20))
    assert 'class="whisker"' not in render(make(images=19))


VERDICTS = {"pass": "✓ passed", "fail": "✕ failed", "undecided": "? undecided", "": "not audited"}


@pytest.mark.parametrize("verdict", VERDICTS)
def test_a_verdict_is_a_word_in_the_ranking_and_among_the_runs(make, verdict):
    record = make()
    html = render(record, audits={record.id: make_audit(record, check(verdict))} if verdict else {})
    cells = re.findall(r'<td class="audit[^"]*" data-order="(\d?)"><\w+ class="badge (\w+)"[^>]*>([^<]*)<', html)
    assert [text for _, _, text in cells] == [VERDICTS[verdict]] * 2
    assert {order for order, _, _ in cells} == {{"fail": "0", "undecided": "1", "pass": "2", "": ""}[verdict]}
    assert ("audit failed: white-box vs black-box" in html) == (verdict == "fail")


@pytest.mark.parametrize("verdict", VERDICTS)
def test_only_what_passes_has_a_rank_and_what_is_not_audited_is_hollow(make, verdict):
    record = make()
    html = html_of_ranking(render(record, audits={record.id: make_audit(record, check(verdict))} if verdict else {}))
    rank = re.search(r'<td class="number rank" data-order="(\d*)">([^<]*)<', html).groups()
    assert rank == (("1", "1") if verdict == "pass" else ("", "–"))
    assert ('class="unranked hollow"' in html) == (verdict == "")


def sentences(html):
    """The sentences at the top of the page, as text."""
    found = re.findall(r"<li>(.*?)</li>", html.partition('<section id="rankings"')[0], re.DOTALL)
    return [re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", text)).replace("&nbsp;", " ") for text in found]


def test_the_page_begins_with_a_sentence_for_ram_lpm_and_for_the_best_other_model(make):
    own, control = make("ramlpm-x", robust=0.25), make("ramlpm-x-centre", robust=0.5)
    best, worse = make("cnn", robust=0.75), make("resnet", robust=0.1)
    question = "Do twice as many steps leave the result unchanged?"
    audits = {
        own.id: make_audit(own, check("fail", question=question), check("fail", "again"), check("pass", "last")),
        best.id: make_audit(best, check("pass")),
    }
    assert sentences(render(own, control, best, worse, audits=audits)) == [
        "ramlpm-x: at most 25.0 % [14.2, 40.2] at L∞ 8/255 on the digits (first 40 images; 90.0 % without an attack). "
        f"✕ audit failed {question} No: 62.0 % against 40.1 %. 1 more check failed.",
        "A small CNN (cnn): at most 75.0 % [59.8, 85.8] at L∞ 8/255 on the digits (first 40 images; 90.0 % without an "
        "attack). ✓ audit passed",
    ]
    elsewhere = make("ramlpm-x", eps=0.1, robust=0.2)  # the audited ranking has no RAM-LPM: that which has one is told
    told = sentences(render(best, elsewhere, audits={best.id: make_audit(best, check("pass"))}))
    assert [text.partition(" [")[0] for text in told] == ["ramlpm-x: at most 20.0 %"]
    assert sentences(render(make(images=5))) == []  # too few for a number
    assert sentences(render(make(mc=10)))[0].endswith("10 runs averaged; 90.0 % without an attack). not audited")


def headings(html):
    found = re.findall(r"<(?:h3|summary)>(.*?)[<\n]", html_of_ranking(html))
    return [text.strip() for text in found if "M =" in text]


def test_the_main_ranking_is_the_audited_one_of_most_images(make):
    few, many = make("a", images=40), make("a", images=80)
    cifar, large = make("a", dataset="cifar10"), make("a", images=100, dataset="zebras")
    audits = {r.id: make_audit(r, check("pass")) for r in (few, many, large)}
    assert headings(render(few, many, cifar, large, audits=audits)) == [
        "digits, original size, L∞ eps 8/255, M = 1, first 80 images",  # the first dataset with an audit
        "cifar10, original size, L∞ eps 8/255, M = 1, first 40 images",
        "digits, original size, L∞ eps 8/255, M = 1, first 40 images",
        "zebras, original size, L∞ eps 8/255, M = 1, first 100 images",
    ]
    first, *_ = headings(render(cifar, make("a", eps=0.1), make("b", eps=0.1)))
    assert first == "digits, original size, L∞ eps 0.1, M = 1, first 40 images"  # without audits that of most models


def test_the_table_of_runs_begins_with_the_main_ranking(make):
    a, b = make("a"), make("b", eps=0.1)
    html = render(a, b, audits={b.id: make_audit(b, check("pass"))})
    assert '<option value="0" selected>digits, original size, L∞ eps 0.1, M = 1, first 40 images</option>' in html
    choices = {
        anchor: places.split()[0] for anchor, places in re.findall(r'<tr id="([^"]*)" data-choices="([^"]*)"', html)
    }
    assert choices == {f"run-{b.id[:16]}": "0", f"run-{a.id[:16]}": "1"}


def test_settings_of_attacks_are_unfolded_from_their_names(make):
    runs = [make(attack="pgd", parameters={"steps": steps}, robust=robust) for steps, robust in ((10, 0.5), (20, 0.25))]
    html = html_of_ranking(render(*runs))
    assert "<details><summary>pgd</summary>pgd (steps=20)</details>" in html
    assert '<td class="attacks">pgd</td>' in html_of_ranking(render(runs[0]))


def test_all_checks_stand_among_the_details(make):
    record, other = make(), make("other")
    checks = [
        check("fail", records=(other.id, "9" * 64), note="64 images only"),
        check("not applicable", "eps = 1", judged=None, reference=None, low=None, high=None, images=0, against=""),
        check("pass", "direction", unit="cosine", judged=-0.5, reference=0.25, low=-0.8, high=-0.7),
    ]
    html = render(record, other, audits={record.id: make_audit(record, *checks)})
    runs = {run[0].split()[0]: run for run in data_of(html)["runs"]}
    assert runs["cnn"][3] == ["✕ failed", "bad"]
    question = "Is the white-box attack at least as strong?"
    others = [["", other.id[:8]], ["", "99999999"]]  # neither is in the page: no link
    assert runs["cnn"][4] == [
        ["white-box vs black-box", question, "64 images only", "fail", "✕ failed", "bad",
         "62.0 %", "40.1 %", "+21.9 [14.1, 29.7]", "64", "square", others],
        ["eps = 1", question, "", "not applicable", "not applicable", "muted", "–", "–", "–", "–", "", []],
        ["direction", question, "", "pass", "✓ passed", "good", "-0.50", "0.25", "-0.75 [-0.80, -0.70]", "64", "square",
         []],
    ]  # fmt: skip
    assert details(html)[runs["cnn"][0]]["Audited by"] == "lpmbench audit cnn"
    assert set(runs) == {"cnn"}


def test_the_text_of_a_check_stays_text(make):
    record, evil = make(), "<script>alert(1)</script>"
    audit = make_audit(record, check("fail", evil, question=evil, against=evil, note=evil, records=(evil,)))
    html = render(record, audits={record.id: audit})
    assert html.count("<script") == 2
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 2  # why there is no rank
    ((*_, (finding,), _, _, _),) = data_of(html)["runs"]
    assert [finding[place] for place in (0, 1, 2, 10)] == [evil] * 4


def test_details_say_what_was_chosen_and_who_controlled_the_noise(make):
    html = render(
        make("ram", choice=["detached"] * 30 + ["reparameterised"] * 10, noise=[("policy", "replayed")]),
        make("cnn", "worst-case", choice=["pgd"] * 25 + ["spsa"] * 15, parameters={"attacks": ["pgd", "spsa"]}),
    )
    ram, cnn = (
        next(lines for title, lines in details(html).items() if title.startswith(name)) for name in ("ram", "cnn")
    )
    assert ram["Strongest gradient mode"] == "detached 30, reparameterised 10 (images)"
    assert cnn["Strongest attack"] == "pgd 25, spsa 15 (images)"
    assert ram["Noise control"] == "policy replayed"
    assert html.count('<span class="chosen">worst case: pgd 25, spsa 15</span>') == 1  # in the ranking
    assert not {"Noise control", "Strongest attack", "Strongest gradient mode"} & set(lines_of(render(make())))


def test_probes_are_left_out(make):
    found, judged = probed(make)
    html = render(*found.values(), audits=judged)
    assert set(re.findall(r'<tr id="run-([^"]*)"', html)) == {found[name].id[:16] for name in ORDINARY}
    assert len(data_of(html)["runs"]) == len(ORDINARY)
    more = f"{len(found) - len(ORDINARY)} more runs of audits in probes.csv"
    assert f"{len(ORDINARY)} runs, 1 model, 4 attacks, 1 dataset; {more}" in html
    assert not re.search(r"<tr [^>]*hidden", html)  # without scripts all runs are shown
    assert '<div class="controls" id="filters" hidden>' in html  # and the choices, which would do nothing, are not


def test_a_probe_that_decides_a_number_is_listed_and_leads_to_what_it_was_made_for(make):
    found, judged = probed(make, twice=0.4)
    html = render(*found.values(), audits=judged)
    probe = f"run-{found['twice'].id[:16]}"
    assert set(re.findall(r'<tr id="run-([^"]*)"', html)) == {found[name].id[:16] for name in (*ORDINARY, "twice")}
    assert '<span class="badge muted">probe</span>' in html
    runs = data_of(html)["runs"]
    (serves,) = [run[-1] for run in runs if run[-1]]
    assert serves == [[f"run-{found['worst'].id[:16]}", "ram under worst-case"]]
    findings = {finding[0]: finding[-1] for run in runs for finding in run[4]}
    assert findings["twice"] == [[probe, found["twice"].id[:8]]]
    assert findings["half"] == [["", found["half"].id[:8]]]  # in probes.csv: its id, without a link
    assert f'href="#{probe}"' in html_of_ranking(html)


def test_a_number_that_a_probe_found_says_so(make):
    found, judged = probed(make, twice=0.4)
    assert html_of_ranking(render(*found.values(), audits=judged)).count("a probe of an audit") == 1
    found, judged = probed(make)
    assert "a probe of an audit" not in html_of_ranking(render(*found.values(), audits=judged))


def test_a_number_that_was_read_from_two_runs_leads_to_both(make):
    first = first_half(np.arange(20), 2)
    runs = [make(attack=name, robust=right, images=20, draws=2) for name, right in (("p", first), ("q", ~first))]
    html = html_of_ranking(render(*runs))
    assert re.search(f'href="#run-{runs[0].id[:16]}"[^>]*>100.0</a>', html)
    both = ", ".join(f'<a href="#run-{run.id[:16]}">{run.id[:8]}</a>' for run in runs)
    assert f"each half of the draws read from another run: {both}</span>" in html
    assert "each half of the draws" not in html_of_ranking(render(runs[0]))


def html_of_ranking(html):
    return re.search(r'<section id="rankings".*?</section>', html, re.DOTALL).group()


def test_probes_are_no_examples(make):
    a, half = make("a", stored=1), make("a", eps=4 / 255, stored=1)
    html = render(a, half, audits={a.id: make_audit(a, check(records=(a.id, half.id)))})
    assert html.count("<img ") == 3
    assert "under pgd, L∞ eps 8/255" in html


def test_the_installed_table_library_can_be_inside_a_script_element():
    script = page.data_tables()
    assert script.startswith("const DataTable = (() => {")
    assert not re.search(r"<!--|</?script|\bexport\s*\{", script, re.IGNORECASE)
    assert "© SpryMedia Ltd" in script  # whose licence asks that its notice goes along
    assert "Released under the MIT license" in script


def test_a_module_becomes_a_function_that_returns_its_default():
    found = page.as_script('var a="<script>",b=/<!--x/;export{a as table,b as default};\n/* licence */')
    assert 'var a="\\x3cscript>",b=/\\x3c!--x/;' in found
    assert found.rstrip().endswith("return b; })();")
    assert "/* licence */" in found


@pytest.mark.parametrize("module", ["", "var a=1;", "var a=1;export{a as table}"])
def test_another_layout_is_an_error_that_says_what_to_install(module):
    with pytest.raises(LpmbenchError, match="itables"):
        page.as_script(module)
