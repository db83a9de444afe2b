"""The table and the figure of an inference sweep."""

from __future__ import annotations

from io import BytesIO, StringIO
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from robustbench_lpm.reporting import sweep

NAN = float("nan")


def table(
    ms: tuple[int, ...] = (1, 5), *, interval: bool = True, glimpses: tuple[int, ...] = (1, 2, 4)
) -> pd.DataFrame:
    rows = [
        {
            "model": "m", "mc": m, "glimpses": t, "accuracy": 0.8 + t / 100 + m / 1000,
            "accuracy_low": 0.75 if interval else NAN, "accuracy_high": 0.9 if interval else NAN,
            "images": 1200, "draws": 20 // m,
        }
        for m in ms
        for t in glimpses
    ]  # fmt: skip
    return pd.DataFrame(rows)


def printed(given: pd.DataFrame, width: int = 80) -> str:
    out = StringIO()
    sweep.terminal_table(given, Console(file=out, width=width))
    return out.getvalue()


def test_the_terminal_shows_every_cell_and_the_draws() -> None:
    shown = printed(table())
    assert "84.5 [75.0, 90.0]" in shown  # t = 4, M = 5
    assert "81.1 [75.0, 90.0]" in shown  # t = 1, M = 1
    assert "1,200 image(s); draws: 20 at M = 1, 4 at M = 5" in shown


def test_many_columns_keep_within_the_terminal() -> None:
    shown = printed(table((1, 2, 5, 10, 20)))
    assert "…" not in shown
    assert shown.count("[75.0, 90.0]") == 3  # of M = 1 alone
    assert "86.0" in shown  # t = 4, M = 20


def test_few_images_have_no_intervals() -> None:
    assert "[" not in printed(table(interval=False))


@pytest.mark.parametrize("given", [
    table(tuple(range(1, 12))), table(interval=False, glimpses=(3,)),
    table((1,)).assign(accuracy=0.0, accuracy_low=0.0),
], ids=["many", "one t without an interval", "all wrong"])  # fmt: skip
def test_the_figure_is_drawn(given: pd.DataFrame) -> None:
    found = sweep.sweep_figure(given, "a $model_ on <digits>", 2)
    pixels = np.asarray(Image.open(BytesIO(found["summary.png"])).convert("L"))
    assert pixels.shape[1] > 1200
    assert pixels.std() > 5
    text = "".join(ElementTree.fromstring(found["summary.svg"]).itertext())
    assert "a $model_ on <digits>" in text
    assert all(f"M = {m}" in text for m in given["mc"].unique())


def test_the_figure_is_the_same_every_time_and_marks_the_card_s_glimpses_in_the_sweep() -> None:
    found, again, elsewhere = (sweep.sweep_figure(table(), "title", usual) for usual in (2, 2, 9))
    assert found == again
    assert b"the card" in found["summary.svg"]
    assert b"the card" not in elsewhere["summary.svg"]
