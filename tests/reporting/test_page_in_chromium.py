"""The page as a reader meets it: in a browser, by mouse and by keyboard, on a phone, in the dark, without scripts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from robustbench_lpm import reporting
from robustbench_lpm.records.runs import read_all
from robustbench_lpm.reporting import scanpaths
from robustbench_lpm.reporting.scanpaths import Gaze
from tests.reporting.conftest import check, data_of, make_and_read, make_audit

pytest.importorskip("selenium", reason="selenium is not installed (it is in the extra `dev`)")
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from tools.browser import show, start

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="Chromium is not installed (Debian: apt-get install chromium chromium-driver)",
    ),
]
HOSTILE = "<script>alert(1)</script>"
KNOWLEDGE = {"pgd": "white-box", "spsa": "black-box", "noise": "none"}
RESULTS = Path(__file__).parents[2] / "results"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    logs = {"browser": "ALL", "performance": "ALL"}
    driver = start("--window-size=1280,1000", capabilities={"goog:loggingPrefs": logs})
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """34 runs: three models under two attacks and a control at several eps, one of another norm, one averaged, one of
    a hostile name, one that failed its audit, and a probe."""
    make = make_and_read(tmp_path_factory.mktemp("runs"))
    robust = {"cnn": 0.5, "ram": 0.75, HOSTILE: 0.25}
    records = [
        make(model, attack, eps=eps / 255, robust=1.0 if attack == "noise" else share / eps, stored=2,
             knowledge=KNOWLEDGE[attack], draws=4 if model == "ram" else 1)
        for model, share in robust.items()
        for attack in ("pgd", "spsa", "noise")
        for eps in (1, 2, 4)
    ]  # fmt: skip
    good, judged = make("cnn", robust=0.5), make("ram", robust=0.75, draws=4, stored=1)
    probe = make("ram", robust=0.5, draws=4, parameters={"steps": 20})
    records += [good, judged, probe, make("other", norm="l2", eps=0.5), make("averaged", mc=10, draws=4, robust=0.8)]
    records += [make("photo", dataset="photos", size="224", shape=(3, 8, 8), stored=1), make("few", images=5, eps=0.5)]
    audits = {
        good.id: make_audit(good, check("pass")),
        judged.id: make_audit(judged, check("fail", "twice the steps", records=(judged.id, probe.id))),
    }
    out = tmp_path_factory.mktemp("report")
    path = [(0.0, 0.0), (0.5, -0.5), (-0.25, 0.75)]
    scanpaths.write([Gaze(record.id, 0, 0, path, path[::-1]) for record in records if record.model == "ram"], out)
    return reporting.write_report(records, out, audits)[-1]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the published records."""
    out = tmp_path_factory.mktemp("published")
    shutil.copytree(RESULTS / "json", out / "json")  # the scanpaths
    return reporting.write_report(read_all(RESULTS), out)[-1]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run, not audited, of too few images for an interval."""
    make = make_and_read(tmp_path_factory.mktemp("runs"))
    return reporting.write_report([make(images=5)], tmp_path_factory.mktemp("report"), {})[-1]


@pytest.fixture(params=["made here", "tiny", "published"])
def any_page(request: pytest.FixtureRequest, page: Path, tiny: Path) -> Path:
    given: Path = request.getfixturevalue("published") if request.param == "published" else page
    return tiny if request.param == "tiny" else given


class Reader:
    """A browser with the page open, and what is asked of it."""

    def __init__(self, driver: Any, path: Path, width: int = 1280, dark: bool = False, scripts: bool = True) -> None:
        self.driver = driver
        driver.get("about:blank")
        self.logged("browser"), self.logged("performance")
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not scripts})
        show(driver, path, width, 1000, dark=dark)

    def logged(self, kind: str) -> list[Any]:
        return self.driver.get_log(kind)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def click(self, element: Any) -> None:
        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def follow(self, link: Any) -> None:
        """Click a link to a run and wait to be there: the browser tells the page of it after the click."""
        self.click(link)
        there = "return document.activeElement.matches('.toggle button, .findings-title')"
        WebDriverWait(self.driver, 20).until(lambda driver: driver.execute_script(there))

    def choose(self, selector: str, text: str) -> None:
        Select(self.one(selector)).select_by_visible_text(text)

    def column(self, name: str) -> list[str]:
        """The shown values of a column of the table of runs, as they are sorted by."""
        return self.run(
            """const table = document.getElementById("runs-table");
            const place = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent.trim() === arguments[0]);
            return [...table.tBodies[0].querySelectorAll("tr[id]")].map((row) => {
              const cell = row.cells[place];
              return cell.dataset.order ?? cell.textContent.trim();
            });""",
            name,
        )

    def heading(self, name: str) -> Any:
        return next(h for h in self.all("#runs-table thead th") if h.text.strip() == name)

    def info(self) -> str:
        return self.one("#runs .dt-info").text

    def show_all(self) -> None:
        self.click(self.one("#reset"))
        self.choose("#runs .dt-length select", "All")


@pytest.fixture
def reader(browser: Any, page: Path) -> Reader:
    return Reader(browser, page)


def test_nothing_is_complained_of_and_nothing_asked_of_the_network(browser, any_page):
    reader = Reader(browser, any_page)
    assert reader.info().startswith("1 to ")
    reader.run("document.querySelectorAll('details').forEach((element) => { element.open = true; })")
    assert [entry for entry in reader.logged("browser") if entry["level"] != "DEBUG"] == []
    messages = [json.loads(entry["message"])["message"] for entry in reader.logged("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:")] == [browser.current_url]


def test_the_policy_would_stop_a_request(reader):
    """The test above cannot see a request that no visit makes; the policy stands in the way of any."""
    reader.run("new Image().src = 'https://example.org/x.png'; fetch('https://example.org/').catch(() => {});")
    stopped: list[str] = []

    def both(_: Any) -> bool:
        stopped.extend(e["message"] for e in reader.logged("browser") if "violates the following" in e["message"])
        return len(stopped) >= 2

    WebDriverWait(reader.driver, 20).until(both)
    assert sorted("img-src" in message for message in stopped) == [False, True]


@pytest.mark.parametrize("name", ["eps", "Majority"])
def test_numbers_are_sorted_as_numbers_and_what_is_absent_stays_last(reader, name):
    reader.show_all()
    for turn, state in enumerate(("ascending", "descending")):
        reader.click(reader.heading(name).find_element(By.CSS_SELECTOR, ".dt-column-order"))
        assert reader.heading(name).get_attribute("aria-sort") == state
        values = reader.column(name)
        present = [float(value) for value in values if value]
        assert present == sorted(present, reverse=turn == 1)
        assert len(set(present)) > 1
        assert "" not in values[: len(present)]
    assert ("" in values) == (name == "Majority")  # which deterministic models have none of


def test_a_column_is_sorted_from_the_keyboard(reader):
    control = reader.heading("Model").find_element(By.CSS_SELECTOR, "[tabindex='0']")
    assert control.aria_role == "button"
    reader.run("arguments[0].focus()", control)
    reader.driver.switch_to.active_element.send_keys(Keys.ENTER)
    assert reader.heading("Model").get_attribute("aria-sort") == "ascending"
    names = reader.column("Model")
    assert names == sorted(names, key=str.lower)
    assert len(set(names)) > 1


FILTERED = [
    ({"ranking": "digits, original size, L2 eps 0.5, M = 1, first 40 images"}, 1),
    ({"knowledge": "none (control)", "model": "cnn"}, 3),
    ({"attack": "spsa", "model": HOSTILE}, 3),
    ({"audit": "failed"}, 1),
    ({"model": "few", "attack": "spsa"}, 0),
]


def test_runs_are_filtered_sought_and_paged(reader):
    main = "digits, original size, L∞ eps 8/255, M = 1, first 40 images"
    assert Select(reader.one("select[data-choice='ranking']")).first_selected_option.text == main
    assert reader.info() == "1 to 3 of 3 runs"  # two audited, and the probe that decides the number of one
    reader.click(reader.one("#reset"))
    everything = reader.info()
    for choices, left in FILTERED:
        for name, text in choices.items():
            reader.choose(f"select[data-choice='{name}']", text)
        assert len(reader.column("Model")) == left, choices
        assert reader.info() == (f"1 to {left} of {left} runs" if left else "no runs")
        reader.click(reader.one("#reset"))
        assert reader.info() == everything == "1 to 25 of 34 runs"
    first = reader.run("return document.querySelector('#runs-table tr[id]').id")
    reader.click(reader.one("#runs .dt-paging-button.next"))
    assert reader.info() == "26 to 34 of 34 runs"
    assert reader.run("return document.querySelector('#runs-table tr[id]').id") != first
    reader.one("#search").send_keys("l2 OTHER")
    assert reader.column("Model") == ["other"]
    reader.one("#search").clear()
    reader.one("#search").send_keys("a" * 64)  # a checkpoint's hash, which no row shows
    assert reader.info() == "no runs"


def test_a_row_opens_to_its_record_by_mouse_and_by_key(reader):
    button = reader.one("#runs-table .toggle button")
    reader.click(button)
    assert button.get_attribute("aria-expanded") == "true"
    record = reader.one("#" + button.get_attribute("aria-controls"))
    for text in ("Reproduce", "lpmbench attack --model", "Checkpoint sha256", "a" * 64, "seed 0", "cpu"):
        assert text in record.text
    button.send_keys(Keys.SPACE)
    assert button.get_attribute("aria-expanded") == "false"
    assert reader.all("#runs-table .record") == []
    button.send_keys(Keys.ENTER)
    assert reader.one("#runs-table .record").is_displayed()


def test_a_verdict_leads_to_its_evidence_and_on_to_a_probe(reader):
    reader.choose("select[data-choice='model']", "cnn")  # hides the run that is led to
    reader.follow(reader.one("#rankings a.badge.bad"))
    focused = reader.driver.switch_to.active_element
    assert focused.text == "Audit ✕ failed"
    findings = reader.one("#runs-table .findings")
    assert "twice the steps" in findings.text
    assert "+21.9 [14.1, 29.7]" in findings.text
    reader.follow(findings.find_element(By.CSS_SELECTOR, "a.code"))
    shown = next(record for record in reader.all("#runs-table .record") if "steps=20" in record.text.splitlines()[0])
    assert "Made for the audit of" in shown.text


def test_a_number_in_the_ranking_leads_to_its_run_on_whatever_page(reader):
    reader.run("document.querySelectorAll('details.ranking').forEach((element) => { element.open = true; })")
    links = reader.all("#rankings a.value")
    for link in (links[0], links[-1]):
        target = link.get_attribute("hash")[1:]
        reader.follow(link)
        assert reader.one(f"#runs-table #{target}").is_displayed()
        button = reader.one(f"#{target} .toggle button")
        assert button == reader.driver.switch_to.active_element


def test_two_models_are_compared(reader, page):
    budget = next(o.text for o in Select(reader.one("#compare-budget")).options if "eps 4/255" in o.text)
    pairs = next(pairs for name, _, _, pairs in data_of(page.read_text())["comparisons"] if name == budget)
    (pair,) = [p for p in pairs if p[0] == "pgd" and set(p[1:3]) == {"cnn, M = 1", "ram, M = 1"}]
    _, first, second, *_, difference, (low, high), _, _, _ = pair

    def turned(text):
        return f"−{text}".replace("−-", "+") if text.startswith("-") else f"−{text}"

    def signed(text):
        return text.replace("-", "−") if text.startswith("-") else f"+{text}"

    reader.choose("#compare-budget", budget)
    reader.choose("#compare-attack", "pgd")
    reader.choose("#compare-first", first)
    reader.choose("#compare-second", second)
    straight = reader.one("#compare-result").text
    assert f"{signed(difference)} points" in straight
    assert f"[{signed(low)}, {signed(high)}] points" in straight
    reader.choose("#compare-first", second)
    assert "Choose two different classifiers" in reader.one("#compare-result").text
    reader.choose("#compare-second", first)
    assert f"{turned(difference)} points" in reader.one("#compare-result").text
    assert f"[{turned(high)}, {turned(low)}] points" in reader.one("#compare-result").text
    reader.choose("#compare-second", f"{HOSTILE}, M = 1")
    assert HOSTILE in reader.one("#compare-result").text
    assert reader.all("#compare-result script") == []


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models at M = 1 and one of them at M = 10, under one attack at the same settings and one at others; classes
    with names, one of them hostile."""
    make = make_and_read(tmp_path_factory.mktemp("averaged"))
    names = {0: "coat", 1: HOSTILE}
    records = [
        make(model, attack, mc=mc, robust=robust, draws=4, stored=1, class_names=names,
             parameters={"steps": 10, "eot": 2 if attack == "apgd" and mc == 10 else 10})
        for model, mc, robust in (("ram", 1, 0.25), ("cnn", 1, 0.0), ("ram", 10, 0.75))
        for attack in ("pgd", "apgd")
    ]  # fmt: skip
    return reporting.write_report([*records, make("ram", "spsa", draws=4)], tmp_path_factory.mktemp("report"), {})[-1]


