"""CUDA graphs: a pass whose shape repeats is recorded once, and then all of its kernels are launched at once.

Off unless the environment sets LPMBENCH_GRAPHS=1: it has not been measured on a GPU yet.
"""

from __future__ import annotations

import os
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from robustbench_lpm.architectures.classifier import Classifier, Noise
from robustbench_lpm.errors import in_one_line

RECORD_AT = 4  # calls of one shape before it is recorded: recording takes as long as five of them
MOST_RECORDED = 32  # shapes: each keeps the memory of its activations
TOLERANCE = 1e-4  # of a gradient, in shares of its largest value: sums by atomic additions differ from call to call

Pass = Callable[..., Tensor]


_recorded: weakref.WeakKeyDictionary[Classifier, Recorded] = weakref.WeakKeyDictionary()


def recorded(classifier: Classifier, device: torch.device, told: Callable[[str], None]) -> Pass:
    """The passes of a classifier on a device, recorded where that is wanted; see `Recorded`."""
    if not wanted(device):
        return classifier
    if classifier not in _recorded:
        _recorded[classifier] = Recorded(classifier, told)
    return _recorded[classifier]


def wanted(device: torch.device) -> bool:
    """Whether passes on a device are to be recorded."""
    return os.environ.get("LPMBENCH_GRAPHS") == "1" and device.type == "cuda"


class Recorded:
    """The passes of a classifier, each of them replayed if its shape has come a few times.

    A recording is compared with the pass itself before it is used: the logits must be the same bits, the gradients
    equal up to TOLERANCE. What cannot be recorded, or differs, is computed as before, and `told` gets the reason.

    Between a pass and its backward pass there must be no other pass of the same shape: they share memory.
    """

    def __init__(self, classifier: Classifier, told: Callable[[str], None]) -> None:
        self.classifier, self.told = classifier, told
        self._calls: Counter[object] = Counter()
        self._recorded: dict[object, Pass] = {}

    def __call__(self, images: Tensor, noise: Noise, *, gradient_mode: str | None = None) -> Tensor:
        """The logits of the classifier, see `Classifier.forward`."""
        names, values = list(noise), list(noise.values())
        backwards = images.requires_grad and torch.is_grad_enabled()
        shape = (tuple(images.shape), tuple((n, tuple(v.shape)) for n, v in noise.items()), backwards, gradient_mode)

        def once(images: Tensor, *values: Tensor) -> Tensor:
            given = dict(zip(names, values, strict=True))
            return self.classifier(images, given, gradient_mode=gradient_mode)

        self._calls[shape] += 1
        if shape not in self._recorded and self._calls[shape] >= RECORD_AT and len(self._recorded) < MOST_RECORDED:
            self._recorded[shape] = self._record(once, images, values)
        return self._recorded.get(shape, once)(images, *values)

    def _record(self, once: Pass, images: Tensor, values: Sequence[Tensor]) -> Pass:
        sample = images.detach().clone().requires_grad_(images.requires_grad)
        try:
            graph: Any = torch.cuda.make_graphed_callables(once, (sample, *(value.clone() for value in values)))
        except Exception as error:  # a pass that waits for the device, or draws from a generator, and many more
            self.told(in_one_line(error))
            return once

        def replay(images: Tensor, *values: Tensor) -> Tensor:
            # Products with 1 are copies in both directions: the next replay overwrites logits and gradients.
            return graph(images * 1, *values) * 1

        if problem := difference(replay, once, images, values):
            self.told(problem)
            return once
        return replay


def difference(replay: Pass, once: Pass, images: Tensor, values: Sequence[Tensor]) -> str:
    """How two ways to compute the same pass differ, "" if they do not."""
    replayed, expected = (_answers(way, images, values) for way in (replay, once))
    if not torch.equal(replayed[0], expected[0]):
        return "the logits of a recorded pass differ"
    for found, wanted in zip(replayed[1:], expected[1:], strict=True):
        if not torch.allclose(found, wanted, rtol=0, atol=TOLERANCE * float(wanted.abs().amax())):
            return "the gradients of a recorded pass differ"
    return ""


def _answers(way: Pass, images: Tensor, values: Sequence[Tensor]) -> list[Tensor]:
    """Logits, and the gradient of their sum if the images want one."""
    start = images.detach().requires_grad_(images.requires_grad)
    logits = way(start, *values)
    return [logits.detach(), *(torch.autograd.grad(logits.sum(), start) if logits.requires_grad else ())]
