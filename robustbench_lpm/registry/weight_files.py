"""Read weight files of any origin: recognise the kind of file, and find the tensors in it that fit a network.

No code in a file is ever run: safetensors, or `torch.load` with weights_only. Content decides, not a file's name.
"""

from __future__ import annotations

import argparse
import codecs
import os
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Collection, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from robustbench_lpm.architectures.classifier import offered
from robustbench_lpm.errors import LpmbenchError

State = dict[str, Tensor]
# Keys under which training code usually keeps a state dict. Others are tried only if none of these fits.
CONTAINERS = {"state_dict", "model_state_dict", "model_state", "model", "net", "network", "params", "weights"}
AVERAGES = re.compile(r"(^|_)ema($|_)")  # exponential moving averages of weights; only if nothing else fits
# Parts that wrappers insert into names: torch.compile, DataParallel, activation checkpointing, FSDP.
SEGMENTS = {"_orig_mod", "module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
# Counters that do not affect answers: of torch's AveragedModel and of profilers; and the one that old files lack.
COUNTS, COUNTED_SINCE_TORCH_0_4 = {"n_averaged", "total_ops", "total_params"}, "num_batches_tracked"
OTHER_FORMATS = {
    (0, b"\x1f\x8b"): "a gzip archive; unpack it and give the file in it",
    (257, b"ustar"): "a tar archive; unpack it and give the file in it",
    (0, b"\x89HDF"): "an HDF5 file, as Keras writes them, and not PyTorch's",
    (0, b"\x93NUMPY"): "an array of numpy, not a state dict",
}
LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9"  # how torch.save began before it wrote zip files
DEEPEST = 8  # keys that lead to a state dict; a dictionary may hold itself
LONGEST_HEADER = 100_000_000  # bytes, as in the safetensors library
SAVE_TENSORS = "Save them alone, torch.save(model.state_dict(), 'weights.pt'), and give that file"


def read(path: Path, source: str | None = None) -> Any:
    """The content of a weight file, on the CPU: a state dict, or the containers that training code put around it.

    source: its name in errors, by default its path. Raises LpmbenchError for a missing, empty or cut file, another kind
    of file, and a pickle that holds more than tensors and plain values.
    """
    source = source or str(path)
    if not path.is_file():
        note = ": it is a folder; name the file in it" if path.is_dir() else ""
        raise LpmbenchError(f"There is no checkpoint at {path}{note}.")
    try:
        if found := defect(path):
            raise LpmbenchError(f"{source} is no checkpoint: it is {found}.")
        with warnings.catch_warnings(), torch.serialization.safe_globals(_plain_values()):
            warnings.simplefilter("ignore")  # of torch, about pickles that it then refuses
            if _is_safetensors(_head(path)):
                return safetensors.torch.load(path.read_bytes())
            with path.open("rb") as file:  # torch would go by the suffix of a path
                return torch.load(file, map_location="cpu", weights_only=True)
    except LpmbenchError:
        raise
    except pickle.UnpicklingError as error:
        if _is_cut_pickle(path):
            raise LpmbenchError(f"{source} is no checkpoint: it is cut short.") from None
        raise _refused(source, told(error)) from None
    except OSError as error:
        raise LpmbenchError(f"{source} cannot be read: {error.strerror or error}.") from None
    except Exception as error:  # torch and safetensors raise many kinds for damaged files
        raise LpmbenchError(f"{source} is no checkpoint: it is cut short or damaged ({told(error)}).") from None


def defect(path: Path) -> str | None:
    """Why a file is not a complete weight file, in a clause; None if it may be one.

    Reads the file's size, first bytes and index, and nothing that a pickle holds.
    """
    size, head = path.stat().st_size, _head(path)
    if not size:
        return "an empty file"
    if head.startswith((b"version https://git-lfs", b"version https://hawser")):
        return "a Git LFS pointer, not the file itself; `git lfs pull` fetches that"
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<"):
        return "a web page (HTML or XML); download the file itself"
    if size < 9:
        return f"cut short, to {size} bytes"
    if _is_safetensors(head):
        return None  # the library says what is wrong
    if head.startswith(b"PK"):
        return _defect_of_zip(path)
    for (place, magic), kind in OTHER_FORMATS.items():
        if head[place:].startswith(magic):
            return kind
    if text := _text(head):
        return f"text, which begins {_shortened(text, 60)!r}"
    return None if head.startswith(b"\x80") else "neither safetensors nor what torch.save writes"  # \x80: a pickle


def told(error: Exception) -> str:
    """The reason why torch or safetensors refused a file, in one line, without advice to trust it."""
    text = " ".join(str(error).split()).rpartition("WeightsUnpickler error: ")[2]
    text = re.split(r" (?:Please use `|In PyTorch \d|Check the documentation)", text)[0]
    return _shortened(text, 400).rstrip(".") or type(error).__name__


def fitting(network: nn.Module, content: Any, source: str) -> tuple[State, tuple[str, ...]]:
    """The state dict in a checkpoint that fits a network, in the names that fit; and notes for its user.

    It may be under any keys, beside other things, with a wrapper's prefix before its names. Where several fit,
    CONTAINERS come before other keys and averages of weights (EMA) last; where none fits, the closest one is given.
    Raises LpmbenchError where there is none, and where several fit equally.
    """
    states = sorted(_states(content), key=lambda one: _rank(one[0]))
    if not states:
        keys = [str(key) for key in content] if isinstance(content, Mapping) else []
        told_keys = f"; its keys: {_listed(keys)}" if keys else ""
        raise LpmbenchError(f"{source} holds no state dict, that is tensors by name{told_keys}.")
    found, closest = [], []
    for where, state in states:
        for spelled, notes in _spellings(network, state):
            misfit = _misfit(network, spelled)
            if not misfit:
                found.append((where, spelled, notes))
                break
            closest.append((len(misfit.get("missing", [])), spelled))
    if not found:
        return min(closest, key=lambda one: one[0])[1], ()
    where, state, notes = found[0]
    others = [(place, other) for place, other, _ in found[1:] if not _equal(state, other)]
    if rivals := [place for place, _ in others if _rank(place) == _rank(where)]:
        places = " and ".join(f"'{'.'.join(place)}'" for place in [where, *rivals])
        keep = "".join(f"[{key!r}]" for key in where)
        raise LpmbenchError(
            f"{source} holds several sets of weights that fit, {places}. Keep the one you mean, e.g. "
            f"torch.save(torch.load(FILE, weights_only=True){keep}, 'weights.pt')."
        )
    if where and (others or _rank(where) != _rank(("model",))):
        aside = "".join(f"; '{'.'.join(place)}' would fit too" for place, _ in others)
        notes = (f"its weights are those under '{'.'.join(where)}'{aside}", *notes)
    return state, notes


def is_reference(network: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is in the names of the network's reference code instead of its own."""
    recognises = offered(network, "is_reference_state")
    return recognises is not None and bool(recognises(state))


def load_state(network: nn.Module, state: State, source: str) -> None:
    """Load a state dict strictly; a network may translate one in names of its own reference code.

    Raises LpmbenchError that lists the names and shapes that do not fit, or the values that are no numbers.
    """
    misfit, state = _misfit(network, state), _translated(network, state)
    _check_values(network, state, source)
    try:
        network.load_state_dict(state, strict=True)  # decides: a network's hooks may rename what seems not to fit
    except RuntimeError as error:
        listed = "; ".join(f"{len(names)} {kind}: {_listed(names)}" for kind, names in misfit.items())
        raise LpmbenchError(f"{source}: the weights do not fit the model: {listed or told(error)}.") from None


def _misfit(network: nn.Module, state: State) -> dict[str, list[str]]:
    """The names for which a state dict does not fit a network, by the kind of mismatch; empty if it fits."""
    found, expected = _translated(network, state), network.state_dict()
    misfit = {
        "missing": [n for n in expected if n not in found and not n.endswith(COUNTED_SINCE_TORCH_0_4)],
        "unexpected": [n for n in found if n not in expected],
        "of another shape": [
            f"{n} {_size(found[n])} for {_size(value)}"
            for n, value in expected.items()
            if n in found and isinstance(value, Tensor) and not is_lazy(value) and found[n].shape != value.shape
        ],
    }
    return {kind: names for kind, names in misfit.items() if names}


def _translated(network: nn.Module, state: State) -> State:
    return network.translate_reference_state(state) if is_reference(network, state) else state  # type: ignore[operator]


def _check_values(network: nn.Module, state: State, source: str) -> None:
    """Refuse NaN and infinity where the network's own values are finite, and integers instead of floats (quantised)."""
    for name, own in network.state_dict().items():
        value = state.get(name)
        if value is None or not isinstance(own, Tensor) or not own.is_floating_point():
            continue
        if not value.is_floating_point():
            raise LpmbenchError(f"{source}: {name} holds {value.dtype} instead of floats: are the weights quantised?")
        broken = ~value.to(own.dtype).isfinite()
        if not is_lazy(own) and own.shape == value.shape:  # a mask of -inf that the network makes itself is right
            broken &= own.cpu().isfinite()
        if count := int(broken.sum()):
            raise LpmbenchError(
                f"{source}: {name} holds NaN or infinite values ({count} of {value.numel()}): a training that broke "
                "down? Give a checkpoint from before."
            )


def _states(content: Any, where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], State]]:
    """Every dictionary of tensors by name in a checkpoint, with the keys that lead to it, outermost first."""
    if not isinstance(content, Mapping) or len(where) > DEEPEST:
        return
    if tensors := {name: x for name, x in content.items() if isinstance(name, str) and _has_values(x)}:
        yield where, tensors
    for key, value in content.items():
        yield from _states(value, (*where, str(key)))


