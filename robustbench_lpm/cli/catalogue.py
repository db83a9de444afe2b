"""lpmbench models, attacks, datasets: what is registered, as a table, one card in full, or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable

import click

from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.registry import cards
from robustbench_lpm.registry.cards import AttackCard, Card, DatasetCard, ModelCard


def _listing(kind: cards.Kind, rows: Callable[[], list[dict[str, str]]], find: Callable[[str], Card]) -> click.Command:
    """The command that lists the cards of one kind, shows one of them (`show NAME`), or prints JSON."""

    @click.command(name=cards.FOLDERS[kind])
    @click.argument("words", nargs=-1, metavar="[show NAME]")
    @click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
    def listing(words: tuple[str, ...], as_json: bool) -> None:
        if not words:
            _print(rows(), as_json)
        elif len(words) == 2 and words[0] == "show":
            _show(find(words[1]), as_json)
        else:
            raise LpmbenchError(
                f"Write `lpmbench {cards.FOLDERS[kind]}` or `lpmbench {cards.FOLDERS[kind]} show NAME`."
            )

    listing.help = f"The registered {cards.FOLDERS[kind]}; `show NAME` prints one card in full."
    return listing


def _print(rows: list[dict[str, str]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 200  # a file or a pipe has room
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in rows[0]:
        table.add_column(name, no_wrap=name != "summary")
    for row in rows:
        table.add_row(*row.values())
    console.print(table)


def _show(card: Card, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(card.model_dump(mode="json"), indent=1))
    else:
        click.echo(card.path.read_text().rstrip())


def _models() -> list[dict[str, str]]:
    return [_model_row(cards.model(name)) for name in cards.names("model")]


def _model_row(card: ModelCard) -> dict[str, str]:
    return {
        "name": card.name,
        "labels": card.labels,
        "weights": _weights(card),
        "test accuracy": _accuracy(card),
        "summary": card.summary,
    }


def _accuracy(card: ModelCard) -> str:
    """What the card says of the test images: of one Monte-Carlo run and of ten for a stochastic model."""
    accuracy = card.trained.accuracy if card.trained else {}
    shown = {"test": "", "test_m1": "M=1 ", "test_m10": "M=10 "}
    return ", ".join(f"{text}{100 * accuracy[name]:.1f} %" for name, text in shown.items() if name in accuracy) or "-"


def _weights(card: ModelCard) -> str:
    """Where the weights come from, without looking for them."""
    if card.weights is None:
        return "none"
    if card.weights.package:
        return "in a package"
    return "committed" if card.weights.file else "download"


def _attacks() -> list[dict[str, str]]:
    return [_attack_row(cards.attack(name)) for name in cards.names("attack")]


def _attack_row(card: AttackCard) -> dict[str, str]:
    return {
        "name": card.name,
        "knowledge": card.knowledge,
        "norms": ", ".join(card.norms),
        "summary": card.summary,
    }


def _datasets() -> list[dict[str, str]]:
    return [_dataset_row(cards.dataset(name)) for name in cards.names("dataset")]


def _dataset_row(card: DatasetCard) -> dict[str, str]:
    return {
        "name": card.name,
        "labels": card.labels,
        "size": card.size,
        "needs": card.needs or "nothing",
        "summary": card.summary,
    }


models = _listing("model", _models, cards.model)
attacks = _listing("attack", _attacks, cards.attack)
datasets = _listing("dataset", _datasets, cards.dataset)
