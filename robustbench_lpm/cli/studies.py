"""The commands of the studies: lpmbench sweep, invariance, certify, corruptions and spatial."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.progress import TaskProgressColumn

from robustbench_lpm.cli import options
from robustbench_lpm.cli.console import about, bar, console, duration, say, shown_path
from robustbench_lpm.cli.failures import Failures
from robustbench_lpm.errors import Interrupted, LpmbenchError, unknown
from robustbench_lpm.execution.progress import ImageBar
from robustbench_lpm.registry import cards

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from robustbench_lpm.registry.cards import ModelCard
    from robustbench_lpm.registry.tasks import Data
    from robustbench_lpm.studies.study import Result, Study

Show = Callable[["pd.DataFrame", "Console"], None]
Draw = Callable[["pd.DataFrame"], dict[str, bytes]]

MOST_NUMBERS = 1000  # in a list; beyond it a typing error would ask for days
DEFAULTS = {"rotate": "0..360", "scale": "0.5..2", "translate": "-0.5..0.5"}
STEPS = {"rotate": "15", "scale": "0.125", "translate": "0.1"}


def study_options(draws: int, mc: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The options of a study that averages runs, with its defaults."""
    return options.together(
        click.option("--mc", default=mc, show_default=True,
                     help="Values of M, the runs whose mean logits decide, like 1,5 or 1..4; 1 is always among them."),
        click.option("--draws", type=click.IntRange(1), default=draws, show_default=True,
                     help="Draws K of the average of the most runs; smaller M get more, for all runs serve each M."),
        shared_options,
    )  # fmt: skip


def shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that all studies have."""
    return options.together(
        options.of_settings("seed"),
        options.checkpoint,
        click.option("--dataset", help="A dataset, or the path of its card; default: the one that the model learned."),
        options.path("--data", "The directory of the data, if they need one."),
        click.option("--split", type=click.Choice(["test", "validation", "train"]), default="test", show_default=True),
        options.of_settings("size", "limit", "labels_fit"),
        options.machine,
        options.path("--out", "Where everything goes; default: below runs/."),
        click.option("--force", is_flag=True, help="Run again what has been run, and write over another study."),
        options.trust,
    )(command)  # fmt: skip


@click.command()
@options.models("MODEL")
@click.option("--glimpses", default="1..14", show_default=True,
              help="Numbers of glimpses, like 1..14 or 1,2,4; also more than the model's card says.")  # fmt: skip
@study_options(draws=1, mc="1,5,10,20")
def sweep(model: str, glimpses: str, out: Path | None, force: bool, **shared: Any) -> None:
    """How accurate the glimpsing MODEL is after each number of glimpses, averaged over M runs.

    Kiritani and Ono's inference sweep: one table and one figure. A run of T glimpses answers after each of them, and
    the same runs, taken M at a time, serve every M. Intervals (95 %) are over images.

    \b
    lpmbench sweep ramlpm
    lpmbench sweep ram --glimpses 1,2,4,8 --mc 1..4 --limit 100
    lpmbench sweep ramlpm-sim2mnist --checkpoint best.safetensors --data DIR --glimpses 1..20
    """
    numbers = whole_numbers("--glimpses", glimpses)
    source, asked = prepare([model], shared)
    from robustbench_lpm.reporting.studies.sweep import sweep_figure, sweep_table
    from robustbench_lpm.studies.sweep import make_sweep

    with Failures(alone=True).of(model):
        study, usual = make_sweep(model, source, glimpses=numbers, **asked)
    loaded = study.models[0]
    if not loaded.classifier.stochastic and asked["mc"] != [1]:
        say(f"{loaded.name} answers the same in every run: M > 1 changes nothing.")
    title = f"Inference sweep of {loaded.name} on {study.data.name}, {study.images:,} images"
    with Failures(alone=True).of(model):
        carry_out(study, out, force, sweep_table, lambda table: sweep_figure(table, title, usual))


@click.command()
@options.models()
@click.option("--rotate", metavar="DEGREES", help=f"Turns against the clock, like 0..360:15; step {STEPS['rotate']}.")
@click.option("--scale", metavar="FACTORS", help=f"Magnifications, like 0.5..2 or 0.5,1,2; step {STEPS['scale']}.")
@click.option("--translate", metavar="SHARES",
              help="Shares of the image's side, like -0.5..0.5; each is tried to the right and, by itself, down; their "
                   f"mean is shown; step {STEPS['translate']}.")  # fmt: skip
@study_options(draws=4, mc="1")
def invariance(models: Sequence[str], out: Path | None, force: bool, **shared: Any) -> None:
    """How accurate every MODEL is on turned, scaled and moved images: a panel for each, a line per model.

    Without --rotate, --scale and --translate all three run, over 0..360, 0.5..2 and -0.5..0.5; naming some runs just
    these. Images are warped about their centre, bilinearly, with zeros coming in from outside. Intervals (95 %) are
    over images.

    \b
    lpmbench invariance ramlpm ram cnn
    lpmbench invariance ramlpm cnn --rotate 0..360:15 --limit 100
    lpmbench invariance ramlpm --scale 0.5..2:0.25 --translate -0.2,0,0.2 --mc 1,5
    """
    given = {name: shared[name] for name in DEFAULTS if shared[name] is not None} or DEFAULTS
    values = {name: magnitudes(f"--{name}", text, STEPS[name]) for name, text in given.items()}
    from robustbench_lpm.reporting.studies.invariance import invariance_figure, invariance_table
    from robustbench_lpm.studies.invariance import make_invariance

    report = _with_title(invariance_table, invariance_figure)
    study_all(models, shared, out, force, partial(make_invariance, values=values), report)


@click.command()
@options.models()
@click.option(
    "--sigma",
    type=click.FloatRange(0, min_open=True),
    help="Standard deviation of the noise, in pixel values; default: the smoothing on the model's card.",
)
@click.option(
    "--samples",
    type=click.IntRange(1),
    default=10_000,
    show_default=True,
    help="Passes that estimate how often an image is given its class.",
)
@click.option(
    "--select",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="Passes, on other noise, that select the class.",
)
@click.option(
    "--alpha",
    type=click.FloatRange(0, 0.5, min_open=True, max_open=True),
    default=0.001,
    show_default=True,
    help="The probability that the certificate of an image is wrong.",
)
@click.option(
    "--draws",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Passes of a stochastic model for its accuracy without smoothing.",
)
@shared_options
def certify(models: Sequence[str], out: Path | None, force: bool, sigma: float | None, **shared: Any) -> None:
    """Within which L2 radius no attack at all changes the answers of every MODEL, smoothed with Gaussian noise.

    Randomised smoothing (Cohen, Rosenfeld and Kolter 2019): the smoothed classifier gives the answer that is most
    frequent under the noise, or abstains. The table shows the share of images that are right and certified up to each
    radius. Of a stochastic model the most frequent answer over its own noise, too, is certified.

    \b
    lpmbench certify cnn --sigma 0.25 --limit 50
    lpmbench certify cnn ramlpm --sigma 0.12 --samples 1000 --alpha 0.001 --limit 20
    """
    from robustbench_lpm.reporting.studies.certify import certify_figure, certify_table
    from robustbench_lpm.studies.certify import make_certificates

    report = _with_title(certify_table, certify_figure)
    study_all(models, shared, out, force, partial(make_certificates, sigma=sigma), report)


@click.command()
@options.models()
@click.option("--corruption", "kinds", multiple=True, help="Only these, with commas between or given again.")
@click.option("--severity", default="1..5", show_default=True, help="Severities, like 1..5 or 1,3,5.")
@click.option("--reference", metavar="NAME", help="The model to whose errors the mean corruption error is related.")
@study_options(draws=4, mc="1")
def corruptions(
    models: Sequence[str], out: Path | None, force: bool, kinds: Sequence[str], severity: str, reference: str | None,
    **shared: Any,
) -> None:  # fmt: skip
    """How accurate every MODEL is under noise, blur, weather and compression.

    The fifteen corruptions of ImageNet-C at five severities (Hendrycks and Dietterich 2019), for images of any size.
    With --reference the mean corruption error (mCE) relates errors to those of that model. Intervals (95 %) are over
    images.

    \b
    lpmbench corruptions ramlpm ram cnn --limit 100
    lpmbench corruptions ramlpm --reference cnn --limit 100
    lpmbench corruptions cnn --corruption fog,snow --severity 1,3,5
    """
    severities = whole_numbers("--severity", severity)
    chosen = options.read_names("--corruption", kinds)
    from robustbench_lpm.datasets.corruptions import CORRUPTIONS
    from robustbench_lpm.reporting.studies.corruptions import corruptions_figures, corruptions_table
    from robustbench_lpm.studies.corruptions import gallery, make_corruptions

    if wrong := [kind for kind in chosen if kind not in CORRUPTIONS]:
        raise unknown("corruption", wrong[0], CORRUPTIONS)

    def report(study: Any) -> tuple[Show, Draw]:
        pictures = gallery(study)
        return (
            partial(corruptions_table, reference=study.reference),
            lambda table: corruptions_figures(table, pictures, study.kinds, study.severities, _title(study)),
        )

    make = partial(make_corruptions, kinds=chosen, severities=severities, reference=reference)
    study_all(models, shared, out, force, make, report)


@click.command()
@options.models()
@click.option(
    "--rotation",
    type=click.FloatRange(0, 180),
    default=30,
    show_default=True,
    help="The largest angle, in degrees, either way.",
)
@click.option(
    "--translation",
    type=click.FloatRange(0),
    default=3,
    show_default=True,
    help="The largest move, in pixels, to either side and up or down.",
)
@click.option(
    "--steps",
    default="31,5",
    show_default=True,
    metavar="ANGLES,PLACES",
    help="Angles of the grid, and places in each direction; both are odd.",
)
@click.option(
    "--random",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    help="Transformations of the grid that a random search tries.",
)
@click.option(
    "--select",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    help="Draws of a stochastic model on which transformations are compared.",
)
@click.option(
    "--draws",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    help="Held-out draws on which a stochastic model is graded.",
)
@shared_options
def spatial(models: Sequence[str], out: Path | None, force: bool, steps: str, **shared: Any) -> None:
    """How accurate every MODEL is on the worst rotation and translation of each image.

    Every transformation of a grid is tried (Engstrom et al. 2019). For a stochastic model the worst one is chosen on
    selection draws and graded on others. The worst of some random transformations, the worst rotation alone and the
    worst translation alone are shown beside it. Intervals (95 %) are over images.

    \b
    lpmbench spatial ramlpm ram cnn --limit 100
    lpmbench spatial cnn --rotation 180 --translation 0 --steps 73,1
    """
    numbers = re.fullmatch(r"\s*([0-9]{1,4})\s*,\s*([0-9]{1,3})\s*", steps)
    if numbers is None:
        raise LpmbenchError(f"--steps '{steps}' must be two numbers, of angles and of places, such as 31,5.")
    from robustbench_lpm.reporting.studies.spatial import spatial_figure, spatial_table
    from robustbench_lpm.studies.spatial import make_spatial

    make = partial(make_spatial, steps=(int(numbers[1]), int(numbers[2])))
    study_all(models, shared, out, force, make, _with_title(spatial_table, spatial_figure))


def whole_numbers(option: str, text: str) -> list[int]:
    """The numbers in '1..14', '1,2,4' or '1..3,6', growing, each once.

    Raises LpmbenchError unless all are whole, from 1 to 1000.
    """
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,9})\s*(?:\.\.\s*([0-9]{1,9})\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last <= MOST_NUMBERS:
            shape = f"must be whole numbers from 1 to {MOST_NUMBERS}, like 6, 1,2,4 or 1..14."
            raise LpmbenchError(f"{option} '{text}' {shape}")
        found |= set(range(first, last + 1))
    return sorted(found)


def magnitudes(option: str, text: str, step: str) -> list[float]:
    """The numbers in '0..360:15' (the last too, if the steps meet it), '0..360' (in steps of `step`) or '-0.1,0,0.1'.

    They are counted in decimals, so that 0 and 1 are met exactly. Raises LpmbenchError for anything else.
    """
    shape = f"{option} '{text}' must be FROM..TO:STEP, FROM..TO (in steps of {step}), or numbers with commas between."
    found: set[Decimal] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*([^:\s]+?)\s*(?:\.\.\s*([^:\s]+?)\s*(?::\s*(\S+)\s*)?)?", part)
        if match is None:
            raise LpmbenchError(shape)
        try:
            first, last, by = Decimal(match[1]), Decimal(match[2] or match[1]), Decimal(match[3] or step)
        except InvalidOperation:
            raise LpmbenchError(shape) from None
        if not (first.is_finite() and last.is_finite() and by.is_finite()) or max(abs(first), abs(last)) > 10**6:
            raise LpmbenchError(shape)
        if last < first or by <= 0:
            raise LpmbenchError(f"{option} '{text}': {part.strip()} must grow, by steps above 0.")
        if (last - first) / by >= MOST_NUMBERS:
            raise LpmbenchError(f"{option} '{text}': that is more than {MOST_NUMBERS} points.")
        found |= {first + i * by for i in range(int((last - first) / by) + 1)}
    return sorted(map(float, found))


def dataset_for(models: Sequence[ModelCard], named: str | None) -> str:
    """The dataset of a study: the one named, else the one that the first model learned, else one of its labels.

    Raises LpmbenchError for models that do not predict the same labels, and where no dataset has them.
    """
    first = models[0]
    for model in models[1:]:
        if model.labels != first.labels:
            both = f"'{first.name}' ({first.labels}) and '{model.name}' ({model.labels})"
            raise LpmbenchError(f"Models {both} cannot be compared: they predict other labels.")
    if named is not None:
        return named
    registered = cards.names("dataset")
    if first.trained is not None and first.trained.dataset in registered:
        return first.trained.dataset
    fitting = [name for name in registered if cards.dataset(name).labels == first.labels]
    if not fitting:
        raise LpmbenchError(f"No registered dataset has the labels '{first.labels}'; name one with --dataset.")
    return first.labels if first.labels in fitting else fitting[0]


def prepare(names: Sequence[str], given: Mapping[str, Any]) -> tuple[Data, dict[str, Any]]:
    """The images for a study of the models called `names`, and the keywords that `make_sweep` and its like take.

    The machine is made ready on the way. given: a command's options. Raises LpmbenchError where they cannot be met.
    """
    named = dataset_for([cards.model(name) for name in names], given["dataset"])
    cards.dataset(named)  # a wrong name is an error at once, without waiting for torch
    device = options.prepare_machine(given["device"], given["threads"])
    source = options.read_source(dict(given) | {"dataset": named})
    elsewhere = {"mc", "threads", "device", "dataset", "data", "split", "size", *DEFAULTS}
    asked = {name: value for name, value in given.items() if name not in elsewhere} | {"device": device}
    return source, asked | ({"mc": whole_numbers("--mc", given["mc"])} if "mc" in given else {})


def study_all(
    models: Sequence[str], given: Mapping[str, Any], out: Path | None, force: bool, make: Callable[..., Study],
    report: Callable[[Any], tuple[Show, Draw]],
) -> None:  # fmt: skip
    """Study several models; one that fails is left out, and named in the end.

    make: the study, from names, images and keywords, see `prepare`. report: how it is shown and drawn, see `carry_out`.
    """
    if given["checkpoint"] is not None and len(models) != 1:
        raise LpmbenchError("--checkpoint goes with exactly one MODEL.")
    source, asked = prepare(models, given)
    from robustbench_lpm.studies.study import ModelFailed, without

    failures = Failures(alone=len(models) == 1)
    study = make(models, source, attempt=failures.of, **asked)
    while True:
        try:
            carry_out(study, out, force, *report(study))
            break
        except ModelFailed as error:
            failures.note(error.model.name, error)
            study = without(study, error.model, given["limit"])
    failures.complain("studied")


def _title(study: Study) -> str:
    return f"{study.data.name}, {study.images:,} images"


def _with_title(show: Show, figure: Callable[[pd.DataFrame, str], dict[str, bytes]]) -> Any:
    """The report of a study whose figure takes a title."""
    return lambda study: (show, lambda table: figure(table, _title(study)))


def default_directory(command: str, words: Sequence[str]) -> Path:
    """A directory for each result of a command, named by these words."""
    return Path("runs") / command / re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(words)).strip("-.")


def carry_out(study: Study, out: Path | None, force: bool, show: Show, draw: Draw) -> None:
    """Run a study, or read the finished one in its directory; show its table and write its files.

    show: prints the table. draw: the figures, as {name of a file: content}.
    Raises LpmbenchError where another study is stored there, and Interrupted for Ctrl-C.
    """
    import pandas as pd

    from robustbench_lpm.reporting.exports import to_csv
    from robustbench_lpm.studies import study as studies

    if out is None:
        models = [model.name for model in study.models[:4]]
        default = default_directory(study.name, [*models, study.data.name])
        out = default.with_name(f"{default.name[:80]}-{study.id[:8]}")
    finished = None if force else studies.finished(study, out)
    if finished is None:
        announce(study)
    else:
        say(f"Already run, in {duration(finished.seconds)} (--force runs it again).")
    result = finished or run(study, out)
    table = pd.DataFrame(list(result.rows))
    rates = [name for name in ("accuracy", "accuracy_low", "accuracy_high") if name in table]
    table = table.astype(dict.fromkeys(rates, float))  # a missing end is NaN
    if finished is None or not studies.whole(study, out):
        studies.write(study, result, {f"{study.name}.csv": to_csv(table).encode()} | draw(table), out)
    say("")
    show(table, console)
    say(f"\nWritten to {shown_path(out)}: {', '.join(studies.files_of(study, out))}")


def announce(study: Study) -> None:
    """Print what is about to run, and how long it takes if that is long."""
    from robustbench_lpm.studies.study import estimate_seconds, total_passes

    names = ", ".join(model.name for model in study.models)
    data = f"{study.data.name} ({study.data.identity['split']}), {study.images:,} image(s) on {study.device}"
    cost = f"{total_passes(study):,} forwards{about(estimate_seconds(study))}"
    say(f"{names} · {data} · {cost}; Ctrl-C keeps what is finished")


def run(study: Study, out: Path) -> Result:
    """Run a study under a bar. Raises Interrupted, with what to do next, for Ctrl-C."""
    from robustbench_lpm.studies import study as studies

    with bar(f"  {study.name}", study.images, TaskProgressColumn()) as move:
        progress = ImageBar(move, study.images, studies.total_passes(study) // study.images)
        try:
            return studies.run(study, out, progress)
        except KeyboardInterrupt:
            kept = f"{progress.done:,} of {study.images:,} images are finished and kept"
            raise Interrupted(f"Interrupted; {kept}: the same command goes on from there.") from None
