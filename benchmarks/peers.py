"""Other libraries' attacks as they come, each a function of (network, images, labels, budget) to adversarial images.

All are in L-infinity, from images (B, C, H, W) in [0, 1] with labels (B,). A library is imported when it is called:
one that is not installed is skipped, not an error.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Budget:
    """What every contestant may spend; whatever is not used by an attack stays at its default.

    eps, step_size, delta, learning_rate: in pixel values. steps: of PGD, or iterations of SPSA. pairs: of SPSA, for
    each image and iteration. at_once: SPSA pairs that torchattacks queries together; None for its default of 64.
    queries: of Square. draws: of a stochastic network's noise, for each gradient.
    """

    eps: float
    steps: int = 1
    step_size: float = 0.0
    pairs: int = 0
    delta: float = 0.01
    learning_rate: float = 0.01
    at_once: int | None = None
    queries: int = 0
    draws: int = 1


Peer = Callable[[nn.Module, Tensor, Tensor, Budget], Tensor]


def torchattacks_pgd(network: nn.Module, images: Tensor, labels: Tensor, budget: Budget) -> Tensor:
    from torchattacks import PGD

    attack = PGD(network, eps=budget.eps, alpha=budget.step_size, steps=budget.steps, random_start=True)
    return attack(images, labels)


def torchattacks_eot_pgd(network: nn.Module, images: Tensor, labels: Tensor, budget: Budget) -> Tensor:
    from torchattacks import EOTPGD

    attack = EOTPGD(network, eps=budget.eps, alpha=budget.step_size, steps=budget.steps, eot_iter=budget.draws)
    return attack(images, labels)


def cleverhans_pgd(network: nn.Module, images: Tensor, labels: Tensor, budget: Budget) -> Tensor:
    from cleverhans.torch.attacks.projected_gradient_descent import projected_gradient_descent

    # Without the bounds it leaves [0, 1]; the labels are given, or it takes the predictions for them.
    return projected_gradient_descent(
        network, images, budget.eps, budget.step_size, budget.steps, np.inf, clip_min=0.0, clip_max=1.0, y=labels,
        sanity_checks=not images.is_cuda,  # they hand tensors to numpy
    )  # fmt: skip


def foolbox_pgd(network: nn.Module, images: Tensor, labels: Tensor, budget: Budget) -> Tensor:
    import foolbox

    # The device is named because it moves the network to a GPU wherever there is one.
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device=images.device)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=budget.step_size, steps=budget.steps, random_start=True)
    return attack(model, images, labels, epsilons=budget.eps)[1]


def art_pgd(network: nn.Module, images: Tensor, labels: Tensor, budget: Budget) -> Tensor:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    with torch.no_grad():
        classes = network(images[:1]).shape[1]
    classifier = PyTorchClassifier(
        model=network,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(images.shape[1:]),
        nb_classes=classes,
        clip_values=(0.0, 1.0),
        device_type="gpu" if images.is_cuda else "cpu",
    )
    # One random start (the default is none); its batches of 32 are its default. verbose=False: no progress bar.
    attack = ProjectedGradientDescentPyTorch(
        classifier, eps=budget.eps, eps_step=budget.step_size, max_iter=budget.steps, num_random_init=1, verbose=False
    )
    return torch.from_numpy(attack.generate(images.cpu().numpy(), labels.cpu().numpy())).to(images)


def advertorch_pgd(network: nn.Module, images: Tensor, labels: Tensor, budget: Budget) -> Tensor:
    attacks = _advertorch()
    attack = attacks.LinfPGDAttack(network, eps=budget.eps, nb_iter=budget.steps, eps_iter=budget.step_size)
    return attack.perturb(images, labels)


def adv_lib_pgd(network: nn.Module, images: Tensor, labels: Tensor, budget: Budget) -> Tensor:
    from adv_lib.attacks import pgd_linf

    # Its step is relative to eps unless an absolute one is given.
    return pgd_linf(network, images, labels, budget.eps, steps=budget.steps, absolute_step_size=budget.step_size)


def cleverhans_spsa(network: nn.Module, images: Tensor, labels: Tensor, budget: Budget) -> Tensor:
    from cleverhans.torch.attacks.spsa import spsa

    return spsa(
        network,
        images,
        budget.eps,
        budget.steps,
        clip_min=0.0,
        clip_max=1.0,
        y=labels,
        learning_rate=budget.learning_rate,
        delta=budget.delta,
        spsa_samples=budget.pairs,  # twice as many queries an iteration, and one look at the iterate
        sanity_checks=not images.is_cuda,
    )


def advertorch_spsa(network: nn.Module, images: Tensor, labels: Tensor, budget: Budget) -> Tensor:
    attack = _advertorch().LinfSPSAAttack(network, **_spsa_settings(budget))
    return attack.perturb(images, labels)


def torchattacks_spsa(network: nn.Module, images: Tensor, labels: Tensor, budget: Budget) -> Tensor:
    from torchattacks import SPSA

    # Its max_batch_size counts pairs of the whole batch: so many times B images pass at once.
    more = {"max_batch_size": budget.at_once} if budget.at_once is not None else {}
    return SPSA(network, **_spsa_settings(budget), **more)(images, labels)


def _spsa_settings(budget: Budget) -> dict[str, Any]:
    """What advertorch and torchattacks, which was made after it, call the same."""
    return {
        "eps": budget.eps, "delta": budget.delta, "lr": budget.learning_rate, "nb_iter": budget.steps,
        "nb_sample": budget.pairs,
    }  # fmt: skip


def pyautoattack_standard(network: nn.Module, images: Tensor, labels: Tensor, budget: Budget) -> Tensor:
    from pyautoattack import AutoAttack

    # A seed, because without one it takes the time of day for it.
    attack = AutoAttack(network, norm="Linf", eps=budget.eps, version="standard", seed=0, device=images.device)
    for stage in (attack.apgd, attack.apgd_targeted, attack.fab):
        stage.n_iter = budget.steps
    attack.square.n_queries = budget.queries
    return attack.run_standard_evaluation(images, labels)[0]


def _advertorch() -> ModuleType:
    _mend_torch()
    import advertorch.attacks

    return advertorch.attacks


def _mend_torch() -> None:
    """Give torch back a function that it has dropped and advertorch imports."""

    def zero_gradients(tensor: Tensor) -> None:
        if tensor.grad is not None:
            tensor.grad.detach_().zero_()

    sys.modules["torch.autograd.gradcheck"].zero_gradients = zero_gradients  # type: ignore[attr-defined]


PEERS: dict[str, dict[str, Peer]] = {
    "pgd": {
        "torchattacks": torchattacks_pgd,
        "adv_lib": adv_lib_pgd,
        "cleverhans": cleverhans_pgd,
        "advertorch": advertorch_pgd,
        "foolbox": foolbox_pgd,
        "ART": art_pgd,
    },
    "eot-pgd": {"torchattacks": torchattacks_eot_pgd},
    "spsa": {
        "cleverhans": cleverhans_spsa,
        "advertorch": advertorch_spsa,
        "torchattacks": torchattacks_spsa,
    },
    "autoattack": {"pyautoattack": pyautoattack_standard},
}

# What each is called on the package index.
PACKAGES = {
    "torchattacks": "torchattacks",
    "adv_lib": "adv-lib",
    "cleverhans": "cleverhans",
    "advertorch": "advertorch",
    "foolbox": "foolbox",
    "ART": "adversarial-robustness-toolbox",
    "pyautoattack": "pyautoattack",
}
MODULES = {"ART": "art", "adv_lib": "adv_lib.attacks"}  # where the library's name is not what must be imported
NEEDED = {"git": "GitPython"}  # packages that a module which is missing is in, where its name does not say so


def missing() -> dict[str, str]:
    """The libraries that cannot be imported, each with the command that installs what is missing."""
    _mend_torch()
    found = {}
    for name, package in PACKAGES.items():
        module = MODULES.get(name, name)
        try:
            importlib.import_module(module)
        except ImportError as error:
            lacking = (error.name or module).partition(".")[0]
            own = lacking == module.partition(".")[0]
            found[name] = f"pip install {package if own else NEEDED.get(lacking, lacking)}"
    return found