def test_a_model_is_compared_with_the_average_of_its_runs(browser, averaged):
    reader = Reader(browser, averaged)
    classifiers = ["ram, M = 1", "cnn, M = 1", "ram, M = 10"]
    assert "M =" not in Select(reader.one("#compare-budget")).first_selected_option.text
    assert [o.text for o in Select(reader.one("#compare-attack")).options] == [
        "lowest over all attacks", "apgd (eot=10)", "apgd (settings differ)", "pgd",
    ]  # fmt: skip
    reader.choose("#compare-attack", "pgd")
    assert [o.text for o in Select(reader.one("#compare-first")).options] == classifiers
    reader.choose("#compare-first", "ram, M = 1")
    reader.choose("#compare-second", "ram, M = 10")
    told = reader.one("#compare-result").text
    assert "−50.0 points" in told
    assert "95 % interval of the difference: [−" in told
    assert "Of 40 images, ram, M = 1 is right more often on 0, ram, M = 10 on 40" in told
    assert " met " not in told
    assert reader.all("#compare-result .warning") == []
    assert [entry for entry in reader.logged("browser") if entry["level"] != "DEBUG"] == []


def test_what_makes_a_pair_unequal_is_said(browser, averaged):
    reader = Reader(browser, averaged)
    reader.choose("#compare-attack", "apgd (settings differ)")
    for first, second in (("ram, M = 1", "ram, M = 10"), ("ram, M = 10", "ram, M = 1")):
        reader.choose("#compare-first", first)
        reader.choose("#compare-second", second)
        eot = [10, 2] if first == "ram, M = 1" else [2, 10]
        told = reader.one("#compare-result").text
        assert f"{first} met apgd (eot={eot[0]}), {second} met apgd (eot={eot[1]})." in told
        assert "The attack ran at unequal settings" in reader.one("#compare-result .warning").text
    reader.choose("#compare-attack", "lowest over all attacks")
    assert "ram, M = 10 was not run under spsa" in reader.one("#compare-result .warning").text


