"""requirements/lock.txt: the version of every package that the extra `dev` needs, as it is installed here.

    python -m tools.lock requirements/lock.txt

Local labels of a version ("2.15.0+cpu") are left out: they name a build that other indexes lack.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PACKAGE = "robustbench-lpm"
HEAD = "# What the tests were run with. `make lock` renews it from .venv; CI installs with it as constraints.\n"


def asked() -> list[Requirement]:
    """What pyproject.toml needs to run and for the extra `dev`, with the extras that `dev` names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found, extras = list(map(Requirement, project["dependencies"])), ["dev"]
    for extra in extras:  # it grows
        for requirement in map(Requirement, project["optional-dependencies"][extra]):
            if requirement.name == PACKAGE:
                extras += sorted(requirement.extras)
            else:
                found.append(requirement)
    return found


def installed(requirements: Iterable[Requirement], seen: set[tuple[str, str]]) -> Iterator[tuple[str, Version]]:
    """The packages of these requirements and all that they need, by name, with their versions.

    Raises PackageNotFoundError for one that is not installed.
    """
    for requirement in requirements:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        name = canonicalize_name(requirement.name)
        found = distribution(name)
        yield name, Version(found.version)
        for extra in {"", *requirement.extras}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                yield from installed(_needed(found.requires or [], extra), seen)


def _needed(lines: Iterable[str], extra: str) -> Iterator[Requirement]:
    """The requirements that hold with this extra of a package, with "" those that always hold."""
    for line in lines:
        requirement = Requirement(line)
        if requirement.marker is None and not extra:
            yield requirement
        elif requirement.marker is not None and requirement.marker.evaluate({"extra": extra}):
            requirement.marker = None
            yield requirement


def lock() -> str:
    """The text of the lock."""
    pins = {name: version.public for name, version in installed(asked(), set())}
    return HEAD + "".join(f"{name}=={version}\n" for name, version in sorted(pins.items()))


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(lock())
