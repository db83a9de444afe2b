"""Estimate how long a plan takes, from the time of a few passes."""

from __future__ import annotations

import time
from typing import Any

import torch

from robustbench_lpm.architectures.classifier import on_device
from robustbench_lpm.architectures.precision import slow_backwards
from robustbench_lpm.hashing import sha256_of_value
from robustbench_lpm.protocol.plan import Plan
from robustbench_lpm.randomness import Addresses


def estimate_seconds(plan: Plan, timed: dict[Any, tuple[float, float]] | None = None) -> float | None:
    """About how long a run takes at most, without the members of a worst case; None if the attack's cost is unknown.

    timed: seconds of passes that were measured for other plans; added to.
    """
    cost, timed = plan.cost(), timed if timed is not None else {}
    if cost is None:
        return None
    alike = (
        id(plan.model.classifier.network), sha256_of_value(plan.data.identity), plan.chunk, plan.options.precision,
        plan.options.device, len(plan.blocks[0]), cost.backwards > 0, _asks_about_many_versions(plan),
    )  # fmt: skip
    if alike not in timed:
        batch = plan.data.read(plan.blocks[0])
        shape = batch.images[0].shape
        images = torch.stack([image for image in batch.images if image.shape == shape]).to(plan.options.device)
        timed[alike] = _time_passes(plan, images, with_backward=cost.backwards > 0)
    forward, backward = timed[alike]
    return len(plan.indices) * ((cost.forwards + plan.grading_passes()) * forward + cost.backwards * backward)


def _time_passes(plan: Plan, images: torch.Tensor, *, with_backward: bool) -> tuple[float, float]:
    """Seconds per image of a forward and of a backward pass as the attack makes them, the faster of two tries."""
    classifier, forward, backward = plan.model.classifier, [], []
    if plan.lowered is not None and not (with_backward and slow_backwards(classifier, plan.options.device)):
        classifier = plan.lowered
    if len(images) < plan.chunk and _asks_about_many_versions(plan):
        images = images.repeat(-(-plan.chunk // len(images)), 1, 1, 1)[: plan.chunk]
    noise = classifier.sample_noise(Addresses.of(0, range(len(images)), "clean"))
    noise = on_device(noise, images.device)
    for _ in range(2):
        inputs = images.clone().requires_grad_(with_backward)
        start = time.perf_counter()
        with torch.set_grad_enabled(with_backward):
            logits = classifier(inputs, noise)
            _wait_for(logits)
        forward.append(time.perf_counter() - start)
        if with_backward:
            start = time.perf_counter()
            (gradient,) = torch.autograd.grad(logits.sum(), inputs)
            _wait_for(gradient)
            backward.append(time.perf_counter() - start)
    return min(forward) / len(images), min(backward, default=0.0) / len(images)


def _wait_for(result: torch.Tensor) -> None:
    result.flatten()[0].item()  # a GPU works asynchronously, until a number is read


def _asks_about_many_versions(plan: Plan) -> bool:
    """Whether the attack queries many versions of one image at once, as those that use no gradients do."""
    cost = plan.cost()
    return cost is not None and cost.forwards > 0 and cost.backwards == 0
