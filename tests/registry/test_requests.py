"""What `evaluate` is asked for from Python: several runs at once, names of one's own, commands that repeat a record."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import robustbench_lpm
from robustbench_lpm.api import FailedRuns
from robustbench_lpm.cli import run as lpmbench
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.records import runs as records
from robustbench_lpm.registry import zoo
from robustbench_lpm.registry.tasks import resolve_attack
from tests.attacks.test_closed_forms import Linear

DATA = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 1])


def linear() -> Linear:
    return Linear(torch.linspace(-1, 1, 64).reshape(1, 8, 8))


def still(oracle: Any, images: Tensor, labels: Tensor, *, norm: str, eps: float, steps: int = 1) -> Tensor:
    """An attack of one's own."""
    return images


def broken(oracle: Any, images: Tensor, labels: Tensor, *, norm: str, eps: float) -> Tensor:
    raise RuntimeError("wrong\nby design")


SEVERAL: list[tuple[Any, Any, list[tuple[str, float]]]] = [
    (["pgd", "fgsm"], ["2/255", 0.1], [("pgd", 2 / 255), ("pgd", 0.1), ("fgsm", 2 / 255), ("fgsm", 0.1)]),
    (["noise"], 0.1, [("noise", 0.1)]),
    ("noise", ["0.1"], [("noise", 0.1)]),
    (("noise", still, "noise"), (0.1, np.float32(0.1), "1/10"), [("noise", 0.1), ("still", 0.1)]),
    ("noise", np.array([0.1, 0.2]), [("noise", 0.1), ("noise", 0.2)]),
    ("noise", torch.tensor([1 / 255, 0.1]), [("noise", 1 / 255), ("noise", 0.1)]),
]


@pytest.mark.parametrize(("attack", "eps", "expected"), SEVERAL)
def test_a_list_gives_a_list_attack_by_attack(attack: Any, eps: Any, expected: list[tuple[str, float]]) -> None:
    found = robustbench_lpm.evaluate(linear(), attack, DATA, eps=eps)
    assert [(record.attack, record.eps) for record in found] == expected


def test_one_of_each_gives_one_record() -> None:
    alone = robustbench_lpm.evaluate(linear(), "noise", DATA, eps="0.1")
    assert [alone.id] == [record.id for record in robustbench_lpm.evaluate(linear(), ["noise"], DATA, eps=[0.1])]


def test_parameters_go_to_the_attacks_that_know_them() -> None:
    found = robustbench_lpm.evaluate(linear(), ["pgd", "noise", still], DATA, eps=0.1, parameters={"steps": 3})
    steps = [record.configuration["attack"]["parameters"].get("steps") for record in found]
    assert steps == [3, None, 3]
    with pytest.raises(LpmbenchError, match="Did you mean 'steps'"):
        robustbench_lpm.evaluate(linear(), ["pgd", "noise"], DATA, eps=0.1, parameters={"stepz": 3})


def test_a_run_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    with pytest.raises(FailedRuns) as error:
        robustbench_lpm.evaluate(
            linear(), [broken, "pgd-kiritani2020", "noise"], DATA, eps=0.1, norm="l2", out=tmp_path
        )
    assert [(record.attack, bool(record.failures)) for record in error.value.records] == [
        ("broken", True),
        ("noise", False),
    ]
    assert str(error.value).startswith("2 of 3 runs failed: ")
    assert "RuntimeError: wrong by design" in str(error.value)
    assert "'pgd-kiritani2020' works in linf" in str(error.value)
    assert "\n" not in str(error.value)
    assert len(records.read_all(tmp_path)) == 2


NONSENSE: list[tuple[dict[str, Any], str]] = [
    ({"eps": 8}, "did you mean 8/255?"),
    ({"eps": "8"}, "did you mean 8/255?"),
    ({"eps": None}, "eps None is not a number"),
    ({"eps": []}, "eps is empty"),
    ({"eps": [0.1, 8]}, "did you mean 8/255?"),
    ({"limit": 0}, "limit must be at least 1"),
    ({"attack": []}, "name an attack"),
    ({"attack": 3}, "name an attack"),
    ({"attack": None}, "name an attack"),
    ({"attack": ["pgd", "pdg"]}, "Did you mean 'pgd'?"),
    ({"model": "cnn", "name": "mine"}, "name='mine' is for a model handed over"),
    ({"model": zoo.load_model("cnn"), "name": "mine"}, "'cnn' has a name already"),
    ({"name": " "}, "must be a few words"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "message"), NONSENSE, ids=lambda value: str(value)[:40])
