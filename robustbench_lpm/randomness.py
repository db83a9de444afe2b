"""Random numbers with an address: (run seed, example index, purpose, draw).

Every number that an evaluation draws comes from a generator keyed this way, so that a result does not depend on how
the work is split, and so that no two purposes share noise: what an attack has seen is never what it is graded on.
"""

from __future__ import annotations

import hashlib
import pickle
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch

# "search" feeds the attack's own choices (random starts, directions); the others feed the model's noise.
# "frozen" is the one draw of a source that is switched off, in the attack and in the grading alike.
Purpose = Literal["attack", "search", "select", "grade", "clean", "validate", "frozen"]


def key(*parts: object) -> int:
    """A 63-bit seed that depends on every part and on their order."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(*parts: object) -> torch.Generator:
    """A CPU generator keyed by the parts (CPU, so that every device sees the same numbers)."""
    return torch.Generator().manual_seed(key(*parts))


def generators(seed: int | str, indices: Sequence[int], purpose: Purpose, draw: int = 0) -> list[torch.Generator]:
    """One CPU generator per example, keyed by (seed, example index, purpose, draw)."""
    return [generator(seed, index, purpose, draw) for index in indices]


@contextmanager
def isolated_globals(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, numpy and random for code that knows no others, and put them back.

    Other libraries draw from (and some reseed) the global generators; neither the caller nor a model with its own
    generator should notice.
    """
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)


def states() -> dict[str, bytes]:
    """The states of the global generators, by whose they are."""
    found = {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": pickle.dumps(np.random.get_state()),
        "python": pickle.dumps(random.getstate()),
    }
    if torch.cuda.is_available():
        found["cuda"] = b"".join(state.numpy().tobytes() for state in torch.cuda.get_rng_state_all())
    return found
