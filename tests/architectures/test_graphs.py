"""Recorded passes: what a machine without a GPU can see of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustbench_lpm.architectures import graphs
from robustbench_lpm.architectures.classifier import Classifier
from tests.classifiers import Linear

IMAGES = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def classifier() -> Classifier:
    return Classifier(Linear(torch.linspace(-1, 1, 16).reshape(1, 4, 4)))


def test_nothing_is_recorded_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert not graphs.wanted(cuda)
    monkeypatch.setenv("LPMBENCH_GRAPHS", "1")
    assert graphs.wanted(cuda)
    assert not graphs.wanted(cpu)
    plain = classifier()
    assert graphs.recorded(plain, cpu, print) is plain
    assert graphs.recorded(plain, cuda, print) is graphs.recorded(plain, cuda, print)


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
