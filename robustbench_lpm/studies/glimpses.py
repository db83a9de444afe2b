"""Predictions and fixations of a glimpsing model after each of its T glimpses, clean and attacked.

A pass of T glimpses answers after each of them, so that one pass over the images with K draws of noise gives the
accuracy at every t. Draw k runs the model M times, one run after the other on the noise of address (purpose, k): the
mean logits of its first m runs are, draw by draw, what grading the average of m runs (`--mc m`) would meet. At m = 1
and t = T the predictions are those of the run's record, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.special import stdtrit  # Student's quantiles; scipy.stats takes a second to import
from torch import Tensor

from robustbench_lpm import statistics
from robustbench_lpm.architectures.classifier import Classifier, Noise, offered, on_device
from robustbench_lpm.architectures.recurrent_attention import Trajectory
from robustbench_lpm.datasets.examples import Batch, batches_by_shape
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.protocol.oracle import check_logits
from robustbench_lpm.protocol.plan import Plan
from robustbench_lpm.randomness import Addresses, Purpose
from robustbench_lpm.records.runs import RunRecord
from robustbench_lpm.registry.zoo import LoadedModel, load_model

if TYPE_CHECKING:
    import pandas as pd

Pixels = Mapping[int, NDArray[np.float32]]


@dataclass(frozen=True)
class Looks:
    """Predictions and fixations for N images, T glimpses and K draws of noise."""

    indices: tuple[int, ...]  # of the N images
    labels: NDArray[np.int64]  # (N,)
    predictions: dict[int, NDArray[np.int64]]  # for each M, (N, K, T): what the mean logits say after each glimpse
    aims: NDArray[np.float32]  # (N, K, T, 2): the intended fixations, before noise; glimpse 1: 0
    fixations: NDArray[np.float32]  # (N, K, T, 2): the fixations, in normalised coordinates

    def correct(self, mc: int, glimpses: int) -> NDArray[np.bool_]:
        """Whether each draw classifies each image correctly, (N, K), after so many glimpses of M runs."""
        return np.asarray(self.predictions[mc][:, :, glimpses - 1] == self.labels[:, None])


def check_glimpsing(model: LoadedModel) -> None:
    """Raises LpmbenchError for a model that sees images whole."""
    if not model.classifier.glimpsing:
        raise LpmbenchError(f"Model '{model.name}' sees an image whole: it takes no glimpses.")


def truncated(model: LoadedModel, name: str, glimpses: int, **loading: Any) -> LoadedModel:
    """The same checkpoint as `model`, loaded to take fewer glimpses, under the name "MODEL (T glimpses)".

    loading: as for `zoo.load_model`.
    """
    found = load_model(name, glimpses=glimpses, **loading)
    called = f"{model.name} ({glimpses} glimpse{'s' * (glimpses > 1)})"
    arguments = found.arguments.removeprefix("--model ")
    return replace(found, name=called, identity=found.identity | {"name": called}, arguments=arguments)


def adversarials(record: RunRecord) -> dict[int, NDArray[np.float32]]:
    """The attacked images (C, H, W) of a record that keeps them all, by index."""
    return {picture.index: picture.adversarial for picture in record.pictures()}


def looks_cost(plan: Plan, runs: Sequence[int]) -> int:
    """Passes that `looks` takes for each image."""
    return plan.options.draws * (max(runs) if plan.classifier.stochastic else 1)


@torch.no_grad()
def looks(
    plan: Plan, pixels: Pixels | None = None, *, purpose: Purpose, runs: Sequence[int] = (1,),
    spent: Callable[[int], None] = lambda _: None,
) -> Looks:  # fmt: skip
    """Run the model on the images of a plan, or on `pixels` in their place (images that it lacks are left out).

    purpose: "clean" or "grade"; K draws of noise of that purpose are used, keyed as the grader keys them.
    runs: the values of M, for each of which the mean logits of the first M runs of a draw are taken. A deterministic
        model is asked once: K = M = 1.
    spent: called with the number of passes that the network has made.
    """
    check_glimpsing(plan.model)
    runs = sorted(set(runs)) if plan.classifier.stochastic else [1]
    rows: dict[int, tuple[Any, ...]] = {}
    for batch in _batches(plan, pixels):
        draws = [_one_draw(plan, batch, purpose, draw, runs, spent) for draw in range(plan.options.draws)]
        answers, aims, fixations = (np.stack(part, axis=1) for part in zip(*draws, strict=True))  # (B, K, ...)
        for row, index in enumerate(batch.indices):
            rows[index] = (int(batch.labels[row]), answers[row], aims[row], fixations[row])
    indices = tuple(index for index in plan.indices if index in rows)
    if not indices:
        raise LpmbenchError("There are no images to look at.")
    labels, answered, aimed, fixated = zip(*(rows[index] for index in indices), strict=True)
    predictions = np.stack(answered)  # (N, K, number of Ms, T)
    by_m = {mc: predictions[:, :, position] for position, mc in enumerate(runs)}
    return Looks(indices, np.array(labels, np.int64), by_m, np.stack(aimed), np.stack(fixated))


def _batches(plan: Plan, pixels: Pixels | None) -> Iterator[Batch]:
    """The same batches as the runner grades, of one chunk at most: the last bit of a logit may depend on the batch."""
    for block in plan.blocks:
        wanted = [index for index in block if pixels is None or index in pixels]
        for batch in batches_by_shape(plan.data.read(wanted)) if wanted else ():
            if pixels is not None:
                batch = replace(batch, images=torch.from_numpy(np.stack([pixels[i] for i in batch.indices])))
            yield batch


def _one_draw(
    plan: Plan, batch: Batch, purpose: Purpose, draw: int, runs: Sequence[int], spent: Callable[[int], None]
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """Predictions (B, number of Ms, T) of one draw; aims and fixations (B, T, 2) of its first run."""
    images = batch.images.to(plan.options.device)
    addresses = Addresses.of(plan.options.seed, batch.indices, purpose, draw).runs(max(runs))
    total: Tensor | None = None
    answers: list[Tensor] = []
    for run in range(1, max(runs) + 1):
        of_run = addresses.rows(slice(run - 1, None, max(runs)))
        trajectory = _look(plan.classifier, images, plan.classifier.sample_noise(of_run))
        check_logits(trajectory.logits.flatten(0, 1), plan.classes)
        total = trajectory.logits if total is None else total + trajectory.logits
        if run == 1:
            gaze = [_aims(plan.classifier, trajectory), trajectory.fixations]
        if run in runs:
            answers.append((total / run).argmax(-1))
        spent(len(images))
    aims, fixations = (where.movedim(1, 0).cpu().numpy() for where in gaze)
    return torch.stack(answers).movedim(-1, 0).cpu().numpy(), aims, fixations


def _look(classifier: Classifier, images: Tensor, noise: Noise) -> Trajectory:
    """A deterministic classifier has no noise to be given."""
    return classifier.look(images, on_device(noise, images.device) or None)


def _aims(classifier: Classifier, trajectory: Trajectory) -> Tensor:
    """The intended fixation of each glimpse, (T, B, 2): mu of the glimpse before.

    A first glimpse, and every glimpse of the control policies, is drawn around the centre whatever the image shows.
    """
    aims = torch.zeros_like(trajectory.fixations)
    if offered(classifier.network, "policy") == "learned":
        aims[1:] = trajectory.means[:-1]
    return aims


def accuracy_table(clean: Looks, attacked: Looks, adaptive: Mapping[int, RunRecord]) -> pd.DataFrame:
    """One row for each M and t, by what a decision costs: glimpses M·t, forwards M. Shares in [0, 1].

    attacked: images made against all T glimpses. adaptive: for each t the run that attacked the model of t glimpses;
    it is graded at M = 1, so the other rows have none.
    """
    import pandas as pd

    glimpses = next(iter(clean.predictions.values())).shape[2]
    rows = []
    for mc in clean.predictions:
        for t in range(1, glimpses + 1):
            anew = adaptive[t].robust_accuracy if mc == 1 and t in adaptive else None
            rows.append(
                {"mc": mc, "glimpses": t, "glimpses_per_decision": mc * t, "forwards_per_decision": mc}
                | _rate("clean_accuracy", statistics.mean_draw(clean.correct(mc, t)))
                | _rate("attacked_accuracy", statistics.mean_draw(attacked.correct(mc, t)))
                | _rate("adaptive_accuracy", anew)
            )
    table = pd.DataFrame(rows).sort_values(["glimpses_per_decision", "mc"], ignore_index=True)
    return table.assign(images=len(clean.indices), draws=next(iter(clean.predictions.values())).shape[1])


def _rate(name: str, rate: statistics.Rate | None) -> dict[str, float]:
    ends = {"": rate.value, "_low": rate.low, "_high": rate.high} if rate else dict.fromkeys(("", "_low", "_high"))
    return {name + end: float("nan") if value is None else value for end, value in ends.items()}


def fixation_table(still: Looks, moved: Looks) -> pd.DataFrame:
    """How far the attack moves the intended fixations of glimpses 2 to T, in normalised units (an image is 2 wide).

    still, moved: clean and attacked images under the same noise. "shift" is the distance between the aims on the two,
    "restlessness" that between the aims of two draws of noise on the clean image, the mean over all pairs of draws
    (NaN for one draw). Both are means over images of the mean over draws, with Student's 95 % interval over images.
    """
    import pandas as pd

    distances = np.linalg.norm(still.aims - moved.aims, axis=-1).mean(axis=1)  # (N, T)
    rows = []
    for t in range(1, distances.shape[1]):
        natural = _mean_distance_of_pairs(still.aims[:, :, t])
        rows.append({"glimpse": t + 1} | _mean("shift", distances[:, t]) | _mean("restlessness", natural))
    columns = [name + end for name in ("shift", "restlessness") for end in ("", "_low", "_high")]
    table = pd.DataFrame(rows, columns=["glimpse", *columns])
    return table.assign(images=len(still.indices), draws=still.aims.shape[1])


def _mean_distance_of_pairs(points: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of points (N, K, 2) the mean distance between two of the K, (N,); NaN for K = 1."""
    draws = points.shape[1]
    if draws < 2:
        return np.full(len(points), np.nan)
    pairs = np.linalg.norm(points[:, :, None] - points[:, None], axis=-1)
    return np.asarray(pairs.sum(axis=(1, 2)) / (draws * (draws - 1)), np.float64)


