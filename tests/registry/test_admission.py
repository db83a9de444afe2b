"""Models as people bring them: what runs, what is refused with which line; the owner's own is untouched."""

from __future__ import annotations

import copy
import gc
import os
import random
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import robustbench_lpm
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.randomness import Addresses
from robustbench_lpm.records.runs import RunRecord
from robustbench_lpm.registry import zoo
from robustbench_lpm.registry.admission import AsItIs, _admitted, admit, handed_over
from robustbench_lpm.registry.tasks import resolve_attack

NET = zoo.load_model("cnn").classifier.network


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)  # networks are drawn: the same ones in every run


PARAMETERS: dict[str, dict[str, Any]] = {"pgd": {"steps": 2}, "square": {"queries": 5}, "noise": {}}


class Around(nn.Module):
    """What `function` makes of a good network and its images."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Any], **attributes: Any) -> None:
        super().__init__()
        self.net, self.function = copy.deepcopy(NET), function
        for name, value in attributes.items():
            setattr(self, name, value)
        self.eval()

    def forward(self, images: Tensor) -> Any:
        return self.function(self.net, images)


class WithState(Around):
    """The same, but the function meets the module itself."""

    def forward(self, images: Tensor) -> Any:
        return self.function(self, images)


class InAList(nn.Module):
    """A batch normalisation where eval() does not reach it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.layers, self.out = nn.Conv2d(1, 8, 3), [nn.BatchNorm2d(8)], nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.out(self.layers[0](self.conv(images)).mean((2, 3)))


class Flattens(nn.Module):
    """Flattens by .view, which reads memory in its order."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(1, 4, 5), nn.Linear(4 * 14 * 14, 10)

    def forward(self, images: Tensor) -> Tensor:
        found = F.max_pool2d(self.conv(images), 2)
        return self.out(found.view(len(images), -1))


class DeclaresNoise(Around):
    """Offers noise of its own, drawn by `draw`, beside what its function does."""

    draw: Callable[[Addresses], Tensor]

    def sample_noise(self, addresses: Addresses) -> dict[str, Tensor]:
        return {"level": self.draw(addresses)}

    def forward(self, images: Tensor, noise: dict[str, Tensor] | None = None) -> Tensor:
        assert noise is not None
        return self.function(self.net, images) + noise["level"] * torch.arange(10.0)


class Volume(nn.Module):
    """Weights of five dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv3d(1, 4, (1, 3, 3)), nn.Linear(4, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.out(self.conv(images[:, :, None]).mean((2, 3, 4)))


def small(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 8, 1), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def flat(*layers: nn.Module, pixels: int = 1024) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(pixels, 10))


def one_part_in_training(network: nn.Sequential, part: int) -> nn.Sequential:
    network.eval()
    network[part].train()
    return network


