"""lpmbench models, attacks, datasets, suites: what is registered, as a table, one card, or JSON; `models add`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import click
import tomli_w

from robustbench_lpm.attacks import libraries
from robustbench_lpm.cli.adding import add
from robustbench_lpm.cli.console import grid, show_wide
from robustbench_lpm.registry import cards, hubs
from robustbench_lpm.registry.cards import ModelCard


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


# The columns beside name and summary, by kind: what each says of a card.
Columns = Mapping[str, Callable[[Any], str]]
MODELS: Columns = {"labels": lambda card: card.labels, "weights": _weights, "test accuracy": _accuracy}
ATTACKS: Columns = {"knowledge": lambda card: card.knowledge, "norms": lambda card: ", ".join(card.norms)}
DATASETS: Columns = {
    "labels": lambda card: card.labels,
    "size": lambda card: card.size,
    "needs": lambda card: card.needs or "nothing",
}
SUITES: Columns = {
    "parts": lambda card: str(len(card.part)),
    "data": lambda card: ", ".join(dict.fromkeys(part.dataset for part in card.part)),
}


class _Listing(click.Group):
    """A command that lists cards, with commands below it."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """A word that is no command is the name of a card."""
        return super().resolve_command(ctx, args if args[0] in self.commands else ["show", *args])


def _listing(
    kind: cards.Kind, find: Callable[[str], Any], columns: Columns, option: Callable[..., Any] = lambda command: command
) -> click.Group:
    """The command that lists the cards of one kind, shows one of them (`NAME`), or prints JSON.

    option: decorates the command with one more, `--library`, of which it then lists the attacks.
    """
    kinds = cards.FOLDERS[kind]
    shown: Columns = {"name": lambda card: card.name, **columns, "summary": lambda card: card.summary}

    @click.group(
        cls=_Listing,
        name=kinds,
        invoke_without_command=True,
        subcommand_metavar="[NAME]",
        help=f"The registered {kinds}, or the card of one in full.",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
    @option
    @click.pass_context
    def listing(context: click.Context, as_json: bool, library: str | None = None) -> None:
        context.obj = as_json
        if context.invoked_subcommand is not None:
            return
        if library is not None:
            _list_library(library, as_json)
        else:
            rows = [{name: text(card) for name, text in shown.items()} for card in map(find, cards.names(kind))]
            click.echo(json.dumps(rows, indent=1)) if as_json else _print(rows)
            if kind == "attack" and not as_json:
                known = ", ".join(libraries.LIBRARIES)
                click.echo(f"Attacks of other libraries: `lpmbench attacks --library NAME`, NAME one of {known}.")
            if kind == "model" and not as_json:
                click.echo(f"Models of hubs, by their address: HUB:NAME, HUB one of {', '.join(hubs.HUBS)}.")

    @listing.command(help=f"Print the card of a {kind} in full.")
    @click.argument("name")
    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    @click.pass_obj
    def show(as_json_before: bool, name: str, as_json: bool) -> None:
        card = find(name)
        text = card.path.read_text().rstrip() if card.path.suffix == ".toml" else _as_toml(card)
        click.echo(json.dumps(card.model_dump(mode="json"), indent=1) if as_json or as_json_before else text)

    return listing


def _list_library(library: str, as_json: bool) -> None:
    """The attacks of a library: what each knows, its norms, whether it can be targeted, its parameters."""
    rows = []
    for name in libraries.names(library):
        offer = libraries.find(f"{library}:{name}")
        norms = ", ".join(offer.norms) or "any"
        rows.append({
            "address": offer.address, "knowledge": offer.knowledge,
            "norms": f"{norms} (minimised)" if offer.minimises and offer.norms else norms,
            "targeted": "only" if offer.only_targeted else "yes" if offer.targeted else "no",
            "parameters": offer.shown_parameters,
        })  # fmt: skip
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    click.echo(f"{libraries.told_version(library)}. What they do: lpmbench attacks {rows[0]['address']}")
    _print(rows)
    for name, reason in libraries.left_out(library).items():
        click.echo(f"Left out: {name} ({reason}).")


def _as_toml(card: Any) -> str:
    """A card that is in no file, as it would be in one."""
    return tomli_w.dumps(card.model_dump(mode="json", exclude_defaults=True)).rstrip()


def _print(rows: list[dict[str, str]]) -> None:
    *names, summary = rows[0]
    table = grid(*names, no_wrap=True)
    table.add_column(summary)
    for row in rows:
        table.add_row(*row.values())
    show_wide(table)


models = _listing("model", cards.model, MODELS)
models.add_command(add)
attacks = _listing(
    "attack", cards.attack, ATTACKS,
    click.option("--library", metavar="NAME", help=f"Instead, the attacks of {', '.join(libraries.LIBRARIES)}."),
)  # fmt: skip
datasets = _listing("dataset", cards.dataset, DATASETS)
suites = _listing("suite", cards.suite, SUITES)
