"""The identity of an object: a hash of its tensors, settings and code, and of everything else that decides its answers.

A state dict is not enough: plain tensors and arrays, modules in lists, numbers in attributes, variables that a function
closes over and globals that it names decide answers as much.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import random
import site
import sys
import sysconfig
import types
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

Children = list[tuple[str, Any]]
# Attributes of every module that do not decide its answers.
_BOOKKEEPING = frozenset(vars(nn.Module())) - {"training", "_parameters", "_buffers", "_modules"}
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks")
_VALUES = (
    type(None), bool, int, float, complex, str, bytes, Path, np.generic, range, slice, types.EllipsisType,
    torch.dtype, torch.device, torch.layout, torch.memory_format,
)  # fmt: skip
_MOST = 100_000  # most objects that are examined; of more, such as a whole trainer's, the first ones count
GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


def parts(thing: object, *, numbers: bool = True) -> Iterator[tuple[str, Any, bytes]]:
    """An object and everything that it holds, each once, in an order that depends on nothing but the object.

    Each is given by its path in Python, such as `.layers[0].weight` (() for closures), the part itself, and a token of
    everything that is not in its own parts. numbers: whether tokens of tensors hold their numbers, which takes time.
    """
    seen: dict[int, tuple[int, object]] = {}  # the objects are kept, so that no address is used twice
    waiting: list[tuple[str, object]] = [("", thing)]
    while waiting and len(seen) < _MOST:
        path, value = waiting.pop()
        if not isinstance(value, _VALUES):
            if id(value) in seen:
                yield path, None, f"again {seen[id(value)][0]}".encode()
                continue
            seen[id(value)] = len(seen), value
        try:
            token, children = (b"tensor", []) if isinstance(value, Tensor) and not numbers else _opened(value)
        except Exception:  # an object may raise any exception when examined; then only its class counts
            token, children = _name(type(value)), []
        yield path, value, token
        waiting += [(path + name, child) for name, child in reversed(children)]


def sha256_of_object(thing: object) -> str:
    """A hash of everything that decides an object's answers, as far as Python can see it."""
    digest = hashlib.sha256()
    for path, _, token in parts(thing):
        digest.update(f"{path}\x1f{len(token)}\x1f".encode() + token)
    return digest.hexdigest()


def _opened(value: Any) -> tuple[bytes, Children]:
    """An object's own content, and the objects to examine next."""
    if isinstance(value, _VALUES):
        return f"{type(value).__name__} {value!r}".encode(), []
    if isinstance(value, Tensor):
        return _tensor(value), []
    if isinstance(value, np.ndarray):
        return _array(value)
    if isinstance(value, GENERATORS):
        return _name(type(value)), []  # its state changes with use
    if isinstance(value, Mapping):
        keys = [(f"[key {number}]", key) for number, key in enumerate(value)]
        named = [repr(key) if isinstance(key, str | int) else f"key {number}" for number, key in enumerate(value)]
        return b"mapping", [*keys, *((f"[{name}]", part) for name, part in zip(named, value.values(), strict=True))]
    if isinstance(value, list | tuple | deque):
        return _name(type(value)), [(f"[{number}]", part) for number, part in enumerate(value)]
    if isinstance(value, set | frozenset):
        return f"set {sorted(map(repr, value))}".encode(), []
    if isinstance(value, enum.Enum):
        return f"{type(value).__qualname__}.{value.name}".encode(), []
    if isinstance(value, torch.jit.ScriptModule | torch.jit.ScriptFunction):
        return _scripted(value)
    if isinstance(value, nn.Module):
        return _module(value)
    return _code(value) or _instance(value)


def _tensor(tensor: Tensor) -> bytes:
    lazy = bool(is_lazy(tensor))
    head = f"tensor {'without weights' if lazy else tuple(tensor.shape)} {tensor.dtype} ".encode()
    try:
        if lazy or tensor.is_meta:
            return head
        plain = tensor.detach()
        plain = plain.dequantize() if plain.is_quantized else plain
        plain = plain.to_dense() if plain.layout is not torch.strided else plain
        return head + plain.resolve_conj().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    except (RuntimeError, NotImplementedError, TypeError):  # a kind of tensor whose numbers cannot be read
        return head


def _array(array: np.ndarray) -> tuple[bytes, Children]:
    head = f"array {array.shape} {array.dtype} ".encode()
    if array.dtype.hasobject:
        return head, [(f"[{number}]", part) for number, part in enumerate(array.ravel().tolist())]
    return head + np.ascontiguousarray(array).tobytes(), []


def _module(module: nn.Module) -> tuple[bytes, Children]:
    held = {name: part for name, part in vars(module).items() if name not in _BOOKKEEPING}
    tables = [held.pop(name, {}) for name in ("_parameters", "_buffers", "_modules")]
    children: Children = [("", type(module))]
    children += [(f".{name}", part) for table in tables for name, part in table.items()]
    children += [(f".{name}", part) for name, part in sorted(held.items())]
    for kind in _HOOKS:  # their keys are numbers that increase during a process
        hooks = vars(module).get(kind) or {}
        children += [(f".{kind}[{number}]", hook) for number, hook in enumerate(hooks.values())]
    return b"module", children


