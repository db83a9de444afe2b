"""Attack loops stay on the device: in 20 steps they read values of it a few times, whatever they attack.

tests/waits.py is the device. Before loops were written like this, 20 steps waited 44 to 523 times.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lpm.architectures.classifier import Classifier
from robustbench_lpm.architectures.precision import reduced
from robustbench_lpm.attacks.apgd import apgd
from robustbench_lpm.attacks.contract import declared
from robustbench_lpm.attacks.pgd import pgd
from robustbench_lpm.attacks.rays import rays
from robustbench_lpm.attacks.spsa import spsa
from robustbench_lpm.attacks.square import square
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.norms import Norm
from robustbench_lpm.protocol.oracle import LOOK_EVERY, ClassifierOracle, Rules
from robustbench_lpm.randomness import Addresses
from robustbench_lpm.registry import cards
from robustbench_lpm.registry.tasks import Attack, resolve_attack, resolve_data
from robustbench_lpm.registry.zoo import load_model
from tests.classifiers import NoisyLinear
from tests.small import budget
from tests.waits import DEVICE, counted

STEPS = 20
# One card of each function; adapters run the loops of other libraries.
NAMES = [name for name in cards.names("attack") if "_adapter" not in (cards.attack(name).entry or "_adapter")]
OWN = sorted({cards.attack(name).entry: name for name in reversed(NAMES)}.values())


def examples(count: int) -> tuple[Tensor, Tensor]:
    found = resolve_data("digits").read(range(count))
    return torch.stack(found.images), found.labels


def frozen(model: str) -> Classifier:
    if model == "noisy":
        return Classifier(NoisyLinear(torch.linspace(-1, 1, 32 * 32).reshape(1, 32, 32), sigma=1.0))
    return copy.deepcopy(load_model(model).classifier).requires_grad_(False).eval()


def long(name: str) -> tuple[Attack, dict[str, Any]]:
    """A registered attack and parameters that make it loop so many times."""
    attack = resolve_attack(name)
    assert attack.function is not None
    known, declaration = inspect.signature(attack.function).parameters, declared(attack.function)
    return attack, budget(name) | {name: STEPS for name in declaration.steps if name in known}


@pytest.mark.parametrize(("model", "norm"), [
    ("cnn", "linf"), ("cnn", "l2"), ("cnn", "l1"), ("noisy", "linf"),
    pytest.param("ramlpm", "linf", marks=pytest.mark.slow),
])  # fmt: skip
@pytest.mark.parametrize("name", OWN)
def test_a_loop_hardly_ever_waits_for_the_device(name: str, model: str, norm: Norm) -> None:
    attack, parameters = long(name)
    classifier = frozen(model)
    if norm not in attack.norms or not attack.applies(classifier):
        return
    images, labels = examples(8)
    labels = labels % 2 if model == "noisy" else labels
    with counted() as waits:
        there, x, y = classifier.to(DEVICE), images.to(DEVICE), labels.to(DEVICE)
        rules = Rules(0, 2 if model == "noisy" else 10, 64, 3)
        there(x, {n: v.to(DEVICE) for n, v in there.sample_noise(Addresses.of(0, range(8), "clean")).items()})
        if attack.carried_over:
            parameters["surrogates"] = [ClassifierOracle(there, x, range(8), rules)]
        waits.counts.clear()
        waits.places.clear()
        assert attack.function is not None
        found = attack.function(ClassifierOracle(there, x, range(8), rules), x, y, norm=norm, eps=0.1, **parameters)
        assert waits.total <= 8, waits.places
    assert found.shape == images.shape


def test_the_device_counts() -> None:
    """Each of these waits on a GPU once."""
    values = torch.arange(3.0)
    with counted() as waits:
        there = values.to(DEVICE)
        for read in (
            lambda: values.to(DEVICE), lambda: there.cpu(), lambda: float(there[0]), lambda: bool((there > 1).any()),
            lambda: there[there > 1], lambda: there.nonzero(), lambda: there.tolist(), lambda: there[torch.tensor([1])],
        ):  # fmt: skip
            before = waits.total
            read()
            assert waits.total == before + 1
        before = waits.total
        there.add_(1).masked_fill_(there > 1, 0)[there.argmax()[None]].clone()
        values.to(DEVICE, non_blocking=True)
        assert waits.total == before
        with pytest.raises(AssertionError, match="mixes"):
            there + values


class LooksRarely(ClassifierOracle):
    """On a CPU, an oracle that lets images leave the batch as on a GPU."""

    def looks(self, step: int) -> bool:
        return step % LOOK_EVERY == LOOK_EVERY - 1

    def rows(self, keep: Tensor) -> ClassifierOracle:
        part = super().rows(keep)
        part.__class__ = LooksRarely
        return part


@pytest.mark.parametrize(("attack", "parameters"), [
    (pgd, {"eps": 0.1, "steps": 21}),
    (apgd, {"eps": 0.1, "steps": 21}),
    (spsa, {"eps": 0.2, "iterations": 12, "pairs": 8, "learning_rate": 0.05}),
    (square, {"eps": 0.2, "queries": 60}),
    (rays, {"eps": 0.2, "queries": 60}),
])  # fmt: skip
def test_the_same_images_are_found_whenever_they_leave_the_batch(attack: Any, parameters: dict[str, Any]) -> None:
    images, labels = examples(24)
    classifier, rules = frozen("cnn"), Rules(0, 10, 64)
    found = [
        attack(kind(classifier, images, range(24), rules), images, labels, norm="linf", **parameters)
        for kind in (ClassifierOracle, LooksRarely)
    ]
    wrong = [classifier(images).argmax(1) != labels for images in found]
    assert 0 < int(wrong[0].sum()) < 24
    assert torch.equal(*wrong)
    torch.testing.assert_close(*found, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("done", "remaining"), [
    ([0, 0, 0, 0, 0, 0, 0, 0], 8),
    ([1, 0, 0, 1, 0, 1, 0, 0], 8),
    ([1, 0, 1, 1, 0, 1, 0, 1], 4),
    ([1, 1, 1, 1, 0, 1, 1, 1], 1),
    ([1, 1, 1, 1, 1, 1, 1, 1], 0),
])  # fmt: skip
def test_batches_are_halved_where_passes_are_recorded(
    done: list[int], remaining: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, _ = examples(8)
    finished = torch.tensor(done).bool()
    oracle = ClassifierOracle(frozen("noisy"), images, range(8), Rules(0, 2, 8))
    assert oracle.remaining(finished).tolist() == [i for i, is_done in enumerate(done) if not is_done]
    monkeypatch.setattr("robustbench_lpm.protocol.oracle.wanted", lambda *_: True)
    kept = oracle.remaining(finished).tolist()
    assert len(kept) == len(set(kept)) == remaining
    assert {i for i, is_done in enumerate(done) if not is_done} <= set(kept)


@pytest.mark.parametrize(("attack", "parameters"), [
    (pgd, {"eps": 0.1, "steps": 21}),
    (apgd, {"eps": 0.1, "steps": 21}),
    (square, {"eps": 0.2, "queries": 60}),
])  # fmt: skip
def test_halved_batches_find_the_same(attack: Any, parameters: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = examples(16)
    classifier, rules = frozen("cnn"), Rules(0, 10, 64)
    found = []
    for halves in (False, True):
        monkeypatch.setattr("robustbench_lpm.protocol.oracle.wanted", lambda *_, halves=halves: halves)
        oracle = LooksRarely(classifier, images, range(16), rules)
        found.append(attack(oracle, images, labels, norm="linf", **parameters))
    torch.testing.assert_close(*found, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["pgd", "apgd-margin"])
def test_what_only_seems_misclassified_is_attacked_further(name: str) -> None:
    """In reduced precision an image may seem misclassified; it is looked at in full precision before it leaves."""
    images, labels = examples(24)
    classifier = frozen("cnn")

    class Mistaken(nn.Module):
        """Says of every image that it is misclassified, by a hair."""

        def forward(self, images: Tensor) -> Tensor:
            logits = classifier.network(images)
            lead = logits.gather(1, labels[: len(logits), None]) - logits.scatter(
                1, labels[: len(logits), None], -1e9
            ).amax(1, keepdim=True)
            return logits.scatter_add(1, labels[: len(logits), None], -lead.detach() - 1e-3)

    attack, quick = resolve_attack(name).function, classifier.around(Mistaken())
    oracle = LooksRarely(classifier, images, range(24), Rules(0, 10, 64), quick=quick)
    assert attack is not None
    found = attack(oracle, images, labels, norm="linf", eps=0.1, steps=4 * LOOK_EVERY)
    assert not torch.equal(found, images)


def test_reduced_precision_finds_nearly_the_same() -> None:
    images, labels = examples(24)
    classifier = frozen("cnn")
    quick = reduced(classifier, images[:1], {})
    found = [
        pgd(
            LooksRarely(classifier, images, range(24), Rules(0, 10, 64), quick=copy_),
            images,
            labels,
            norm="linf",
            eps=0.1,
        )
        for copy_ in (None, quick)
    ]
    left = [int((classifier(images).argmax(1) == labels).sum()) for images in found]
    assert abs(left[0] - left[1]) <= 1


class Broken(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :10] * torch.nan


def test_logits_that_are_no_numbers_are_told_before_the_attack_is_over() -> None:
    images, labels = examples(4)
    with counted():
        x, y = images.to(DEVICE), labels.to(DEVICE)
        oracle = ClassifierOracle(Classifier(Broken()).to(DEVICE), x, range(4), Rules(0, 10, 64))
        with pytest.raises(LpmbenchError, match="NaN"):
            pgd(oracle, x, y, norm="linf", eps=0.1, steps=200)
        pgd(oracle, x, y, norm="linf", eps=0.1, steps=3)
        with pytest.raises(LpmbenchError, match="NaN"):
            oracle.ledger.check()