def test_classifiers_are_chosen_from_the_keyboard(browser, averaged):
    reader = Reader(browser, averaged)
    reader.run("document.getElementById('compare-budget').focus()")
    for control in ("compare-attack", "compare-first", "compare-second"):
        reader.driver.switch_to.active_element.send_keys(Keys.TAB)
        focused = reader.driver.switch_to.active_element
        assert focused.get_attribute("id") == control
        focused.send_keys(Keys.END)
    reader.driver.switch_to.active_element.send_keys(Keys.HOME)
    assert reader.one("#compare-first").get_attribute("value") == "ram, M = 10"
    assert reader.one("#compare-second").get_attribute("value") == "ram, M = 1"
    assert "ram, M = 10 is right more often on" in reader.one("#compare-result").text


def test_examples_tell_their_classes(browser, averaged):
    reader = Reader(browser, averaged)
    turns = [turn.text for turn in reader.all("#gallery .turn")]
    assert f"coat → {HOSTILE}" in turns
    tile = reader.all("#gallery .tile")[turns.index(f"coat → {HOSTILE}")]
    *_, attacked = tile.find_elements(By.TAG_NAME, "img")
    assert (
        attacked.get_attribute("alt")
        == f"adversarial, digits image 0, true class coat, predicted {HOSTILE} (4 of 4 draws)"
    )
    assert reader.run("return document.querySelectorAll('script').length") == 2
    assert [entry for entry in reader.logged("browser") if entry["level"] != "DEBUG"] == []


