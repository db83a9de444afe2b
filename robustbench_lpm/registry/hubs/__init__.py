"""Models by their address at a hub, "HUB:NAME", such as "timm:resnet18": a card made of what the hub says of it.

    timm:NAME[.TAG]   torchvision:NAME[@WEIGHTS]   hf:OWNER/NAME[@REVISION]   robustbench:[DATASET/]NAME[/THREAT]

No library of a hub, and no torch, is imported before one of its models is asked for. No code of a hub is run, and no
pickle: weights are safetensors, or files that load as tensors alone. Their sha256 is remembered when they are first
loaded, and compared from then on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from robustbench_lpm.errors import LpmbenchError, in_one_line, unknown
from robustbench_lpm.versions import versions_of

if TYPE_CHECKING:
    from torch import nn


class Hub(NamedTuple):
    """A hub: the package that loads its models, our extra that installs that, and our module that asks it."""

    package: str
    extra: str
    adapter: str


HUBS = {
    "timm": Hub("timm", "timm", "of_timm"),
    "torchvision": Hub("torchvision", "", "of_torchvision"),
    "hf": Hub("transformers", "hf", "of_hf"),
    "robustbench": Hub("robustbench", "robustbench", "of_robustbench"),
}
SEEN = "hubs.txt"  # in the cache: a line for each address, its sha256 first, as sha256sum writes them


def is_address(name: str) -> bool:
    """Whether a name is meant to be an address, right or wrong: no other name of a model holds a colon."""
    return ":" in name and not name.endswith(".toml")


def of_hub(entry: str) -> bool:
    """Whether the entry of a card is an address."""
    return entry.partition(":")[0] in HUBS


@cache
def describe(address: str) -> dict[str, Any]:
    """The content of a model's card, under the full form of its address. Raises LpmbenchError where there is none."""
    hub, _, name = address.partition(":")
    adapter = _adapter(hub)
    with in_one_line_of(address):
        found: dict[str, Any] = adapter.describe(name)
    return {"source": told_version(hub), **found}


def files(address: str) -> tuple[Path, ...]:
    """The files with the weights, downloaded unless they are in the hub's own cache."""
    hub, _, name = address.partition(":")
    with in_one_line_of(address):
        return tuple(_adapter(hub).files(name))


def network(address: str, weights: Sequence[Path] = ()) -> nn.Module:
    """The network, untrained or with the weights in its `files`, from pixels as the card says to logits."""
    hub, _, name = address.partition(":")
    with in_one_line_of(address), only_tensors():
        made: nn.Module = _adapter(hub).network(name, list(weights))
        return made


def builder(address: str) -> Callable[[], nn.Module]:
    """The function without parameters that makes the untrained network."""

    def untrained() -> nn.Module:
        return network(address)

    return untrained


def identity(entry: str) -> dict[str, str]:
    """What decides a model beside its address and weights: its library's version. Empty for other entries."""
    return {"library": told_version(entry.partition(":")[0])} if of_hub(entry) else {}


def told_version(hub: str) -> str:
    """A hub's package and its installed version: "timm 1.0.9"."""
    package = HUBS[hub].package
    return " ".join([package, *versions_of([package]).values()])


def folder() -> Path:
    """The directory of what lpmbench downloads."""
    return Path(os.environ.get("LPMBENCH_CACHE", Path.home() / ".cache" / "lpmbench"))


def seen(address: str) -> str | None:
    """The sha256 that the weights at an address had when they were first loaded here."""
    path = folder() / SEEN
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((digest for digest, _, name in (line.partition("  ") for line in lines) if name == address), None)


def check(address: str, digest: str) -> None:
    """Raise LpmbenchError for weights that are not those that were first loaded from an address."""
    if (known := seen(address)) not in (None, digest):
        pin = " A revision pins them: hf:OWNER/NAME@REVISION." if address.startswith("hf:") else ""
        raise LpmbenchError(
            f"The weights at {address} have sha256 {digest}; when they were first loaded here, it was {known}. If the "
            f"change is meant, delete the line of {address} in {folder() / SEEN}.{pin}"
        )


def remember(address: str, digest: str) -> None:
    """Note the sha256 of weights that have been loaded from an address for the first time."""
    if seen(address) is None:
        folder().mkdir(parents=True, exist_ok=True)
        with (folder() / SEEN).open("a") as file:
            file.write(f"{digest}  {address}\n")


@contextmanager
def only_tensors() -> Iterator[None]:
    """In this context torch.load refuses what is more than tensors, whatever a library asks of it."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name) if before is None else os.environ.update({name: before})


@contextmanager
def in_one_line_of(address: str) -> Iterator[None]:
    """Whatever a library raises becomes an LpmbenchError that names the address."""
    try:
        yield
    except LpmbenchError:
        raise
    except Exception as error:  # libraries, their HTTP clients and torch raise many kinds
        raise LpmbenchError(f"{address}: {in_one_line(error)}.") from error


def _adapter(hub: str) -> ModuleType:
    if hub not in HUBS:
        raise unknown("hub", hub, HUBS)
    _, extra, adapter = HUBS[hub]
    try:
        return import_module(f"{__name__}.{adapter}")
    except ImportError as error:
        raise LpmbenchError(f"Models of '{hub}:' need more ({error}): pip install 'robustbench-lpm[{extra}]'") from None
