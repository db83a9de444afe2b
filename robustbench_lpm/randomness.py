"""Random numbers with an address: (run seed, purpose, stream, source), example index, draw, run, position.

The numbers at an address are computed from it by Philox4x32-10, a counter-based generator (Salmon, Moraes, Dror and
Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3). There is no state: a result does not depend on
how the work is split, a resumed loop asks for the same address again, and no two purposes share noise, so that what an
attack has seen is never what it is graded on.

Words, uniform numbers and integers are the same bits on every machine. So are normal numbers: they are made from the
words by additions, multiplications, divisions and square roots of float32, which IEEE 754 defines to the last bit.
On the CPU numpy computes them, two to five times as fast as torch would. A GPU computes its own where there are many:
the pixels of a hundred photographs take half a second on a core.
"""

from __future__ import annotations

import hashlib
import math
import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

RANDOM_NUMBERS = "philox4x32-10"  # named in the configuration of every run: other numbers make another run

# "search" and "objective" are the choices of an attack and of a training objective (random starts, directions);
# "augment" changes training images, "corrupt" those of a test; the others are noise of the model. "replayed" is the
# same at every query of an attack, "frozen" the one draw of a source that is switched off, in the attack and in the
# grading.
Purpose = Literal[
    "attack", "search", "select", "grade", "clean", "frozen", "replayed", "target",
    "train", "validate", "augment", "corrupt", "objective", "own",
]  # fmt: skip

_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], dtype="<u8")
_ROUND_KEYS = np.outer(np.arange(10), [0x9E3779B9, 0xBB67AE85]).astype("<u4")[..., None]
_MASK = 0xFFFFFFFF
_PIECE = 2**13  # blocks of four words at once: they stay in the cache

_AT_ONCE = 2**22  # blocks on a GPU: a gigabyte of words and what is made of them
CPU = torch.device("cpu")

Words = NDArray[np.uint32]
Floats = NDArray[Any]  # float32 (the types of numpy's operators know no single precision)


