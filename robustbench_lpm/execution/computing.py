"""Compute one block: in halves where memory runs out; examples that fail are listed."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from robustbench_lpm.allocator import out_of_memory
from robustbench_lpm.errors import in_one_line
from robustbench_lpm.execution.blocks import Block
from robustbench_lpm.execution.journal import Journal
from robustbench_lpm.execution.keeping import NotKept
from robustbench_lpm.protocol.attacking import Arrays, Made, Progress, run_block
from robustbench_lpm.protocol.plan import Plan

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
    """Compute a block; where memory runs out it is tried again in halves, down to single images.

    Images that cannot be read fail alone. Any other error would come again: then all images of the block fail. A disk
    that cannot be written or read raises: that has nothing to do with the block.
    """
    start = time.monotonic()
    made = made or {}
    given = [index for index in indices if all(index in member.images for member in made.values())]
    notes: dict[str, str] = {}
    parts, failures, halved = _attempt(plan, given, progress, number * plan.chunk, made, journal, notes)
    for name, member in made.items():
        lost = [index for index in indices if index not in member.images]
        failures += [(index, f"the member '{name}' failed on it") for index in lost]
    arrays = _joined(parts)
    arrays["seconds"] = np.array(journal.seconds if journal is not None else time.monotonic() - start)
    return Block(arrays, tuple(_failures(number, indices, failures)), halved, notes)


Failed = list[tuple[int, str]]  # an example's index, and why


def _attempt(
    plan: Plan,
    indices: Sequence[int],
    progress: Progress,
    first_position: int,
    made: Mapping[str, Made],
    journal: Journal | None,
    notes: dict[str, str],
) -> tuple[list[Arrays], Failed, bool]:
    """Arrays of what could be computed, what could not, and whether memory ran out; notes are added to."""
    if not indices:
        return [], [], False
    try:
        checkpoints = journal.loops if journal is not None and journal.path is not None else None
        arrays = run_block(
            plan, indices, progress, first_position=first_position, made=made, checkpoints=checkpoints, notes=notes
        )
    except (OSError, NotKept):
        raise
    except Exception as error:  # whatever it is, other blocks may not share it
        reason, exhausted = _reason(error), out_of_memory(error)
        log.debug("examples %s failed", list(indices), exc_info=error)
        traceback.clear_frames(error.__traceback__)  # they hold the tensors for which there was no room
    else:
        return [arrays], [], False
    if not exhausted:
        if unreadable := _unreadable(plan, indices):
            rest = [index for index in indices if index not in unreadable]
            parts, lost, halved = _attempt(plan, rest, progress, first_position, made, journal, notes)
            return parts, [*unreadable.items(), *lost], halved
        return [], [(index, reason) for index in indices], False
    if torch.device(plan.options.device).type == "cuda":
        torch.cuda.empty_cache()
    if len(indices) == 1:
        return [], [(indices[0], reason)], True
    middle = (len(indices) + 1) // 2
    first, lost, _ = _attempt(plan, indices[:middle], progress, first_position, made, journal, notes)
    second, also_lost, _ = _attempt(plan, indices[middle:], progress, first_position + middle, made, journal, notes)
    return [*first, *second], [*lost, *also_lost], True


def _unreadable(plan: Plan, indices: Sequence[int]) -> dict[int, str]:
    """The examples whose images cannot be read, and why not."""
    found = {}
    for index in indices:
        try:
            plan.data.read([index])
        except (OSError, NotKept):
            raise
        except Exception as error:
            found[index] = _reason(error)
    return found


def _reason(error: Exception) -> str:
    """Why a block failed, in one line that is the same when it fails in the same way again."""
    if out_of_memory(error):
        return "out of memory"
    return in_one_line(error)


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