@pytest.mark.parametrize("dark", [False, True])
def test_the_comparison_and_the_examples_fit_a_narrow_screen_and_can_be_read(browser, averaged, dark):
    reader = Reader(browser, averaged, 320, dark)
    reader.choose("#compare-attack", "apgd (settings differ)")
    reader.choose("#compare-second", "ram, M = 10")
    assert reader.run("return document.documentElement.scrollWidth") <= 320
    contrasts = dict(reader.run(CONTRAST, ["#compare-result .warning", "#compare-result .note", ".turn"]))
    assert min(contrasts.values()) >= 4.5, contrasts


def test_one_matrix_of_agreement_is_shown_at_a_time(reader, page):
    found = {f"{model}: {budget}": attacks for model, budget, _, attacks in data_of(page.read_text())["agreements"]}
    select = Select(reader.one("#agreement-choice"))
    assert [option.text for option in select.options] == list(found)
    for name, attacks in found.items():
        select.select_by_visible_text(name)
        assert reader.one("#agreement-matrix h3").text.startswith(name)
        rows = [
            [cell.text for cell in row.find_elements(By.CSS_SELECTOR, "td")] for row in reader.all(".matrix tbody tr")
        ]
        assert [row[:2] for row in rows] == [[wrong, alone] for _, wrong, alone, _ in attacks]
        assert rows[0][2:] == ["–", *attacks[0][3][1:]]


