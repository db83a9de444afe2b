"""Compute one block: in halves where memory runs out; examples that fail are listed."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
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

_fitting: dict[str, int] = {}  # by the id of a run for which a GPU's memory ran out: the chunk that then fitted


def compute(
    plan: Plan, number: int, indices: Sequence[int], progress: Progress, *, made: Mapping[str, Made] | None = None,
    journal: Journal | None = None,
) -> Block:  # fmt: skip
    """Compute a block; where memory runs out it is tried again in halves, down to single images and passes.

    A chunk that was measured on a GPU may be too large: what fitted in its place serves the next blocks, too.

    Images that cannot be read fail alone. Any other error would come again: then all images of the block fail. A disk
    that cannot be written or read raises: that has nothing to do with the block.
    """
    start, made = time.monotonic(), made or {}
    parts: list[Arrays] = []
    failed: list[tuple[int, str]] = []  # an example's index, and why
    notes: dict[str, str] = {}
    checkpoints = journal.loops if journal is not None and journal.path is not None else None

    fitted: list[int] = []  # chunks

    def attempt(indices: Sequence[int], first_position: int, chunk: int) -> bool:
        """Compute some examples; whether memory ran out."""
        if not indices:
            return False
        try:
            parts.append(
                run_block(
                    replace(plan, chunk=chunk), indices, progress, first_position=first_position, made=made,
                    checkpoints=checkpoints, notes=notes,
                )
            )  # fmt: skip
            fitted.append(chunk)
            return False
        except (OSError, NotKept):
            raise
        except Exception as error:  # whatever it is, other blocks may not share it
            reason, exhausted = _reason(error), out_of_memory(error)
            log.debug("examples %s failed", list(indices), exc_info=error)
            traceback.clear_frames(error.__traceback__)  # they hold the tensors for which there was no room
        if not exhausted and (unreadable := _unreadable(plan, indices)):
            failed.extend(unreadable.items())
            return attempt([index for index in indices if index not in unreadable], first_position, chunk)
        if exhausted and torch.device(plan.options.device).type == "cuda":
            torch.cuda.empty_cache()
        if exhausted and max(len(indices), chunk) > 1:
            middle, fewer = (len(indices) + 1) // 2, max(1, chunk // 2)
            attempt(indices[:middle], first_position, fewer)
            attempt(indices[middle:], first_position + middle, fewer)
        else:
            failed.extend((index, reason) for index in indices)
        return exhausted

    given = [index for index in indices if all(index in member.images for member in made.values())]
    chunk = min(plan.chunk, _fitting.get(plan.id, plan.chunk)) if plan.measured else plan.chunk
    starts = range(0, len(given), chunk)
    halves = [attempt(given[i : i + chunk], number * plan.block_size + i, chunk) for i in starts]
    halved = any(halves) or chunk < plan.chunk
    if halved and plan.measured and fitted:
        _fitting[plan.id] = max(fitted)
    for name, member in made.items():
        failed += [(index, f"the member '{name}' failed on it") for index in indices if index not in member.images]
    arrays = _joined(parts)
    arrays["seconds"] = np.array(journal.seconds if journal is not None else time.monotonic() - start)
    return Block(arrays, tuple(_failures(number, indices, failed)), halved, notes)


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


def _failures(number: int, indices: Sequence[int], failed: list[tuple[int, str]]) -> list[dict[str, Any]]:
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
