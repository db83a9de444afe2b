"""requirements/lock.txt pins what pyproject.toml asks for, in versions that it allows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.lock import HEAD, asked

TEXT = (Path(__file__).parents[1] / "requirements/lock.txt").read_text()
PINS = dict(re.findall(r"^(\S+)==(\S+)$", TEXT, re.MULTILINE))


@pytest.mark.parametrize("requirement", asked(), ids=lambda requirement: requirement.name)
def test_every_dependency_is_pinned_within_its_bounds(requirement: Requirement) -> None:
    assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)], prereleases=True)


def test_it_names_versions_that_any_index_may_have() -> None:
    assert TEXT.startswith(HEAD)
    assert re.sub(r"^[a-z0-9-]+==[a-z0-9.]+\n", "", TEXT.removeprefix(HEAD), flags=re.MULTILINE) == ""
    assert {"mkdocs", "pytest", "torch"} < PINS.keys()
    assert "robustbench-lpm" not in PINS
