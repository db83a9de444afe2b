"""Read, write and check run records. Knows nothing about torch.

A run is one model under one attack at one budget on one list of examples. Its directory holds

    record.json             what was run, under which versions; identified by its configuration, sealed by a hash
    outcomes.parquet        one row per example: predictions before and after the attack, distances, cost
    adversarials.safetensors  clean and adversarial images (float32), of the first examples or of all
    timing.json             seconds, hardware, host: the only part in which two equal runs may differ

Means are derived from the outcomes and stored nowhere.
"""

from __future__ import annotations

import io
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from robustbench_lpm import statistics
from robustbench_lpm.budgets import format_eps
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.hashing import seal_holds, sealed, sha256_of, sha256_of_image, sha256_of_value

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 5
# Version 1 did not say which candidate was chosen for each example; version 2 named no classes and needed no seal;
# version 3 kept no hashes of code; version 4 used the random numbers of before.
READABLE = (1, 2, 3, 4, 5)
SEALED_SINCE = 3
# The beginning of a note: such a run measures nothing, and its model gets no rank.
UNSTEADY = "The model's answers depend on what it was asked before"
# The keys of record.json that are fields of RunRecord.
STATED = ("command", "configuration", "execution", "versions", "code", "failures", "notes")
RECORD, OUTCOMES, ADVERSARIALS, TIMING = "record.json", "outcomes.parquet", "adversarials.safetensors", "timing.json"
# Images are float32: adding a perturbation to a pixel and subtracting it again may be off by an ulp or two.
DISTANCE_TOLERANCE = 1e-6
# The same distance computed again, in float64 from the same float32 pixels, differs by the order of a sum at most.
REPEATED_TOLERANCE = 1e-9
DRAWS = "int32 of each draw"
TYPES = {
    "index": "int64", "input_sha256": "string", "label": "int32", "target": "int32",
    "clean_predictions": DRAWS, "predictions": DRAWS, "linf": "float64", "l2": "float64",
    "forwards": "int64", "backwards": "int64", "glimpses": "int64",
    "choice": "string",  # the chosen gradient mode or member of a worst case; "" if there was only one
}  # fmt: skip
COLUMNS = tuple(TYPES)
OWN_COLUMNS = {"l1": "float64", "l0": "float64"}  # each only of runs in that norm


