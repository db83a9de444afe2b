"""Admission: the one door through which every model passes before anything runs.

All that the rest assumes about a network is tried here on a few images: that it can read them, that its answers are
logits, where its randomness comes from, that an image's answer does not depend on its company, that a gradient comes
back. What can be put right is (on a copy: the caller's object is never touched), the rest is refused in one line.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from robustbench_lpm.architectures.classifier import Classifier, GloballyRandom, Noise, offered
from robustbench_lpm.architectures.precision import channels_last, plain_layout
from robustbench_lpm.attacks.losses import objective
from robustbench_lpm.errors import LpmbenchError, in_one_line
from robustbench_lpm.evaluation.contents import GENERATORS, parts, sha256_of_object
from robustbench_lpm.randomness import Addresses, isolated_globals, states
from robustbench_lpm.zoo import LoadedModel

IMAGES = 4  # on which a model is tried; half as many where they are large
LARGE = 160 * 160  # pixels
SAME_SEED, OTHER_SEEDS = 8, 3  # passes under one seed, and under others
# Shares of the largest logit, which rounding moves by 1e-6 of it. A company that matters moves them by far more.
ROUNDING, COMPANY = 1e-3, 0.05
LAYOUT, LAYOUT_GRADIENT = 1e-2, 0.1
GENERATORS_OF = {"torch": "torch's", "numpy": "numpy's", "python": "Python's", "cuda": "CUDA's"}


@dataclass(frozen=True)
class Admission:
    """What is known of a model that passed, for images of one shape on one device.

    classes: logits that it gives. sources: what its randomness comes from. no_gradient: why none comes back from its
    answers to the images, "" where one does. answers: a fingerprint of its logits on fixed images. notes: what a reader
    must know.
    """

    classes: int
    sources: tuple[str, ...] = ()
    no_gradient: str = ""
    answers: str = ""
    notes: tuple[str, ...] = ()


class AsItIs(nn.Module):
    """Something that cannot be copied (a function, a scripted or quantised module), used without being changed.

    A module is in eval mode, and wants no gradients for its parameters, for as long as a call takes. Whatever else is
    asked of it (`sample_noise`, say) goes through.
    """

    def __init__(self, thing: Callable[..., Any]) -> None:
        super().__init__()
        object.__setattr__(self, "thing", thing)  # not as a part: no mode, device or layout is passed on to it

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_"):
                raise
            return getattr(object.__getattribute__(self, "thing"), name)

    def __deepcopy__(self, memo: dict[int, Any]) -> AsItIs:
        return self

    def forward(self, *arguments: Any, **options: Any) -> Any:
        with _evaluated(self.thing):
            return self.thing(*arguments, **options)


@contextmanager
def _evaluated(thing: Any) -> Iterator[None]:
    if not isinstance(thing, nn.Module):
        yield
        return
    modes = {module: module.training for module in thing.modules()} if thing.training else {}
    wanting = [parameter for parameter in thing.parameters() if parameter.requires_grad]
    try:
        if modes:
            thing.eval()
        for parameter in wanting:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for parameter in wanting:
            parameter.requires_grad_(True)


def handed_over(model: Any, name: str | None = None) -> LoadedModel:
    """A module of a user's own, or any function from images to logits, as a model: a copy of it, in eval mode.

    One in eval mode keeps the modes of its parts: a dropout that was left on is meant. Raises LpmbenchError for what
    cannot be called.
    """
    network = getattr(model, "network", model) if isinstance(model, Classifier) else model
    if isinstance(model, type) or not callable(model):
        kind = model.__name__ if isinstance(model, type) else type(model).__name__
        wanted = (
            f"hand over an instance, {kind}()" if isinstance(model, type) else "a name, a card or a module is meant"
        )
        raise LpmbenchError(f"{kind} is no model: {wanted}.")
    written: Any = type(network) if isinstance(network, nn.Module) else network
    compiled = getattr(network, "original_name", None) if isinstance(network, torch.jit.ScriptModule) else None
    called = name or compiled or str(getattr(written, "__name__", type(network).__name__))
    notes = []
    copied = _copied(model)
    if copied is None:
        copied = AsItIs(model)
        trained = isinstance(network, nn.Module) and network.training
    else:
        trained = copied.training
        _freeze(copied)
        if trained:
            copied.eval()
    if trained:
        notes.append(f"{called} was handed over in training mode: it is evaluated in eval mode")
    classifier = copied if isinstance(copied, Classifier) else Classifier(copied)
    classifier.training = False  # its own mode alone: those of its parts are theirs
    digest = sha256_of_object(classifier.network.thing if isinstance(copied, AsItIs) else copied)
    entry = f"{getattr(written, '__module__', '')}:{getattr(written, '__qualname__', called)}"
    identity = {"name": called, "entry": entry, "weights_sha256": digest, "stochastic": classifier.stochastic}
    return LoadedModel(called, classifier, identity, digest, notes=tuple(notes))


def _freeze(network: nn.Module) -> None:
    """No gradients for parameters; those of a lazy layer that has seen no image yet are none."""
    for parameter in network.parameters():
        if not is_lazy(parameter):
            parameter.requires_grad_(False)


def _copied(model: Any) -> nn.Module | None:
    """A copy that shares nothing with a module, or None where there is none to be had."""
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        return None
    # What a hook has computed, such as a normalised weight, cannot be copied with its past.
    computed = [value for part in model.modules() for value in vars(part).values() if isinstance(value, Tensor)]
    memo: dict[int, Any] = {id(value): value.detach().clone() for value in computed if value.grad_fn is not None}
    try:
        return copy.deepcopy(model, memo)
    except Exception:  # whatever its parts refuse with, it can still be used as it is
        return None


# What was found of a classifier, and what it runs as, by shape and device. Nothing here may keep the classifier itself.
_admitted: WeakKeyDictionary[Classifier, dict[Any, tuple[Admission, Classifier | None]]] = WeakKeyDictionary()


def admit(model: LoadedModel, images: Tensor, device: str) -> tuple[LoadedModel, Admission]:
    """The model as it is to be run on images like these (n, C, H, W), and what was found; tried once for each shape.

    Raises LpmbenchError, in one line, for a model that nothing honest can be said of.
    """
    key = tuple(images.shape[1:]), str(torch.device(device)), model.name
    known = _admitted.setdefault(model.classifier, {})
    if key not in known:
        with torch.inference_mode(False), torch.enable_grad():
            large = images.shape[-1] * images.shape[-2] >= LARGE
            some = images[: IMAGES // 2 if large else IMAGES].detach().to(device).clone()
            admission, classifier = _tried(model, some, device)
        wrapped = classifier if classifier is not model.classifier else None
        known[key] = admission, wrapped
        if wrapped is not None:
            _admitted[wrapped] = {key: (admission, None)}
    admission, wrapped = known[key]
    classifier = wrapped or model.classifier
    identity = model.identity | {"stochastic": classifier.stochastic}
    if model.card is None:
        identity |= {"answers": admission.answers}
    return replace(model, classifier=classifier, identity=identity), admission


def _tried(model: LoadedModel, images: Tensor, device: str) -> tuple[Admission, Classifier]:
    """What is found of a model, and what it is to run as."""
    if len(images) == 1:  # company for it
        images = torch.cat([images, 1 - images])
    trial = _Trial(model.name, model.classifier.to(device), images)
    with _left_as_they_were(trial.classifier.network):
        trial.read()
        trial.find_randomness()
        trial.meet_company()
        no_gradient = trial.differentiate()
        trial.lay_out(gradient=not no_gradient)
        answers = trial.fingerprint()
    return Admission(trial.classes, trial.sources, no_gradient, answers, tuple(trial.notes)), trial.classifier


@contextmanager
def _left_as_they_were(network: nn.Module) -> Iterator[None]:
    """The buffers of what is used as it is are put back: its owner's they are."""
    held = _tensors(network) if isinstance(network, AsItIs) else {}
    try:
        yield
    finally:
        with torch.no_grad():
            for value, _, copied in held.values():
                if copied is not None and not _alike(value, copied):
                    value.copy_(copied)


