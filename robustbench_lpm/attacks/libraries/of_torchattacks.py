"""Attacks of torchattacks (Kim 2020) by their names."""

from __future__ import annotations

import inspect
import re
from functools import partial
from typing import Any

import torchattacks
from torch import Tensor, nn

from robustbench_lpm.attacks.libraries.offers import Call, Knowledge, Offer, ours_of
from robustbench_lpm.attacks.libraries.signatures import as_the_library_takes, offered, only_taken

LEFT_OUT = {
    "LGV": "it trains on images of its own",
    "MultiAttack": "it takes attacks in Python; a worst case does the same",
    "VANILA": "it returns the images unchanged",
}
NO_GRADIENTS: dict[str, Knowledge] = {
    "GN": "none", "OnePixel": "black-box", "Pixle": "black-box", "SPSA": "black-box", "Square": "black-box"
}  # fmt: skip
NO_TARGET = ("FAB",)  # it takes one, and then does nothing
NORMS = {"FAB": ("linf", "l2")}  # in l1, which its documentation names, it fails
OURS = ("model", "eps", "max_epsilon", "norm", "seed", "verbose", "n_classes")
ONE_STEP = 1.25  # alpha of FFGSM, as a share of eps: as the library's own


def names() -> list[str]:
    """The names of all attacks that `left_out` does not name."""
    return [name for name in torchattacks.__all__ if name not in LEFT_OUT]


def left_out() -> dict[str, str]:
    """What does not attack one classifier, and why."""
    return LEFT_OUT


def describe(name: str) -> Offer:
    """The attack of that name; its norms are in the library's documentation."""
    attack = getattr(torchattacks, name)
    taken, words = inspect.signature(attack).parameters, inspect.getdoc(attack) or ""
    measured = re.search(r"Distance Measure : (.*)", words)
    norms = ours_of(NORMS.get(name) or (re.findall(r"l\w+", measured[1].lower()) if measured else ()))
    title = re.search(r"'(.+?)'", words)
    modes = attack(nn.Linear(1, 1)).supported_mode
    return Offer(
        f"torchattacks:{name}", (title[1] if title else words.splitlines()[0]).rstrip("."), norms,
        NO_GRADIENTS.get(name, "white-box"), partial(_run, name),
        offered(attack, OURS, {"alpha": "2.5·eps/steps" if "steps" in taken else f"{ONE_STEP}·eps"}),
        targeted="targeted" in modes and name not in NO_TARGET,
        minimises=bool(norms) and not {"eps", "max_epsilon"} & taken.keys(),
    )  # fmt: skip


def _run(name: str, call: Call) -> Tensor:
    attack: Any = getattr(torchattacks, name)
    set_here = {
        "eps": call.eps, "max_epsilon": call.eps, "norm": call.norm.capitalize(),
        "seed": call.seed, "n_classes": call.classes,
        "alpha": call.step("steps") if "steps" in call.parameters else ONE_STEP * call.eps,
    }  # fmt: skip
    made = attack(call.model, **only_taken(attack, set_here) | as_the_library_takes(attack, call.parameters))
    if call.targets is not None:
        made.set_mode_targeted_by_label(quiet=True)
    return made(call.images, call.aim)