def test_scanpaths_are_drawn_over_the_pictures(reader):
    path = reader.one("#gallery svg.path")
    assert path.is_displayed()
    picture = path.find_element(By.XPATH, "../img")
    assert path.size == pytest.approx(picture.size, abs=1)
    assert len(path.find_elements(By.TAG_NAME, "circle")) == 3


WIDTHS = (320, 390, 768, 1024, 1366, 1440, 1920, 2560)
# Of what has a size: cells whose text is wider than they are, and the height of the tallest row in lines of its text.
LAYOUT = """
for (const element of document.querySelectorAll("details.ranking")) element.open = true;
const shown = (selector) => [...document.querySelectorAll(selector)].filter((element) => element.offsetHeight);
const cut = shown(".ranking :is(td, th), .ranking .scroll, #runs-table :is(td, th)")
  .filter((element) => element.scrollWidth > element.clientWidth + 1).map((element) => element.textContent.trim());
const lines = shown(".ranking tbody tr, #runs-table tr[id]").map((row) => {
  const cell = getComputedStyle(row.querySelector("th"));
  const own = getComputedStyle(row);
  const around = [cell, own].flatMap(({ paddingTop, paddingBottom }) => [paddingTop, paddingBottom]).map(parseFloat);
  return (row.offsetHeight - around.reduce((a, b) => a + b)) / parseFloat(cell.lineHeight);
});
return [cut, Math.max(...lines), document.documentElement.scrollWidth];
"""


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut_and_no_row_is_taller_than_three_lines(browser, any_page, width):
    reader = Reader(browser, any_page, width)
    cut, lines, wide = reader.run(LAYOUT)
    assert cut == []
    assert 1 <= lines <= (3.3 if width > 320 else 4.3)  # the mark of an interval or a badge adds some pixels
    assert wide <= width
    table = "const table = document.querySelector('#runs .scroll'); return table.scrollWidth - table.clientWidth"
    if width <= 390 or width >= 1366:  # between, the table of all runs scrolls in its own region
        assert reader.run(table) <= 1


def test_the_first_screen_holds_the_sentences_and_the_main_ranking(browser, published):
    reader = Reader(browser, published, 1366)
    top = "return document.querySelector(arguments[0]).getBoundingClientRect().top"
    assert reader.run(top, "#answer li") < reader.run(top, "#rankings tbody tr") < 768


def test_the_page_of_the_published_results_is_light_and_not_long(browser, published):
    assert published.stat().st_size < 2.5e6
    reader = Reader(browser, published, 390)
    assert reader.run("return document.documentElement.scrollHeight") < 15_000


@pytest.mark.parametrize(("width", "which"), [(390, "published"), (320, "page")])
def test_a_narrow_screen_need_not_be_scrolled_sideways(browser, request, width, which):
    reader = Reader(browser, request.getfixturevalue(which), width)
    reader.click(reader.one("#runs-table .toggle button"))
    assert reader.one("#runs-table .record").is_displayed()
    assert reader.run("return document.documentElement.scrollWidth") <= width
    for selector in ("#search", "#compare-first", ".dt-paging-button", "#runs-table tbody .value"):
        box = reader.one(selector).rect
        assert box["width"] > 0
        assert box["x"] + box["width"] <= width


