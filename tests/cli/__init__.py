"""The command line, from words to files."""

from __future__ import annotations

import shlex

from robustbench_lpm.cli import run


def lpmbench(line: str, status: int = 0) -> None:
    """Run a command, whose exit status must be this."""
    assert run(shlex.split(line)) == status, line
