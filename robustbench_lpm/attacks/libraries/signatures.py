"""What users may set of a library's attack, read from the library's own signatures."""

from __future__ import annotations

import inspect
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Union

WORDS: dict[str, Any] = {"int": int, "float": float, "bool": bool, "str": str}
SEVERAL = {"tuple", "Tuple", "list", "List"}
NOTHING = {"None", "NoneType", "Optional", "Union", "typing"}
TAKEN = ("norm", "eps", "targets", "surrogates", "eot")  # names that our own contract gives a meaning


class Parameter(NamedTuple):
    """A parameter that users may set.

    kind: the type of its values. default: None where the library, or our adapter, decides by itself. derived: what our
    adapter then sets, in words: "2.5·eps/steps".
    """

    kind: Any
    default: Any = None
    derived: str = ""

    @property
    def shown(self) -> str:
        """The default, for a reader."""
        return self.derived or ("automatic" if self.default is None else str(self.default))


def offered(
    function: Callable[..., Any], ours: Iterable[str], derived: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> dict[str, Parameter]:  # fmt: skip
    """The parameters of a library's function (or class) that users may set, by our names for them.

    ours: the names of those that we set. derived: of those whose default depends on eps, the words for it. defaults: of
    those for which the library has none. What only an object of Python can be is not offered.
    """
    found: dict[str, Parameter] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name in {"self", *ours} or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if derived and name in derived:
            found[name] = Parameter(float | None, None, derived[name])
            continue
        if defaults and name in defaults and parameter.default is parameter.empty:
            parameter = parameter.replace(default=defaults[name])
        kind, default = kind_of(parameter, inspect.getdoc(function) or ""), parameter.default
        if kind is not None and default is not parameter.empty:
            found[spelled_out(name)] = Parameter(kind, list(default) if isinstance(default, tuple) else default)
    return found


def kind_of(parameter: inspect.Parameter, documentation: str = "") -> Any:
    """The type of a parameter's values, None where a command cannot name any.

    It is that of the default, or float where the annotation says so, or the documentation ("c (float): ...").
    """
    annotation, default = parameter.annotation, parameter.default
    words = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    if isinstance(default, str) and "Literal" in words and not isinstance(annotation, str):
        return annotation
    if isinstance(default, bool | float | str):
        return type(default)
    if isinstance(default, int):
        documented = re.search(rf"\b{re.escape(parameter.name)} \(float\)", documentation)
        return float if documented or re.search(r"\bfloat\b", words) else int
    if isinstance(default, tuple | list):
        return list if all(isinstance(value, int | float | str) for value in default) else None
    known = set(re.findall(r"\w+", words)) - NOTHING
    if not known - SEVERAL or not known - SEVERAL <= WORDS.keys():
        return None
    return list | None if known & SEVERAL else Union[(*(WORDS[word] for word in sorted(known)), None)]


def spelled_out(name: str) -> str:
    """Our name for a library's parameter: rho_init for ρ_init, own_eps for an eps that is not the budget."""
    name = "".join(c if c.isascii() else unicodedata.name(c).rpartition(" ")[2].lower() for c in name)
    return f"own_{name}" if name in TAKEN else name


def as_the_library_takes(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters under the library's own names, lists as tuples."""
    names = {spelled_out(name): name for name in inspect.signature(function).parameters}
    return {names[name]: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def only_taken(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that a library's function (or class) takes."""
    return {name: value for name, value in given.items() if name in inspect.signature(function).parameters}


def first_sentence(thing: Any) -> str:
    """The first sentence of an object's documentation."""
    text = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    return re.split(r"(?<!al)\. |\[", text)[0].strip(" .") or "-"