def without_gradients(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return network(images)


def in_inference(network: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return network(images)


def with_own_seed(network: nn.Module, images: Tensor) -> Tensor:
    torch.manual_seed(0)
    return network(images + 0.01 * torch.randn_like(images))


def sharpened(network: nn.Module, images: Tensor) -> Tensor:
    """A step towards what it sees already, as purification by an energy does."""
    if not images.requires_grad:
        images = images.detach().requires_grad_()
    (slope,) = torch.autograd.grad(network(images).logsumexp(1).sum(), images, create_graph=True)
    return network(images + 0.001 * slope)


def cached(module: Any, images: Tensor) -> Tensor:
    if module.mask is None:
        module.mask = torch.ones_like(images[:1])
    return module.net(images * module.mask)


class Answer:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


def mirrored(network: nn.Module, images: Tensor, coin: bool) -> Tensor:
    return network(images.flip(-1) if coin else images)


def counted(module: Any, images: Tensor) -> Tensor:
    module.calls += 1
    return mirrored(module.net, images, module.calls % 2 == 0)


def computed_weight() -> nn.Module:
    network = flat()
    torch.nn.utils.weight_norm(network[1])  # type: ignore[no-untyped-call]
    network(torch.rand(2, 1, 32, 32))
    return network


def run(model: Any, attack: str = "pgd", **options: Any) -> RunRecord:
    given: dict[str, Any] = {"eps": 0.1, "limit": 6, "draws": 5, "parameters": PARAMETERS[attack]}
    return robustbench_lpm.evaluate(model, attack, "digits", **given | options)


@cache
def expected() -> RunRecord:
    return run(NET)


# The same network in other clothes: what it answers, and what is found, must be the same.
SAME: dict[str, Callable[[], Any]] = {
    "an object with logits": lambda: Around(lambda net, x: Answer(net(x))),
    "a dictionary with logits": lambda: Around(lambda net, x: {"logits": net(x), "loss": 0.0}),
    "the first tensor of a tuple": lambda: Around(lambda net, x: (net(x), x.mean())),
    "a list": lambda: Around(lambda net, x: [None, net(x)]),
    "float64 answers": lambda: Around(lambda net, x: net(x).double()),
    "float64 weights": lambda: copy.deepcopy(NET).double(),
    "a function": lambda: lambda images: NET(images),
    "scripted": lambda: torch.jit.script(copy.deepcopy(NET)),
    "traced": lambda: torch.jit.trace(copy.deepcopy(NET), torch.rand(2, 1, 32, 32)),
    "works in place": lambda: Around(lambda net, x: net(x.sub_(0.25).add_(0.25))),
    "in training mode": lambda: copy.deepcopy(NET).train(),
    "for several devices": lambda: nn.DataParallel(copy.deepcopy(NET)),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_network_in_other_clothes(name: str) -> None:
    record = run(SAME[name]())
    assert not record.stochastic
    assert record.clean_predictions.tolist() == expected().clean_predictions.tolist()
    assert record.predictions.tolist() == expected().predictions.tolist()


# Builders of models that run, and what the record says of them (or does not: an empty text).
ADMITTED: dict[str, tuple[Callable[[], Any], str]] = {
    "in training mode": (lambda: small(nn.BatchNorm2d(8)).train(), "handed over in training mode"),
    "lazy layers": (lambda: nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(10)), "drawn at random"),
    "weights of five dimensions": (Volume, ""),
    "float16 weights": (lambda: copy.deepcopy(NET).half(), "works in float16"),
    "flattens by view": (Flattens, ""),
    "a weight computed by a hook": (computed_weight, ""),
    "minus infinity": (lambda: Around(lambda net, x: F.pad(net(x)[:, :9], (0, 1), value=-torch.inf)), ""),
    "saturated": (lambda: Around(lambda net, x: 1e4 * net(x)), "cross-entropy is zero"),
    "rounds its input": (lambda: Around(lambda net, x: net((8 * x).round() / 8)), "gradient of Around is zero"),
    "probabilities": (lambda: Around(lambda net, x: net(x).softmax(1)), "answers with probabilities"),
    "sets a seed of its own": (lambda: Around(with_own_seed), ""),
    "takes gradients of its own": (lambda: Around(sharpened), ""),
    "takes gradients of its own, switched on": (lambda: Around(torch.enable_grad()(sharpened)), ""),
    "keeps what its first pass computed": (lambda: WithState(cached, mask=None), ""),
}


@pytest.mark.parametrize("name", ADMITTED)
def test_what_is_admitted(name: str) -> None:
    build, told = ADMITTED[name]
    record = run(build())
    assert len(record.outcomes) == 6
    assert not record.stochastic
    assert told in "; ".join(record.notes)
    if not told:
        assert not [note for note in record.notes if "chance" not in note and "training mode" not in note]


RANDOM: dict[str, tuple[Callable[[], Any], str]] = {
    "torch": (lambda: Around(lambda net, x: mirrored(net, x, bool(torch.rand(()) < 0.5))), "torch's generator"),
    "numpy": (lambda: Around(lambda net, x: mirrored(net, x, np.random.rand() < 0.5)), "numpy's generator"),
    "Python": (lambda: Around(lambda net, x: mirrored(net, x, random.random() < 0.5)), "Python's generator"),
    "a rare coin": (lambda: Around(lambda net, x: mirrored(net, x, bool(torch.rand(()) < 1e-9))), "torch's generator"),
    "dropout left on": (lambda: one_part_in_training(flat(nn.Dropout(0.5)), 1), "torch's generator"),
    "a function": (lambda: lambda x: NET(x + 0.3 * torch.randn_like(x)), "torch's generator"),
}


@pytest.mark.parametrize("name", RANDOM)
def test_randomness_is_found_and_is_ours_to_seed(name: str) -> None:
    build, source = RANDOM[name]
    model, found = build(), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        record = run(model, "noise")
        assert record.stochastic
        assert f"stochastic: 5 draws of its own noise, from {source}" in record.notes
        found.append(record.predictions.tolist())
    assert found[0] == found[1]


class OfOldNoise(Around):
    """Takes one generator for each image, as networks did before version 0.2."""

    def sample_noise(self, batch_size: int, generators: list[torch.Generator]) -> dict[str, Tensor]:
        return {"level": torch.stack([torch.randn(1, generator=generator) for generator in generators])}


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a generator of its own": (
        lambda: WithState(
            lambda module, x: module.net(x + 0.3 * torch.randn(x.shape, generator=module.source)),
            source=torch.Generator(),
        ),
        r"not repeatable: it draws from a generator of its own, source",
    ),
    "numpy's new generators": (
        lambda: WithState(lambda m, x: mirrored(m.net, x, m.rng.random() < 0.5), rng=np.random.default_rng(0)),
        r"generator of its own, rng",
    ),
    "the system's randomness": (
        lambda: Around(lambda net, x: net(x + os.urandom(1)[0] / 255)),
        "differently under one and the same seed",
    ),
    "counts its calls": (lambda: WithState(counted, calls=0), "differently under one and the same seed"),
    "batch normalisation in a list": (InAList, r"layers\[0\].running_mean.*BatchNorm2d at layers\[0\]"),
    "batch normalisation left on": (
        lambda: one_part_in_training(small(nn.BatchNorm2d(8)), 1),
        "1.running_mean.*BatchNorm2d at 1 is in training mode",
    ),
    "no running statistics": (
        lambda: small(nn.BatchNorm2d(8, track_running_stats=False)).eval(),
        "BatchNorm2d at 1 takes the statistics of the batch",
    ),
    "a function around training mode": (
        (lambda network: lambda: lambda x: network(x))(small(nn.BatchNorm2d(8))),
        "BatchNorm2d at .*1",
    ),
    "the batch's mean": (lambda: Around(lambda net, x: net(x - x.mean(0))), "it depends on the rest of the batch"),
    "the batch's maximum": (lambda: Around(lambda net, x: net(x / x.max())), "it depends on the rest of the batch"),
    "softmax over the batch": (lambda: Around(lambda net, x: net(x).softmax(0)), "it depends on the rest of the batch"),
    "NaN": (lambda: Around(lambda net, x: net(x) * torch.nan), "NaN or infinite"),
    "infinity": (lambda: Around(lambda net, x: net(x) / 0), "NaN or infinite"),
    "labels": (lambda: Around(lambda net, x: net(x).argmax(1)), "not with logits"),
    "squeezes": (lambda: Around(lambda net, x: net(x).squeeze()), r"one with \(10,\)"),
    "four dimensions": (lambda: Around(lambda net, x: net(x)[..., None, None]), "not with logits"),
    "one logit": (lambda: Around(lambda net, x: net(x)[:, :1]), "at least two classes"),
    "an array": (lambda: Around(lambda net, x: net(x).detach().numpy()), "of type ndarray"),
    "a dictionary without logits": (lambda: Around(lambda net, x: {"out": net(x)}), "with the keys out"),
    "nothing": (lambda: Around(lambda net, x: None), "of type NoneType"),
    "complex numbers": (lambda: Around(lambda net, x: torch.complex(net(x), net(x))), "complex"),
    "another size": (lambda: flat(pixels=784), r"cannot read images \(1, 32, 32\): .*1024"),
    "other channels": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3)), r"cannot read images \(1, 32, 32\)"),
    "its own error": (lambda: Around(lambda net, x: {}["weights"]), "KeyError: 'weights'"),
    "eleven classes": (lambda: Around(lambda net, x: F.pad(net(x), (0, 1))), "11 logits, but 'digits' has 10 classes"),
    "a class": (lambda: nn.Identity, r"hand over an instance, Identity\(\)"),
    "a number": (lambda: 3, "int is no model"),
    "noise from elsewhere": (
        lambda: DeclaresNoise(lambda net, x: net(x), draw=lambda addresses: torch.randn(len(addresses), 1)),
        "from the addresses that it is given",
    ),
    "more noise than it says": (
        lambda: DeclaresNoise(
            lambda net, x: net(x + torch.rand_like(x)), draw=lambda addresses: addresses.normal("level", 1)
        ),
        "draws from torch's generator too",
    ),
    "noise by generators": (
        lambda: OfOldNoise(lambda net, x: net(x)),
        r"write `def sample_noise\(self, addresses\)` .* addresses.normal\(.*see models/README.md",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_so_in_one_line_by_every_attack(name: str) -> None:
    build, line = REFUSED[name]
    for attack in ("pgd", "noise"):
        with pytest.raises(LpmbenchError, match=line) as error:
            run(build(), attack)
        assert "\n" not in str(error.value)


NO_GRADIENT: dict[str, Callable[[], Any]] = {
    "no_grad inside": lambda: Around(without_gradients),
    "inference mode inside": lambda: Around(in_inference),
    "through numpy": lambda: Around(lambda net, x: torch.tensor(2 * net(x).detach().numpy())),
    "numpy alone": lambda: lambda x: torch.tensor(NET(x).numpy()),
    "quantised": lambda: torch.ao.quantization.quantize_dynamic(copy.deepcopy(NET), {nn.Linear}),
}


@pytest.mark.parametrize("name", NO_GRADIENT)
def test_without_a_gradient_black_boxes_run_and_the_others_name_them(name: str) -> None:
    model = NO_GRADIENT[name]()
    assert len(run(model, "square").outcomes) == 6
    with pytest.raises(LpmbenchError, match=r"'pgd' needs a gradient.*: .*\bnoise, .*\bspsa"):
        run(model, "pgd")


OWNED: dict[str, Callable[[], nn.Module]] = {
    "one input channel": lambda: copy.deepcopy(NET),
    "1x1 kernels, batch normalisation, training mode": lambda: small(nn.BatchNorm2d(8), nn.Dropout(0.5)).train(),
    "modes of its own": lambda: one_part_in_training(flat(nn.Dropout(0.5)), 1),
    "view": Flattens,
    "lazy": lambda: nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(10)),
    "channels last": lambda: copy.deepcopy(NET).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
    "in place": lambda: nn.Sequential(nn.ReLU(inplace=True), copy.deepcopy(NET)),
    "scripted": lambda: torch.jit.script(small(nn.BatchNorm2d(8), nn.Dropout(0.5)).train()),
    "refused": lambda: one_part_in_training(small(nn.BatchNorm2d(8)), 1),
}