@dataclass
class RunRecord:
    """One run with its outcomes; `configuration` decides them, the rest says how they were made."""

    configuration: dict[str, Any]
    command: str
    execution: dict[str, Any]  # device type, threads, block and chunk size: the same again gives the same bits
    versions: dict[str, str]
    outcomes: pd.DataFrame
    code: dict[str, str] = field(default_factory=dict)  # hashes of the code of model, attack, data; and of answers
    adversarials: dict[str, NDArray[Any]] = field(default_factory=dict)  # per shape group, see `pictures`
    failures: list[dict[str, Any]] = field(default_factory=list)  # blocks that could not be computed
    notes: list[str] = field(default_factory=list)  # what a reader must know: known defects, warnings
    timing: dict[str, Any] = field(default_factory=dict)
    class_names: dict[int, str] = field(default_factory=dict)  # of the labels that occur; {} where they have none
    path: Path | None = None  # of its directory, or of the archive that it is in
    artefacts: dict[str, str] = field(default_factory=dict)  # hashes of its files, once they are written
    picture_step: float = 0.0  # to which adversarial pixels were rounded after the run; 0: not at all

    def __repr__(self) -> str:
        """What a person asks first: the accuracies in per cent, the cost and the notes, in a few lines."""
        images = len(self.outcomes)
        lines = [f"{self.model} under {self.attack}, {self.threat} eps {format_eps(self.eps)}"]
        lines[0] += f", {self.dataset}, {images} image(s)" + (f", M = {self.mc}" if self.mc > 1 else "")
        if images:
            rates = {"clean": self.clean_accuracy, "robust": self.robust_accuracy}
            lines.append(", ".join(f"{name} {_in_per_cent(rate)}" for name, rate in rates.items()))
            costs = [f"{self.outcomes[name].mean():,.0f} {name}" for name in ("forwards", "backwards")]
            seconds = [f"{self.timing['seconds']:.1f} s in all"] if "seconds" in self.timing else []
            lines.append(", ".join([f"{' and '.join(costs)} for each image", *seconds]))
        if failed := sum(len(failure["indices"]) for failure in self.failures):
            lines.append(f"failed: {failed} image(s): {self.failures[0]['error']}")
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"record: {self.path}"] * (self.path is not None)
        return "\n".join(lines)

    @property
    def id(self) -> str:
        """The sha256 of the configuration."""
        return sha256_of_value(self.configuration)

    @property
    def folder_name(self) -> str:
        """A readable name, made unique by the start of the id."""
        parts = [self.model, self.attack, self.threat, format_eps(self.eps), self.dataset, f"mc{self.mc}"]
        return f"{'--'.join(map(as_file_name, parts))[:120]}--{self.id[:12]}"

    @property
    def model(self) -> str:
        return str(self.configuration["model"]["name"])

    @property
    def attack(self) -> str:
        return str(self.configuration["attack"]["name"])

    @property
    def dataset(self) -> str:
        return str(self.configuration["dataset"]["name"])

    @property
    def size(self) -> str:
        return str(self.configuration["dataset"]["size"])

    @property
    def norm(self) -> str:
        return str(self.configuration["threat"]["norm"])

    @property
    def patch(self) -> dict[str, Any]:
        """The share of the image that a patch covers ("share"), and its place ("at"); empty where there is none."""
        return dict(self.configuration["threat"].get("patch") or {})

    @property
    def threat(self) -> str:
        """The norm, and the patch where there is one: "linf", "linf patch 10 %"."""
        if not self.patch:
            return self.norm
        place = f" at {self.patch['at']}" if self.patch["at"] is not None else ""
        return f"{self.norm} patch {100 * self.patch['share']:g} %{place}"

    @property
    def eps(self) -> float:
        return float(self.configuration["threat"]["eps"])

    @property
    def mc(self) -> int:
        """Monte-Carlo runs that the graded classifier averages; 1 is the classifier itself."""
        return int(self.configuration["evaluation"]["mc"])

    @property
    def stochastic(self) -> bool:
        return bool(self.configuration["model"]["stochastic"])

    @property
    def steady(self) -> bool:
        """Whether the model answered as if nothing had been asked before, where that was looked at."""
        return not any(note.startswith(UNSTEADY) for note in self.notes)

    @cached_property
    def predictions(self) -> NDArray[np.int64]:
        """Predicted labels after the attack: (images, draws)."""
        return np.stack(self.outcomes["predictions"].to_list()).astype(np.int64)

    @cached_property
    def clean_predictions(self) -> NDArray[np.int64]:
        """Predicted labels before the attack: (images, draws)."""
        return np.stack(self.outcomes["clean_predictions"].to_list()).astype(np.int64)

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.outcomes["label"].to_numpy(np.int64)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each draw classifies each attacked image correctly: (images, draws)."""
        return self.predictions == self.labels[:, None]

    @property
    def clean_correct(self) -> NDArray[np.bool_]:
        """Whether each draw classifies each clean image correctly: (images, draws)."""
        return self.clean_predictions == self.labels[:, None]

    @property
    def clean_accuracy(self) -> statistics.Rate:
        """Mean over draws and images, before the attack."""
        return statistics.mean_draw(self.clean_correct)

    @property
    def robust_accuracy(self) -> statistics.Rate:
        """Mean over draws and images, after the attack."""
        return statistics.mean_draw(self.correct)

    @property
    def first_half(self) -> NDArray[np.bool_]:
        """Which graded draws (images, draws) are in the first half, see `statistics.first_half`."""
        places = {index: place for place, index in enumerate(self.configuration["dataset"]["indices"])}
        found = np.array([places[index] for index in self.outcomes["index"]], np.int64)
        return statistics.first_half(found, self.predictions.shape[1])

    @property
    def robust_halves(self) -> tuple[float, float]:
        """Robust accuracy on the first and on the second half of the graded draws.

        Both are that on all draws if there is no noise (a deterministic model, or all noise frozen: one draw was
        graded, one compared), and for one draw of one image.
        """
        evaluation, correct, first = self.configuration["evaluation"], self.correct, self.first_half
        frozen = any(mode == "frozen" for _, mode in evaluation.get("noise") or [])
        if not self.stochastic or (frozen and evaluation["draws"] == evaluation["select_draws"] == 1) or first.all():
            return (self.robust_accuracy.value,) * 2
        return float(correct[first].mean()), float(correct[~first].mean())

    @property
    def robust_majority(self) -> statistics.Rate:
        """The share of attacked images that more than half of the draws classify correctly."""
        return statistics.majority(self.correct)

    @property
    def robust_worst_of_k(self) -> statistics.Rate:
        """The share of attacked images that every draw classifies correctly."""
        return statistics.worst_of_k(self.correct)

    @property
    def reference_counts(self) -> tuple[int, int, int]:
        """Images as the reference of RAM-LPM counts them, one pass deciding each: success, failure, incorrect.

        Incorrect are those that are wrong before the attack; of the others it succeeds where one pass is wrong.
        """
        before, after = self.clean_correct[:, 0], self.correct[:, 0]
        return int((before & ~after).sum()), int((before & after).sum()), int((~before).sum())

    @property
    def robust_attempts(self) -> NDArray[np.float64]:
        """The share of attacked images that are right after K attempts, for K = 1 to the number of draws: (draws,)."""
        return statistics.attempts(self.correct)

    @property
    def clean_flip_rate(self) -> float:
        """The probability that two draws disagree on a clean image."""
        return statistics.flip_rate(self.clean_predictions)

    @property
    def target_rate(self) -> statistics.Rate | None:
        """For a targeted attack the mean share of draws that predict the target, else None."""
        targets = self.outcomes["target"].to_numpy(np.int64)
        if (targets < 0).all():
            return None
        return statistics.rate((self.predictions == targets[:, None]).mean(axis=1))

    @property
    def choices(self) -> dict[str, int]:
        """The number of examples for each chosen candidate, the most frequent first; empty without a choice."""
        counts = Counter(str(name) for name in self.outcomes.get("choice", ()) if name)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def pictures(self) -> list[Picture]:
        """The stored images, in the order of the outcomes."""
        order = {int(index): position for position, index in enumerate(self.outcomes["index"])}
        return sorted(pictures_in(self.adversarials), key=lambda picture: order[picture.index])


@dataclass(frozen=True)
class Picture:
    """One example's pixels, (C, H, W) float32 in [0, 1], before and after the attack."""

    index: int
    clean: NDArray[np.float32]
    adversarial: NDArray[np.float32]


