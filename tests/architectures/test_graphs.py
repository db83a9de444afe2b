"""Recorded passes: what a machine without a GPU can see of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustbench_lpm.architectures import graphs
from robustbench_lpm.architectures.classifier import Classifier
from robustbench_lpm.registry.zoo import load_model
from tests.classifiers import Linear

IMAGES = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def classifier() -> Classifier:
    return Classifier(Linear(torch.linspace(-1, 1, 16).reshape(1, 4, 4)))


CUDA, CPU = torch.device("cuda"), torch.device("cpu")


class Counting(nn.Linear):
    """A network that knows how often it was asked; a replay would not tell it."""

    calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(images.flatten(1)) * self.calls


def test_networks_that_do_the_same_at_every_call_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = load_model("ramlpm").classifier, Classifier(Counting(16, 10)).requires_grad_(False).eval()
    for asked, recorded in ((None, [True, False]), ("1", [True, True]), ("0", [False, False])):
        if asked is not None:
            monkeypatch.setenv("LPMBENCH_GRAPHS", asked)
        assert [graphs.wanted(each, CUDA) for each in (ours, theirs)] == recorded
        assert not any(graphs.wanted(each, CPU) for each in (ours, theirs))
        assert (graphs.recorded(theirs, CUDA, print) is not theirs) is recorded[1]
        assert graphs.recorded(ours, CUDA, print) is graphs.recorded(ours, CUDA, print)
        assert graphs.recorded(ours, CPU, print) is ours


@pytest.mark.parametrize(("change", "expected"), [
    (lambda network: None, True),
    (lambda network: network[1].train(), False),
    (lambda network: network[0].requires_grad_(True), False),
    (lambda network: network[1].register_forward_hook(lambda *_: None), False),
    (lambda network: network.append(Counting(10, 10)).requires_grad_(False).eval(), False),
])  # fmt: skip
def test_a_pass_does_the_same_only_if_nothing_in_it_can_change(
    change: Callable[[nn.Sequential], object], expected: bool
) -> None:
    network = nn.Sequential(nn.Linear(16, 10), nn.Dropout()).requires_grad_(False).eval()
    change(network)
    assert graphs.pure(network) is expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can record it")
def test_what_cannot_be_recorded_is_computed_and_told_once() -> None:
    told: list[str] = []
    plain = classifier()
    passes = graphs.Recorded(plain, told.append)
    for _ in range(graphs.RECORD_AT + 2):
        torch.testing.assert_close(passes(IMAGES, {}), plain(IMAGES), rtol=0, atol=0)
    assert len(told) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("backwards", [False, True])
def test_a_recorded_pass_gives_the_same(backwards: bool) -> None:
    told: list[str] = []
    plain, images = classifier().to("cuda"), IMAGES.to("cuda")
    passes = graphs.Recorded(plain, told.append)
    for number in range(graphs.RECORD_AT + 2):
        inputs = (images + number / 100).requires_grad_(backwards)
        assert graphs.difference(lambda x: passes(x, {}), plain, inputs, []) == ""
    assert told == []


def test_a_pass_that_differs_is_recognised() -> None:
    def plain(images: Tensor) -> Tensor:
        return images.flatten(1) ** 2

    def other_logits(images: Tensor) -> Tensor:
        return plain(images) * (1 + 1e-6)

    def other_gradients(images: Tensor) -> Tensor:
        return plain(images.detach()) + (images - images.detach()).flatten(1)

    assert graphs.difference(plain, plain, IMAGES, []) == ""
    assert "logits" in graphs.difference(other_logits, plain, IMAGES, [])
    wanting = IMAGES.clone().requires_grad_()
    assert graphs.difference(plain, plain, wanting, []) == ""
    assert "gradients" in graphs.difference(other_gradients, plain, wanting, [])
