"""Validation and final accuracy of a network, on noise that training never uses."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from lightning_fabric import Fabric
from torch import Tensor

from robustbench_lpm.architectures.classifier import Classifier, on_device
from robustbench_lpm.architectures.recurrent_attention import Policy, RecurrentAttention
from robustbench_lpm.randomness import Addresses, Purpose
from robustbench_lpm.registry.cards import Validation
from robustbench_lpm.training.devices import Totals, share, sums
from robustbench_lpm.training.examples import LabelledImages
from robustbench_lpm.training.objectives import Objective, TrainingBatch

FINAL_DRAWS = 10  # at the end; also the M of the averaged classifier
# Images at once, fewer if their pixels would take more than CHUNK_BYTES. Fixed on a GPU, too: what memory is free
# differs from start to start, and a training that is resumed must choose the same best epoch.
CHUNK, CHUNK_ON_GPU = 250, 1000
CHUNK_BYTES = 2**28
CONTROLS: tuple[Policy, ...] = ("random", "centre")


@torch.no_grad()
def validate(
    classifier: Classifier,
    objective: Objective,
    images: LabelledImages,
    seed: int,
    device: torch.device,
    settings: Validation = Validation(),  # noqa: B008 (it is frozen)
    fabric: Fabric | None = None,
) -> dict[str, float]:
    """Every term of the objective, averaged over images and, for a stochastic network, over single draws (M = 1).

    For several draws also "accuracy_mM", that of their mean logits; with settings.controls, for a glimpsing network,
    "accuracy_random" and "accuracy_centre", that of one draw under those policies. The noise is the same at every
    epoch, so that epochs are comparable. Several processes share the images.
    """
    classifier.eval()
    count = min(settings.limit or len(images), len(images))
    draws = settings.draws if classifier.stochastic else 1
    policies = CONTROLS if settings.controls and isinstance(classifier.network, RecurrentAttention) else ()
    totals = Totals({})
    for indices, pixels, labels in _chunks(images, device, fabric, count):
        logits: Tensor | None = None
        for draw in range(draws):
            terms = objective(classifier, _keyed(classifier, indices, pixels, labels, seed, draw))
            answers = terms.pop("logits", None)
            for name, value in terms.items():
                totals.add(name, value, len(indices) / draws)
            if answers is not None:
                logits = answers if logits is None else logits + answers
        if logits is not None and draws > 1:
            totals.add(f"accuracy_m{draws}", (logits.argmax(1) == labels).sum(dtype=torch.float32))
        for policy in policies:
            batch = _keyed(classifier, indices, pixels, labels, seed, 0)
            totals.add(f"accuracy_{policy}", _right_under(classifier, policy, batch))
    whole = sums(fabric, totals.read())
    return {name: total / count for name, total in whole.items()}


def _keyed(
    classifier: Classifier, indices: list[int], pixels: Tensor, labels: Tensor, seed: int, draw: int
) -> TrainingBatch:
    noise = on_device(classifier.sample_noise(Addresses.of(seed, indices, "validate", draw)), pixels.device)
    return TrainingBatch(pixels, labels, noise, Addresses.of(seed, indices, "objective", draw, stream="validate"))


def _right_under(classifier: Classifier, policy: Policy, batch: TrainingBatch) -> Tensor:
    """The number of right answers under another policy, with the same weights."""
    network = classifier.network
    assert isinstance(network, RecurrentAttention)
    learned, network.policy = network.policy, policy
    try:
        return (classifier(batch.images, batch.noise).argmax(1) == batch.labels).sum(dtype=torch.float32)
    finally:
        network.policy = learned


@torch.no_grad()
def final_accuracy(
    classifier: Classifier,
    images: LabelledImages,
    seed: int,
    purpose: Purpose,
    device: torch.device,
    fabric: Fabric | None = None,
) -> dict[str, float]:
    """The accuracy on the images as they are: {"": share} for a deterministic network.

    For a stochastic one {"_m1": the mean over ten single draws, "_m10": that of the ten draws' mean logits}.
    """
    classifier.eval()
    draws = FINAL_DRAWS if classifier.stochastic else 1
    right = Totals({})
    for indices, pixels, labels in _chunks(images, device, fabric):
        logits = []
        for draw in range(draws):
            noise = on_device(classifier.sample_noise(Addresses.of(seed, indices, purpose, draw)), device)
            logits.append(classifier(pixels, noise).float())
        answers = torch.stack(logits)
        right.add("single", (answers.argmax(2) == labels).sum(dtype=torch.float32))
        right.add("averaged", (answers.mean(0).argmax(1) == labels).sum(dtype=torch.float32))
    whole = sums(fabric, right.read())
    share = whole["single"] / (draws * len(images))
    return {"_m1": share, "_m10": whole["averaged"] / len(images)} if classifier.stochastic else {"": share}


def _chunks(
    images: LabelledImages, device: torch.device, fabric: Fabric | None, count: int | None = None
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """This process's share of the first `count` images (all by default), in their order."""
    end = len(images) if count is None else count
    most = CHUNK_ON_GPU if device.type == "cuda" else CHUNK
    step = max(1, min(most, CHUNK_BYTES // (4 * images.shape.numel())))
    chunks = [list(range(start, min(start + step, end))) for start in range(0, end, step)]
    chunks = share(fabric, chunks)
    for indices, (pixels, labels) in zip(chunks, images.stream(chunks, device), strict=True):
        yield indices, pixels, labels
