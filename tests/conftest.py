"""Tests know the numbers of the CPU: they run there, too, where there is a GPU (CUDA_VISIBLE_DEVICES=0 shows it)."""

from __future__ import annotations

import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
