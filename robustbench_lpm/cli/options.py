"""Options that several commands share, and how their words become values."""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from robustbench_lpm.allocator import keep_freed_memory
from robustbench_lpm.budgets import parse_eps_list
from robustbench_lpm.devices import resolve_device
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.options import NAMES, SETTINGS, TYPES, Options, asked, words_of
from robustbench_lpm.registry import cards

if TYPE_CHECKING:
    from robustbench_lpm.registry.tasks import Data
    from robustbench_lpm.registry.zoo import LoadedModel

Command = TypeVar("Command", bound=Callable[..., Any])
DEVICES = ("cuda", "mps")  # that a machine may lack
PATH = click.Path(path_type=Path)


def together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several option decorators as one, shown in --help in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def of_settings(*names: str) -> Callable[[Command], Command]:
    """The options of a command for these settings of a run, as `Options` describes them."""
    return together(*map(_of_setting, names))


def _of_setting(name: str) -> Callable[[Command], Command]:
    setting, kind = SETTINGS[name], TYPES[name]
    choices, least, above, metavar = (setting.metadata.get(key) for key in ("choices", "least", "above", "metavar"))
    about: dict[str, Any] = {"help": setting.metadata["help"], "metavar": metavar, "default": setting.default}
    if choices:
        about["type"] = click.Choice(choices)
    elif least is not None:
        about["type"] = click.IntRange(least)
    elif above is not None:
        about["type"] = click.FloatRange(above, min_open=True)
    elif kind in (int, str):
        about["type"] = kind
    about |= {"is_flag": True} if kind is bool else {"show_default": setting.default not in (None, ())}
    return click.option(f"--{name.replace('_', '-')}", **about, multiple=kind == tuple[str, ...])


def path(name: str, help: str = "", **more: Any) -> Callable[[Command], Command]:
    """An option that takes a path."""
    return click.option(name, type=PATH, help=help, **more)


def models(metavar: str = "MODEL...", *, required: bool = True) -> Callable[[Command], Command]:
    """The models of a command, as arguments or by --model, each once: `models`, or `model` for the metavar "MODEL"."""
    several = metavar.endswith("...")

    def decorate(command: Command) -> Command:
        @wraps(command)
        def with_models(arguments: Sequence[str], named: Sequence[str], **given: Any) -> Any:
            found = tuple(dict.fromkeys([*arguments, *named]))
            if required and not found:
                raise click.UsageError(f"Missing argument '{metavar}'.")
            if not several and len(found) > 1:
                raise click.UsageError(f"This command takes one MODEL, not {len(found)}: {', '.join(found)}.")
            click.get_current_context().params |= {"arguments": found, "named": ()}  # as `as_given` reads them
            return command(**given, **({"models": found} if several else {"model": found[0]}))

        about = "A name, the path of a card, or HUB:NAME as in timm:resnet18; the same as MODEL" + (
            ", may be given again." if several else "."
        )
        shown = metavar if required else f"[{metavar}]"
        return together(
            click.argument("arguments", metavar=shown, nargs=-1),
            click.option("--model", "named", metavar="MODEL", multiple=True, help=about),
        )(with_models)  # type: ignore[return-value]

    return decorate


data = together(
    click.option("--dataset", default="digits", show_default=True, help="A dataset, or the path of its card."),
    path("--data", "The directory of the data, if they need one."),
    of_settings("size", "limit"),
    path("--image", "With --dataset panda: a picture of your own."),
    click.option("--label", type=int, help="With --image: its ImageNet label (388 is the giant panda)."),
    of_settings("labels_fit"),
)

budget = together(
    click.option("--eps", multiple=True,
                 help="Budgets in pixel values, with commas between or given again: 1/255,2/255,0.1. Default: that on "
                      "the dataset's card."),
    of_settings("norm"),
)  # fmt: skip

attack = together(
    click.option("--steps", type=click.IntRange(1), help="Steps (or iterations, or queries) of the attack."),
    click.option("--eot", type=click.IntRange(1), help="Draws of noise for each gradient of a stochastic model."),
    click.option("--set", "settings", multiple=True, metavar="[ATTACK.]NAME=VALUE",
                 help="A parameter of the attacks that know it; with ATTACK. of that one, or of that member of a worst "
                      "case."),
)  # fmt: skip

grading = of_settings("mc", "draws", "seed")
passes = of_settings("precision", "memory")
machine = together(
    of_settings("device"),
    click.option("--threads", type=click.IntRange(1), help="Threads of torch; by default torch's own choice."),
)
records = path("--out", "Where records go.", default=Path("runs"), show_default=True)
checkpoint = path("--checkpoint", "Weights instead of those of the model's card.")
force = click.option("--force", is_flag=True, help="Run again what has been run.")
dry_run = click.option("--dry-run", is_flag=True, help="Only show what would run, its cost and time.")
trust = click.option("--trust", is_flag=True, help="Run code that a card names outside lpmbench.")

