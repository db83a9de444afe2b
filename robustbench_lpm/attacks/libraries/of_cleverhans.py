"""Attacks of cleverhans (Papernot et al. 2018), those for torch, by their names."""

from __future__ import annotations

import inspect
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
from torch import Tensor

from robustbench_lpm.attacks.libraries.offers import Call, Knowledge, Offer, ours_of
from robustbench_lpm.attacks.libraries.signatures import as_the_library_takes, first_sentence, offered, only_taken

# Each is in a module of its own name. The signatures do not tell the norms that work (HopSkipJump fails in linf).
NORMS: dict[str, tuple[str, ...]] = {
    "carlini_wagner_l2": ("l2",), "fast_gradient_method": ("linf", "l2", "l1"), "hop_skip_jump_attack": ("l2",),
    "noise": ("linf",), "projected_gradient_descent": ("linf", "l2"), "sparse_l1_descent": ("l1",),
    "spsa": ("linf", "l2"),
}  # fmt: skip
LEFT_OUT = {"semantic": "it fails on every image"}
NO_GRADIENTS: dict[str, Knowledge] = {"hop_skip_jump_attack": "black-box", "noise": "none", "spsa": "black-box"}
MINIMISES = ("carlini_wagner_l2", "hop_skip_jump_attack")
OURS = (
    "model_fn", "x", "eps", "norm", "order", "constraint", "y", "y_target", "image_target", "targeted", "n_classes",
    "clip_min", "clip_max", "batch_size", "verbose", "sanity_checks", "is_debug", "rand_minmax",
)  # fmt: skip
STEPS = 40  # where cleverhans has no default


def names() -> list[str]:
    """The names of all attacks that `left_out` does not name."""
    return list(NORMS)


def left_out() -> dict[str, str]:
    """What never runs, and why."""
    return LEFT_OUT


def _function(name: str) -> Any:
    return getattr(import_module(f"cleverhans.torch.attacks.{name}"), name)


def describe(name: str) -> Offer:
    """The attack of that name."""
    attack, norms = _function(name), ours_of(NORMS[name])
    return Offer(
        f"cleverhans:{name}", first_sentence(attack), norms, NO_GRADIENTS.get(name, "white-box"), partial(_run, name),
        offered(attack, OURS, {"eps_iter": "2.5·eps/nb_iter"}, {"nb_iter": STEPS}),
        targeted="targeted" in inspect.signature(attack).parameters, minimises=name in MINIMISES,
    )  # fmt: skip


def _run(name: str, call: Call) -> Tensor:
    attack = _function(name)
    norm = {"linf": np.inf, "l2": 2, "l1": 1}[call.norm]
    set_here = {
        "model_fn": call.model, "x": call.images, "eps": call.eps, "norm": norm, "order": norm, "constraint": norm,
        "y": call.aim, "targeted": call.targets is not None, "n_classes": call.classes, "clip_min": 0.0,
        "clip_max": 1.0, "batch_size": call.chunk, "verbose": False, "sanity_checks": False,
    }  # fmt: skip
    if "nb_iter" in call.parameters:
        set_here["eps_iter"] = min(call.eps, call.step("nb_iter"))  # it refuses longer steps
    return attack(**only_taken(attack, set_here) | as_the_library_takes(attack, call.parameters))
