"""Published records: the runs of one dataset together, in a few small files. Knows nothing about torch.

An archive is a directory, `results/records/DATASET/`, with

    records.jsonl         a header, then a line for each record (what record.json and timing.json say), then the audits
    outcomes.parquet      the outcomes of all records, one row for each run and example
    pictures.safetensors  a few adversarial images of the records that decide a rank, in 16-bit integers, and once the
                          clean images that belong to them; absent where there are none

The header names the hashes of the other two files; every record and audit keeps its own seal. What is published of a
record is what it says, but for pictures, whose pixels are rounded to 1/65535.
"""

from __future__ import annotations

import copy
import io
import json
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.hashing import sealed, sha256_of, sha256_of_image, sha256_of_value
from robustbench_lpm.records import audits, runs
from robustbench_lpm.records.audits import Audit
from robustbench_lpm.records.runs import Picture, RunRecord

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
INDEX, OUTCOMES, PICTURES = "records.jsonl", "outcomes.parquet", "pictures.safetensors"
LEVELS = 65535  # of a published pixel
# Parts that many records of an archive share: each is written once, in the header.
SHARED = (("configuration", "dataset"), ("configuration", "model"), ("execution",), ("versions",), ("class_names",))
Content = dict[str, Any]


@dataclass
class Archive:
    """What is published of one dataset. pictures: by the id of the record, already `rounded`."""

    records: list[RunRecord] = field(default_factory=list)
    audits: list[Audit] = field(default_factory=list)


def rounded(picture: Picture) -> Picture:
    """A picture as it is published: adversarial pixels in steps of 1/65535."""
    return replace(picture, adversarial=_pixels(_integers(picture.adversarial)))


def _integers(pixels: NDArray[np.float32]) -> NDArray[np.uint16]:
    return np.rint(pixels.astype(np.float64) * LEVELS).astype(np.uint16)


def _pixels(integers: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (integers.astype(np.float64) / LEVELS).astype(np.float32)


def with_pictures(record: RunRecord, pictures: Iterable[Picture]) -> RunRecord:
    """A record as it is published, with these of its pictures, `rounded`."""
    arrays = runs.group_pictures([rounded(picture) for picture in pictures])
    return replace(record, adversarials=arrays, picture_step=1 / LEVELS)


def add(folder: Path, published: Archive, pictured: Collection[str]) -> None:
    """Add records and audits to the archive at `folder`, in place of those of the same runs.

    pictured: the ids of the records whose pictures stay; those of others are dropped. Raises LpmbenchError.
    """
    before = read(folder) if (folder / INDEX).is_file() else Archive()
    new = {record.id for record in published.records}
    kept = [record for record in before.records if record.id not in new]
    kept = [record if record.id in pictured else with_pictures(record, []) for record in kept]
    judged = [audit for audit in before.audits if audit.record not in new]
    write(folder, Archive([*kept, *published.records], [*judged, *published.audits]))


def write(folder: Path, archive: Archive) -> None:
    """Write an archive in place of what is at `folder`, all of it or nothing. Equal contents make equal bytes, in any
    order. Raises OSError."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".publishing.") as staging:
        new, old = Path(staging) / "new", Path(staging) / "old"
        _write(new, archive)
        if folder.exists():
            folder.replace(old)
        new.replace(folder)


def _write(folder: Path, archive: Archive) -> None:
    found = sorted(archive.records, key=lambda record: record.folder_name)
    runs.write_atomically(folder / OUTCOMES, _to_parquet(found))
    artefacts = {OUTCOMES: sha256_of(folder / OUTCOMES)}
    if arrays := _arrays(found):
        from safetensors.numpy import save

        runs.write_atomically(folder / PICTURES, save(arrays))
        artefacts[PICTURES] = sha256_of(folder / PICTURES)
    shared: dict[str, Any] = {}
    lines: list[Content] = [
        {"record": _without_shared(runs.content_of(record), shared), "timing": record.timing} for record in found
    ]
    for audit in sorted(archive.audits, key=lambda audit: audit.folder_name):
        lines.append({"audit": sealed({"schema_version": audits.SCHEMA_VERSION, **asdict(audit)})})
    header = sealed({"schema_version": SCHEMA_VERSION, "artefacts": artefacts, "shared": shared})
    text = "".join(f"{json.dumps(line, sort_keys=True, allow_nan=False)}\n" for line in (header, *lines))
    runs.write_atomically(folder / INDEX, text.encode())


def _without_shared(content: Content, shared: dict[str, Any]) -> Content:
    """What a record says, with hashes in place of its shared parts, which are added to `shared`."""
    found = copy.deepcopy(content)
    for *outer, key in SHARED:
        inside = found[outer[0]] if outer else found
        name = sha256_of_value(inside[key])[:16]
        shared[name], inside[key] = inside[key], name
    return found


def _with_shared(content: Content, shared: Mapping[str, Any]) -> Content:
    found = copy.deepcopy(content)
    for *outer, key in SHARED:
        inside = found[outer[0]] if outer else found
        inside[key] = copy.deepcopy(shared[inside[key]])
    return found


def _to_parquet(found: Sequence[RunRecord]) -> bytes:
    """The outcomes of all records in one table, whose column `run` holds the id of the record."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = runs.TYPES | runs.OWN_COLUMNS
    fields = [("run", pa.string()), *((n, pa.list_(pa.int32()) if t == runs.DRAWS else t) for n, t in types.items())]
    schema = pa.schema(fields)
    tables = []
    for record in found:
        rows = record.outcomes.assign(run=record.id)
        rows = rows.assign(
            **{name: pd.Series(dtype=kind) for name, kind in runs.OWN_COLUMNS.items() if name not in rows}
        )
        tables.append(pa.Table.from_pandas(rows[list(schema.names)], schema=schema, preserve_index=False))
    table = pa.concat_tables(tables) if tables else schema.empty_table()
    buffer = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata(None), buffer, compression="zstd", compression_level=19,
        row_group_size=max(1, len(table)),
    )  # fmt: skip
    return buffer.getvalue()