attacking = together(
    of_settings("target"),
    click.option("--surrogate", "surrogates", multiple=True,
                 help="For transfer: a model it is made on, instead of those on its card."),
    of_settings("noise", "gradient_mode"),
    grading, passes, machine, records,
)  # fmt: skip

attacked_study = together(data, budget, attack, of_settings("gradient_mode"), grading, passes, machine)


def as_given() -> str:
    """The command as it was given (DIR is the directory of the data)."""
    context = click.get_current_context()
    arguments = [part for part in context.command.params if isinstance(part, click.Argument)]
    words = [f"lpmbench {context.command.name}"]
    for argument in arguments:
        words += map(shlex.quote, context.params[str(argument.name)])
    for parameter in context.command.params:
        name, option = str(parameter.name), parameter.opts[0].removeprefix("--")
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if given and parameter not in arguments and name not in ("out", "force", "threads"):
            words += words_of({option: "DIR" if name == "data" else context.params[name]})
    return " ".join(words)


def prepare_machine(device: str, threads: int | None, precision: str = "float32") -> str:
    """Set the threads; the device, "auto" resolved. Raises LpmbenchError when it is not there."""
    import torch

    keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    device = resolve_device(device)
    if precision != "float32":
        from robustbench_lpm.architectures.precision import pays

        if not pays(device):
            click.echo("lpmbench: this device has no instructions for bfloat16: float32 would be faster.", err=True)
    return device


def prepare_dry_run(given: dict[str, Any]) -> None:
    """Make the machine ready to plan runs on the device in `given`.

    One that this machine lacks becomes the CPU, and that is said. Raises LpmbenchError for one that does not exist.
    """
    asked, rest = given["device"], (given["threads"], given.get("precision", "float32"))
    try:
        given["device"] = prepare_machine(asked, *rest)
    except LpmbenchError as error:
        if asked.partition(":")[0] not in DEVICES:
            raise
        given["device"] = prepare_machine("cpu", *rest)
        click.echo(f"{str(error).rstrip('.')}. Planned on the CPU instead: passes are the same, times are the CPU's.")


def read_settings(given: Mapping[str, Any], *, one: bool = False) -> list[Options]:
    """The settings among a command's options, for each value of --eps; by default that of the dataset's card.

    Raises LpmbenchError for several values where the command takes only one.
    """
    norm = given["norm"]
    in_a_patch = ["1"] if given.get("patch") else []
    budgets = parse_eps_list(given["eps"] or in_a_patch or cards.dataset(given["dataset"]).default_eps(norm), norm)
    if one and len(budgets) > 1:
        raise LpmbenchError(f"This command takes one eps, not {len(budgets)}; run it once for each.")
    shared = {name: given[name] for name in NAMES if name in given}
    return [asked(shared | {"eps": eps}) for eps in budgets]


def read_source(given: Mapping[str, Any]) -> Data:
    """The images that a command's options name."""
    from robustbench_lpm.registry.tasks import resolve_data

    names = ("size", "data", "image", "label", "split", "trust")
    return resolve_data(given["dataset"], **{name: given[name] for name in names if name in given})


def read_model(name: str, given: Mapping[str, Any]) -> LoadedModel:
    """The model of this name, with the weights and on the device that a command's options name."""
    from robustbench_lpm.registry.tasks import resolve_model

    return resolve_model(name, **loading(given))


def loading(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that say how models are loaded."""
    return {name: given[name] for name in ("checkpoint", "trust", "device")}


def read_names(option: str, given: Sequence[str]) -> list[str]:
    """The names in an option that repeats and takes commas, each once, in order."""
    names = list(dict.fromkeys(name.strip() for word in given for name in word.split(",") if name.strip()))
    if given and not names:
        raise LpmbenchError(f"{option} is empty; name one, or several with commas between.")
    return names


def read_parameters(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Parameters of attacks from --set NAME=VALUE, and by attack those from --set ATTACK.NAME=VALUE.

    Values are read as TOML, and as text where that fails.
    """
    shared: dict[str, Any] = {}
    of_attacks: dict[str, dict[str, Any]] = {}
    for setting in given["settings"]:
        name, equals, text = setting.partition("=")
        if not (name.strip() and equals):
            raise LpmbenchError(f"--set {setting} must look like --set steps=100.")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = {"True": True, "False": False}.get(text, text)
        attack, dot, parameter = name.strip().partition(".")
        if dot:
            of_attacks.setdefault(attack, {})[parameter] = value
        else:
            shared[attack] = value
    return shared, of_attacks
