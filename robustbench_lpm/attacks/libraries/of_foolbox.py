"""Attacks of foolbox (Rauber et al. 2017) by their names."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import foolbox
from foolbox import attacks
from foolbox.attacks.base import FixedEpsilonAttack, FlexibleDistanceMinimizationAttack, MinimizationAttack
from torch import Tensor

from robustbench_lpm.attacks.libraries.offers import Call, Knowledge, Offer, ours_of
from robustbench_lpm.attacks.libraries.signatures import as_the_library_takes, first_sentence, offered, only_taken

LEFT_OUT = {
    "BinarizationRefinementAttack": "it refines the images of another attack",
    "DatasetAttack": "it needs other images of the dataset",
}
# By the modules that attacks are in; those that query nothing by name.
BLACK_BOX = (
    "additive_noise", "blended_noise", "blur", "boundary_attack", "contrast", "contrast_min", "gen_attack",
    "hop_skip_jump", "inversion", "pointwise", "saltandpepper", "spatial_attack",
)  # fmt: skip
BLIND = (
    "InversionAttack", "L2AdditiveGaussianNoiseAttack", "L2AdditiveUniformNoiseAttack",
    "L2ClippingAwareAdditiveGaussianNoiseAttack", "L2ClippingAwareAdditiveUniformNoiseAttack",
    "L2ContrastReductionAttack", "LinfAdditiveUniformNoiseAttack",
)  # fmt: skip
TARGETED = (
    "basic_iterative_method", "boundary_attack", "brendel_bethge", "carlini_wagner", "ddn", "ead", "fast_minimum_norm",
    "gen_attack", "hop_skip_jump", "mi_fgsm", "projected_gradient_descent", "sparse_l1_descent_attack",
)  # fmt: skip
OURS = ("distance", "constraint", "channel_axis", "tensorboard", "check_trivial")
STEPS = 10  # where foolbox has no default
NO_START = "init_attack failed"  # how the message begins of an attack that found no image to start from


def names() -> list[str]:
    """The names of all attacks that `left_out` does not name, short ones such as LinfPGD among them."""
    found = {name: thing for name, thing in vars(attacks).items() if isinstance(thing, type)}
    return [name for name, thing in found.items() if not inspect.isabstract(thing) and name not in LEFT_OUT]


def left_out() -> dict[str, str]:
    """What needs more than a classifier and an image, and why."""
    return LEFT_OUT


def describe(name: str) -> Offer:
    """The attack of that name."""
    attack: Any = getattr(attacks, name)
    module = attack.__module__.rpartition(".")[2]
    knowledge: Knowledge = "none" if name in BLIND else "black-box" if module in BLACK_BOX else "white-box"
    return Offer(
        f"foolbox:{name}", first_sentence(attack), ours_of(_norms(attack)), knowledge, partial(_run, name),
        offered(attack, OURS, defaults={"steps": STEPS}), targeted=module in TARGETED,
        only_targeted=module == "gen_attack", minimises=issubclass(attack, MinimizationAttack),
        alone="init_attack" in inspect.signature(attack).parameters,
    )  # fmt: skip


def _norms(attack: Any) -> tuple[str, ...]:
    if issubclass(attack, FlexibleDistanceMinimizationAttack):
        return ("linf", "l2", "l1")
    if "constraint" in inspect.signature(attack).parameters:
        return ("linf", "l2")
    distance: Any = getattr(attack, "distance", None)
    if isinstance(distance, property):  # the same for all attacks of the class
        distance = distance.__get__(object.__new__(attack))
    return (str(distance).split()[0].lower(),)  # "L2 distance", or "none"


def _run(name: str, call: Call) -> Tensor:
    attack: Any = getattr(attacks, name)
    set_here = {"distance": getattr(foolbox.distances, call.norm), "constraint": call.norm}
    made = attack(**only_taken(attack, set_here) | as_the_library_takes(attack, call.parameters))
    model = foolbox.PyTorchModel(call.model, bounds=(0, 1), device=call.images.device)
    criteria = foolbox.criteria
    criterion: Any = criteria.Misclassification(call.labels)
    if call.targets is not None:
        criterion = criteria.TargetedMisclassification(call.targets)
    try:
        if issubclass(attack, FixedEpsilonAttack):
            return made.run(model, call.images, criterion, epsilon=call.eps)
        if issubclass(attack, MinimizationAttack):
            return made.run(model, call.images, criterion)
        return made(model, call.images, criterion)[0]
    except ValueError as error:
        if not str(error).startswith(NO_START):
            raise
        call.note(f"foolbox:{name} found no image to start from", "the images concerned stay unchanged")
        return call.images