def _in_per_cent(rate: statistics.Rate) -> str:
    """A rate and its interval, if it has one."""
    bounds = "" if rate.low is None or rate.high is None else f" [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
    return f"{100 * rate.value:.1f} %{bounds}"


def as_file_name(text: str) -> str:
    """Text as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.") or "unnamed"


def group_pictures(pictures: list[Picture]) -> dict[str, NDArray[Any]]:
    """The arrays that store images, one group per image shape."""
    groups: dict[str, list[Picture]] = {}
    for picture in pictures:
        groups.setdefault("x".join(map(str, picture.clean.shape)), []).append(picture)
    arrays: dict[str, NDArray[Any]] = {}
    for shape, members in groups.items():
        arrays[f"index.{shape}"] = np.array([m.index for m in members], np.int64)
        arrays[f"clean.{shape}"] = np.stack([m.clean for m in members])
        arrays[f"adversarial.{shape}"] = np.stack([m.adversarial for m in members])
    return arrays


def pictures_in(arrays: Mapping[str, NDArray[Any]], prefix: str = "") -> list[Picture]:
    """The images in the arrays of `group_pictures`, whose names may have a prefix."""
    found = []
    for group in sorted(name.removeprefix(f"{prefix}index.") for name in arrays if name.startswith(f"{prefix}index.")):
        parts = (arrays[f"{prefix}{part}.{group}"] for part in ("index", "clean", "adversarial"))
        found += [Picture(int(i), clean, attacked) for i, clean, attacked in zip(*parts, strict=True)]
    return found


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash, finds the old one or the whole new one. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write(record: RunRecord, out: Path) -> Path:
    """Write a record's directory below `out`; record.json comes last, so that a directory with one is complete."""
    folder = out / record.folder_name
    (folder / RECORD).unlink(missing_ok=True)  # of an earlier run: it does not describe the new files
    write_atomically(folder / OUTCOMES, _outcomes_to_parquet(record.outcomes))
    record.artefacts = {OUTCOMES: sha256_of(folder / OUTCOMES)}
    if record.adversarials:
        record.artefacts[ADVERSARIALS] = _write_arrays(folder, record.adversarials)
    write_atomically(folder / TIMING, _pretty(record.timing))
    write_atomically(folder / RECORD, _pretty(content_of(record)))
    record.path = folder
    return folder


