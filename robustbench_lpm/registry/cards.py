"""Find, read and validate cards: the TOML files that say what can be run. Knows nothing about torch.

A card names code by address ("module:function"), gives it parameters and, for a model, says where its weights are
stored and their sha256. Registered cards are in models/, attacks/, datasets/, recipes/ and suites/; a user's own card
is any .toml file, named by its path.
"""

from __future__ import annotations

import importlib
import sys
import tomllib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from robustbench_lpm.attacks import libraries
from robustbench_lpm.budgets import Norm, parse_eps, parse_eps_list
from robustbench_lpm.errors import LpmbenchError, explained, unknown
from robustbench_lpm.options import NAMES, SETTINGS, TYPES, Options
from robustbench_lpm.registry import hubs

Kind = Literal["model", "attack", "dataset", "recipe", "suite"]
FOLDERS: dict[Kind, str] = {kind: f"{kind}s" for kind in get_args(Kind)}
OWN_PACKAGE = "robustbench_lpm"
# Where entries are. No card may call other functions of the package: some read cards or trust code.
ENTRY_PACKAGES = tuple(
    f"{OWN_PACKAGE}.{name}." for name in ("architectures", "attacks", "datasets", "training.objectives")
)
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, lt=1)]
Parameters = dict[str, Any]


def _budget(given: object, norm: str | None = None) -> float:
    try:
        return parse_eps(given, norm)
    except LpmbenchError as error:
        raise ValueError(str(error).rstrip(".")) from None


Budget = Annotated[float, BeforeValidator(_budget)]  # a number, or text like "2/255"


class _Table(BaseModel):
    """A TOML table that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)  # "10" is not a number, and 1 is not true

    @model_validator(mode="before")
    @classmethod
    def _keys_are_known(cls, content: Any) -> Any:
        for key in content if isinstance(content, dict) else ():
            if key not in cls.model_fields:
                raise ValueError(str(unknown("key", key, cls.model_fields)))
        return content


class Card(_Table):
    """The fields that all cards have."""

    name: Annotated[str, Field(pattern=r"^\S(.*\S)?$", max_length=150)]
    summary: str
    source: str = ""  # the paper or package that it comes from
    _path: Path = PrivateAttr(default=Path())

    @property
    def path(self) -> Path:
        """The file that this card was read from."""
        return self._path


class _InputSpec(_Table):
    """The input of the network behind a model card; resize and normalisation happen inside the model."""

    channels: Literal[1, 3]
    mean: list[float] = []
    std: list[float] = []
    working_size: int | None = Field(default=None, ge=1)  # None: reads images of any size as they are

    @model_validator(mode="after")
    def _normalisation_is_whole(self) -> _InputSpec:
        if len(self.mean) != len(self.std) or len(self.mean) not in (0, self.channels):
            raise ValueError(f"mean and std need one number for each of the {self.channels} channel(s)")
        if any(value <= 0 for value in self.std):
            raise ValueError("std must be positive")
        return self


class _Weights(_Table):
    """The source of weights, exactly one of five. Their sha256 is checked before anything is read."""

    file: str | None = None  # beside the card, or inside `package`
    package: str | None = None  # an installed package that carries `file`
    url: Annotated[str, Field(pattern=r"^https?://")] | None = None
    torchvision: str | None = None  # e.g. "ResNet50_Weights.IMAGENET1K_V2", hash checked by torchvision
    hub: bool = False  # from the address that is the card's entry, see `hubs`
    sha256: Sha256 | None = None

    @model_validator(mode="after")
    def _one_source(self) -> _Weights:
        sources = [self.file, self.url, self.torchvision, self.hub or None]
        if sum(source is not None for source in sources) != 1 or (self.package and not self.file):
            raise ValueError("give exactly one of file, package and file, url, torchvision, hub")
        if self.sha256 is None and self.torchvision is None and not self.hub:
            raise ValueError("sha256 is missing; `sha256sum FILE` prints it")
        return self


class _Trained(_Table):
    """How the weights beside a card were trained, and the accuracy that they reached."""

    recipe: str
    seed: int
    epochs: int
    dataset: str
    command: str
    accuracy: dict[str, float]  # e.g. test_m1, test_m10, validation; shares in [0, 1]
    seconds: float | None = None
    versions: dict[str, str] = {}
    notes: list[str] = []  # what the dataset said about its images
    # Some rows of the log, by column: "epoch", "train_loss", "validation_accuracy", ...; see training.curves.thinned.
    curve: dict[str, list[float]] = {}

    @model_validator(mode="after")
    def _curve_is_a_table(self) -> _Trained:
        if self.curve and ("epoch" not in self.curve or len(set(map(len, self.curve.values()))) != 1):
            raise ValueError("the curve must hold epochs, and columns of one length")
        return self


class ModelCard(Card):
    """A classifier: its code, its parameters and its weights."""

    title: str = ""  # what a sentence calls it, beside its name
    entry: str
    labels: str  # the label set that it predicts: "digits", "imagenet", ...
    classes: int = Field(ge=2)
    parameters: Parameters = {}
    input: _InputSpec
    smoothing: float = Field(default=0.0, ge=0)  # standard deviation of Gaussian noise on the image, in pixel values
    weights: _Weights | None = None
    recipe: str | None = None  # what `lpmbench train NAME` runs
    hint: str = ""  # how to get weights, when there are none
    control_of: str | None = None  # the model that this one is a control of
    trained: _Trained | None = None

    @model_validator(mode="after")
    def _hub_is_named(self) -> ModelCard:
        if self.weights and self.weights.hub and not hubs.of_hub(self.entry):
            raise ValueError(f"weights.hub needs an entry at a hub: {', '.join(hubs.HUBS)}")
        return self

    def identity(self) -> dict[str, Any]:
        """The fields that decide the outputs of this model, without the card's descriptions."""
        weights = self.weights
        found = self.model_dump(include={"name", "entry", "labels", "classes", "parameters", "input"}) | {
            "weights": (self.entry if weights.hub else weights.sha256 or weights.torchvision) if weights else None
        }
        return found | ({"smoothing": self.smoothing} if self.smoothing else {})


