"""lpmbench train: from a recipe to a checkpoint with a card of its own."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from robustbench_lpm.cli import options
from robustbench_lpm.cli.console import console, counting_bar, duration, quoted_path, say, shown_path
from robustbench_lpm.errors import Interrupted, LpmbenchError
from robustbench_lpm.options import words_of
from robustbench_lpm.registry import cards

SHOWN = ("train_loss", "train_accuracy", "validation_accuracy", "validation_clean_accuracy")


@click.command()
@options.models("MODEL")
@click.option("--recipe", "recipe_name", help="A recipe, or the path of its card; by default the one the model names.")
@click.option("--dataset", help="A dataset instead of the recipe's.")
@options.path("--data", "The directory that holds the data, if it needs one.")
@click.option("--epochs", type=click.IntRange(1), help="Epochs instead of the recipe's.")
@click.option("--seed", type=int, default=0, show_default=True)
@options.path("--out", "Output directory; by default runs/train/NAME-seedS.")
@click.option("--resume", is_flag=True, help="Go on from the last save, to the same bits as without the break.")
@click.option("--save-every", type=click.FloatRange(0, min_open=True), metavar="MINUTES",
              help="Save within epochs too, that often; without it, after every epoch.")  # fmt: skip
@click.option("--workers", type=click.IntRange(0), metavar="N",
              help="Processes that read images ahead where the data do not fit into memory; by default as many as "
                   "there are processors to spare, at most 8.")  # fmt: skip
@click.option("--devices", type=click.IntRange(1), default=1, show_default=True, metavar="N",
              help="Devices of that kind that share every batch; another number gives other bits.")  # fmt: skip
@click.option("--tensorboard", is_flag=True, help="Write the log for TensorBoard too, to OUT/tensorboard.")
@options.machine
@options.trust
def train(model: str, recipe_name: str | None, out: Path | None, threads: int | None, **given: Any) -> None:
    """Train MODEL from a recipe; the best epoch on the validation split becomes the model.

    OUT gets last.ckpt (all that --resume needs), best.safetensors, log.csv, curves.png and at the end card.toml, which
    works as MODEL. recipes/README.md lists what a recipe may say (augmentation, glimpses in stages, ...).

    \b
    lpmbench train ramlpm
    lpmbench train ramlpm --seed 1 --out runs/train/mine
    lpmbench attack runs/train/mine/card.toml --attack pgd
    lpmbench train ramlpm-imagenet --recipe imagenet --data DIR --device cuda --save-every 30 --tensorboard
    """
    card = cards.model(model)
    recipe = cards.recipe(recipe_name) if recipe_name is not None else None
    if recipe is None and card.recipe is None:
        raise LpmbenchError(f"Model '{card.name}' names no recipe; give one with --recipe.")
    given["device"] = options.prepare_machine(given["device"], threads)
    from robustbench_lpm import training
    from robustbench_lpm.training.plans import command_of

    console.quiet = _follows()
    directory = out if out is not None else Path("runs") / "train" / f"{card.name}-seed{given['seed']}"
    epochs = given["epochs"] or (recipe or cards.recipe(str(card.recipe))).epochs
    command = command_of(model, {"recipe": recipe_name, "seed": given["seed"], "device": given["device"]} | given)
    where = f"on {given['device']} into {shown_path(directory)}"
    say(f"Training {card.name} for {epochs} epochs {where}; Ctrl-C keeps all finished epochs.")
    try:
        with counting_bar("training", epochs, "epochs") as move:

            def show(done: float, row: dict[str, float] | None) -> None:
                move(completed=done)
                if row:  # log.csv holds all of it
                    shown = "  ".join(f"{key.replace('_', ' ')} {row[key]:.4g}" for key in SHOWN if key in row)
                    say(f"epoch {done:.0f}/{epochs}  {shown}")

            result = training.train(
                model, recipe=recipe, out=directory, threads=threads, command=command, progress=show,
                tell=lambda note: say(f"  {note}"), **given,
            )  # fmt: skip
    except KeyboardInterrupt:
        again = _again(command, directory, given)
        raise Interrupted(f"Interrupted; finished epochs are kept. Go on with: {again}") from None
    except LpmbenchError:
        if _follows():  # the first process says it too
            raise SystemExit(1) from None
        raise
    shares = ", ".join(f"{key.replace('_', ' ')} {100 * value:.1f} %" for key, value in result.accuracy.items())
    say(f"Best epoch {result.best_epoch} of {epochs}, {duration(result.seconds)}: {shares}")
    say(f"Use it: lpmbench attack {quoted_path(result.card_path)} --attack pgd")


def _follows() -> bool:
    """Whether this is one of the processes that a training on several devices has started, not the first."""
    return any(os.environ.get(name, "0") != "0" for name in ("LOCAL_RANK", "NODE_RANK"))


def _again(command: str, out: Path, given: Mapping[str, Any]) -> str:
    """The command that continues a training, here."""
    if given["data"] is not None:
        command = command.replace("--data DIR", f"--data {shlex.quote(str(given['data']))}")
    more = {name: given[name] for name in ("save_every", "workers", "tensorboard") if given[name] is not None}
    words = words_of({"out": out, "resume": True} | {n: value for n, value in more.items() if value is not False})
    return " ".join([command, *words])
