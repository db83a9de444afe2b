"""Admission: the checks that every model passes before anything runs.

A network is tested on a few images: that it reads them, answers with logits, is repeatable under a seed, treats each
image of a batch alone and gives a gradient. What can be corrected is corrected, on a copy: the caller's object is never
changed. Everything else is refused in one line.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from robustbench_lpm.architectures.classifier import SMOOTHING, Classifier, GloballyRandom, Noise, offered, on_device
from robustbench_lpm.architectures.precision import channels_last, plain_layout
from robustbench_lpm.attacks.losses import Loss, objective
from robustbench_lpm.errors import LpmbenchError, in_one_line
from robustbench_lpm.randomness import Addresses, isolated_globals, states
from robustbench_lpm.registry.contents import GENERATORS, parts, sha256_of_object
from robustbench_lpm.registry.zoo import LoadedModel

IMAGES = 4  # on which a model is tried; half as many where they are large
LARGE = 160 * 160  # pixels
SAME_SEED, OTHER_SEEDS = 8, 3  # passes under one seed, and under others
# Shares of the largest logit. Rounding moves logits by 1e-6 of it; other images of the batch by far more.
ROUNDING, BATCH = 1e-3, 0.05
LAYOUT, LAYOUT_GRADIENT = 1e-2, 0.1
GENERATORS_OF = {"torch": "torch's", "numpy": "numpy's", "python": "Python's", "cuda": "CUDA's"}


@dataclass(frozen=True)
class Admission:
    """The properties of a model that passed, for images of one shape on one device.

    classes: the number of its logits. sources: of its randomness. no_gradient: why its answers give none with respect
    to the images, "" where they do. answers: a fingerprint of its logits on fixed images. notes: for the reader.
    untouched: a copy that no attack may ask, None of a model that cannot be copied.
    """

    classes: int
    sources: tuple[str, ...] = ()
    no_gradient: str = ""
    answers: str = ""
    notes: tuple[str, ...] = ()
    untouched: Classifier | None = None


class AsItIs(nn.Module):
    """Wraps a model that cannot be copied (a function, a scripted or quantised module), so that it is never changed.

    During a call a module is in eval mode, without gradients for its parameters. Other attributes are the model's.
    """

    def __init__(self, thing: Callable[..., Any]) -> None:
        super().__init__()
        object.__setattr__(self, "thing", thing)  # no submodule: it keeps its mode, device and layout

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
        if not isinstance(self.thing, nn.Module):
            return self.thing(*arguments, **options)
        modes = {module: module.training for module in self.thing.modules()}
        wanting = [parameter for parameter in self.thing.parameters() if parameter.requires_grad]
        try:
            if self.thing.training:
                self.thing.eval()
            for parameter in wanting:
                parameter.requires_grad_(False)
            return self.thing(*arguments, **options)
        finally:
            for module, training in modes.items():
                module.training = training
            for parameter in wanting:
                parameter.requires_grad_(True)


def handed_over(model: Any, name: str | None = None) -> LoadedModel:
    """The model of a user's own module, or of any function from images to logits: a copy of it, in eval mode.

    A module in eval mode keeps the modes of its submodules: a dropout that is on was meant. Raises LpmbenchError for
    an object that cannot be called.
    """
    if isinstance(model, type):
        raise LpmbenchError(f"{model.__name__} is no model: hand over an instance, {model.__name__}().")
    if not callable(model):
        raise LpmbenchError(f"{type(model).__name__} is no model: a name, a card or a module is meant.")
    network = getattr(model, "network", model) if isinstance(model, Classifier) else model
    written: Any = type(network) if isinstance(network, nn.Module) else network
    compiled = getattr(network, "original_name", None) if isinstance(network, torch.jit.ScriptModule) else None
    called = name or compiled or str(getattr(written, "__name__", type(network).__name__))
    copied = _copied(model)
    trained = isinstance(network, nn.Module) and (network if copied is None else copied).training
    if copied is not None:
        _freeze(copied)
        if trained:
            copied.eval()
    copied = AsItIs(model) if copied is None else copied
    classifier = copied if isinstance(copied, Classifier) else Classifier(copied)
    classifier.training = False  # not of its submodules
    digest = sha256_of_object(classifier.network.thing if isinstance(copied, AsItIs) else copied)
    entry = f"{getattr(written, '__module__', '')}:{getattr(written, '__qualname__', called)}"
    identity = {"name": called, "entry": entry, "weights_sha256": digest, "stochastic": classifier.stochastic}
    note = f"{called} was handed over in training mode: it is evaluated in eval mode"
    return LoadedModel(called, classifier, identity, digest, notes=(note,) if trained else ())


def _freeze(network: nn.Module) -> None:
    """Switch off gradients for all parameters, except those of lazy layers that have no shape yet."""
    for parameter in network.parameters():
        if not is_lazy(parameter):
            parameter.requires_grad_(False)


def _copied(model: Any) -> nn.Module | None:
    """A copy that shares nothing with a module, or None where it cannot be copied."""
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        return None
    # A tensor that a hook has computed, such as a normalised weight, cannot be copied with its graph.
    computed = [value for part in model.modules() for value in vars(part).values() if isinstance(value, Tensor)]
    memo: dict[int, Any] = {id(value): value.detach().clone() for value in computed if value.grad_fn is not None}
    try:
        return copy.deepcopy(model, memo)
    except Exception:  # whatever its submodules raise, it can still be used as it is
        return None


def untouched(classifier: Classifier) -> Classifier | None:
    """A copy that shares its parameters and nothing else, such as a count of its calls; None where there is none."""
    if any(isinstance(part, AsItIs) for part in classifier.modules()):
        return None
    try:
        return copy.deepcopy(classifier, {id(shared): shared for shared in classifier.parameters()})
    except Exception:  # as in `_copied`
        return None


# The admission of a classifier, and what it runs as, by shape and device. Nothing here may keep the classifier alive.
_admitted: WeakKeyDictionary[Classifier, dict[Any, tuple[Admission, Classifier | None]]] = WeakKeyDictionary()


def admit(model: LoadedModel, images: Tensor, device: str) -> tuple[LoadedModel, Admission]:
    """The model as it runs on images like these (n, C, H, W), and its admission; tried once for each shape.

    Raises LpmbenchError, in one line, for a model that cannot be evaluated.
    """
    key = tuple(images.shape[1:]), str(torch.device(device)), model.name
    known = _admitted.setdefault(model.classifier, {})
    if key not in known:
        with torch.inference_mode(False), torch.enable_grad():
            large = images.shape[-1] * images.shape[-2] >= LARGE
            some = images[: IMAGES // 2 if large else IMAGES].detach().to(device).clone()
            if len(some) == 1:  # a batch must have two
                some = torch.cat([some, 1 - some])
            trial = _Trial(model.name, model.classifier.to(device), some)
            admission = trial.run()
        wrapped = trial.classifier if trial.classifier is not model.classifier else None
        known[key] = admission, wrapped
        if wrapped is not None:
            _admitted[wrapped] = {key: (admission, None)}
    admission, wrapped = known[key]
    classifier = wrapped or model.classifier
    identity = model.identity | {"stochastic": classifier.stochastic}
    if model.card is None:
        identity |= {"answers": admission.answers}
    return replace(model, classifier=classifier, identity=identity), admission


class _Trial:
    """The checks of one classifier. Each may change how the next one calls it."""

    def __init__(self, name: str, classifier: Classifier, images: Tensor) -> None:
        self.name, self.classifier, self.images = name, classifier, images
        self.noise: Noise = {}
        self.notes: list[str] = []

    def run(self) -> Admission:
        """All checks, in their order; the buffers of a model that could not be copied are restored."""
        network = self.classifier.network
        held = _tensors(network) if isinstance(network, AsItIs) else {}
        try:
            classes = self.check_logits()
            sources = self.check_repeatability()
            self.check_independence()
            no_gradient = self.check_gradient()
            self.choose_layout(gradient=not no_gradient)
            answers = self.fingerprint()
            return Admission(classes, sources, no_gradient, answers, tuple(self.notes), untouched(self.classifier))
        finally:
            with torch.no_grad():
                for value, _, copied in held.values():
                    if copied is not None and not _alike(value, copied):
                        value.copy_(copied)

    def refused(self, what: str) -> LpmbenchError:
        return LpmbenchError(f"Model '{self.name}' {what}.")

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Call the model without gradients; turn its errors into one line."""
        try:
            with torch.no_grad():
                yield
        except LpmbenchError as error:
            raise LpmbenchError(f"Model '{self.name}': {error}") from None
        except Exception as error:
            shape = tuple(self.images.shape[1:])
            raise self.refused(f"cannot read images {shape}: {in_one_line(error)}") from error

    def ask(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """The answer (n, K) under one seed of the global generators."""
        with isolated_globals(1):
            return self.classifier(images, self.noise if noise is None else noise)

    def ask_alone(self, images: Tensor) -> Tensor:
        """The answer to the first of these images, in a batch of one."""
        return self.ask(images[:1], {source: values[:1] for source, values in self.noise.items()})

    def check_logits(self) -> int:
        """Check that it answers several images, and one, with logits; the number of classes."""
        network = self.classifier.network
        lazy = not isinstance(network, AsItIs) and any(map(is_lazy, network.parameters()))
        with self.asking():
            self.noise = self.sampled()
            logits = self.first_answer()
            alone = self.ask_alone(self.images)
        if logits.dim() != 2 or len(logits) != len(self.images) or alone.shape != logits[:1].shape:
            shapes = f"{len(self.images)} images with shape {tuple(logits.shape)} and one with {tuple(alone.shape)}"
            raise self.refused(f"answers {shapes}, not with logits (n, K)")
        if logits.shape[1] < 2:
            raise self.refused("answers with one number an image; a classifier has at least two classes, so two logits")
        # NaN on some images only is recorded for each of them during the run.
        if (logits.isnan() | (logits == torch.inf)).any(1).all():
            raise self.refused("gives NaN or infinite logits; nothing can be graded on them")
        if lazy:
            _freeze(network)
            self.notes.append(f"{self.name}'s lazy layers had no weights yet: they were drawn at random, from seed 1")
        if bool(((logits >= 0) & ((logits.sum(1, keepdim=True) - 1).abs() < 1e-3)).all()):
            probabilities = "answers with probabilities: they are taken as logits, which weakens attacks"
            self.notes.append(f"{self.name} {probabilities}")
        return logits.shape[1]

    def first_answer(self) -> Tensor:
        """Its answer: as it is, else in the precision of its weights, else with gradients switched on."""
        given = self.images.clone()
        version, precision = given._version, _own_precision(self.classifier.network)
        try:
            logits = self.ask(given)
            self.classifier.in_place = given._version != version
            return logits
        except Exception as error:
            for dtype, differentiates in ([] if precision is None else [(precision, False)]) + [(None, True)]:
                self.classifier.dtype, self.classifier.differentiates = dtype, differentiates
                try:
                    logits = self.ask(self.images.clone())
                except Exception:  # the first error is the reason
                    continue
                self.classifier.in_place = True  # it may write to its images
                self.notes += [f"{self.name} works in {str(dtype).removeprefix('torch.')}"] if dtype else []
                return logits
            raise error

    def sampled(self) -> Noise:
        """Noise for the images, of a network that declares its own; checks that it comes from the addresses alone."""
        _check_signature(self.classifier.network)
        first, second = self._sampled_under(1), self._sampled_under(2)
        if not all(map(torch.equal, first.values(), second.values())):
            raise LpmbenchError(
                "its sample_noise draws from a global generator; it must draw from the addresses that it is given."
            )
        return on_device(first, self.images.device)

    def _sampled_under(self, seed: int) -> Noise:
        with isolated_globals(seed):
            return self.classifier.sample_noise(Addresses.of(0, range(len(self.images)), "clean"))

    def check_repeatability(self) -> tuple[str, ...]:
        """Check that it answers the same under the same seed; the sources of its randomness."""
        held = parts(self.classifier.network, numbers=False)
        own = [(path, value) for path, value, _ in held if isinstance(value, GENERATORS)]
        kept: list[list[bytes]] = []
        passes = []
        with self.asking():
            for seed in [1] * SAME_SEED + list(range(2, 2 + OTHER_SEEDS)):
                with isolated_globals(seed):
                    passes.append((states(), self.classifier(self.images, self.noise), states()))
                kept.append([_state(generator) for _, generator in own])
        before, answers, after = zip(*passes, strict=True)
        for (path, _), one, other in zip(own, kept[0], kept[1], strict=True):
            if one != other:
                raise self.refused(
                    f"is not repeatable: it draws from a generator of its own, {_shown(path)}, "
                    "whose state no seed sets; let it draw from torch's generator, or offer sample_noise"
                )
        if not all(near(again, answers[0], ROUNDING) for again in answers[:SAME_SEED]):
            seed_and = "seed and noise" if self.noise else "seed"
            raise self.refused(
                f"is not repeatable: it answers the same images differently under one and the same {seed_and}"
            )
        # A generator that ends in the same state under every seed was seeded by the model.
        moved = [name for name, state in after[0].items() if before[0][name] != state != after[-1][name]]
        drawn = [f"{GENERATORS_OF[name]} generator" for name in moved]
        if not drawn and all(near(answer, answers[0], ROUNDING) for answer in answers):
            return tuple(self.noise)
        if self.noise.keys() - {SMOOTHING}:
            elsewhere = ", ".join(drawn) or "elsewhere"
            raise self.refused(f"has a sample_noise, but draws from {elsewhere} too; sample_noise must give all noise")
        self.classifier = self.classifier.around(GloballyRandom(self.classifier.network))
        self.noise = self.sampled()
        return tuple(drawn) or ("a global generator",)

    def check_independence(self) -> None:
        """Check that neither the rest of the batch nor earlier passes change an answer."""
        network = self.classifier.network
        held = _tensors(network)
        with self.asking():
            dim, others = self.images[:1] / 2, self.images[1:]
            answers = [self.ask(torch.cat([dim, rest]))[:1] for rest in (others, others / 4, 1 - others)]
            changed = [path for path, (value, version, copied) in held.items() if _altered(value, version, copied)]
            alone = self.ask_alone(dim)
        if changed:
            raise self.refused(f"changes by a pass: {', '.join(changed[:3])} is written to ({_blamed(network)})")
        # Global random numbers for a batch are not those for one image; and a glimpsing network enlarges rounding,
        # which depends on the size of the batch.
        comparable = not isinstance(network, GloballyRandom) and not self.classifier.glimpsing
        for how, found in (("among others", answers), ("alone", [alone] if comparable else [])):
            if not all(near(answer, answers[0], BATCH) for answer in found):
                raise self.refused(
                    f"answers an image differently {how}: it depends on the rest of the batch ({_blamed(network)})"
                )
        if not all(near(answer, answers[0], ROUNDING) for answer in answers):
            self.notes.append(f"{self.name}'s answer to an image depends a little on the rest of the batch")

    def check_gradient(self) -> str:
        """Why it gives no gradient, "" where it does; a gradient of zero on all images is noted."""
        try:
            _, slopes = self.slopes("margin", "cross-entropy")
        except Exception as error:  # whatever its backward pass raises
            return in_one_line(error)
        if any(slope is None for slope in slopes):
            return "its answers are cut off from the image"
        by_margin, by_cross_entropy = slopes
        if not by_margin.any():
            self.notes.append(
                f"the gradient of {self.name} is zero on every image tried: attacks by gradient are blind"
            )
        elif not by_cross_entropy.any():
            self.notes.append(
                f"the gradient of {self.name}'s cross-entropy is zero on every image tried (saturated logits): attacks "
                "by it are blind, those on the margin are not"
            )
        return ""

    def slopes(self, *losses: Loss) -> tuple[Tensor, list[Any]]:
        """Its answer, and the gradient of each loss of it with respect to the images, None where there is none."""
        images = self.images.clone().requires_grad_(bool(losses))
        logits = self.ask(images)
        labels = logits.detach().argmax(1)
        if not logits.requires_grad:
            return logits, [None for _ in losses]
        sums = [objective(loss, logits[None], labels)[0].sum() for loss in losses]
        slopes = [torch.autograd.grad(loss, images, retain_graph=True, allow_unused=True)[0] for loss in sums]
        return logits.detach(), slopes

    def choose_layout(self, gradient: bool) -> None:
        """Use the channels-last layout, which is faster, where the network works and answers the same."""
        if isinstance(self.classifier.network, AsItIs) or self.images.device.type != "cpu":
            return
        losses: list[Loss] = ["margin"] if gradient else []
        plain, slopes = self.slopes(*losses)
        kept = channels_last(self.classifier)
        try:
            found, turned = self.slopes(*losses)
        except Exception:  # .view, for one, needs memory in its usual order
            plain_layout(kept)
            return
        # A glimpsing network enlarges rounding beyond any bound: it only has to work.
        pairs = [(one.double(), other.double()) for one, other in zip(turned, slopes, strict=True)]
        agrees = all(bool((one - other).norm() <= LAYOUT_GRADIENT * other.norm()) for one, other in pairs)
        if not (self.classifier.glimpsing or (agrees and near(found, plain, LAYOUT))):
            plain_layout(kept)

    def fingerprint(self) -> str:
        """A hash of its answers to fixed images, robust to rounding: the classes, and the largest logits in steps.

        Of a stochastic network only the classes that are clear: some networks enlarge small differences.
        """
        fixed = torch.rand(IMAGES, *self.images.shape[1:], generator=torch.Generator().manual_seed(0))
        fixed = (fixed * torch.linspace(0.2, 1, len(fixed))[:, None, None, None]).to(self.images)
        noise = self.classifier.sample_noise(Addresses.of(0, range(len(fixed)), "clean"))
        with self.asking():
            logits = self.ask(fixed, noise=on_device(noise, fixed.device))
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
    except ValueError:  # compiled code has no signature
        pass


def near(found: Tensor, wanted: Tensor, share: float) -> bool:
    """Whether logits agree, up to a share of the largest finite one; infinity and NaN agree with themselves."""
    if found.shape != wanted.shape:
        return False
    scale = float(torch.where(wanted.isfinite(), wanted, 0).abs().max())
    alike = (found == wanted) | ((found != found) & (wanted != wanted))
    return bool((alike | ((found - wanted).abs() <= share * scale)).all())


def _own_precision(network: nn.Module) -> torch.dtype | None:
    """The one precision of a network's weights, where it is not float32."""
    weights = [value for _, value, _ in parts(network, numbers=False) if isinstance(value, nn.Parameter)]
    found = {weight.dtype for weight in weights if weight.is_floating_point()}
    return found.pop() if len(found) == 1 and torch.float32 not in found else None


def _state(generator: Any) -> bytes:
    if isinstance(generator, torch.Generator):
        return generator.get_state().numpy().tobytes()
    return pickle.dumps(generator.__reduce__())


def _tensors(network: nn.Module) -> dict[str, tuple[Tensor, int, Tensor | None]]:
    """The parameters and buffers of all modules within reach, with their versions; buffers also with a copy."""
    found: dict[str, tuple[Tensor, int, Tensor | None]] = {}
    for path, module, _ in parts(network, numbers=False):
        if not isinstance(module, nn.Module):
            continue
        scripted = isinstance(module, torch.jit.ScriptModule)  # `parts` does not look into one
        for name, buffer in module.named_buffers(recurse=scripted):
            found[f"{_shown(path)}.{name}".lstrip(".")] = buffer, buffer._version, buffer.clone()
        for name, parameter in () if scripted else module.named_parameters(recurse=False):
            found[f"{_shown(path)}.{name}".lstrip(".")] = parameter, parameter._version, None
    return found


def _altered(value: Tensor, version: int, copied: Tensor | None) -> bool:
    return value._version != version if copied is None else not _alike(value, copied)


def _alike(value: Tensor, copied: Tensor) -> bool:
    return value.shape == copied.shape and bool(((value == copied) | (value != value)).all())


def _blamed(network: nn.Module) -> str:
    """The layer that makes images of a batch depend on each other, where it can be found."""
    for path, layer, _ in parts(network, numbers=False):
        if not isinstance(layer, nn.modules.batchnorm._NormBase):
            continue
        by_batch = layer.training or not layer.track_running_stats or layer.running_mean is None
        if by_batch and not isinstance(layer, nn.modules.instancenorm._InstanceNorm):
            registered = any(layer is module for module in network.modules())
            why = "is in training mode" if layer.training else "takes the statistics of the batch"
            why += "" if registered or not layer.training else ", where eval() does not reach it: use a ModuleList"
            return f"{type(layer).__name__} at {_shown(path)} {why}"
    return "no such layer was found: look for a mean, a maximum or a softmax over dimension 0"


def _shown(path: str) -> str:
    """A path as its author would write it."""
    return path.removeprefix(".thing").removeprefix(".network").lstrip(".") or "its root"
