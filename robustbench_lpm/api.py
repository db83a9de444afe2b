"""The Python interface: `evaluate` a model, `audit` a result, `prepare` a plan."""

from __future__ import annotations

import inspect
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, SupportsFloat, TypeVar, overload

import torch
from rich.console import Console
from torch import Tensor, nn

from robustbench_lpm.budgets import format_eps, parse_eps_list, several
from robustbench_lpm.errors import LpmbenchError, in_one_line
from robustbench_lpm.execution.keeping import NotKept
from robustbench_lpm.execution.progress import RunBar
from robustbench_lpm.execution.runner import SILENT, Watcher, run, told_failures
from robustbench_lpm.options import SETTINGS, TYPES, Options, asked
from robustbench_lpm.protocol.audit import BLACK_BOX, auditable, looks
from robustbench_lpm.protocol.plan import Plan, make_plan
from robustbench_lpm.randomness import isolated_globals
from robustbench_lpm.records import audits
from robustbench_lpm.records.audits import Audit
from robustbench_lpm.records.runs import RunRecord
from robustbench_lpm.registry.own_data import OwnData, data_of_ones_own
from robustbench_lpm.registry.tasks import Attack, Data, resolve_attack, resolve_attacks, resolve_data, resolve_model
from robustbench_lpm.registry.zoo import LoadedModel

log = logging.getLogger("robustbench_lpm")

Model = str | Path | Callable[..., Any] | LoadedModel
OneAttack = str | Callable[..., Tensor] | Attack
OneEps = float | str | SupportsFloat
Several = list[Any] | tuple[Any, ...]
Source = str | Path | OwnData | Data

P = ParamSpec("P")
R = TypeVar("R")


