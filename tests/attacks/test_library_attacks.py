"""Attacks of other libraries by their addresses: their budgets, their noise, their errors, and which of them run."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lpm
from robustbench_lpm.architectures.classifier import Classifier
from robustbench_lpm.attacks import libraries
from robustbench_lpm.attacks.libraries.signatures import Parameter, as_the_library_takes, offered
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.norms import distance
from robustbench_lpm.protocol.oracle import ClassifierOracle, Rules
from robustbench_lpm.registry.tasks import resolve_attack, resolve_attacks
from tests.classifiers import Linear, NoisyLinear
from tools.library_table import Tried, row, try_once

WEIGHT = torch.randn(1, 6, 6, generator=torch.Generator().manual_seed(1))
IMAGES = 0.3 + 0.4 * torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(2))
LABELS = torch.zeros(3, dtype=torch.long)
PAGE = Path(__file__).parents[2] / "docs/library-attacks.md"


def oracle_of(network: nn.Module, images: Tensor = IMAGES, indices: list[int] | None = None) -> ClassifierOracle:
    return ClassifierOracle(Classifier(network), images, indices or range(len(images)), Rules(0, 2, 64))


def attacked(address: str, oracle: ClassifierOracle, *, norm: str, eps: float, **parameters: Any) -> Tensor:
    images = oracle.originals
    function = resolve_attack(address, parameters=parameters).function
    assert function is not None
    return function(oracle, images.clone(), LABELS[: len(images)], norm=norm, eps=eps, **parameters)


@pytest.mark.parametrize("address", ["art:ProjectedGradientDescent", "cleverhans:projected_gradient_descent"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_gradient_descent_reaches_the_worst_case_of_a_linear_model(address: str, norm: str) -> None:
    model, eps = Linear(WEIGHT, bias=5.0), 0.02
    found = attacked(address, oracle_of(model), norm=norm, eps=eps)
    dual = WEIGHT.abs().sum() if norm == "linf" else WEIGHT.norm()
    assert torch.allclose(model.margin(IMAGES) - model.margin(found), eps * dual, rtol=0.03)


@pytest.mark.parametrize(
    ("address", "parameters", "factor"),
    [("art:DeepFool", {}, 1.01), ("art:HopSkipJump", {"max_iter": 10, "max_eval": 300}, 1.35)],
)
def test_the_nearest_example_of_a_linear_model(address: str, parameters: dict[str, Any], factor: float) -> None:
    """It is as far as the margin divided by the length of the weights.

    ART's HopSkipJump does not search the boundary after its last step, which goes 1/sqrt(max_iter) beyond it.
    """
    margins = (IMAGES * WEIGHT).flatten(1).sum(1)
    model = Linear(WEIGHT, bias=0.5 - float(margins.min()))
    found = attacked(address, oracle_of(model), norm="l2", eps=9.0, **parameters)
    nearest = model.margin(IMAGES) / WEIGHT.norm()
    assert (model.margin(found) <= 1e-4).all()
    assert (distance(found, IMAGES, "l2") <= factor * nearest + 1e-3).all()


def test_a_stochastic_model_is_asked_for_the_mean_of_as_many_draws_as_it_is_told() -> None:
    oracle = oracle_of(NoisyLinear(WEIGHT, 0.0, sigma=1.0))
    attacked("cleverhans:fast_gradient_method", oracle, norm="linf", eps=0.1, eot=3)
    assert oracle.ledger.forwards.tolist() == oracle.ledger.backwards.tolist() == [3, 3, 3]


@pytest.mark.parametrize("address", ["art:HopSkipJump", "art:SquareAttack", "cleverhans:spsa"])
def test_what_sees_no_gradients_attacks_each_image_by_itself(address: str) -> None:
    """Its result is the same whatever the other images of the batch are, and comes again, bit by bit."""
    short = {"art:HopSkipJump": {"max_iter": 2, "max_eval": 100}, "cleverhans:spsa": {"nb_iter": 2}}.get(address, {})
    model = NoisyLinear(WEIGHT, 1.0, sigma=0.1)
    together = attacked(address, oracle_of(model), norm="linf", eps=0.5, eot=2, **short)
    alone = attacked(address, oracle_of(model, IMAGES[1:2], [1]), norm="linf", eps=0.5, eot=2, **short)
    assert torch.equal(together[1:2], alone)
    assert not torch.equal(alone, IMAGES[1:2])


def test_nothing_is_searched_without_a_budget() -> None:
    oracle = oracle_of(Linear(WEIGHT))
    assert torch.equal(attacked("art:HopSkipJump", oracle, norm="l2", eps=0.0), IMAGES)
    assert oracle.ledger.passes == 0


def test_a_record_holds_the_address_the_parameters_and_the_version() -> None:
    settings: dict[str, Any] = {"eps": 0.08, "limit": 20, "parameters": {"max_iter": 5}}
    record, again = (robustbench_lpm.evaluate("cnn", "art:MomentumIterativeMethod", "digits", **settings) for _ in "12")
    attack = record.configuration["attack"]
    assert attack["entry"] == attack["name"] == "art:MomentumIterativeMethod"
    assert attack["parameters"] == {"eot": 5, "decay": 1.0, "max_iter": 5}
    assert re.fullmatch(r"adversarial-robustness-toolbox \d+\.\d+.*", attack["library"])
    assert record.outcomes["backwards"].tolist() == [5] * 20
    assert record.robust_accuracy.value < record.clean_accuracy.value
    pictures = [[picture.adversarial.tobytes() for picture in each.pictures()] for each in (record, again)]
    assert pictures[0] == pictures[1]


def test_the_images_of_an_attack_that_minimises_are_projected_and_a_note_says_so() -> None:
    record = robustbench_lpm.evaluate(
        "cnn", "art:DeepFool", "digits", norm="l2", eps=0.2, limit=2, parameters={"max_iter": 3}
    )
    assert record.outcomes["l2"].max() <= 0.2 + 1e-6
    assert any("minimises the norm and takes no eps" in note for note in record.notes)


@pytest.mark.parametrize(
    ("address", "parameters", "complaint"),
    [
        ("art:HopSkip", {}, "Unknown attack 'art:HopSkip'. Did you mean 'art:HopSkipJump'?"),
        ("atr:HopSkipJump", {}, "Unknown library 'atr'. Did you mean 'art'?"),
        ("art:EvasionAttack", {}, "Unknown attack 'art:EvasionAttack'"),  # its module has it, but it is no attack
        ("cleverhans:np", {}, "Unknown attack 'cleverhans:np'"),
        ("art:DPatch", {}, "left out: it attacks object detectors"),
        (
            "art:HopSkipJump",
            {"maxiter": 3},
            "no parameter 'maxiter' can be set. There are eot=5, max_iter=50, max_eval",
        ),
        ("art:HopSkipJump", {"batch_size": 3}, "no parameter 'batch_size' can be set"),
        ("art:HopSkipJump", {"norm": "l2"}, "'norm' is set for each run"),
        ("art:HopSkipJump", {"max_iter": 3.5}, "parameter 'max_iter' = 3.5: Input should be a valid integer"),
        (
            "art:ProjectedGradientDescent",
            {"eps_step": "x"},
            "parameter 'eps_step' = 'x': Input should be a valid number",
        ),
        ("art:HopSkipJump", {"eot": 0}, "parameter 'eot' = 0"),
    ],
)
def test_mistakes(address: str, parameters: dict[str, Any], complaint: str) -> None:
    with pytest.raises(LpmbenchError, match=re.escape(complaint)):
        resolve_attacks([address], parameters=parameters)


@pytest.mark.parametrize(
    ("address", "options", "complaint"),
    [
        ("art:DeepFool", {"norm": "linf"}, "works in l2, not in 'linf'"),
        ("art:DeepFool", {"norm": "l2", "target": "random"}, "cannot aim at a target"),
        ("art:SimBA", {"parameters": {"attack": "no"}}, "art:SimBA failed: ValueError: The attack type has to be"),
        ("art:TargetedUniversalPerturbation", {}, "needs a target: give --target"),
    ],
)
def test_what_cannot_be_run_is_one_line(address: str, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(LpmbenchError, match=re.escape(complaint)):
        robustbench_lpm.evaluate("cnn", address, "digits", eps=0.1, limit=2, **options)


def test_a_model_without_a_gradient_is_left_to_attacks_that_need_none() -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 10))

    @torch.no_grad()
    def opaque(images: Tensor) -> Tensor:
        return linear(images)

    with pytest.raises(LpmbenchError, match="'art:BasicIterativeMethod' needs a gradient"):
        robustbench_lpm.evaluate(opaque, "art:BasicIterativeMethod", "digits", eps=0.1, limit=2)
    record = robustbench_lpm.evaluate(
        opaque, "art:SquareAttack", "digits", eps=0.1, limit=2, parameters={"max_iter": 2}
    )
    assert record.outcomes["forwards"].min() > 0


def test_a_library_that_is_missing_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "foolbox", None)  # as if it were not there
    monkeypatch.delitem(sys.modules, "robustbench_lpm.attacks.libraries.of_foolbox", raising=False)
    with pytest.raises(LpmbenchError, match=r"'foolbox' is not installed \(.*\): pip install foolbox$"):
        libraries.names("foolbox")


def card(folder: Path, **changed: Any) -> str:
    keys = {"name": "mine", "summary": "short", "entry": "art:HopSkipJump", "knowledge": "black-box", "norms": ["l2"]}
    lines = [f"{key} = {value!r}" for key, value in (keys | changed).items()]
    (folder / "mine.toml").write_text("\n".join([*lines, "[parameters]", "max_iter = 2", ""]))
    return str(folder / "mine.toml")


def test_a_card_names_an_address_without_being_trusted(tmp_path: Path) -> None:
    attack = resolve_attack(card(tmp_path))
    assert not attack.foreign
    assert attack.parameters == {"eot": 5, "max_iter": 2, "max_eval": 10000, "init_eval": 100, "init_size": 100}
    assert attack.identity["library"].startswith("adversarial-robustness-toolbox ")


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"entry": "art.attacks.evasion:HopSkipJump"}, "code from outside lpmbench"),
        ({"entry": "os:system"}, "code from outside lpmbench"),
        ({"entry": "art:DeepFool", "norms": ["linf"]}, "art:DeepFool works in l2, not in 'linf'"),
        ({"entry": "art:NewtonFool", "targeted": True}, "cannot aim at a target"),
    ],
)
def test_mistakes_in_a_card(changed: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    path = card(tmp_path, **changed)
    path_text = Path(path).read_text().replace("True", "true")
    Path(path).write_text(path_text)
    with pytest.raises(LpmbenchError, match=re.escape(complaint)):
        resolve_attack(path)


def test_an_address_may_be_a_member_of_a_worst_case(tmp_path: Path) -> None:
    (tmp_path / "worst.toml").write_text(
        'name = "worst"\nsummary = "of two"\nmembers = ["noise", "art:FastGradientMethod"]\nknowledge = "white-box"\n'
        'norms = ["linf"]\n'
    )
    record = robustbench_lpm.evaluate("cnn", str(tmp_path / "worst.toml"), "digits", eps=0.1, limit=10)
    assert set(record.outcomes["choice"]) <= {"noise", "art:FastGradientMethod"}
    assert "art:FastGradientMethod" in set(record.outcomes["choice"])


def test_parameters_are_read_from_a_signature() -> None:
    def attack(
        model: nn.Module, norm: float = 2, ρ_init: float = 1, steps: int = 10, sizes: tuple[int, int] = (2, 3),
        scale: float | None = None, callback: Callable[..., Any] | None = None, loss: Any = None, **more: Any,
    ) -> None:  # fmt: skip
        """An attack."""

    found = offered(attack, ["model"])
    assert found == {
        "own_norm": Parameter(float, 2), "rho_init": Parameter(float, 1), "steps": Parameter(int, 10),
        "sizes": Parameter(list, [2, 3]), "scale": Parameter(float | None, None),
    }  # fmt: skip
    assert as_the_library_takes(attack, {"rho_init": 2.0, "sizes": [4, 5]}) == {"ρ_init": 2.0, "sizes": (4, 5)}


def table() -> dict[str, dict[str, str]]:
    """The rows of the page, by library and attack."""
    found: dict[str, dict[str, str]] = {}
    for line in PAGE.read_text().splitlines():
        if heading := re.match(r"## (\w+): ", line):
            rows = found.setdefault(heading[1], {})
        elif found and (named := re.match(r"\| `(\w+)` \|", line)):
            rows[named[1]] = line
    return found


@pytest.mark.slow
@pytest.mark.parametrize("library", libraries.LIBRARIES)
def test_every_attack_does_what_the_page_says(library: str) -> None:
    """It runs or fails as in the table, knows what it declares, and gives the same bytes again."""
    if importlib.util.find_spec({"advlib": "adv_lib"}.get(library, library)) is None:
        pytest.skip(f"{library} is not installed")
    rows, names = table()[library], libraries.names(library)
    assert set(names) <= set(rows)
    for name in names:
        offer = libraries.find(f"{library}:{name}")
        tried = try_once(offer)
        if "needs a package" in tried.reason or "needs a package" in rows[name]:
            continue
        assert row(offer, tried) == rows[name]
        if tried.images is not None:
            assert torch.equal(tried.images, pixels(try_once(offer)))
            forwards, backwards = (min(counts.tolist()) for counts in (tried.ledger.forwards, tried.ledger.backwards))
            assert offer.knowledge == ("white-box" if backwards else "black-box" if forwards else "none"), offer.address


def pixels(tried: Tried) -> Tensor:
    assert tried.images is not None
    return tried.images


def test_the_page_has_a_table_for_each_library_in_which_nearly_all_attacks_run() -> None:
    found = table()
    assert list(found) == list(libraries.LIBRARIES)
    for rows in found.values():
        assert sum(line.endswith("| runs |") for line in rows.values()) >= 0.9 * len(rows) > 0
