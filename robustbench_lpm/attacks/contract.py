"""The interface between an attack and the benchmark: the oracle that it queries, and the cost that it declares."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor, nn

from robustbench_lpm.errors import unknown
from robustbench_lpm.randomness import Addresses

Step = TypeVar("Step")
Function = TypeVar("Function", bound=Callable[..., Tensor])


@dataclass(frozen=True)
class Draws:
    """Noise for `count` draws over a batch of B images: each source is (count · B, ...), one draw after the other."""

    values: dict[str, Tensor]
    count: int


@dataclass(frozen=True)
class Cost:
    """Passes of the classifier that an attack needs for one image, at most.

    choices: how many candidates it hands to `Oracle.choose` or `Oracle.outvoted`, whose passes come on top.
    """

    forwards: int
    backwards: int = 0
    choices: int = 1


@dataclass(frozen=True)
class Declaration:
    """A decorator that declares the cost of an attack and the names of its budget parameters.

    cost: the most passes for one image, from any of the attack's parameters, `norm` and `stochastic`, by their names;
        None: not known. For a deterministic classifier, which needs one draw, each parameter in `draws` is 1 there.
    steps, draws, restarts: names of the parameters for its length, for the draws of noise that it averages over or
        that vote, and for its starts; names that the attack does not have are ignored.
    nearest: whether it looks for the smallest perturbation, whatever eps is.

    Raises LpmbenchError where the cost asks for a parameter that the function does not have.
    """

    cost: Callable[..., Cost] | None = None
    steps: tuple[str, ...] = ("steps", "iterations", "queries")
    draws: tuple[str, ...] = ("eot", "draws", "votes")
    restarts: tuple[str, ...] = ("restarts", "tries")
    nearest: bool = False

    def __call__(self, function: Function) -> Function:
        known = {*inspect.signature(function).parameters, "stochastic"}
        for name, wanted in inspect.signature(self.cost).parameters.items() if self.cost else ():
            if wanted.kind is not wanted.VAR_KEYWORD and name not in known:
                raise unknown(f"parameter in the cost of {function.__qualname__}:", name, known)
        vars(function)["declaration"] = self
        return function


def declared(function: Callable[..., Tensor]) -> Declaration:
    """The declaration of an attack function; the default, with an unknown cost, if it has none."""
    found = getattr(function, "declaration", None)
    return found if isinstance(found, Declaration) else Declaration()


class Oracle(Protocol):
    """A classifier as an attack sees it: noise as an argument, every pass counted, fixed pixels enforced.

    It belongs to one batch of B images; every method works on that batch, in its order.
    """

    @property
    def indices(self) -> list[int]:
        """The images' indices in the dataset."""

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

        A deterministic classifier gets one draw (two if paired), also for many versions (n, B, C, H, W) of the images.
        """

    def choices(self, count: int = 1) -> Addresses:
        """Fresh addresses of random numbers for the attack's own choices (starts, directions), (count · B) rows.

        With several, one for each image comes after the other, as in `noise`.
        """

    def __call__(self, images: Tensor, noise: Draws) -> Tensor:
        """Logits (draws, B, K) of images (B, C, H, W), or of other images in each draw, (draws, B, C, H, W)."""

    def probe(self, images: Tensor, noise: Draws) -> Tensor:
        """The same without gradients, possibly in reduced precision: for estimates that average over many queries."""

    def gradient(
        self, images: Tensor, noise: Draws, losses: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient (B, C, H, W) of the expected loss at images (B, C, H, W), averaged over the draws of noise.

        losses turns logits (draws, B, K) into losses (draws, B). Also returns those losses and logits, detached. The
        run chooses the precision (see `confirmed`) and how the gradient passes fixations (its gradient mode).
        """

    def confirmed(self, images: Tensor, wrong: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
        """Which of the images (B, C, H, W) marked in `wrong` (B,) a deterministic classifier misclassifies, (B,).

        The logits of `gradient` may be in reduced precision: images that are misclassified by them are evaluated again
        in full precision. Reads values of the device, see `looks`.
        """

    def looks(self, step: int) -> bool:
        """Whether a loop may read values of the device in this step: so misclassified images leave in groups.

        On a CPU in every step. Elsewhere in few, because each read waits for all passes before it: until then let
        misclassified images keep their pixels.
        """

    def gaze(self, images: Tensor, noise: Draws) -> Tensor:
        """The fixation means of a glimpsing classifier after each glimpse, (draws, B, T, 2) as (x, y) in [-1, 1].

        Differentiable in the images; of a Monte-Carlo average the mean. Raises LpmbenchError for other classifiers.
        """

    def gaze_gradient(self, images: Tensor, noise: Draws, losses: Callable[[Tensor], Tensor]) -> Tensor:
        """The gradient (B, C, H, W), as in `gradient`, of losses (draws, B) of the result of `gaze`."""

    def rows(self, keep: Tensor) -> Oracle:
        """The oracle of some of the images: keep is a tensor of positions, or a mask (B,).

        The same tensor again gives the same oracle; another one is read, which waits for the device.
        """

    def remaining(self, done: Tensor) -> Tensor:
        """The positions of the images that stay in the batch, (b,), by which of them are done, (B,).

        They may include some that are done. Reads values of the device, see `looks`.
        """

    def resumable(self, steps: Sequence[Step], *states: dict[str, Tensor]) -> Iterator[Step]:
        """The steps of a long loop; an interrupted run resumes at its last checkpoint. Optional for an attack.

        The states hold, by name, every tensor that one step passes to the next, also those of a loop around it; `vars`
        of a dataclass of tensors is such a state. A resumed run finds them as they were at the beginning of a step,
        and gets the steps from there on. Everything else must follow from the states, the step and the attack's
        arguments, and the loop may query only this oracle and its `rows`. Loops may be nested, or follow one another.
        """

    def note(self, subject: str, reason: str) -> None:
        """Put a note into the record, such as ("AutoAttack's Square is left out", "it failed"): once for a subject."""

    def choose(self, candidates: Sequence[Tensor], labels: Tensor, targets: Tensor | None = None) -> Tensor:
        """For each image the strongest of the candidates (each (B, C, H, W)), compared on noise reserved for this."""

    def outvoted(self, images: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
        """Whether at most half of the selection draws get each image right, or at least half predict its target, (B,).

        In full precision. The draws are those of `choose`, and in `Cost` every call counts as one of its candidates.
        """

    def view(self, draws: int = 1, *, exact: bool = True) -> nn.Module:
        """A module from images to logits for other libraries: it draws fresh attack noise at every call.

        It takes the whole batch in its order, or any number of versions of some of its images, each of which is
        matched to the nearest original. With several draws it returns the logarithm of their mean probabilities.
        With exact=False it answers like `probe`.
        """