def with_settings(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose `**options` are settings, with a signature that names them for `help` and notebooks."""
    signature = inspect.signature(function)
    *own, _ = signature.parameters.values()
    known = {parameter.name for parameter in own}
    settings = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=setting.default, annotation=TYPES[name])
        for name, setting in SETTINGS.items()
        if name not in known
    ]
    function.__signature__ = signature.replace(parameters=[*own, *settings])  # type: ignore[attr-defined]
    return function


@overload
def evaluate(model: Model, attack: OneAttack, dataset: Source = ..., *, eps: OneEps, **options: Any) -> RunRecord: ...
@overload
def evaluate(
    model: Model, attack: Several, dataset: Source = ..., *, eps: OneEps | Several, **options: Any
) -> list[RunRecord]: ...
@overload
def evaluate(
    model: Model, attack: OneAttack, dataset: Source = ..., *, eps: Several, **options: Any
) -> list[RunRecord]: ...
@with_settings
def evaluate(
    model: Model,
    attack: OneAttack | Several,
    dataset: Source = "digits",
    *,
    eps: OneEps | Several,
    data: Path | str | None = None,
    parameters: dict[str, Any] | None = None,
    surrogates: Sequence[str | nn.Module | LoadedModel] | None = None,
    out: Path | str | None = None,
    trust: bool = False,
    name: str | None = None,
    progress: bool = True,
    **options: Any,
) -> RunRecord | list[RunRecord]:
    """How accurate a model stays under an attack.

    Args:
        model: a registered name, a path to a card, an address such as "timm:resnet18", or any module or function from
            images (B, C, H, W) in [0, 1] to logits (B, K). A copy of it is evaluated, in eval mode. A stochastic module
            offers `sample_noise`; one that draws from the global generators is found out and seeded.
        attack: a registered name, a path to a card, or a function with the signature of `attacks.pgd.pgd`. The name
            "worst-case" takes, for each image, the strongest of the attacks on its card. A list runs them all.
        dataset: a registered name, a path to a card, or images and labels of your own: a pair (images, labels) of
            tensors, arrays or lists, a torch Dataset of such examples, or a DataLoader. Images are floats
            (N, C, H, W) in [0, 1], or uint8; labels (N,) are whole numbers from 0.
        eps: the budget in pixel values, a number or text like "8/255"; a list tries each.
        data: the directory of a registered dataset that needs one.
        parameters: laid over those of the attack's card, e.g. {"steps": 100}; of several attacks, each takes those
            that it knows.
        surrogates: for the attack "transfer", the models that it is made on instead of those on its card.
        out: the directory to write the record to; None writes nothing.
        trust: run code that a card names outside this package.
        name: what a model handed over is called in the record; by default its class.
        progress: show a bar on stderr while a run is computed, if that is a terminal, or in a notebook.
        options: the settings of `robustbench_lpm.options.Options`, which explains each: norm, size, limit, mc, draws,
            gradient_mode, noise, target, patch, seed, device, precision, memory, save_adversarials, labels_fit, ...

    Returns:
        The record; `record.clean_accuracy` and `record.robust_accuracy` are rates with 95 % intervals. Where `attack`
        or `eps` is a list, the list of records: every eps of the first attack, then those of the next.

    Raises:
        LpmbenchError: for anything that cannot be run as asked. Where only some examples failed it is a FailedBlocks,
            whose `record` holds the others. Of several runs those that fail do not stop the others: a FailedRuns comes
            at the end, whose `records` are what was made.
    """
    attacks: list[OneAttack] = list(attack) if several(attack) else [attack]  # type: ignore[list-item]
    asked_for = [asked({"eps": budget} | options) for budget in parse_eps_list(eps, str(options.get("norm", "linf")))]
    folder = Path(out) if out is not None else None
    with untouched():
        source = resolve_source(dataset, asked_for[0], data=data, trust=trust)
        chosen = resolve_attacks(attacks, parameters=parameters, surrogates=surrogates, trust=trust)
        loaded = resolve_named(model, name, trust=trust, device=asked_for[0].device)
        finish, watcher = _Finished(), _watcher(progress)
        if not (several(attack) or several(eps)):
            return finish(run(make_plan(loaded, chosen[0], source, asked_for[0]), folder, watcher, again=True))
        runs = [(each, one) for each in chosen for one in asked_for]

        def make(attack: Attack, options: Options) -> RunRecord:
            return finish(run(make_plan(loaded, attack, source, options), folder, watcher, again=True))

        return _run_all(runs, make)


def _run_all(runs: Sequence[tuple[Attack, Options]], make: Callable[[Attack, Options], RunRecord]) -> list[RunRecord]:
    """The records of several runs in their order; those that fail do not stop the others."""
    records: list[RunRecord] = []
    failed: list[str] = []
    for attack, options in runs:
        try:
            records.append(make(attack, options))
        except NotKept:
            raise
        except FailedBlocks as error:
            records.append(error.record)
            failed.append(in_one_line(error))
        except Exception as error:  # whatever it is, the other runs do not share it
            log.debug("%s at eps %s failed", attack.name, options.eps, exc_info=error)
            failed.append(f"{attack.name} at eps {format_eps(options.eps)}: {in_one_line(error)}")
    if failed:
        raise FailedRuns(records, failed, len(runs))
    return records


def _watcher(progress: bool) -> Watcher:
    """What shows a bar on stderr, where a person sees it."""
    console = Console(stderr=True)
    return RunBar(console) if progress and (console.is_terminal or console.is_jupyter) else SILENT


class _Finished:
    """Takes the records of one call. Their notes are logged as warnings (by default on stderr), each once."""

    def __init__(self) -> None:
        self._told: set[tuple[str, str]] = set()

    def __call__(self, record: RunRecord) -> RunRecord:
        """The record. Raises FailedBlocks where some examples failed."""
        if record.failures:
            raise FailedBlocks(record)
        for note in record.notes:
            if (record.model, note) not in self._told:
                log.warning("%s under %s: %s", record.model, record.attack, note)
            self._told.add((record.model, note))
        return record


@with_settings
def audit(
    model: Model,
    attack: OneAttack,
    dataset: Source = "digits",
    *,
    eps: OneEps,
    black_box: Sequence[str | Attack] = BLACK_BOX,
    until_decided: bool = False,
    out: Path | str | None = None,
    progress: bool = True,
    **options: Any,
) -> Audit:
    """Judge one result: whether it says how robust a model is, or only that the attack was blind.

    Args:
        model, attack, dataset, eps, options: as for `evaluate`. With fewer than 96 images no difference can be bounded
            by two points, so that no check can pass.
        black_box: attacks without gradients, with which a white-box result is compared.
        until_decided: judge stronger runs, more images or graded draws, until every check passes or fails, or nothing
            is left to spend.
        out: the directory of the records and the audit; None writes nothing.
        progress: as for `evaluate`.

    Returns:
        The audit (with until_decided the last); `audit.verdict` is "pass", "fail" or "undecided", `audit.checks` hold
        the evidence.

    Raises:
        LpmbenchError: for anything that cannot be run as asked.
    """
    folder = Path(out) if out is not None else None
    with untouched():
        if until_decided and not isinstance(dataset, str | Path | Data):
            dataset = data_of_ones_own(dataset)  # more of it than the limit may be needed
        judged = auditable(prepare(model, attack, dataset, eps=eps, **options))
        others = [resolve_attack(other) for other in black_box]
        finish, watcher = _Finished(), _watcher(progress)
        every = looks(judged, others, lambda plan: finish(run(plan, folder, watcher)), until_decided=until_decided)
        found = deque(every, maxlen=1)[0][1]
    if folder is not None:
        audits.write(found, folder)
    return found


def prepare(
    model: Model,
    attack: OneAttack,
    dataset: Source = "digits",
    *,
    data: Path | str | None = None,
    parameters: dict[str, Any] | None = None,
    surrogates: Sequence[str | nn.Module | LoadedModel] | None = None,
    trust: bool = False,
    name: str | None = None,
    **options: Any,
) -> Plan:
    """The plan of what `evaluate` is asked for."""
    wanted = asked(options)
    source = resolve_source(dataset, wanted, data=data, trust=trust)
    (chosen,) = resolve_attacks([attack], parameters=parameters, surrogates=surrogates, trust=trust)
    return make_plan(resolve_named(model, name, trust=trust, device=wanted.device), chosen, source, wanted)


def resolve_source(dataset: Source, options: Options, *, data: Path | str | None, trust: bool) -> Data:
    """Labelled images by name, by the path of a card, or as users hold them."""
    if isinstance(dataset, str | Path):
        return resolve_data(str(dataset), size=options.size, data=Path(data) if data else None, trust=trust)
    return dataset if isinstance(dataset, Data) else data_of_ones_own(dataset, options.limit)


def resolve_named(model: Model, name: str | None, *, trust: bool, device: str) -> LoadedModel:
    """A model, one handed over under a name of the user's choice. Raises LpmbenchError for another that is named."""
    if isinstance(model, str | Path | LoadedModel) and name is not None:
        own = model.name if isinstance(model, LoadedModel) else model
        raise LpmbenchError(f"name='{name}' is for a model handed over from Python; '{own}' has a name already.")
    if name is not None and not (isinstance(name, str) and name.strip()):
        raise LpmbenchError(f"name={name!r} must be a few words that tell the model from others.")
    return resolve_model(model, trust=trust, device=device, name=name)


@contextmanager
def untouched() -> Iterator[None]:
    """Gradients are on whatever the caller has switched off; the caller's global generators are restored afterwards."""
    with torch.inference_mode(False), torch.enable_grad(), isolated_globals(0):
        yield


class FailedRuns(LpmbenchError):
    """Some of several runs failed; `records` are what was made, `errors` the reasons, each in a line."""

    def __init__(self, records: list[RunRecord], errors: list[str], runs: int) -> None:
        self.records, self.errors = records, errors
        super().__init__(f"{len(errors)} of {runs} runs failed: {'; '.join(errors)}")


class FailedBlocks(LpmbenchError):
    """Some examples could not be computed; `record` holds all others."""

    def __init__(self, record: RunRecord) -> None:
        self.record = record
        super().__init__(f"{told_failures(record)}. The same command tries them again.")
