"""Whatever is written into a card, an eps, a size, a record or a command line gives a result or one clear line.

A few hundred examples each; LPMBENCH_FUZZ=10000 makes that so many (of command lines a tenth, for they run).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robustbench_lpm.budgets import parse_eps, parse_eps_list
from robustbench_lpm.cli import COMMANDS, run
from robustbench_lpm.datasets.preprocessing import parse_size
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.execution.keeping import packed, unpacked
from robustbench_lpm.hashing import SEAL, sealed
from robustbench_lpm.records import runs as records
from robustbench_lpm.registry import cards, zoo

WANTED = os.environ.get("LPMBENCH_FUZZ")
EXAMPLES = int(WANTED or 200)
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=WANTED is None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
fuzz_slowly = settings(fuzz, max_examples=max(40, EXAMPLES // 10))


def one_line(call: Callable[[], Any]) -> Any:
    """What a call gives, or None where it raises an error that people can read; of any other error a test fails."""
    try:
        return call()
    except LpmbenchError as error:
        complaint = str(error)
    assert complaint.strip()
    return None


numerals = st.text(alphabet="0123456789./eE+- _infax²½٣,", max_size=12)
texts = st.one_of(st.text(max_size=20), numerals)


@fuzz
@given(texts)
def test_eps(text: str) -> None:
    found = one_line(lambda: parse_eps(text))
    assert found is None or (math.isfinite(found) and found >= 0)


@fuzz
@given(texts)
def test_lists_of_eps(text: str) -> None:
    found = one_line(lambda: parse_eps_list(text))
    assert found is None or (found and all(math.isfinite(eps) and eps >= 0 for eps in found))


@fuzz
@given(st.one_of(texts, st.integers().map(str)))
def test_sizes(text: str) -> None:
    found = one_line(lambda: parse_size(text))
    assert found is None or found == "original" or 1 <= int(found) <= 8192


scalars = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["digits", "cnn", "pgd", "linf", "0.1", "robustbench_lpm.attacks.pgd:pgd", "os:system", "../x"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=6,
)


def toml(value: Any) -> str:
    """A value in TOML, on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value)


def card_texts(kind: cards.Kind) -> st.SearchStrategy[str]:
    """Cards of a kind: of the right keys with values of all sorts, committed ones with changes, and mere text."""
    keys = st.sampled_from([*CARD_CLASSES[kind].model_fields, "nmae", ""])
    made = st.dictionaries(keys, values, max_size=8).map(
        lambda table: "\n".join(f"{json.dumps(key)} = {toml(value)}" for key, value in table.items())
    )
    registered = [(cards.root() / cards.FOLDERS[kind] / f"{name}.toml").read_text() for name in cards.names(kind)]
    return st.one_of(made, st.sampled_from(registered).flatmap(changed_text), st.text(max_size=60))


def changed_text(text: str) -> st.SearchStrategy[str]:
    """A text with one stretch replaced: by nothing, by a value, or by anything at all."""

    def change(given: tuple[int, int, str]) -> str:
        start, length, new = given
        start %= max(1, len(text))
        return text[:start] + new + text[start + length :]

    new = st.one_of(st.just(""), values.map(toml), st.text(max_size=10))
    return st.tuples(st.integers(0, 10_000), st.integers(0, 30), new).map(change)


CARD_CLASSES: dict[cards.Kind, type[cards.Card]] = {
    "model": cards.ModelCard,
    "attack": cards.AttackCard,
    "dataset": cards.DatasetCard,
    "recipe": cards.RecipeCard,
    "suite": cards.SuiteCard,
}


@pytest.mark.parametrize("kind", CARD_CLASSES)
def test_cards(kind: cards.Kind, tmp_path: Path) -> None:
    path = tmp_path / "card.toml"

    @fuzz
    @given(card_texts(kind))
    def try_one(text: str) -> None:
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        card = one_line(lambda: cards.read(path, CARD_CLASSES[kind]))
        assert card is None or card.name
        if isinstance(card, cards.AttackCard) and card.entry:
            one_line(lambda: zoo.load_attack(str(path)))
        if isinstance(card, cards.ModelCard):
            one_line(lambda: cards.resolve_entry(card))

    try_one()


