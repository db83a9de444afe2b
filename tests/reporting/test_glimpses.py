"""The tables and the figure of a study of glimpses."""

from __future__ import annotations

from io import BytesIO, StringIO

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from robustbench_lpm.reporting import glimpses

NAN = float("nan")


def accuracies(mcs: tuple[int, ...] = (1, 2), *, anew: bool = True, interval: bool = True) -> pd.DataFrame:
    rows = []
    for mc in mcs:
        for t in (1, 2, 3):
            row = {"mc": mc, "glimpses": t, "glimpses_per_decision": mc * t, "forwards_per_decision": mc}
            for kind, value in {"clean": 0.9, "attacked": 0.4 + t / 100, "adaptive": 0.3}.items():
                known = kind != "adaptive" or (anew and mc == 1)
                row |= {
                    f"{kind}_accuracy": value if known else NAN,
                    f"{kind}_accuracy_low": value - 0.1 if known and interval else NAN,
                    f"{kind}_accuracy_high": value + 0.1 if known and interval else NAN,
                }
            rows.append(row)
    return pd.DataFrame(rows).sort_values(["glimpses_per_decision", "mc"], ignore_index=True)


def fixations(restlessness: float = 0.1) -> pd.DataFrame:
    columns = {f"{name}{end}": [value] * 2 for name, value in (("shift", 0.25), ("restlessness", restlessness))
               for end in ("", "_low", "_high")}  # fmt: skip
    return pd.DataFrame({"glimpse": [2, 3]} | columns)


def printed(*tables: pd.DataFrame) -> str:
    out = StringIO()
    glimpses.terminal_tables(*tables, Console(file=out, width=100))
    return out.getvalue()


def test_the_terminal_shows_every_row_and_every_kind() -> None:
    shown = printed(accuracies(), fixations())
    assert "Attacked anew" in shown
    assert "42.0 [32.0, 52.0]" in shown
    assert "At equal compute" in shown
    assert "0.250 [0.250, 0.250]" in shown
    assert "2.5" in shown


def test_what_was_not_asked_for_is_not_shown() -> None:
    shown = printed(accuracies((1,), anew=False, interval=False), fixations()[:0])
    assert "anew" not in shown
    assert "equal compute" not in shown
    assert "fixation" not in shown
    assert "[" not in shown


@pytest.mark.parametrize("natural", [0.0, NAN])
def test_where_noise_moves_nothing_there_is_no_ratio(natural: float) -> None:
    assert "–" in printed(accuracies(), fixations(natural))


@pytest.mark.parametrize("empty", [True, False])
def test_the_figure_is_the_same_every_time(empty: bool) -> None:
    tables = accuracies(), fixations()[:0] if empty else fixations()
    found = glimpses.glimpse_figure(*tables, "a $model_ under pgd")
    assert found == glimpses.glimpse_figure(*tables, "a $model_ under pgd")
    pixels = np.asarray(Image.open(BytesIO(found["png"])).convert("L"))
    assert pixels.shape[1] > (1000 if empty else 1600)
    assert b"M = 2" in found["svg"]
    assert (b"displaced" in found["svg"]) is not empty
