"""The table and the figure of accuracy under transformations."""

from __future__ import annotations

from io import BytesIO, StringIO
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from robustbench_lpm.reporting import curves, invariance

NAN = float("nan")
VALUES = {"rotate": (0.0, 90.0, 180.0), "scale": (0.5, 1.0, 2.0), "translate": (-0.5, 0.0, 0.5)}


def table(models: tuple[str, ...] = ("ramlpm", "cnn"), *, ms: tuple[int, ...] = (1,), interval: bool = True,
          kinds: tuple[str, ...] = tuple(VALUES)) -> pd.DataFrame:  # fmt: skip
    rows = [
        {
            "model": model, "mc": m, "transformation": kind, "value": value,
            "accuracy": 0.9 - 0.2 * place - 0.1 * (model == "cnn"),
            "accuracy_low": 0.3 if interval else NAN, "accuracy_high": 0.95 if interval else NAN,
            "images": 300, "draws": 4,
        }
        for model in models
        for m in (ms if model != "cnn" else (1,))
        for kind in kinds
        for place, value in enumerate(VALUES[kind])
    ]  # fmt: skip
    return pd.DataFrame(rows)


def printed(given: pd.DataFrame) -> str:
    out = StringIO()
    invariance.terminal_table(given, Console(file=out, width=80))
    return out.getvalue()


def test_the_terminal_tells_how_it_is_at_worst_and_on_average() -> None:
    rows = printed(table()).splitlines()
    turned = next(line for line in rows if line.startswith("ramlpm"))
    assert turned.split() == ["ramlpm", "1", "turned", "90.0", "50.0", "[30.0,", "95.0]", "180°", "70.0"]
    scaled = next(line for line in rows if "scaled" in line)
    assert scaled.split() == ["scaled", "70.0", "50.0", "[30.0,", "95.0]", "2", "70.0"]
    assert any(line.startswith("cnn") for line in rows)


def test_without_the_image_as_it_is_there_is_a_dash() -> None:
    given = table(("ramlpm",), kinds=("rotate",))
    assert "–" in printed(given[given["value"] != 0])


@pytest.mark.parametrize("given", [
    table(interval=False, kinds=("scale",)), table(("_model", "$x", *(f"model-{i}" for i in range(9)))),
    table(("ramlpm",)).query("value == 1"),
], ids=["one panel without intervals", "many with odd names", "one point"])  # fmt: skip
def test_the_figure_is_drawn(given: pd.DataFrame) -> None:
    found = invariance.invariance_figure(given, "digits & <300> images")
    pixels = np.asarray(Image.open(BytesIO(found["summary.png"])).convert("L"))
    assert pixels.std() > 5
    assert pixels.shape[1] > 500 * given["transformation"].nunique()
    text = "".join(ElementTree.fromstring(found["summary.svg"]).itertext())
    assert "digits & <300> images" in text
    assert all(model in text for model in given["model"].unique())


def test_the_figure_is_the_same_every_time_and_names_m_where_a_model_has_several() -> None:
    found, again = (invariance.invariance_figure(table(ms=(1, 5)), "digits") for _ in range(2))
    assert found == again
    text = "".join(ElementTree.fromstring(found["summary.svg"]).itertext())
    assert "ramlpm, M = 5" in text
    assert "cnn, M" not in text


def test_long_and_harmful_names_are_shortened_and_made_plain() -> None:
    assert curves.shortened("a" * 80) == "a" * 22 + "…" + "a" * 23
    assert "\x1b" not in curves.shortened("a\x1b[31m")
