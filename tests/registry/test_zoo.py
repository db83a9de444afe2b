"""Weights are what their card says, whatever they are wrapped in, and reading them never runs code from them."""

from __future__ import annotations

import io
import json
import pickle
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from pyautoattack.examples import resnet
from safetensors.torch import save_file
from torch import Tensor

from robustbench_lpm.architectures import torchvision_models
from robustbench_lpm.architectures.cnn import Cnn
from robustbench_lpm.architectures.ramlpm import RamLpm
from robustbench_lpm.cli import run
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.hashing import sha256_of
from robustbench_lpm.registry import weight_files, zoo

State = dict[str, Tensor]
DATA = Path(__file__).parents[1] / "data"
SHAPE = {"channels": 1, "classes": 10, "size": 8, "width": 2, "hidden": 4}
CARD = """
name = "tiny"
summary = "a tiny network"
entry = "robustbench_lpm.architectures.cnn:Cnn"
labels = "digits"
classes = 10
[input]
channels = 1
[parameters]
size = 8
width = 2
hidden = 4
"""


def on_gpus(state: State) -> State:
    """The names that DataParallel gives."""
    return {f"module.{name}": tensor for name, tensor in state.items()}


WRAPPINGS: dict[str, Callable[[State], Any]] = {
    "bare": lambda state: state,
    "module.": on_gpus,
    "model_state_dict": lambda state: {"epoch": 3, "model_state_dict": state, "best": 0.9},
    "model_state_dict, module.": lambda state: {"model_state_dict": on_gpus(state)},
    "model_state": lambda state: {"model_state": state, "optim_state": {"lr": 1e-3}},
    "model_state, module.": lambda state: {"model_state": on_gpus(state)},
    "state_dict": lambda state: {"state_dict": state},
    "state_dict in model": lambda state: {"state_dict": {"model": on_gpus(state)}},
}


@pytest.fixture
def state() -> State:
    torch.manual_seed(0)
    return Cnn(**SHAPE).state_dict()


def card_with(folder: Path, weights: str) -> str:
    path = folder / "tiny.toml"
    path.write_text(f"{CARD}[weights]\n{weights}\n")
    return str(path)


def assert_loaded(model: zoo.LoadedModel, state: State) -> None:
    loaded = model.classifier.network.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    assert not model.classifier.training
    assert not any(parameter.requires_grad for parameter in model.classifier.parameters())


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_torch_file_loads_in_every_wrapping(wrapping: str, state: State, tmp_path: Path) -> None:
    path = tmp_path / "weights.ckpt"
    torch.save(WRAPPINGS[wrapping](state), path)
    name = card_with(tmp_path, f'file = "{path.name}"\nsha256 = "{sha256_of(path)}"')
    model = zoo.load_model(name)
    assert_loaded(model, state)
    assert model.weights_sha256 == model.identity["weights_sha256"] == sha256_of(path)


@pytest.mark.parametrize("wrapping", ["bare", "module."])
def test_safetensors_load(wrapping: str, state: State, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(WRAPPINGS[wrapping](state), path)
    assert_loaded(zoo.load_model(card_with(tmp_path, f'file = "{path.name}"\nsha256 = "{sha256_of(path)}"')), state)


def test_a_checkpoint_replaces_the_weights_of_the_card(state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "weights.safetensors")
    name = card_with(
        tmp_path, f'file = "weights.safetensors"\nsha256 = "{sha256_of(tmp_path / "weights.safetensors")}"'
    )
    other = {key: value + 1 for key, value in state.items()}
    torch.save(other, tmp_path / "other.pt")
    model = zoo.load_model(name, checkpoint=tmp_path / "other.pt")
    assert_loaded(model, other)
    assert model.identity["weights_sha256"] == sha256_of(tmp_path / "other.pt")


def test_a_card_without_weights_says_how_to_get_them(tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    for key, advice in {
        "": "its card names none",
        'recipe = "digits-cnn"': "lpmbench train",
        'hint = "ask"': "ask",
    }.items():
        path.write_text(key + CARD)
        with pytest.raises(LpmbenchError, match="Model 'tiny' has no weights") as error:
            zoo.load_model(str(path))
        assert advice in str(error.value)


class Malicious:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.marker), "w"))


def zipped(content: Any, path: Path) -> None:
    torch.save(content, path)


def legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def pickled(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("write", [zipped, legacy, pickled])
def test_a_malicious_checkpoint_is_refused_and_does_not_run(
    write: Callable[[Any, Path], None], suffix: str, state: State, tmp_path: Path
) -> None:
    marker, path = tmp_path / "ran", tmp_path / f"weights{suffix}"
    write({**state, "extra": Malicious(marker)}, path)
    card_file = card_with(tmp_path, f'file = "{path.name}"\nsha256 = "{sha256_of(path)}"')
    for load in (
        lambda: weight_files.read(path),
        lambda: zoo.load_model(card_file),  # a right hash makes it no better
        lambda: zoo.load_model("cnn", checkpoint=path),
    ):
        with pytest.raises(LpmbenchError, match="refused: it does not load as tensors alone") as error:
            load()
        assert "\n" not in str(error.value)
    assert not marker.exists()
    if write is pickled:
        pickle.loads(path.read_bytes())
    else:
        torch.load(io.BytesIO(path.read_bytes()), weights_only=False)
    assert marker.exists()  # so the file was as bad as this test says


def test_what_was_done_to_make_weights_fit_is_noted(state: State, tmp_path: Path) -> None:
    torch.save({"net": {"state_dict": on_gpus(state)}}, tmp_path / "weights.pt")
    sha256 = sha256_of(tmp_path / "weights.pt")
    model = zoo.load_model(card_with(tmp_path, f'file = "weights.pt"\nsha256 = "{sha256}"'))
    assert_loaded(model, state)
    assert model.notes == ("'module.' was taken off the names of its weights",)


@pytest.mark.parametrize(("content", "complaint"), [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "it is a Git LFS pointer"),
    (b"<!DOCTYPE html><html></html>", "it is a web page"),
    (b"", "it is an empty file"),
])  # fmt: skip
@pytest.mark.parametrize("right_hash", [True, False])
def test_what_lies_where_weights_should_is_called_by_its_name(
    content: bytes, complaint: str, right_hash: bool, server: Server, cache: Path, tmp_path: Path
) -> None:
    for folder in (tmp_path, server.folder):
        (folder / "weights.pt").write_bytes(content)
    sha256 = sha256_of(tmp_path / "weights.pt") if right_hash else "0" * 64
    for source in ('file = "weights.pt"', f'url = "{server.url}/weights.pt"'):
        with pytest.raises(LpmbenchError, match=complaint) as error:
            zoo.load_model(card_with(tmp_path, f'{source}\nsha256 = "{sha256}"'))
        assert "weights.pt" in str(error.value)
        assert "\n" not in str(error.value)


