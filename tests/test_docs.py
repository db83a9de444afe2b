"""The Python in the documentation runs as written, and the links of the documentation lead somewhere."""

from __future__ import annotations

import copy
import os
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import torch
from torch import Tensor
from torchvision.utils import save_image

from robustbench_lpm.cli import COMMANDS, run
from robustbench_lpm.registry import zoo
from robustbench_lpm.registry.tasks import resolve_data
from tools.card_tables import CARDS, table

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")])


def python_blocks(page: Path) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))


def test_the_tutorial_runs() -> None:
    namespace: dict[str, Any] = {}
    exec(compile(python_blocks(ROOT / "docs" / "tutorial.md"), "tutorial.md", "exec"), namespace)
    assert namespace["record"].attack == "one_random_corner"
    assert namespace["averaged"].mc == 5


@pytest.mark.slow  # it imports transformers
def test_the_page_of_models_from_elsewhere_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyautoattack.examples.resnet import ResNet18

    page = ROOT / "docs" / "models-from-elsewhere.md"
    namespace: dict[str, Any] = {}
    exec(compile(python_blocks(page), page.name, "exec"), namespace)
    assert namespace["record"].model == "ViTForImageClassification"
    monkeypatch.chdir(tmp_path)
    (command,) = re.findall(r"^lpmbench (models add .*)$", page.read_text(), re.MULTILINE)
    weights = Path(str(find_spec("pyautoattack").origin)).parent / "examples" / "model_test.pt"  # type: ignore[union-attr]
    shutil.copy(weights, tmp_path)
    assert run(shlex.split(command)) == 0
    network = ResNet18()
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    loaded = zoo.load_model("./autoattack-resnet18.toml", trust=True)
    assert torch.equal(loaded.classifier(namespace["pictures"]), network.eval()(namespace["pictures"]))


def test_the_lines_of_the_readme_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On photographs in a folder for each class; here they are digits, and the model looks at one colour."""
    digits = resolve_data("digits")
    batch = digits.read(range(30))  # all ten are among them
    for number, (image, label) in enumerate(zip(batch.images, batch.labels, strict=True)):
        place = tmp_path / "photos" / str(int(label)) / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        save_image(image.expand(3, -1, -1), place)
    monkeypatch.chdir(tmp_path)
    cnn = zoo.load_model("cnn").classifier

    def model(images: Tensor) -> Tensor:
        answers: Tensor = cnn(images[:, :1])
        return answers

    exec(compile(python_blocks(ROOT / "README.md"), "README.md", "exec"), {"model": model})
    assert capsys.readouterr().out.startswith("mine under pgd, linf eps 8/255, imagefolder, 30 image(s)\nclean 100.0 %")


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        links = re.findall(r'\]\(([^)#\s]+)|<img [^>]*src="([^"]+)"', page.read_text())
        targets = [markdown or picture for markdown, picture in links]
        assert [t for t in targets if "://" not in t and not (page.parent / t).exists()] == [], page


# ---------------------------------------------------------------------------------------------------------------------
# The site


class Links(HTMLParser):
    """What a page refers to: `anchors` that it has, `links` to follow, and what a browser `loads` to show it."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preconnect", "preload"):
            self.loads.append(given["href"])
        self.loads += [given[name] for name in ("src", "data", "poster") if name in given and tag != "input"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built in strict mode: whatever MkDocs warns of is an error."""
    pytest.importorskip("mkdocs", reason="MkDocs is not installed (it is in the extra `docs`)")
    built = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(built)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return built


@pytest.mark.slow
def test_the_site_is_whole_and_loads_nothing_from_the_network(site: Path) -> None:
    pages = {page: Links(page) for page in sorted(site.rglob("*.html")) if page.name not in ("404.html",)}
    assert len(pages) > 40
    broken = []
    for page, found in pages.items():
        assert [each for each in found.loads if "://" in each or each.startswith("//")] == [], page
        for target in [*found.links, *found.loads]:
            path, _, anchor = target.partition("#")
            if ":" in path.split("/")[0]:  # another site, a mail address, an image inside the page
                continue
            led = page if not path else (page.parent / unquote(path.partition("?")[0])).resolve()
            led = led / "index.html" if led.is_dir() else led
            anchors = pages[led].anchors if led in pages else {anchor}
            if not led.is_file() or (anchor and unquote(anchor) not in anchors):
                broken.append(f"{page.relative_to(site)} -> {target}")
    assert broken == []
    styles = "".join(sheet.read_text() for sheet in site.rglob("*.css"))
    assert re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//[^)\"']+", styles) == []


@pytest.mark.slow
def test_the_site_shows_what_the_files_hold(site: Path) -> None:
    """Sections are shown once, lists keep their code, and every command and every key of a card is there."""
    own, guide = (site / "how-to/own-model.html").read_text(), (site / "models/index.html").read_text()
    assert "NoisyTemplates" not in guide
    assert re.search(r"<li>(?:(?!</li>).)*NoisyTemplates", re.sub(r"<span[^>]*>|</span>", "", own), re.DOTALL)
    commands = (site / "reference/commands.html").read_text()
    assert [name for name in COMMANDS if f'id="lpmbench-{name}"' not in commands] == []
    assert "--until-decided" in commands
    python = (site / "reference/python.html").read_text()
    functions = ("evaluate", "audit", "table", "plot", "RunRecord")
    assert [name for name in functions if f'-name">{name}</span>' not in python] == []
    shown = (site / "reference/cards.html").read_text()
    assert [key for card in CARDS.values() for key in card.model_fields if f"<code>{key}</code>" not in shown] == []


@pytest.mark.parametrize("name", CARDS)
def test_every_key_of_a_card_is_explained(name: str) -> None:
    rows = [line for line in table(name).splitlines() if line.startswith("| `")]
    assert len(rows) >= len(CARDS[name].model_fields)
    assert [row for row in rows if row.endswith("|  |")] == []


@pytest.mark.slow
def test_the_notebook_runs() -> None:
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed (it is in the extra `dev`)")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (it is in the extra `dev`)")
    stored = nbformat.read(ROOT / "docs/quickstart.ipynb", as_version=4)
    nbformat.validate(stored)
    where = {"metadata": {"path": str(ROOT)}}
    made = nbclient.NotebookClient(copy.deepcopy(stored), timeout=600, kernel_name="python3", resources=where)
    made = made.execute()
    drawn = [[place for place, cell in enumerate(book.cells) if "image/png" in str(cell)] for book in (stored, made)]
    assert drawn[0] == drawn[1] != []  # the stored outputs are those of these cells
    printed = [[bool(cell.get("outputs")) for cell in book.cells] for book in (stored, made)]
    assert printed[0] == printed[1]
