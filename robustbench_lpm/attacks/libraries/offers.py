"""An attack of a library as a function of ours."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from robustbench_lpm.allocator import out_of_memory
from robustbench_lpm.attacks.art_adapter import seed_of
from robustbench_lpm.attacks.contract import Declaration, Oracle
from robustbench_lpm.attacks.libraries.signatures import Parameter
from robustbench_lpm.errors import LpmbenchError, in_one_line
from robustbench_lpm.norms import NORMS, Norm
from robustbench_lpm.randomness import isolated_globals

EOT = 5  # draws for each answer of a stochastic model, as on the cards of art-pgd and cleverhans-pgd
STEP = 2.5  # step sizes that we set are STEP · eps / steps, as in `pgd`
# What the libraries call the length of an attack, and its starts.
STEPS = (
    "steps", "max_iter", "nb_iter", "num_steps", "n_iter", "nb_steps", "iterations", "max_iterations", "num_iterations",
    "num_iter_set", "n_queries", "iter",
)  # fmt: skip
RESTARTS = ("restarts", "n_restarts", "nb_restarts", "num_random_init", "nb_random_init")
Knowledge = Literal["white-box", "black-box", "none"]


class Call(NamedTuple):
    """One call of a library's attack: all that we set."""

    model: nn.Module  # from images (n, C, H, W) to logits (n, K), with fresh noise at every call
    images: Tensor  # (B, C, H, W) in [0, 1]
    labels: Tensor  # (B,)
    targets: Tensor | None  # (B,)
    norm: Norm
    eps: float
    classes: int
    chunk: int  # a good number of images for one query
    seed: int  # below 2^31
    parameters: dict[str, Any]  # the library's own, by our names; those that have no value are absent
    note: Callable[[str, str], None]  # see `Oracle.note`

    @property
    def aim(self) -> Tensor:
        """The class (B,) that each image is led to or, without targets, away from."""
        return self.labels if self.targets is None else self.targets

    def step(self, steps: str) -> float:
        """Our size of the steps of an attack whose parameter `steps` is their number."""
        return STEP * self.eps / self.parameters[steps]


@dataclass(frozen=True)
class Offer:
    """An attack of a library, with what a card says of it.

    norms: those that it has a ball or a distance for. With none it runs under any.
    knowledge: "none" if it queries nothing.
    run: makes the images (B, C, H, W) of a call.
    parameters: the library's own that users may set; `eot` comes on top.
    minimises: whether it searches the nearest adversarial example and takes no eps.
    alone: whether it takes one image at a time. Those without gradients always do: many of their queries are about one
        image, and which one must be known.
    """

    address: str
    summary: str
    norms: tuple[Norm, ...]
    knowledge: Knowledge
    run: Callable[[Call], Tensor] = field(repr=False)
    parameters: Mapping[str, Parameter]
    targeted: bool = False
    only_targeted: bool = False
    minimises: bool = False
    alone: bool = False

    @property
    def usable(self) -> tuple[Norm, ...]:
        """The norms of the runs that it may be part of."""
        return self.norms or NORMS

    @property
    def note(self) -> str:
        """What a reader of its results must know, or ""."""
        if not self.norms:
            return "it knows no budget in this norm: its images are projected onto the ball"
        return (
            "it minimises the norm and takes no eps: its images are projected onto the ball" if self.minimises else ""
        )

    @property
    def defaults(self) -> dict[str, Any]:
        """The parameters that have a default, with it."""
        known = {name: parameter.default for name, parameter in self.parameters.items()}
        return {"eot": EOT} | {name: default for name, default in known.items() if default is not None}

    @property
    def shown_parameters(self) -> str:
        """All parameters with their defaults: "eot=5, steps=40"."""
        return ", ".join([f"eot={EOT}", *(f"{name}={parameter.shown}" for name, parameter in self.parameters.items())])

    def check(self, where: object, parameters: Iterable[str], norms: Iterable[str], *, targeted: bool) -> None:
        """Raise LpmbenchError for the first thing that a card at `where` asks for and this attack does not have."""
        for name in parameters:
            if name != "eot" and name not in self.parameters:
                raise LpmbenchError(f"{where}: no parameter '{name}' can be set. There are {self.shown_parameters}.")
        for norm in norms:
            if norm not in self.usable:
                raise LpmbenchError(f"{where}: {self.address} works in {', '.join(self.usable)}, not in '{norm}'.")
        if targeted and not self.targeted:
            raise LpmbenchError(f"{where}: {self.address} cannot aim at a target.")

    @property
    def function(self) -> Callable[..., Tensor]:
        """The attack behind our contract, with a signature that names its parameters."""
        return _behind_the_contract(self)


