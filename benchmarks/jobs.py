"""What a worker can be asked to do: each job is prepared once, then run and timed as often as wanted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks import ours, reference
from benchmarks.peers import PEERS, Budget
from benchmarks.subjects import Place, data, images_of
from robustbench_lpm.api import evaluate
from robustbench_lpm.architectures.classifier import Classifier
from robustbench_lpm.architectures.precision import pays, reduced
from robustbench_lpm.attacks.spsa import estimate
from robustbench_lpm.options import Precision
from robustbench_lpm.randomness import Addresses, generator
from robustbench_lpm.records.runs import RunRecord
from robustbench_lpm.registry import cards
from robustbench_lpm.training.devices import start
from robustbench_lpm.training.examples import in_memory
from robustbench_lpm.training.loop import _Training
from robustbench_lpm.training.plans import make_plan

Facts = dict[str, float]
TrainingPrecision = Literal["32-true", "bf16-mixed"]
MANY = 10_000  # epochs of which one is timed again and again: a schedule must not end
AT_ONCE = 64  # images that are graded together


class Unavailable(RuntimeError):
    """A job that makes no sense on this device."""


@dataclass(frozen=True)
class Job:
    """`work` is timed; `facts` says afterwards, outside the time, what has come out."""

    work: Callable[[], Any]
    facts: Callable[[Any], Facts] = lambda _: {}
    warm: Callable[[], Any] | None = None  # what is done once beforehand, if not the work itself


def peer(
    place: Place,
    *,
    attack: str,
    peer: str,
    model: str,
    dataset: str,
    count: int,
    budget: dict[str, Any],
    folder: str | None = None,
    long: bool = False,
    untrained: bool = False,
    batch: int | None = None,
) -> Job:
    """Another library's attack. long: warm up with a pass each way. batch: hand over so many images at a time."""
    classifier = place.model(model, untrained=untrained).classifier
    images, labels = images_of(data(dataset, folder), count, place.device)
    function, limits, counter = PEERS[attack][peer], Budget(**budget), Counter([classifier])

    def work() -> Tensor:
        with counter.counting():
            parts = zip(images.split(batch or count), labels.split(batch or count), strict=True)
            return torch.cat([function(classifier, i, t, limits) for i, t in parts])

    def facts(found: Tensor) -> Facts:
        place.restore(classifier)
        return counter.facts() | graded(classifier, found, images, labels, limits.eps)

    return Job(work, facts, (lambda: _pass_each_way(classifier, images)) if long else None)


def own(
    place: Place,
    *,
    attack: str,
    model: str,
    dataset: str,
    count: int,
    eps: float,
    precision: Precision,
    parameters: dict[str, Any],
    folder: str | None = None,
    long: bool = False,
    untrained: bool = False,
    gradient_mode: str | None = None,
    graphs: bool = False,
) -> Job:
    """Our attack. long: warm up with a pass each way. graphs: record its passes as CUDA graphs."""
    _check_that_it_pays(place, precision)
    source = data(dataset, folder)
    plan = ours.plan_for(
        place.model(model, untrained=untrained), attack, source, eps=eps, count=count, precision=precision,
        device=place.device, parameters=parameters, gradient_mode=gradient_mode,
    )  # fmt: skip
    blocks, (images, labels) = ours.batches(plan), images_of(source, count, place.device)
    counter = Counter([plan.classifier, *([plan.quick] if plan.quick is not None else [])])

    def work() -> Tensor:
        with counter.counting(), mock.patch.dict(os.environ, LPMBENCH_GRAPHS=str(int(graphs))):
            return ours.run(plan, blocks)

    def facts(found: Tensor) -> Facts:
        place.restore(plan.classifier)
        return counter.facts() | graded(plan.classifier, found, images, labels, eps)

    return Job(work, facts, (lambda: _pass_each_way(plan.classifier, images)) if long else None)


def passes(
    place: Place, *, model: str, dataset: str, count: int, steps: int, draws: int = 1, folder: str | None = None,
    untrained: bool = False, gradient_mode: str | None = None,
) -> Job:  # fmt: skip
    """The passes that our PGD makes, alone."""
    plan = ours.plan_for(
        place.model(model, untrained=untrained), "pgd", data(dataset, folder), eps=0.1, count=count,
        precision="float32", device=place.device, parameters={}, gradient_mode=gradient_mode,
    )  # fmt: skip
    blocks, counter = ours.batches(plan), Counter([plan.classifier])

    def work() -> None:
        with counter.counting():
            ours.passes(plan, blocks, steps, draws)

    return Job(work, lambda _: counter.facts() | {"images": count})


