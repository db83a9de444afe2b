"""Runs over the same images share them, and RAM-LPM reads its glimpses together: same answers as one by one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from robustbench_lpm.architectures.classifier import Classifier, MonteCarlo
from robustbench_lpm.architectures.recurrent_attention import GRADIENT_MODES, RecurrentAttention
from robustbench_lpm.architectures.retina import LogPolarPadding
from robustbench_lpm.protocol.oracle import ClassifierOracle, Rules
from robustbench_lpm.randomness import Addresses
from tests.architectures.test_recurrent_attention import BUILDERS, Build, images, made, noise_for, ramlpm, rectangular
from tests.classifiers import NoisyLinear

TOLERANCE = 1e-12
WEIGHT = torch.linspace(-1, 1, 400, dtype=torch.float64).reshape(1, 20, 20)


def classifiers() -> list[Callable[[], Classifier]]:
    return [
        *[lambda build=build: Classifier(made(build), mean=[0.5], std=[0.3]).double() for build in BUILDERS],
        lambda: Classifier(NoisyLinear(WEIGHT, sigma=0.7)),
    ]


@pytest.mark.parametrize("make", classifiers())
@pytest.mark.parametrize("runs", [1, 4])
def test_runs_over_the_same_images_answer_like_runs_of_their_own(make: Callable[[], Classifier], runs: int) -> None:
    classifier = make()
    noise = [classifier.sample_noise(Addresses.of(0, range(5), "grade", run)) for run in range(runs)]
    together = {source: torch.cat([draw[source] for draw in noise]) for source in noise[0]}
    whole, single = images().requires_grad_(), images().requires_grad_()
    answers = classifier(whole, together)
    expected = torch.cat([classifier(single, draw) for draw in noise])
    torch.testing.assert_close(answers, expected, atol=TOLERANCE, rtol=0)
    weights = torch.randn(answers.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    (found,) = torch.autograd.grad((answers * weights).sum(), whole)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), single)
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=0)


@pytest.mark.parametrize("make", classifiers())
def test_an_average_shares_its_images_too(make: Callable[[], Classifier]) -> None:
    classifier = make()
    average = MonteCarlo(classifier, 3)
    noise = average.sample_noise(Addresses.of(0, range(5), "grade").draws(2))  # two draws over 5 images
    separate = [
        classifier(images(), {source: values[5 * draw : 5 * draw + 5, run] for source, values in noise.items()})
        for draw in range(2)
        for run in range(3)
    ]
    expected = torch.stack(separate).unflatten(0, (2, 3)).mean(1).flatten(0, 1)
    torch.testing.assert_close(average(images(), noise), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("build", [ramlpm, rectangular])
@pytest.mark.parametrize("mode", GRADIENT_MODES)
def test_glimpses_read_together_say_what_they_say_one_by_one(build: Build, mode: str) -> None:
    """The loop over glimpses is what training uses, and what the golden vectors were checked with first."""
    model = made(build)
    noise = noise_for(model, range(5))
    pixels, others = images().requires_grad_(), images().requires_grad_()
    together = model.look(pixels, noise, gradient_mode=mode)
    by_one = RecurrentAttention.look(model, others, noise, gradient_mode=mode)
    for part in ("logits", "means", "fixations", "baselines"):
        torch.testing.assert_close(getattr(together, part), getattr(by_one, part), atol=TOLERANCE, rtol=0)
    expected = torch.autograd.grad(by_one.logits[-1][:, 0].sum(), others)[0]
    shown = images().requires_grad_()
    for answer, source in ((together.logits[-1], pixels), (model(shown, noise, gradient_mode=mode), shown)):
        (found,) = torch.autograd.grad(answer[:, 0].sum(), source)
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("padding", ["polar", "reference"])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 5), (3, 1), (1, 3), (2, 3)])
def test_the_gradient_of_the_padding(padding: str, kernel: tuple[int, int]) -> None:
    pad = LogPolarPadding(kernel, padding)  # type: ignore[arg-type]
    maps = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(pad, maps.clone().requires_grad_())
    last = maps.to(memory_format=torch.channels_last).requires_grad_()
    padded = pad(last)
    assert padded.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(padded, pad(maps))
    weights = torch.randn(padded.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plain = maps.clone().requires_grad_()
    (found,), (expected,) = (torch.autograd.grad((pad(m) * weights).sum(), m) for m in (last, plain))
    assert torch.equal(found, expected)


def test_gradients_do_not_depend_on_how_many_draws_pass_at_once() -> None:
    classifier, labels = Classifier(made(ramlpm)), torch.tensor([0, 1, 2, 0, 1])

    def found(chunk: int, mode: str) -> tuple[Tensor, ...]:
        oracle = ClassifierOracle(classifier, images(), range(5), Rules(0, 3, chunk), gradient_mode=mode)
        answer = oracle.gradient(
            images(),
            oracle.noise(7),
            lambda logits: logits.gather(-1, labels.expand(len(logits), -1)[..., None])[..., 0],
        )
        assert oracle.ledger.forwards.tolist() == oracle.ledger.backwards.tolist() == [7] * 5
        return answer

    for mode in GRADIENT_MODES:
        whole = found(35, mode)
        for chunk in (2, 5, 11):
            for part, expected in zip(found(chunk, mode), whole, strict=True):
                torch.testing.assert_close(part, expected, atol=1e-10, rtol=0)
