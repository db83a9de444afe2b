"""A disk that takes nothing more ends a run with one clear line; with room made, the same command goes on."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from robustbench_lpm.cli import run
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.execution.keeping import NotKept, keep
from robustbench_lpm.execution.recording import PROGRESS
from robustbench_lpm.records import runs as records

# The system refuses to let a file of this process grow beyond so many bytes: a real write that fails half way.
LIMITED = """
import resource, sys
most = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
from robustbench_lpm.cli import main
main()
"""


def limited(words: list[str], most: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LIMITED, str(most), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such limits")
@pytest.mark.parametrize("command", ["attack", pytest.param("run", marks=pytest.mark.slow)])
def test_no_room(command: str, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(
        'name = "s"\nsummary = "s"\n[[part]]\ndataset = "digits"\nmodels = ["cnn"]\nattacks = ["noise"]\n'
        'eps = ["0.1"]\nlimit = 130\n'
    )
    words = {
        "attack": "attack --model cnn --attack noise --eps 0.1 --limit 130",
        "run": f"run {tmp_path / 's.toml'}",
    }[command].split()
    words += ["--threads", "1", "--out"]
    # The first block holds 16 pictures, clean and attacked (131,072 bytes); the second and third hold rows alone. A
    # record of all three holds the pictures again.
    for most in (60_000, 3_000) if command == "run" else (60_000,):
        failed = limited([*words, str(tmp_path / "full")], most)
        assert failed.returncode == 1
        (line,) = failed.stderr.strip().splitlines()
        assert line.startswith("lpmbench: There is no room left to write in ")
        assert "Make room, and the same command resumes from there" in line
        assert not list((tmp_path / "full").rglob("record.json"))
        assert not [path for path in (tmp_path / "full").rglob(".*.*") if path.is_file()]  # nothing half written
    for out in ("full", "straight"):
        assert run([*words, str(tmp_path / out)]) == 0
    (resumed,), (straight,) = (list((tmp_path / out).rglob("record.json")) for out in ("full", "straight"))
    for path in straight.parent.iterdir():
        if path.name != records.TIMING:
            assert (resumed.parent / path.name).read_bytes() == path.read_bytes()
    assert not (tmp_path / "full" / PROGRESS).exists()


def test_each_cause_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(NotKept, match=r"cannot be written: .*\. Mend that, and the same command") as caught:
        keep(tmp_path / "file" / "block", b"1")
    assert isinstance(caught.value, LpmbenchError)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NotKept, match=r"no room left to write in .*No space left on device\. Make room"):
        keep(tmp_path / "block", b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