def queries(place: Place, *, model: str, dataset: str, count: int, each: int) -> Job:
    """The forward passes of so many queries of each image, alone."""
    plan = ours.plan_for(
        place.model(model), "spsa", data(dataset), eps=0.1, count=count, precision="float32", device=place.device,
        parameters={},
    )  # fmt: skip
    blocks, counter = ours.batches(plan), Counter([plan.classifier])

    def work() -> None:
        with counter.counting():
            ours.queries(plan, blocks, each)

    return Job(work, lambda _: counter.facts())


def agreement(
    place: Place, *, model: str, dataset: str, count: int, pairs: int, folder: str | None = None, delta: float = 0.01
) -> Job:
    """The cosine between SPSA's estimates in bfloat16 and in float32 along the same directions."""
    plan = ours.plan_for(
        place.model(model), "spsa", data(dataset, folder), eps=0.1, count=count, precision="bfloat16",
        device=place.device, parameters={},
    )  # fmt: skip
    batch = ours.batches(plan)[0]
    images, labels = batch.images.to(place.device), batch.labels.to(place.device)

    def work() -> Tensor:
        found = [
            estimate(ours.oracle_of(plan, batch, quick=quick), images, labels, None, pairs=pairs, delta=delta)
            for quick in (True, False)
        ]
        return F.cosine_similarity(found[0].flatten(1), found[1].flatten(1))

    return Job(work, lambda cosines: {"mean_cosine": float(cosines.mean()), "lowest_cosine": float(cosines.min())})


def outcomes(
    place: Place, *, model: str, attack: str, count: int, eps: float, parameters: dict[str, Any], **options: Any
) -> Job:
    """Images that fare differently in bfloat16 than in float32; and, to compare, in float32 with another seed."""
    settings: dict[str, Any] = {"eps": eps, "limit": count, "parameters": parameters, "device": place.device} | options
    variants: dict[str, dict[str, Any]] = {"float32": {}, "bfloat16": {"precision": "bfloat16"}, "seed": {"seed": 1}}

    def work() -> dict[str, RunRecord]:
        return {name: evaluate(model, attack, **settings, **changed) for name, changed in variants.items()}

    def facts(found: dict[str, RunRecord]) -> Facts:
        right = {name: _shares_right(record) for name, record in found.items()}
        lost, gained = (right["float32"] - right[name] for name in ("bfloat16", "seed"))
        return {
            "images": count,
            "float32": float(right["float32"].mean()),
            "bfloat16": float(right["bfloat16"].mean()),
            "differ": float(np.abs(lost).mean()),
            "seed": float(right["seed"].mean()),
            "seed_differ": float(np.abs(gained).mean()),
        }

    return Job(work, facts, lambda: None)


def _shares_right(record: RunRecord) -> NDArray[np.float64]:
    """The share of draws on which each image is right under attack, (N,)."""
    predictions, labels = np.stack(record.outcomes["predictions"].to_list()), record.outcomes["label"].to_numpy()
    return (predictions == labels[:, None]).mean(1)


def glimpsing(
    place: Place,
    *,
    model: str,
    size: int,
    batch: int,
    runs: int,
    precision: Precision,
    formulation: str,
    backward: bool,
) -> Job:
    """RAM-LPM with random weights, forward or forward and back ("detached").

    formulation: "reference" (a loop over runs and glimpses; bfloat16 by autocast) or "ours".
    """
    if formulation == "ours":
        _check_that_it_pays(place, precision)
    classifier = place.untrained(model)
    channels = classifier.mean.numel() or 1
    images = torch.rand(batch, channels, size, size, generator=generator("images", size)).to(place.device)
    addresses = Addresses.of(0, range(batch), "attack").draws(runs)
    noise = {name: v.to(place.device) for name, v in classifier.sample_noise(addresses).items()}
    labels = torch.arange(batch, device=place.device)
    lower = precision == "bfloat16"
    if formulation == "reference":

        def forward() -> Tensor:
            with torch.autocast(images.device.type, torch.bfloat16, enabled=lower):
                return reference.forward(classifier, images, noise)

        def gradient() -> Tensor:
            with torch.autocast(images.device.type, torch.bfloat16, enabled=lower):
                return reference.gradient(classifier, images, labels, noise)

    else:
        one = {name: values[:1] for name, values in noise.items()}
        quick: Classifier = reduced(classifier, images[:1], one) if lower else classifier

        def forward() -> Tensor:
            return quick(images, noise).unflatten(0, (runs, batch)).mean(0)

        def gradient() -> Tensor:
            pixels = images.detach().requires_grad_()
            logits = quick(pixels, noise, gradient_mode="detached")
            loss = F.cross_entropy(logits, labels.repeat(runs), reduction="sum") / runs
            return torch.autograd.grad(loss, pixels)[0]

    def work() -> Tensor:
        if backward:
            return gradient()
        with torch.no_grad():
            return forward()

    # The same in every formulation, up to rounding: whoever reads the JSON can see that they do the same.
    return Job(work, lambda found: {"mean_size_of_result": float(found.float().abs().mean())})