@dataclass
class _Trial:
    """A classifier as it is tried: what is found out about it changes how it is asked next."""

    name: str
    classifier: Classifier
    images: Tensor
    classes: int = 0
    sources: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    noise: Noise = field(default_factory=dict)

    def refuse(self, what: str) -> LpmbenchError:
        return LpmbenchError(f"Model '{self.name}' {what}.")

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Whatever a model fails with is told in one line."""
        try:
            yield
        except LpmbenchError as error:
            raise LpmbenchError(f"Model '{self.name}': {error}") from None
        except Exception as error:
            shape = tuple(self.images.shape[1:])
            raise self.refuse(f"cannot read images {shape}: {in_one_line(error)}") from error

    def ask(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """Its answer (n, K) under one seed of the global generators."""
        with isolated_globals(1):
            return self.classifier(images, self.noise if noise is None else noise)

    def read(self) -> None:
        """It must answer several images, and one, with logits. What it needs for that is found out."""
        given = self.images.clone()
        version, network = given._version, self.classifier.network
        lazy = not isinstance(network, AsItIs) and any(map(is_lazy, network.parameters()))
        with self.asking(), torch.no_grad():
            self.noise = self._sampled()
            dtype = _own_precision(network)
            try:
                logits = self.ask(given)
                self.classifier.in_place = given._version != version
            except Exception as error:
                logits = self._asked_otherwise(dtype, error)
            alone = self.ask(self.images[:1], noise={source: values[:1] for source, values in self.noise.items()})
        if logits.dim() != 2 or len(logits) != len(self.images) or alone.shape != logits[:1].shape:
            shapes = f"{len(self.images)} images with shape {tuple(logits.shape)} and one with {tuple(alone.shape)}"
            raise self.refuse(f"answers {shapes}, not with logits (n, K)")
        if logits.shape[1] < 2:
            raise self.refuse("answers with one number an image; a classifier has at least two classes, so two logits")
        # One that fails on some images is told for each of them, as it is run.
        if (logits.isnan() | (logits == torch.inf)).any(1).all():
            raise self.refuse("gives NaN or infinite logits; nothing can be graded on them")
        self.classes = logits.shape[1]
        if lazy:
            _freeze(network)
            self.notes.append(f"{self.name}'s lazy layers had no weights yet: they were drawn at random, from seed 1")
        if bool(((logits >= 0) & ((logits.sum(1, keepdim=True) - 1).abs() < 1e-3)).all()):
            self.notes.append(
                f"{self.name} answers with probabilities: they are taken as logits, which weakens attacks"
            )

    def _asked_otherwise(self, dtype: torch.dtype | None, error: Exception) -> Tensor:
        """Its answer in the precision of its weights, or with gradients on: one or the other is what it may need."""
        for precision, differentiates in ((dtype, False), (None, True)):
            if precision is None and not differentiates:
                continue
            self.classifier.dtype, self.classifier.differentiates = precision, differentiates
            try:
                logits = self.ask(self.images.clone())
            except Exception:  # what it said first is the reason
                continue
            self.classifier.in_place = True  # unless it is known to leave images alone
            if precision is not None:
                self.notes.append(f"{self.name} works in {str(precision).removeprefix('torch.')}")
            return logits
        raise error

    def _sampled(self) -> Noise:
        """Noise for the images, of a network that declares its own; it must come from the addresses it is given."""
        _check_signature(self.classifier.network)
        keyed = [self._sampled_under(seed) for seed in (1, 2)]
        if any(
            not torch.equal(first, second) for first, second in zip(keyed[0].values(), keyed[1].values(), strict=True)
        ):
            raise LpmbenchError(
                "its sample_noise draws from a global generator; it must draw from the addresses that it is given."
            )
        return {source: values.to(self.images.device) for source, values in keyed[0].items()}

    def _sampled_under(self, seed: int) -> Noise:
        with isolated_globals(seed):
            return self.classifier.sample_noise(Addresses.of(0, range(len(self.images)), "clean"))

    def find_randomness(self) -> None:
        """Which generators it draws from, and whether it answers the same under the same seed."""
        own = [part for part in parts(self.classifier.network, numbers=False) if isinstance(part.value, GENERATORS)]
        under, left, kept = [], [], []
        with self.asking(), torch.no_grad():
            for seed in [1] * SAME_SEED + list(range(2, 2 + OTHER_SEEDS)):
                with isolated_globals(seed):
                    before = states()
                    under.append(self.classifier(self.images, self.noise))
                    after = states()
                left.append((before, after))
                kept.append([_state(part.value) for part in own])
        for number, part in enumerate(own):
            if kept[0][number] != kept[1][number]:
                raise self.refuse(
                    f"is not repeatable: it draws from a generator of its own, {_shown(part.path)}, "
                    "whose state no seed sets; let it draw from torch's generator, or offer sample_noise"
                )
        scale = _scale(under[0])
        if not all(_near(again, under[0], ROUNDING, scale) for again in under[1:SAME_SEED]):
            raise self.refuse(
                "is not repeatable: it answers the same images differently under one and the same seed"
                + (" and noise" if self.noise else "")
            )
        (before, after), (_, other) = left[0], left[-1]
        # One that ends in the same state whatever the seed was has set a seed of its own.
        drawn = [name for name in before if before[name] != after[name] and after[name] != other[name]]
        differs = any(not _near(answer, under[0], ROUNDING, scale) for answer in under[SAME_SEED:])
        if not drawn and not differs:
            self.sources = tuple(self.noise)
            return
        if self.noise:
            elsewhere = ", ".join(_named(drawn)) or "elsewhere"
            raise self.refuse(
                f"has a sample_noise, but draws from {elsewhere} as well; all its noise must come from there"
            )
        self.sources = tuple(_named(drawn)) or ("a global generator",)
        self.classifier = self.classifier.around(GloballyRandom(self.classifier.network))
        self.noise = self._sampled()

    def meet_company(self) -> None:
        """Neither other images of the batch nor earlier passes may change an answer."""
        network = self.classifier.network
        held = _tensors(network)
        with self.asking(), torch.no_grad():
            dim, others = self.images[:1] / 2, self.images[1:]
            answers = [self.ask(torch.cat([dim, company]))[:1] for company in (others, others / 4, 1 - others)]
            changed = [path for path, (value, version, copied) in held.items() if _altered(value, version, copied)]
            alone = self.ask(dim, noise={source: values[:1] for source, values in self.noise.items()})
        if changed:
            raise self.refuse(f"changes by a pass: {', '.join(changed[:3])} is written to ({_blamed(network)})")
        scale = _scale(answers[0])
        if not all(_near(answer, answers[0], COMPANY, scale) for answer in answers[1:]):
            raise self._company("among others")
        # Random numbers for a batch are not those for one image; and one that sends its gaze where its last glimpse
        # says enlarges rounding, which the size of a batch decides.
        bound = not isinstance(self.classifier.network, GloballyRandom) and not self.classifier.glimpsing
        if bound and not _near(alone, answers[0], COMPANY, scale):
            raise self._company("alone")
        if not all(_near(answer, answers[0], ROUNDING, scale) for answer in answers[1:]):
            self.notes.append(f"{self.name}'s answer to an image depends a little on what shares a batch with it")

    def _company(self, how: str) -> LpmbenchError:
        return self.refuse(
            f"answers an image differently {how}: what shares a batch with it decides "
            f"({_blamed(self.classifier.network)})"
        )

    def differentiate(self) -> str:
        """Why no gradient comes back, "" where one does; where it is zero everywhere, attacks by gradient are blind."""
        images = self.images.clone().requires_grad_()
        labels = self.ask(self.images).detach().argmax(1)
        try:
            logits = self.ask(images)
            losses = [objective(loss, logits[None], labels)[0].sum() for loss in ("margin", "cross-entropy")]
            if not logits.requires_grad:
                return "its answers are cut off from the image"
            found = [torch.autograd.grad(loss, images, retain_graph=True, allow_unused=True)[0] for loss in losses]
        except Exception as error:  # whatever its backward pass fails with
            return in_one_line(error)
        if any(gradient is None for gradient in found):
            return "its answers are cut off from the image"
        if not found[0].any():
            self.notes.append(
                f"the gradient of {self.name} is zero on every image tried: attacks by gradient are blind"
            )
        elif not found[1].any():
            self.notes.append(
                f"the gradient of {self.name}'s cross-entropy is zero on every image tried (saturated logits): attacks "
                "by it are blind, those on the margin are not"
            )
        return ""

    def lay_out(self, gradient: bool) -> None:
        """The order of memory that passes fastest, where the network works in it and answers the same."""
        if isinstance(self.classifier.network, AsItIs) or self.images.device.type != "cpu":
            return
        plain = self._both_ways(gradient)
        kept = channels_last(self.classifier)
        try:
            laid_out = self._both_ways(gradient)
        except Exception:  # .view, for one, reads memory in the order that the author had in mind
            plain_layout(kept)
            return
        # A network that looks where its last glimpse sends it enlarges rounding beyond any bound: it must but work.
        agrees = _near(laid_out[0], plain[0], LAYOUT, _scale(plain[0])) and _near_in_length(laid_out[1], plain[1])
        if not (agrees or self.classifier.glimpsing):
            plain_layout(kept)

    def _both_ways(self, gradient: bool) -> tuple[Tensor, Tensor]:
        images = self.images.clone().requires_grad_(gradient)
        logits = self.ask(images)
        if not gradient:
            return logits, torch.zeros(1)
        labels = logits.detach().argmax(1)
        margins = objective("margin", logits[None], labels)[0]
        return logits.detach(), torch.autograd.grad(margins.sum(), images)[0]

    def fingerprint(self) -> str:
        """A hash of what it says of fixed images, robust to rounding: the classes, and the largest logits in steps.

        Of a stochastic network the classes alone, where they are clear: small differences are enlarged in some.
        """
        fixed = torch.rand(IMAGES, *self.images.shape[1:], generator=torch.Generator().manual_seed(0))
        fixed = (fixed * torch.linspace(0.2, 1, len(fixed))[:, None, None, None]).to(self.images)
        noise = self.classifier.sample_noise(Addresses.of(0, range(len(fixed)), "clean"))
        with self.asking(), torch.no_grad():
            logits = self.ask(fixed, noise={source: values.to(fixed.device) for source, values in noise.items()})
        logits = torch.nan_to_num(logits.double().cpu(), neginf=-1e30)
        scale = logits[logits > -1e29].abs().max().clamp_min(1e-30)
        top = logits.topk(min(3, logits.shape[1]), dim=1)
        clear = (top.values[:, 0] - top.values[:, 1]) / scale > 0.1
        said = [int(label) if sure else -1 for label, sure in zip(top.indices[:, 0], clear, strict=True)]
        steps = [] if self.classifier.stochastic else (top.values / scale * 50).round().int().tolist()
        return hashlib.sha256(repr((said, steps, logits.shape[1])).encode()).hexdigest()[:16]


def _check_signature(network: nn.Module) -> None:
    """Raise LpmbenchError for a sample_noise that does not take addresses alone."""
    sample_noise = offered(network, "sample_noise")
    try:
        if sample_noise is not None:
            inspect.signature(sample_noise).bind(None)
    except TypeError:
        raise LpmbenchError(
            "its sample_noise must take addresses: write `def sample_noise(self, addresses)` and draw from them, as in "
            '`{"pixels": addresses.normal("pixels", 3, 32, 32)}` (see models/README.md).'
        ) from None
    except ValueError:  # compiled code tells no signature
        pass


def _scale(logits: Tensor) -> float:
    """The largest of those that are finite."""
    return float(torch.where(logits.isfinite(), logits, 0).abs().max())


def _near(found: Tensor, wanted: Tensor, share: float, scale: float) -> bool:
    """Whether logits agree, up to a share of the largest; infinity, and what is no number, agree with themselves."""
    if found.shape != wanted.shape:
        return False
    alike = (found == wanted) | ((found != found) & (wanted != wanted))
    return bool((alike | ((found - wanted).abs() <= share * scale)).all())


def _near_in_length(found: Tensor, wanted: Tensor) -> bool:
    return bool((found - wanted).double().norm() <= LAYOUT_GRADIENT * wanted.double().norm())


def _own_precision(network: nn.Module) -> torch.dtype | None:
    """The one precision of a network's weights, where it is not float32."""
    tensors = [part.value for part in parts(network, numbers=False) if isinstance(part.value, nn.Parameter)]
    found = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    return found.pop() if len(found) == 1 and torch.float32 not in found else None


