"""Every setting of a run stands once, in Options; the command line, suites and commands in records are made from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import robustbench_lpm
from robustbench_lpm.cli.attack import attack
from robustbench_lpm.cli.options import of_settings, read_settings
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.options import NAMES, SETTINGS, Options, asked, words_of
from robustbench_lpm.registry import cards

MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"eps": 8}, "did you mean 8/255?"),
    ({"norm": "l3"}, "Unknown norm 'l3'. Did you mean 'l2' or 'l1' or 'l0'?"),
    ({"limit": 0}, "limit must be at least 1, not 0."),
    ({"draws": 0}, "draws must be at least 1, not 0."),
    ({"memory": 0}, "memory must be a number above 0, not 0."),
    ({"memory": float("nan")}, "memory must be a number above 0, not nan."),
    ({"precision": "float16"}, "Unknown precision 'float16'. Did you mean 'bfloat16'?"),
    ({"drws": 3}, "Unknown option 'drws'. Did you mean 'draws'?"),
]


@pytest.mark.parametrize(("given", "said"), MISTAKES, ids=lambda value: str(value)[:40])
def test_mistakes_are_one_line(given: dict[str, Any], said: str) -> None:
    with pytest.raises(LpmbenchError) as error:
        asked({"eps": 0.1} | given)
    assert str(error.value).endswith(said)
    assert "\n" not in str(error.value)


def test_an_option_that_does_not_exist_is_refused_from_python_too() -> None:
    with pytest.raises(LpmbenchError, match="Did you mean 'limit'"):
        robustbench_lpm.evaluate("cnn", "pgd", eps=0.1, limmit=3)


def test_what_users_import_is_there() -> None:
    from robustbench_lpm import cards as public_cards
    from robustbench_lpm import zoo

    assert public_cards is cards
    assert zoo.load_model("cnn").name == "cnn"
    with pytest.raises(ImportError):
        from robustbench_lpm import zzoo  # noqa: F401


def test_the_command_line_has_every_setting_with_its_default() -> None:
    options = {option.name: option for option in attack.params if isinstance(option, click.Option)}
    for name in set(NAMES) - {"eps", "select_draws"}:  # eps takes a list there; selection is for those who study it
        assert options[name].default == SETTINGS[name].default, name
        assert options[name].help == SETTINGS[name].metadata["help"], name


@pytest.mark.parametrize("given", [
    {},
    {"norm": "l2", "limit": 3, "mc": 2, "noise": ("policy=frozen", "first_fixation=fresh")},
    {"device": "cuda:1", "precision": "bfloat16", "memory": 0.005, "labels_fit": True, "target": "7", "seed": -1},
])  # fmt: skip
def test_the_words_of_a_command_read_back(given: dict[str, Any]) -> None:
    found: list[Options] = []

    @click.command()
    @of_settings(*(name for name in NAMES if name != "eps"))
    def command(**rest: Any) -> None:
        found.extend(read_settings(rest | {"eps": ("0.1",)}))

    words = [word.strip("'") for text in words_of(given) for word in text.split(" ", 1)]
    assert CliRunner().invoke(command, words).exit_code == 0
    assert found == [asked({"eps": 0.1} | given)]


def test_a_suite_takes_every_setting(tmp_path: Path) -> None:
    card = tmp_path / "s.toml"
    part = 'dataset = "digits"\nmodels = ["cnn"]\nattacks = ["pgd"]\neps = ["8/255", 0.1]\n'
    settings = 'memory = 0.5\nselect_draws = 3\ntarget = "random"\nnorm = "linf"\nlimit = 2\n'
    card.write_text(f'name = "s"\nsummary = "s"\n[[part]]\n{part}{settings}')
    (one,) = cards.suite(str(card)).part
    expected = {"memory": 0.5, "select_draws": 3, "target": "random", "limit": 2}
    assert one.options() == [asked({"eps": eps} | expected) for eps in ("8/255", 0.1)]
    card.write_text(card.read_text().replace("memory = 0.5", "memory = 0.0"))
    with pytest.raises(LpmbenchError, match="memory must be a number above 0"):
        cards.suite(str(card))