def training(
    place: Place, *, model: str, side: int, batch: int, steps: int, precision: TrainingPrecision, bare: bool = False
) -> Job:
    """So many steps of a model's own recipe on random images; bare: only their passes, forward and back."""
    card = cards.model(model)
    recipe = cards.recipe(str(card.recipe))
    changed = recipe.model_copy(update={"batch_size": batch, "precision": precision, "epochs": MANY})
    changed._path = recipe.path
    plan = make_plan(model, recipe=changed, dataset=None, epochs=None, seed=0, command=None, trust=False)
    pixels = torch.randint(256, (batch * steps, card.input.channels, side, side), dtype=torch.uint8)
    images = in_memory(pixels, torch.arange(len(pixels)) % card.classes)
    # Nothing is written: that happens between epochs.
    trained = _Training(plan, Path("unused"), start(place.device), lambda _: images, None)
    positions = list(range(batch))
    found, labels = (trained.fabric.to_device(tensor) for tensor in images.take(positions))
    noise = trained.fabric.to_device(trained._noise(1, 0, positions))

    def epoch() -> float:
        return trained._train_epoch(1, lambda *_: None)[0]["loss"]

    def passes() -> float:
        trained.step.train()
        for _ in range(steps):
            trained.stepper.zero_grad()
            loss = trained.step(found, labels, noise, positions, 1)["loss"]
            trained.fabric.backward(loss)
        return float(loss.detach())

    return Job(passes if bare else epoch, lambda loss: {"loss": loss})


JOBS: dict[str, Callable[..., Job]] = {
    "peer": peer,
    "ours": own,
    "passes": passes,
    "queries": queries,
    "agreement": agreement,
    "outcomes": outcomes,
    "glimpsing": glimpsing,
    "training": training,
}


class Counter:
    """Counts the images that go forward through some networks."""

    def __init__(self, networks: list[Classifier]) -> None:
        self._networks, self._images = networks, 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count from zero."""
        self._images = 0

        def note(_: nn.Module, __: tuple[Tensor, ...], logits: Tensor) -> None:
            self._images += len(logits)  # images may be shared by several draws of noise

        handles = [network.register_forward_hook(note) for network in self._networks]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def facts(self) -> Facts:
        """What was counted."""
        return {"evaluations": self._images}


@torch.no_grad()
def graded(classifier: Classifier, found: Tensor, images: Tensor, labels: Tensor, eps: float) -> Facts:
    """Accuracy by a plain forward pass, and how far the images went."""
    found = found.detach()
    if not bool(((found >= -1e-6) & (found <= 1 + 1e-6)).all()):
        raise ValueError("the attack left [0, 1]")
    largest = float((found - images).abs().max())
    if largest > eps + 1e-5:
        raise ValueError(f"the attack left the ball: {largest} is more than {eps}")
    right = torch.cat([classifier(part).argmax(1) for part in found.split(AT_ONCE)]) == labels
    return {"robust_accuracy": float(right.float().mean()), "images": len(images)}


def resident() -> tuple[int, int]:
    """Bytes that the process has in memory now, and has had at most.

    From /proc, since getrusage's maximum begins with that of the parent process.
    """
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(lines["VmRSS"].split()[0]) * 1024, int(lines["VmHWM"].split()[0]) * 1024


def _check_that_it_pays(place: Place, precision: str) -> None:
    if precision == "bfloat16" and not pays(place.device):
        raise Unavailable("the device has no instructions for bfloat16")


def _pass_each_way(classifier: Classifier, images: Tensor) -> None:
    pixels = images.detach().requires_grad_()
    torch.autograd.grad(classifier(pixels).sum(), pixels)