def seen_of(model: nn.Module) -> list[Any]:
    """All that an owner could see changed."""
    found: list[Any] = [module.training for module in model.modules()]
    for value in [*model.parameters(), *model.buffers()]:
        if nn.parameter.is_lazy(value):
            found.append("no weights yet")
        else:
            found += [value.data_ptr(), value.stride(), value.requires_grad, value.grad, value.tolist()]
    if not isinstance(model, torch.jit.ScriptModule):
        found += [sorted(vars(module)) for module in model.modules()]
        found += [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()]
    return [*found, torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]


@pytest.mark.parametrize("name", OWNED)
def test_the_owners_model_is_untouched(name: str) -> None:
    model = OWNED[name]()
    before = seen_of(model)
    for attack, caller in zip(PARAMETERS, (torch.inference_mode, torch.enable_grad, torch.no_grad), strict=True):
        with caller():
            try:
                run(model, attack)
            except LpmbenchError:
                assert name == "refused"
    assert seen_of(model) == before


def test_a_function_keeps_the_buffers_of_what_it_calls() -> None:
    network = small(nn.BatchNorm2d(8))
    before = seen_of(network)
    with pytest.raises(LpmbenchError, match="changes by a pass"):
        run(lambda images: network(images))
    assert seen_of(network) == before


