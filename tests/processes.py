"""Real commands in real processes, and real Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence


def interrupted(words: Sequence[str], ready: Callable[[], bool], seconds: float = 240) -> tuple[int, str]:
    """Start `lpmbench WORDS`, press Ctrl-C once it is `ready`, and wait for its end: its status, and its stderr.

    It hears Ctrl-C even where the tests do not: a script's background processes are started deaf to it.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "robustbench_lpm", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + seconds
    try:
        while not ready():
            assert process.poll() is None, "it ended before it could be interrupted"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        _, complaint = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, complaint
