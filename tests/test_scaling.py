"""The simulation of many workers against answers that can be derived."""

from __future__ import annotations

import pytest

from benchmarks.scaling import simulate


@pytest.mark.parametrize(
    ("blocks", "workers", "handling", "expected"),
    [
        ([2.0] * 6, 1, 0.0, 12.0),
        ([2.0] * 6, 3, 0.0, 4.0),
        ([2.0] * 6, 100, 0.0, 2.0),  # more workers than blocks are of no use
        ([3.0, 1.0, 1.0, 1.0], 2, 0.0, 3.0),  # the short ones go to whoever is free
        ([1.0] * 4, 4, 1.0, 5.0),  # one second for each to be handed out, then the last one is computed
        ([0.0] * 10, 5, 0.5, 5.0),  # the asking process is the limit
    ],
)
def test_simulated_seconds(blocks: list[float], workers: int, handling: float, expected: float) -> None:
    assert simulate(blocks, workers, handling) == pytest.approx(expected)
