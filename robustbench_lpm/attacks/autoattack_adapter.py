"""AutoAttack (Croce and Hein 2020, arXiv 2003.01690), as the package pyautoattack has it, behind our contract.

Its own driver is biased against stochastic classifiers: every stage skips what a single pass got wrong, keeps the first
wrong answer, and returns the clean image where one more pass was right. Here every stage attacks every image and gives
a candidate for it, and the strongest is chosen on selection noise. One exact shortcut remains: an image that a
deterministic classifier misclassifies does not go to the next stage. A stage that fails (Square, on images that are not
square) is left out with a note.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from pydantic import PositiveInt
from torch import Tensor, nn

from robustbench_lpm.allocator import out_of_memory
from robustbench_lpm.attacks.art_adapter import seed_of
from robustbench_lpm.attacks.contract import Cost, Declaration, Oracle
from robustbench_lpm.attacks.losses import succeeded
from robustbench_lpm.attacks.minimum import POINTS, nearest_on_ray
from robustbench_lpm.errors import LpmbenchError, in_one_line
from robustbench_lpm.norms import Norm, distance, per_image, project
from robustbench_lpm.randomness import isolated_globals

TARGETS = 9  # target classes of the targeted stages, one after the other; all others if there are fewer
# In L1: restarts of APGD and target classes of its targeted stage. Each runs at three radii, with a start each.
L1_RESTARTS, L1_TARGETS = 5, 5
SILENT = logging.Logger("pyautoattack", logging.CRITICAL + 1)
# Its name, and from a module, images and labels to candidates; the next stage starts from the last one.
Stage = tuple[str, Callable[[nn.Module, Tensor, Tensor], list[Tensor]]]


def _standard_cost(steps: int, queries: int, norm: Norm = "linf") -> Cost:
    """With all targets; APGD's starts, each target and each stage's result cost a forward pass more."""
    runs, aimed, starts = (L1_RESTARTS, L1_TARGETS, 3) if norm == "l1" else (1, TARGETS, 1)
    apgd = (runs + aimed) * (steps + starts)
    forwards = apgd + aimed + TARGETS * (1 + 2 * steps) + (queries + 1)
    looks = runs + aimed + TARGETS + 1
    return Cost(forwards + looks, apgd + TARGETS * steps, choices=2 * (runs + aimed) + TARGETS + 1)


@Declaration(cost=_standard_cost)
def autoattack_standard(
    oracle: Oracle, images: Tensor, labels: Tensor, *, norm: Norm, eps: float,
    steps: PositiveInt = 100, queries: PositiveInt = 5000,
) -> Tensor:  # fmt: skip
    """The standard version: APGD on cross-entropy, targeted APGD on DLR, targeted FAB, Square.

    The targets are the 9 likeliest other classes, or all K - 1. In L1 APGD runs from 5 starts, and towards 5 targets,
    at three radii each. With three classes or fewer the targeted
    DLR does not exist and its stage is left out; so is Square in l2 and l1 on images of less than 5
    pixels.

    Args:
        images: (B, C, H, W) in [0, 1]. labels: (B,).
        steps: of APGD and FAB. queries: of Square.
    """
    options: dict[str, Any] = {"norm": _name(norm), "eps": eps}
    ranks = range(min(TARGETS, oracle.classes - 1))
    starts, aimed = (L1_RESTARTS, ranks[:L1_TARGETS]) if norm == "l1" else (1, ranks)
    options_of_apgd = options | {"n_iter": steps, "use_largereps": norm == "l1"}
    stages: list[Stage] = [("APGD on ce", partial(_apgd, loss="ce", **options_of_apgd))] * starts
    if oracle.classes > 3:
        stages += [("targeted APGD", partial(_apgd, rank=rank, **options_of_apgd)) for rank in aimed]
    stages += [("targeted FAB", partial(_fab, rank=rank, n_iter=steps, **options)) for rank in ranks]
    if norm == "linf" or min(images.shape[-2:]) >= 5:
        stages.append(("Square", partial(_square, n_queries=queries, **options)))
    return _strongest(oracle, images, labels, stages, norm, eps)


def _rand_cost(steps: int, eot: int, stochastic: bool) -> Cost:
    """Two runs, with a forward pass for each start; without noise, one more for each stage's result."""
    passes = 2 * (steps + 1) * eot
    return Cost(passes + (0 if stochastic else 2), passes, choices=4)