class AttackCard(Card):
    """A named configuration of an attack: its code, or the members of a worst case."""

    entry: str = ""
    members: list[str] = []  # for each image the strongest of these attacks, chosen on noise of its own
    knowledge: Literal["white-box", "black-box", "none"]
    norms: list[Norm]
    targeted: bool = False  # whether it can be targeted at a given class
    applies_to: Literal["any", "glimpsing"] = "any"  # the models that it can attack
    # For a transfer attack: the names of the other models, by dataset or the same for all.
    surrogates: dict[str, list[str]] | list[str] | None = None
    parameters: Parameters = {}
    known_defects: str = ""

    @field_validator("surrogates", mode="before")
    @classmethod
    def _surrogates_are_named(cls, value: object) -> object:
        if isinstance(value, str):
            raise ValueError("name the models: a list, or a table of lists by dataset")
        return value

    @model_validator(mode="after")
    def _one_kind(self) -> AttackCard:
        if bool(self.entry) == bool(self.members):
            raise ValueError("give entry, or members for a worst case over other attacks")
        if self.members and (self.parameters or self.surrogates):
            raise ValueError("a worst case has no parameters and no surrogates; its members have")
        return self

    def identity(self) -> dict[str, Any]:
        """The fields that decide the images that this attack makes."""
        identity = self.model_dump(include={"name", "entry", "knowledge", "parameters"})
        return identity if self.applies_to == "any" else identity | {"applies_to": self.applies_to}


class DatasetCard(Card):
    """Labelled images: the code that reads them, and how they are prepared for a model."""

    title: str = ""  # what a sentence calls them instead of the name
    entry: str
    labels: str
    classes: int | None = None  # None: read from the folder
    channels: Literal[1, 3]
    size: str = "original"  # the default of --size
    keep_shared_size: bool = False  # whether that default is "original" where all images share one size
    crop: float = Field(default=1.0, gt=0, le=1)  # share of the resized image that the centre crop keeps
    eps: dict[Norm, str] = {"linf": "2/255", "l2": "0.5", "l1": "12", "l0": "24"}  # the default of --eps, by norm
    needs: str = ""  # the files that a user must provide; empty when the data are included
    publish_images: bool = False  # whether adversarial images may be published with results; not of photographs
    parameters: Parameters = {}

    def default_eps(self, norm: Norm) -> str:
        """The budget when none is given. Raises LpmbenchError when the card has none for the norm."""
        if norm not in self.eps:
            raise LpmbenchError(f"{self.path}: there is no default eps for '{norm}'; give one with --eps.")
        return self.eps[norm]

    def identity(self) -> dict[str, Any]:
        """The fields that decide the images and labels."""
        return self.model_dump(include={"name", "entry", "labels", "channels", "crop", "parameters"})


