"""Commands run in a directory of their own. Reports are written without plots, unless a test asks for `plotted`."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def plotted() -> None:
    """The plots of a report, which take longer than what most of these tests ask about, are drawn."""


@pytest.fixture(autouse=True)
def _unplotted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "plotted" not in request.fixturenames:
        for name in ("accuracy_plots", "query_plots"):
            monkeypatch.setattr(f"robustbench_lpm.reporting.plots.{name}", lambda *_: [])


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
