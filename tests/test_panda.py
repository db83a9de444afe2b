"""The drawn panda is a panda to the network it is meant for, and comes from its script."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robustbench_lpm.registry import zoo
from robustbench_lpm.registry.tasks import resolve_data

ROOT = Path(__file__).parent.parent


def test_the_panda_is_recognised() -> None:
    """Its first choice with at least one half; the exact probability moves with the resize."""
    source = resolve_data("panda")
    examples = source.read([0])
    assert examples.images[0].shape == (3, 224, 224)
    assert examples.labels.tolist() == [388]
    assert source.classes[388] == "giant panda"
    with torch.inference_mode():
        logits = zoo.load_model("efficientnet-lite0").classifier(examples.images[0][None])
    assert logits.argmax() == 388
    assert logits.softmax(1)[0, 388] >= 0.5


@pytest.mark.slow
def test_the_script_draws_the_committed_panda(tmp_path: Path) -> None:
    out = tmp_path / "panda.png"
    subprocess.run([sys.executable, str(ROOT / "tools" / "draw_panda.py"), "--out", str(out)], check=True)
    drawn, committed = (np.asarray(Image.open(path), int) for path in (out, ROOT / "datasets" / "panda.png"))
    # Another release of numpy or Pillow may round a pixel differently.
    assert np.abs(drawn - committed).mean() < 0.5
