"""Weights of any origin load into the network that they are for, and into no other; no code of a file runs."""

from __future__ import annotations

import argparse
import gzip
import io
import pickle
import re
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.registry import weight_files

State = dict[str, Tensor]


class Net(nn.Module):
    """Parameters, buffers, and two constants that it makes itself: one is saved, one is not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 3)
        self.register_buffer("mask", torch.full((2, 2), float("-inf")).triu(1))
        self.register_buffer("positions", torch.arange(3), persistent=False)


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = Net()


def state(seed: int = 0) -> State:
    torch.manual_seed(seed)
    return dict(Net().state_dict())


def prefixed(prefix: str, names: State | None = None) -> State:
    return {prefix + name: value for name, value in (state() if names is None else names).items()}


def changed(pattern: str, change: Callable[[Tensor], Tensor]) -> State:
    return {name: change(value) if re.search(pattern, name) else value for name, value in state().items()}


def without(pattern: str) -> State:
    return {name: value for name, value in state().items() if not re.search(pattern, name)}


def saved(content: Any, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def load(content: Any, path: Path, network: nn.Module | None = None) -> tuple[nn.Module, tuple[str, ...]]:
    path.write_bytes(content if isinstance(content, bytes) else saved(content))
    network = Net() if network is None else network
    found, notes = weight_files.fitting(network, weight_files.read(path), str(path))
    weight_files.load_state(network, found, str(path))
    return network, notes


def complaint(content: Any, path: Path, network: nn.Module | None = None) -> str:
    with pytest.raises(LpmbenchError) as error:
        load(content, path, network)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(path))
    return str(error.value)


def assert_holds(network: nn.Module, expected: State) -> None:
    found = network.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


BESIDE = {
    "epoch": 3,
    "args": argparse.Namespace(lr=0.1, milestones=[1, 2]),
    "best": np.float64(0.9),
    "seen": np.int64(7),
    "optimizer": torch.optim.Adam(Net().parameters()).state_dict(),
    "history": [1.0, 2.0],
}
CONTAINERS = ["state_dict", "model", "net", "model_state", "model_state_dict", "params", "weights", "network"]
UNDER = "its weights are those under '{}'"
TAKEN = "'{}' was taken off the names of its weights"


@pytest.mark.parametrize(("wrap", "notes"), [
    *(((lambda s, key=key: {key: s}), ()) for key in CONTAINERS),
    *(((lambda s, key=key: {key: s}), (UNDER.format(key),)) for key in ("ema", "state_dict_ema", "generator")),
    (lambda s: {"net": {"state_dict": s}}, ()),
    (lambda s: {"checkpoint": {"ema": {"model": s}}}, (UNDER.format("checkpoint.ema.model"),)),
    (lambda s: {"ema": state(1), "model": s}, ("its weights are those under 'model'; 'ema' would fit too",)),
    (lambda s: {"model": {"other": torch.zeros(3)}, "params": s}, ()),
    (lambda s: {"model": s, "net": s}, ()),
    (lambda s: s | {"epoch": 3}, ()),
    *(((lambda s, p=p: {"model": prefixed(p, s)}), (TAKEN.format(p),)) for p in (
        "module.", "model.", "_orig_mod.", "net.", "module._orig_mod.", "encoder.")),
    (lambda s: {"n_averaged": torch.tensor(2)} | prefixed("module.", s),
     (TAKEN.format("module."), "n_averaged left out")),
    (lambda s: {name.replace("conv.", "conv._orig_mod."): x for name, x in s.items()},
     ("'_orig_mod' was taken out of the names of its weights",)),
    (lambda s: s | {"conv.total_ops": torch.zeros(1)}, ("conv.total_ops left out",)),
    (lambda s: s | {"positions": torch.arange(3)}, ()),
])  # fmt: skip
def test_weights_are_found_wherever_they_lie(
    wrap: Callable[[State], Any], notes: tuple[str, ...], tmp_path: Path
) -> None:
    content = wrap(state())
    for beside in ({}, BESIDE if all(isinstance(value, dict) for value in content.values()) else {}):
        network, found = load(content | beside, tmp_path / "weights.pt")
        assert_holds(network, state())
        assert found == notes


@pytest.mark.parametrize(("content", "prefix"), [(state(), ""), (prefixed("module."), "module.")])
def test_a_network_that_wraps_another_takes_the_other_s_weights(content: State, prefix: str, tmp_path: Path) -> None:
    network, notes = load(content, tmp_path / "weights.pt", Wrapped())
    assert_holds(network, prefixed("model."))
    assert notes[-1] == "'model.' was put before the names of its weights"
    assert (TAKEN.format(prefix) in notes) == bool(prefix)


@pytest.mark.parametrize("content", [
    changed(".", lambda x: x.half().float()),
    without("num_batches_tracked"),
    changed("mask", lambda x: x),
], ids=["half", "old", "mask"])  # fmt: skip
@pytest.mark.parametrize("write", [saved, lambda s: saved(s, legacy=True), save], ids=["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "a"])
def test_the_content_of_a_file_decides_how_it_is_read(
    content: State, write: Callable[[State], bytes], name: str, tmp_path: Path
) -> None:
    network, notes = load(write(content), tmp_path / name)
    assert_holds(network, content)
    assert notes == ()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_load_as_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    content = {name: x.to(dtype) if x.is_floating_point() else x for name, x in state().items()}
    assert_holds(load(content, tmp_path / "weights.pt")[0], {n: x.to(state()[n].dtype) for n, x in content.items()})


def test_a_network_may_rename_what_it_is_given_and_shape_itself_after_it(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        old = nn.Sequential(weight_norm(nn.Linear(2, 2)))  # its weights have other names today
    new = nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 2)))
    load(old.state_dict(), tmp_path / "weights.pt", new)
    images = torch.ones(1, 2)
    assert torch.allclose(new(images), old(images))
    shaped = {"module.0.weight": torch.ones(3, 7), "module.0.bias": torch.ones(3)}
    lazy, _ = load(shaped, tmp_path / "weights.pt", nn.Sequential(nn.LazyLinear(3)))
    assert lazy(torch.ones(1, 7)).tolist() == [[8.0] * 3]


@pytest.mark.parametrize(("content", "words"), [
    ({}, ["holds no state dict"]),
    (torch.zeros(3), ["holds no state dict"]),
    ({"epoch": 3, "lr": 0.1}, ["holds no state dict", "epoch, lr"]),
    ({1: torch.zeros(3)}, ["holds no state dict"]),
    (without("fc"), ["2 missing: fc.weight, fc.bias"]),
    (state() | {"extra.weight": torch.zeros(1)}, ["1 unexpected: extra.weight"]),
    (state() | {"positions": torch.ones(3)}, ["1 unexpected: positions"]),
    (changed("fc", lambda x: x[:2]), ["2 of another shape: fc.weight 2x2 for 3x2, fc.bias 2 for 3"]),
    ({f"layer.{i}": torch.zeros(1) for i in range(9)}, ["9 missing", "9 unexpected: layer.0,", "and 5 more"]),
    (prefixed("model.") | {"normalize.mean": torch.zeros(1)}, ["unexpected", "model.conv.weight"]),
    (changed("fc.weight", lambda x: x * float("nan")), ["fc.weight holds NaN", "6 of 6"]),
    (changed("conv.bias", lambda x: x + float("inf")), ["conv.bias holds NaN or infinite"]),
    (changed("conv.bias", lambda x: x.double() + 1e300), ["conv.bias holds NaN or infinite"]),
    (changed("fc.weight", lambda x: x.to(torch.int8)), ["fc.weight holds torch.int8"]),
    (changed("fc.weight", lambda x: x.to("meta")), ["1 missing: fc.weight"]),
    (changed("fc.weight", lambda x: x.to_sparse()), ["1 missing: fc.weight"]),
    ({"net": state(), "model": state(1)}, ["several sets of weights that fit, 'net' and 'model'", "['net']"]),
    (Net(), ["it needs tests.registry.test_weight_files.Net", "torch.save(model.state_dict()"]),
])  # fmt: skip
def test_weights_that_do_not_fit_are_told_by_name(content: Any, words: list[str], tmp_path: Path) -> None:
    said = complaint(content, tmp_path / "weights.pt")
    assert [word for word in words if word not in said] == [], said


@pytest.mark.parametrize("core", ["core", "_core"])
def test_numbers_of_numpy_1_and_2_lie_beside_weights(core: str, tmp_path: Path) -> None:
    content = saved({"model": state(), "best": np.float64(0.9)}, legacy=True)
    content = re.sub(rb"numpy\._?core", f"numpy.{core}".encode(), content)
    assert_holds(load(content, tmp_path / "weights.pt")[0], state())
    assert weight_files.read(tmp_path / "weights.pt")["best"] == 0.9


def test_a_dictionary_that_holds_itself_is_read(tmp_path: Path) -> None:
    content: dict[str, Any] = {"model": state()}
    content["self"] = content
    assert_holds(load(content, tmp_path / "weights.pt")[0], state())


def numpy_file(write: Callable[..., None]) -> bytes:
    buffer = io.BytesIO()
    write(buffer, np.zeros(3))
    return buffer.getvalue()


def tar_file() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pt"))
    return buffer.getvalue()


def torchscript() -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(("content", "called"), [
    (b"", "an empty file"),
    (b"\xef\xbb\xbf\n<!DOCTYPE html>\n<html>", "a web page"),
    (b"<HTML><head><title>Sign in</title>", "a web page"),
    (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "a web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a Git LFS pointer"),
    (b'{"error": "Repository not found"}', "text, which begins"),
    (b"/annex/objects/MD5E-s1--0\n", "text, which begins '/annex/objects"),
    (bytes(1000), "neither safetensors nor what torch.save writes"),
    (gzip.compress(saved(state())), "a gzip archive; unpack it"),
    (tar_file(), "a tar archive; unpack it"),
    (numpy_file(np.save), "an array of numpy"),
    (numpy_file(np.savez), "a zip file that torch.save did not write (in it: arr_0.npy)"),
    (torchscript(), "a TorchScript program"),
    (saved(state())[:1000] + bytes(200) + saved(state())[1200:], "damaged"),
    (save(state()) + b"more", "damaged"),
])  # fmt: skip
@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_other_files_are_called_what_they_are(content: bytes, called: str, name: str, tmp_path: Path) -> None:
    assert called in complaint(content, tmp_path / name)


@pytest.mark.parametrize("content", [
    saved(state()), saved(state(), legacy=True), save(state()),
], ids=["zip", "legacy", "safetensors"])  # fmt: skip
def test_a_file_cut_anywhere_is_called_cut(content: bytes, tmp_path: Path) -> None:
    for size in range(1, len(content), 7):
        assert "cut short" in complaint(content[:size], tmp_path / "weights.pt"), size


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_plain_pickle_is_refused(protocol: int, tmp_path: Path) -> None:
    said = complaint(pickle.dumps(state(), protocol), tmp_path / "weights.pt")
    assert "was refused: it does not load as tensors alone" in said or "nor what torch.save writes" in said


def test_no_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(LpmbenchError, match=r"There is no checkpoint at .*nothing\.pt\.$"):
        weight_files.read(tmp_path / "nothing.pt")
    with pytest.raises(LpmbenchError, match="it is a folder; name the file in it"):
        weight_files.read(tmp_path)
