"""Attacks of other libraries by their address, "LIBRARY:NAME", such as "art:HopSkipJump", behind our contract.

An address is looked up only among the classifier attacks of the five libraries in `LIBRARIES`. Nothing of a library,
and no torch, is imported before one of its attacks is asked for.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from robustbench_lpm.errors import LpmbenchError, unknown
from robustbench_lpm.versions import versions_of

if TYPE_CHECKING:
    from robustbench_lpm.attacks.libraries.offers import Offer


class Library(NamedTuple):
    """A library: its package, and the module of ours that adapts its attacks."""

    package: str
    adapter: str


LIBRARIES = {
    "art": Library("adversarial-robustness-toolbox", "of_art"),
    "torchattacks": Library("torchattacks", "of_torchattacks"),
    "foolbox": Library("foolbox", "of_foolbox"),
    "advlib": Library("adv-lib", "of_advlib"),
    "cleverhans": Library("cleverhans", "of_cleverhans"),
}


def is_address(name: str) -> bool:
    """Whether a name is meant to be an address, right or wrong: no other name of an attack holds a colon."""
    return ":" in name


def of_library(entry: str) -> bool:
    """Whether the entry of a card is an address in one of the libraries."""
    return entry.partition(":")[0] in LIBRARIES


@cache
def find(address: str) -> Offer:
    """The attack at an address. Raises LpmbenchError where there is none, or its library is not installed."""
    library, _, name = address.partition(":")
    adapter = _adapter(library)
    names, left_out = adapter.names(), adapter.left_out()
    if name in left_out:
        raise LpmbenchError(f"Attack '{address}' is left out: {left_out[name]}.")
    if name not in names:
        raise unknown("attack", address, [f"{library}:{known}" for known in names])
    return adapter.describe(name)


def names(library: str) -> list[str]:
    """The names of a library's attacks, sorted. Raises LpmbenchError as `find` does."""
    return sorted(_adapter(library).names())


def left_out(library: str) -> dict[str, str]:
    """The attacks of a library that cannot run here, and why."""
    return dict(sorted(_adapter(library).left_out().items()))


def identity(entry: str) -> dict[str, str]:
    """What decides an attack beside its address and parameters: its library's version. Empty for other entries."""
    return {"library": told_version(entry.partition(":")[0])} if of_library(entry) else {}


def told_version(library: str) -> str:
    """A library's package and installed version: "foolbox 3.3.4"."""
    package = LIBRARIES[library].package
    return " ".join([package, *versions_of([package]).values()])


def _adapter(library: str) -> ModuleType:
    if library not in LIBRARIES:
        raise unknown("library", library, LIBRARIES)
    package, adapter = LIBRARIES[library]
    try:
        return import_module(f"{__name__}.{adapter}")
    except ImportError as error:
        raise LpmbenchError(f"Library '{library}' is not installed ({error}): pip install {package}") from None
