"""Studies: accuracy of models while one thing is varied.

A stochastic model runs R = K · max M times over every image, run r on the noise of address ("clean", r). M runs in a
row make one draw of the average of M runs (their mean logits), so that M has R // M draws, no two of which share a run:
all M are served by the same runs, and at M = 1 they are the clean draws of a record. The accuracy is the mean over
images of the share of draws that are right (mean-draw), its Wilson interval counts images.

A study's directory holds NAME.json (what was run, under which versions, the table), NAME.csv and summary.png/.svg;
while it runs, finished blocks of images are in `.partial`, from which the same command resumes.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustbench_lpm import statistics
from robustbench_lpm.architectures.classifier import Classifier, Noise, on_device
from robustbench_lpm.datasets.examples import batches_by_shape
from robustbench_lpm.devices import goes_unnamed, resolve_device
from robustbench_lpm.errors import Attempt, LpmbenchError, in_one_line
from robustbench_lpm.execution.blocks import Block, BlockStore, differences
from robustbench_lpm.execution.machine import hardware
from robustbench_lpm.execution.recording import PROGRESS
from robustbench_lpm.execution.runner import SILENT
from robustbench_lpm.hashing import sealed, sha256_of, sha256_of_value
from robustbench_lpm.options import words_of
from robustbench_lpm.protocol.attacking import Arrays, Progress
from robustbench_lpm.protocol.chunks import LARGEST_BLOCK, chunk_for
from robustbench_lpm.protocol.oracle import check_logits
from robustbench_lpm.protocol.plan import fitted
from robustbench_lpm.randomness import RANDOM_NUMBERS, Addresses
from robustbench_lpm.records.runs import read_json, read_sealed, write_atomically
from robustbench_lpm.registry import cards
from robustbench_lpm.registry.tasks import Data, told_apart
from robustbench_lpm.registry.zoo import LoadedModel, load_model
from robustbench_lpm.versions import versions

SCHEMA_VERSION = 1
CHUNKS_IN_A_BLOCK = 4
Row = dict[str, Any]
Spent = Callable[[int], None]
Shares = NDArray[np.float64]


@dataclass(frozen=True)
class Study:
    """A study, resolved and checked before it starts; `configuration` names it. Made by `resolved`.

    A subclass says what is varied: `varied`, `words`, `cells` and `once`. One that measures something else than shares
    of right draws has its own `measured` and `rows`.
    """

    name: ClassVar[str]  # of the command, and of its files
    averages_runs: ClassVar[bool] = True  # whether the command takes --mc

    models: tuple[LoadedModel, ...]
    data: Data
    images: int = 0  # the first so many of the split
    mc: tuple[int, ...] = (1,)  # growing, 1 first; (1,) if no model is stochastic
    draws: int = 1  # K, of the average of max M runs
    seed: int = 0
    device: str = "auto"
    classes: int = 0
    chunk: int = 1  # images that pass a network at once
    data_sha256: str = field(default="", repr=False)
    labels_fit: bool = False  # whether the user declared that the models' labels are those of the dataset

    @property
    def configuration(self) -> dict[str, Any]:
        """Everything that decides the table."""
        return {
            "models": [model.identity for model in self.models],
            "dataset": self.data.identity | {"data_sha256": self.data_sha256, "images": self.images},
            "evaluation": self.varied()
            | {"mc": list(self.mc), "draws": self.draws, "seed": self.seed, "random_numbers": RANDOM_NUMBERS},
        }

    @property
    def id(self) -> str:
        """What names the study: the sha256 of the configuration."""
        return sha256_of_value(self.configuration)

    @property
    def block_size(self) -> int:
        """The most images in a block."""
        return CHUNKS_IN_A_BLOCK * self.chunk

    @property
    def blocks(self) -> list[range]:
        """The work units: slices of the images."""
        size = self.block_size
        return [range(start, min(start + size, self.images)) for start in range(0, self.images, size)]

    def averages(self, model: LoadedModel) -> tuple[int, ...]:
        """The values of M for a model; 1 for a deterministic one."""
        return self.mc if model.classifier.stochastic else (1,)

    def runs(self, model: LoadedModel) -> int:
        """R, the runs of a model over one image."""
        return self.draws * max(self.mc) if model.classifier.stochastic else 1

    def command(self) -> str:
        """The command that repeats this study (DIR is the directory of the data)."""
        names = [model.arguments.removeprefix("--model ") or shlex.quote(model.name) for model in self.models]
        options: dict[str, Any] = {name: self.data.identity[name] for name in ("size", "split")}
        options["limit"] = self.images
        options |= {"mc": ",".join(map(str, self.mc))} if self.averages_runs else {}
        options |= {"draws": self.draws, "seed": self.seed}
        options |= {} if goes_unnamed(self.device) else {"device": self.device}
        options |= {"labels_fit": True} if self.labels_fit else {}
        if self.data.foreign or any(model.card and cards.is_foreign(model.card) for model in self.models):
            options["trust"] = True
        data = self.data.arguments or f"--dataset {shlex.quote(self.data.name)}"
        return " ".join([f"lpmbench {self.name}", *names, *self.words(), data, *words_of(options)])

    def varied(self) -> dict[str, Any]:
        """What is varied, as a part of the configuration."""
        raise NotImplementedError

    def words(self) -> list[str]:
        """What is varied, in the options of the command."""
        raise NotImplementedError

    def cells(self) -> list[Row]:
        """What is varied, in columns of the table: a row for each point of a curve."""
        raise NotImplementedError

    def passes(self, model: LoadedModel) -> int:
        """Passes of a model's network for each image."""
        return self.runs(model)

    def once(self, classifier: Classifier, images: Tensor, noise: Noise) -> Tensor:
        """Logits (T, B, K) of one pass over images (B, C, H, W), after each of T numbers of glimpses."""
        raise NotImplementedError

    def measured(
        self, model: LoadedModel, images: Tensor, labels: Tensor, indices: Sequence[int], spent: Spent
    ) -> Tensor:
        """What is found of each image, (B, number of cells, number of Ms), float64.

        By default the share of draws that are right. images (B, C, H, W), labels (B,): on the device, those of
        `indices`. spent: called with the number of passes that the network has made.
        """
        return self.share_right(model, images, labels, self.noises(model, indices, self.runs(model)), spent)

    def noises(self, model: LoadedModel, indices: Sequence[int], runs: int) -> list[Noise]:
        """The noise of each run over some images, on the device."""
        found = []
        for run in range(runs):
            noise = model.classifier.sample_noise(Addresses.of(self.seed, indices, "clean", run))
            found.append(on_device(noise, torch.device(self.device)))
        return found

    def share_right(
        self, model: LoadedModel, images: Tensor, labels: Tensor, noises: Sequence[Noise], spent: Spent
    ) -> Tensor:
        """The share of draws that get each image right, (B, number of cells, number of Ms), float64 in [0, 1].

        noises: one for each run. spent: called with the number of passes that the network has made.
        """
        averages, runs = self.averages(model), len(noises)
        totals: dict[int, Tensor] = {}
        counts = torch.zeros(0)
        for run, noise in enumerate(noises):
            logits = self.once(model.classifier, images, noise)
            check_logits(logits.flatten(0, 1), self.classes or None)
            if not run:
                counts = torch.zeros(len(averages), *logits.shape[:2], dtype=torch.float64, device=logits.device)
            for position, m in enumerate(averages):
                totals[m] = logits if run % m == 0 else totals[m] + logits
                if run % m == m - 1:
                    counts[position] += (totals[m] / m).argmax(-1) == labels
            spent(len(images))
        draws = torch.tensor([runs // m for m in averages], dtype=torch.float64, device=counts.device)
        return counts.permute(2, 1, 0) / draws

    def rows(self, found: Sequence[Shares]) -> list[Row]:
        """The table of what was `measured` of all images, by model: for each M and cell the accuracy in [0, 1], its
        Wilson interval (None below 20 images), and n."""
        rows = []
        for model, per_image in zip(self.models, found, strict=True):
            for position, m in enumerate(self.averages(model)):
                for number, cell in enumerate(self.cells()):
                    right = per_image[:, number, position]
                    rate = statistics.rate(right)
                    halves = (right[::2], right[1::2]) if rate.n > 1 else (right, right)  # of the images
                    first, second = (float(half.mean()) for half in halves)
                    rows.append({
                        "model": model.name, "dataset": self.data.name, "size": self.data.identity["size"], "mc": m,
                        **cell,
                        "accuracy": rate.value, "accuracy_low": rate.low, "accuracy_high": rate.high,
                        "accuracy_first_half": first, "accuracy_second_half": second,
                        "images": rate.n, "draws": self.runs(model) // m, "seed": self.seed,
                    })  # fmt: skip
        return rows


StudyT = TypeVar("StudyT", bound=Study)


def load_all(
    names: Sequence[str], *, checkpoint: Path | None = None, trust: bool = False, device: str = "auto",
    attempt: Attempt = nullcontext,
) -> tuple[LoadedModel, ...]:  # fmt: skip
    """The registered models or cards of these names, told apart.

    attempt: the context in which each is loaded; one whose error it suppresses is left out. Raises LpmbenchError for a
    checkpoint with several names.
    """
    if checkpoint is not None and len(names) != 1:
        raise LpmbenchError("--checkpoint goes with exactly one model.")
    models: list[LoadedModel] = []
    for name in names:
        with attempt(name):
            models.append(load_model(name, checkpoint=checkpoint, trust=trust, device=device))
    return tuple(told_apart(models))


class ModelFailed(LpmbenchError):
    """One of a study's models cannot be studied; the others may be, see `without`."""

    def __init__(self, model: LoadedModel, error: Exception) -> None:
        self.model = model
        super().__init__(f"Model '{model.name}': {in_one_line(error)}.")


@contextmanager
def _blamed(model: LoadedModel) -> Iterator[None]:
    """Turn any error into ModelFailed."""
    try:
        yield
    except Exception as error:
        raise ModelFailed(model, error) from error


def without(study: StudyT, model: LoadedModel, limit: int | None) -> StudyT:
    """The study of the other models. Raises LpmbenchError where there are none."""
    return resolved(replace(study, models=tuple(other for other in study.models if other is not model)), limit)


def resolved(study: StudyT, limit: int | None, attempt: Attempt = nullcontext) -> StudyT:
    """The study with the fields that depend on its models and images; limit: the most images.

    attempt: the context in which each model is tried; one whose error it suppresses is left out.

    Raises LpmbenchError for models that cannot read the images or do not answer in their labels.
    """
    study = replace(study, device=resolve_device(study.device))
    images = min(limit or len(study.data), len(study.data))
    indices = range(images)
    models, chunks, classes = [], [], set()
    for given in study.models:
        with attempt(given.name):
            model, admission, example = fitted(given, study.data, indices, study.device, labels_fit=study.labels_fit)
            models.append(model)
            chunks.append(min(LARGEST_BLOCK, chunk_for(model.classifier, example, None, gradient=False)))
            classes.add(admission.classes)
    if not models:
        raise LpmbenchError("None of the models can be studied.")
    stochastic = any(model.classifier.stochastic for model in models)
    return replace(
        study, models=tuple(models), images=images, mc=study.mc if stochastic else (1,),
        draws=study.draws if stochastic else 1, classes=classes.pop() if len(classes) == 1 else 0, chunk=min(chunks),
        data_sha256=study.data.sha256(indices),
    )  # fmt: skip


def total_passes(study: Study) -> int:
    """Passes of a network that the whole study takes."""
    return study.images * sum(map(study.passes, study.models))


@torch.no_grad()
def estimate_seconds(study: Study) -> float:
    """About how long a study takes, from the time of reading a few images and of two passes over them."""
    start = time.perf_counter()
    batch = next(batches_by_shape(study.data.read(range(min(study.chunk, study.images)))))
    each = (time.perf_counter() - start) / len(batch)
    for model in study.models:
        images = batch.images.to(study.device)
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            with _blamed(model):
                (noise,) = study.noises(model, batch.indices, runs=1)
                study.once(model.classifier, images, noise).argmax(-1).cpu()  # the copy waits for the device
            seconds.append(time.perf_counter() - start)
        each += study.passes(model) * min(seconds) / len(batch)
    return each * study.images


@dataclass(frozen=True)
class Result:
    """A finished study: its table, a row for each cell, the seconds that it took, and how it was computed."""

    rows: list[Row]
    seconds: float
    execution: dict[str, Any]


def run(study: Study, out: Path | None = None, progress: Progress | None = None) -> Result:
    """Run a study block by block; with `out`, finished blocks are kept there until `write` has written the result."""
    watcher = progress or SILENT
    store = _store(study, out)
    manifest = {"configuration": study.configuration, "execution": _execution(study), "versions": versions()}
    on_gpu = torch.device(study.device).type == "cuda"
    used = store.open(manifest, measured=on_gpu)["execution"]
    study = replace(study, chunk=used["chunk"])
    parts, done = [], 0
    for number, indices in enumerate(study.blocks):
        block = store.read(number)
        if block is None:
            start = time.perf_counter()
            arrays = _run_block(study, indices, watcher)
            block = Block(arrays | {"seconds": np.array(time.perf_counter() - start)})
            store.write(number, block)
        parts.append(block.arrays)
        done += len(indices)
        watcher.finished(done)
    shares = [np.concatenate([part[str(i)] for part in parts]) for i in range(len(study.models))]
    return Result(study.rows(shares), sum(float(part["seconds"]) for part in parts), used)


def _store(study: Study, out: Path | None) -> BlockStore:
    return BlockStore(out / PROGRESS / f"{study.name}-{study.id[:12]}" if out is not None else None)


def _execution(study: Study) -> dict[str, Any]:
    """How a study is computed; the same again, with the same versions, gives the same bits."""
    return {"device": torch.device(study.device).type, "threads": torch.get_num_threads(), "chunk": study.chunk}


@torch.no_grad()
def _run_block(study: Study, indices: Sequence[int], progress: Progress) -> Arrays:
    """By the position of a model, what is measured of it: (images of the block, cells, Ms), float64."""
    shape = len(indices), len(study.cells())
    found = [np.zeros((*shape, len(study.averages(model)))) for model in study.models]
    for batch in batches_by_shape(study.data.read(indices), study.chunk):
        images, labels = batch.images.to(study.device), batch.labels.to(study.device)
        for position, model in enumerate(study.models):
            with _blamed(model):
                try:
                    shares = study.measured(model, images, labels, batch.indices, progress.spent)
                except torch.OutOfMemoryError:
                    raise LpmbenchError(
                        f"{len(batch)} images of {batch.images.shape[-1]} pixels do not fit into the memory of "
                        f"{study.device}; use a smaller --size or another --device."
                    ) from None
            found[position][batch.positions] = shares.cpu().numpy()
    return {str(position): shares for position, shares in enumerate(found)}


def finished(study: Study, out: Path) -> Result | None:
    """The result of this study in `out`, if it was made by the same versions.

    Raises LpmbenchError for the result of another study: two configurations are never mixed.
    """
    path = out / f"{study.name}.json"
    if not path.exists():
        return None
    try:
        content = read_sealed(path, (SCHEMA_VERSION,), SCHEMA_VERSION + 1)  # the first studies had no seal
        stored, seconds = content["configuration"], float(content["timing"]["seconds"])
        result = Result(content["table"], seconds, content["execution"])
        made_with = content["versions"]
        if content["id"] != sha256_of_value(stored):
            raise ValueError("its id is not the sha256 of its configuration")
    except (KeyError, TypeError, ValueError, LpmbenchError) as error:
        raise LpmbenchError(f"{path} is no finished {study.name} ({in_one_line(error)}); use --force.") from None
    if stored != (wanted := json.loads(json.dumps(study.configuration))):
        raise LpmbenchError(
            f"{path} holds another study: it differs in {differences(stored, wanted)}. Give another directory with "
            "--out, or --force to write over it."
        )
    return result if made_with == versions() else None


def write(study: Study, result: Result, files: Mapping[str, bytes], out: Path) -> None:
    """Write the files of a study below `out`; NAME.json, with their hashes, last."""
    path = out / f"{study.name}.json"
    path.unlink(missing_ok=True)  # of an earlier study: it does not describe these files
    for name, written in files.items():
        write_atomically(out / name, written)
    content: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION, "study": study.name, "id": study.id, "command": study.command(),
        "configuration": study.configuration, "execution": result.execution, "versions": versions(),
        "timing": {"seconds": result.seconds, "hardware": hardware(study.device)},
        "artefacts": {name: sha256_of(out / name) for name in files},
        "table": result.rows,
    }  # fmt: skip
    # In this order: the rows of the table are in that of the CSV's columns.
    text = json.dumps(sealed(content), indent=1, ensure_ascii=True, allow_nan=False) + "\n"
    write_atomically(path, text.encode())
    _store(study, out).close()


def files_of(study: Study, out: Path) -> list[str]:
    """The names of the files of a finished study: the table, NAME.json, the figures."""
    table, *figures = read_json(out / f"{study.name}.json").get("artefacts") or {}
    return [table, f"{study.name}.json", *figures]


def whole(study: Study, out: Path) -> bool:
    """Whether every file that a finished study's NAME.json lists is there as it was written."""
    artefacts = read_json(out / f"{study.name}.json").get("artefacts") or {}
    return bool(artefacts) and all(
        (out / Path(name).name).is_file() and sha256_of(out / Path(name).name) == digest
        for name, digest in artefacts.items()
    )
