"""The page stands alone: it asks nothing of the network, runs one script, and leads every number to its run."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256

import pytest

from robustbench_lpm import reporting


@pytest.fixture
def render(tmp_path):
    def rendered(*records):
        return reporting.write_report(records, tmp_path / "out")[-1].read_text(encoding="utf-8")

    return rendered


def test_nothing_is_fetched(make, render):
    html = render(make(stored=2), make(eps=2 / 255), make("rgb", stored=1, shape=(3, 8, 8), dataset="photos"))
    assert not re.search(r"https?://|@import|url\((?!#)", html)
    addresses = re.findall(r'\b(?:src|href|xlink:href)="([^"]*)"', html)
    assert addresses
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert html.count("<script") == 1


def test_the_policy_admits_only_the_script_of_the_page(make, render):
    html = render(make())
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL).group(1)
    digest = b64encode(sha256(script.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html).group(1)
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{digest}'" in policy
    assert "unsafe-inline" not in policy.replace("style-src 'unsafe-inline'", "")


def test_ids_are_unique_and_links_lead_somewhere(make, render):
    records = [make(model, attack, eps=eps / 255) for model in "ab" for attack in ("p", "q") for eps in (1, 2)]
    html = render(*records)
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
    assert html.count('<td class="number" data-value="">–</td>') == dashes  # majority, worst, flips; target hit


def test_sorting_works_from_the_keyboard(make, render):
    html = render(make())
    headings = re.findall(r'<th scope="col" aria-sort="none"[^>]*>(.*?)</th>', html)
    assert len(headings) > 10
    assert all(heading.startswith('<button type="button"') for heading in headings)


def test_models_on_other_images_are_told_apart(make, render):
    html = render(make("a"), make("b", first_index=5))
    assert html.count("Models at this budget met different images") == 2
    assert "met different images" not in render(make("a"), make("b"))


def test_the_gallery_stays_small(make, render):
    records = [make(f"model {i}", attack, stored=2) for i in range(6) for attack in ("p", "q")]
    html = render(*records, make("model 0", "noise", knowledge="none", stored=2))
    assert html.count("<img ") == 24
    assert all(f"model {i}</a> under" in html for i in range(6))  # models take turns
    assert "</a> under noise" not in html


def test_an_interval_is_drawn_as_a_whisker_only_where_there_is_one(make, render):
    assert 'class="whisker"' in render(make(images=20))
    assert 'class="whisker"' not in render(make(images=19))