class Augmentation(_Table):
    """Random changes of the training images, affine maps and mirroring; the default changes nothing."""

    rotate: float = Field(default=0.0, ge=0, le=180)  # degrees, either way
    translate: float = Field(default=0.0, ge=0, le=1)  # share of the image's side, either way
    # Smallest and largest magnification; TOML has no tuples, so a list must do.
    scale: Annotated[tuple[float, float], Field(strict=False)] = (1.0, 1.0)
    shear: float = Field(default=0.0, ge=0, lt=90)  # degrees, either way
    keep: float = Field(default=0.0, ge=0, lt=1)  # least share of an image's brightness that stays in the frame
    flip: float = Field(default=0.0, ge=0, le=1)  # share of the images that are mirrored, left to right

    @model_validator(mode="after")
    def _scales_are_ordered(self) -> Augmentation:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError("scale must be [smallest, largest], both positive")
        return self


class Validation(_Table):
    """What is measured after an epoch, on the validation split and without augmentation."""

    every: int = Field(default=1, ge=1)  # epochs; the last one is always validated
    limit: int | None = Field(default=None, ge=1)  # only the first N images; the end of a training takes all
    draws: int = Field(default=4, ge=1)  # of a stochastic model: M = 1 is their mean, M = draws their averaged logits
    controls: bool = False  # also a glimpsing model's accuracy with random and with centre fixations


class RecipeCard(Card):
    """How `lpmbench train` makes a checkpoint."""

    dataset: str
    size: str | None = None  # side of the training images in pixels; None: as the dataset's card says
    fit: Literal["crop", "pad"] = "crop"  # the middle of an image, or all of it in a square of zeros; see preprocessing
    objective: str  # "module:function", see robustbench_lpm.training.objectives
    parameters: Parameters = {}  # of the objective
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    schedule: Literal["constant", "one-cycle", "cosine"] = "constant"
    optimiser: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = Field(gt=0)
    groups: dict[str, Annotated[float, Field(gt=0)]] = {}  # learning rates by the model's names of its groups
    weight_decay: float = Field(default=0.0, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)  # of sgd
    gradient_clip: float | None = Field(default=None, gt=0)  # largest l2 norm of all gradients together
    precision: Literal["32-true", "bf16-mixed"] = "32-true"  # named as in lightning-fabric
    augmentation: Augmentation = Augmentation()
    model_parameters: Parameters = {}  # in place of those of the model card
    # Of a glimpsing model in training: [share of the training from which on, glimpses], ...; None: the model's own.
    glimpses: list[Annotated[tuple[Share, Annotated[int, Field(ge=1)]], Field(strict=False)]] = []
    sigma_start: float | None = Field(default=None, gt=0)  # its policy's sigma decreases from here to the model's own
    validation: Validation = Validation()

    @model_validator(mode="after")
    def _stages_are_ordered(self) -> RecipeCard:
        shares = [share for share, _ in self.glimpses]
        if shares and (shares[0] != 0 or shares != sorted(set(shares))):
            raise ValueError("glimpses must be [[0.0, GLIMPSES], [SHARE, GLIMPSES], ...] with growing shares below 1")
        return self


# The settings of a run that all runs of a part share, with their defaults.
_SHARED = [name for name in NAMES if name not in ("eps", "mc", "gradient_mode", "noise", "device")]
_Asked = create_model("_Asked", __base__=_Table, **{n: (TYPES[n], SETTINGS[n].default) for n in _SHARED})  # type: ignore[call-overload]


