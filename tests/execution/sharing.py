"""What processes do that work on one output folder, for test_sharing.py."""

from __future__ import annotations

import dataclasses
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustbench_lpm.execution.blocks import BlockStore
from robustbench_lpm.execution.runner import Silent, TakenByOthers, run
from robustbench_lpm.options import Options
from robustbench_lpm.protocol.plan import Plan, make_plan
from robustbench_lpm.registry.own_data import data_from_tensors
from robustbench_lpm.registry.tasks import resolve_attack, resolve_model, worst_case_over
from tests.classifiers import NoisyLinear

IMAGES, CHUNK = 24, 4


def plan_of(log: Path | None, *, worst: bool = False, seconds: float = 0.0) -> Plan:
    """A plan of six blocks, whose attack writes into the log which process attacked which block, and takes so many
    seconds for each; without a log it is computed at once."""
    # Not closed over: the attack is the same whoever logs it, and where.
    os.environ |= {"SHARING_LOG": str(log or ""), "SHARING_SECONDS": str(seconds)}

    def logged(oracle: Any, images: Tensor, labels: Tensor, *, norm: str, eps: float) -> Tensor:
        if os.environ["SHARING_LOG"]:
            with Path(os.environ["SHARING_LOG"]).open("a") as file:
                file.write(f"{os.getpid()} {oracle.indices[0]}\n")
            time.sleep(float(os.environ["SHARING_SECONDS"]))
        offsets = oracle.choices().uniform("offset", *images.shape[1:])
        return images + eps * (2 * offsets - 1)

    torch.set_num_threads(1)
    images = torch.rand(IMAGES, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model = resolve_model(NoisyLinear(torch.linspace(-1, 1, 64).reshape(1, 8, 8), sigma=0.5).eval())
    attack = resolve_attack(logged)
    if worst:
        attack = worst_case_over([resolve_attack("noise"), attack])
    plan = make_plan(model, attack, data_from_tensors(images, torch.arange(IMAGES) % 2), Options(eps=0.05, draws=3))
    members = tuple(dataclasses.replace(member, chunk=CHUNK) for member in plan.members)
    return dataclasses.replace(plan, chunk=CHUNK, members=members)


class Sending(Silent):
    """Sends on what is told of a run."""

    def __init__(self, tester: Connection) -> None:
        self.tester = tester

    def tell(self, _: Plan, line: str) -> None:
        self.tester.send(line)


def take_part(tester: Connection, out: Path, log: Path, worst: bool, seconds: float, wait: bool) -> None:
    """Say that the plan is ready, wait for an answer, run; what the run tells is sent on."""
    plan = plan_of(log, worst=worst, seconds=seconds)
    tester.send("ready")
    tester.recv()
    try:
        run(plan, out, Sending(tester), wait=wait)
    except TakenByOthers as error:
        tester.send(str(error))


def hold(tester: Connection, folder: Path, manifest: dict[str, Any], block: int) -> None:
    """Claim a block, and never let go of it."""
    store = BlockStore(folder)
    store.open(manifest)
    store.claim(block)
    tester.send("held")
    time.sleep(600)