def changed_bytes(content: bytes) -> st.SearchStrategy[bytes]:
    """Bytes that differ: one flipped, a stretch replaced, cut short, or something else entirely."""
    flipped = st.tuples(st.integers(0, len(content) - 1), st.integers(1, 255)).map(
        lambda pair: content[: pair[0]] + bytes([content[pair[0]] ^ pair[1]]) + content[pair[0] + 1 :]
    )
    replaced = st.tuples(st.integers(0, len(content)), st.integers(0, 50), st.binary(max_size=20)).map(
        lambda given: content[: given[0]] + given[2] + content[given[0] + given[1] :]
    )
    cut = st.integers(0, len(content) - 1).map(lambda end: content[:end])
    return st.one_of(flipped, replaced, cut, st.binary(max_size=80)).filter(lambda new: new != content)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A record behind a decision, copied; it stores images."""
    found = cards.root() / "docs" / "decisions" / "records"
    stored = [path for path in found.rglob("*/record.json") if (path.parent / records.ADVERSARIALS).is_file()]
    smallest = min(stored, key=lambda path: sum(f.stat().st_size for f in path.parent.iterdir()))
    folder = tmp_path_factory.mktemp("records") / smallest.parent.name
    shutil.copytree(smallest.parent, folder)
    return folder


@pytest.mark.parametrize("name", [records.OUTCOMES, records.ADVERSARIALS])
def test_an_altered_artefact_is_always_noticed(name: str, record: Path) -> None:
    content = (record / name).read_bytes()

    @fuzz
    @given(changed_bytes(content))
    def try_one(new: bytes) -> None:
        (record / name).write_bytes(new)
        with pytest.raises(LpmbenchError, match="altered"):
            records.read(record)

    try:
        try_one()
    finally:
        (record / name).write_bytes(content)


@fuzz
@given(st.data())
def test_an_altered_record_is_read_only_where_its_claims_are_the_same(record: Path, data: st.DataObject) -> None:
    content = (record / records.RECORD).read_bytes()
    whole = json.loads(content)
    try:
        (record / records.RECORD).write_bytes(data.draw(changed_bytes(content)))
        found = one_line(lambda: records.read(record))
        if found is not None:  # the id names the configuration, and the hashes in it the artefacts
            assert found.configuration == whole["configuration"]
            assert found.id == whole["id"]
            assert len(found.outcomes) == len(whole["configuration"]["dataset"]["indices"])
    finally:
        (record / records.RECORD).write_bytes(content)


@fuzz
@given(st.data())
def test_any_value_in_a_record(record: Path, data: st.DataObject) -> None:
    content = (record / records.RECORD).read_bytes()
    table = json.loads(content)
    inner: Any = table
    while isinstance(inner, dict) and inner:
        key = data.draw(st.sampled_from(sorted(inner)))
        if not isinstance(inner[key], dict) or data.draw(st.booleans()):
            inner[key] = data.draw(values)
            break
        inner = inner[key]
    try:
        with contextlib.suppress(ValueError):  # NaN cannot be sealed
            table = sealed(table)  # what lies behind the seal must hold alone
        (record / records.RECORD).write_text(json.dumps(table))
        one_line(lambda: records.read(record))
        if table != json.loads(content):
            seal = json.loads(content)[SEAL]
            (record / records.RECORD).write_text(json.dumps(table | {SEAL: seal}))
            with pytest.raises(LpmbenchError):
                records.read(record)
    finally:
        (record / records.RECORD).write_bytes(content)


KEPT = {"index": torch.arange(3), "iterate": torch.rand(2, 3).T, "seconds": torch.tensor(1.0)}


@fuzz
@given(changed_bytes(packed(KEPT, {"owner": "run, block 0", "failures": [7]})))
def test_altered_files_of_unfinished_work_are_always_noticed(content: bytes) -> None:
    assert unpacked(content, owner="run, block 0") is None


def test_unfinished_work_reads_back_in_its_order_of_memory() -> None:
    content = packed(KEPT, {"owner": "run, block 0", "failures": [7]})
    assert unpacked(content, owner="run, block 1") is None
    found, about = unpacked(content, owner="run, block 0") or ({}, {})
    assert about["failures"] == [7]
    assert all(torch.equal(found[name], KEPT[name]) and found[name].stride() == KEPT[name].stride() for name in KEPT)


def test_an_altered_checkpoint_is_always_noticed(tmp_path: Path) -> None:
    card = cards.model("cnn-downsampled")
    assert card.weights is not None
    assert card.weights.file is not None
    path = tmp_path / "cnn-downsampled.toml"
    shutil.copy(card.path, path)
    content = (card.path.parent / card.weights.file).read_bytes()

    @fuzz
    @given(changed_bytes(content))
    def try_one(new: bytes) -> None:
        (tmp_path / str(card.weights and card.weights.file)).write_bytes(new)
        with pytest.raises(LpmbenchError, match="altered"):
            zoo.load_model(str(path))

    try_one()


# Words of command lines that, where they are right, run for a moment.
OPTIONS: dict[str, list[str]] = {
    "--attack": ["noise", "fgsm", "pdg", "worst", ""],
    "--dataset": ["digits", "panda", "mnist", "digit"],
    "--eps": ["0.1", "2/255", "1/0", "-1", "nan", "1e999", ",", "0,0", "²"],
    "--norm": ["linf", "l2", "l1", "l0"],
    "--size": ["original", "8", "0", "-5", "99999", "٣"],
    "--limit": ["1", "0", "-1", "x", "1.5"],
    "--seed": ["0", "-1", "99999999999999999999", "x"],
    "--mc": ["1", "0", "x"],
    "--draws": ["1", "0", "1e3"],
    "--target": ["3", "random", "10", "-1", "cat", ""],
    "--noise": ["frozen", "policy=frozen", "=", "a=b=c", ""],
    "--gradient-mode": ["detached", "strongest", "x"],
    "--set": ["steps=2", "steps", "=", "x=1", "pgd.steps=2", "steps=[", "loss='ce'"],
    "--surrogate": ["cnn-at", "x"],
    "--precision": ["float32", "float16"],
    "--memory": ["1", "0", "-1", "nan", "inf", "1e-9"],
    "--device": ["cpu", "cuda:77", "x", ""],
    "--checkpoint": ["nowhere", "."],
    "--data": [".", "nowhere"],
    "--image": ["nowhere", "."],
    "--label": ["0", "1000", "x"],
    "--what": ["x"],
    "--force": [],
    "--save-adversarials": [],
}


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """An attack on one image with a few options, right or wrong; or any command with any words, none of which is
    right."""
    if draw(st.booleans()):
        command = draw(st.sampled_from([*COMMANDS, "atack"]))
        free = draw(st.lists(st.one_of(st.text(max_size=8), st.sampled_from(list(OPTIONS))), min_size=1, max_size=4))
        return [command, *free, "--no-such-option"]
    words = ["attack", "--model", "cnn", "--attack", "noise", "--limit", "1", "--threads", "1"]
    for option in draw(st.lists(st.sampled_from(list(OPTIONS)), max_size=4, unique=True)):
        words.append(option)
        if OPTIONS[option]:
            words.append(draw(st.one_of(st.sampled_from(OPTIONS[option]), st.text(max_size=6))))
    return words


def test_command_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    before = torch.get_num_threads()

    @fuzz_slowly
    @given(command_lines())
    def try_one(words: list[str]) -> None:
        status = run(words)
        said = capsys.readouterr().err.strip()
        assert status in (0, 1, 2)
        if status:
            assert len(said.splitlines()) == 1, said
            assert said.startswith("lpmbench: ")

    try:
        try_one()
    finally:
        torch.set_num_threads(before)
