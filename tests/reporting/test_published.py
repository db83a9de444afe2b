"""What programs read of the published results is what the records say, as tests/test_results.py asks of the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from robustbench_lpm.protocol.ranking import ranking
from robustbench_lpm.records import runs as records
from robustbench_lpm.records.audits import read_for
from robustbench_lpm.reporting import comparisons, exports, robustbench, scanpaths, tables

RESULTS = Path(__file__).parents[2] / "results"
pytestmark = pytest.mark.slow


def test_the_json_files_are_what_the_records_say():
    found = tables.in_order(records.read_all(RESULTS))
    runs = tables.table(found, read_for(found))
    ranked = ranking(runs)
    pairs, agreements = comparisons.compare(found, runs, ranked), comparisons.agree(found, runs, ranked)
    published = json.loads((RESULTS / "leaderboard.json").read_text(encoding="utf-8"))
    again = json.loads(exports.to_json(found, runs, ranked, pairs, agreements))
    for part in published.keys() | again.keys():
        assert published[part] == again[part], part
    files = robustbench.to_robustbench(found, ranked)
    assert {path.relative_to(RESULTS).as_posix() for path in RESULTS.glob("robustbench/*/*/*.json")} == set(files)
    for name, content in files.items():
        assert json.loads((RESULTS / name).read_text(encoding="utf-8")) == json.loads(content), name


def test_scanpaths_are_of_published_examples():
    found = {record.id: record for record in records.read_all(RESULTS)}
    paths = scanpaths.read(RESULTS)
    assert {found[record].model for record, _ in paths} >= {"ram", "ramlpm"}
    for record, index in paths:
        assert index in {picture.index for picture in found[record].pictures()}
