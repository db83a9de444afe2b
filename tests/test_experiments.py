"""The studies behind docs/experiments.md: whole, and the page says what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from robustbench_lpm.hashing import sealed, sha256_of, sha256_of_value

DOCS = Path(__file__).parents[1] / "docs"
STUDIES = sorted((DOCS / "experiments").glob("*/*.json"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.parent.name)
def test_a_study_is_whole(path: Path) -> None:
    content = json.loads(path.read_text())
    assert content == sealed(content)
    assert content["id"] == sha256_of_value(content["configuration"])
    table = path.with_suffix(".csv")
    assert sha256_of(table) == content["artefacts"][table.name]
    assert {"command", "versions", "execution", "timing"} <= set(content)
    assert len(pd.read_csv(table)) == len(content["table"])


def test_the_page_tells_the_means_of_the_invariance_study() -> None:
    (path,) = (study for study in STUDIES if study.parent.name == "invariance-ramlpm-ram-cnn-resnet18-digits")
    table = pd.read_csv(path.with_suffix(".csv"))
    means = 100 * table.groupby(["model", "transformation"]).accuracy.mean()
    page = (DOCS / "experiments.md").read_text()
    for model in table.model.unique():
        shown = " | ".join(f"{means[model, kind]:.1f}" for kind in ("rotate", "scale", "translate"))
        assert f"| `{model}` | {shown} |" in page


def test_the_page_tells_the_accuracies_of_the_spatial_study() -> None:
    (path,) = (study for study in STUDIES if study.parent.name == "spatial-ramlpm-ram-cnn-digits")
    table = pd.read_csv(path.with_suffix(".csv"))
    page = (DOCS / "experiments.md").read_text()
    for model, rows in table.groupby("model", sort=False):
        shown = " | ".join(f"{100 * accuracy:.1f}" for accuracy in rows.accuracy)
        assert f"| `{model}` | {shown} |" in page