def content_of(record: RunRecord) -> dict[str, Any]:
    """What a record's file says, sealed."""
    return sealed({
        "schema_version": SCHEMA_VERSION,
        "id": record.id,
        "class_names": {str(label): name for label, name in sorted(record.class_names.items())},
        "artefacts": record.artefacts,
        **{name: getattr(record, name) for name in STATED},
    })  # fmt: skip


def _write_arrays(folder: Path, arrays: dict[str, NDArray[Any]]) -> str:
    """Write the images of a record; the sha256 of the file."""
    from safetensors.numpy import save

    write_atomically(folder / ADVERSARIALS, save(arrays))
    return sha256_of(folder / ADVERSARIALS)


def _outcomes_to_parquet(outcomes: pd.DataFrame) -> bytes:
    """The bytes of outcomes.parquet: same rows, same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = TYPES | {name: kind for name, kind in OWN_COLUMNS.items() if name in outcomes}
    fields = [(name, pa.list_(pa.int32()) if kind == DRAWS else kind) for name, kind in types.items()]
    table = pa.Table.from_pandas(_with_choice(outcomes)[list(types)], schema=pa.schema(fields), preserve_index=False)
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(None), buffer, compression="zstd")
    return buffer.getvalue()


def _with_choice(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Outcomes with an empty column `choice` where they have none."""
    return outcomes if "choice" in outcomes else outcomes.assign(choice="")