def _has_values(x: Any) -> bool:
    """Whether something is a dense tensor with values: not sparse, nested or on the meta device."""
    return isinstance(x, Tensor) and x.layout is torch.strided and not x.is_meta and not x.is_nested


def _rank(where: tuple[str, ...]) -> tuple[bool, bool]:
    """The order among state dicts that fit: usual keys first, averages last."""
    average = any(AVERAGES.search(key.lower()) for key in where)
    return average, not average and any(key not in CONTAINERS for key in where)


def _spellings(network: nn.Module, state: State) -> Iterator[tuple[State, tuple[str, ...]]]:
    """A state dict as it is, then with the names restored that a wrapper may have changed; each with its notes."""
    expected, buffers = network.state_dict(), dict(network.named_buffers())
    last = {name.rpartition(".")[2] for name in expected}
    kept = {name: x for name, x in state.items() if name.rpartition(".")[2] not in COUNTS - last}
    left_out = (f"{_listed([n for n in state if n not in kept])} left out",) if len(kept) < len(state) else ()
    bare = {".".join(part for part in name.split(".") if part not in SEGMENTS): x for name, x in kept.items()}
    wrapped = ", ".join(sorted(part for part in SEGMENTS if any(part in name.split(".") for name in kept)))
    for inner in [kept, bare] if len(bare) == len(kept) and wrapped else [kept]:
        for taken, given in product(_prefixes(inner), _prefixes(expected)):
            names = {given + name.removeprefix(taken): x for name, x in inner.items()}
            # A constant that the network makes itself and an older version of it saved.
            names = {n: x for n, x in names.items() if n in expected or not _equal_tensors(x, buffers.get(n))}
            notes = {
                f"'{taken}' was taken off the names of its weights": taken,
                f"'{given}' was put before the names of its weights": given,
                f"'{wrapped}' was taken out of the names of its weights": inner is bare,
            }
            yield names, (*(note for note, holds in notes.items() if holds), *left_out)


