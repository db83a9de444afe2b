"""One block, computed whatever happens: what fails is tried again in halves, and told."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.evaluation.attacking import Made, Progress, run_block
from robustbench_lpm.evaluation.blocks import Arrays, Block
from robustbench_lpm.evaluation.journal import Journal
from robustbench_lpm.evaluation.keeping import NotKept
from robustbench_lpm.evaluation.planning import Plan

log = logging.getLogger(__name__)


def compute(
    plan: Plan,
    number: int,
    indices: Sequence[int],
    progress: Progress,
    *,
    made: Mapping[str, Made] | None = None,
    journal: Journal | None = None,
) -> Block:
    """Compute a block; where that fails it is tried again in halves, down to single images, which then have failed.

    A disk that cannot be written or read ends it: that has nothing to do with the block.
    """
    start = time.monotonic()
    made = made or {}
    given = [index for index in indices if all(index in member.images for member in made.values())]
    parts, failures, halved = _attempt(plan, given, progress, number * plan.chunk, made, journal)
    for name, member in made.items():
        lost = [index for index in indices if index not in member.images]
        failures += [(index, f"the member '{name}' failed on it") for index in lost]
    arrays = _joined(parts)
    arrays["seconds"] = np.array(journal.seconds if journal is not None else time.monotonic() - start)
    return Block(arrays, tuple(_failures(number, indices, failures)), halved)


Failed = list[tuple[int, str]]  # an example's index, and why


def _attempt(
    plan: Plan,
    indices: Sequence[int],
    progress: Progress,
    first_position: int,
    made: Mapping[str, Made],
    journal: Journal | None,
) -> tuple[list[Arrays], Failed, bool]:
    """Arrays of what could be computed, what could not, and whether memory ran out."""
    if not indices:
        return [], [], False
    try:
        arrays = run_block(plan, indices, progress, first_position=first_position, made=made, journal=journal)
    except (OSError, NotKept):
        raise
    except Exception as error:  # whatever it is, the other examples do not share it
        reason, exhausted = _reason(error), out_of_memory(error)
        log.debug("examples %s failed", list(indices), exc_info=error)
        traceback.clear_frames(error.__traceback__)  # they hold the tensors for which there was no room
    else:
        return [arrays], [], False
    if exhausted and torch.device(plan.device).type == "cuda":
        torch.cuda.empty_cache()
    if len(indices) == 1:
        return [], [(indices[0], reason)], exhausted
    middle = (len(indices) + 1) // 2
    first, lost, early = _attempt(plan, indices[:middle], progress, first_position, made, journal)
    second, also_lost, late = _attempt(plan, indices[middle:], progress, first_position + middle, made, journal)
    return [*first, *second], [*lost, *also_lost], exhausted or early or late


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, in any of the ways in which Python and torch say so."""
    words = ("out of memory", "can't allocate memory", "bad_alloc", "alloc_cpu")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    )


def _reason(error: Exception) -> str:
    """Why a block failed, in one line that is the same when it fails in the same way again."""
    if out_of_memory(error):
        return "out of memory"
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, LpmbenchError) else f"{type(error).__name__}: {text}"


def _failures(number: int, indices: Sequence[int], failed: Failed) -> list[dict[str, Any]]:
    """The failed examples of a block in their order, one entry for each reason."""
    reasons: dict[str, list[int]] = {}
    order = {index: position for position, index in enumerate(indices)}
    for index, reason in sorted(dict(reversed(failed)).items(), key=lambda pair: order[pair[0]]):
        reasons.setdefault(reason, []).append(index)
    return [{"block": number, "indices": found, "error": reason} for reason, found in reasons.items()]


def _joined(parts: Sequence[Arrays]) -> Arrays:
    """The arrays of parts of a block as those of the whole."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: np.concatenate([part[name] for part in parts if name in part]) for name in names}
