"""Each source of noise stays in the mode that was asked for: in the attack, the selection, the grading, the record."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import robustbench_lpm
from robustbench_lpm.api import prepare
from robustbench_lpm.architectures.classifier import Classifier, MonteCarlo
from robustbench_lpm.attacks.contract import Draws
from robustbench_lpm.cli import run as lpmbench
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.execution.runner import run
from robustbench_lpm.protocol.grading import predict
from robustbench_lpm.protocol.noise_control import NoiseControl, parse_noise_control, sources_of
from robustbench_lpm.protocol.oracle import ClassifierOracle, Rules
from robustbench_lpm.records import runs as records
from robustbench_lpm.records.runs import RunRecord
from robustbench_lpm.registry import zoo
from tests.classifiers import Linear, TwoSources

WEIGHT = torch.linspace(-1, 1, 16).reshape(1, 4, 4)
IMAGES = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.zeros(4, dtype=torch.long)
SOURCES = {"level", "tilt"}


def classifier_of(runs: int = 1) -> Classifier:
    single = Classifier(TwoSources(WEIGHT, sigma=1.0))
    return MonteCarlo(single, runs) if runs > 1 else single


def oracle_under(
    noise: str | list[str], *, runs: int = 1, seed: int = 0, stream: str = "", **options: Any
) -> ClassifierOracle:
    classifier = classifier_of(runs)
    control = parse_noise_control(noise, classifier)
    return ClassifierOracle(
        classifier, IMAGES, range(len(IMAGES)), Rules(seed, 2, 5, noise_control=control, **options), stream=stream
    )  # fmt: skip


def of(noise: Draws, source: str) -> Tensor:
    """The noise of one source, (draws, B, numbers)."""
    return noise.values[source].reshape(noise.count, len(noise.values[source]) // noise.count, -1)


def distinct(values: Tensor) -> int:
    """How many different rows a tensor (n, numbers) has."""
    return len({tuple(row.tolist()) for row in values.flatten(1)})


# Of 5 draws at 2 queries: how many values one image meets within a query, and over both.
MODES = [("averaged", 5, 10), ("fresh", 1, 2), ("replayed", 5, 5), ("frozen", 1, 1)]


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("source", sorted(SOURCES))
@pytest.mark.parametrize(("mode", "within", "over_both"), MODES)
def test_a_source_repeats_itself_as_its_mode_says_and_the_other_does_not(
    mode: str, within: int, over_both: int, source: str, runs: int
) -> None:
    oracle = oracle_under(f"{source}={mode}", runs=runs)
    first, second = oracle.noise(5), oracle.noise(5)
    (other,) = SOURCES - {source}
    for name, expected in ((source, (within, over_both)), (other, (5, 10))):
        queries = of(first, name), of(second, name)
        assert first.values[name].shape == second.values[name].shape
        for image in range(len(IMAGES)):
            assert distinct(queries[0][:, image]) == expected[0]
            assert distinct(torch.cat([query[:, image] for query in queries])) == expected[1]
    assert distinct(of(first, source).flatten(0, 1)) == within * len(IMAGES)  # no two images share noise


@pytest.mark.parametrize("mode", ["fresh", "replayed", "frozen"])
def test_a_mode_alone_is_for_every_source(mode: str) -> None:
    together, apart = oracle_under(mode), oracle_under([f"{source}={mode}" for source in SOURCES])
    for _ in range(2):
        one, other = together.noise(3), apart.noise(3)
        assert all(torch.equal(one.values[source], other.values[source]) for source in SOURCES)


def test_replayed_noise_is_neither_the_running_noise_nor_that_of_another_run() -> None:
    replayed = of(oracle_under("replayed").noise(3), "tilt")
    running = oracle_under("averaged")
    others = [of(running.noise(3), "tilt") for _ in range(4)]
    others += [of(oracle_under("replayed", seed=1).noise(3), "tilt")]
    others += [of(oracle_under("replayed", stream="reparameterised").noise(3), "tilt")]
    assert distinct(torch.cat([replayed, *others]).flatten(0, 1)) == 7 * replayed.shape[0] * len(IMAGES)


def test_fewer_draws_that_are_replayed_are_the_first_of_more() -> None:
    oracle = oracle_under("replayed")
    three, five = oracle.noise(3), oracle.noise(5)
    assert torch.equal(of(five, "level")[:3], of(three, "level"))
    assert torch.equal(of(five, "tilt")[:3], of(three, "tilt"))
    assert torch.equal(of(oracle.noise(3), "tilt"), of(three, "tilt"))


def test_frozen_noise_depends_on_image_and_seed_alone() -> None:
    frozen = oracle_under("frozen").noise(1)
    assert torch.equal(of(oracle_under("frozen", stream="score-function").noise(1), "tilt"), of(frozen, "tilt"))
    assert not torch.equal(of(oracle_under("frozen", seed=1).noise(1), "tilt"), of(frozen, "tilt"))
    assert distinct(of(frozen, "tilt")[0]) == len(IMAGES)


@pytest.mark.parametrize("mode", ["averaged", "fresh", "replayed", "frozen"])
def test_some_of_the_images_see_what_all_saw(mode: str) -> None:
    keep = torch.tensor([False, True, False, True])
    control = [f"tilt={mode}"]
    whole, part = oracle_under(control), oracle_under(control).rows(keep)
    for draws in (3, 2):
        everyone, some = whole.noise(draws), part.noise(draws)
        for source in SOURCES:
            assert torch.equal(of(everyone, source)[:, keep], of(some, source))
    again = part.rows(torch.tensor([1])).noise(2)
    assert torch.equal(of(again, "tilt"), of(whole.noise(2), "tilt")[:, [3]])


@pytest.mark.parametrize("mode", ["averaged", "fresh", "replayed", "frozen"])
def test_both_ends_of_a_pair_meet_the_same_noise(mode: str) -> None:
    noise = oracle_under(["averaged", f"level={mode}"]).noise(3, paired=True)
    assert noise.count == 6
    for source in SOURCES:
        plus, minus = of(noise, source).split(3)
        assert torch.equal(plus, minus)


class Seen(TwoSources):
    """It keeps all noise that it is ever given."""

    def __init__(self) -> None:
        super().__init__(WEIGHT, sigma=1.0)
        self.noise: list[dict[str, Tensor]] = []

    def forward(self, images: Tensor, noise: dict[str, Tensor] | None = None) -> Tensor:
        assert noise is not None
        self.noise.append(noise)
        return super().forward(images, noise)


@pytest.mark.parametrize("mc", [1, 2])
def test_what_is_frozen_is_so_in_the_attack_the_selection_and_the_grading(mc: int) -> None:
    """A whole run: in every pass an image meets its one draw of the frozen source, and ever new ones of the other."""
    parameters = {"steps": 3, "restarts": 2, "eot": 2}
    plan = prepare(
        Seen(), "pgd", (IMAGES, LABELS), eps=0.1, draws=5, mc=mc, parameters=parameters, noise=["tilt=frozen"]
    )
    network = cast(Seen, plan.model.classifier.network)
    network.noise.clear()
    record = run(plan)
    assert record.outcomes["forwards"].max() > 10  # with restarts to choose among
    assert distinct(torch.cat([noise["tilt"] for noise in network.noise])) == len(IMAGES) * mc
    levels = torch.cat([noise["level"] for noise in network.noise])
    assert distinct(levels[:, None]) > 20 * len(IMAGES) * mc


def predicted(noise: str, purpose: Any, *, runs: int = 1) -> Tensor:
    classifier = classifier_of(runs)
    control = parse_noise_control(noise, classifier)
    return predict(
        classifier, IMAGES, range(len(IMAGES)), seed=0, purpose=purpose, draws=40, chunk=3, noise_control=control
    )


@pytest.mark.parametrize("runs", [1, 3])
def test_frozen_noise_is_graded_once_on_the_noise_of_the_attack(runs: int) -> None:
    oracle = oracle_under("frozen", runs=runs, select_draws=9)
    assert not oracle.stochastic
    assert oracle.select_draws == 1
    graded = predicted("frozen", "grade", runs=runs)
    assert torch.equal(graded, oracle(IMAGES, oracle.noise()).argmax(-1).T)
    assert torch.equal(graded, predicted("frozen", "clean", runs=runs))


def test_one_frozen_source_leaves_the_noise_of_the_other() -> None:
    graded = predicted("tilt=frozen", "grade")
    assert graded.shape == (4, 40)
    assert ((graded == 0).any(1) & (graded == 1).any(1)).any()
    assert oracle_under("tilt=frozen").stochastic


@pytest.mark.parametrize("mode", ["fresh", "replayed", "averaged"])
def test_modes_of_the_attack_change_nothing_about_the_grading(mode: str) -> None:
    for purpose in ("clean", "grade"):
        assert torch.equal(predicted(mode, purpose), predicted("averaged", purpose))


@pytest.mark.parametrize(("settings", "modes"), [
    ("frozen", {"level": "frozen", "tilt": "frozen"}),
    (["level=replayed"], {"level": "replayed"}),
    (["level=replayed", "tilt=fresh"], {"level": "replayed", "tilt": "fresh"}),
    (["frozen", "tilt=fresh"], {"level": "frozen", "tilt": "fresh"}),
    (["tilt=fresh", "frozen"], {"level": "frozen", "tilt": "frozen"}),
    (["frozen", "level=averaged"], {"tilt": "frozen"}),
    (["frozen", "averaged"], {}),
    ("averaged", {}),
    ([], {}),
])  # fmt: skip
def test_settings_are_read_in_order(settings: str | list[str], modes: dict[str, str]) -> None:
    classifier = classifier_of()
    control = parse_noise_control(settings, classifier)
    assert control == NoiseControl(tuple(sorted(modes.items())))
    assert control.leaves_noise(classifier) == (control.sources("frozen") != SOURCES)


def test_a_real_model_names_its_sources() -> None:
    classifier = zoo.load_model("ram").classifier
    assert sources_of(classifier) == {"first_fixation", "policy"}
    assert sources_of(MonteCarlo(classifier, 2)) == {"first_fixation", "policy"}
    assert sources_of(zoo.load_model("ram-centre").classifier) == set()


@pytest.mark.parametrize(("network", "setting", "message"), [
    (TwoSources(WEIGHT), "frzen", "Unknown noise mode 'frzen'. Did you mean 'frozen'?"),
    (TwoSources(WEIGHT), "tilt=still", "Unknown noise mode 'still'. Known: averaged, fresh, frozen, replayed."),
    (TwoSources(WEIGHT), "tlt=frozen", "Unknown source of noise 'tlt'. Did you mean 'tilt'?"),
    (TwoSources(WEIGHT), "tilt=", "Unknown noise mode ''"),
    (Linear(WEIGHT), "tilt=frozen", "The model is deterministic: it has no source of noise to control."),
    (Linear(WEIGHT), "frzen", "Unknown noise mode 'frzen'."),
])  # fmt: skip
def test_what_does_not_exist_is_told_in_one_line(network: Linear, setting: str, message: str) -> None:
    with pytest.raises(LpmbenchError) as error:
        parse_noise_control(setting, Classifier(network))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_every_source_of_a_deterministic_model_is_none() -> None:
    """So that one command can freeze the noise of all models, with or without any."""
    assert parse_noise_control("frozen", Classifier(Linear(WEIGHT))) == NoiseControl()


def attacked(noise: list[str], **options: Any) -> RunRecord:
    given = {"eps": 0.1, "limit": 4, "draws": 6, "gradient_mode": "detached", "parameters": {"steps": 2, "eot": 2}}
    return robustbench_lpm.evaluate("ram", "pgd", "digits", noise=noise, **(given | options))


def test_a_frozen_run_is_graded_once_and_says_what_it_is(tmp_path: Path) -> None:
    written = attacked(["frozen"], out=tmp_path)
    record = records.read(written.path or tmp_path)
    evaluation = record.configuration["evaluation"]
    assert evaluation["noise"] == [["first_fixation", "frozen"], ["policy", "frozen"]]
    assert (evaluation["draws"], evaluation["select_draws"]) == (1, 1)
    assert record.stochastic  # the model is; its noise is off
    assert record.predictions.shape == record.clean_predictions.shape == (4, 1)
    assert record.clean_flip_rate == 0
    assert record.outcomes["backwards"].max() <= 2  # one draw for each step: there is nothing to average over
    assert record.id == written.id


def test_of_one_frozen_source_the_other_is_graded_on_all_draws() -> None:
    record = attacked(["policy=frozen"])
    assert record.configuration["evaluation"]["noise"] == [["policy", "frozen"]]
    assert record.configuration["evaluation"]["draws"] == 6
    assert record.predictions.shape == (4, 6)


def test_what_the_attack_sees_is_no_business_of_the_grader() -> None:
    plain, replayed, fresh = attacked([]), attacked(["replayed"]), attacked(["fresh"])
    assert "noise" not in plain.configuration["evaluation"]
    assert plain.clean_predictions.tolist() == replayed.clean_predictions.tolist() == fresh.clean_predictions.tolist()
    assert len({record.id for record in (plain, replayed, fresh)}) == 3
    assert len({tuple(record.outcomes["l2"]) for record in (plain, replayed, fresh)}) == 3  # but the attack saw others


def test_averaged_is_what_nobody_asked_for() -> None:
    assert attacked(["averaged"]).id == attacked([]).id


@pytest.mark.parametrize("words", ["--noise policy=frozen", "--noise frozen", "--noise replayed --noise policy=fresh"])
def test_from_the_command_line_and_again_by_the_command_of_the_record(words: str, tmp_path: Path) -> None:
    line = f"attack --model ram --attack pgd --eps 0.1 --limit 4 --draws 6 --steps 2 --eot 2 --threads 1 {words}"
    assert lpmbench([*line.split(), "--gradient-mode", "detached", "--out", str(tmp_path / "runs")]) == 0
    (record,) = records.read_all(tmp_path / "runs")
    assert record.id == attacked([word for word in words.split() if word != "--noise"]).id
    repeat = shlex.split(record.command.removeprefix("lpmbench "))
    assert lpmbench([*repeat, "--threads", "1", "--out", str(tmp_path / "again")]) == 0
    (again,) = records.read_all(tmp_path / "again")
    assert again.id == record.id
    assert again.predictions.tolist() == record.predictions.tolist()


def test_noise_that_belongs_to_the_batch_cannot_be_frozen() -> None:
    class Dropped(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :2] + torch.rand(len(images), 2)

    with pytest.raises(LpmbenchError, match="cannot be frozen"):
        robustbench_lpm.evaluate(
            Dropped(), "noise", (torch.rand(3, 1, 4, 4), torch.zeros(3, dtype=torch.long)), eps=0.1, noise="frozen"
        )
