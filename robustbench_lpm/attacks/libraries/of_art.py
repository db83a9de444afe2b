"""Attacks of the Adversarial Robustness Toolbox (Nicolae et al. 2018) by their names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from art.attacks import evasion
from art.attacks.attack import EvasionAttack
from torch import Tensor, nn

from robustbench_lpm.attacks.art_adapter import art_classifier
from robustbench_lpm.attacks.libraries.offers import Call, Offer, ours_of
from robustbench_lpm.attacks.libraries.signatures import as_the_library_takes, first_sentence, offered, only_taken

# Why attacks are left out: by what they require of a model, and by their names.
REQUIRED = {
    "ObjectDetectorMixin": "it attacks object detectors",
    "ObjectTrackerMixin": "it attacks object trackers",
    "SpeechRecognizerMixin": "it attacks speech recognisers",
    "PytorchSpeechRecognizerMixin": "it attacks speech recognisers",
    "ScikitlearnDecisionTreeClassifier": "it attacks decision trees",
    "GPyGaussianProcessClassifier": "it attacks Gaussian processes",
}
LEFT_OUT = {
    "AdversarialPatch": "it makes a patch, not images",
    "AdversarialPatchNumpy": "it makes a patch, not images",
    "AdversarialPatchPyTorch": "it makes a patch, not images",
    "FeatureAdversariesNumpy": "it imitates the features of another image",
    "FeatureAdversariesPyTorch": "it imitates the features of another image",
    "FrameSaliencyAttack": "it attacks videos",
    "GRAPHITEBlackbox": "it needs an image of the target and a mask",
    "GRAPHITEWhiteboxPyTorch": "it needs an image of the target and a mask",
    "LaserAttack": "it needs objects that make beams of light",
    "LowProFool": "it attacks tables of features",
    "MalwareGDTensorFlow": "it attacks detectors of malware",
    "OverTheAirFlickeringPyTorch": "it attacks videos",
    "OverloadPyTorch": "it attacks object detectors",
    "SNAL": "it attacks object detectors",
}
# What the signatures do not tell. Norms, by the documentation; attacks whose name is not here have the norms that their
# parameter `norm` takes, or none of ours.
NORMS: dict[str, tuple[str, ...]] = {
    "BasicIterativeMethod": ("linf",), "BoundaryAttack": ("l2",), "CarliniL2Method": ("l2",),
    "CarliniLInfMethod": ("linf",), "DeepFool": ("l2",), "ElasticNet": ("l1",), "HopSkipJump": ("linf", "l2"),
    "NewtonFool": ("l2",), "SignOPTAttack": ("l2",), "SquareAttack": ("linf", "l2"),  # in l1 it does nothing
    "TargetedUniversalPerturbation": ("linf", "l2"), "ThresholdAttack": ("linf",),
    "UniversalPerturbation": ("linf", "l2"), "VirtualAdversarialMethod": ("l2",), "ZooAttack": ("l2",),
}  # fmt: skip
# Attacks with gradients, though they do not require them of their model.
GRADIENTS = ("AutoAttack", "BrendelBethgeAttack", "TargetedUniversalPerturbation", "UniversalPerturbation")
JACOBIAN, TARGETED = "SaliencyMapMethod", "TargetedUniversalPerturbation"  # they have no parameter `targeted`
NO_TARGET = ("SignOPTAttack",)  # it would need an image of the target
PROBABILITIES = ("NewtonFool", "SimBA", "VirtualAdversarialMethod")  # what they read; others read logits
# Auto-PGD and the conjugate gradients halve their steps, which begin at 2 eps (Croce and Hein 2020).
HALVED = ("AutoAttack", "AutoProjectedGradientDescent", "AutoConjugateGradient", "RescalingAutoConjugateGradient")
ONE_HOT = ("SimBA", TARGETED)  # the form of labels that they take; others take whole numbers, too
ONE_IMAGE = ("ShadowAttack", "SimBA")  # these take one at a time, the second also in a query
OURS = (
    "classifier",
    "estimator",
    "estimator_orig",
    "targeted",
    "batch_size",
    "verbose",
    "verbose_es",
    "summary_writer",
)


def names() -> list[str]:
    """The names of all attacks that `left_out` does not name."""
    without = left_out()
    return [name for name in _classes() if name not in without]


def left_out() -> dict[str, str]:
    """The attacks that do not change the images of a classifier in torch, and why."""
    found = {}
    for name, attack in _classes().items():
        reasons = [REQUIRED[required] for required in _required(attack) if required in REQUIRED]
        if name in LEFT_OUT or reasons:
            found[name] = LEFT_OUT.get(name) or reasons[0]
        elif "TensorFlow" in name:
            found[name] = "it attacks models in TensorFlow"
    return found


def _classes() -> dict[str, Any]:
    found = {name: thing for name, thing in vars(evasion).items() if isinstance(thing, type)}
    return {name: thing for name, thing in found.items() if issubclass(thing, EvasionAttack)}


def _required(attack: Any) -> list[str]:
    """What an attack requires of its model, by the names of classes."""
    return [required.__name__ for required in attack._estimator_requirements or () if isinstance(required, type)]


def describe(name: str) -> Offer:
    """The attack of that name."""
    attack: Any = getattr(evasion, name)
    taken, norms = inspect.signature(attack).parameters, _norms(name)
    required = " ".join(_required(attack))
    ours = [*OURS, *["norm"] * _has_norm(name), *["eps"] * bool(norms)]
    return Offer(
        f"art:{name}", first_sentence(attack), norms,
        "white-box" if "GradientsMixin" in required or name in GRADIENTS else "black-box", partial(_run, name),
        offered(attack, ours, {"eps_step": _step(name)[0]} if norms else None),
        targeted=("targeted" in taken and name not in NO_TARGET) or name in (JACOBIAN, TARGETED),
        only_targeted=name == TARGETED, minimises=bool(norms) and "eps" not in taken,
        alone="LossGradientsMixin" not in required or name in ONE_IMAGE,
    )  # fmt: skip


def _has_norm(name: str) -> bool:
    """Whether an attack takes a norm of ours; Wasserstein's are others."""
    norm = inspect.signature(getattr(evasion, name)).parameters.get("norm")
    return norm is not None and not isinstance(norm.default, str)