def _behind_the_contract(offer: Offer) -> Callable[..., Tensor]:
    # What the function closes over is hashed with its code: no more than decides the images.
    address, run, defaults, note, only_targeted = (
        offer.address, offer.run, offer.defaults, offer.note, offer.only_targeted,
    )  # fmt: skip
    alone = offer.alone or offer.knowledge != "white-box"

    def attack(
        oracle: Oracle, images: Tensor, labels: Tensor, *, norm: Norm, eps: float, targets: Tensor | None = None,
        **parameters: Any,
    ) -> Tensor:  # fmt: skip
        if only_targeted and targets is None:
            raise LpmbenchError(f"Attack '{address}' needs a target: give --target (target=).")
        if eps == 0:  # the libraries divide by it, or refuse it
            return images.clone()
        if note:
            oracle.note(address, note)
        given = {name: value for name, value in (defaults | parameters).items() if value is not None}
        eot, labels = given.pop("eot"), labels.long()
        every = list(range(len(images)))
        state = {"found": images}
        for rows in oracle.resumable([[row] for row in every] if alone else [every], state):
            some = torch.tensor(rows, device=images.device)
            part = oracle.rows(some) if alone else oracle
            seed = seed_of(part)
            call = Call(
                _Asked(part.view(eot), images).eval(), images[some], labels[some],
                None if targets is None else targets[some], norm, eps, oracle.classes, oracle.chunk, seed % 2**31,
                given, oracle.note,
            )  # fmt: skip
            with isolated_globals(seed):
                state["found"] = state["found"].index_copy(0, some, _made(address, run, call))
        return state["found"]

    *ours, _ = inspect.signature(attack).parameters.values()
    own = {"eot": Parameter(PositiveInt, EOT), **offer.parameters}
    vars(attack)["__signature__"] = inspect.Signature([
        *ours, *(inspect.Parameter(name, ours[-1].kind, default=parameter.default) for name, parameter in own.items())
    ])  # fmt: skip
    attack.__annotations__ = {name: parameter.kind for name, parameter in own.items()}
    attack.__name__ = attack.__qualname__ = address
    lengths = tuple(name for name in STEPS if name in offer.parameters)
    return Declaration(steps=lengths, draws=("eot", "eot_iter"), restarts=RESTARTS)(attack)


def _made(address: str, run: Callable[[Call], Tensor], call: Call) -> Tensor:
    """The images that a library makes. Whatever goes wrong in it is an LpmbenchError of one line."""
    try:
        # ART asks for the current GPU, not for that of the images.
        with warnings.catch_warnings(), torch.enable_grad(), torch.cuda.device_of(call.images):
            warnings.simplefilter("ignore")
            found = run(call).detach().to(call.images)
    except ModuleNotFoundError as error:
        missing = f"{address} needs a package that is not installed: pip install {error.name}"
        raise LpmbenchError(missing) from None
    except Exception as error:
        if isinstance(error, LpmbenchError) or out_of_memory(error):
            raise
        raise LpmbenchError(f"{address} failed: {in_one_line(error)}.") from error
    if found.shape != call.images.shape:
        raise LpmbenchError(f"{address} returned shape {tuple(found.shape)}, not {tuple(call.images.shape)}.")
    finite = found.isfinite().flatten(1).all(1)
    if not finite.all():
        call.note(f"{address} returned pixels that are not numbers", "the images concerned stay unchanged")
    return torch.where(finite.reshape(-1, 1, 1, 1), found, call.images)


class _Asked(nn.Module):
    """A model as the libraries expect it: it takes float64, too, and some look for its device among its parameters.

    Where a library divided by zero, it asks about pixels that are not numbers. The model would answer with NaN, which
    the oracle takes for a defect of the model.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.model, self.placed = model, nn.Parameter(images.new_zeros(1), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, K) of images (n, C, H, W)."""
        return self.model(images.to(self.placed).nan_to_num(0.0, 1.0, 0.0))


def ours_of(norms: Iterable[str]) -> tuple[Norm, ...]:
    """Those of the norms that runs may have."""
    known = set(norms)
    return tuple(norm for norm in NORMS if norm in known)
