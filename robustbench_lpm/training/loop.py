"""The training itself: epochs of steps, a validation after each, and everything on disk before the next begins."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from robustbench_lpm import cards, weight_files, zoo
from robustbench_lpm.architectures.classifier import Classifier, Noise
from robustbench_lpm.architectures.precision import keep_exact_parts, lay_out
from robustbench_lpm.architectures.recurrent_attention import RecurrentAttention
from robustbench_lpm.cards import ModelCard, RecipeCard, Trained
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.randomness import Addresses, isolated_globals, key
from robustbench_lpm.training import checkpoints, curves, model_cards
from robustbench_lpm.training.augmentation import augment
from robustbench_lpm.training.checkpoints import BEST, CARD, CURVES, Journal, Row
from robustbench_lpm.training.examples import Labelled, LabelledImages, load_split, shuffled_batches
from robustbench_lpm.training.objectives import Batch, Objective, Terms, bind
from robustbench_lpm.training.optimisation import make_optimiser, make_schedule, rates
from robustbench_lpm.training.plans import Plan, make_plan
from robustbench_lpm.training.scalars import Board, summary_writer
from robustbench_lpm.training.team import Team, assemble
from robustbench_lpm.training.validation import final_accuracy, validate


class Progress(Protocol):
    """Who wants to know how far a training is."""

    def on_batch(self, done: int, total: int) -> None:
        """`done` of the `total` batches of this epoch are through."""

    def on_epoch(self, epoch: int, epochs: int, row: Row) -> None:
        """`epoch` of `epochs`, counted from 1, is on disk; row is its line of the log."""


class Silent:
    """Progress that nobody watches."""

    def on_batch(self, done: int, total: int) -> None: ...

    def on_epoch(self, epoch: int, epochs: int, row: Row) -> None: ...


@dataclass(frozen=True)
class TrainingResult:
    """What a training ended with. `card` is the model card at `card_path`; it works as `--model CARD_PATH`."""

    card: ModelCard
    card_path: Path
    weights: Path
    accuracy: dict[str, float]
    rows: list[Row]  # of the log
    best_epoch: int
    seconds: float


class TrainingStep(nn.Module):
    """Classifier and objective as one module, so that what wraps it (many devices) sees whole steps.

    mixed: work in bfloat16 where torch deems that safe. Fabric's own mixed precision would round the images first, and
    with them where a glimpsing network looks.
    """

    def __init__(self, classifier: Classifier, objective: Objective, *, seed: int, mixed: bool) -> None:
        super().__init__()
        self.classifier, self.objective, self.seed, self.mixed = classifier, objective, seed, mixed

    def forward(self, images: Tensor, labels: Tensor, noise: Noise, positions: list[int], epoch: int) -> Terms:
        """The terms of the objective. positions: of the images in the training split."""
        addresses = Addresses.of(self.seed, positions, "objective", epoch)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.mixed):
            return self.objective(self.classifier, Batch(images, labels, noise, addresses))


def train(
    model: str,
    *,
    recipe: RecipeCard | None = None,
    dataset: str | None = None,
    data: Path | None = None,
    epochs: int | None = None,
    seed: int = 0,
    out: Path,
    resume: bool = False,
    save_every: float | None = None,
    workers: int | None = None,
    tensorboard: bool = False,
    device: str = "cpu",
    devices: int = 1,
    threads: int | None = None,
    progress: Progress | None = None,
    command: str | None = None,
    trust: bool = False,
) -> TrainingResult:
    """Train a model card's network from scratch and write it to the folder `out`, as a model card of its own.

    Args:
        model: a registered name, or the path of a card.
        recipe: instead of the one that the model card names; dataset and epochs are laid over it.
        data: the folder of the data set, for those that need one.
        resume: go on from the last save in `out`, to the same bits as without the break.
        save_every: minutes; save within epochs too, that often. None saves after every epoch.
        workers: processes that read images ahead where the data stay on the disk (see training.examples); None for as
            many as there are processors to spare.
        tensorboard: write the rows of the log for TensorBoard too.
        device: "cpu", "cuda", "cuda:1", "mps". threads: of torch on the CPU; None leaves them as they are.
        devices: of that kind, that share every batch; with several, the calling script is started again in as many
            processes, all of which come here. Bits repeat with the same number of them.
        command: what the card shall say that made it; by default the equivalent call of `lpmbench train`.
        trust: allow code from outside this package.

    The best epoch on the validation split becomes the model; the test split is looked at once, at the end. A
    KeyboardInterrupt, or a kill, leaves last.ckpt of the last save (at first, of no epoch at all) whole.

    Raises LpmbenchError when `out` holds a training and resume is not set, when it holds another training than the
    one to be resumed, when cards do not fit together, when an image cannot be read, when `out` cannot be written, and
    when the loss stops being finite; the last save is then as it was.
    """
    plan = make_plan(model, recipe=recipe, dataset=dataset, epochs=epochs, seed=seed, command=command, trust=trust)
    if tensorboard:
        summary_writer()  # where it is missing, say so before the data are read
    if not resume:
        checkpoints.refuse_to_overwrite(out)
    with _threads(threads):
        training = Training(plan, data, out, assemble(device, devices), save_every, workers)
        if resume:
            training.restore()
        else:
            training.save()
        if tensorboard and training.team.leads:
            training.board = Board(out, training.journal.rows)
        try:
            training.run(progress or Silent())
            return training.finish()
        finally:
            training.close()


class Training:
    """One training under way: the network with its optimiser and schedule, and the journal of finished epochs."""

    def __init__(
        self,
        plan: Plan,
        data: Path | None,
        out: Path,
        team: Team,
        save_every: float | None = None,
        workers: int | None = None,
    ) -> None:
        self.plan, self.data, self.out, self.team, self.fabric = plan, data, out, team, team.fabric
        self.save_every = math.inf if save_every is None else 60 * save_every  # seconds
        self.workers = workers
        self.journal = Journal()
        self.board: Board | None = None
        self._drawn = time.perf_counter()
        self.images = load_split(plan, data, "train", workers)
        self.validation = load_split(plan, data, "validation", workers)
        self.batches = -(-len(self.images) // plan.recipe.batch_size)
        with isolated_globals(key(plan.seed, "initialise")):
            self.network = zoo.build(plan.card, trust=plan.trust)
        self._check_batches()
        self.classifier = lay_out(zoo.wrap(self.network, plan.card), self.fabric.device.type)
        self._prepare_glimpses()
        mixed = plan.recipe.precision == "bf16-mixed"
        if mixed:
            keep_exact_parts(self.network)
        entry = cards.resolve(plan.recipe.objective, plan.recipe.path, trust=plan.trust)
        self.objective = bind(entry, plan.recipe.parameters, plan.recipe.path)
        self.optimiser = make_optimiser(self.network, plan.recipe)
        self.schedule = make_schedule(self.optimiser, plan.recipe, plan.recipe.epochs * self.batches)
        step = TrainingStep(self.classifier, self.objective, seed=plan.seed, mixed=mixed)
        self.step, self.stepper = self.fabric.setup(
            step, self.optimiser
        )  # on the device; self.optimiser stays the plain one

    def _prepare_glimpses(self) -> None:
        """Check what the recipe asks of a glimpsing network, and remember the sigma that its policy ends with."""
        network, recipe = self.network, self.plan.recipe
        if isinstance(network, RecurrentAttention):
            self.sigma = network.sigma
        elif recipe.glimpses or recipe.sigma_start is not None:
            raise LpmbenchError(
                f"Recipe '{recipe.name}' sets glimpses or sigma_start, but '{self.plan.card.name}' sees images whole."
            )

    def _check_batches(self) -> None:
        """Batch norm cannot normalise one vector; torch would say so in the middle of an epoch."""
        smallest = len(self.images) // self.batches // self.team.size
        if smallest < 2 and any(isinstance(module, nn.BatchNorm1d) for module in self.network.modules()):
            raise LpmbenchError(
                f"Recipe '{self.plan.recipe.name}': batch_size {self.plan.recipe.batch_size} makes a batch of one "
                f"image, which the batch norms of '{self.plan.card.name}' cannot train on; choose 3 or more."
            )

    def save(self) -> None:
        """Write last.ckpt."""
        if not self.team.leads:
            return
        states = {
            "model": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        checkpoints.save_last(self.out, self.plan.identity(), self.journal, states)

    def restore(self) -> None:
        """Go back to what last.ckpt says. Raises LpmbenchError when it is not of this plan."""
        self.journal, content = checkpoints.load_last(self.out, self.plan.identity())
        self.network.load_state_dict(content["model"])
        self.optimiser.load_state_dict(content["optimiser"])
        self.schedule.load_state_dict(content["schedule"])

    def run(self, progress: Progress) -> None:
        """Every epoch that is left."""
        recipe = self.plan.recipe
        for epoch in range(self.journal.epoch + 1, recipe.epochs + 1):
            trained, seconds = self._train_epoch(epoch, progress)
            row = {"epoch": epoch} | _named("train", trained)
            if epoch % recipe.validation.every == 0 or epoch == recipe.epochs:
                started = time.perf_counter()
                validated = self._validate()
                _check_finite(validated["classification"], epoch, self.out)
                row |= _named("validation", validated)
                seconds += time.perf_counter() - started
            self._enter(epoch, row | rates(self.optimiser) | {"seconds": seconds})
            if time.perf_counter() - self._drawn > curves.EVERY:
                self.draw()
            progress.on_epoch(epoch, recipe.epochs, self.journal.rows[-1])

    def _validate(self) -> dict[str, float]:
        plan, device = self.plan, self.fabric.device
        if isinstance(self.network, RecurrentAttention):
            self.network.sigma = self.sigma  # the model's own, whatever it trained with
        mixed = plan.recipe.precision == "bf16-mixed"
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):  # as it trains; the end is measured in full
            return validate(
                self.classifier, self.objective, self.validation, plan.seed, device, plan.recipe.validation, self.team
            )

    def _enter(self, epoch: int, row: Row) -> None:
        """Put a finished epoch on disk; last.ckpt comes last, so that it never speaks of what is not there."""
        journal = self.journal
        rows = [*journal.rows, row]
        best = "validation_accuracy" in row and (
            not journal.best_epoch or _score(row) > _score(rows[journal.best_epoch - 1])
        )
        if best and self.team.leads:
            checkpoints.save_network(self.out / BEST, self.network)
        if self.team.leads:
            checkpoints.save_log(self.out, rows)
        self.journal = Journal(epoch, rows, epoch if best else journal.best_epoch, journal.seconds + row["seconds"])
        self.save()
        if self.board:
            self.board.add(row)

    def draw(self) -> None:
        """Write curves.png, once there is an epoch to show."""
        plan, journal = self.plan, self.journal
        if journal.rows and self.team.leads:
            title = f"{plan.card.name} · {plan.recipe.name} · seed {plan.seed}"
            checkpoints.write(self.out / CURVES, curves.draw(journal.rows, title, journal.best_epoch))
        self._drawn = time.perf_counter()

    def close(self) -> None:
        """Leave the pictures of all that is finished, whatever ended the training."""
        with suppress(LpmbenchError):  # what ended it says more than a picture that could not be written
            self.draw()
            if self.board:
                self.board.close()

    def _train_epoch(self, epoch: int, progress: Progress) -> tuple[dict[str, float], float]:
        """One pass over the training split, or what is left of it.

        Returns the terms of the objective, averaged over images, and the seconds that the whole epoch took.
        """
        self.step.train()
        totals, begun = dict(self.journal.totals), time.perf_counter() - self.journal.batch_seconds
        saved = time.perf_counter()
        batches = shuffled_batches(len(self.images), self.plan.recipe.batch_size, self.plan.seed, epoch)
        left = range(self.journal.batches, len(batches))
        stream = self.images.stream([self.team.share(batch) for batch in batches[left.start :]])
        for number in left:
            positions = batches[number]
            found = self.team.together(lambda: next(stream))
            # Dropout and its like draw from the global generators: each step brings its own seed for them.
            with isolated_globals(key(self.plan.seed, "step", epoch, number, *self._rank)):
                terms = self._train_batch(epoch, number, positions, found)
            mine = len(self.team.share(positions))
            for name, value in self.team.sums({name: float(value) * mine for name, value in terms.items()}).items():
                totals[name] = totals.get(name, 0.0) + value
            _check_finite(totals["loss"], epoch, self.out)
            progress.on_batch(number + 1, len(batches))
            if time.perf_counter() - saved > self.save_every and number + 1 < len(batches):
                spent = time.perf_counter() - begun
                self.journal = replace(self.journal, batches=number + 1, totals=totals, batch_seconds=spent)
                self.save()
                saved = time.perf_counter()
        return {name: total / len(self.images) for name, total in totals.items()}, time.perf_counter() - begun

    def _train_batch(self, epoch: int, number: int, positions: list[int], found: Labelled) -> Terms:
        """One step of the optimiser."""
        recipe, seed, weight = self.plan.recipe, self.plan.seed, self.team.weight(len(found[1]), len(positions))
        positions = self.team.share(positions)
        images, labels = (self.fabric.to_device(tensor) for tensor in found)
        images = augment(images, recipe.augmentation, Addresses.of(seed, positions, "augment", epoch))
        noise = self._noise(epoch, number, positions)
        terms: Terms = self.step(images, labels, noise, positions, epoch)
        self.stepper.zero_grad()
        self.fabric.backward(terms["loss"] * weight if weight != 1 else terms["loss"])
        if recipe.gradient_clip is not None:
            self.fabric.clip_gradients(self.step, self.stepper, max_norm=recipe.gradient_clip, error_if_nonfinite=False)
        self.stepper.step()
        self.schedule.step()
        return {name: value.detach() for name, value in terms.items() if name != "logits"}

    @property
    def _rank(self) -> tuple[int, ...]:
        """What tells the random numbers of several processes apart; nothing where there is one."""
        return (self.fabric.global_rank,) if self.team.size > 1 else ()

    def _noise(self, epoch: int, number: int, positions: list[int]) -> Noise:
        """The network's noise for one batch, of as many glimpses and as much policy noise as the recipe says now."""
        recipe, network = self.plan.recipe, self.network
        addresses = Addresses.of(self.plan.seed, positions, "train", epoch)
        if not isinstance(network, RecurrentAttention):
            return self.classifier.sample_noise(addresses)
        share = (epoch - 1 + number / self.batches) / recipe.epochs
        if recipe.sigma_start is not None:
            network.sigma = recipe.sigma_start + share * (self.sigma - recipe.sigma_start)
        stages = [glimpses for start, glimpses in recipe.glimpses if start <= share]
        return network.sample_noise(addresses, stages[-1] if stages else None)

    def finish(self) -> TrainingResult:
        """Measure the best epoch and write its model card."""
        started = time.perf_counter()
        if isinstance(self.network, RecurrentAttention):
            self.network.sigma = self.sigma
        self.team.wait()  # for what the leader has written
        best = self.out / BEST
        weight_files.load_state(self.network, weight_files.read(best), source=str(best))
        accuracy = self._measure()
        seconds = self.journal.seconds + time.perf_counter() - started
        weights = self.out / model_cards.weights_file(self.plan.card)
        if self.team.leads:
            checkpoints.save_network(weights, self.network)
        trained = Trained(
            recipe=self.plan.recipe.name,
            seed=self.plan.seed,
            epochs=self.plan.recipe.epochs,
            dataset=self.plan.dataset.name,
            command=self.plan.command,
            accuracy=accuracy,
            seconds=round(seconds, 1),
            versions=model_cards.versions(),
            curve=curves.thinned(self.journal.rows),
        )
        if self.team.leads:
            model_cards.write_card(self.plan.card, weights, trained, self.out / CARD)
        self.team.wait()
        card = cards.read(self.out / CARD, ModelCard)
        return TrainingResult(
            card, self.out / CARD, weights, accuracy, self.journal.rows, self.journal.best_epoch, seconds
        )

    def _measure(self) -> dict[str, float]:
        parts: dict[str, tuple[LabelledImages, Any]] = {
            "validation": (self.validation, "validate"),
            "test": (load_split(self.plan, self.data, "test", self.workers), "clean"),
        }
        found: dict[str, float] = {}
        for part, (images, purpose) in parts.items():
            shares = final_accuracy(self.classifier, images, self.plan.seed, purpose, self.fabric.device, self.team)
            found |= {f"{part}{suffix}": share for suffix, share in shares.items()}
        return found


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _named(split: str, terms: dict[str, float]) -> Row:
    return {f"{split}_{name}": value for name, value in terms.items()}


def _score(row: Row) -> tuple[float, float]:
    """What the best epoch has most of: accuracy at M = 1, which models are ranked by; of equals, the lower loss.

    The averaged classifier would hide a bad policy, and is right about nearly every validation image long before the
    single run is.
    """
    return row["validation_accuracy"], -row["validation_classification"]


def _check_finite(loss: float, epoch: int, out: Path) -> None:
    if not math.isfinite(loss):
        raise LpmbenchError(
            f"The loss is {loss} in epoch {epoch}; {out / checkpoints.LAST} holds the last good epoch. "
            "Try a lower learning_rate or a gradient_clip in the recipe."
        )