def _prefixes(names: Collection[str]) -> list[str]:
    """Every prefix of whole segments that all names share, the shortest (none) first: "", "module.", ..."""
    shared = os.path.commonprefix([name.split(".")[:-1] for name in names])  # noqa: RUF071 (of lists)
    return ["".join(f"{part}." for part in shared[:length]) for length in range(len(shared) + 1)]


def _equal(state: State, other: State) -> bool:
    return state.keys() == other.keys() and all(_equal_tensors(x, other[name]) for name, x in state.items())


def _equal_tensors(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and one.dtype == other.dtype and torch.equal(one, other.to(one.device))


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _listed(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(_shortened(name, 100) for name in names[:most]) + more


def _shortened(text: str, most: int) -> str:
    """Text in one line; a long one is cut in the middle, because errors often end with what matters."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most // 3]} ... {text[-2 * most // 3 :]}"


def _refused(source: str, reason: str) -> LpmbenchError:
    line = f"{source} was refused: it does not load as tensors alone"
    if match := re.search(r"GLOBAL (\S+)", reason):
        line += f", for it needs {match[1]}, as a whole model does that torch.save(model) wrote"
    elif "Unsupported operand" in reason:
        line += ", for it is a pickle that torch.save did not write"
    return LpmbenchError(f"{line}. {SAVE_TENSORS} ({reason}).")


def _is_cut_pickle(path: Path) -> bool:
    """Whether a file, no zip file, ends inside one of its pickles, which are parsed and not run.

    torch.save wrote five before the tensors: magic number, version, system, content, names of storages.
    """
    with path.open("rb") as file:
        pickles = 5 if file.peek(len(LEGACY)).startswith(LEGACY) else 1
        try:
            for _ in range(pickles if file.peek(1).startswith(b"\x80") else 0):
                for _ in pickletools.genops(file):
                    pass
        except ValueError:
            return True
    return False


def _plain_values() -> list[Any]:
    """Harmless types often stored beside weights: parsed arguments and numpy's numbers."""
    scalar: Any = np.float64(0).__reduce__()[0]
    scalars = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]  # of numpy 1 and of numpy 2
    dtypes = {type(np.dtype(code)) for code in "?" + np.typecodes["AllInteger"] + np.typecodes["Float"]}
    return [argparse.Namespace, np.dtype, *scalars, *dtypes]


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(512)


def _text(head: bytes) -> str:
    """The start of a file as text, empty where it is none."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # which may end inside a character
    except UnicodeDecodeError:
        return ""
    return text if all(char.isprintable() or char.isspace() for char in text) else ""


def _is_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= LONGEST_HEADER


def _defect_of_zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):  # the index of a zip file is its end
        return "cut short or damaged: a zip file, as torch.save writes, without its end"
    if any(name.endswith("/constants.pkl") for name in names):
        return f"a TorchScript program, which is code beside tensors. {SAVE_TENSORS}"
    if not any(name.endswith("/data.pkl") for name in names):
        return f"a zip file that torch.save did not write (in it: {_listed(names)}); unpack it"
    return None
