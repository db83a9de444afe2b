"""Who watches runs in tests."""

from __future__ import annotations

from typing import Any

from robustbench_lpm.execution.runner import Silent


class Listening(Silent):
    """Keeps what is told of runs."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def tell(self, _: Any, line: str) -> None:
        self.lines.append(line)
