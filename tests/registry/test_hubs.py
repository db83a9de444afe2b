"""Models by their address: a small hub on this machine, random weights, and the libraries' own loaders."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTModel

import robustbench_lpm
from robustbench_lpm.architectures import torchvision_models
from robustbench_lpm.architectures.classifier import Classifier
from robustbench_lpm.cli import run
from robustbench_lpm.datasets.cifar10 import CLASSES
from robustbench_lpm.datasets.imagenet import imagenet_classes
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.hashing import sha256_of
from robustbench_lpm.registry import cards, hubs, zoo
from tests.hubs import COMMITS, HubServer, ask_only, save_timm, save_vit, served

EFFICIENTNET, VIT = "test_efficientnet.r160_in1k", "test_vit.r160_in1k"  # timm's own models for tests


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with served(tmp_path / "served") as server:
        ask_only(server.url, tmp_path / "cache", monkeypatch)
        hubs.describe.cache_clear()
        yield server
    hubs.describe.cache_clear()


@pytest.fixture
def vit(hub: HubServer) -> Path:
    """The folder of hf:me/vit."""
    save_vit(hub.repository("me/vit"))
    return hub.repository("me/vit")


@pytest.fixture
def efficientnet(hub: HubServer) -> Path:
    """The folder of timm:test_efficientnet."""
    folder = hub.repository(f"timm/{EFFICIENTNET}")
    save_timm(folder, EFFICIENTNET)
    return folder


def picture(size: int, seed: int = 0) -> tuple[Image.Image, Tensor]:
    """Random pixels, as an image and as a batch (1, 3, size, size) in [0, 1]."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels), torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255


def complaint(name: str) -> str:
    with pytest.raises(LpmbenchError) as error:
        zoo.load_model(name)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("changes", [
    {}, {"do_normalize": False}, {"do_rescale": False}, {"rescale_factor": 1 / 127.5},
])  # fmt: skip
def test_a_model_of_hf_answers_as_transformers_would(changes: dict[str, Any], vit: Path) -> None:
    described = vit / "preprocessor_config.json"
    described.write_text(json.dumps(json.loads(described.read_text()) | changes))
    model = zoo.load_model("hf:me/vit")
    image, pixels = picture(32)
    inputs = AutoImageProcessor.from_pretrained(vit)(images=image, return_tensors="pt")
    expected = AutoModelForImageClassification.from_pretrained(vit).eval()(**inputs).logits
    torch.testing.assert_close(model.classifier(pixels), expected, rtol=1e-4, atol=1e-4)
    assert model.weights_sha256 == model.identity["weights_sha256"] == sha256_of(vit / "model.safetensors")
    assert model.identity["library"] == f"transformers {transformers.__version__}"
    assert model.card is not None
    assert (model.card.input.working_size, model.card.classes) == (32, 10)  # a ViT reads no other size


def test_the_normalisation_is_the_one_that_the_hub_describes(vit: Path) -> None:
    card = cards.model("hf:me/vit")
    assert (card.input.mean, card.input.std) == ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])


def test_channels_in_another_order_are_refused(vit: Path) -> None:
    from transformers import MobileViTImageProcessor

    MobileViTImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(vit)
    assert "does more than to resize and to normalise" in complaint("hf:me/vit")


@pytest.mark.parametrize(("names", "labels"), [
    (CLASSES, "cifar10"),
    (CLASSES[::-1], "hf:me/vit"),  # the same classes in another order
    (tuple(f"{name}, a thing" for name in imagenet_classes()), "imagenet"),
    (tuple(f"LABEL_{number}" for number in range(1000)), "hf:me/vit"),
])  # fmt: skip
def test_a_label_set_is_known_by_its_names(names: tuple[str, ...], labels: str, hub: HubServer) -> None:
    save_vit(hub.repository("me/vit"), labels=list(names))
    assert cards.model("hf:me/vit").labels == labels


