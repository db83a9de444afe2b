"""The training loop: epochs of steps, each followed by a validation and a checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from robustbench_lpm.architectures.classifier import Classifier, Noise, on_device
from robustbench_lpm.architectures.precision import keep_exact_parts, lay_out
from robustbench_lpm.architectures.recurrent_attention import RecurrentAttention
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.randomness import Addresses, Purpose, isolated_globals, key, seed_globals
from robustbench_lpm.registry import cards, weight_files, zoo
from robustbench_lpm.registry.cards import ModelCard, RecipeCard
from robustbench_lpm.training import checkpoints, curves
from robustbench_lpm.training.augmentation import augment
from robustbench_lpm.training.checkpoints import BEST, CARD, CURVES, Row, Unfinished
from robustbench_lpm.training.devices import Totals, share, start, sums, together
from robustbench_lpm.training.examples import Labelled, LabelledImages, load_split, shuffled_batches
from robustbench_lpm.training.objectives import (
    Objective,
    Terms,
    TrainingBatch,
    bind,
    make_optimiser,
    make_schedule,
    rates,
)
from robustbench_lpm.training.plans import TrainingPlan, make_plan
from robustbench_lpm.training.validation import final_accuracy, validate
from robustbench_lpm.versions import OURS, versions_of

# Given the epochs that are done, such as 1.5 after a batch; and at the end of each its row of the log.
Watch = Callable[[float, Row | None], None]
Tell = Callable[[str], None]  # called with a line for the reader
Load = Callable[[str], LabelledImages]  # given "train", "validation" or "test"
CHECK_EVERY = 50  # steps: so often it is read whether the loss is finite, which waits for the device


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training. `card` is the model card at `card_path`; it works as `--model CARD_PATH`."""

    card: ModelCard
    card_path: Path
    weights: Path
    accuracy: dict[str, float]
    rows: list[Row]  # of the log
    best_epoch: int
    seconds: float


class _Step(nn.Module):
    """Classifier and objective as one module, so that a wrapper (for several devices) sees whole steps.

    mixed: in bfloat16 where torch's autocast uses it. Fabric's own mixed precision would round the images first.
    """

    def __init__(self, classifier: Classifier, objective: Objective, *, seed: int, mixed: bool) -> None:
        super().__init__()
        self.classifier, self.objective, self.seed, self.mixed = classifier, objective, seed, mixed

    def forward(self, images: Tensor, labels: Tensor, noise: Noise, positions: list[int], epoch: int) -> Terms:
        """The terms of the objective. positions: of the images in the training split."""
        addresses = Addresses.of(self.seed, positions, "objective", epoch)
        with _precision(images.device, self.mixed):
            return self.objective(self.classifier, TrainingBatch(images, labels, noise, addresses))


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
    device: str = "auto",
    devices: int = 1,
    threads: int | None = None,
    progress: Watch | None = None,
    tell: Tell | None = None,
    command: str | None = None,
    trust: bool = False,
) -> TrainingResult:
    """Train a model card's network from scratch and write it to the directory `out`, as a model card of its own.

    Args:
        model: a registered name, or the path of a card.
        recipe: instead of the one that the model card names; dataset and epochs override its values.
        data: the directory of the dataset, for those that need one.
        resume: continue from the last checkpoint in `out`; the result is the same as without the interruption.
        save_every: minutes; save within epochs too, that often. None saves after every epoch.
        workers: processes that read images ahead where the data stay on the disk (see training.examples); None for as
            many as there are processors to spare, at most 8.
        tensorboard: write the rows of the log for TensorBoard too.
        device: "auto" (a CUDA GPU, else the CPU), "cpu", "cuda", "cuda:1". threads: of torch on the CPU; None leaves
            them as they are.
        devices: number of devices of that kind that share every batch; with several, the calling script is started
            again in as many processes, all of which call this function. Bits repeat with the same number of them.
        progress: called with the progress (see Watch). tell: called with each note of the data.
        command: the command that the card names; by default the equivalent call of `lpmbench train`.
        trust: allow code from outside this package.

    The best epoch on the validation split becomes the model; the test split is used once, at the end. After a
    KeyboardInterrupt, or a kill, last.ckpt of the last save is complete.

    Raises LpmbenchError when `out` holds a training and resume is not set, or another than the one to be resumed; when
    cards do not fit together, an image cannot be read, `out` cannot be written, or the loss stops being finite.
    """
    plan = make_plan(model, recipe=recipe, dataset=dataset, epochs=epochs, seed=seed, command=command, trust=trust)
    if tensorboard:
        checkpoints.summary_writer()  # if it is missing, the error comes before the data are read
    if not resume:
        checkpoints.refuse_to_overwrite(out)
    told: set[str] = set()

    def load(split: str) -> LabelledImages:
        images = load_split(plan, data, split, workers)
        for note in images.notes:
            if tell and note not in told:
                tell(note)
            told.add(note)
        return images

    with _threads(threads):
        training = _Training(plan, out, start(device, devices), load, save_every)
        training.restore() if resume else training.save()
        if tensorboard and training.leads:
            training.board = checkpoints.open_board(out, training.rows)
        try:
            training.run(progress or (lambda epochs, row: None))
            return training.finish()
        finally:
            training.close()


