"""Networks in reduced precision: what is reduced, what stays, and what is shared."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustbench_lpm.architectures.classifier import Classifier, MonteCarlo, Noise
from robustbench_lpm.architectures.precision import lay_out, reduced, slow_backwards
from robustbench_lpm.randomness import Addresses
from robustbench_lpm.registry import zoo


def digits(n: int = 8) -> Tensor:
    return torch.rand(n, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def noise_for(classifier: Classifier, n: int) -> Noise:
    return classifier.sample_noise(Addresses.of(0, range(n), "grade"))


def both(name: str) -> tuple[Classifier, Classifier]:
    classifier = zoo.load_model(name).classifier
    return classifier, reduced(classifier, digits(1), noise_for(classifier, 1))


def outputs_of_layers(classifier: Classifier) -> dict[str, torch.dtype]:
    """The precision of what each layer says while it works."""
    seen: dict[str, torch.dtype] = {}

    def note(name: str) -> object:
        return lambda _, __, output: seen.__setitem__(name, output.dtype)

    layers = [
        (name, module)
        for name, module in classifier.network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    handles = [module.register_forward_hook(note(name)) for name, module in layers]  # type: ignore[arg-type]
    with torch.inference_mode():
        classifier(digits(2), noise_for(classifier, 2))
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", ["cnn", "resnet18", "ram", "ramlpm", "ramlpm-rectangular"])
def test_answers_stay_close(name: str) -> None:
    classifier, quick = both(name)
    noise = noise_for(classifier, 8)
    pixels = digits()
    exact = classifier(pixels, noise)
    estimated = quick(pixels, noise)
    assert estimated.dtype is torch.float32
    assert not torch.equal(estimated, exact)
    assert (estimated - exact).abs().max() < 0.1 * exact.abs().max()
    assert (quick.stochastic, quick.glimpsing, quick.gradient_modes, quick.glimpses) == (
        classifier.stochastic, classifier.glimpsing, classifier.gradient_modes, classifier.glimpses,
    )  # fmt: skip


def test_what_meets_the_pixels_and_what_gives_the_logits_stays_in_full_precision() -> None:
    _, quick = both("cnn")
    seen = outputs_of_layers(quick)
    names = list(seen)
    assert [seen[names[0]], seen[names[-1]]] == [torch.float32] * 2
    assert {seen[name] for name in names[1:-1]} == {torch.bfloat16}
    assert isinstance(quick.network.get_submodule(names[-1]), nn.Linear)
    weights = {name: p.dtype for name, p in quick.network.named_parameters() if name.endswith("weight")}
    assert [weights[f"{names[i]}.weight"] for i in (0, -1)] == [torch.float32] * 2
    assert all(weights[f"{name}.weight"] is torch.bfloat16 for name in names[1:-1])


def test_a_glimpsing_network_meets_the_pixels_on_each_of_its_paths() -> None:
    classifier, quick = both("ramlpm")
    full = [name for name, module in quick.network.named_modules() if "forward" in vars(module)]
    assert set(full) == {"what_cnn.blocks.0.conv", "where_cnn", "where_rnn", "where_norm", "locator", "head.1"}
    assert quick.network.what_norm.weight.data_ptr() == classifier.network.what_norm.weight.data_ptr()
    assert quick.network.what_rnn.weight_ih.dtype is torch.bfloat16
    assert classifier.network.what_rnn.weight_ih.dtype is torch.float32  # the classifier itself is left alone


def test_gradients_reach_the_pixels() -> None:
    classifier, quick = both("cnn")
    found, exact = (
        torch.autograd.grad(c(pixels)[:, 0].sum(), pixels)[0]
        for c in (quick, classifier)
        for pixels in [digits().requires_grad_()]
    )
    similarity = nn.functional.cosine_similarity(found.flatten(1), exact.flatten(1))
    assert (similarity > 0.97).all()


def test_an_average_is_reduced_by_its_part() -> None:
    with pytest.raises(ValueError, match="not the average"):
        reduced(MonteCarlo(zoo.load_model("ramlpm").classifier, 2), digits(1), {})


def test_depthwise_convolutions_go_back_faster_in_full_precision() -> None:
    assert slow_backwards(zoo.load_model("efficientnet-lite0").classifier, "cpu")
    assert not slow_backwards(zoo.load_model("cnn").classifier, "cpu")
    assert not slow_backwards(zoo.load_model("efficientnet-lite0").classifier, "cuda")


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="the layout is oneDNN's")
def test_weights_are_laid_out_for_the_processor() -> None:
    classifier = Classifier(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2)))
    pixels = torch.rand(2, 3, 8, 8)
    before = classifier(pixels)
    assert lay_out(classifier, "cpu") is classifier
    assert classifier.network[0].weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[index]
    torch.testing.assert_close(classifier(pixels), before)
