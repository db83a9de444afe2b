"""The oracle: the classifier as an attack sees it. It counts every pass, hands out noise and guards fixed pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustbench_lpm.architectures.classifier import Classifier
from robustbench_lpm.attacks.contract import Draws
from robustbench_lpm.attacks.losses import objective
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.randomness import generators


@dataclass
class Ledger:
    """What an attack has spent on each image of a batch: passes of the network and glimpses, (B,) int64 each."""

    forwards: Tensor
    backwards: Tensor
    glimpses: Tensor

    @classmethod
    def empty(cls, batch_size: int) -> Ledger:
        return cls(*(torch.zeros(batch_size, dtype=torch.int64) for _ in range(3)))


class ClassifierOracle:
    """`attacks.contract.Oracle` for one batch of images of equal shape.

    Args:
        classifier: in eval mode, its parameters frozen.
        images: the clean batch (B, C, H, W); where `mask` (B, 1, H, W) is False, a query's pixels are set back to it.
        indices: the examples' indices in the data set: they key the noise.
        select_draws: draws of selection noise on which candidates are compared.
        gradient_mode: how gradients pass a glimpsing network's fixations; None for the network's own default.
        stream: part of the key of the attack's noise and choices, so that repeated attacks differ.
        ledger: where the cost is written; a new one by default. Several attacks on one batch may share it.
        on_spent: told how many images went through the network, at every pass.
    """

    def __init__(
        self,
        classifier: Classifier,
        images: Tensor,
        indices: Sequence[int],
        *,
        seed: int,
        classes: int,
        chunk: int,
        mask: Tensor | None = None,
        select_draws: int = 10,
        gradient_mode: str | None = None,
        stream: str = "",
        ledger: Ledger | None = None,
        on_spent: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.classifier, self.originals, self.mask = classifier, images, mask
        self.indices, self.seed = list(indices), seed
        self.classes, self.chunk = classes, max(1, chunk // classifier.passes)
        self.select_draws = select_draws if classifier.stochastic else 1
        self.gradient_mode = gradient_mode
        self.on_spent = on_spent
        self.ledger = ledger if ledger is not None else Ledger.empty(len(images))
        self._rows = torch.arange(len(images))
        key = f"{seed}{stream}"  # runs in another gradient mode draw noise of their own
        self._noise_generators = generators(key, self.indices, "attack")
        self.generators = generators(key, self.indices, "search")

    @property
    def stochastic(self) -> bool:
        return self.classifier.stochastic

    def rows(self, keep: Tensor) -> ClassifierOracle:
        """The oracle of some of the images; it goes on with their generators and writes into the same ledger."""
        positions = keep.nonzero()[:, 0] if keep.dtype is torch.bool else keep
        part = object.__new__(ClassifierOracle)
        part.__dict__ |= self.__dict__
        chosen = positions.tolist()
        part.originals = self.originals[positions]
        part.mask = self.mask[positions] if self.mask is not None else None
        part.indices = [self.indices[i] for i in chosen]
        part._rows = self._rows[positions.cpu()]
        part._noise_generators = [self._noise_generators[i] for i in chosen]
        part.generators = [self.generators[i] for i in chosen]
        return part

    def noise(self, draws: int = 1, *, paired: bool = False) -> Draws:
        """Fresh attack noise; see `Oracle.noise`."""
        drawn = self._sample(self._noise_generators, draws)
        if paired:
            return Draws({source: torch.cat([v, v]) for source, v in drawn.items()}, 2 * draws)
        return Draws(drawn, draws)

    def _sample(self, sources: Sequence[torch.Generator], draws: int) -> dict[str, Tensor]:
        drawn = self.classifier.sample_noise(draws * len(sources), list(sources) * draws)
        return {source: values.to(self.originals.device) for source, values in drawn.items()}

    def __call__(self, images: Tensor, noise: Draws) -> Tensor:
        """Logits (draws, B, K); see `Oracle.__call__`. Raises LpmbenchError for NaN logits."""
        batch = len(self.originals)
        if self.mask is not None:
            images = torch.where(self.mask, images, self.originals)
        if images.dim() == self.originals.dim():
            images = images.expand(noise.count, *images.shape)
        logits = self._in_chunks(images.flatten(0, 1), noise.values).unflatten(0, (noise.count, batch))
        self._count(self.ledger.forwards, noise.count)
        self.ledger.glimpses[self._rows] += noise.count * self.classifier.glimpses
        if logits.requires_grad:
            logits.register_hook(lambda _: self._count(self.ledger.backwards, noise.count))
        return logits

    def _in_chunks(self, images: Tensor, noise: dict[str, Tensor]) -> Tensor:
        parts = []
        for start in range(0, len(images), self.chunk):
            part = slice(start, start + self.chunk)
            values = {source: tensor[part] for source, tensor in noise.items()}
            parts.append(self.classifier(images[part], values, gradient_mode=self.gradient_mode))
        logits = torch.cat(parts)
        check_logits(logits, self.classes)
        return logits

    def _count(self, passes: Tensor, draws: int) -> None:
        spent = draws * self.classifier.passes
        passes[self._rows] += spent
        self.on_spent(spent * len(self._rows))

    @torch.no_grad()
    def choose(self, candidates: Sequence[Tensor], labels: Tensor, targets: Tensor | None = None) -> Tensor:
        """For each image the candidate that fools most selection draws; at a tie the one with the lowest mean margin.

        All candidates meet the same selection noise, which no attack has seen.
        """
        if len(candidates) == 1:
            return candidates[0]
        noise = Draws(self._sample(self._selection_generators(), self.select_draws), self.select_draws)
        scores = [self._score(self(candidate, noise), labels, targets) for candidate in candidates]
        best, best_score = candidates[0].clone(), scores[0]
        for candidate, score in zip(candidates[1:], scores[1:], strict=True):
            fewer = score[0] < best_score[0]
            better = fewer | ((score[0] == best_score[0]) & (score[1] < best_score[1]))
            best[better] = candidate[better]
            best_score = torch.where(better, score, best_score)
        return best

    def _selection_generators(self) -> list[torch.Generator]:
        return generators(self.seed, self.indices, "select")

    @staticmethod
    def _score(logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
        """(2, B): the share of draws that withstand, and the mean margin; lower is stronger."""
        predictions = logits.argmax(-1)
        withstand = predictions == labels if targets is None else predictions != targets
        return torch.stack([withstand.to(logits.dtype).mean(0), objective("margin", logits, labels, targets).mean(0)])

    def view(self) -> nn.Module:
        """A module from images to logits, for other libraries; see `Oracle.view`."""
        return OracleView(self)


class OracleView(nn.Module):
    """An oracle as other libraries expect a model: images (n, C, H, W) to logits (n, K), fresh noise at every call."""

    def __init__(self, oracle: ClassifierOracle) -> None:
        super().__init__()
        self._oracle = oracle

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the whole batch, or of n versions of the only image."""
        oracle, batch = self._oracle, len(self._oracle.originals)
        if len(images) == batch:
            return oracle(images, oracle.noise())[0]
        if batch == 1:
            return oracle(images[:, None], oracle.noise(len(images)))[:, 0]
        raise ValueError(f"an attack on {batch} images asked about {len(images)}: it must take one image at a time")


def check_logits(logits: Tensor, classes: int | None) -> None:
    """Raise LpmbenchError unless logits (n, K) are numbers for the right number of classes."""
    if logits.dim() != 2 or (classes is not None and logits.shape[1] != classes):
        raise LpmbenchError(f"The model answers with shape {tuple(logits.shape)}, not with logits (n, {classes}).")
    if torch.isnan(logits).any():
        raise LpmbenchError("The model gives NaN logits; nothing can be graded on them.")