class _Training:
    """A running training: the network with its optimiser and schedule, and the rows of finished epochs."""

    def __init__(self, plan: TrainingPlan, out: Path, fabric: Fabric, load: Load, save_every: float | None) -> None:
        self.plan, self.out, self.fabric, self.load, self.leads = plan, out, fabric, load, fabric.is_global_zero
        # Part of the address of random numbers, so that several processes draw different ones; empty for one.
        self._rank = (fabric.global_rank,) if fabric.world_size > 1 else ()
        self.save_every = math.inf if save_every is None else 60 * save_every  # seconds
        self.rows: list[Row] = []
        self.unfinished: Unfinished = (0, {}, 0.0)
        self.board: Any = None
        self._drawn = time.perf_counter()
        self.images, self.validation = (load(split).on(fabric.device) for split in ("train", "validation"))
        self.batches = -(-len(self.images) // plan.recipe.batch_size)
        with isolated_globals(key(plan.seed, "initialise")):
            self.network = zoo.build(plan.card, trust=plan.trust)
        self._check_recipe()
        self.classifier = lay_out(zoo.wrap(self.network, plan.card), fabric.device.type)
        self.sigma = getattr(self.network, "sigma", 0.0)  # that its policy ends with
        self.mixed = plan.recipe.precision == "bf16-mixed"
        if self.mixed:
            keep_exact_parts(self.network)
        entry = cards.resolve(plan.recipe.objective, plan.recipe.path, trust=plan.trust)
        self.objective = bind(entry, plan.recipe.parameters, plan.recipe.path)
        self.fused = fabric.device.type == "cuda"
        self.optimiser = make_optimiser(self.network, plan.recipe, fused=self.fused)
        self.schedule = make_schedule(self.optimiser, plan.recipe, plan.recipe.epochs * self.batches)
        # On the device; self.optimiser stays the plain one.
        step = _Step(self.classifier, self.objective, seed=plan.seed, mixed=self.mixed)
        self.step, self.stepper = fabric.setup(step, self.optimiser)

    def _check_recipe(self) -> None:
        """Raises LpmbenchError if recipe and network do not fit; torch would fail in the middle of an epoch."""
        recipe, model = self.plan.recipe, self.plan.card.name
        smallest = len(self.images) // self.batches // self.fabric.world_size
        if smallest < 2 and any(isinstance(module, nn.BatchNorm1d) for module in self.network.modules()):
            raise LpmbenchError(
                f"Recipe '{recipe.name}': batch_size {recipe.batch_size} makes a batch of one image, which the batch "
                f"norms of '{model}' cannot train on; choose 3 or more."
            )
        staged = recipe.glimpses or recipe.sigma_start is not None
        if staged and not isinstance(self.network, RecurrentAttention):
            raise LpmbenchError(f"Recipe '{recipe.name}' sets glimpses or sigma_start; '{model}' sees images whole.")

    def save(self) -> None:
        """Write last.ckpt."""
        if self.leads:
            states = {name: part.state_dict() for name, part in self._states().items()}
            checkpoints.save_last(self.out, self.plan.identity(), self.rows, self.unfinished, states)

    def restore(self) -> None:
        """Restore the state in last.ckpt. Raises LpmbenchError if it is of another plan."""
        content = checkpoints.load_last(self.out, self.plan.identity())
        self.rows, self.unfinished = content["rows"], content["unfinished"]
        for group in content["optimiser"]["param_groups"]:
            group["fused"] = self.fused or None  # as on this device, not on that which it was saved on
        for name, part in self._states().items():
            part.load_state_dict(content[name])

    def _states(self) -> dict[str, Any]:
        return {"model": self.network, "optimiser": self.optimiser, "schedule": self.schedule}

    def run(self, progress: Watch) -> None:
        """Train all remaining epochs."""
        recipe = self.plan.recipe
        for epoch in range(len(self.rows) + 1, recipe.epochs + 1):
            trained, seconds = self._train_epoch(epoch, progress)
            row = {"epoch": epoch} | {f"train_{name}": value for name, value in trained.items()}
            if epoch % recipe.validation.every == 0 or epoch == recipe.epochs:
                started = time.perf_counter()
                row |= {f"validation_{name}": value for name, value in self._validate().items()}
                _check_finite(row["validation_classification"], epoch, self.out)
                seconds += time.perf_counter() - started
            self._enter(row | rates(self.optimiser) | {"seconds": seconds})
            if time.perf_counter() - self._drawn > curves.EVERY:
                self.draw()
            progress(epoch, self.rows[-1])

    def _validate(self) -> dict[str, float]:
        if isinstance(self.network, RecurrentAttention):
            self.network.sigma = self.sigma  # the model's own settings, not those of the training
        plan, device = self.plan, self.fabric.device
        asked = (plan.seed, device, plan.recipe.validation, self.fabric)
        with _precision(device, self.mixed):  # as in training
            return validate(self.classifier, self.objective, self.validation, *asked)

    def _enter(self, row: Row) -> None:
        """Write the files of a finished epoch; last.ckpt is last, so that it never names a file that does not exist."""
        rows = [*self.rows, row]
        if self.leads and best_epoch(rows) == row["epoch"]:
            checkpoints.save_network(self.out / BEST, self.network)
        if self.leads:
            checkpoints.save_log(self.out, rows)
        self.rows, self.unfinished = rows, (0, {}, 0.0)
        self.save()
        if self.board:
            checkpoints.add_to_board(self.board, row)

    def draw(self) -> None:
        """Write curves.png, if an epoch is finished."""
        if self.rows and self.leads:
            title = f"{self.plan.card.name} · {self.plan.recipe.name} · seed {self.plan.seed}"
            checkpoints.write(self.out / CURVES, curves.draw(self.rows, title, best_epoch(self.rows)))
        self._drawn = time.perf_counter()

    def close(self) -> None:
        """Write the curves of all finished epochs, whatever ended the training."""
        with suppress(LpmbenchError, OSError):  # the first error matters more than this one
            self.draw()
            if self.board:
                self.board.close()

    def _train_epoch(self, epoch: int, progress: Watch) -> tuple[dict[str, float], float]:
        """One pass over the training split, or over the rest of it.

        Returns the terms of the objective, averaged over images, and the seconds that the whole epoch took.
        """
        self.step.train()
        first, before, spent = self.unfinished
        begun, saved = time.perf_counter() - spent, time.perf_counter()
        # What was saved is of all processes, so one of them starts from it.
        totals, sums_of_all = Totals(before if self.leads else {}), before
        batches = shuffled_batches(len(self.images), self.plan.recipe.batch_size, self.plan.seed, epoch)
        stream = self.images.stream([share(self.fabric, batch) for batch in batches[first:]], self.fabric.device)
        with isolated_globals(0):
            for number in range(first, len(batches)):
                found = next(stream) if self.images.kept is not None else together(self.fabric, lambda: next(stream))
                # Dropout and similar layers draw from the global generators.
                seed_globals(key(self.plan.seed, "step", epoch, number, *self._rank))
                for name, value in self._train_batch(epoch, number, batches[number], found).items():
                    totals.add(name, value, len(found[1]))
                done = number + 1
                due = self._due(saved) and done < len(batches)
                if due or done % CHECK_EVERY == 0 or done == len(batches):
                    sums_of_all = sums(self.fabric, totals.read())
                    _check_finite(sums_of_all["loss"], epoch, self.out)
                progress(epoch - 1 + done / len(batches), None)
                if due:
                    self.unfinished = (done, sums_of_all, time.perf_counter() - begun)
                    self.save()
                    saved = time.perf_counter()
        return {name: total / len(self.images) for name, total in sums_of_all.items()}, time.perf_counter() - begun

    def _due(self, saved: float) -> bool:
        """Whether a process finds that the last save is save_every ago."""
        if self.save_every == math.inf:
            return False
        return sums(self.fabric, {"late": float(time.perf_counter() - saved > self.save_every)})["late"] > 0

    def _train_batch(self, epoch: int, number: int, positions: list[int], found: Labelled) -> Terms:
        """One step of the optimiser."""
        recipe, seed = self.plan.recipe, self.plan.seed
        # The weight of this process's mean loss, so that the mean over processes is that of the batch.
        weight = len(found[1]) * self.fabric.world_size / len(positions)
        positions = share(self.fabric, positions)
        images, labels = found
        images = augment(images, recipe.augmentation, Addresses.of(seed, positions, "augment", epoch))
        noise = on_device(self._noise(epoch, number, positions), images.device)
        terms: Terms = self.step(images, labels, noise, positions, epoch)
        self.stepper.zero_grad()
        self.fabric.backward(terms["loss"] * weight if weight != 1 else terms["loss"])
        if recipe.gradient_clip is not None:
            self.fabric.clip_gradients(self.step, self.stepper, max_norm=recipe.gradient_clip, error_if_nonfinite=False)
        self.stepper.step()
        self.schedule.step()
        return {name: value.detach() for name, value in terms.items() if name != "logits"}

    def _noise(self, epoch: int, number: int, positions: list[int]) -> Noise:
        """The network's noise for one batch, with the recipe's current number of glimpses and policy noise."""
        recipe, network = self.plan.recipe, self.network
        addresses = Addresses.of(self.plan.seed, positions, "train", epoch)
        if not isinstance(network, RecurrentAttention):
            return self.classifier.sample_noise(addresses)
        done = (epoch - 1 + number / self.batches) / recipe.epochs
        if recipe.sigma_start is not None:
            network.sigma = recipe.sigma_start + done * (self.sigma - recipe.sigma_start)
        stages = [glimpses for start, glimpses in recipe.glimpses if start <= done]
        own = network.sample_noise(addresses, stages[-1] if stages else None)
        return own | self.classifier.smoothing_noise(addresses)

    def finish(self) -> TrainingResult:
        """Measure the best epoch and write its model card."""
        started, plan, path = time.perf_counter(), self.plan, self.out / CARD
        self.fabric.barrier()  # until the first process has written
        best = self.out / BEST
        weight_files.load_state(self.network, weight_files.read(best), source=str(best))
        accuracy: dict[str, float] = {}
        purposes: dict[str, Purpose] = {"validation": "validate", "test": "clean"}
        notes = list(self.images.notes)
        for split, purpose in purposes.items():
            images = self.validation if split == "validation" else self.load(split).on(self.fabric.device)
            notes += [note for note in images.notes if note not in notes]
            shares = final_accuracy(self.classifier, images, plan.seed, purpose, self.fabric.device, self.fabric)
            accuracy |= {f"{split}{suffix}": value for suffix, value in shares.items()}
        seconds = sum(row["seconds"] for row in self.rows) + time.perf_counter() - started
        weights = self.out / checkpoints.weights_file(plan.card)
        if self.leads:
            checkpoints.save_network(weights, self.network)
            trained = {
                "recipe": plan.recipe.name, "seed": plan.seed, "epochs": plan.recipe.epochs,
                "dataset": plan.dataset.name, "command": plan.command, "accuracy": accuracy,
                "seconds": round(seconds, 1), "versions": versions_of(("torch", OURS)),
                "curve": curves.thinned(self.rows),
            }  # fmt: skip
            trained |= {"notes": notes} if notes else {}
            checkpoints.write_card(plan.card, weights, trained, path)
        self.fabric.barrier()
        card = cards.read(path, ModelCard)
        return TrainingResult(card, path, weights, accuracy, self.rows, best_epoch(self.rows), seconds)


def best_epoch(rows: list[Row]) -> int:
    """The validated epoch of the highest accuracy at M = 1; of equals, the lowest loss, then the first; 0 for none.

    The averaged classifier would hide a bad policy: it is right about nearly every validation image long before the
        single run is.
    """
    validated = [row for row in rows if "validation_accuracy" in row]
    scores = [(row["validation_accuracy"], -row["validation_classification"]) for row in validated]
    return int(validated[scores.index(max(scores))]["epoch"]) if validated else 0


def _precision(device: torch.device, mixed: bool) -> AbstractContextManager[None]:
    return torch.autocast(device.type, torch.bfloat16) if mixed else nullcontext()


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_finite(loss: float, epoch: int, out: Path) -> None:
    if not math.isfinite(loss):
        raise LpmbenchError(
            f"The loss is {loss} in epoch {epoch}; {out / checkpoints.LAST} holds the last good epoch. "
            "Try a lower learning_rate or a gradient_clip in the recipe."
        )