@Declaration(cost=_rand_cost)
def autoattack_rand(
    oracle: Oracle, images: Tensor, labels: Tensor, *, norm: Norm, eps: float,
    steps: PositiveInt = 100, eot: PositiveInt = 20,
) -> Tensor:  # fmt: skip
    """The version for randomised classifiers: APGD on cross-entropy and on DLR, gradients averaged over draws.

    With two classes the DLR does not exist and its stage is left out.

    Args:
        images: (B, C, H, W) in [0, 1]. labels: (B,).
        eot: draws of noise over which a gradient is averaged; a deterministic classifier is asked once.
    """
    options: dict[str, Any] = {"norm": _name(norm), "eps": eps, "n_iter": steps}
    options["eot_iter"] = eot if oracle.stochastic else 1
    losses = ["ce", "dlr"] if oracle.classes > 2 else ["ce"]
    stages: list[Stage] = [(f"APGD on {loss}", partial(_apgd, loss=loss, **options)) for loss in losses]
    return _strongest(oracle, images, labels, stages, norm, eps)


def _fab_cost(steps: int, eot: int, classes: int) -> Cost:
    """FAB asks for each iterate's label and gradient; for its targets once."""
    return Cost(classes * (1 + 2 * steps) * eot, classes * steps * eot, choices=classes * (POINTS + 1))


@Declaration(cost=_fab_cost, nearest=True)
@torch.no_grad()
def fab(
    oracle: Oracle, images: Tensor, labels: Tensor, *, norm: Norm, eps: float,
    steps: PositiveInt = 50, eot: PositiveInt = 5, classes: PositiveInt = TARGETS,
) -> Tensor:  # fmt: skip
    """FAB alone (Croce and Hein 2020, arXiv 1907.02044): the nearest adversarial example towards any class.

    It does not use eps, see `attacks.minimum`. Where it finds none it returns the farthest corner of the box.

    Args:
        images: (B, C, H, W) in [0, 1]. labels: (B,).
        steps: towards each of so many of the likeliest other classes.
        eot: draws of noise over which a stochastic classifier's probabilities are averaged.
    """
    found, nearest = images.clone(), torch.full((len(images),), torch.inf, dtype=torch.float64, device=images.device)
    state = {"found": found, "nearest": nearest}
    with isolated_globals(seed_of(oracle)):
        for rank in oracle.resumable(range(min(classes, oracle.classes - 1)), state):
            view = oracle.view(eot, exact=False)
            (candidates,) = _fab(
                view, images.clone(), labels.long(), rank=rank, norm=_name(norm), eps=eps, n_iter=steps
            )
            candidates = torch.where(candidates.isfinite(), candidates, images).clamp(0, 1)
            candidates = nearest_on_ray(oracle, images, candidates, labels, None)
            far = distance(candidates, images, norm)
            # Where FAB finds no boundary it returns the image.
            far = torch.where(oracle.outvoted(candidates, labels) & (far > 0), far, torch.inf)
            nearer = far < state["nearest"]
            state["found"] = torch.where(per_image(nearer, images), candidates, state["found"])
            state["nearest"] = state["nearest"].minimum(far)
    return torch.where(per_image(state["nearest"].isinf(), images), (images < 0.5).to(images), state["found"])


@torch.no_grad()  # the stages switch gradients on where they take them
def _strongest(oracle: Oracle, images: Tensor, labels: Tensor, stages: list[Stage], norm: Norm, eps: float) -> Tensor:
    """Run the stages; for each image the strongest of all candidates."""
    if eps == 0:  # nothing to search, and divisions by the radius
        return images.clone()
    labels = labels.long()  # the package fails on other integers
    latest = images.clone()
    found: list[Tensor] = []
    failure: Exception | None = None
    here, active = oracle, torch.arange(len(images), device=images.device)
    with isolated_globals(seed_of(oracle)):
        for name, stage in stages:
            originals = images[active]
            try:
                candidates = stage(here.view(exact=False), originals.clone(), labels[active])
            except Exception as error:
                if isinstance(error, LpmbenchError) or out_of_memory(error):
                    raise
                failure = error
                oracle.note(f"{name} of AutoAttack failed and is left out", in_one_line(error))
                continue
            for candidate in candidates:
                # Where a stage failed (FAB finds no boundary, or divides by a gradient of zero) the earlier images
                # stay.
                finite, moved = candidate.isfinite().flatten(1).all(1), (candidate != originals).flatten(1).any(1)
                usable = finite & moved
                latest[active[usable]] = project(candidate[usable], originals[usable], norm, eps)
                found.append(latest.clone())
            if not oracle.stochastic:
                remaining = ~succeeded(here(latest[active], here.noise()), labels[active])[0]
                active, here = active[remaining], here.rows(remaining)
                if len(active) == 0:
                    break
    if failure is not None and not found:
        raise failure
    return oracle.choose(found, labels)