@dataclass(frozen=True)
class Addresses:
    """The addresses of the random numbers of N rows: one key, and an example, a draw and a run for each row.

    Every method that draws takes the name of a source of randomness, which is part of the key, and the shape of one
    row's numbers; it returns (N, *shape), on the CPU unless it is given a CUDA device. The first numbers of a longer
    row are those of a shorter one.

    Args:
        key: the run's seed, the purpose and the stream (see `of`); with the source they make a key of 64 bits.
        places: the draw (or epoch), the run within a Monte-Carlo average, and the example in the dataset, (3, N).

    Raises ValueError unless all places are in [0, 2^32), the range of a counter.
    """

    key: tuple[int | str, Purpose, str]
    places: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.places.size and not 0 <= self.places.min() <= self.places.max() < 2**32:
            raise ValueError("the example, draw and run of an address are numbers from 0 to 2^32 - 1")

    @classmethod
    def of(
        cls, seed: int | str, indices: ArrayLike, purpose: Purpose, draw: ArrayLike = 0, *, stream: str = ""
    ) -> Addresses:
        """The addresses of examples; draw is one for all or one for each. Streams of one purpose share no numbers."""
        return cls((seed, purpose, stream), np.stack(np.broadcast_arrays(np.asarray(draw, np.int64), 0, indices)))

    def __len__(self) -> int:
        return self.places.shape[1]

    def rows(self, keep: ArrayLike | slice) -> Addresses:
        """Some of the rows, by positions, a mask or a slice."""
        return Addresses(self.key, self.places[:, keep if isinstance(keep, slice) else np.asarray(keep)])

    def draws(self, count: int) -> Addresses:
        """This draw and those that follow it, (count · N) rows, one draw of all rows after the other."""
        places = np.tile(self.places, count)
        places[0] += np.repeat(np.arange(count), len(self))
        return Addresses(self.key, places)

    def runs(self, count: int) -> Addresses:
        """So many runs of each row, (N · count) rows, all runs of a row after the other."""
        places = np.repeat(self.places, count, axis=1)
        places[1] = places[1] * count + np.tile(np.arange(count), len(self))
        return Addresses(self.key, places)

    def uniform(self, source: str, *shape: int, device: torch.device = CPU) -> Tensor:
        """Uniform float32 numbers in [0, 1), multiples of 2^-24; for a CUDA device made there."""
        if device.type == "cuda":
            return numbers_on(device, self.packed(source), shape, uniform_of)
        return self._draw(source, shape, np.float32, 4, _uniform)

    def normal(self, source: str, *shape: int, device: torch.device = CPU) -> Tensor:
        """Standard normal float32 numbers; for a CUDA device made there."""
        if device.type == "cuda":
            return numbers_on(device, self.packed(source), shape, normal_of)
        return self._draw(source, shape, np.float32, 4, _normal)

    def integers(self, source: str, high: int, *shape: int) -> Tensor:
        """Whole int64 numbers in [0, high), high at most 2^63; the bias is below high / 2^64."""
        return self._draw(source, shape, np.int64, 2, lambda words: words.view("<u8") % np.uint64(high))

    def bytes(self, source: str, *shape: int) -> Tensor:
        """Random uint8 bytes."""
        return self._draw(source, shape, np.uint8, 16, lambda words: words.view(np.uint8))

    def signs(self, source: str, *shape: int) -> Tensor:
        """Float32 numbers that are 1 or -1 (Rademacher)."""
        packed = self.bytes(source, -(-math.prod(shape) // 8)).numpy()
        bits = np.unpackbits(packed, axis=1, count=math.prod(shape), bitorder="little")
        return torch.from_numpy(bits * np.float32(2) - 1).reshape(len(self), *shape)

    def packed(self, source: str) -> Tensor:
        """The addresses themselves, (N, 4) int64; `normal_at` draws there once a shape is known."""
        key = np.uint64(_hash(*self.key, source)).astype(np.int64)  # the same 64 bits
        return torch.from_numpy(np.concatenate([np.full((1, len(self)), key), self.places]).T.copy())

    def _draw(
        self, source: str, shape: Sequence[int], dtype: Any, per_block: int, made_of: Callable[[Words], NDArray[Any]]
    ) -> Tensor:
        return _numbers(_hash(*self.key, source), self.places, shape, dtype, per_block, made_of)


def normal_at(packed: Tensor, *shape: int) -> Tensor:
    """The numbers (N, *shape) of `Addresses.normal` at addresses (N, 4) from `Addresses.packed`, on their device."""
    if packed.is_cuda:
        return numbers_on(packed.device, packed, shape, normal_of)
    rows = packed.cpu().numpy()
    found = torch.empty(len(rows), *shape)
    for key in np.unique(rows[:, 0]):  # all rows of a query have one
        chosen = rows[:, 0] == key
        places = rows[chosen, 1:].T
        found[torch.from_numpy(chosen)] = _numbers(int(key.view(np.uint64)), places, shape, np.float32, 4, _normal)
    return found


def _numbers(
    key: int, places: NDArray[np.int64], shape: Sequence[int], dtype: Any, per_block: int,
    made_of: Callable[[Words], NDArray[Any]],
) -> Tensor:  # fmt: skip
    """The numbers (N, *shape) under a key of 64 bits at places (3, N), of blocks that hold `per_block` of them."""
    rows, count = places.shape[1], math.prod(shape)
    blocks = -(-count // per_block)
    numbers = np.empty((rows, blocks, per_block), dtype)
    rows_at_once = max(1, _PIECE // max(1, blocks))
    for row, block in product(range(0, rows, rows_at_once), range(0, blocks, _PIECE)):
        piece = numbers[row : row + rows_at_once, block : block + _PIECE]
        counters = np.empty((4, *piece.shape[:2]), dtype="<u4")
        counters[0] = block + np.arange(piece.shape[1])
        counters[1:] = places[:, row : row + rows_at_once, None]
        piece[...] = made_of(philox(counters.reshape(4, -1), key)).reshape(piece.shape)
    flat = numbers.reshape(rows, blocks * per_block)[:, :count]
    return torch.from_numpy(np.ascontiguousarray(flat)).reshape(rows, *shape)


def philox(counters: Words, key: int) -> Words:
    """The words (n, 4) of Philox4x32-10 at counters (4, n) under a key of 64 bits, whose low word comes first."""
    keys = np.array([[key & 0xFFFFFFFF], [key >> 32]], dtype="<u4") + _ROUND_KEYS
    even, odd = counters[::2], counters[1::2]
    for round_key in keys:
        halves = np.multiply(even, _MULTIPLIERS, dtype="<u8").view("<u4")  # of the products, the low ones first
        even = halves[::-1, 1::2] ^ odd
        even ^= round_key
        odd = halves[::-1, ::2]
    words = np.empty((counters.shape[1], 2, 2), dtype="<u4")
    words[..., 0], words[..., 1] = even.T, odd.T
    return words.reshape(-1, 4)


def _uniform(words: Words) -> NDArray[np.float32]:
    return (words >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)


# Rational approximations of the inverse of the normal distribution function (Wichura 1988, algorithm AS 241, PPND7):
# near the middle, and in the tails. 32 bits reach no further.
_MIDDLE = (59.109374720, 159.29113202, 50.434271938, 3.3871327179), (67.187563600, 78.757757664, 17.895169469, 1.0)
_TAIL = (0.17023821103, 1.3067284816, 2.7568153900, 1.4234372777), (0.12021132975, 0.73700164250, 1.0)


def _normal(words: Words) -> Floats:
    """The quantile 1/2 + (s + 1/2) / 2^32 of the normal distribution, s the word with a sign."""
    signed = words.view("<i4")
    centred = signed.astype(np.float32)
    centred += 0.5
    centred *= 2**-32
    numbers = centred * _ratio(_MIDDLE, 0.180625 - centred * centred)
    tails = np.nonzero(np.abs(centred) > 0.425)
    beyond = signed[tails]
    # Counted from the nearer end, where float32 distinguishes neighbours.
    share = ((beyond ^ (beyond >> 31) ^ 0x7FFFFFFF).astype(np.float32) + 0.5) * 2**-32
    numbers[tails] = np.copysign(_ratio(_TAIL, np.sqrt(-_log(share)) - 1.6), beyond.astype(np.float32))
    return numbers


def _ratio(coefficients: Sequence[Sequence[float]], x: Any) -> Any:
    above, below = coefficients
    quotient = _polynomial(above, x)
    quotient /= _polynomial(below, x)
    return quotient


def _polynomial(coefficients: Sequence[float], x: Any) -> Any:
    """The coefficient of the highest power comes first."""
    value = x * coefficients[0]
    value += coefficients[1]
    for coefficient in coefficients[2:]:  # in place, for speed
        value *= x
        value += coefficient
    return value


def _log(x: Floats) -> Floats:
    """The natural logarithm, from operations that every machine rounds alike."""
    mantissa, exponent = np.frexp(x)  # x = mantissa · 2^exponent
    return _log_of(mantissa, exponent.astype(np.float32))


def _log_of(mantissa: Any, exponent: Any) -> Any:
    t = (mantissa - 0.70710678) / (mantissa + 0.70710678)  # log(mantissa) = 2 artanh(t) - log(2) / 2
    logarithm = t * _polynomial([2 / 9, 2 / 7, 2 / 5, 2 / 3, 2.0], t * t)
    logarithm += (exponent - 0.5) * 0.69314718
    return logarithm


def numbers_on(
    device: torch.device, packed: Tensor, shape: Sequence[int], made_of: Callable[[Tensor], Tensor]
) -> Tensor:
    """The same numbers (N, *shape), float32, at addresses (N, 4) from `Addresses.packed`, made by torch on a device.

    made_of: `uniform_of` or `normal_of`.
    """
    count = math.prod(shape)
    if device.type == "cuda" and not packed.is_cuda:
        packed = packed.pin_memory().to(device, non_blocking=True)  # a copy of other memory waits
    blocks = -(-count // 4)
    numbers = torch.empty(len(packed), count, device=device)
    rows_at_once = max(1, _AT_ONCE // max(1, blocks))
    for row in range(0, len(packed), rows_at_once):
        keys, *places = packed[row : row + rows_at_once, :, None].unbind(1)
        words = torch.stack(_philox_on([torch.arange(blocks, device=device)[None], *places], keys), dim=-1)
        numbers[row : row + rows_at_once] = made_of(words).flatten(1)[:, :count]
    return numbers.reshape(len(packed), *shape)


def _philox_on(counters: list[Tensor], keys: Tensor) -> list[Tensor]:
    """`philox` in int64, whose products keep their lower 64 bits: the four words, each (N, n), for keys (N, 1)."""
    low, high = keys & _MASK, (keys >> 32) & _MASK
    for first, second in _ROUND_KEYS[..., 0].tolist():
        products = [counters[place] * int(_MULTIPLIERS[place // 2, 0]) for place in (0, 2)]
        upper, lower = [(product >> 32) & _MASK for product in products], [product & _MASK for product in products]
        counters = [
            upper[1] ^ counters[1] ^ ((low + first) & _MASK), lower[1],
            upper[0] ^ counters[3] ^ ((high + second) & _MASK), lower[0],
        ]  # fmt: skip
    return list(torch.broadcast_tensors(*counters))


def uniform_of(words: Tensor) -> Tensor:
    """`_uniform` of int64 words."""
    return (words >> 8).float() * 2**-24


def normal_of(words: Tensor) -> Tensor:
    """`_normal` of int64 words."""
    signed = torch.where(words < 2**31, words, words - 2**32)
    centred = (signed.float() + 0.5) * 2**-32
    share = ((signed ^ (signed >> 31) ^ 0x7FFFFFFF).float() + 0.5) * 2**-32
    mantissa, exponent = torch.frexp(share)
    root = (
        (-_log_of(mantissa, exponent.float())).double().sqrt().float()
    )  # torch's of float32 is not always rounded right
    tails = _ratio(_TAIL, root - 1.6)
    middle = centred * _ratio(_MIDDLE, 0.180625 - centred * centred)
    return torch.where(centred.abs() > 0.425, torch.copysign(tails, centred), middle)


def _hash(*parts: object) -> int:
    """64 bits that depend on every part and on their order."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def key(*parts: object) -> int:
    """A 63-bit seed for a stateful generator that depends on every part and on their order."""
    return _hash(*parts) >> 1


def generator(*parts: object) -> torch.Generator:
    """A CPU generator keyed by the parts, for what draws datasets and orders: their bytes are published."""
    return torch.Generator().manual_seed(key(*parts))


@contextmanager
def isolated_globals(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, numpy and random for code that draws from them, and restore them after."""
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    seed_globals(seed)
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)


def seed_globals(seed: int) -> None:
    """Seed the global generators of torch (those of all devices), numpy and random."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def states() -> dict[str, bytes]:
    """The states of the global generators, by library."""
    found = {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": pickle.dumps(np.random.get_state()),
        "python": pickle.dumps(random.getstate()),
    }
    if torch.cuda.is_available():
        found["cuda"] = b"".join(state.numpy().tobytes() for state in torch.cuda.get_rng_state_all())
    return found
