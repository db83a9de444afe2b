"""The tables and figures of the studies: sweep, invariance, certify, corruptions, spatial, glimpses."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from io import BytesIO, StringIO
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from robustbench_lpm.reporting import plots
from robustbench_lpm.reporting.studies import certify, corruptions, glimpses, invariance, spatial, sweep

NAN = float("nan")
VALUES = {"rotate": (0.0, 90.0, 180.0), "scale": (0.5, 1.0, 2.0), "translate": (-0.5, 0.0, 0.5)}
LINES = {"draws": 4, "images": 300}


def swept(ms: tuple[int, ...] = (1, 5), *, low: float = 0.75, glimpses: tuple[int, ...] = (1, 2, 4)) -> pd.DataFrame:
    return pd.DataFrame([
        {"model": "m", "mc": m, "glimpses": t, "accuracy": 0.8 + t / 100 + m / 1000, "accuracy_low": low,
         "accuracy_high": low + 0.15, "images": 1200, "draws": 20 // m}
        for m in ms for t in glimpses
    ])  # fmt: skip


def warped(models: tuple[str, ...] = ("ramlpm", "cnn"), ms: tuple[int, ...] = (1,), *, low: float = 0.3,
           kinds: tuple[str, ...] = tuple(VALUES)) -> pd.DataFrame:  # fmt: skip
    return pd.DataFrame([
        {"model": model, "mc": m, "transformation": kind, "value": value, "accuracy_low": low,
         "accuracy": 0.9 - 0.2 * place - 0.1 * (model == "cnn"), "accuracy_high": low + 0.65} | LINES
        for model in models for m in (ms if model != "cnn" else (1,))
        for kind in kinds for place, value in enumerate(VALUES[kind])
    ])  # fmt: skip


def certified(models: tuple[str, ...] = ("cnn",), radii: tuple[float, ...] = (0.5, 0.2, 0.3, 0.0)) -> pd.DataFrame:
    """Four images a model: the first two right, the third wrong, the last without an answer."""
    return pd.DataFrame([
        {"model": model, "index": index, "label": 1, "natural": 1.0, "radius": radius, "sigma": 0.25, "alpha": 0.001,
         "prediction": (1, 1, 2, -1)[index], "samples": 1000}
        for model in models for index, radius in enumerate(radii)
    ])  # fmt: skip


def corrupted(models: tuple[str, ...] = ("ram", "cnn"), ms: tuple[int, ...] = (1,)) -> pd.DataFrame:
    """The second model errs half as often in fog, and never in snow."""
    cells = [("none", 0), ("fog", 1), ("fog", 5), ("snow", 1), ("snow", 5)]
    return pd.DataFrame([
        {"model": model, "mc": m, "corruption": kind, "severity": severity, "images": 40, "accuracy_low": 0.1,
         "accuracy": 1 - severity / 10 / (1 + number if kind == "fog" else 1 - number or math.inf),
         "accuracy_high": 1.0}
        for number, model in enumerate(models) for m in ms for kind, severity in cells
    ])  # fmt: skip


def searched(models: tuple[str, ...] = ("ram", "cnn"), low: float = 0.1) -> pd.DataFrame:
    return pd.DataFrame([
        {"model": model, "mc": 1, "searched": name, "words": words, "images": 40, "accuracy": 0.9 - 0.1 * place,
         "accuracy_low": low, "accuracy_high": low + 0.85}
        for model in models for place, (name, words) in enumerate([("none", "as it is"), ("grid", "worst of both")])
    ])  # fmt: skip


def accuracies(ms: tuple[int, ...] = (1, 2), *, anew: bool = True, width: float = 0.1) -> pd.DataFrame:
    rows = []
    for m in ms:
        for t in (1, 2, 3):
            row = {"mc": m, "glimpses": t, "glimpses_per_decision": m * t, "forwards_per_decision": m}
            for kind, value in {"clean": 0.9, "attacked": 0.4 + t / 100, "adaptive": 0.3}.items():
                known = value if kind != "adaptive" or (anew and m == 1) else NAN
                row |= {f"{kind}_accuracy{end}": known + shift
                        for end, shift in (("", 0), ("_low", -width), ("_high", width))}  # fmt: skip
            rows.append(row)
    return pd.DataFrame(rows).sort_values(["glimpses_per_decision", "mc"], ignore_index=True)


def fixations(restlessness: float = 0.1) -> pd.DataFrame:
    columns = {f"{name}{end}": [value] * 2 for name, value in (("shift", 0.25), ("restlessness", restlessness))
               for end in ("", "_low", "_high")}  # fmt: skip
    return pd.DataFrame({"glimpse": [2, 3]} | columns)


def printed(show: Callable[..., None], *tables: pd.DataFrame, width: int = 80) -> str:
    out = StringIO()
    show(*tables, Console(file=out, width=width))
    return out.getvalue()


def test_a_sweep_shows_every_cell_and_the_draws() -> None:
    shown = printed(sweep.sweep_table, swept())
    for text in ("84.5 [75.0, 90.0]", "81.1 [75.0, 90.0]", "1,200 image(s); draws: 20 at M = 1, 4 at M = 5"):
        assert text in shown
    assert "[" not in printed(sweep.sweep_table, swept(low=NAN))


def test_many_columns_keep_within_the_terminal() -> None:
    shown = printed(sweep.sweep_table, swept((1, 2, 5, 10, 20)))
    assert "…" not in shown
    assert shown.count("[75.0, 90.0]") == 3  # of M = 1 alone
    assert "86.0" in shown  # t = 4, M = 20


def test_invariance_tells_how_it_is_at_worst_and_on_average() -> None:
    rows = printed(invariance.invariance_table, warped()).splitlines()
    turned = next(line for line in rows if line.startswith("ramlpm"))
    assert turned.split() == ["ramlpm", "1", "turned", "90.0", "50.0", "[44.4,", "55.6]", "180°", "70.0"]
    scaled = next(line for line in rows if "scaled" in line)
    assert scaled.split() == ["scaled", "70.0", "50.0", "[44.4,", "55.6]", "2", "70.0"]
    assert any(line.startswith("cnn") for line in rows)
    given = warped(("ramlpm",), kinds=("rotate",))
    assert "–" in printed(
        invariance.invariance_table, given[given["value"] != 0]
    )  # the image as it is was not asked for


def test_the_lowest_of_a_curve_owes_nothing_to_luck() -> None:
    """All angles are alike and 0.6; each half of the images has a lowest of its own by chance."""
    curves = np.random.default_rng(0).binomial(50, 0.6, (400, 2, 24)) / 50  # curves, halves of 50 images, angles
    found = []
    for first, second in curves:
        table = pd.DataFrame({
            "model": "m", "mc": 1, "transformation": "rotate", "value": 15.0 * np.arange(24), "images": 100,
            "accuracy": (first + second) / 2, "accuracy_first_half": first, "accuracy_second_half": second,
        })  # fmt: skip
        found.append(float(invariance._lowest(table, "°")[0].split()[0]) / 100)
    error = np.std(found) / len(found) ** 0.5
    assert abs(np.mean(found) - 0.6) < 4 * error
    assert curves.mean(axis=1).min(axis=-1).mean() < 0.6 - 20 * error


def test_certificates_count_what_is_right_as_far_as_it_is_certified() -> None:
    rows = {
        line.rpartition("  ")[0].strip(): line.split()[-1]
        for line in printed(certify.certify_table, certified()).splitlines()
    }
    expected = {"without smoothing": "100.0", "abstains": "25.0", "radius 0": "50.0", "radius 0.125": "50.0"}
    expected |= {"radius 0.25": "25.0", "radius 0.5": "25.0"}  # the radius itself counts
    assert expected.items() <= rows.items()
    assert "at most radius 0.616" in printed(certify.certify_table, certified(), width=100)  # 0.25 Φ⁻¹(0.001^(1/1000))


def test_the_curve_of_certificates_has_a_step_at_each_radius(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    drawn = []
    monkeypatch.setattr(Axes, "step", lambda self, x, y, **style: drawn.append((x, y)) or self.plot(x, y))
    certify.certify_figure(certified(), "title")
    ((radii, shares),) = drawn
    assert (radii[:-1], shares) == ([0.0, 0.2, 0.5], [0.5, 0.5, 0.25, 0.0])


def test_corruptions_show_their_means_and_relate_errors() -> None:
    lines = printed(partial(corruptions.corruptions_table, reference="cnn"), corrupted(), width=120).splitlines()
    assert ["fog", "90.0", "50.0", "70.0"] in [line.split() for line in lines]
    ram, cnn = ([line for line in lines if line.startswith(model)][-1].split() for model in ("ram", "cnn"))
    assert ram[:5] == ["ram", "1", "100.0", "[10.0,", "100.0]"]
    assert (ram[5], cnn[5]) == ("70.0", "92.5")
    assert (ram[-1], cnn[-1]) == ("200.0", "100.0")  # in fog alone: the reference makes no error in snow
    assert "over the 1 corruptions where it errs" in " ".join(" ".join(lines).split())
    assert "mCE" not in printed(corruptions.corruptions_table, corrupted())


def test_spatial_shows_a_row_for_each_search() -> None:
    lines = [line.split() for line in printed(spatial.spatial_table, searched()).splitlines()]
    assert ["worst", "of", "both", *("80.0", "[10.0,", "95.0]") * 2] in lines
    assert ["as", "it", "is", *["90.0"] * 3] in [
        line.split() for line in printed(spatial.spatial_table, searched(("a", "b", "c"))).splitlines()
    ]


def test_glimpses_show_every_row_and_what_was_asked_for_alone() -> None:
    shown = printed(glimpses.glimpse_tables, accuracies(), fixations(), width=100)
    for text in ("Attacked anew", "42.0 [32.0, 52.0]", "At equal compute", "0.250 [0.250, 0.250]", "2.5"):
        assert text in shown
    less = printed(glimpses.glimpse_tables, accuracies((1,), anew=False, width=NAN), fixations()[:0], width=100)
    for text in ("anew", "equal compute", "fixation", "["):
        assert text not in less


@pytest.mark.parametrize("natural", [0.0, NAN])
def test_where_noise_moves_nothing_there_is_no_ratio(natural: float) -> None:
    assert "–" in printed(glimpses.glimpse_tables, accuracies(), fixations(natural), width=100)


def swept_figure(table: pd.DataFrame) -> dict[str, bytes]:
    return sweep.sweep_figure(table, "a $model_ & <digits>", 2)


def warped_figure(table: pd.DataFrame) -> dict[str, bytes]:
    return invariance.invariance_figure(table, "a $model_ & <digits>")


def certified_figure(table: pd.DataFrame) -> dict[str, bytes]:
    return certify.certify_figure(table, "a $model_ & <digits>")


def corrupted_figure(table: pd.DataFrame) -> dict[str, bytes]:
    kinds = [kind for kind in dict.fromkeys(table["corruption"]) if kind != "none"]
    pictures = np.random.default_rng(0).random((len(kinds), 2, 3, 8, 8), dtype=np.float32)
    figures = corruptions.corruptions_figures(table, pictures, kinds, (1, 5), "a $model_ & <digits>")
    assert Image.open(BytesIO(figures.pop("images.png"))).height > 200 * len(kinds)
    return figures


def searched_figure(table: pd.DataFrame) -> dict[str, bytes]:
    return spatial.spatial_figure(table, "a $model_ & <digits>")


def glimpses_figure(table: pd.DataFrame) -> dict[str, bytes]:
    return glimpses.glimpse_figure(table, fixations()[: 2 * (table["mc"].max() > 1)], "a $model_ & <digits>")


FIGURES: list[tuple[Any, pd.DataFrame, list[str]]] = [
    (swept_figure, swept(), ["M = 1", "M = 5", "the card's T"]),
    (swept_figure, swept(tuple(range(1, 12)), low=NAN), ["M = 11"]),
    (swept_figure, swept((1,), glimpses=(3,)).assign(accuracy=0.0, accuracy_low=0.0), ["M = 1"]),
    (warped_figure, warped(ms=(1, 5)), ["ramlpm, M = 5", "cnn"]),
    (warped_figure, warped(("_model", "$x", *(f"model-{i}" for i in range(9))), low=NAN, kinds=("scale",)), ["_model"]),
    (warped_figure, warped(("ramlpm",)).query("value == 1"), ["ramlpm"]),
    (certified_figure, certified(("cnn", "_model")), ["cnn", "_model", "sigma 0.25"]),
    (certified_figure, certified().assign(prediction=-1, radius=0.0), ["cnn"]),
    (corrupted_figure, corrupted(("_model", "cnn"), (1, 5)), ["_model, M = 5", "cnn, M = 1", "fog", "snow"]),
    (corrupted_figure, corrupted(("cnn",)).query("corruption != 'snow'"), ["cnn", "fog"]),
    (searched_figure, searched(("_model", "cnn")), ["_model", "as it is", "worst of both"]),
    (searched_figure, searched(low=NAN).assign(accuracy=1.0), ["ram"]),
    (glimpses_figure, accuracies(), ["M = 2", "How far the next fixation is displaced"]),
    (glimpses_figure, accuracies((1,)), ["attacked anew for each number of glimpses"]),
]


@pytest.mark.parametrize(("draw", "given", "texts"), FIGURES)
def test_a_figure_is_drawn_with_its_names(draw: Any, given: pd.DataFrame, texts: list[str]) -> None:
    pictures = {name.rpartition(".")[2]: content for name, content in draw(given).items()}
    pixels = np.asarray(Image.open(BytesIO(pictures["png"])).convert("L"))
    assert pixels.std() > 5
    shown = "".join(ElementTree.fromstring(pictures["svg"]).itertext())
    for text in ("a $model_ & <digits>", *texts):
        assert text in shown


def test_the_same_study_gives_the_same_bytes_and_names_m_only_where_there_are_several() -> None:
    assert warped_figure(warped(ms=(1, 5))) == warped_figure(warped(ms=(1, 5)))
    assert b"cnn, M" not in warped_figure(warped(ms=(1, 5)))["summary.svg"]
    assert b"the card" not in sweep.sweep_figure(swept(), "title", 9)["summary.svg"]


def test_long_and_harmful_names_are_shortened_and_made_plain() -> None:
    assert plots.shortened("a" * 80) == "a" * 22 + "…" + "a" * 23
    assert "\x1b" not in plots.shortened("a\x1b[31m")
