"""A stand-in for an accelerator that counts how often a program waits for it; it computes on the CPU.

Inside `counted()` a tensor moved to the device `DEVICE` behaves as one on a GPU: it cannot be mixed with tensors of the
host, and whatever needs its values on the host (a number, a copy, the size of a selection by a mask) is counted.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten
DEVICE = torch.device("meta")  # runs no code of its own, and autograd treats it like the CPU
HOST = torch.device("cpu")
READS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.unique_dim, aten._unique2}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


class OnDevice(torch.Tensor):
    """A tensor that says that it is on the device; `held` holds its values."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, real: torch.Tensor) -> OnDevice:
        found = torch.Tensor._make_wrapper_subclass(
            cls, real.shape, strides=real.stride(), storage_offset=real.storage_offset(), dtype=real.dtype,
            device=DEVICE, requires_grad=real.requires_grad,
        )  # fmt: skip
        found.held = real
        return found

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any) -> Any:  # type: ignore[override]
        raise RuntimeError(f"{func} outside counted()")

    def __repr__(self) -> str:  # type: ignore[override]  # a message must not count
        return f"OnDevice({tuple(self.shape)}, {self.dtype})"

    def tolist(self) -> Any:  # torch refuses it for subclasses
        return self.cpu().tolist()


class Waits(TorchDispatchMode):
    """Counts, by operation, in `counts`; the places that waited are in `places`."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.places: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return self.counts.total()

    def _wait(self, func: Any) -> None:
        self.counts[str(func)] += 1
        frames = [f for f in traceback.extract_stack() if "/torch/" not in f.filename and f.filename != __file__]
        self.places[f"{Path(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].line}"] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
        there = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
        wanted = kwargs.get("device")
        target = torch.device(wanted) if wanted is not None else None
        if func.overloadpacket in READS and there:
            self._wait(func)
        if func.overloadpacket in INDEXING and there:
            self._index(func, args)
        elif func.overloadpacket is aten.copy_:
            self._copy(func, args, kwargs)
        elif there and func.overloadpacket is not aten._to_copy:
            for tensor in tensors:
                assert isinstance(tensor, OnDevice) or tensor.dim() == 0, f"{func} mixes host and device"
        if func.overloadpacket is aten._to_copy and target is not None:
            crosses = bool(there) != (target == DEVICE)
            if crosses and not (target == DEVICE and kwargs.get("non_blocking")):
                self._wait(func)
        stays = (bool(there) and target is None) or target == DEVICE
        if target == DEVICE:
            kwargs = kwargs | {"device": HOST}
        real_args, real_kwargs = tree_map(_real, (args, kwargs))
        result = func(*real_args, **real_kwargs)
        if kwargs.get("out") is not None:
            return kwargs["out"]
        if any(returned.alias_info and returned.alias_info.is_write for returned in func._schema.returns):
            return args[0]
        return tree_map(lambda v: OnDevice(v) if stays and type(v) is torch.Tensor else v, result)

    def _index(self, func: Any, args: Any) -> None:
        for index in args[1]:
            if index is None:
                continue
            filled = func.overloadpacket is not aten.index and args[2].numel() == 1
            if not isinstance(index, OnDevice) or (index.dtype in (torch.bool, torch.uint8) and not filled):
                self._wait(func)

    def _copy(self, func: Any, args: Any, kwargs: Any) -> None:
        into, source = args[:2]
        non_blocking = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
        crosses = isinstance(into, OnDevice) != isinstance(source, OnDevice) and source.dim() > 0
        if crosses and not (isinstance(into, OnDevice) and non_blocking):
            self._wait(func)


def _real(value: Any) -> Any:
    return value.held if isinstance(value, OnDevice) else value


@contextmanager
def counted() -> Iterator[Waits]:
    """Count the waits of the code inside; tensors move there by `.to(DEVICE)`."""
    with Waits() as waits:
        yield waits