def test_layouts_are_for_four_dimensions_and_where_they_work() -> None:
    images = torch.rand(4, 1, 32, 32)
    laid_out, _ = admit(handed_over(small(nn.Conv2d(8, 8, 3))), images, "cpu")
    assert laid_out.classifier.network[1].weight.is_contiguous(memory_format=torch.channels_last)
    plain, _ = admit(handed_over(Flattens()), images, "cpu")
    assert plain.classifier.network.conv.weight.is_contiguous()
    scripted, _ = admit(handed_over(torch.jit.script(Flattens())), images, "cpu")
    assert isinstance(scripted.classifier.network, AsItIs)


def test_a_model_that_nobody_holds_is_forgotten() -> None:
    for build in (flat, lambda: one_part_in_training(flat(nn.Dropout(0.5)), 1)):
        run(build(), "noise")
        gc.collect()
        before = len(_admitted)
        run(build(), "noise")
        gc.collect()
        assert len(_admitted) == before


def test_a_model_no_better_than_chance_is_a_loud_note(caplog: pytest.LogCaptureFixture) -> None:
    network = flat()
    nn.init.zeros_(network[1].weight)  # it says the same of every image
    record = run(network, "noise", limit=50)
    told = [note for note in record.notes if "no better than chance (10 classes)" in note]
    assert told
    assert told[0] in caplog.text
    assert not [note for note in run(NET, "noise", limit=50).notes if "chance" in note]


