"""What an attack may ask of the classifier that it attacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor, nn

from robustbench_lpm.randomness import Addresses

Step = TypeVar("Step")


@dataclass(frozen=True)
class Draws:
    """Noise for `count` draws over a batch of B images: each source is (count · B, ...), one draw after the other."""

    values: dict[str, Tensor]
    count: int


@dataclass(frozen=True)
class Cost:
    """Passes of the classifier that an attack needs for one image, at most.

    choices: how many candidates it hands to `Oracle.choose`, whose passes come on top.
    """

    forwards: int
    backwards: int = 0
    choices: int = 1


class Oracle(Protocol):
    """A classifier as an attack sees it: noise as an argument, every pass counted, fixed pixels enforced.

    It belongs to one batch of B images; every method works on that batch, in its order.
    """

    @property
    def indices(self) -> list[int]:
        """The images' indices in the data set."""

    @property
    def classes(self) -> int:
        """The number of classes K."""

    @property
    def stochastic(self) -> bool:
        """Whether noise matters. If not, `noise` is one draw, however many are asked for."""

    @property
    def chunk(self) -> int:
        """Images that pass the network at once in a `probe`: a good size for the pieces of a large query."""

    def noise(self, draws: int = 1, *, paired: bool = False) -> Draws:
        """Fresh attack noise. With paired=True, 2·draws of which draw i and draw i + draws are the same.

        The draws of a deterministic classifier would all be alike: it gets one, and logits are (1, B, K); two if
        paired. That one serves for any number of versions of the images, (n, B, C, H, W), too.
        """

    def choices(self, count: int = 1) -> Addresses:
        """Fresh addresses of random numbers for the attack's own choices (starts, directions), (count · B) rows.

        With several, one for each image comes after the other, as in `noise`.
        """

    def __call__(self, images: Tensor, noise: Draws) -> Tensor:
        """Logits (draws, B, K) of images (B, C, H, W), or of other images in each draw, (draws, B, C, H, W)."""

    def probe(self, images: Tensor, noise: Draws) -> Tensor:
        """The same without gradients, for estimates that average over many queries: maybe in reduced precision."""

    def gradient(
        self, images: Tensor, noise: Draws, losses: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient (B, C, H, W) of the expected loss at images (B, C, H, W), averaged over the draws of noise.

        losses turns logits (draws, B, K) into losses (draws, B). Also returns those losses and logits, detached. How
        the gradient passes a glimpsing network's fixations is the oracle's affair (its gradient mode), and so is the
        precision: what the logits say of success is for `fallen` to confirm.
        """

    def fallen(self, images: Tensor, logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
        """Which images (B, C, H, W) fool a deterministic classifier, (B,), by logits (1, B, K) that `gradient` gave.

        Where those are of reduced precision, the classifier itself is asked again about images that seem to fool it.
        """

    def gaze(self, images: Tensor, noise: Draws) -> Tensor:
        """Where a glimpsing classifier wants to look after each glimpse, (draws, B, T, 2) as (x, y) in [-1, 1].

        Differentiable in the images; averaged over runs for a Monte-Carlo average. Raises LpmbenchError for a
        classifier that does not glimpse.
        """

    def gaze_gradient(self, images: Tensor, noise: Draws, losses: Callable[[Tensor], Tensor]) -> Tensor:
        """The gradient (B, C, H, W) of an expected loss of the gaze, averaged over the draws of noise.

        losses turns what `gaze` gives, (draws, B, T, 2), into losses (draws, B). How the gradient passes the fixations
        is the oracle's affair, as in `gradient`.
        """

    def rows(self, keep: Tensor) -> Oracle:
        """The oracle of some of the images: keep is a tensor of positions, or a mask (B,)."""

    def resumable(self, steps: Sequence[Step], *states: dict[str, Tensor]) -> Iterator[Step]:
        """The steps of a long loop, which goes on in its middle when a run was interrupted; optional for an attack.

        The states hold, by name, every tensor that one step hands to the next, those of a loop around it that it moves
        included; `vars` of a dataclass of tensors is such a state. They are written down now and then at the beginning
        of a step, with the cost so far. A run that goes on finds them set to that, and is given the
        steps from there on. All else that a step needs must follow from the states, the step and the attack's
        arguments, and the loop may ask this oracle and its `rows` alone. Such loops may stand inside one another and
        come one after the other.
        """

    def note(self, subject: str, reason: str) -> None:
        """Tell the reader of the record something, such as ("AutoAttack's Square is left out", "it failed").

        It stands there once, with the first reason, however many batches have one.
        """

    def choose(self, candidates: Sequence[Tensor], labels: Tensor, targets: Tensor | None = None) -> Tensor:
        """For each image the strongest of the candidates (each (B, C, H, W)), judged on noise kept for selection."""

    def view(self, draws: int = 1, *, exact: bool = True) -> nn.Module:
        """A module from images to logits for code that knows no noise: it draws fresh attack noise at every call.

        It takes the whole batch in its order, or any number of versions of some of its images: each is recognised by
        the original that it is nearest to. With several draws it answers with the logarithm of their mean
        probabilities (for a deterministic classifier one is drawn). Not exact, it answers like `probe`.
        """
