"""Attacks of the Adversarial Robustness Toolbox (Nicolae et al. 2018) behind our contract."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from robustbench_lpm.attacks.contract import Cost, Declaration, Oracle
from robustbench_lpm.norms import Norm
from robustbench_lpm.randomness import isolated_globals


# Beside its gradients ART predicts twice for every restart.
@Declaration(cost=lambda steps, restarts, eot: Cost((steps + 2) * restarts * eot, steps * restarts * eot))
def art_pgd(
    oracle: Oracle, images: Tensor, labels: Tensor, *, norm: Norm, eps: float, targets: Tensor | None = None,
    steps: PositiveInt = 40, step_size: PositiveFloat | None = None, restarts: PositiveInt = 1, eot: PositiveInt = 1,
) -> Tensor:  # fmt: skip
    """ART's projected gradient descent (cross-entropy, random start); parameters as in `pgd`.

    eot: draws of noise over whose mean probabilities a stochastic classifier's cross-entropy is taken.
    """
    if eps == 0:  # ART refuses a ball of radius zero
        return images.clone()
    with isolated_globals(seed_of(oracle)):
        from art.attacks.evasion import ProjectedGradientDescentPyTorch

        classifier = art_classifier(oracle.view(eot), images, oracle.classes)
        attack = ProjectedGradientDescentPyTorch(
            classifier, norm=np.inf if norm == "linf" else 2, eps=eps, max_iter=steps, targeted=targets is not None,
            eps_step=2.5 * eps / steps if step_size is None else step_size, num_random_init=restarts,
            batch_size=len(images), verbose=False,
        )  # fmt: skip
        aim = labels if targets is None else targets
        found = attack.generate(x=images.cpu().numpy(), y=aim.cpu().numpy())
    return torch.from_numpy(found).to(images)


def art_classifier(model: nn.Module, images: Tensor, classes: int) -> Any:
    """A model from images to logits as ART sees it. images: some like those that it will get."""
    from art.estimators.classification import PyTorchClassifier

    logging.getLogger("art").setLevel(logging.ERROR)
    return PyTorchClassifier(
        model=model, loss=nn.CrossEntropyLoss(), input_shape=tuple(images.shape[1:]), nb_classes=classes,
        clip_values=(0.0, 1.0), device_type="gpu" if images.is_cuda else "cpu",
    )  # fmt: skip


def seed_of(oracle: Oracle) -> int:
    """A seed for another library's global generators, from those of the images of the batch."""
    return sum(oracle.choices().integers("global_seed", 2**62).tolist()) % 2**63
