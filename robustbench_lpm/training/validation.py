"""How good a network is, on noise that training never sees."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from robustbench_lpm.architectures.classifier import Classifier
from robustbench_lpm.architectures.recurrent_attention import Policy, RecurrentAttention
from robustbench_lpm.cards import Validation
from robustbench_lpm.randomness import Purpose, generator, generators
from robustbench_lpm.training.examples import InMemory, LabelledImages
from robustbench_lpm.training.objectives import Batch, Objective

FINAL_DRAWS = 10  # at the end; also the M of the averaged classifier
CHUNK = 250
CONTROLS: tuple[Policy, ...] = ("random", "centre")


@torch.no_grad()
def validate(
    classifier: Classifier,
    objective: Objective,
    images: LabelledImages,
    seed: int,
    device: torch.device,
    settings: Validation = Validation(),  # noqa: B008 (it is frozen)
) -> dict[str, float]:
    """Every term of the objective, averaged over images and, for a stochastic network, over single draws (M = 1).

    For a stochastic network of several draws also "accuracy_mM", that of their mean logits; with settings.controls,
    for a glimpsing one, "accuracy_random" and "accuracy_centre", that of one draw with fixations that the image has no
    say in. The noise is the same at every epoch, so that epochs compare.
    """
    classifier.eval()
    count = min(settings.limit or len(images), len(images))
    draws = settings.draws if classifier.stochastic else 1
    totals: dict[str, float] = {}
    averaged = 0
    for indices, pixels, labels in _chunks(images, device, count):
        logits: Tensor | None = None
        for draw in range(draws):
            terms = objective(classifier, _keyed(classifier, indices, pixels, labels, seed, draw))
            answers = terms.pop("logits", None)
            for name, value in terms.items():
                totals[name] = totals.get(name, 0.0) + float(value) * len(indices) / draws
            if answers is not None:
                logits = answers if logits is None else logits + answers
        if logits is not None:
            averaged += int((logits.argmax(1) == labels).sum())
    found = {name: total / count for name, total in totals.items()}
    if draws > 1 and logits is not None:
        found[f"accuracy_m{draws}"] = averaged / count
    if settings.controls and isinstance(classifier.network, RecurrentAttention):
        for policy in CONTROLS:
            found[f"accuracy_{policy}"] = _controlled(classifier, policy, images, count, seed, device)
    return found


def _keyed(classifier: Classifier, indices: list[int], pixels: Tensor, labels: Tensor, seed: int, draw: int) -> Batch:
    noise = classifier.sample_noise(len(indices), generators(seed, indices, "validate", draw))
    own = [generator(seed, "objective", "validate", index, draw) for index in indices]
    return Batch(pixels, labels, noise, own)


def _controlled(
    classifier: Classifier, policy: Policy, images: LabelledImages, count: int, seed: int, device: torch.device
) -> float:
    """The accuracy of one draw under another policy, from the same weights."""
    network = classifier.network
    assert isinstance(network, RecurrentAttention)
    learned, network.policy = network.policy, policy
    try:
        right = 0
        for indices, pixels, labels in _chunks(images, device, count):
            batch = _keyed(classifier, indices, pixels, labels, seed, 0)
            right += int((classifier(pixels, batch.noise).argmax(1) == labels).sum())
    finally:
        network.policy = learned
    return right / count


def final_accuracy(
    classifier: Classifier, images: InMemory, seed: int, purpose: Purpose, device: torch.device
) -> dict[str, float]:
    """The accuracy on the images as they are: {"": share} for a deterministic network.

    For a stochastic one {"_m1": the mean over ten single draws, "_m10": that of the ten draws' mean logits}.
    """
    draws = FINAL_DRAWS if classifier.stochastic else 1
    logits = torch.stack([_logits(classifier, images, seed, purpose, draw, device) for draw in range(draws)])
    single = _share(logits.argmax(2) == images.labels)
    if not classifier.stochastic:
        return {"": single}
    return {"_m1": single, "_m10": _share(logits.mean(0).argmax(1) == images.labels)}


@torch.no_grad()
def _logits(
    classifier: Classifier, images: InMemory, seed: int, purpose: Purpose, draw: int, device: torch.device
) -> Tensor:
    """Logits (N, K), on the CPU, of one draw of noise for each image."""
    classifier.eval()
    found = []
    for indices, pixels, _ in _chunks(images, device):
        noise = classifier.sample_noise(len(indices), generators(seed, indices, purpose, draw))
        found.append(classifier(pixels, noise).float().cpu())
    return torch.cat(found)


def _chunks(
    images: LabelledImages, device: torch.device, count: int | None = None
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """The first `count` images (all by default), in their order."""
    end = len(images) if count is None else count
    for start in range(0, end, CHUNK):
        indices = list(range(start, min(start + CHUNK, end)))
        pixels, labels = images.take(indices)
        yield indices, pixels.to(device), labels.to(device)


def _share(correct: Tensor) -> float:
    return float(correct.double().mean())
