"""lpmbench models add: a card for a network and weights of one's own, that runs."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import tomli_w

from robustbench_lpm.cli import options
from robustbench_lpm.cli.console import say, shown_path
from robustbench_lpm.errors import Interrupted, LpmbenchError
from robustbench_lpm.registry import cards, hubs

NONE = "none"  # the normalisation of a network that normalises itself


@click.command()
@click.argument("entry", metavar="MODULE:CLASS")
@click.argument("weights", type=options.PATH)
@click.option("--name", help="The name of the model and of its card. Default: the class, in small letters.")
@click.option("--summary", help="A line about it. Default: what it is made of.")
@click.option("--labels", help="The label set that it predicts: digits, cifar10, imagenet, ...")
@click.option("--classes", type=click.IntRange(2), help="How many classes. Default: found by trying.")
@click.option("--channels", type=click.IntRange(1), help="1 or 3. Default: found by trying.")
@click.option("--mean", metavar="NUMBERS", help="Of pixels in [0, 1], for each channel, with commas; or 'none'.")
@click.option("--std", metavar="NUMBERS", help="As --mean.")
@click.option("--working-size", type=click.IntRange(1), help="The one side that it reads. Default: found by trying.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A parameter of the code.")
@options.path("--out", "The directory of the card.", default=Path(), show_default="this one")
@click.option("--yes", is_flag=True, help="Ask nothing that has a default, and overwrite a card of that name.")
@options.trust
def add(entry: str, weights: Path, out: Path, yes: bool, trust: bool, **given: Any) -> None:
    """Write a card for code and weights of your own, NAME.toml, that runs wherever a model is named.

    CLASS may be a function, too: what it returns is the network. Channels, classes and the size of images are found by
    trying; label set and normalisation are asked for. The module must be beside the card, or importable.

    \b
    lpmbench models add mymodel:Net weights.pt --trust
    lpmbench models add mymodel:Net weights.pt --trust --set depth=18 --labels cifar10 --mean none
    """
    try:
        _add(entry, weights, out, yes, trust, given)
    except (click.Abort, KeyboardInterrupt):
        raise Interrupted("Interrupted. No card was written.") from None


def _add(entry: str, weights: Path, out: Path, yes: bool, trust: bool, given: dict[str, Any]) -> None:
    if hubs.of_hub(entry):
        raise LpmbenchError(f"{entry} needs no card: --model {entry} --checkpoint {weights}.")
    path = out / f"{_name(given['name'] or entry.rpartition(':')[2].lower())}.toml"
    parameters, _ = options.read_parameters(given)
    if not trust:
        cards.resolve(entry, path)  # which explains what --trust is for
    if path.exists() and not yes and not _confirmed(f"{shown_path(path)} exists. Overwrite it?", "--yes"):
        raise LpmbenchError("No card was written.")
    from robustbench_lpm.records.runs import write_atomically
    from robustbench_lpm.registry import adding

    sure: dict[str, Any] = {name: given[name] for name in ("channels", "classes", "working_size")}
    while True:
        try:
            found = adding.examine(path, entry, weights, trust=trust, parameters=parameters, **sure)
            break
        except adding.CannotTell as question:
            word, _, parameter = question.option.partition(" ")
            if parameter:
                text = _asked(str(question), f"--set {parameter}=VALUE")
                parameters |= options.read_parameters({"settings": [f"{parameter}={text}"]})[0]
            else:
                sure[word.replace("-", "_")] = _asked(str(question), f"--{word}", _whole)
    size = "of any size" if found.working_size is None else f"of {found.working_size} x {found.working_size}"
    say(f"It reads images {size} with {found.channels} channel(s) and tells {found.classes} classes apart.")
    said = _told(given, adding.label_sets(found.channels, found.classes), found.channels, yes)
    card, notes = adding.finished(
        path, weights, found, trust=trust, entry=entry, parameters=parameters, labels=said["labels"],
        summary=given["summary"] or f"{entry} with the weights of {weights.name}",
        input={
            "channels": found.channels, "mean": said["mean"], "std": said["std"], "working_size": found.working_size,
        },
    )  # fmt: skip
    content = card.model_dump(mode="json", exclude_defaults=True)
    write_atomically(path, tomli_w.dumps(content).encode())
    for note in notes:
        say(f"Note: {note}.")
    shown = f"./{shown_path(path)}" if not path.is_absolute() else str(path)
    say(f"Wrote {shown}. Use it: lpmbench attack --model {shown} --trust --attack pgd{_dataset(card.labels)}")


def _name(name: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise LpmbenchError(f"--name '{name}' must be a word of letters, digits, '-', '_' and '.'.")
    if name in cards.names("model"):
        raise LpmbenchError(f"'{name}' is the name of a registered model; choose another with --name.")
    return name


def _told(given: dict[str, Any], label_sets: Sequence[str], channels: int, yes: bool) -> dict[str, Any]:
    """Labels, mean and std, given or asked for. Raises LpmbenchError without a terminal."""
    answers = {name: given[name] for name in ("labels", "mean", "std")}
    if NONE in (answers["mean"], answers["std"]):
        answers |= {"mean": NONE, "std": NONE}
    if yes:
        only = label_sets[0] if len(label_sets) == 1 else None
        answers = {"labels": answers["labels"] or only} | {k: answers[k] or NONE for k in ("mean", "std")}
    missing = [name for name, value in answers.items() if value is None]
    fitting = f" ({', '.join(label_sets)} would fit)" if label_sets else ""
    questions = {
        "labels": f"Which label set does it predict{fitting}?",
        "mean": "Which mean is to be subtracted from its pixels in [0, 1], a number for each channel, or 'none'?",
        "std": "And by which standard deviation are they to be divided?",
    }
    wanted = ", ".join(f"--{name}" for name in missing)
    for name in missing:
        if name == "labels":
            answers[name] = _asked(questions[name], wanted)
        elif answers["mean"] != NONE:
            default = NONE if name == "mean" else None
            answers[name] = _asked(questions[name], wanted, partial(_readable, name, channels), default)
        else:
            answers[name] = NONE
    return answers | {name: _numbers(name, answers[name], channels) for name in ("mean", "std")}


def _numbers(name: str, text: str, channels: int) -> list[float]:
    try:
        numbers = [] if text == NONE else [float(number) for number in text.split(",")]
    except ValueError:
        numbers = [float("nan")] * (channels + 1)
    if text != NONE and len(numbers) != channels:
        raise LpmbenchError(f"--{name} {text} must be {channels} number(s) with commas between, or '{NONE}'.")
    return numbers


def _readable(name: str, channels: int, text: str) -> str:
    """An answer that `_numbers` can read; the question is asked again where it cannot."""
    try:
        _numbers(name, text, channels)
    except LpmbenchError as error:
        raise click.UsageError(str(error)) from None
    return text


def _whole(text: str) -> int:
    """An answer that is a number from 1."""
    if not (text.isascii() and text.isdigit() and int(text)):
        raise click.UsageError("A whole number from 1 is meant.")
    return int(text)


def _asked(question: str, wanted: str, read: Callable[[str], Any] | None = None, default: str | None = None) -> Any:
    """The answer to a question. Raises LpmbenchError, naming the options that give it, where there is no terminal."""
    if not sys.stdin.isatty():
        raise LpmbenchError(f"{question} There is no terminal to ask at: give {wanted}.")
    return click.prompt(question, value_proc=read, default=default, prompt_suffix=" ")


def _confirmed(question: str, wanted: str) -> bool:
    if not sys.stdin.isatty():
        raise LpmbenchError(f"{question} There is no terminal to ask at: give {wanted}.")
    return click.confirm(question)


def _dataset(labels: str) -> str:
    """The option for the first registered dataset with these labels."""
    known = [card.name for card in map(cards.dataset, cards.names("dataset")) if card.labels == labels]
    return f" --dataset {known[0] if known else 'YOURS'}" if labels != "digits" else ""
