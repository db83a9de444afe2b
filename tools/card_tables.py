"""Tables of the reference pages, made from the code when the site is built: fields of cards, settings of a run.

What a key says is the comment beside it in `registry/cards.py`, the words of a setting in `options.py`, or its row in
the README of the cards.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import textwrap
import tokenize
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from robustbench_lpm.options import SETTINGS, TYPES
from robustbench_lpm.registry import cards

ROOT = Path(__file__).parent.parent
README = {"model": "models", "attack": "attacks", "recipe": "recipes"}  # whose table says what the keys are
CARDS: dict[str, type[BaseModel]] = {
    "model": cards.ModelCard,
    "attack": cards.AttackCard,
    "dataset": cards.DatasetCard,
    "recipe": cards.RecipeCard,
    "suite": cards.SuiteCard,
}
WORDS = {bool: "true or false", int: "whole number", float: "number", str: "text", Any: "any value"}
LIMITS = {Ge: ("at least", "ge"), Gt: ("above", "gt"), Le: ("at most", "le"), Lt: ("below", "lt")}
# Of keys that neither a comment nor a README explains.
SAYS = {
    "name": "the name; of a card in this repository that of its file",
    "summary": "one line for the list",
    "entry": "the code: `module:function`",
    "labels": "the label set; models of the same one fit",
    "channels": "1 (grey) or 3 (colour)",
    "parameters": "keywords of the entry",
    "part": "the parts of the matrix",
    "dataset": "a name, or the path of a card",
    "models": "names, paths of cards, addresses",
    "attacks": "names, paths of cards, addresses",
    "epochs": "how many epochs",
    "batch_size": "images in a batch",
    "optimiser": "the optimiser",
    "learning_rate": "its learning rate, at the peak of the schedule",
    "weight_decay": "its weight decay",
    "input.mean": "one number per channel, subtracted from pixels in [0, 1]",
    "input.std": "one number per channel, by which the difference is divided",
    "trained.recipe": "the recipe",
    "trained.dataset": "the data that it was trained on",
    "trained.seed": "the seed of the training",
    "trained.command": "the command that repeats the training",
    "trained.seconds": "the time that the training took",
    "trained.versions": "of the libraries",
}


def table(name: str) -> str:
    """The table of a kind of card ("model"), with those of the tables inside it, or that of the "settings"."""
    if name == "settings":
        return "\n".join(_settings())
    return "\n\n".join(_tables(CARDS[name], "", _rows(README[name]) if name in README else {}))


def _tables(card: type[BaseModel], where: str, rows: Mapping[str, str]) -> Iterator[str]:
    said, inner = _comments(card), dict[str, type[BaseModel]]()
    lines = ["| key | type | default | what it says |", "|---|---|---|---|"]
    for key, field in card.model_fields.items():
        below = next((part for part in _parts(field.annotation) if _is_table(part)), None)
        if below is not None:
            inner[key] = below
        says = [rows.get(f"{where}{key}"), SAYS.get(f"{where}{key}"), said.get(key)]
        if issubclass(card, cards.SuiteCard.Part) and key in SETTINGS:
            says.append(SETTINGS[key].metadata["help"])
        words = next(filter(None, [*says, SAYS.get(key)]), "a table, below" if below else "")
        kind = f"{_words(field.annotation)}{_limits(field)}"
        lines.append(f"| `{key}` | {kind} | {_default(field)} | {_cell(words)} |")
    yield "\n".join(lines)
    for key, below in inner.items():
        head = f"[[{where}{key}]]" if get_origin(card.model_fields[key].annotation) is list else f"[{where}{key}]"
        first, *_ = (inspect.getdoc(below) or "").splitlines()
        yield f"**`{head}`** {first}"
        yield from _tables(below, f"{where}{key}.", rows)


def _settings() -> Iterator[str]:
    yield from ("| option | type | default | what it says |", "|---|---|---|---|")
    for name, setting in SETTINGS.items():
        default = "" if not isinstance(setting.default, str | int | float) else f"`{setting.default}`"
        yield f"| `{name}` | {_words(TYPES[name])} | {default} | {_cell(setting.metadata['help'])} |"


# ---------------------------------------------------------------------------------------------------------------------
# Types and defaults in words


def _is_table(kind: Any) -> bool:
    return inspect.isclass(kind) and issubclass(kind, BaseModel)


def _parts(kind: Any) -> Iterator[Any]:
    yield kind
    for part in get_args(kind) if get_origin(kind) is not Literal else ():
        yield from _parts(part)


def _words(kind: Any) -> str:
    """A type as a reader of TOML calls it."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _words(arguments[0])
    if origin is Literal:
        return " or ".join(f'`"{value}"`' if isinstance(value, str) else f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return ", or ".join(_words(part) for part in arguments if part is not NoneType)
    if origin in (list, tuple) and arguments:
        if origin is tuple and arguments[-1] is not Ellipsis:
            return f"[{', '.join(map(_words, arguments))}]"
        return f"list: {_words(arguments[0])}"
    if origin is dict or _is_table(kind):
        return "table"
    return WORDS.get(kind, str(getattr(kind, "__name__", kind)))


def _limits(field: FieldInfo) -> str:
    found = [(*LIMITS[type(part)], part) for part in field.metadata if type(part) in LIMITS]
    return "".join(f", {words} {getattr(part, name)}" for words, name, part in found)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**needed**"
    if field.default is None or field.default in ("", [], {}):
        return ""
    if isinstance(field.default, BaseModel):
        return "below"
    return f"`{_toml(field.default)}`"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(part)}" for key, part in value.items()) + "}"
    return str(value)


def _cell(words: str) -> str:
    return " ".join(words.split()).replace("|", "\\|")


# ---------------------------------------------------------------------------------------------------------------------
# What the keys say


@cache
def _rows(folder: str) -> dict[str, str]:
    """What the table of a README says of each key that has a row of its own; links are left out."""
    found = {}
    for keys, words in re.findall(
        r"^\| (`[^|]+`) \| (.+) \|$", (ROOT / folder / "README.md").read_text(), re.MULTILINE
    ):
        names = re.findall(r"`([^`]+)`", keys)
        if len(names) == 1:
            without_links = re.sub(r" \(\[[^\]]*\]\([^)]*\)(; optional)?\)", "", words)
            found[names[0]] = re.sub(r" \((?:[^()]*, )?optional\)", "", without_links)
    return found


def _comments(card: type[BaseModel]) -> dict[str, str]:
    """The comment beside each field of a card and of what it inherits, or the lines of comment above it."""
    found: dict[str, str] = {}
    for part in reversed(card.__mro__):
        if part.__module__ == cards.__name__ and issubclass(part, BaseModel):
            with_source = part.__name__ != "_Asked"  # made by `create_model`
            found |= _comments_of(textwrap.dedent(inspect.getsource(part))) if with_source else {}
    return found


def _comments_of(source: str) -> dict[str, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    said = {
        token.start[0]: (token.start[1], token.string.lstrip("# "))
        for token in tokens
        if token.type == tokenize.COMMENT
    }
    lines = source.splitlines()
    found = {}
    (body,) = ast.parse(source).body
    assert isinstance(body, ast.ClassDef)
    for field in body.body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            above: list[str] = []
            line = field.lineno - 1
            while line in said and lines[line - 1].lstrip().startswith("#"):
                above.insert(0, said[line][1])
                line -= 1
            beside = said[field.lineno][1] if field.lineno in said else ""
            found[field.target.id] = beside or " ".join(above)
    return {key: words for key, words in found.items() if words}