def _mean(name: str, values: NDArray[Any]) -> dict[str, float]:
    """The mean of one number per image with Student's 95 % interval, none below 20 images."""
    n, mean = len(values), float(values.mean())
    if n < statistics.MIN_IMAGES_FOR_INTERVAL:
        return {name: mean, f"{name}_low": float("nan"), f"{name}_high": float("nan")}
    half = float(stdtrit(n - 1, 0.975) * values.std(ddof=1) / np.sqrt(n))
    return {name: mean, f"{name}_low": float(np.maximum(0.0, mean - half)), f"{name}_high": mean + half}


def turned(still: Looks, moved: Looks, count: int) -> list[tuple[int, int]]:
    """The first `count` images whose majority prediction the attack changed, as (row, draw), then others up to `count`.

    The draw is the first that the attack turned from right to wrong, or else the first whose prediction it changed, or
    else draw 0.
    """
    before, after = still.predictions[1][:, :, -1], moved.predictions[1][:, :, -1]
    changed = np.array([_most(b) != _most(a) for b, a in zip(before, after, strict=True)], dtype=bool)
    rows = np.argsort(~changed, kind="stable")[:count]
    right = before == still.labels[:, None]
    merit = (before != after).astype(int) + ((before != after) & right)
    return [(int(row), int(merit[row].argmax())) for row in rows]