def _scripted(thing: Any) -> tuple[bytes, Children]:
    """An object compiled by torch.jit: its graph and, of a module, its tensors."""
    graph = getattr(thing, "inlined_graph", None)
    tensors = thing.state_dict() if isinstance(thing, nn.Module) else {}
    return f"scripted {graph}".encode(), [(f".{name}", value) for name, value in tensors.items()]


def _code(value: Any) -> tuple[bytes, Children] | None:
    """Functions, methods and classes: those of libraries by name and version, others by their code."""
    if isinstance(value, types.MethodType):
        return b"method", [(".__func__", value.__func__), (".__self__", value.__self__)]
    if isinstance(value, functools.partial):
        return b"partial", [(".func", value.func), (".args", value.args), (".keywords", value.keywords)]
    if isinstance(value, staticmethod | classmethod):
        return _name(type(value)), [("", value.__func__)]
    if isinstance(value, property):
        return b"property", [(".fget", value.fget)]
    if isinstance(value, types.FunctionType):
        return _function(value)
    if isinstance(value, type):
        if _of_library(getattr(sys.modules.get(value.__module__), "__file__", None), value.__module__):
            return _name(value), []
        written = [name for name in vars(value) if name not in ("__dict__", "__weakref__", "__doc__", "__module__")]
        inherited = [(f".__bases__[{number}]", base) for number, base in enumerate(value.__bases__)]
        unsettled = ("__firstlineno__", "__static_attributes__", "__annotations__", "__abstractmethods__", "_abc_impl")
        own = [(f".{name}", vars(value)[name]) for name in sorted(written) if name not in unsettled]
        return value.__qualname__.encode(), inherited + own
    if isinstance(value, types.BuiltinFunctionType | types.ModuleType | types.CodeType):
        return _name(value) if not isinstance(value, types.CodeType) else _words(value), []
    return None


def _function(function: types.FunctionType) -> tuple[bytes, Children]:
    children: Children = []
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # it is empty
            children.append((f".({name})", cell.cell_contents))
    if wrapped := getattr(function, "__wrapped__", None):
        children.append((".__wrapped__", wrapped))
    if _of_library(function.__code__.co_filename, function.__module__):
        return _name(function), children
    children += [(".__defaults__", function.__defaults__), (".__kwdefaults__", function.__kwdefaults__)]
    names = _names(function.__code__)
    for name in sorted(names & function.__globals__.keys()):
        found = function.__globals__[name]
        if isinstance(found, types.ModuleType):
            if not _of_library(getattr(found, "__file__", None), found.__name__):
                children += [(f".{name}.{n}", vars(found)[n]) for n in sorted(names & vars(found).keys())]
        else:
            children.append((f".{name}", found))
    return _words(function.__code__), children


def _words(code: types.CodeType) -> bytes:
    """The bytecode, names and constants of a function, without its lines and comments."""
    constants = [
        _words(constant) if isinstance(constant, types.CodeType) else
        sorted(map(repr, constant)) if isinstance(constant, frozenset) else repr(constant)
        for constant in code.co_consts
    ]  # fmt: skip
    return code.co_code + repr((code.co_names, code.co_varnames, code.co_freevars, constants)).encode()


def _names(code: types.CodeType) -> set[str]:
    """The names that a function, and those within it, look up in globals, or as attributes."""
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def _instance(value: Any) -> tuple[bytes, Children]:
    """Any other object: its class and its attributes."""
    held: dict[str, Any] = dict(getattr(value, "__dict__", {}))
    for base in type(value).__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name) and name not in ("__dict__", "__weakref__"):
                held[name] = getattr(value, name)
    if isinstance(value, torch.ScriptObject):  # the weights of a quantised layer are kept in one
        try:
            held["state"] = value.__getstate__()
        except (RuntimeError, TypeError, AttributeError):
            held = {}
    return b"object", [("", type(value)), *((f".{name}", part) for name, part in sorted(held.items()))]


def _name(thing: Any) -> bytes:
    module = getattr(thing, "__module__", None) or getattr(thing, "__name__", "")
    name = getattr(thing, "__qualname__", type(thing).__qualname__)
    version = getattr(sys.modules.get(str(module).split(".")[0]), "__version__", "")
    return f"{module}.{name} {version}".encode()


@cache
def _of_library(file: str | None, module: str | None) -> bool:
    """Whether code comes with Python or an installed package, and is identified by its version."""
    if file is None or file.startswith("<frozen"):
        return (module or "").split(".")[0] in {*sys.builtin_module_names, *sys.stdlib_module_names}
    return Path(file).is_absolute() and any(Path(file).is_relative_to(folder) for folder in _library_folders())


@cache
def _library_folders() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    folders = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")} | {site.getusersitepackages()}
    return tuple(Path(folder) for folder in sorted(folders))
