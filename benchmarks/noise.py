"""What random numbers cost: by address, and from a generator for each example as before version 0.2.

python -m benchmarks.noise
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from robustbench_lpm.randomness import Addresses, generator

SHAPES = ((12,), (3, 32, 32), (3, 224, 224))  # of one example's numbers: glimpses, and noise on pixels
BATCH = 64


def by_generators(kind: str, shape: tuple[int, ...]) -> Tensor:
    """The numbers (B, *shape) of one generator for each example."""
    draw = torch.rand if kind == "uniform" else torch.randn
    return torch.stack([draw(shape, generator=generator(0, index, "attack", 0)) for index in range(BATCH)])


def by_addresses(kind: str, shape: tuple[int, ...]) -> Tensor:
    """The same number of numbers by address."""
    addresses = Addresses.of(0, range(BATCH), "attack")
    return addresses.uniform("noise", *shape) if kind == "uniform" else addresses.normal("noise", *shape)


def fastest(work: Callable[[], Tensor]) -> float:
    """Processor seconds of the fastest call within about a second."""
    found: list[float] = []
    end = time.perf_counter() + 1
    while time.perf_counter() < end or len(found) < 3:
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def main() -> None:
    """Print a table of microseconds a call."""
    torch.set_num_threads(1)
    print(f"{BATCH} examples, one thread: microseconds of the processor a call")
    for shape in SHAPES:
        for kind in ("uniform", "normal"):
            before, now = (fastest(lambda: way(kind, shape)) for way in (by_generators, by_addresses))  # noqa: B023
            print(f"{kind:8} {shape!s:14} generators {before * 1e6:9.0f}   addresses {now * 1e6:9.0f}")


if __name__ == "__main__":
    main()
