"""Attacks of adv-lib (Rony and Ben Ayed) by their names."""

from __future__ import annotations

import inspect
import math
from functools import partial
from typing import Any

from adv_lib import attacks
from torch import Tensor

from robustbench_lpm.attacks.libraries.offers import Call, Offer, ours_of
from robustbench_lpm.attacks.libraries.signatures import as_the_library_takes, first_sentence, offered, only_taken

# The signatures do not tell the norms. Attacks on colours and on groups of pixels have none of ours.
NORMS: dict[str, tuple[str, ...]] = {
    "alma": ("l2", "l1"), "apgd": ("linf", "l2", "l1"), "apgd_targeted": ("linf", "l2", "l1"),
    "carlini_wagner_l2": ("l2",), "carlini_wagner_linf": ("linf",), "ddn": ("l2",), "df": ("linf", "l2"),
    "fab": ("linf", "l2", "l1"), "fmn": ("linf", "l2", "l1", "l0"), "pdgd": ("l2",), "pdpgd": ("linf", "l2", "l1"),
    "pgd_linf": ("linf",), "sdf": ("l2",), "sigma_zero": ("l0",), "tr": ("linf", "l2"),
}  # fmt: skip
EPS = {"apgd": "eps", "apgd_targeted": "eps", "fab": "ε", "pgd_linf": "ε"}  # what they call eps
BOUNDED = ("apgd", "apgd_targeted", "pgd_linf")  # by it; `fab` only starts within it
NORM = {"alma": "distance", "tr": "p"}  # what they call the norm
# Some take a target, and then do nothing.
NO_TARGET = ("apgd_targeted", "df", "fab", "sdf", "sigma_zero", "tr")
OURS = (
    "model", "inputs", "images", "labels", "norm", "targeted", "num_classes", "callback", "return_unsuccessful",
    "return_targets",
)  # fmt: skip


def names() -> list[str]:
    """The names of its attacks."""
    return [name for name, thing in vars(attacks).items() if inspect.isfunction(thing)]


def left_out() -> dict[str, str]:
    """None."""
    return {}


def describe(name: str) -> Offer:
    """The attack of that name."""
    attack, norms = getattr(attacks, name), ours_of(NORMS.get(name, ()))
    return Offer(
        f"advlib:{name}", first_sentence(attack), norms, "white-box", partial(_run, name),
        offered(attack, [*OURS, EPS.get(name, ""), NORM.get(name, "")]), targeted=name not in NO_TARGET,
        minimises=bool(norms) and name not in BOUNDED,
    )  # fmt: skip


def _run(name: str, call: Call) -> Tensor:
    attack: Any = getattr(attacks, name)
    number = {"linf": math.inf, "l2": 2, "l1": 1, "l0": 0}[call.norm]
    set_here = {
        "targeted": call.targets is not None, "num_classes": call.classes, "norm": number, "p": number,
        "distance": call.norm, EPS.get(name, ""): call.eps,
    }  # fmt: skip
    given = only_taken(attack, set_here) | as_the_library_takes(attack, call.parameters)
    return attack(call.model, call.images, call.aim, **given)
