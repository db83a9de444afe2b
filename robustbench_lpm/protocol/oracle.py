"""The oracle: the classifier as an attack sees it. It counts every pass, draws noise and restores fixed pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from robustbench_lpm.architectures.classifier import Classifier, on_device
from robustbench_lpm.architectures.graphs import recorded, wanted
from robustbench_lpm.architectures.precision import slow_backwards
from robustbench_lpm.attacks.contract import Draws, Step
from robustbench_lpm.attacks.losses import finite, objective, succeeded
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.hashing import sha256_of_value
from robustbench_lpm.protocol.noise_control import NoiseControl
from robustbench_lpm.protocol.windows import cut, paste
from robustbench_lpm.randomness import Addresses, Purpose

PROBES_FOR_ONE = 4  # in bfloat16: measured to be a quarter faster on small networks, and never slower
# Elsewhere than on a CPU every read of a value waits until the device has computed all that it was given so far.
LOOK_EVERY = 8  # steps of a loop, after which misclassified images may leave the batch
CHECK_EVERY = 64  # passes, after which their logits are checked


@dataclass
class Ledger:
    """The cost of an attack on each image of a batch, (B,) int64 each, and its notes.

    The number of draws is also the address of the image's next one, so that the ledger decides all noise to come.
    Several attacks on one batch may share a ledger.
    """

    forwards: Tensor  # passes of the network
    backwards: Tensor
    glimpses: Tensor
    draws: Tensor  # of noise, and of the attack's own choices
    on_spent: Callable[[int], None] = lambda _: None  # called at every pass, with the number of images
    notes: dict[str, str] = field(default_factory=dict)  # for the reader of the record, by subject
    unchecked: list[Tensor] = field(default_factory=list)  # the largest logit of each image, of passes since `check`

    @classmethod
    def empty(cls, batch_size: int, **others: Any) -> Ledger:
        forwards, backwards, glimpses, draws = torch.zeros(4, batch_size, dtype=torch.int64)
        return cls(forwards, backwards, glimpses, draws, **others)

    @property
    def columns(self) -> list[Tensor]:
        """The four counts."""
        return [self.forwards, self.backwards, self.glimpses, self.draws]

    @property
    def passes(self) -> int:
        """Forwards and backwards of all images."""
        return int(self.forwards.sum() + self.backwards.sum())

    def answered(self, logits: Tensor, classes: int) -> None:
        """Take in logits (..., K) of a pass. Raises LpmbenchError for another number of classes; see `check`."""
        self.unchecked.append(largest_of(logits.detach(), classes).flatten())
        if logits.device.type == "cpu" or len(self.unchecked) == CHECK_EVERY:
            self.check()

    def check(self) -> None:
        """Raise LpmbenchError where logits of the passes so far are not numbers."""
        largest, self.unchecked = self.unchecked, []
        if largest:
            check_largest(torch.cat(largest))


class Loops(Protocol):
    """The resumable loops of one attack on one batch."""

    def over(self, steps: Sequence[Step], states: Sequence[dict[str, Tensor]]) -> Iterator[Step]:
        """The steps from the last checkpoint of an interrupted run on; see `Oracle.resumable`."""


Checkpoints = Callable[[str, Ledger], Loops]  # the loops of an attack, from what names it and its ledger


class Rules(NamedTuple):
    """The settings of all oracles of a run.

    chunk: images that pass the network at once. select_draws: draws on which candidates are compared.
    """

    seed: int
    classes: int
    chunk: int
    select_draws: int = 10
    noise_control: NoiseControl = NoiseControl()


class ClassifierOracle:
    """`attacks.contract.Oracle` for one batch of images of equal shape.

    Args:
        classifier: in eval mode, its parameters frozen.
        images: the clean batch (B, C, H, W); where `mask` (B, 1, H, W) is False, a query's pixels are set back to it.
        indices: the examples' indices in the dataset: they key the noise.
        quick: the classifier in reduced precision (`architectures.precision`), for gradients and probes.
        gradient_mode: how gradients pass a glimpsing network's fixations; None for the network's own default.
        stream: part of the key of the attack's noise and choices, so that repeated attacks differ.
        ledger: where the cost is written; a new one by default.
        checkpoints: from which the attack's loops are resumed; None keeps none.
    """

    def __init__(
        self, classifier: Classifier, images: Tensor, indices: Sequence[int], rules: Rules, *,
        quick: Classifier | None = None, mask: Tensor | None = None, gradient_mode: str | None = None,
        stream: str = "", ledger: Ledger | None = None, checkpoints: Checkpoints | None = None,
    ) -> None:  # fmt: skip
        self.classifier, self.originals, self.mask = classifier, images, mask
        self.window: Tensor | None = None
        self._probed = quick or classifier
        self._differentiated = classifier if slow_backwards(classifier, str(images.device)) else self._probed
        self.indices, self.seed, self.classes = list(indices), rules.seed, rules.classes
        self._part: tuple[Tensor, ClassifierOracle] | None = None  # the last answer of `rows`
        self._chunk = max(1, rules.chunk // classifier.passes)
        # A probe keeps no activations for a backward pass, and those of reduced precision are small.
        self.chunk = self._chunk * (PROBES_FOR_ONE if quick is not None else 1)
        self.noise_control = rules.noise_control
        self.select_draws = rules.select_draws if self.stochastic else 1
        self.gradient_mode = gradient_mode
        self.ledger = ledger if ledger is not None else Ledger.empty(len(images))
        self._rows, self._times_before = torch.arange(len(images)), torch.zeros(len(images), dtype=torch.int64)
        self._stream = stream
        name = sha256_of_value([self.seed, stream, self.indices])[:16]
        self._loops = checkpoints(name, self.ledger) if checkpoints is not None else None

    @property
    def stochastic(self) -> bool:
        return self.noise_control.leaves_noise(self.classifier)

    def rows(self, keep: Tensor) -> ClassifierOracle:
        """The oracle of some of the images; it writes into the same ledger. See `Oracle.rows`."""
        if self._part is not None and self._part[0] is keep:
            return self._part[1]
        positions = keep.nonzero()[:, 0] if keep.dtype is torch.bool else keep
        there = positions.cpu()
        part = object.__new__(ClassifierOracle)
        part.__dict__ |= self.__dict__
        part.originals = self.originals[positions]
        part.mask = self.mask[positions] if self.mask is not None else None
        part.window = self.window[positions] if self.window is not None else None
        part.indices = [self.indices[i] for i in there.tolist()]
        part._rows = self._rows[there]
        # A row may occur several times (see `_View`): each time gets draws of its own.
        part._times_before = (part._rows[:, None] == part._rows).tril(-1).sum(1)
        part._part = None
        self._part = keep, part
        return part

    def inside(self, window: Tensor | None) -> ClassifierOracle:
        """The oracle for an attack that sees windows (B, k, k) of the images alone, see `windows`; None: the whole."""
        other = object.__new__(ClassifierOracle)
        other.__dict__ |= self.__dict__ | {"window": window, "_part": None}
        return other

    def looks(self, step: int) -> bool:
        """Whether a loop reads values of the device in this step; see `Oracle.looks`."""
        return self.originals.device.type == "cpu" or step % LOOK_EVERY == LOOK_EVERY - 1

    def remaining(self, done: Tensor) -> Tensor:
        """The positions of the images that stay in the batch; see `Oracle.remaining`."""
        left = (~done).nonzero()[:, 0]
        if not wanted(self._differentiated, self.originals.device):
            return left
        # Recorded passes serve one size of a batch: it is halved, and filled up with images that are done.
        size = len(done)
        while size >= 2 * max(1, len(left)):
            size //= 2
        return torch.cat([left, done.nonzero()[:, 0][: size - len(left)]]) if len(left) else left

    def noise(self, draws: int = 1, *, paired: bool = False) -> Draws:
        """Attack noise; see `Oracle.noise`."""
        draws = draws if self.stochastic else 1
        if not self.classifier.stochastic:
            self._count(self.ledger.draws, draws, passes=False)
            return Draws({}, 2 * draws if paired else draws)
        drawn = self.noise_control.attack_noise(self.classifier, self._fresh("attack", draws), draws)
        if paired:
            drawn, draws = {source: torch.cat([values, values]) for source, values in drawn.items()}, 2 * draws
        return Draws(on_device(drawn, self.originals.device), draws)

    def choices(self, count: int = 1) -> Addresses:
        """Fresh addresses for the attack's own choices; see `Oracle.choices`."""
        return self._fresh("search", count)

    def _fresh(self, purpose: Purpose, draws: int) -> Addresses:
        """The next draws of each image, (draws · B) addresses, one draw after the other."""
        first = self.ledger.draws[self._rows] + draws * self._times_before
        self._count(self.ledger.draws, draws, passes=False)
        return Addresses.of(self.seed, self.indices, purpose, first, stream=self._stream).draws(draws)

    def __call__(self, images: Tensor, noise: Draws) -> Tensor:
        """Logits (draws, B, K); see `Oracle.__call__`. Raises LpmbenchError for NaN logits, maybe passes later."""
        return self._logits(self.classifier, images, noise)

    @torch.no_grad()
    def probe(self, images: Tensor, noise: Draws) -> Tensor:
        """Logits (draws, B, K), maybe in reduced precision; see `Oracle.probe`."""
        return self._logits(self._probed, images, noise, self.chunk)

    def estimate(self, images: Tensor, noise: Draws) -> Tensor:
        """Logits (draws, B, K) whose gradient is wanted, in the precision of gradients."""
        return self._logits(self._differentiated, images, noise)

    def _logits(
        self, classifier: Classifier, images: Tensor, noise: Draws, chunk: int | None = None, *, alone: bool = False
    ) -> Tensor:
        """alone: the backward pass of these logits, if there is one, comes before any other pass."""
        passes = classifier if images.requires_grad and not alone else self._recorded(classifier)

        def answer(pixels: Tensor, values: dict[str, Tensor]) -> tuple[Tensor]:
            return (passes(pixels, values, gradient_mode=self.gradient_mode),)

        (logits,) = self._in_chunks(answer, images, noise, chunk or self._chunk)
        self.ledger.answered(logits, self.classes)
        return logits

    def _recorded(self, classifier: Classifier) -> Callable[..., Tensor]:
        return recorded(classifier, self.originals.device, lambda why: self.note("CUDA graphs are not used", why))

    def gradient(
        self, images: Tensor, noise: Draws, losses: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient of the expected loss, the losses and the logits; see `Oracle.gradient`.

        In the mode "score-function" it is that of E[L] = mean over draws of L + (L - b) log p, L and b constants in the
        second term: p is the density of the fixations that were drawn (Williams 1992), b the mean loss of the other
        draws. Otherwise the losses are differentiated directly, a few draws at a time, to bound the memory of
        activations.
        """
        if self.gradient_mode == "score-function":
            images = images.detach().requires_grad_()
            logits, density = self._in_chunks(self._differentiated.scored, images, noise, self._chunk)
            self.ledger.answered(logits, self.classes)
            found = losses(logits)
            expected = found + advantages(found.detach()) * density
            (total,) = torch.autograd.grad(expected.mean(0).sum(), images)
            return total, found.detach(), logits.detach()
        parts = [self._gradient(images, draws, losses) for draws in self._few_at_once(noise, self._chunk)]
        total = parts[0][0]
        for part in parts[1:]:
            total = total + part[0]  # in place would not do: of a sum over pixels the gradient is one number, expanded
        return total / noise.count, torch.cat([part[1] for part in parts]), torch.cat([part[2] for part in parts])

    def _gradient(
        self, images: Tensor, noise: Draws, losses: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient of the sum over draws."""
        images = images.detach().requires_grad_()
        alone = noise.count * len(images) <= self._chunk  # in one piece
        logits = self._logits(self._differentiated, images, noise, alone=alone)
        found = losses(logits)
        (gradients,) = torch.autograd.grad(found.sum(), images)
        return gradients, found.detach(), logits.detach()

    def _few_at_once(self, noise: Draws, chunk: int) -> Iterator[Draws]:
        """The draws in groups: the batch under those of a group passes the network at once."""
        together, batch = max(1, chunk // len(self.originals)), len(self.originals)
        for first in range(0, noise.count, together):
            count = min(together, noise.count - first)
            part = slice(first * batch, (first + count) * batch)
            yield Draws({source: values[part] for source, values in noise.values.items()}, count)

    def confirmed(self, images: Tensor, wrong: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
        """Which of the images that seem misclassified are so in full precision; see `Oracle.confirmed`."""
        if self._differentiated is self.classifier or not wrong.any():
            return wrong
        some = self.rows(wrong)
        with torch.no_grad():
            exact = some(images[wrong], some.noise())
        confirmed = wrong.clone()
        confirmed[wrong] = succeeded(exact, labels[wrong], targets[wrong] if targets is not None else None)[0]
        return confirmed

    def gaze(self, images: Tensor, noise: Draws) -> Tensor:
        """The mean of the policy after each glimpse; see `Oracle.gaze`."""
        return self._gaze(images, noise)[0]

    def gaze_gradient(self, images: Tensor, noise: Draws, losses: Callable[[Tensor], Tensor]) -> Tensor:
        """The gradient of an expected loss of the policy's means; see `Oracle.gaze_gradient`."""
        images = images.detach().requires_grad_()
        means, *density = self._gaze(images, noise)
        found = losses(means)
        expected = found + advantages(found.detach()) * density[0] if density else found
        return torch.autograd.grad(expected.mean(0).sum(), images)[0]

    def _gaze(self, images: Tensor, noise: Draws) -> tuple[Tensor, ...]:
        """Means (draws, B, T, 2), and in the mode "score-function" the log-density (draws, B) of the fixations."""
        if not self.classifier.glimpsing:
            raise LpmbenchError("This attack moves fixations; the model has none.")
        runs, mode = (self.classifier.passes, -1), self.gradient_mode or "detached"

        def look(pixels: Tensor, values: dict[str, Tensor]) -> tuple[Tensor, ...]:
            trajectory = self.classifier.look(pixels, values, gradient_mode=mode)
            means = trajectory.means.movedim(0, 1).unflatten(0, runs).mean(0)  # of (n · runs, T, 2)
            if mode != "score-function":
                return (means,)
            density = trajectory.log_density(self.classifier.sigma)
            return means, density.unflatten(0, runs).sum(0)

        return self._in_chunks(look, images, noise, self._chunk)

    def _in_chunks(
        self, answer: Callable[[Tensor, dict[str, Tensor]], tuple[Tensor, ...]], images: Tensor, noise: Draws,
        chunk: int,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """The results of `answer` on images and noise, in pieces and counted: each (draws, B, ...).

        Draws on the same images (B, C, H, W) share them; see `Classifier`.
        """
        if self.window is not None:
            images = paste(images, self.originals, self.window)
        if self.mask is not None:
            images = torch.where(self.mask, images, self.originals)
        shared, batch = images.dim() == self.originals.dim(), len(self.originals)
        if not (shared or self.stochastic):  # its one draw serves any number of versions of the images
            still = {source: v[:batch].repeat(len(images), *[1] * (v.dim() - 1)) for source, v in noise.values.items()}
            noise = Draws(still, len(images))
        if shared and (batch <= chunk or noise.count == 1):
            groups = self._few_at_once(noise, chunk)
            parts = [self._pieces(answer, images, draws.values, chunk) for draws in groups]
        else:
            images = images.expand(noise.count, *self.originals.shape).flatten(0, 1)
            parts = [self._pieces(answer, images, noise.values, chunk)]
        answers = [torch.cat(pieces) for pieces in zip(*parts, strict=True)]
        self._count(self.ledger.forwards, noise.count * self.classifier.passes)
        self._count(self.ledger.glimpses, noise.count * self.classifier.glimpses, passes=False)
        if answers[0].requires_grad:
            answers[0].register_hook(lambda _: self._count(self.ledger.backwards, noise.count * self.classifier.passes))
        return tuple(found.unflatten(0, (noise.count, batch)) for found in answers)

    @staticmethod
    def _pieces(
        answer: Callable[[Tensor, dict[str, Tensor]], tuple[Tensor, ...]],
        images: Tensor,
        noise: dict[str, Tensor],
        chunk: int,
    ) -> tuple[Tensor, ...]:
        """The results of `answer`, a chunk at a time; images that fit into one may be fewer than the rows of noise."""
        if len(images) <= chunk:
            return answer(images, noise)
        pieces = []
        for start in range(0, len(images), chunk):
            part = slice(start, start + chunk)
            pieces.append(answer(images[part], {source: values[part] for source, values in noise.items()}))
        return tuple(torch.cat(found) for found in zip(*pieces, strict=True))

    def _count(self, ledger: Tensor, spent: int, *, passes: bool = True) -> None:
        # A row that occurs several times counts each time.
        ledger.index_add_(0, self._rows, torch.full((len(self._rows),), spent))
        if passes:
            self.ledger.on_spent(spent * len(self._rows))

    def resumable(self, steps: Sequence[Step], *states: dict[str, Tensor]) -> Iterator[Step]:
        """The steps of a loop that resumes at its last checkpoint; see `Oracle.resumable`."""
        return iter(steps) if self._loops is None else self._loops.over(steps, states)

    def note(self, subject: str, reason: str) -> None:
        """Note a reason in the record; see `Oracle.note`."""
        self.ledger.notes.setdefault(subject, reason)

    def choose(self, candidates: Sequence[Tensor], labels: Tensor, targets: Tensor | None = None) -> Tensor:
        """For each image the strongest candidate; see `Oracle.choose`."""
        return pick(candidates, self.strongest(candidates, labels, targets))

    @torch.no_grad()
    def strongest(self, candidates: Sequence[Tensor], labels: Tensor, targets: Tensor | None = None) -> Tensor:
        """For each image, (B,), the candidate that is misclassified under most selection draws; at a tie, that with
        the lowest mean margin. All candidates meet the same selection noise, which no attack has seen."""
        best = torch.zeros_like(labels)
        if len(candidates) == 1:
            return best
        noise = self.selection()
        best_score = self._score(self(candidates[0], noise), labels, targets)
        for position, candidate in enumerate(candidates[1:], start=1):
            score = self._score(self(candidate, noise), labels, targets)
            fewer = score[0] < best_score[0]
            better = fewer | ((score[0] == best_score[0]) & (score[1] < best_score[1]))
            best[better] = position
            best_score = torch.where(better, score, best_score)
        self.ledger.check()
        return best

    def selection(self) -> Draws:
        """The selection draws: the same at every call."""
        drawn = self.noise_control.sample(self.classifier, self.seed, self.indices, "select", draws=self.select_draws)
        return Draws(on_device(drawn, self.originals.device), self.select_draws)

    @torch.no_grad()
    def outvoted(self, images: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
        """Whether at most half of the selection draws are right; see `Oracle.outvoted`."""
        hits = succeeded(self(images, self.selection()), labels, targets)
        return hits.sum(0) * 2 >= len(hits)

    @staticmethod
    def _score(logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
        """(2, B): the share of draws that are not misclassified, and the mean margin; lower is stronger."""
        predictions = logits.argmax(-1)
        robust = predictions == labels if targets is None else predictions != targets
        return torch.stack([robust.to(logits.dtype).mean(0), objective("margin", logits, labels, targets).mean(0)])

    def view(self, draws: int = 1, *, exact: bool = True) -> nn.Module:
        """A module from images to logits, for other libraries; see `Oracle.view`."""
        return _View(self, draws, exact)


class _View(nn.Module):
    """An oracle as a module for other libraries: images (n, C, H, W) to logits (n, K), fresh noise at every call."""

    def __init__(self, oracle: ClassifierOracle, draws: int, exact: bool) -> None:
        super().__init__()
        self._oracle, self._draws, self._exact = oracle, draws, exact

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the whole batch in its order, or of n versions of some of its images."""
        oracle = self._oracle
        if len(images) != len(oracle.originals):
            oracle = oracle.rows(self._recognised(images))
        noise = oracle.noise(self._draws)
        if self._exact:
            logits = oracle(images, noise)
        else:
            logits = oracle.estimate(images, noise) if images.requires_grad else oracle.probe(images, noise)
        logits = finite(logits)
        if noise.count == 1:
            return logits[0]
        # Other libraries take one answer per image: that of the expected prediction (Salman et al. 2019, eq. 7).
        return logits.log_softmax(-1).logsumexp(0) - math.log(noise.count)

    def _recognised(self, images: Tensor) -> Tensor:
        """For each image the row of the nearest original, (n,): the attack started from it."""
        originals, window = self._oracle.originals, self._oracle.window
        originals = originals if window is None else cut(originals, window)
        if len(originals) == 1:
            return torch.zeros(len(images), dtype=torch.int64, device=images.device)
        return torch.cdist(images.detach().flatten(1), originals.flatten(1)).argmin(1)


def pick(candidates: Sequence[Tensor], chosen: Tensor) -> Tensor:
    """For each image, of candidates (B, C, H, W), the one whose position is in chosen (B,)."""
    return torch.stack(list(candidates))[chosen, torch.arange(len(chosen), device=chosen.device)]


def advantages(losses: Tensor) -> Tensor:
    """Losses (draws, B) less the mean loss of the other draws (which adds no bias); those of a single draw as is."""
    draws = len(losses)
    return losses if draws == 1 else (losses - losses.mean(0)) * (draws / (draws - 1))


def check_logits(logits: Tensor, classes: int | None) -> None:
    """Raise LpmbenchError unless logits (..., K) are numbers for the right number of classes.

    -inf is legal for some of the classes, not for all.
    """
    check_largest(largest_of(logits, classes))


def largest_of(logits: Tensor, classes: int | None) -> Tensor:
    """The largest of the logits (..., K) of each image, (...). Raises LpmbenchError for another number of classes."""
    if logits.dim() < 2 or (classes is not None and logits.shape[-1] != classes):
        raise LpmbenchError(f"The model answers with shape {tuple(logits.shape)}, not with logits (n, {classes}).")
    return logits.amax(-1)


def check_largest(largest: Tensor) -> None:
    """Raise LpmbenchError unless the largest logits of images are numbers: of NaN the largest is NaN."""
    if not torch.isfinite(largest).all():
        kind = "NaN" if torch.isnan(largest).any() else "infinite"
        raise LpmbenchError(f"The model gives {kind} logits; nothing can be graded on them.")