def test_nonsense_is_one_line(changed: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"model": linear(), "attack": "noise", "dataset": DATA, "eps": 0.1} | changed
    with pytest.raises(LpmbenchError) as error:
        robustbench_lpm.evaluate(**given)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_model_handed_over_goes_by_the_name_it_is_given() -> None:
    """And so does its audit; the name is a part of what tells its records apart."""
    named = robustbench_lpm.evaluate(linear(), "noise", DATA, eps=0.1, name="my linear")
    plain = robustbench_lpm.evaluate(linear(), "noise", DATA, eps=0.1)
    assert (named.model, plain.model) == ("my linear", "Linear")
    assert named.id != plain.id
    audit = robustbench_lpm.audit(linear(), "fgsm", DATA, eps="0.6", black_box=["square"], name="my linear")
    assert audit.model == "my linear"


RUNS: list[tuple[dict[str, Any], str]] = [
    ({"attack": "noise"}, "--attack noise"),
    ({"attack": "pgd", "parameters": {"steps": 2, "loss": "margin"}, "eps": "8/255"}, "--set steps=2"),
    ({"attack": "transfer", "parameters": {"steps": 2}, "surrogates": ["cnn-at"]}, "--surrogate cnn-at"),
    ({"attack": "noise", "memory": 0.25}, "--memory 0.25"),
    ({"attack": "fgsm", "norm": "l2", "eps": 1.5, "size": "24"}, "--size 24"),
    ({"model": "ram", "attack": "noise", "noise": "frozen", "draws": 3, "mc": 2}, "--mc 2"),
]


@pytest.mark.parametrize(("asked", "said"), RUNS, ids=[said for _, said in RUNS])
def test_the_command_of_what_has_names_runs_as_it_stands(asked: dict[str, Any], said: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"model": "cnn", "dataset": "digits", "eps": 0.1, "limit": 2} | asked
    record = robustbench_lpm.evaluate(**given)
    assert said in record.command
    words = shlex.split(record.command)
    assert words[0] == "lpmbench"
    assert lpmbench([*words[1:], "--out", str(tmp_path)]) == 0
    assert [again.id for again in records.read_all(tmp_path)] == [record.id]


REGISTERED = {"model": "cnn", "dataset": "digits"}
HANDED_OVER: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ['evaluate(Linear, \'noise\', (images, labels)', "eps='8/255'", "limit=4"]),
    ({"name": "mine"}, ["evaluate(Linear, ", "name='mine'"]),
    ({"attack": still, "parameters": {"steps": 4}}, ["(Linear, still, (images, labels)", "parameters={'steps': 4}"]),
    (REGISTERED | {"attack": still, "size": "24"}, ["evaluate('cnn', still, 'digits'", "size='24'"]),
    (REGISTERED | {"attack": "transfer", "surrogates": [zoo.load_model("cnn-at").classifier.network]},
     ["evaluate('cnn', 'transfer', 'digits'", "surrogates=[Cnn]"]),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "said"), HANDED_OVER, ids=[said[0] for _, said in HANDED_OVER])
def test_the_command_of_what_was_handed_over_says_so(asked: dict[str, Any], said: list[str]) -> None:
    given: dict[str, Any] = {"model": linear(), "attack": "noise", "dataset": DATA, "eps": 8 / 255, "limit": 4} | asked
    command = robustbench_lpm.evaluate(**given).command
    assert command.startswith("from Python: robustbench_lpm.evaluate(")
    for words in said:
        assert words in command


def test_an_attack_object_that_was_resolved_by_name_keeps_its_command() -> None:
    attack = resolve_attack("pgd", parameters={"steps": 3})
    assert "--attack pgd" in robustbench_lpm.evaluate("cnn", attack, "digits", eps=0.1, limit=2).command