CONTRAST = """
const luminance = (colour) => {
  const scale = colour.startsWith("color(srgb") ? 1 : 255; // as color-mix() is told
  const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((value) => value / scale)
    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const colour = getComputedStyle(at).backgroundColor;
    if (!/, 0\\)$|transparent/.test(colour)) return colour;
  }
  return "rgb(255, 255, 255)";
};
return arguments[0].map((selector) => {
  const element = document.querySelector(selector);
  const [a, b] = [luminance(getComputedStyle(element).color), luminance(ground(element))].sort((x, y) => y - x);
  return [selector, (a + 0.05) / (b + 0.05)];
});
"""
TEXTS = ["body", ".note", "h2", "nav a", ".badge.good", ".badge.bad", ".interval", ".unranked .model", ".why",
         ".controls label", ".controls select", ".dt-info", ".dt-paging-button.current", "figcaption span",
         ".matrix td.share"]  # fmt: skip


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_by_day_and_in_the_dark(browser, page, dark):
    """WCAG 2.2 asks for a contrast of 4.5 to 1."""
    reader = Reader(browser, page, dark=dark)
    contrasts = dict(reader.run(CONTRAST, TEXTS))
    assert min(contrasts.values()) >= 4.5, contrasts
    ground = reader.run("return getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(20, 23, 27)") == dark


NAMED = {"button", "link", "combobox", "searchbox", "img", "image", "table", "region", "columnheader"}


def test_whatever_can_be_used_has_a_name_for_a_screen_reader(reader):
    reader.click(reader.one("#runs-table .toggle button"))
    nodes = reader.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    found = [node for node in nodes if not node["ignored"] and node["role"]["value"] in NAMED - {"table"}]
    roles = {node["role"]["value"] for node in found}
    assert {"button", "link", "combobox", "searchbox", "region", "columnheader"} <= roles
    nameless = [node for node in found if not node.get("name", {}).get("value")]
    assert nameless == []
    plots = [node for node in found if node.get("name", {}).get("value", "").startswith("Accuracy against")]
    assert plots
    assert all("% at" in node["description"]["value"] for node in plots)


@pytest.mark.parametrize(("width", "dark"), [(1366, False), (1366, True), (390, False)])
def test_axe_finds_nothing(browser, any_page, width, dark):
    axe = pytest.importorskip("axe_core_python.selenium", reason="axe-core-python is in the extra `dev`").Axe()
    reader = Reader(browser, any_page, width, dark)
    reader.run("document.querySelectorAll('details').forEach((element) => { element.open = true; })")
    reader.click(reader.one("#runs-table .toggle button"))
    browser.set_script_timeout(120)
    found = axe.run(browser, options={"resultTypes": ["violations"]})["violations"]
    assert [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found] == []


def test_the_skip_link_is_met_first(reader):
    reader.one("body").send_keys(Keys.TAB)
    focused = reader.driver.switch_to.active_element
    assert focused.text == "Skip to the table of runs"
    assert focused.location["x"] >= 0


def test_a_hostile_name_is_text(reader):
    assert HOSTILE in [cell.get_attribute("textContent") for cell in reader.all("#rankings th.model")]
    assert reader.run("return document.querySelectorAll('script').length") == 2
    with pytest.raises(Exception, match="no such alert"):
        reader.driver.switch_to.alert.accept()


def test_without_scripts_all_is_there_to_be_read(browser, page):
    reader = Reader(browser, page, scripts=False)
    try:
        rows = reader.all("#runs-table tbody tr")
        assert len(rows) == 34
        assert all(row.is_displayed() for row in (rows[0], rows[-1]))
        target = reader.one("#rankings a.value").get_attribute("hash")
        assert reader.one(f"tr{target}").is_displayed()  # what a number links to
        assert reader.one("#answer li").is_displayed()
        assert reader.one("#plots svg").is_displayed()
        assert not reader.one("#filters").is_displayed()
        assert not reader.one("#comparing").is_displayed()
        assert "leaderboard.json" in reader.one("#compare noscript").text
        assert "leaderboard.md" in reader.one("#runs noscript").text
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