class SuiteCard(Card):
    """A matrix: every model under every attack at every budget."""

    class Part(_Asked, _Table):  # type: ignore[misc, valid-type]
        """One part of the matrix, with any setting of `robustbench_lpm.options.Options`; some may be lists."""

        dataset: str
        optional: bool = False  # left out with a message if the data are missing; else that is an error
        models: list[str]
        attacks: list[str]
        eps: list[Budget]
        mc: list[int] = [1]
        noise: list[str] = []
        gradient_modes: list[str] = ["strongest"]  # of glimpsing models, each in a separate run
        audit: list[str] = []  # the attacks whose results are audited
        until_decided: bool = False  # audits go on with more images, and stronger attacks, as `audit --until-decided`
        black_box: list[str] = ["square", "transfer"]  # attacks that an audit compares a white-box result with
        parameters: dict[str, Parameters] = {}  # by attack name, in place of its card's

        def options(self, *, mc: int = 1, gradient_mode: str | None = None) -> list[Options]:
            """The options of the runs at each budget."""
            shared = {name: getattr(self, name) for name in _SHARED} | {"noise": tuple(self.noise)}
            return [
                Options(eps=eps, mc=mc, gradient_mode=gradient_mode, **shared)
                for eps in parse_eps_list(self.eps, self.norm)
            ]

        @model_validator(mode="after")
        def _settings_and_parameters_fit(self) -> SuiteCard.Part:
            try:
                for mc in self.mc:
                    self.options(mc=mc)
            except LpmbenchError as error:
                raise ValueError(str(error)) from None
            named = [*self.attacks, *self.audit, *(self.black_box if self.audit else [])]
            for name in self.parameters:
                if name not in named and not any(name in _members(attack) for attack in named):
                    raise ValueError(f"parameters are given for '{name}', which is not among the attacks")
            return self

    part: list[Part] = Field(min_length=1)


def _members(name: str) -> list[str]:
    """The members of a registered worst case; none for other attacks."""
    return attack(name).members if name in names("attack") else []


CardT = TypeVar("CardT", bound=Card)


@cache
def root() -> Path:
    """The directory of models/, attacks/, ...: in the installed package, or the checkout around it."""
    package = Path(__file__).parent.parent
    installed = package / "_cards"
    return installed if installed.is_dir() else package.parent


@cache
def _paths(kind: Kind) -> dict[str, Path]:
    found = {path.stem: path for path in (root() / FOLDERS[kind]).glob("*.toml")}
    return dict(sorted(found.items()))


def names(kind: Kind) -> list[str]:
    """The names of all registered cards of a kind, sorted."""
    return list(_paths(kind))


def _finder(kind: Kind, card_class: type[CardT]) -> Callable[[str], CardT]:
    def find(name: str) -> CardT:
        """The card of that name, or the one in that .toml file. Raises LpmbenchError where there is none."""
        if name.endswith(".toml"):
            return read(Path(name), card_class)
        if name not in _paths(kind):
            raise unknown(kind, name, names(kind))
        card = read(_paths(kind)[name], card_class)
        if card.name != name:
            raise LpmbenchError(f"{card.path}: name is '{card.name}', but the file is called '{name}.toml'.")
        return card

    return find


_model = _finder("model", ModelCard)
_attack = _finder("attack", AttackCard)
dataset = _finder("dataset", DatasetCard)
recipe = _finder("recipe", RecipeCard)
_suite = _finder("suite", SuiteCard)


def suite(name: str) -> SuiteCard:
    """The suite of that name, or the one in that .toml file, whose paths are relative to it.

    Raises LpmbenchError where there is none.
    """
    card = _suite(name)

    def placed(named: str) -> str:
        return str(card.path.parent / named) if named.endswith(".toml") else named

    def placed_part(part: SuiteCard.Part) -> SuiteCard.Part:
        lists = {key: list(map(placed, getattr(part, key))) for key in ("models", "attacks", "audit", "black_box")}
        parameters = {placed(key): value for key, value in part.parameters.items()}
        return part.model_copy(update={**lists, "dataset": placed(part.dataset), "parameters": parameters})

    return card.model_copy(update={"part": list(map(placed_part, card.part))})


def model(name: str) -> ModelCard:
    """The card of that name, in that .toml file, or made of what a hub says of the model at that address, see `hubs`.

    Raises LpmbenchError where there is none.
    """
    if not hubs.is_address(name):
        return _model(name)
    content = hubs.describe(name)
    digest = hubs.seen(content["name"])
    weights = content["weights"] | ({"sha256": digest} if digest else {})
    return validated(content | {"weights": weights}, Path(content["name"]), ModelCard)


