"""Every dataset card leads to its function, and the README's example works as it is written."""

from __future__ import annotations

import inspect
import re
import runpy
import sys
import textwrap
from pathlib import Path

import pytest

from robustbench_lpm.datasets.examples import read_examples
from robustbench_lpm.datasets.preprocessing import parse_size
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.registry import cards

README = Path(__file__).parents[2] / "datasets" / "README.md"


def test_every_card_fits_its_function() -> None:
    for name in cards.names("dataset"):
        card = cards.dataset(name)
        parameters = inspect.signature(cards.resolve_entry(card)).parameters
        assert {"data", "split", "folder", *card.parameters} <= set(parameters), name
        assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters.values()), name
        assert parse_size(card.size)


@pytest.mark.parametrize("name", ["digits", "panda"])
def test_what_comes_along_needs_no_data(name: str) -> None:
    card = cards.dataset(name)
    images = cards.resolve_entry(card)(data=None, split="test", folder=card.path.parent, **card.parameters)
    examples = read_examples(images, [0], parse_size(card.size), card.crop, card.channels)
    assert len(examples) == 1
    assert len(images.classes) == card.classes
    assert not card.needs


def test_the_table_of_the_readme_lists_every_data_set() -> None:
    listed = re.findall(r"^\| `(\S+)` \|", README.read_text(), flags=re.MULTILINE)
    assert sorted(listed) == cards.names("dataset")


def files_of_the_readme() -> dict[str, str]:
    """The code blocks that begin with a file's name in a comment."""
    blocks = re.findall(r"^ *```(?:toml|python)\n(.*?)^ *```$", README.read_text(), flags=re.MULTILINE | re.DOTALL)
    contents = [textwrap.dedent(block) for block in blocks]
    return {content.split("\n", 1)[0].removeprefix("# "): content for content in contents}


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The README's files, in a folder of their own, which Python forgets afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mydata", raising=False)
    monkeypatch.chdir(tmp_path)
    for name, content in files_of_the_readme().items():
        (tmp_path / name).write_text(content)
    return tmp_path


def test_the_readme_shows_three_files() -> None:
    assert list(files_of_the_readme()) == ["mydata.toml", "mydata.py", "make_pictures.py"]


def test_the_example_of_the_readme_works_as_written(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = cards.dataset("./mydata.toml")
    with pytest.raises(LpmbenchError, match="--trust"):
        cards.resolve_entry(card)
    entry = cards.resolve_entry(card, trust=True)
    monkeypatch.delitem(sys.modules, "mydata")
    given = {"split": "test", "folder": card.path.parent} | card.parameters
    with pytest.raises(LpmbenchError, match="give its folder with --data DIR"):
        entry(data=Path("pictures"), **given)

    runpy.run_path("make_pictures.py")
    images = entry(data=Path("pictures"), **given)
    examples = read_examples(images, range(len(images)), parse_size(card.size), card.crop, card.channels)
    assert examples.labels.tolist() == list(range(10)) == list(range(card.classes or 0))
    assert all(pixels.shape == (1, 32, 32) and pixels.max() > 0.5 for pixels in examples.images)
    assert len(set(examples.fingerprints)) == 10
    assert cards.dataset("digits").labels == card.labels