def _arrays(found: Sequence[RunRecord]) -> dict[str, NDArray[Any]]:
    """Adversarial pixels by record and example, and the clean images that belong to them, by their hash."""
    arrays: dict[str, NDArray[Any]] = {}
    for record in found:
        for picture in record.pictures():
            arrays[f"{record.id}.{picture.index}"] = _integers(picture.adversarial)
            arrays[f"clean.{sha256_of_image(picture.clean)}"] = picture.clean
    return arrays


def read(folder: Path) -> Archive:
    """Read an archive and check its hashes, and the id, the seal, the budget and the pictures of every record.

    Raises LpmbenchError for an archive that is incomplete, altered, or written by a newer version.
    """
    try:
        return _read(folder)
    except LpmbenchError:
        raise
    except Exception as error:  # whatever is malformed, the error names the file
        raise LpmbenchError(f"{folder / INDEX} is no valid archive: {type(error).__name__}: {error}.") from None


def read_audits(folder: Path) -> list[Audit]:
    """The audits of an archive. Raises LpmbenchError."""
    _, lines = _lines(folder)
    return [audits.from_content(line["audit"], folder / INDEX) for line in lines if "audit" in line]


def _lines(folder: Path) -> tuple[Content, list[Content]]:
    """The header of an archive, checked, and its other lines."""
    header, *lines = [runs.parsed(line, folder / INDEX) for line in (folder / INDEX).read_bytes().splitlines()]
    return runs.checked(header, folder / INDEX, (SCHEMA_VERSION,), SCHEMA_VERSION), lines


def _read(folder: Path) -> Archive:
    import pandas as pd

    header, lines = _lines(folder)
    for name, digest in header["artefacts"].items():
        if name not in (OUTCOMES, PICTURES) or not (folder / name).is_file():
            raise LpmbenchError(f"{folder}: '{name}' is missing.")
        if sha256_of(folder / name) != digest:
            raise LpmbenchError(f"{folder / name}: sha256 differs from the one in {INDEX}; the file was altered.")
    outcomes = {str(run): rows for run, rows in pd.read_parquet(folder / OUTCOMES).groupby("run", sort=False)}
    pictures = _read_pictures(folder / PICTURES) if PICTURES in header["artefacts"] else {}
    found = Archive(audits=read_audits(folder))
    for line in lines:
        if "audit" in line:
            continue
        content = runs.checked(_with_shared(line["record"], header["shared"]), folder / INDEX)
        mine = outcomes.get(content["id"], pd.DataFrame(columns=["run", *runs.TYPES]))
        columns, images = _own_columns(mine, content), _own_pictures(mine, content["id"], pictures)
        found.records.append(
            runs.from_content(content, columns, images, line["timing"], folder, picture_step=1 / LEVELS)
        )
    return found


def _own_columns(rows: pd.DataFrame, content: Content) -> pd.DataFrame:
    """The outcomes of one record: without the columns that its run did not have."""
    absent = [name for name in runs.OWN_COLUMNS if name != content["configuration"]["threat"]["norm"]]
    return rows.drop(columns=["run", *absent], errors="ignore").reset_index(drop=True)


def _read_pictures(path: Path) -> dict[str, NDArray[Any]]:
    from safetensors.numpy import load

    return load(path.read_bytes())


def _own_pictures(rows: pd.DataFrame, record: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The stored images of one record."""
    found = []
    for index, digest in zip(rows["index"], rows["input_sha256"], strict=True):
        if (integers := arrays.get(f"{record}.{index}")) is not None:
            found.append(Picture(int(index), arrays[f"clean.{digest}"], _pixels(integers)))
    return runs.group_pictures(found)
