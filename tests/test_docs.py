"""The Python in the documentation runs as written, and the links of the documentation lead somewhere."""

from __future__ import annotations

import re
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from robustbench_lpm.cli import run
from robustbench_lpm.registry import zoo

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


def test_the_three_lines_of_the_readme_run(capsys: pytest.CaptureFixture[str]) -> None:
    code = python_blocks(ROOT / "README.md").replace("eps=0.1", "eps=0.1, limit=20")  # the digits, in seconds
    exec(compile(code, "README.md", "exec"), {"model": zoo.load_model("cnn").classifier})
    assert "Rate(value=" in capsys.readouterr().out


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        links = re.findall(r'\]\(([^)#\s]+)|<img [^>]*src="([^"]+)"', page.read_text())
        targets = [markdown or picture for markdown, picture in links]
        assert [t for t in targets if "://" not in t and not (page.parent / t).exists()] == [], page