def test_a_revision_pins_a_model(vit: Path, hub: HubServer) -> None:
    save_vit(hub.repository("me/vit", "old"), seed=1)
    new, old = zoo.load_model("hf:me/vit"), zoo.load_model("hf:me/vit@old")
    by_commit = zoo.load_model(f"hf:me/vit@{COMMITS['old']}")
    assert new.weights_sha256 != old.weights_sha256 == by_commit.weights_sha256
    assert old.name == "hf:me/vit@old"


def test_safetensors_in_parts(vit: Path) -> None:
    whole = zoo.load_model("hf:me/vit").classifier
    state = load_file(vit / "model.safetensors")
    (vit / "model.safetensors").unlink()
    shutil.rmtree(hubs.folder().parent / "hf")
    names = {name: f"model-0000{1 + position % 2}-of-00002.safetensors" for position, name in enumerate(state)}
    for part in set(names.values()):
        save_file({name: state[name] for name in state if names[name] == part}, vit / part, {"format": "pt"})
    (vit / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    (hubs.folder() / hubs.SEEN).unlink()
    _, pixels = picture(32)
    assert torch.equal(zoo.load_model("hf:me/vit").classifier(pixels), whole(pixels))


@pytest.mark.parametrize(("name", "fixed"), [(EFFICIENTNET, None), (VIT, 160)])
def test_a_model_of_timm_answers_as_timm_would(name: str, fixed: int | None, hub: HubServer) -> None:
    save_timm(hub.repository(f"timm/{name}"), name)
    model = zoo.load_model(f"timm:{name.partition('.')[0]}")
    network = timm.create_model(name, pretrained=False)
    network.load_state_dict(load_file(hub.repository(f"timm/{name}") / "model.safetensors"))
    config = network.pretrained_cfg
    by_hand = Classifier(network, mean=config["mean"], std=config["std"]).eval()
    _, pixels = picture(160)
    assert torch.equal(model.classifier(pixels), by_hand(pixels))
    assert model.name == f"timm:{name}"  # with the tag of its weights
    assert model.card is not None
    assert model.card.input.working_size == fixed
    assert model.card.labels == "imagenet"


def test_what_is_in_the_cache_is_loaded_without_asking(
    vit: Path, efficientnet: Path, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {name: zoo.load_model(name).weights_sha256 for name in ("hf:me/vit", f"timm:{EFFICIENTNET}")}
    asked = len(hub.asked)
    ask_only("http://127.0.0.1:9", tmp_path / "cache", monkeypatch)  # no server is there
    hubs.describe.cache_clear()
    assert {name: zoo.load_model(name).weights_sha256 for name in first} == first
    assert len(hub.asked) == asked
    for name in ("hf:me/other", f"timm:{VIT}"):
        assert "is not in the cache" in (told := complaint(name))
        assert "http://127.0.0.1:9 cannot be reached" in told


def test_other_weights_at_the_same_address_are_refused(vit: Path) -> None:
    known = zoo.load_model("hf:me/vit").weights_sha256
    assert cards.model("hf:me/vit").weights.sha256 == known  # type: ignore[union-attr]
    save_vit(vit, seed=1)
    shutil.rmtree(hubs.folder().parent / "hf")
    told, changed = complaint("hf:me/vit"), sha256_of(vit / "model.safetensors")
    assert str(known) in told
    assert changed in told
    assert f"delete the line of hf:me/vit in {hubs.folder() / 'hubs.txt'}" in told
    assert "hf:OWNER/NAME@REVISION" in told
    (hubs.folder() / "hubs.txt").write_text("")
    assert zoo.load_model("hf:me/vit").weights_sha256 == changed


def test_a_card_printed_from_an_address_pins_its_weights(
    efficientnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = zoo.weights_missing(cards.model("timm:test_efficientnet"))
    assert before is not None
    assert "not downloaded yet" in before
    by_address = zoo.load_model(f"timm:{EFFICIENTNET}")
    assert zoo.weights_missing(cards.model("timm:test_efficientnet")) is None
    assert run(["models", "show", "timm:test_efficientnet"]) == 0
    card = tmp_path / "mine.toml"
    card.write_text(capsys.readouterr().out.replace(f'"timm:{EFFICIENTNET}"', '"mine"', 1))
    _, pixels = picture(64)
    assert torch.equal(zoo.load_model(str(card)).classifier(pixels), by_address.classifier(pixels))
    digest = str(by_address.weights_sha256)
    card.write_text(card.read_text().replace(digest, digest[::-1]))
    assert f"weights.sha256 is {digest[::-1]}, but the hub gives {digest}" in complaint(str(card))


def test_a_checkpoint_of_one_s_own_in_a_network_of_a_hub(efficientnet: Path, tmp_path: Path) -> None:
    save_timm(tmp_path, EFFICIENTNET, seed=1)
    checkpoint = tmp_path / "model.safetensors"
    shutil.rmtree(efficientnet)  # which needs nothing of the hub
    model = zoo.load_model(f"timm:{EFFICIENTNET}", checkpoint=checkpoint)
    assert model.weights_sha256 == sha256_of(checkpoint)
    assert hubs.seen(f"timm:{EFFICIENTNET}") is None


class Malicious:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.marker), "w"))