def test_altered_weights_are_refused_before_they_are_read(state: State, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    name = card_with(tmp_path, f'file = "{path.name}"\nsha256 = "{sha256_of(path)}"')
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(LpmbenchError, match=r"sha256 does not match weights\.safetensors"):
        zoo.load_model(name)


def test_weights_from_a_package_that_is_not_installed(tmp_path: Path) -> None:
    name = card_with(tmp_path, f'package = "no_such_package"\nfile = "a.pt"\nsha256 = "{"0" * 64}"')
    with pytest.raises(LpmbenchError, match="'no_such_package', which is not installed"):
        zoo.load_model(name)
    reason = zoo.weights_missing(zoo.cards.model(name))
    assert reason is not None
    assert "pip install no-such-package" in reason


class Server:
    """A folder on 127.0.0.1, and what was asked of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, list[str]()
        server = self

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args, directory=str(folder))

            def do_GET(self) -> None:
                server.asked.append(self.path)
                super().do_GET()

            def send_header(self, keyword: str, value: str) -> None:
                if keyword == "Content-Length" and "short" in self.path:
                    value = str(int(value) + 1000)  # more than will come
                super().send_header(keyword, value)

            def log_message(self, *args: Any) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LPMBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache/torch"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "served").mkdir()
    running = Server(tmp_path / "served")
    yield running
    running.stop()


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("file", ["weights.safetensors", "weights.pt", "weights.safetensors?download=1.x"])
def test_weights_are_downloaded_once(file: str, server: Server, cache: Path, state: State, tmp_path: Path) -> None:
    path = server.folder / file.partition("?")[0]
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    digest = sha256_of(path)
    name = card_with(tmp_path, f'url = "{server.url}/{file}"\nsha256 = "{digest}"')
    assert "not downloaded yet" in str(zoo.weights_missing(zoo.cards.model(name)))
    assert_loaded(zoo.load_model(name), state)
    assert zoo.weights_missing(zoo.cards.model(name)) is None
    path.unlink()
    assert_loaded(zoo.load_model(name), state)
    assert server.asked == [f"/{file}"]
    (kept,) = files_in(cache)
    assert sha256_of(kept) == digest
    kept.write_bytes(b"altered")
    with pytest.raises(LpmbenchError, match="sha256 does not match"):
        zoo.load_model(name)


def test_cached_weights_need_no_server(cache: Path, state: State, tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    save_file(state, tmp_path / "served/weights.safetensors")
    running = Server(tmp_path / "served")
    digest = sha256_of(tmp_path / "served/weights.safetensors")
    name = card_with(tmp_path, f'url = "{running.url}/weights.safetensors"\nsha256 = "{digest}"')
    try:
        zoo.load_model(name)
    finally:
        running.stop()
    assert_loaded(zoo.load_model(name), state)
    for path in files_in(cache):
        path.unlink()
    with pytest.raises(LpmbenchError, match="could not be downloaded"):
        zoo.load_model(name)


@pytest.mark.parametrize(("asked", "complaint"), [
    ("weights.safetensors", "nothing was kept"),
    ("short.safetensors", "sha256|could not be downloaded"),
    ("missing.safetensors", r"could not be downloaded: .*404"),
])  # fmt: skip
def test_a_wrong_download_leaves_nothing_behind(
    asked: str, complaint: str, server: Server, cache: Path, state: State, tmp_path: Path
) -> None:
    for name in ("weights", "short"):
        save_file(state, server.folder / f"{name}.safetensors")
    name = card_with(tmp_path, f'url = "{server.url}/{asked}"\nsha256 = "{"0" * 64}"')
    with pytest.raises(LpmbenchError, match=complaint):
        zoo.load_model(name)
    assert server.asked == [f"/{asked}"]
    assert files_in(cache) == []


TORCHVISION = CARD.replace("cnn:Cnn", "torchvision_models:small_resnet").replace(
    "size = 8\nwidth = 2\nhidden = 4", 'architecture = "resnet18"\nwidth = 0.125'
)


@pytest.fixture
def torchvision_card(server: Server, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    """A card with torchvision's weights, and the file that the server offers for them."""
    with torch.device("cpu"):
        network = torchvision_models.small_resnet(architecture="resnet18", channels=1, classes=10, width=0.125)
    plain = server.folder / "plain.pth"
    torch.save(network.state_dict(), plain)
    offered = plain.rename(server.folder / f"resnet18-{sha256_of(plain)[:8]}.pth")
    monkeypatch.setattr(torchvision_models, "_url", lambda _: f"{server.url}/{offered.name}")
    path = tmp_path / "tiny.toml"
    path.write_text(f'{TORCHVISION}[weights]\ntorchvision = "ResNet18_Weights.IMAGENET1K_V1"\n')
    return str(path), offered


def test_weights_of_torchvision_are_downloaded_once(
    torchvision_card: tuple[str, Path], server: Server, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name, offered = torchvision_card
    assert "not downloaded yet" in str(zoo.weights_missing(zoo.cards.model(name)))
    model = zoo.load_model(name)
    assert_loaded(model, torch.load(offered, weights_only=True))
    assert model.weights_sha256 == sha256_of(offered)
    assert zoo.weights_missing(zoo.cards.model(name)) is None
    zoo.load_model(name)
    assert server.asked == [f"/{offered.name}"]
    assert "".join(capfd.readouterr()) == ""
    (kept,) = files_in(cache)
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(LpmbenchError, match=r"altered or cut short; delete it"):
        zoo.load_model(name)


def test_torchvision_s_files_are_checked_like_all_others(torchvision_card: tuple[str, Path], cache: Path) -> None:
    name, offered = torchvision_card
    content = bytearray(offered.read_bytes())
    content[-1] ^= 1
    offered.write_bytes(content)
    with pytest.raises(LpmbenchError, match=r"could not be downloaded: .*hash"):
        zoo.load_model(name)
    assert files_in(cache) == []


def test_malicious_torchvision_weights_do_not_run(
    torchvision_card: tuple[str, Path], server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"extra": Malicious(tmp_path / "ran")}, server.folder / "bad.pth")
    bad = (server.folder / "bad.pth").rename(server.folder / f"bad-{sha256_of(server.folder / 'bad.pth')[:8]}.pth")
    monkeypatch.setattr(torchvision_models, "_url", lambda _: f"{server.url}/{bad.name}")
    with pytest.raises(LpmbenchError, match="refused"):
        zoo.load_model(torchvision_card[0])
    assert not (tmp_path / "ran").exists()


def test_unknown_torchvision_weights(tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(f'{TORCHVISION}[weights]\ntorchvision = "ResNet18_Weights.V9"\n')
    with pytest.raises(LpmbenchError, match=r"torchvision has no weights called 'ResNet18_Weights\.V9'"):
        zoo.load_model(str(path))
    assert zoo.weights_missing(zoo.cards.model(str(path))) is not None


def test_a_failed_download_is_one_line(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # Port 9 of this computer: nobody answers.
    monkeypatch.setattr(torchvision_models, "_url", lambda _: "http://127.0.0.1:9/resnet18-f37072fd.pth")
    assert run(["attack", "--model", "resnet18-imagenet", "--dataset", "panda", "--attack", "fgsm"]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("lpmbench: The weights ResNet18_Weights.IMAGENET1K_V1 could not be downloaded: ")


def test_without_a_model_those_without_weights_are_skipped_with_the_reason(
    cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["attack", "--dataset", "panda", "--attack", "noise"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    skipped = [line for line in out.splitlines() if line.startswith("Skipping ")]
    downloadable = [name for name in zoo.cards.names("model") if _from_torchvision(name)]
    assert len(downloadable) >= 5
    for name in downloadable:
        assert f"Skipping {name}: weights not downloaded yet; --model {name} fetches them." in skipped
    assert any(line.startswith("Skipping ramlpm-imagenet: no weights; ") for line in skipped)
    attacked = sorted(path.parent.name.split("--")[0] for path in Path("runs").rglob("record.json"))
    assert attacked == ["efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"]
    assert files_in(cache) == []


def _from_torchvision(name: str) -> bool:
    weights = zoo.cards.model(name).weights
    return weights is not None and weights.torchvision is not None


@pytest.fixture(scope="module")
def reference() -> State:
    """Random weights under the names and in the shapes of the original code."""
    generator = torch.Generator().manual_seed(1)
    shapes = json.loads((DATA / "ramlpm_sim2mnist.keys.json").read_text())
    state = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    return {n: t.long() if n.endswith("num_batches_tracked") else t for n, t in state.items()}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_checkpoint_of_the_original_code_loads_in_every_wrapping(
    wrapping: str, reference: State, tmp_path: Path
) -> None:
    torch.save(WRAPPINGS[wrapping](reference), tmp_path / "best_model.ckpt")
    model = zoo.load_model("ramlpm-sim2mnist", checkpoint=tmp_path / "best_model.ckpt")
    network = model.classifier.network
    assert isinstance(network, RamLpm)
    assert_loaded(model, network.translate_reference_state(reference))
    # A few of them by hand, so that the translation does not only agree with itself.
    assert torch.equal(network.locator.weight, reference["locator.fc.weight"])
    assert torch.equal(network.what_rnn.weight_hh, reference["rnn_what.weight_hh"])
    assert torch.equal(network.what_cnn.blocks[0].conv.weight, reference["cnn_what.net.3.weight"])
    assert torch.equal(network.what_cnn.blocks[1].norm.running_var, reference["cnn_what.net.13.running_var"])


def test_a_resnet_with_the_names_of_other_code_answers_as_that_code_does() -> None:
    model = zoo.load_model("resnet18-cifar10-autoattack")
    theirs = resnet.ResNet18().eval()
    theirs.load_state_dict(weight_files.read(Path(resnet.__file__).with_name("model_test.pt")))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.classifier(images), theirs(images), atol=1e-4, rtol=1e-5)


def test_a_checkpoint_of_the_other_experiment_does_not_fit(reference: State, tmp_path: Path) -> None:
    torch.save(reference, tmp_path / "best_model.ckpt")
    with pytest.raises(LpmbenchError, match="do not fit the model") as error:
        zoo.load_model("ramlpm-imagenet", checkpoint=tmp_path / "best_model.ckpt")
    assert "\n" not in str(error.value)