LABELS: dict[str, tuple[dict[str, Any], str]] = {
    "other labels": (
        {"model": "cnn-fashion-mnist"},
        "predicts the labels 'fashion', dataset 'digits' has .* 'digits'",
    ),
    "more classes": ({"model": lambda images: F.pad(NET(images), (0, 1))}, "11 logits, but 'digits' has 10 classes"),
}


@pytest.mark.parametrize("name", LABELS)
def test_other_labels_are_refused_unless_the_user_says_that_they_fit(name: str) -> None:
    given, line = LABELS[name]
    with pytest.raises(LpmbenchError, match=f"{line}.*--labels-fit"):
        run(attack="noise", **given)
    record = run(attack="noise", labels_fit=True, **given)
    assert "labels_fit=True" in record.command or "--labels-fit" in record.command


def test_worst_case_and_audit_leave_out_what_needs_a_gradient() -> None:
    model = Around(without_gradients)
    given: dict[str, Any] = {"eps": 0.1, "limit": 2}
    worst = resolve_attack("worst-case", settings={"square": {"queries": 5}, "transfer": {"steps": 1}})
    record = robustbench_lpm.evaluate(model, worst, "digits", **given)
    left_out = [note for note in record.notes if note.startswith("Left out of worst-case")]
    assert {note.split(": ")[1].split(".")[0] for note in left_out} >= {"momentum", "apgd-t"}
    assert set(record.configuration["attack"]["members"]) == {"square", "transfer"}
    audit = robustbench_lpm.audit(model, "square", "digits", parameters={"queries": 5}, black_box=("noise",), **given)
    notes = {check.name: check.note for check in audit.checks if check.verdict == "not applicable"}
    assert "needs a gradient" in notes["iterated vs one step"]