def test_pickles_are_refused_or_read_as_tensors_alone(vit: Path, efficientnet: Path, tmp_path: Path) -> None:
    state, marker = load_file(efficientnet / "model.safetensors"), tmp_path / "ran"
    (efficientnet / "model.safetensors").unlink()
    (vit / "model.safetensors").unlink()
    for folder in (efficientnet, vit):
        torch.save({**state, "more": Malicious(marker)}, folder / "pytorch_model.bin")
    assert "Pickles can run code and are refused" in complaint("hf:me/vit")
    assert "was refused: it does not load as tensors alone" in complaint(f"timm:{EFFICIENTNET}")
    assert not marker.exists()
    shutil.rmtree(hubs.folder().parent / "hf")
    torch.save(state, efficientnet / "pytorch_model.bin")  # harmless, as older repositories of timm's hold it
    assert zoo.load_model(f"timm:{EFFICIENTNET}").weights_sha256 == sha256_of(efficientnet / "pytorch_model.bin")


def test_no_code_of_a_repository_runs(vit: Path, tmp_path: Path) -> None:
    config = json.loads((vit / "config.json").read_text())
    own = {"AutoConfig": "evil.Config", "AutoModelForImageClassification": "evil.Model"}
    (vit / "config.json").write_text(json.dumps(config | {"model_type": "evil", "auto_map": own}))
    (vit / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert "needs code of its own, which is not run" in complaint("hf:me/vit")
    assert not (tmp_path / "ran").exists()


def test_a_network_without_a_trained_classifier_is_refused(vit: Path) -> None:
    config = json.loads((vit / "config.json").read_text())
    ViTModel.from_pretrained(vit).save_pretrained(vit)
    (vit / "config.json").write_text(json.dumps(config))
    assert "lacks weights of the classifier (classifier.bias, classifier.weight)" in complaint("hf:me/vit")


@pytest.mark.parametrize(("name", "told"), [
    ("hf:vit", "must look like hf:OWNER/NAME or hf:OWNER/NAME@REVISION"),
    ("hf:me/none", "There is no 'me/none' at http://127.0.0.1"),
    ("hf:me/vit@none", "There is no 'me/vit' at revision 'none'"),
    (f"hf:timm/{EFFICIENTNET}", "a model of timm is called timm:test_efficientnet"),
    ("timm:test_efficientnt", "Did you mean 'timm:test_efficientnet' or "),
    ("timm:test_efficientnet.r161_in1k", "Did you mean 'timm:test_efficientnet.r160_in1k'?"),
    ("timm:zzzzzzzzz", "The nearest of "),
    ("timm:vit_small_patch14_dinov2", "answers with features, not with classes"),
    ("torchvision:resnat18", "Did you mean 'torchvision:resnet18' or "),
    ("torchvision:resnet18@V9", "Did you mean 'torchvision:resnet18@IMAGENET1K_V1'?"),
    ("tim:resnet18", "Unknown hub 'tim'. Did you mean 'timm'?"),
])  # fmt: skip
def test_mistakes(name: str, told: str, vit: Path, efficientnet: Path) -> None:
    (efficientnet / "config.json").write_text('{"architecture": "test_efficientnet"}')
    assert told in complaint(name)


def test_a_file_that_is_no_weights_is_called_what_it_is(efficientnet: Path) -> None:
    (efficientnet / "model.safetensors").write_text("<html>Sign in</html>")
    assert "it is a web page" in complaint(f"timm:{EFFICIENTNET}")


def test_a_hub_whose_library_is_missing_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("robustbench_lpm.registry.hubs.of_timm", "timm"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "timm", None)  # as if it were not installed
    hubs.describe.cache_clear()
    assert "pip install 'robustbench-lpm[timm]'" in complaint("timm:test_efficientnet")


@pytest.mark.usefixtures("hub")
def test_a_model_that_timm_finds_at_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the models that users register with timm."""
    from timm.models import _registry

    save_timm(tmp_path, EFFICIENTNET)
    config = timm.models.get_pretrained_cfg(EFFICIENTNET)
    config.hf_hub_id, config.url = None, (tmp_path / "model.safetensors").as_uri()
    monkeypatch.setitem(_registry._model_pretrained_cfgs, EFFICIENTNET, config)
    model = zoo.load_model(f"timm:{EFFICIENTNET}")
    assert model.weights_sha256 == sha256_of(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    zoo.load_model(f"timm:{EFFICIENTNET}")  # from torch's cache
    config.url = (tmp_path / "gone.safetensors").as_uri()
    assert "gone.safetensors could not be downloaded" in complaint(f"timm:{EFFICIENTNET}")


@pytest.mark.parametrize(("address", "registered"), [
    ("torchvision:resnet50@IMAGENET1K_V2", "resnet50-imagenet"),
    ("torchvision:convnext_tiny", "convnext-tiny-imagenet"),
    ("torchvision:vit_b_16@IMAGENET1K_V1", "vit-b-16-imagenet"),
])  # fmt: skip
def test_an_address_of_torchvision_is_the_card_that_was_written_by_hand(address: str, registered: str) -> None:
    made, written = cards.model(address), cards.model(registered)
    assert (made.weights, made.input, made.labels, made.classes) == (
        written.weights, written.input, written.labels, written.classes,
    )  # fmt: skip
    size = {"image_size": 224} if "vit" in address else {}  # which is its default
    assert made.parameters == written.parameters | size
    assert made.entry == written.entry


@pytest.mark.parametrize("architecture", ["inception_v3", "googlenet"])
def test_torchvision_s_networks_with_a_transform_of_their_own(architecture: str) -> None:
    """Their builders change what is passed on where there are weights; ours must build the same network."""
    card = cards.model(f"torchvision:{architecture}")
    with torch.device("meta"):
        assert zoo.build(card).transform_input is True


def test_weights_of_torchvision_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask_only("http://127.0.0.1:9", tmp_path / "cache", monkeypatch)
    torch.manual_seed(0)
    card = cards.model("torchvision:squeezenet1_1")
    network = zoo.build(card)
    torch.save(network.state_dict(), tmp_path / "squeezenet.pth")
    digest = sha256_of(tmp_path / "squeezenet.pth")
    offered = (tmp_path / "squeezenet.pth").rename(tmp_path / f"squeezenet1_1-{digest[:8]}.pth")
    monkeypatch.setattr(torchvision_models, "_url", lambda _: offered.as_uri())
    model = zoo.load_model("torchvision:squeezenet1_1")
    assert model.name == "torchvision:squeezenet1_1@IMAGENET1K_V1"
    assert model.weights_sha256 == hubs.seen(model.name) == digest
    lines = (hubs.folder() / hubs.SEEN).read_text()
    (hubs.folder() / hubs.SEEN).write_text(lines.replace(digest, "0" * 64))
    assert "when they were first loaded here, it was 0000" in complaint("torchvision:squeezenet1_1")


def test_python_takes_an_address(vit: Path) -> None:
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = zoo.load_model("hf:me/vit").classifier(images).argmax(1)
    record = robustbench_lpm.evaluate("hf:me/vit", "pgd", (images, labels), eps=0.1, parameters={"steps": 2})
    assert record.model == "hf:me/vit"
    assert record.clean_accuracy.value == 1
    assert record.configuration["model"]["weights_sha256"] == sha256_of(vit / "model.safetensors")
    moved = robustbench_lpm.evaluate(
        "hf:me/vit", "transfer", (images, labels), eps=0.1, surrogates=["hf:me/vit@main"], parameters={"steps": 2}
    )
    assert moved.configuration["attack"]["surrogates"]


# RobustBench pins an old timm and needs an old setuptools: it is installed where someone wants to run this.


@pytest.fixture
def robustbench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Our module that asks RobustBench; it finds files where RobustBench itself would leave them."""
    pytest.importorskip("robustbench_lpm.registry.hubs.of_robustbench", exc_type=ImportError)
    from robustbench_lpm.registry.hubs import of_robustbench

    ask_only("http://127.0.0.1:9", tmp_path / "cache", monkeypatch)
    hubs.describe.cache_clear()
    return of_robustbench


def parallel(network: nn.Module) -> dict[str, Any]:
    """A state dict as RobustBench's authors have saved theirs: by DataParallel, without the normalisation."""
    state = {f"module.{name}": x for name, x in network.state_dict().items() if name not in ("mu", "sigma")}
    return {"state_dict": state}


@pytest.mark.slow
@pytest.mark.parametrize("address", ["Wong2020Fast", "Wong2020Fast/Linf", "cifar10/Wong2020Fast/Linf"])
def test_a_model_of_robustbench(address: str, robustbench: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = robustbench.network("Wong2020Fast", []).eval()
    path = hubs.folder() / "robustbench/cifar10/Linf/Wong2020Fast.pt"
    path.parent.mkdir(parents=True)
    torch.save(parallel(network), path)
    model = zoo.load_model(f"robustbench:{address}")
    _, pixels = picture(32)
    assert torch.equal(model.classifier(pixels), network(pixels))
    assert model.name == "robustbench:cifar10/Wong2020Fast/Linf"
    assert model.weights_sha256 == hubs.seen(model.name) == sha256_of(path)
    assert model.identity["labels"] == "cifar10"
    marker = tmp_path / "ran"
    torch.save(parallel(network) | {"more": Malicious(marker)}, path)
    (hubs.folder() / hubs.SEEN).unlink()
    assert "does not load as tensors alone" in complaint(f"robustbench:{address}")
    assert not marker.exists()


@pytest.mark.slow
def test_an_ensemble_of_robustbench(robustbench: Any) -> None:
    torch.manual_seed(0)
    network = robustbench.network("Chen2020Adversarial", []).eval()
    folder = hubs.folder() / "robustbench/cifar10/Linf"
    folder.mkdir(parents=True)
    for number, part in enumerate(network.models):
        torch.save(parallel(part), folder / f"Chen2020Adversarial.pt_m{number}.pt")
    _, pixels = picture(32)
    assert torch.equal(zoo.load_model("robustbench:Chen2020Adversarial").classifier(pixels), network(pixels))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "told"), [
    ("Wong2020Fsat", "Did you mean 'robustbench:cifar10/Wong2020Fast/Linf' or "),
    ("Standard/L1", "Unknown threat model 'L1'"),
    ("svhn/Standard/Linf/x", "must look like robustbench:[DATASET/]NAME[/THREAT]"),
    ("Standard", "Standard.pt, and could not be downloaded"),
    ("imagenet/Standard_R50", "has no weights of RobustBench's own"),
])  # fmt: skip
def test_mistakes_at_robustbench(name: str, told: str, robustbench: Callable[..., Any]) -> None:
    assert told in complaint(f"robustbench:{name}")
