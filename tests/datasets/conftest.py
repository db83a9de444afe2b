"""Small datasets, written in the formats of the real ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.datasets.image_samples import noise_image


@pytest.fixture
def class_tree(tmp_path: Path) -> Callable[..., Path]:
    """Writes `count` PNG files of unequal shapes into each class folder and returns the root."""

    def write(names: Sequence[str], count: int = 2, root: Path = tmp_path / "images") -> Path:
        for label, name in enumerate(names):
            (root / name).mkdir(parents=True)
            for number in range(count):
                noise_image(label, 8 + label, 6 + number).save(root / name / f"{name}_{number}.png")
        return root

    return write


@pytest.fixture(autouse=True)
def _no_data_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test finds the datasets of whoever runs it."""
    monkeypatch.setenv("LPMBENCH_DATA", str(tmp_path / "nothing-here"))
