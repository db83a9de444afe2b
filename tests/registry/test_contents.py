"""What decides an answer decides the hash, wherever Python keeps it; and nothing else does."""

from __future__ import annotations

import copy
import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustbench_lpm.registry import cards
from robustbench_lpm.registry.contents import sha256_of_object
from robustbench_lpm.registry.tasks import resolve_attack

SCALE = 1.0


class Holder(nn.Module):
    """A module that keeps something in an attribute."""

    def __init__(self, thing: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        nn.init.ones_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.thing = thing

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images)


def filled(value: float) -> nn.Linear:
    layer = nn.Linear(2, 2)
    nn.init.constant_(layer.weight, value)
    nn.init.constant_(layer.bias, value)
    return layer


def of_a_class_that_closes_over(value: Any) -> nn.Module:
    class Inner(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images * value

    return Inner()


def of_a_class_with(value: Any) -> nn.Module:
    return type("Inner", (nn.Module,), {"__module__": __name__, "mean": value})()


def hooked(value: float) -> nn.Module:
    module = Holder(None)
    module.register_forward_hook(lambda module, inputs, output: output * value)
    return module


def buffered(value: float, persistent: bool) -> nn.Module:
    module = Holder(None)
    module.register_buffer("table", torch.tensor(value), persistent=persistent)
    return module


def left_on(training: bool) -> nn.Module:
    module = nn.Sequential(nn.Dropout(0.5)).eval()
    module[0].train(training)
    return module


class Slots:
    __slots__ = ("value",)

    def __init__(self, value: float) -> None:
        self.value = value


# Each makes an object of 1 or of 2: equal numbers must give equal hashes, others must not.
KEEPERS: dict[str, Callable[[float], Any]] = {
    "a parameter": filled,
    "a number": Holder,
    "a text": lambda value: Holder(str(value)),
    "a plain tensor": lambda value: Holder(torch.full((2,), value)),
    "an array": lambda value: Holder(np.full(2, value)),
    "a tensor in a list": lambda value: Holder([0, [torch.tensor(value)]]),
    "a tensor in a dictionary": lambda value: Holder({"a": {"b": torch.tensor(value)}}),
    "a module in a list": lambda value: Holder([filled(value)]),
    "a module in a dictionary": lambda value: Holder({"a": filled(value)}),
    "an object": lambda value: Holder(Slots(value)),
    "a distribution": lambda value: Holder(torch.distributions.Normal(0.0, value)),
    "a function": lambda value: Holder(lambda images: images * value),
    "a partial function": lambda value: Holder(functools.partial(torch.mul, other=torch.tensor(value))),
    "a bound method": lambda value: Holder(Holder(value).forward),
    "a class that closes over it": of_a_class_that_closes_over,
    "a class that closes over a module": lambda value: of_a_class_that_closes_over(filled(value)),
    "a class attribute": lambda value: of_a_class_with(torch.tensor(value)),
    "a hook": hooked,
    "a buffer": lambda value: buffered(value, persistent=True),
    "a buffer outside the state dict": lambda value: buffered(value, persistent=False),
    "the mode of a part": lambda value: left_on(value > 1),
    "a function of its own": lambda value: lambda images: images * value,
    "defaults of a function": lambda value: lambda images, by=value: images * by,
    "weights of a quantised layer": lambda value: torch.ao.quantization.quantize_dynamic(nn.Sequential(filled(value))),
    "weights of a scripted module": lambda value: torch.jit.script(filled(value)),
    "a number type": lambda value: Holder(torch.float16 if value > 1 else torch.float32),
    "a sparse tensor": lambda value: Holder(torch.full((2, 2), value).to_sparse()),
}


@pytest.mark.parametrize("name", KEEPERS)
def test_what_decides_an_answer_decides_the_hash(name: str) -> None:
    keep = KEEPERS[name]
    one, again, other = (sha256_of_object(keep(value)) for value in (1.0, 1.0, 2.0))
    assert one == again
    assert one != other


def test_a_global_that_a_function_names_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def scaled(images: Tensor) -> Tensor:
        return images * SCALE

    before = sha256_of_object(scaled)
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    assert sha256_of_object(scaled) != before


def test_a_copy_has_the_hash_of_its_original_and_use_changes_nothing() -> None:
    module = Holder([filled(1.0), {"a": torch.ones(2)}])
    before = sha256_of_object(module)
    module(torch.ones(1, 2)).sum().backward()
    assert sha256_of_object(module) == before
    assert sha256_of_object(copy.deepcopy(module)) == before


class Shy(dict[str, int]):
    """Does not let itself be looked at."""

    def __iter__(self) -> Any:
        raise RuntimeError("closed")


def test_what_cannot_be_looked_at_has_a_hash() -> None:
    assert sha256_of_object(Holder(Shy())) == sha256_of_object(Holder(Shy()))


def test_what_holds_itself_has_a_hash() -> None:
    thing: list[Any] = [1]
    thing.append(thing)
    assert sha256_of_object(Holder(thing)) == sha256_of_object(Holder(thing))


MODULE = """
import helpers
def attack(oracle, images, labels, *, norm, eps):
    return helpers.moved(images, eps)
"""
HELPERS = """
BY = {by}
def moved(images, eps):  # {comment}
    return images + BY * eps
"""
HASH = """
import sys
sys.dont_write_bytecode = True
from robustbench_lpm.registry.contents import sha256_of_object
for folder in sys.argv[1:]:
    sys.path.insert(0, folder)
    import attack
    print(sha256_of_object(attack.attack))
    del sys.modules["attack"], sys.modules["helpers"]
"""


def test_code_is_what_it_does_not_how_it_is_commented_and_its_helpers_count(tmp_path: Path) -> None:
    """In processes of their own: another seed of Python's hashes orders sets otherwise."""
    written = {"first": (1, "as it was"), "commented": (1, "the same\n\n    # and lower"), "other": (2, "as it was")}
    for folder, (by, comment) in written.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "attack.py").write_text(MODULE)
        (tmp_path / folder / "helpers.py").write_text(HELPERS.format(by=by, comment=comment))

    def hashes(seed: str, *folders: str) -> list[str]:
        environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", HASH, *(str(tmp_path / folder) for folder in folders)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()

    (first,) = hashes("1", "first")
    commented, other = hashes("2", "commented", "other")
    assert len(first) == 64
    assert commented == first != other


def test_registered_attacks_have_hashes_that_last() -> None:
    for name in cards.names("attack"):
        function = resolve_attack(name).function
        assert sha256_of_object(function) == sha256_of_object(function), name
