"""The page stands alone: it asks nothing of the network, runs one script, and leads every number to its run."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256

import numpy as np
import pytest

from robustbench_lpm import cards, reporting
from robustbench_lpm.reporting import plots, provenance
from robustbench_lpm.statistics import first_half
from tests.reporting.conftest import ORDINARY, check, make_audit, probed


@pytest.fixture
def render(tmp_path, monkeypatch):
    """Writes a report and reads its page; without plots, which take longer than the rest, where they do not matter."""

    def rendered(*records, audits=None, plotted=False):
        for name in () if plotted else ("accuracy_plots", "query_plots"):
            monkeypatch.setattr(plots, name, lambda *_: [])
        return reporting.write_report(records, tmp_path / "out", audits)[-1].read_text(encoding="utf-8")

    return rendered


def test_nothing_is_fetched(make, render):
    records = make(stored=2), make(eps=2 / 255), make("rgb", stored=1, shape=(3, 8, 8), dataset="photos")
    html = render(*records, plotted=True)
    html = without_script(html)  # DataTables names addresses in its notices and messages, and asks for none
    assert not re.search(r"https?://|@import|url\((?!#)", html)
    addresses = re.findall(r'\b(?:src|href|xlink:href)="([^"]*)"', html)
    assert addresses
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert "<script" not in html


def without_script(html):
    """The page without its script, and without the data that the script reads."""
    return re.sub(r'<script( type="application/json"[^>]*)?>.*?</script>', "", html, flags=re.DOTALL)


def test_the_policy_admits_only_the_script_of_the_page(make, render):
    html = render(make())
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


def test_ids_are_unique_and_links_lead_somewhere(make, render):
    records = [make(model, attack, eps=eps / 255) for model in "ab" for attack in ("p", "q") for eps in (1, 2)]
    html = render(*records, plotted=True)
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    targets = re.findall(r'\bhref="#([^"]*)"', html) + re.findall(r"url\(#([^)]*)\)", html)
    assert set(targets) <= set(ids)


def test_details_lead_back_to_the_run(make, render):
    record = make(weights="c" * 64, seed=17, failed=2)
    html = render(record)
    for text in (record.id, "c" * 64, "d" * 64, "seed 17", "lpmbench 0.1.0", "38 of 40", "2 failed"):
        assert text in html
    assert "lpmbench attack --model &#39;cnn&#39;" in html
    assert "OutOfMemory: &lt;b&gt;too big&lt;/b&gt;" in html


@pytest.mark.parametrize(("draws", "dashes"), [(1, 4), (4, 1)])
def test_a_deterministic_model_has_dashes_for_what_needs_draws(make, render, draws, dashes):
    html = render(make(draws=draws))
    assert html.count('<td class="number wide" data-order="">–</td>') == dashes  # majority, worst, flips; target hit


def test_every_column_but_the_first_can_be_sorted(make, render):
    html = render(make())
    table = re.search(r'<table id="runs-table">.*?</thead>', html, re.DOTALL).group()
    kinds = re.findall(r'<th scope="col" class="(\w+)', table)  # what the script makes sortable, by mouse and by key
    assert len(kinds) > 15
    assert kinds[0] == "fixed"
    assert set(kinds[1:]) == {"text", "number"}


def test_models_on_other_images_are_told_apart(make, render):
    html = render(make("a"), make("b", first_index=5))
    assert html.count("Models at this budget met different images") == 2
    assert "met different images" not in render(make("a"), make("b"))


def tiles(html):
    """The captions and alternative texts of the gallery, a list for each tile."""
    found = re.findall(r'<figure class="tile">.*?</figure>', html, re.DOTALL)
    texts = r'alt="([^"]*)"|class="(?:says|turn)[^"]*">([^<]*)<|<span>([^<]*)</span></figcaption>'
    return [[a or b or c for a, b, c in re.findall(texts, tile)] for tile in found]


def test_classes_of_examples_go_by_their_names(make, render):
    html = render(make(stored=1, robust=0.0, dataset="fashion", class_names={0: "coat", 1: "shirt"}, mc=10))
    assert tiles(html) == [[
        "original, fashion image 0, true class coat, predicted coat", "predicted coat",
        "perturbation × 10, fashion image 0, true class coat",
        "adversarial, fashion image 0, true class coat, predicted shirt", "predicted shirt",
        "coat → shirt", "fashion image 0, true class coat",
    ]]  # fmt: skip
    assert "L∞ eps 8/255, M = 10" in html


@pytest.mark.parametrize("names", [{}, {0: "0", 1: "1"}, {7: "coat"}])
def test_classes_without_a_name_go_by_their_number(make, render, names):
    ((*_, turn, where),) = tiles(render(make(stored=1, robust=0.0, draws=4, class_names=names)))
    assert (turn, where) == ("0 → 1", "digits image 0, true class 0")


def test_the_name_of_a_class_is_text(make, render):
    evil = '<script>alert(1)</script>" onerror="alert(1)'
    html = render(make(stored=1, robust=0.0, target=3, class_names={0: evil, 3: evil}))
    assert html.count("<script") == 1  # the page's own; with one classifier nothing is compared
    assert "<img src=x" not in html
    assert not re.search(r'<[^>]* onerror="', html)
    escaped = "&lt;script&gt;alert(1)&lt;/script&gt;&#34; onerror=&#34;alert(1)"
    assert f"{escaped} (0) → {escaped} (3)" in html
    assert f"<dt>Target</dt><dd>{escaped} (3)</dd>" in html


@pytest.mark.parametrize(("target", "names", "shown"), [(3, {3: "gibbon"}, "gibbon"), (3, {}, "3")])
def test_a_target_goes_by_its_name(make, render, target, names, shown):
    assert f"<dt>Target</dt><dd>{shown}</dd>" in render(make(target=target, class_names=names))


def test_details_lead_to_the_registered_cards(make, render):
    home = '<dt>Model card</dt><dd class="code">models/ramlpm.toml</dd>'
    digest = cards.model("ramlpm").weights.sha256
    html = render(registered(make))
    assert home in html
    assert html.index(home) < html.index(digest) < html.index('<dd class="code">attacks/pgd.toml</dd>')
    assert "Model card</dt>" not in render(make("ramlpm"))  # another model of that name
    assert "Attack card</dt>" not in render(make(attack="pgd"))


def test_a_worst_case_leads_to_its_card(make, render):
    told = {"entry": "worst case", "members": {"pgd": "9" * 64}}
    assert '<dd class="code">attacks/worst-case.toml</dd>' in render(make(attack="worst-case", attack_identity=told))


OTHERS = [{"entry": "m:f"}, {"parameters": {"glimpses": 3}}, {"weights_sha256": "b" * 64}, {"name": "no such model"}]


@pytest.mark.parametrize("other", OTHERS)
def test_the_card_of_another_model_is_not_a_models_home(make, other):
    record = registered(make)
    assert provenance.model_card(record) == cards.model("ramlpm")
    record.configuration["model"] |= other
    assert provenance.model_card(record) is None


def registered(make):
    """A record of a registered model under a registered attack."""
    record, card = make("ramlpm", parameters={"steps": 3}), cards.model("ramlpm")
    told = {"entry": card.entry, "parameters": card.parameters, "weights_sha256": card.weights.sha256}
    record.configuration["model"] |= told
    record.configuration["attack"]["entry"] = cards.attack("pgd").entry
    return record


def test_the_gallery_stays_small(make, render):
    records = [make(f"model {i}", attack, stored=2) for i in range(25) for attack in ("p", "q")]
    html = render(*records, make("model 0", "noise", knowledge="none", stored=2))
    assert html.count("<img ") == 3 * 48
    assert all(f"model {i}</a> under" in html for i in range(25))  # models take turns
    assert "</a> under noise" not in html


def test_an_interval_is_drawn_as_a_whisker_only_where_there_is_one(make, render):
    assert 'class="whisker"' in render(make(images=20))
    assert 'class="whisker"' not in render(make(images=19))


VERDICTS = {"pass": "✓ passed", "fail": "✕ failed", "undecided": "? undecided", "": "not audited"}


@pytest.mark.parametrize("verdict", VERDICTS)
def test_a_verdict_is_a_word_in_the_ranking_and_among_the_runs(make, render, verdict):
    record = make()
    html = render(record, audits={record.id: make_audit(record, check(verdict))} if verdict else {})
    cells = re.findall(r'<td class="audit[^"]*" data-order="(\d?)"><\w+ class="badge (\w+)"[^>]*>([^<]*)<', html)
    assert [text for _, _, text in cells] == [VERDICTS[verdict]] * 2
    assert {order for order, _, _ in cells} == {{"fail": "0", "undecided": "1", "pass": "2", "": ""}[verdict]}
    assert ("audit failed: white-box vs black-box" in html) == (verdict == "fail")


def test_all_checks_stand_among_the_details(make, render):
    record, other = make(), make("other")
    checks = [
        check("fail", records=(other.id, "9" * 64), note="64 images only"),
        check("not applicable", "eps = 1", judged=None, reference=None, low=None, high=None, images=0, against=""),
        check("pass", "direction", unit="cosine", judged=-0.5, reference=0.25, low=-0.8, high=-0.7),
    ]
    html = render(record, other, audits={record.id: make_audit(record, *checks)})
    table = re.search(r'<table class="findings">.*?</table>', html, re.DOTALL).group()
    for text in ("Is the white-box attack at least as strong?", "62.0 %", "40.1 %", "+21.9 [14.1, 29.7]", "square",
                 "64 images only", "not applicable", "-0.50", "0.25", "-0.75 [-0.80, -0.70]"):  # fmt: skip
        assert text in table, text
    assert f'<a class="code" href="#run-{other.id[:16]}">{other.id[:8]}</a>' in table
    assert '<span class="code">99999999</span>' in table  # not in this page: no link that leads nowhere
    assert "lpmbench audit cnn" in html
    assert 'class="findings"' not in render(record, audits={})


def test_the_text_of_a_check_stays_text(make, render):
    record, evil = make(), "<script>alert(1)</script>"
    audit = make_audit(record, check("fail", evil, question=evil, against=evil, note=evil, records=(evil,)))
    html = render(record, audits={record.id: audit})
    assert html.count("<script") == 1
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 5  # the four of the check, and why there is no rank


def test_details_say_what_was_chosen_and_who_controlled_the_noise(make, render):
    html = render(
        make("ram", choice=["detached"] * 30 + ["reparameterised"] * 10, noise=[("policy", "replayed")]),
        make("cnn", "worst-case", choice=["pgd"] * 25 + ["spsa"] * 15, parameters={"attacks": ["pgd", "spsa"]}),
    )
    assert "<dt>Strongest gradient mode</dt><dd>detached 30, reparameterised 10 (images)</dd>" in html
    assert "<dt>Strongest attack</dt><dd>pgd 25, spsa 15 (images)</dd>" in html
    assert "<dt>Noise control</dt><dd>policy replayed</dd>" in html
    assert html.count('<span class="chosen">worst case: pgd 25, spsa 15</span>') == 1  # in the ranking
    plain = render(make())
    assert "Noise control" not in plain
    assert "<dt>Strongest" not in plain


def test_probes_are_marked_and_can_be_hidden(make, render):
    found, judged = probed(make)
    html = render(*found.values(), audits=judged)
    for name, record in found.items():
        row = re.search(rf'<tr data-run="run-{record.id[:16]}"([^>]*)>(.*?)</tr>', html, re.DOTALL)
        assert ('class="probe"' in row.group(1)) == (name not in ORDINARY)
        assert ('<span class="badge muted">probe</span>' in row.group(2)) == (name not in ORDINARY)
    # without scripts all runs are shown, and the choices, which would do nothing, are not
    assert '<div class="controls" id="filters" hidden>' in html
    assert '<input type="checkbox" id="probes" autocomplete="off">' in html
    assert not re.search(r"<tr [^>]*hidden", html)
    assert f"{len(ORDINARY)} runs, {len(found) - len(ORDINARY)} probes, 1 model, 4 attacks" in html
    assert 'id="probes"' not in render(*found.values(), audits={})


def test_a_check_leads_to_its_probe_and_back(make, render):
    found, judged = probed(make)
    html = render(*found.values(), audits=judged)
    table = re.search(r'<table class="findings">.*?</table>', html, re.DOTALL).group()
    assert f'href="#run-{found["twice"].id[:16]}"' in table
    assert f'href="#run-{found["worst"].id[:16]}"' not in table  # the row that it stands in
    judged_run = f'<a href="#run-{found["worst"].id[:16]}">ram under worst-case, eps 8/255</a>'
    back = f"<dt>Made for the audit of</dt><dd>{judged_run}</dd>"
    assert html.count(back) == 3  # half, twice, frozen; not square and fgsm, which are ordinary attacks


def test_a_number_that_a_probe_found_says_so(make, render):
    found, judged = probed(make, twice=0.4)
    assert html_of_ranking(render(*found.values(), audits=judged)).count("a probe of an audit") == 1
    found, judged = probed(make)
    assert "a probe of an audit" not in html_of_ranking(render(*found.values(), audits=judged))


def test_a_number_that_was_read_from_two_runs_leads_to_both(make, render):
    first = first_half(np.arange(20), 2)
    runs = [make(attack=name, robust=right, images=20, draws=2) for name, right in (("p", first), ("q", ~first))]
    html = html_of_ranking(render(*runs))
    assert 'href="#run-' + runs[0].id[:16] + '">100.0</a>' in html
    both = ", ".join(f'<a href="#run-{run.id[:16]}">{run.id[:8]}</a>' for run in runs)
    assert f"each half of the draws read from another run: {both}</span>" in html
    assert "each half of the draws" not in html_of_ranking(render(runs[0]))


def html_of_ranking(html):
    return re.search(r'<section id="rankings".*?</section>', html, re.DOTALL).group()


def test_probes_are_no_examples(make, render):
    a, half = make("a", stored=1), make("a", eps=4 / 255, stored=1)
    html = render(a, half, audits={a.id: make_audit(a, check(records=(a.id, half.id)))})
    assert html.count("<img ") == 3
    assert "under pgd, L∞ eps 8/255" in html
