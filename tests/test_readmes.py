"""What models/README.md and attacks/README.md say holds: their tables are whole, their examples run as written."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import runpy
import shlex
import shutil
import sys
import textwrap
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from robustbench_lpm.cli import run
from robustbench_lpm.registry import cards
from robustbench_lpm.registry.cards import AttackCard, Kind, ModelCard

REPOSITORY = Path(__file__).parents[1]
README: dict[Kind, Path] = {"model": REPOSITORY / "models/README.md", "attack": REPOSITORY / "attacks/README.md"}
FILES: dict[Kind, list[str]] = {
    "model": ["mymodel.py", "mymodel.toml", "mynoisymodel.toml", "make_weights.py"],
    "attack": ["myattack.py", "myattack.toml"],
}
OWN_MODULES = ["mymodel", "myattack"]


def blocks(readme: Path, *languages: str) -> list[str]:
    """The code blocks in these languages, in order."""
    pattern = rf"^ *```(?:{'|'.join(languages)})\n(.*?)^ *```$"
    return [textwrap.dedent(text) for text in re.findall(pattern, readme.read_text(), re.MULTILINE | re.DOTALL)]


def files(readme: Path) -> dict[str, str]:
    """The blocks that begin with a file's name in a comment, by that name."""
    contents = blocks(readme, "toml", "python")
    return {content.split("\n", 1)[0].removeprefix("# "): content for content in contents}


def commands(readme: Path) -> list[str]:
    return [line for block in blocks(readme, "sh") for line in block.splitlines()]


def rows(readme: Path, heading: str) -> list[str]:
    """Every name in the first column of the table under a heading."""
    section = readme.read_text().split(f"\n{heading}\n", 1)[1].split("\n## ", 1)[0]
    cells = re.findall(r"^\| (`[^|]+) \|", section, re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def keys(card: type[BaseModel], where: str = "") -> list[str]:
    """The keys of a card, those of its tables with dots."""
    found = []
    for name, field in card.model_fields.items():
        tables = [part for part in (field.annotation, *get_args(field.annotation)) if hasattr(part, "model_fields")]
        found += keys(tables[0], f"{where}{name}.") if tables and name in ("input", "weights") else [f"{where}{name}"]
    return found


@pytest.mark.parametrize(("kind", "title"), [("model", "Models"), ("attack", "Attacks")])
def test_every_card_has_a_row(kind: Kind, title: str) -> None:
    assert README[kind].read_text().startswith(f"# {title}\n")
    listed = rows_before_the_first_section(README[kind])
    assert sorted(listed) == cards.names(kind)


def rows_before_the_first_section(readme: Path) -> list[str]:
    return re.findall(r"^\| `(\S+)` \|", readme.read_text().split("\n## ", 1)[0], re.MULTILINE)


@pytest.mark.parametrize(("kind", "card"), [("model", ModelCard), ("attack", AttackCard)])
def test_every_key_has_a_row(kind: Kind, card: type[BaseModel]) -> None:
    assert sorted(rows(README[kind], "## What a card holds")) == sorted(keys(card))


def forget_own_modules() -> None:
    for name in OWN_MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """A folder of its own, whose modules Python forgets afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    yield
    forget_own_modules()


def do(line: str) -> int:
    """Run one line of a README as a shell in this folder would, every program with nothing left of the one before."""
    forget_own_modules()
    outside = list(sys.path)
    try:
        match shlex.split(line):
            case ["lpmbench", *arguments]:
                return run(arguments)
            case ["python", script, "|", "tee", "-a", *targets]:
                sys.path.insert(0, ".")
                with contextlib.redirect_stdout(io.StringIO()) as output:
                    runpy.run_path(script, run_name="__main__")
                for target in targets:
                    with Path(target).open("a") as file:
                        file.write(output.getvalue())
            case ["cp", source, target]:
                shutil.copy(source, target)
            case _:
                raise AssertionError(f"this test does not know how to run: {line}")
    finally:
        sys.path[:] = outside
    return 0


@pytest.mark.parametrize("kind", README)
@pytest.mark.usefixtures("_elsewhere")
def test_the_example_works_as_written(kind: Kind, capsys: pytest.CaptureFixture[str]) -> None:
    contents = files(README[kind])
    assert list(contents) == FILES[kind]
    for name, content in contents.items():
        Path(name).write_text(content)
    lines = commands(README[kind])
    attacking = [line for line in lines if line.startswith("lpmbench attack")]
    assert len(attacking) == 3
    for line in lines:
        if "--trust" in line:
            assert do(line.replace("--trust ", "")) == 1
            assert "read it, then add --trust" in capsys.readouterr().err
        assert do(line) == 0, capsys.readouterr().err
    assert len(list(Path("runs").rglob("record.json"))) == len(attacking)


@pytest.mark.usefixtures("_elsewhere")
def test_the_stochastic_example_keeps_the_contract() -> None:
    """It is graded on as many draws as asked for, and they differ."""
    import robustbench_lpm

    for name, content in files(README["model"]).items():
        Path(name).write_text(content)
    for line in commands(README["model"])[:1]:
        do(line)
    forget_own_modules()
    record = robustbench_lpm.evaluate("./mynoisymodel.toml", "noise", eps=0.0, limit=30, draws=7, trust=True)
    assert record.stochastic
    assert record.predictions.shape == (30, 7)
    assert record.clean_flip_rate > 0
    assert record.clean_accuracy.value > 0.5


@pytest.mark.usefixtures("_elsewhere")
def test_the_examples_work_in_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As both READMEs say, neither a module nor a function of one's own needs a card."""
    import robustbench_lpm

    monkeypatch.syspath_prepend(str(tmp_path))
    for name, content in (files(README["model"]) | files(README["attack"])).items():
        Path(name).write_text(content)
    attack, model = importlib.import_module("myattack"), importlib.import_module("mymodel")
    templates = model.Templates(channels=1, classes=10)
    assert len(robustbench_lpm.evaluate(templates, "fgsm", "digits", eps=0.1, limit=3).outcomes) == 3
    record = robustbench_lpm.evaluate("cnn", attack.momentum_iterative, "digits", eps=0.1, limit=3)
    assert record.attack == "momentum_iterative"
    assert record.outcomes["backwards"].max() == 10


def test_the_suites_are_listed_and_the_example_is_one(tmp_path: Path) -> None:
    readme = REPOSITORY / "suites/README.md"
    assert sorted(rows_before_the_first_section(readme)) == cards.names("suite")
    (example,) = blocks(readme, "toml")
    (tmp_path / "mine.toml").write_text(example)
    (part,) = cards.suite(str(tmp_path / "mine.toml")).part
    assert part.models == [str(tmp_path / "mymodel.toml"), "cnn"]
