"""CUDA graphs: a pass whose shape repeats is recorded once, and then all of its kernels are launched at once.

Launching is what passes of glimpsing networks wait for: a step of RAM-LPM on a hundred images has 681 kernels, which
keep an H100 busy for 2 ms and a processor for 24 ms. A replay runs no Python. So only networks are recorded whose
answers cannot depend on any: frozen, in eval mode, and of modules of torch, torchvision and ours alone. The environment
can set LPMBENCH_GRAPHS to 0, for none, and to 1, for all networks.
"""

from __future__ import annotations

import os
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_lpm.architectures.classifier import Classifier, Noise
from robustbench_lpm.devices import free_memory
from robustbench_lpm.errors import in_one_line

RECORD_AT = 4  # calls of one shape before it is recorded: recording takes as long as five of them
MOST_RECORDED = 32  # shapes: each keeps its inputs and results
TOLERANCE = 1e-4  # of a gradient, in shares of its largest value: sums by atomic additions differ from call to call
SHARE = 0.5  # of the free memory that a recorded pass may take
PURE = ("torch", "torchvision", "robustbench_lpm")  # packages whose modules do the same at every call

Pass = Callable[..., Tensor]


_recorded: weakref.WeakKeyDictionary[Classifier, Recorded] = weakref.WeakKeyDictionary()
_pure: weakref.WeakKeyDictionary[Classifier, bool] = weakref.WeakKeyDictionary()


def recorded(classifier: Classifier, device: torch.device, told: Callable[[str], None]) -> Pass:
    """The passes of a classifier on a device, recorded where that is wanted; see `Recorded`."""
    if not wanted(classifier, device):
        return classifier
    if classifier not in _recorded:
        _recorded[classifier] = Recorded(classifier, told)
    return _recorded[classifier]


def wanted(classifier: Classifier, device: torch.device) -> bool:
    """Whether passes of a classifier on a device are to be recorded."""
    asked = os.environ.get("LPMBENCH_GRAPHS")
    if device.type != "cuda" or asked == "0":
        return False
    if asked != "1" and classifier not in _pure:
        _pure[classifier] = pure(classifier)
    return asked == "1" or _pure[classifier]


def pure(classifier: nn.Module) -> bool:
    """Whether a pass is known to do the same at every call: Python of others may count its calls."""
    modules, frozen = list(classifier.modules()), not any(weight.requires_grad for weight in classifier.parameters())
    return frozen and all(
        type(module).__module__.partition(".")[0] in PURE
        and not module.training
        and not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
        for module in modules
    )


class Recorded:
    """The passes of a classifier, each of them replayed if its shape has come a few times.

    A recording is compared with the pass itself before it is used: the logits must be the same bits, the gradients
    equal up to TOLERANCE. What cannot be recorded, or differs, is computed as before, and `told` gets the reason.

    Between a pass and its backward pass there must be no other recorded pass: they share memory.
    """

    def __init__(self, classifier: Classifier, told: Callable[[str], None]) -> None:
        self.classifier, self.told = classifier, told
        self._calls: Counter[object] = Counter()
        self._recorded: dict[object, Pass] = {}
        self._pool: Any = None  # of memory, which all recordings share: no two of them are under way at once

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
            with torch.cuda.device(images.device), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch, about streams and what could not be recorded
                if not _fits(once, images, values):
                    self.told("the memory that is free is too little for a recorded pass")
                    return once
                self._pool = self._pool or torch.cuda.graph_pool_handle()
                inputs = sample, *(value.clone() for value in values)
                graph: Any = torch.cuda.make_graphed_callables(once, inputs, pool=self._pool)
        except Exception as error:  # a pass that waits for the device, or draws from a generator, and many more
            self.told(in_one_line(error))
            return once

        def replay(images: Tensor, *values: Tensor) -> Tensor:
            # Products with 1 are copies in both directions: the next replay overwrites logits and gradients.
            with torch.cuda.device(images.device):
                return graph(images * 1, *values) * 1

        if problem := difference(replay, once, images, values):
            self.told(problem)
            return once
        return replay


def _fits(once: Pass, images: Tensor, values: Sequence[Tensor]) -> bool:
    """Whether a second pass finds room beside what torch keeps, by the peak of one; what it keeps unused is freed."""
    device = images.device
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    _answers(once, images, values)
    needed = torch.cuda.max_memory_allocated(device) - before
    if needed > SHARE * torch.cuda.mem_get_info(device)[0]:
        torch.cuda.empty_cache()
    return needed <= SHARE * free_memory(str(device))


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