def _norms(name: str) -> tuple[Any, ...]:
    return ours_of(NORMS.get(name, ("linf", "l2", "l1") if _has_norm(name) else ()))


def _step(name: str) -> tuple[str, Callable[[Call], float]]:
    """The size of an attack's (first) step, in words and as a function: ART's own default is for eps = 0.3."""
    if name in HALVED:
        return "2·eps", lambda call: 2 * call.eps
    if name == "FastGradientMethod":  # of its search for the least eps (minimal=true)
        return "eps/10", lambda call: call.eps / 10
    return "2.5·eps/max_iter", lambda call: call.step("max_iter")


def _run(name: str, call: Call) -> Tensor:
    attack: Any = getattr(evasion, name)
    taken = inspect.signature(attack).parameters
    set_here: dict[str, Any] = {
        "targeted": call.targets is not None, "verbose": False,
        "batch_size": 1 if name in ONE_IMAGE else max(len(call.images), call.chunk),
    }  # fmt: skip
    if _has_norm(name):
        set_here["norm"] = {"linf": np.inf, "l2": 2, "l1": 1}[call.norm]
    if _norms(name):
        set_here["eps"] = call.eps
        if "eps_step" in taken:
            set_here["eps_step"] = _step(name)[1](call)
    if "attacker_params" in taken and call.parameters["attacker"] != "fgsm":  # which takes no `verbose`
        set_here["attacker_params"] = {"verbose": False}
    aim: Any = call.aim.cpu().numpy()
    if name == JACOBIAN and call.targets is None:
        aim = None  # then it takes random targets
    elif name in ONE_HOT:
        aim = np.eye(call.classes)[aim]
    model = nn.Sequential(call.model, nn.Softmax(1)) if name in PROBABILITIES else call.model
    with _seeded_and_quiet():
        classifier = art_classifier(model, call.images, call.classes)
        made = attack(classifier, **only_taken(attack, set_here) | as_the_library_takes(attack, call.parameters))
        for part in getattr(made, "attacks", ()):  # AutoAttack's
            vars(part)["verbose"] = False
        return torch.from_numpy(made.generate(x=call.images.cpu().numpy(), y=aim))


@contextmanager
def _seeded_and_quiet() -> Iterator[None]:
    """Seed the generators that ART makes without a seed, as for HopSkipJump, from numpy's global one.

    The evolution of PixelAttack and ThresholdAttack, of the package cma, would seed that one by the clock. Brendel and
    Bethge's attack shows a bar whatever `verbose` says.
    """

    class Seeded(np.random.RandomState):
        def __init__(self, seed: Any = None) -> None:
            super().__init__(np.random.randint(2**31) if seed is None else seed)

    cma: Any = import_module("cma") if find_spec("cma") is not None else None
    options = cma.CMAOptions.defaults() if cma is not None else {}
    with (
        patch.object(np.random, "RandomState", Seeded), patch.dict(options, seed=float("nan")),
        patch("tqdm.auto.trange", range),
    ):  # fmt: skip
        yield
