"""What a run may be asked for: every setting once, with its default, its limits and its words for --help.

The Python API, the command line, the cards of suites and the commands in records are made from `Options`. To add a
setting, add a field here, and use it where it matters. Knows nothing about torch.
"""

# ruff: noqa: RUF009 (`setting` makes a field)
from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, Literal, get_type_hints

from robustbench_lpm.budgets import NORMS, Norm, parse_eps
from robustbench_lpm.errors import LpmbenchError, unknown

Precision = Literal["float32", "bfloat16"]
CENTRE = "center"  # a place of a patch
STRONGEST = "strongest"  # the gradient mode that takes, for each image, the strongest of all


def setting(default: Any, help: str, **limits: Any) -> Any:
    """A field of `Options`. limits: `choices`, the `least` number, a number that it is `above`, a `metavar`."""
    return field(default=default, metadata={"help": help, **limits})


@dataclass(frozen=True)
class Options:
    """The settings of one run, beside its model, attack and dataset. Raises LpmbenchError for values out of range."""

    eps: float = setting(MISSING, "The budget, in pixel values of [0, 1]: 8/255, 0.1.")
    norm: Norm = setting("linf", "The norm that bounds a perturbation.", choices=NORMS)
    size: str | None = setting(
        None,
        "224, original, or another side in pixels; crop-224 resizes the whole image and keeps its middle, as the "
        "script of the RAM-LPM paper does. The default is on the dataset's card.",
    )
    limit: int | None = setting(None, "Only the first so many examples.", least=1)
    mc: int = setting(1, "Attack and grade the average of so many Monte-Carlo runs of a stochastic model.", least=1)
    draws: int = setting(20, "Held-out draws on which a stochastic model is graded.", least=1)
    select_draws: int = setting(10, "Draws on which the candidates of a stochastic model are compared.", least=1)
    gradient_mode: str | None = setting(None, "Of a glimpsing model; by default the strongest for each image.")
    noise: tuple[str, ...] = setting(
        (),
        "A stochastic model's noise, of one source or of all: averaged (new in every draw, the default), fresh (new at "
        "every query), replayed (the same at every query), frozen (switched off).",
        metavar="[SOURCE=]MODE",
    )
    target: str | None = setting(None, "A class to reach: its number or name, or 'random'.")
    patch: float | None = setting(
        None,
        "A square of this share of the image's area may change, and nothing else; within --eps, by default 1.",
        above=0,
        metavar="SHARE",
    )
    patch_at: str | None = setting(
        None,
        "Where the patch is: center, or the row and column of its upper left pixel; by default chosen for each image.",
        metavar="ROW,COLUMN",
    )
    seed: int = setting(0, "The seed of all random numbers.")
    device: str = setting(
        "auto",
        "cpu, cuda or cuda:N; auto is a CUDA GPU where there is one, else the CPU (never Apple's MPS: distances are "
        "measured in float64, which it lacks).",
    )
    precision: Precision = setting(
        "float32",
        "Of gradients and of SPSA's probes: bfloat16 is faster on processors with AMX and on GPUs. What is "
        "misclassified, and every grade, is decided in float32.",
        choices=("float32", "bfloat16"),
    )
    memory: float | None = setting(
        None,
        "The activations of one batch may take about so much: it bounds the batch. By default 2 on a CPU; on a "
        "GPU half of what is free.",
        above=0,
        metavar="GIB",
    )
    save_adversarials: bool = setting(False, "Keep every adversarial image, not only the first 16.")
    labels_fit: bool = setting(False, "Say that model and dataset have the same labels, whatever they are called.")

    def __post_init__(self) -> None:
        noise: Any = self.noise  # a single word is one mode for every source
        noise = (noise,) if isinstance(noise, str) else tuple(noise)
        target = None if self.target is None else str(self.target)
        for name, value in {"eps": parse_eps(self.eps, self.norm), "noise": noise, "target": target}.items():
            object.__setattr__(self, name, value)
        for setting in fields(self):
            _check(setting, getattr(self, setting.name))
        if self.patch is not None and self.patch > 1:
            raise LpmbenchError(f"patch is a share of the image's area, at most 1, not {self.patch:g}.")
        if self.patch_at is not None:
            if self.patch is None:
                raise LpmbenchError("patch_at places a patch; say with patch which share of the image it covers.")
            if self.patch_at != CENTRE and re.fullmatch(r"[0-9]{1,5},[0-9]{1,5}", self.patch_at) is None:
                raise LpmbenchError(f"patch_at must be {CENTRE} or ROW,COLUMN in pixels, not '{self.patch_at}'.")


def _check(setting: Field[Any], value: Any) -> None:
    choices, least, above = (setting.metadata.get(limit) for limit in ("choices", "least", "above"))
    if choices and value not in choices:
        raise unknown(setting.name, str(value), choices)
    if least is not None and value is not None and value < least:
        raise LpmbenchError(f"{setting.name} must be at least {least}, not {value}.")
    if above is not None and value is not None and not above < value < math.inf:
        raise LpmbenchError(f"{setting.name} must be a number above {above}, not {value}.")


def asked(given: dict[str, Any]) -> Options:
    """The options of these names and values. Raises LpmbenchError for a name that is no setting."""
    if stranger := next((name for name in given if name not in NAMES), None):
        raise unknown("option", stranger, NAMES)
    return Options(**given)


def words_of(given: Mapping[str, Any]) -> list[str]:
    """Settings, by name, as the options of a command: "--eps 8/255", "--labels-fit"."""
    found = []
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        several = value if isinstance(value, tuple) else (value,)
        found += [flag if each is True else f"{flag} {shlex.quote(_shown(each))}" for each in several]
    return found


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


SETTINGS: dict[str, Field[Any]] = {setting.name: setting for setting in fields(Options)}
TYPES: dict[str, Any] = get_type_hints(Options)
NAMES: Iterable[str] = tuple(SETTINGS)
