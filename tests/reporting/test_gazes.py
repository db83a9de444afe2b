"""Scanpaths are kept in a file and drawn over the pictures that they belong to."""

from __future__ import annotations

import re

import pytest

from robustbench_lpm import reporting
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.reporting import gazes
from robustbench_lpm.reporting.gazes import Gaze


def test_what_is_written_is_read(tmp_path):
    one = Gaze("a" * 64, 3, 1, [(0.0, -0.5), (1.25, 1.0)], [(0.0, -0.5), (-1.0, 0.125)])
    gazes.write([one], tmp_path)
    assert gazes.read(tmp_path) == {("a" * 64, 3): one}
    assert gazes.read(tmp_path / "elsewhere") == {}


@pytest.mark.parametrize(
    "content",
    ['{"schema_version": 2, "scanpaths": []}', "{}", '{"schema_version": 1, "scanpaths": [{"record": "a"}]}',
     '{"schema_version": 1, "scanpaths": [{"record": "a", "index": 0, "draw": 0, "clean": [[0, "<b>"]],'
     ' "adversarial": []}]}',
     '{"schema_version": 1, "scanpaths": [{"record": "a", "index": 0, "draw": 0, "clean": [[0, NaN]],'
     ' "adversarial": []}]}'],
)  # fmt: skip
def test_a_file_of_something_else_is_refused(tmp_path, content):
    (tmp_path / gazes.FILE).parent.mkdir()
    (tmp_path / gazes.FILE).write_text(content)
    with pytest.raises(LpmbenchError, match="no file of scanpaths"):
        gazes.read(tmp_path)


def test_a_scanpath_is_drawn_over_its_pictures_and_told_in_words(make, tmp_path):
    record, other = make("ram", stored=1, draws=4), make("cnn", stored=1)
    gazes.write([Gaze(record.id, 0, 2, [(0.0, 0.0), (0.5, -0.25)], [(0.0, 0.0), (-1.0, 1.0)])], tmp_path)
    html = reporting.write_report([record, other], tmp_path)[-1].read_text()
    clean, attacked = re.findall(r'<svg class="path".*?</svg>', html)
    assert (
        'aria-label="Fixations, left to right and top to bottom from -1 to 1: 1 at (0.00, 0.00), 2 at (0.50, -0.25)"'
        in clean
    )
    assert '<circle cx="-1.000" cy="1.000"' in attacked
    assert html.count("gaze of draw 3") == 1
    assert '<svg class="path"' not in reporting.write_report([record], tmp_path / "elsewhere")[-1].read_text()
