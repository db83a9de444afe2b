"""lpmbench: how accurate an image classifier stays under attack, above all a stochastic one that looks in glimpses.

import robustbench_lpm
record = robustbench_lpm.evaluate(model, "pgd", "digits", eps=0.1)
print(record.robust_accuracy)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from robustbench_lpm.versions import __version__

if TYPE_CHECKING:
    from robustbench_lpm.api import audit, evaluate
    from robustbench_lpm.errors import LpmbenchError
    from robustbench_lpm.records.runs import RunRecord
    from robustbench_lpm.reporting import plot, table

__all__ = ["LpmbenchError", "RunRecord", "__version__", "audit", "evaluate", "plot", "table"]

_HOMES = {
    "audit": "api",
    "evaluate": "api",
    "plot": "reporting",
    "table": "reporting",
    "RunRecord": "records.runs",
    "LpmbenchError": "errors",
}
_MODULES = {"cards": "registry.cards", "zoo": "registry.zoo"}  # for users: `from robustbench_lpm import zoo`


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: the command line lists cards without waiting for torch."""
    from importlib import import_module

    if name in _MODULES:
        return import_module(f"{__name__}.{_MODULES[name]}")
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