def _pretty(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n").encode()


def read(folder: Path) -> RunRecord:
    """Read a record and check its id, its seal and the hashes of its artefacts.

    Raises LpmbenchError for a directory that is incomplete, altered, or written by a newer version.
    """
    folder = folder.parent if folder.name == RECORD else folder
    content = read_sealed(folder / RECORD, READABLE, SEALED_SINCE)
    try:
        return _read_artefacts(content, folder)
    except LpmbenchError:
        raise
    except Exception as error:  # whatever is malformed, the error names the file
        raise LpmbenchError(f"{folder / RECORD} is not a valid record: {type(error).__name__}: {error}.") from None


def _read_artefacts(content: dict[str, Any], folder: Path) -> RunRecord:
    import pandas as pd

    if OUTCOMES not in content["artefacts"]:
        raise LpmbenchError(f"{folder / RECORD}: artefacts do not list {OUTCOMES}; the file was altered.")
    for name, digest in content["artefacts"].items():
        if name not in (OUTCOMES, ADVERSARIALS) or not (folder / name).is_file():
            raise LpmbenchError(f"{folder}: artefact '{name}' is missing.")
        if sha256_of(folder / name) != digest:
            raise LpmbenchError(f"{folder / name}: sha256 differs from the one in {RECORD}; the file was altered.")
    outcomes = pd.read_parquet(folder / OUTCOMES)
    if content["schema_version"] == 1:
        outcomes = _with_choice(outcomes)
    adversarials: dict[str, NDArray[Any]] = {}
    if ADVERSARIALS in content["artefacts"]:
        from safetensors.numpy import load

        adversarials = load((folder / ADVERSARIALS).read_bytes())
    timing = read_json(folder / TIMING) if (folder / TIMING).is_file() else {}
    return from_content(content, outcomes, adversarials, timing, folder)


def from_content(
    content: dict[str, Any], outcomes: pd.DataFrame, adversarials: dict[str, NDArray[Any]], timing: dict[str, Any],
    path: Path, *, picture_step: float = 0.0,
) -> RunRecord:  # fmt: skip
    """The record that says this, with its outcomes and images, checked. Raises LpmbenchError."""
    record = RunRecord(
        **{name: content[name] for name in STATED if name != "code"},
        code=content.get("code", {}),
        outcomes=outcomes,
        adversarials=adversarials,
        timing=timing,
        class_names={int(label): str(name) for label, name in content.get("class_names", {}).items()},
        path=path,
        artefacts=content["artefacts"],
        picture_step=picture_step,
    )
    if record.id != content["id"]:
        raise LpmbenchError(f"{path}: id is not the sha256 of the configuration; the record was altered.")
    check(record)
    return record


def check(record: RunRecord) -> None:
    """Check that a record is consistent. Raises LpmbenchError for the first claim that is wrong."""
    where = record.path or record.folder_name
    outcomes, evaluation = record.outcomes, record.configuration["evaluation"]
    if missing := set(COLUMNS) - set(outcomes.columns):
        raise LpmbenchError(f"{where}: outcomes lack the column(s) {', '.join(sorted(missing))}.")
    if not all(isinstance(choice, str) for choice in outcomes["choice"]):
        raise LpmbenchError(f"{where}: the column choice must hold text.")
    failed = {index for failure in record.failures for index in failure["indices"]}
    expected = [index for index in record.configuration["dataset"]["indices"] if index not in failed]
    if outcomes["index"].to_list() != expected:
        raise LpmbenchError(f"{where}: outcomes are not one row for each example of the configuration.")
    if len(outcomes) == 0:
        return
    draws = evaluation["draws"] if record.stochastic else 1
    if record.predictions.shape[1] != draws or record.clean_predictions.shape[1] != draws:
        raise LpmbenchError(f"{where}: outcomes do not hold {draws} graded draw(s) per example.")
    if record.norm not in outcomes:
        raise LpmbenchError(f"{where}: outcomes lack the column(s) {record.norm}.")
    worst = float(outcomes[record.norm].to_numpy().max())  # pandas' own max would pass over NaN
    if not worst <= record.eps + DISTANCE_TOLERANCE:
        raise LpmbenchError(f"{where}: a perturbation of {record.norm} {worst:.6g} exceeds eps {record.eps:.6g}.")
    rows = outcomes.set_index("index")
    for picture in record.pictures():
        check_picture(picture, rows.loc[picture.index], where, record.picture_step)
        if record.patch:
            _check_patch(picture, record.patch, where)


def check_picture(picture: Picture, row: Any, where: Path | str, step: float = 0.0) -> None:
    """Check a stored image against its row of outcomes: the range [0, 1], the distances, the hash of the input.

    step: to which its pixels were rounded since the distances were taken.
    """
    difference = np.abs(picture.adversarial.astype(np.float64) - picture.clean.astype(np.float64))
    if not (picture.adversarial.min() >= 0 and picture.adversarial.max() <= 1):
        raise LpmbenchError(f"{where}: adversarial image {picture.index} leaves [0, 1].")
    distances = {"linf": difference.max(), "l2": np.sqrt((difference**2).sum()), "l1": difference.sum()}
    moved = {"linf": step / 2, "l2": step / 2 * difference.size**0.5, "l1": step / 2 * difference.size}
    # Pixels that were not changed may have been rounded, by half a step.
    changed = int((difference > 1.01 * step / 2).sum())
    if "l0" in row and not (changed <= row["l0"] if step else changed == row["l0"]):
        raise LpmbenchError(f"{where}: adversarial image {picture.index} is not at the distance recorded for it.")
    for name, found in distances.items():
        tolerance = REPEATED_TOLERANCE * max(1.0, float(found)) + 1.01 * moved[name]
        if name in row and abs(float(found) - row[name]) > tolerance:
            raise LpmbenchError(f"{where}: adversarial image {picture.index} is not at the distance recorded for it.")
    if sha256_of_image(picture.clean) != row["input_sha256"]:
        raise LpmbenchError(f"{where}: clean image {picture.index} is not the input recorded for it.")


def _check_patch(picture: Picture, patch: dict[str, Any], where: Path | str) -> None:
    """Check that only pixels of one square of the patch's size have changed; see `protocol.patches`."""
    changed = np.argwhere((picture.adversarial != picture.clean).any(0))
    sides = changed.max(0) - changed.min(0) + 1 if len(changed) else np.zeros(2)
    if (sides > max(1, round((patch["share"] * picture.clean[0].size) ** 0.5))).any():
        raise LpmbenchError(f"{where}: adversarial image {picture.index} has changes outside its patch.")


def read_all(folder: Path) -> list[RunRecord]:
    """Every record below a folder, in directories of its own or in archives, in a stable order.

    Raises LpmbenchError when there is none.
    """
    from robustbench_lpm.records import archive

    found = sorted(folder.rglob(RECORD)) if folder.is_dir() else []
    archives = sorted(folder.rglob(archive.INDEX)) if folder.is_dir() else []
    if not found and not archives:
        raise LpmbenchError(f"There are no records below {folder}; `lpmbench attack` writes some.")
    return [read(path.parent) for path in found] + [r for path in archives for r in archive.read(path.parent).records]


def read_sealed(path: Path, readable: tuple[int, ...], sealed_since: int) -> dict[str, Any]:
    """The JSON object in a file, of a schema that can be read and with a seal that holds. Raises LpmbenchError."""
    return checked(read_json(path), path, readable, sealed_since)


def checked(
    content: dict[str, Any], path: Path, readable: tuple[int, ...] = READABLE, sealed_since: int = SEALED_SINCE
) -> dict[str, Any]:
    """A JSON object, if it is of a schema that can be read and its seal holds. path: named by the LpmbenchError."""
    if (version := content.get("schema_version")) not in readable:
        known = ", ".join(map(str, readable))
        raise LpmbenchError(f"{path}: schema_version is {version}; this version reads {known}.")
    if not seal_holds(content, required=version >= sealed_since):
        raise LpmbenchError(f"{path}: its seal is not the sha256 of what it says; the file was altered.")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """The one JSON object in a file. Raises LpmbenchError where there is none."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise LpmbenchError(f"There is no {path.name} in {path.parent}.") from None
    except OSError as error:
        raise LpmbenchError(f"{path} cannot be read: {error}") from None
    return parsed(content, path)


def parsed(content: bytes, path: Path) -> dict[str, Any]:
    """The one JSON object in these bytes. path: named by the LpmbenchError where there is none."""
    try:
        found = json.loads(content)
    except ValueError as error:
        raise LpmbenchError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise LpmbenchError(f"{path} must hold one JSON object.")
    return found