def attack(name: str) -> AttackCard:
    """The card of that name, in that .toml file, or made of what a library offers at that address, see `libraries`.

    Raises LpmbenchError where there is none.
    """
    if name.endswith(".toml") or not libraries.is_address(name):
        return _attack(name)
    offer = libraries.find(name)
    card = AttackCard(
        name=name, summary=offer.summary, source=libraries.told_version(name.partition(":")[0]), entry=name,
        knowledge=offer.knowledge, norms=list(offer.usable), targeted=offer.targeted,
        parameters=offer.defaults,
    )  # fmt: skip
    card._path = Path(name)
    return card


def read(path: Path, card_class: type[CardT]) -> CardT:
    """Read and validate a card. Raises LpmbenchError naming the file and the key."""
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except FileNotFoundError:
        raise LpmbenchError(f"There is no card at {path}.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise LpmbenchError(f"{path} cannot be read as TOML: {error}") from None
    return validated(content, path, card_class)


def validated(content: Mapping[str, Any], path: Path, card_class: type[CardT]) -> CardT:
    """The card with this content, as if it were read from `path`. Raises LpmbenchError naming that and the key."""
    try:
        card = card_class.model_validate(content)
    except ValidationError as error:
        raise LpmbenchError(f"{path}: {explained(error)}") from None
    card._path = path
    return card


def resolve_entry(card: ModelCard | AttackCard | DatasetCard, *, trust: bool = False) -> Callable[..., Any]:
    """The object at the address of a card's entry: an attack of a library, a model of a hub, or see `resolve`."""
    if isinstance(card, AttackCard) and libraries.of_library(card.entry):
        return libraries.find(card.entry).function
    if isinstance(card, ModelCard) and hubs.of_hub(card.entry):
        return hubs.builder(card.entry)
    return resolve(card.entry, card.path, trust=trust)


def resolve(entry: str, path: Path, *, trust: bool = False) -> Callable[..., Any]:
    """The object at the address "module:function", which the card at `path` names.

    Code outside this package runs only with trust=True; its module is searched beside the card first.
    """
    module_name, colon, attribute = entry.partition(":")
    if not (module_name and colon and attribute):
        raise LpmbenchError(f"{path}: entry '{entry}' must look like 'module:function'.")
    own = module_name.split(".")[0] == OWN_PACKAGE
    if own and not f"{module_name}.".startswith(ENTRY_PACKAGES):
        raise LpmbenchError(f"{path}: entry '{entry}' is no model, attack, dataset or objective of lpmbench.")
    if not own:
        if not trust:
            raise LpmbenchError(
                f"{path}: entry '{entry}' is code from outside lpmbench; read it, then add --trust to run it."
            )
        folder = str(path.parent.resolve())
        if folder not in sys.path:
            sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name) if own else _import_as_written(module_name)
    except ImportError as error:
        raise LpmbenchError(f"{path}: entry '{entry}' cannot be imported: {error}.") from None
    found = getattr(module, attribute, None)
    # Names that one of our modules only imports are not entries.
    if not callable(found) or (own and getattr(found, "__module__", "") != module_name):
        offered = {name: value for name, value in vars(module).items() if callable(value) and not name.startswith("_")}
        public = [name for name, value in offered.items() if not own or value.__module__ == module_name]
        raise LpmbenchError(f"{path}: {unknown('entry', attribute, public)}")
    return found


def _import_as_written(name: str) -> ModuleType:
    """Import a user's module without a .pyc file, which would count as fresh for a second after an edit."""
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    finally:
        sys.dont_write_bytecode = writes


def is_foreign(card: ModelCard | AttackCard | DatasetCard) -> bool:
    """Whether a card names code from outside this package, which runs only with --trust.

    Attacks of the known libraries and models of the known hubs run without: nothing else can be named by their
    addresses.
    """
    if isinstance(card, AttackCard) and libraries.of_library(card.entry):
        return False
    if isinstance(card, ModelCard) and hubs.of_hub(card.entry):
        return False
    return bool(card.entry) and card.entry.split(":")[0].split(".")[0] != OWN_PACKAGE


def confined(card: Card, relative: str, folder: Path | None = None) -> Path:
    """A file that a card names, beside the card (or in `folder`) and nowhere else."""
    base = (folder or card.path.parent).resolve()
    path = (base / relative).resolve()
    if not path.is_relative_to(base):
        raise LpmbenchError(f"{card.path}: '{relative}' leads out of {base}.")
    if not path.is_file():
        raise LpmbenchError(f"{card.path}: file '{relative}' is missing from {base}.")
    return path