def _most(labels: NDArray[np.int64]) -> int:
    return int(np.bincount(labels).argmax())


@torch.no_grad()
def trace(plan: Plan, index: int, image: NDArray[np.float32], draw: int) -> dict[str, NDArray[Any]]:
    """One pass over an image (C, H, W) of the plan, on the grader's noise for its draw.

    Returns the image; `fixations` (T, 2), normalised; after each glimpse the predicted `labels` (T,) and their softmax
    `confidences` (T,); and `seen` (T, n, C), the values of the n cells of the retina.
    """
    images = torch.from_numpy(image)[None].to(plan.options.device)
    noise = plan.classifier.sample_noise(Addresses.of(plan.options.seed, [index], "grade", draw))
    trajectory = _look(plan.classifier, images, noise)
    confidences, labels = trajectory.logits[:, 0].softmax(-1).max(-1)
    seen = [_seen(plan.classifier, images, fixation) for fixation in trajectory.fixations]
    found = {"fixations": trajectory.fixations[:, 0], "labels": labels, "confidences": confidences}
    found["seen"] = torch.stack(seen)
    return {"image": image} | {name: values.cpu().numpy() for name, values in found.items()}


def _seen(classifier: Classifier, images: Tensor, fixations: Tensor) -> Tensor:
    """The value of each cell of the retina on one image (1, C, H, W): (n, C), cells in the order of `cells`."""
    retina = offered(classifier.network, "retina")
    if retina is None:
        return images.new_zeros(0, images.shape[1])
    size = classifier.working_size
    if size is not None and tuple(images.shape[-2:]) != (size, size):
        images = F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
    glimpse = retina(images, fixations)
    return torch.cat([part.flatten(1).T for part in glimpse[0].split(images.shape[1])])


def cells(plan: Plan) -> NDArray[np.float64]:
    """The cells of a model's retina around a fixation, (n, 2): each at the mean of the points that it averages.

    (0, 2) for a user's own model whose `network` has no `retina`.
    """
    retina = offered(plan.classifier.network, "retina")
    if retina is None:
        return np.zeros((0, 2))
    rows = retina(
        torch.zeros(1, 1, 8, 8, device=plan.options.device), torch.zeros(1, 2, device=plan.options.device)
    ).shape[-2]
    found = []
    for points in retina.points:
        side = points.shape[0] // rows
        found.append(F.avg_pool2d(points.movedim(-1, 0)[None], side)[0].flatten(1).T)
    return np.asarray(torch.cat(found).numpy(), np.float64)