def _state(generator: Any) -> bytes:
    if isinstance(generator, torch.Generator):
        return generator.get_state().numpy().tobytes()
    return pickle.dumps(generator.__reduce__())


def _tensors(network: nn.Module) -> dict[str, tuple[Tensor, int, Tensor | None]]:
    """The parameters and buffers of all modules within reach: each with its version, buffers with a copy."""
    found: dict[str, tuple[Tensor, int, Tensor | None]] = {}
    for part in parts(network, numbers=False):
        if isinstance(part.value, nn.Module) and not isinstance(part.value, torch.jit.ScriptModule):
            path = _shown(part.path)
            for name, buffer in part.value.named_buffers(recurse=False):
                found[f"{path}.{name}".lstrip(".")] = (buffer, buffer._version, buffer.clone())
            for name, parameter in part.value.named_parameters(recurse=False):
                found[f"{path}.{name}".lstrip(".")] = (parameter, parameter._version, None)
        elif isinstance(part.value, torch.jit.ScriptModule):
            for name, buffer in part.value.named_buffers():
                found[f"{_shown(part.path)}.{name}".lstrip(".")] = (buffer, buffer._version, buffer.clone())
    return found


def _altered(value: Tensor, version: int, copied: Tensor | None) -> bool:
    if copied is None:
        return value._version != version
    return not _alike(value, copied)


def _alike(value: Tensor, copied: Tensor) -> bool:
    return value.shape == copied.shape and bool(((value == copied) | (value != value)).all())


def _blamed(network: nn.Module) -> str:
    """The layer that makes images of a batch depend on each other, where it can be found."""
    for part in parts(network, numbers=False):
        layer = part.value
        normalises = isinstance(layer, nn.modules.batchnorm._NormBase) and (
            layer.training or not layer.track_running_stats or layer.running_mean is None
        )
        if normalises and not isinstance(layer, nn.modules.instancenorm._InstanceNorm):
            registered = any(layer is module for module in network.modules())
            why = "is in training mode" if layer.training else "takes the statistics of the batch"
            why += "" if registered or not layer.training else ", where eval() does not reach it: use a ModuleList"
            return f"{type(layer).__name__} at {_shown(part.path)} {why}"
    return "no such layer was found: look for a mean, a maximum or a softmax over dimension 0"


def _shown(path: str) -> str:
    """A path as the owner of the network would write it."""
    return path.removeprefix(".thing").removeprefix(".network").lstrip(".") or "its root"


def _named(generators: list[str]) -> list[str]:
    return [f"{GENERATORS_OF[name]} generator" for name in generators]
