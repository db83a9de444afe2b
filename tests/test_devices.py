"""Which device a run is on: found where none is named, printed, recorded, and named in commands where it must be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from robustbench_lpm.cli import run as lpmbench
from robustbench_lpm.devices import AUTO, goes_unnamed, resolve_device
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.options import Options
from robustbench_lpm.protocol.plan import make_plan
from robustbench_lpm.records import runs as records
from robustbench_lpm.registry.tasks import resolve_attack, resolve_data, resolve_model
from robustbench_lpm.studies.sweep import make_sweep
from robustbench_lpm.training.plans import command_of

HERE = "cuda" if torch.cuda.is_available() else "cpu"
without_gpu = pytest.mark.skipif(HERE != "cpu", reason="there is a GPU")
GIVEN: list[dict[str, Any]] = [{}, {"device": "auto"}, {"device": "cpu"}]


def test_auto_is_a_gpu_where_there_is_one() -> None:
    assert resolve_device(AUTO) == HERE
    assert resolve_device("cpu") == "cpu"
    assert goes_unnamed("cpu") == (HERE == "cpu")
    assert not goes_unnamed("cuda")


@pytest.mark.parametrize("name", ["cuda:99", "toaster", ""])
def test_a_device_that_is_not_there_is_one_line(name: str) -> None:
    with pytest.raises(LpmbenchError, match=f"Device '{name}' is not available: ") as error:
        resolve_device(name)
    assert "\n" not in str(error.value)


@without_gpu
def test_a_stored_command_does_not_depend_on_how_the_cpu_was_named() -> None:
    model, data, attack = resolve_model("cnn"), resolve_data("digits"), resolve_attack("pgd")
    plans = [make_plan(model, attack, data, Options(eps=0.1, limit=2, **given)) for given in GIVEN]
    assert {plan.options.device for plan in plans} == {plan.asked.device for plan in plans} == {"cpu"}
    assert len({plan.id for plan in plans}) == 1
    (command,) = {plan.command() for plan in plans}
    assert "--device" not in command
    studies = [make_sweep("ram", data, glimpses=[1], mc=[1], limit=2, **given)[0] for given in GIVEN]
    assert {study.device for study in studies} == {"cpu"}
    (command,) = {study.command() for study in studies}
    assert "--device" not in command


def test_a_gpu_is_named_in_a_stored_command() -> None:
    assert command_of("cnn", {"seed": 0, "device": "cuda:1"}) == "lpmbench train cnn --seed 0 --device cuda:1"


def test_the_device_is_printed_and_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"attack --model cnn --attack noise --limit 2 --threads 1 --out {tmp_path}"
    assert lpmbench(line.split()) == 0
    assert f"· 2 image(s) on {HERE} ·" in capsys.readouterr().out
    (record,) = records.read_all(tmp_path)
    assert record.execution["device"] == HERE
    assert record.timing["hardware"]["device"] == HERE
