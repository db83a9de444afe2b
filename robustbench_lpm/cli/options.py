"""Options that several commands share, and how their words become values."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from robustbench_lpm import cards
from robustbench_lpm.allocator import keep_freed_memory
from robustbench_lpm.budgets import parse_eps_list
from robustbench_lpm.errors import LpmbenchError

Command = TypeVar("Command", bound=Callable[..., Any])


def together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several option decorators as one, shown in --help in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


labels_fit_option = click.option(
    "--labels-fit", is_flag=True, help="Say that model and data set have the same labels, whatever they are called."
)

data_options = together(
    click.option("--dataset", default="digits", show_default=True, help="A data set, or the path of its card."),
    click.option("--data", type=click.Path(path_type=Path), help="The folder that holds the data, if it needs one."),
    click.option("--size", help="224, original, or another side in pixels; the default stands on the data set's card."),
    click.option("--limit", type=click.IntRange(1), help="Only the first so many examples."),
    click.option("--image", type=click.Path(path_type=Path), help="With --dataset panda: a picture of your own."),
    click.option("--label", type=int, help="With --image: its ImageNet label (388 is the giant panda)."),
    labels_fit_option,
)

budget_options = together(
    click.option("--eps", multiple=True,
                 help="Budgets in pixel values, with commas between or given again: 1/255,2/255,0.1."),
    click.option("--norm", type=click.Choice(["linf", "l2"]), default="linf", show_default=True),
)  # fmt: skip

grading_options = together(
    click.option("--mc", type=click.IntRange(1), default=1, show_default=True,
                 help="Attack and grade the average of so many Monte-Carlo runs of a stochastic model."),
    click.option("--draws", type=click.IntRange(1), default=20, show_default=True,
                 help="Held-out draws on which a stochastic model is graded."),
    click.option("--seed", type=int, default=0, show_default=True),
)  # fmt: skip

machine_options = together(
    click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N."),
    click.option("--threads", type=click.IntRange(1), help="Threads of torch; by default as many as it likes."),
)

passes_options = together(
    click.option("--precision", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True,
                 help="Of gradients and of SPSA's probes: bfloat16 is faster on processors with AMX and on GPUs. What "
                      "is misclassified, and every grade, is decided in float32."),
    click.option("--memory", type=click.FloatRange(0, min_open=True), default=2.0, show_default=True, metavar="GIB",
                 help="What the maps of one pass may take, about: it bounds how many images pass at once."),
)  # fmt: skip

records_option = click.option("--out", type=click.Path(path_type=Path), default=Path("runs"), show_default=True,
                              help="Where records go.")  # fmt: skip

attacking_options = together(
    click.option("--target", help="A class to reach: its number or name, or 'random'."),
    click.option("--surrogate", "surrogates", multiple=True,
                 help="For transfer: a model it is made on, instead of those on its card."),
    click.option("--noise", multiple=True, metavar="[SOURCE=]MODE",
                 help="A stochastic model's noise, of one source or of all: averaged (new in every draw, the default), "
                      "fresh (new at every query), replayed (the same at every query), frozen (switched off)."),
    click.option("--gradient-mode", help="Of a glimpsing model; by default the strongest for each image."),
    grading_options,
    passes_options,
    machine_options,
    records_option,
)  # fmt: skip

trust_option = click.option("--trust", is_flag=True, help="Run code that a card names outside lpmbench.")


def prepare_machine(device: str, threads: int | None, precision: str = "float32") -> None:
    """Set the threads, and check that the device is there. Raises LpmbenchError when it is not."""
    import torch

    keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise LpmbenchError(f"Device '{device}' is not available: {str(error).splitlines()[0]}") from None
    if precision != "float32":
        from robustbench_lpm.architectures.precision import pays

        if not pays(device):
            click.echo("lpmbench: this device has no instructions for bfloat16: float32 would be faster.", err=True)


def read_budgets(given: tuple[str, ...], dataset: str, norm: Literal["linf", "l2"]) -> list[float]:
    """The values of --eps, each once; by default that of the data set's card."""
    return parse_eps_list(given or cards.dataset(dataset).default_eps(norm), norm)


def read_budget(given: tuple[str, ...], dataset: str, norm: Literal["linf", "l2"]) -> float:
    """The one value of --eps. Raises LpmbenchError for several."""
    budgets = read_budgets(given, dataset, norm)
    if len(budgets) > 1:
        raise LpmbenchError(f"This command takes one eps, not {len(budgets)}; run it once for each.")
    return budgets[0]


def read_names(option: str, given: tuple[str, ...]) -> list[str]:
    """The names in an option that repeats and takes commas, each once, in order."""
    names = list(dict.fromkeys(name.strip() for word in given for name in word.split(",") if name.strip()))
    if given and not names:
        raise LpmbenchError(f"{option} is empty; name one, or several with commas between.")
    return names


def read_settings(settings: tuple[str, ...]) -> dict[str, Any]:
    """--set name=value pairs; values are read as TOML where they are, else as words."""
    found = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not (name.strip() and equals):
            raise LpmbenchError(f"--set {setting} must look like --set steps=100.")
        try:
            found[name.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[name.strip()] = {"True": True, "False": False}.get(value, value)
    return found
