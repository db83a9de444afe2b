"""The command line: turns words into calls. No torch and no pandas until a command needs them, so --help is fast."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from robustbench_lpm import __version__
from robustbench_lpm.cli.failures import DEBUG
from robustbench_lpm.errors import LpmbenchError, unknown

# Where each command lives; its module is imported when it is called (or when its own --help is asked for).
COMMANDS = {
    "models": ("catalogue", "The registered models."),
    "attacks": ("catalogue", "The registered attacks."),
    "datasets": ("catalogue", "The registered datasets."),
    "suites": ("catalogue", "The registered suites."),
    "data": ("data", "Make a dataset that is made from another: lpmbench data sim2mnist."),
    "train": ("train", "Train a model from its recipe: lpmbench train ramlpm."),
    "attack": ("attack", "Attack one model, or all that fit a dataset, and record what happens."),
    "glimpses": ("glimpses", "What each glimpse of a model contributes, clean and under attack."),
    "sweep": ("studies", "Accuracy for every number of glimpses and of averaged runs, in one pass."),
    "invariance": ("studies", "Accuracy against rotation, scale and translation of the images."),
    "converge": ("converge", "Accuracy against the length of an attack, and the limit that it tends to."),
    "curve": ("curve", "Accuracy against every eps, from one run of an attack for the smallest perturbation."),
    "certify": ("studies", "The L2 radius within which no attack changes the answers of a smoothed model."),
    "corruptions": ("studies", "Accuracy under noise, blur, weather and compression: ImageNet-C at any size."),
    "spatial": ("studies", "Accuracy on the worst rotation and translation of each image."),
    "audit": ("audit", "Judge a model's results: is it robust, or were the attacks too weak?"),
    "run": ("suite", "Run a matrix of models and attacks from a suite card."),
    "report": ("report", "Make the leaderboard from records: CSV, Markdown, LaTeX, HTML."),
    "publish": ("report", "Copy a finished run into the published results."),
    "verify": ("check", "Recompute a record's claims from what is stored beside it."),
    "grade": ("check", "Grade adversarial images that someone else made."),
}


class _LazyGroup(click.Group):
    """A group that imports a command's module only when that command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            return getattr(import_module(f"robustbench_lpm.cli.{COMMANDS[cmd_name][0]}"), cmd_name)
        if ctx.resilient_parsing:  # a shell completes words
            return None
        raise unknown("command", cmd_name, COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lpmbench")
def cli() -> None:
    """How accurate image classifiers stay under attack, above all those that look in glimpses.

    \b
    lpmbench models
    lpmbench attack ramlpm --eps 0.1 --limit 100
    lpmbench attack --attack spsa --size 224 --dataset panda
    lpmbench report
    """


def run(arguments: Sequence[str]) -> int:
    """Run one command line; its status. A mistake that the user can correct is one line on stderr and not zero."""
    if os.environ.get(DEBUG):
        logging.basicConfig(format="%(name)s: %(message)s")
        logging.getLogger("robustbench_lpm").setLevel(logging.DEBUG)
    if any("\0" in argument for argument in arguments):  # no shell passes one on, and no file can be called so
        return _complain("An argument holds a null character. Try --help.", 2)
    try:
        result = cli.main(list(arguments), prog_name="lpmbench", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except LpmbenchError as error:
        return _complain(str(error), error.status)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else str(error))
        return 2
    except click.ClickException as error:
        return _complain(f"{error.format_message()} Try --help.", error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _complain("Interrupted. What was finished is kept: the same command goes on from there.", 130)
    except BrokenPipeError:
        # The reader (head, less) has gone; nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return _complain(f"{error.strerror or error}{where}. What was finished is kept.", 1)


def _complain(message: str, status: int) -> int:
    click.echo("lpmbench: " + " ".join(message.split()), err=True)
    return status


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))