def _apgd(model: nn.Module, images: Tensor, labels: Tensor, *, rank: int | None = None, **options: Any) -> list[Tensor]:
    """The misclassified iterates, those of highest loss in place of the others; and all those of highest loss."""
    if rank is None:
        attack = APGDAttack(model, logger=SILENT, **options)
    else:
        attack = APGDAttack_targeted(model, logger=SILENT, **options)
        attack.y_target = _rivals(model(images), labels)[:, rank + 1]
    attack.init_hyperparam(images)
    if attack.use_largereps:
        first = math.ceil(0.3 * attack.n_iter) if attack.n_iter > 1 else 0
        run = partial(
            attack.decr_eps_pgd, epss=[3 * attack.eps, 2 * attack.eps, attack.eps],
            iters=[first, first, attack.n_iter - 2 * first],
        )  # fmt: skip
    else:
        run = attack.attack_single_run
    best, right, _, flipped = run(images, labels)
    right = right.bool().reshape(-1, *[1] * (images.dim() - 1))
    return [best, torch.where(right, best, flipped)]


def _rivals(logits: Tensor, labels: Tensor) -> Tensor:
    """The classes of each image by decreasing logits (B, K), the label first."""
    return logits.scatter(1, labels[:, None], torch.inf).argsort(1, descending=True)


def _fab(model: nn.Module, images: Tensor, labels: Tensor, *, rank: int, **options: Any) -> list[Tensor]:
    attack = _EveryImage(model, labels, device=images.device, **options)
    attack.target_class = rank + 2  # counted from the largest logit, the label's, which is 1
    return [attack.attack_single_run(images, labels, is_targeted=True)]


def _square(model: nn.Module, images: Tensor, labels: Tensor, **options: Any) -> list[Tensor]:
    attack = SquareAttack(model, resc_schedule=False, **options)
    attack.init_hyperparam(images)
    return [attack.attack_single_run(images, labels)[1]]


class _EveryImage(FABAttack_PT):  # type: ignore[misc]  # the package has no types
    """FAB, but it attacks every image, and no other class than the label comes first when it ranks targets.

    FAB evaluates every iterate twice, for its label and for its gradient: here one forward pass gives both.
    """

    def __init__(self, model: nn.Module, labels: Tensor, **options: Any) -> None:
        super().__init__(model, **options)
        self._labels, self._predictions = labels, self._label_then_predictions()
        self._iterate, self._logits = labels.new_empty(0), labels.new_empty(0)

    def _predict_fn(self, x: Tensor) -> Tensor:
        logits: Tensor = self.predict(x)
        return logits.scatter(1, self._labels[:, None], torch.inf)

    def _get_predicted_label(self, x: Tensor) -> Tensor:
        return next(self._predictions)(x)

    def _label_then_predictions(self) -> Iterator[Callable[[Tensor], Tensor]]:
        # It asks first which images are right, to attack only those.
        yield lambda _: self._labels
        while True:
            yield self._labels_of

    def _labels_of(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            self._iterate = x.detach().clone().requires_grad_()
            self._logits = self.predict(self._iterate)
        return self._logits.argmax(1)

    def get_diff_logits_grads_batch_targeted(
        self, imgs: Tensor, la: Tensor, la_target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The lead of the target over the label, (B, 1), and its gradient (B, 1, C, H, W)."""
        if not torch.equal(imgs, self._iterate):  # a misclassified iterate was moved back towards its image
            self._labels_of(imgs)
        rows = torch.arange(len(imgs), device=imgs.device)
        with torch.enable_grad():
            lead = self._logits[rows, la_target] - self._logits[rows, la]
            (gradients,) = torch.autograd.grad(lead.sum(), self._iterate)
        self._iterate = self._iterate.new_empty(0)
        return lead.detach()[:, None], gradients[:, None]


def _name(norm: Norm) -> str:
    return {"linf": "Linf", "l2": "L2", "l1": "L1"}[norm]
