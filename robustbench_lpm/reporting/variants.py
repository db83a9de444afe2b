"""What tells apart the models and the attacks of one name: checkpoints, settings, who controlled the noise."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence, Set
from typing import Any

from robustbench_lpm.hashing import sha256_of_value
from robustbench_lpm.records.runs import RunRecord
from robustbench_lpm.reporting.escaping import plain

# What decides which images a run attacks, beside the name and the size of the data set.
IMAGE_KEYS = ("split", "data_sha256", "indices", "channels", "crop", "parameters")
# Records and checkpoints that an attack drew on: they differ from model to model, though the attack is the same.
DRAWN_ON = ("members", "surrogates")
STRONGEST = "strongest"  # of all gradient modes, for each image: the default
FROZEN = "frozen"
ALWAYS = "precision"  # is said wherever it is not the default
LONGEST = 80  # characters of settings that are still spelled out

Key = Callable[[RunRecord], tuple[Any, ...]]  # what the runs have in common among which attacks are told apart


def image_set(record: RunRecord) -> str:
    """A short name for the images that a run attacked: equal names, equal images."""
    dataset = record.configuration["dataset"]
    return sha256_of_value([dataset["name"], dataset["size"], *(dataset.get(key) for key in IMAGE_KEYS)])[:8]


def noise_modes(record: RunRecord) -> list[tuple[str, str]]:
    """The (source, mode) pairs of the noise that was not left to the default."""
    return sorted((str(source), str(mode)) for source, mode in record.configuration["evaluation"].get("noise") or [])


def noise_text(modes: Sequence[tuple[str, str]]) -> str:
    """Modes of noise in words, such as "first_fixation, policy frozen"."""
    sources: dict[str, list[str]] = defaultdict(list)
    for source, mode in modes:
        sources[mode].append(source)
    return plain("; ".join(f"{', '.join(found)} {mode}" for mode, found in sorted(sources.items())))


def of_models(records: Sequence[RunRecord]) -> list[str]:
    """For each record, what tells its model from others of that name.

    Two checkpoints are two models, and so is a model with a part of its noise switched off.
    """
    found = []
    for record, checkpoint in zip(records, _checkpoints(records), strict=True):
        frozen = noise_text([pair for pair in noise_modes(record) if pair[1] == FROZEN])
        found.append(", ".join(part for part in (checkpoint, frozen) if part))
    return found


def _checkpoints(records: Sequence[RunRecord]) -> list[str]:
    models = [record.configuration["model"] for record in records]
    identities: dict[str, set[str]] = defaultdict(set)
    weights: dict[str, set[str]] = defaultdict(set)
    for model in models:
        identities[model["name"]].add(sha256_of_value(model))
        weights[model["name"]].add(str(model.get("weights_sha256")))
    found = []
    for model in models:
        name = model["name"]
        if len(identities[name]) == 1:
            found.append("")
        elif len(identities[name]) == len(weights[name]) and model.get("weights_sha256"):
            found.append(f"weights {plain(model['weights_sha256'])[:8]}")
        else:
            found.append(f"model {sha256_of_value(model)[:8]}")
    return found


def of_attacks(records: Sequence[RunRecord], probes: Set[str] = frozenset()) -> list[str]:
    """For each record, what tells its attack from others of that name at the same budget, M and images.

    Probes (by id) are told apart from the ordinary runs, and change no other attack's name.
    """
    return _of_attacks(records, probes, _attack_key)


def of_attacks_at_any_m(records: Sequence[RunRecord]) -> list[str]:
    """The same where runs of every M are told apart by one measure: equal names and variants, equal attacks."""
    return _of_attacks(records, frozenset(), _attack_key_at_any_m)


def contrast(first: RunRecord, second: RunRecord) -> tuple[str, str]:
    """The settings in which the attacks of two runs differ, e.g. ("eot=10", "eot=2"); members' as "pgd: eot=10"."""
    a, b = (_attack_settings(record, by_mode=True) for record in (first, second))
    return _difference(a, [a, b], 3 * LONGEST), _difference(b, [a, b], 3 * LONGEST)


def attack_but_for_settings(record: RunRecord) -> tuple[str, ...]:
    """What two runs of one attack have in common, whatever its settings: name, code, knowledge, target."""
    attack, target = record.configuration["attack"], record.configuration["threat"].get("target")
    return (*(str(attack[key]) for key in ("name", "entry", "knowledge")), "" if target is None else str(target))


def _flat(settings: dict[str, Any], outer: str = "") -> dict[str, Any]:
    """Tables within tables laid out, their keys joined by dots."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= _flat(value, f"{outer}{key}.") if isinstance(value, dict) else {f"{outer}{key}": value}
    return {key.removeprefix("settings."): value for key, value in found.items()}


def _of_attacks(records: Sequence[RunRecord], probes: Set[str], key_of: Key) -> list[str]:
    chosen = _modes_of_one_model([record for record in records if record.id not in probes], key_of)
    every: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    ordinary: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        for settings in (every,) if record.id in probes else (every, ordinary):
            settings[key_of(record)].append(_attack_settings(record, key_of(record) in chosen))
    found = []
    for record in records:
        key = key_of(record)
        mine = _attack_settings(record, key in chosen)
        found.append(_difference(mine, [*ordinary[key], mine] if ordinary[key] else every[key]))
    return found


def _attack_key(record: RunRecord) -> tuple[Any, ...]:
    return *_attack_key_at_any_m(record), record.mc


def _attack_key_at_any_m(record: RunRecord) -> tuple[Any, ...]:
    return record.dataset, record.size, record.norm, record.eps, image_set(record), record.attack


def _modes_of_one_model(records: Sequence[RunRecord], key_of: Key) -> set[tuple[Any, ...]]:
    """The keys of attacks that met some model in more than one gradient mode: only there the mode tells runs apart.

    Elsewhere it does not: a model without modes, and one that was attacked in a single mode, met the same attack.
    """
    modes: dict[tuple[Any, ...], set[str]] = defaultdict(set)
    for record in records:
        modes[*key_of(record), record.model].add(str(record.configuration["evaluation"].get("gradient_mode")))
    return {key[:-1] for key, found in modes.items() if len(found) > 1}


def _attack_settings(record: RunRecord, by_mode: bool) -> dict[str, Any]:
    attack, evaluation = record.configuration["attack"], record.configuration["evaluation"]
    settings = {key: value for key, value in attack.items() if key not in ("name", "parameters", *DRAWN_ON)}
    mode = evaluation.get("gradient_mode")
    control = [pair for pair in noise_modes(record) if pair[1] != FROZEN]  # frozen noise makes another model
    if evaluation.get("precision"):  # absent where it is the default: settings that are named by a hash keep their name
        settings["precision"] = evaluation["precision"]
    return settings | attack["parameters"] | {
        "target": record.configuration["threat"].get("target"),
        "gradient_mode": None if mode == STRONGEST or not by_mode else mode,
        "noise": noise_text(control) or None,
    }  # fmt: skip


def _difference(mine: dict[str, Any], all_of_them: list[dict[str, Any]], longest: int = LONGEST) -> str:
    """The settings in which one attack differs from its namesakes, e.g. "steps=10"; "" for the one without them."""
    own, others = _flat(mine), [_flat(other) for other in all_of_them]
    keys = sorted({key for other in others for key in other})
    # Who reads of a run in reduced precision must know it, though there be no other to tell it from.
    differing = [key for key in keys if key == ALWAYS or any(other.get(key) != own.get(key) for other in others)]
    text = _in_words({key: own[key] for key in differing if own.get(key) is not None})
    return f"settings {sha256_of_value(mine)[:8]}" if len(text) > longest else plain(text)


def _in_words(settings: dict[str, Any]) -> str:
    """Settings, those of members behind their names: "steps=10", "pgd: eot=10, steps=20; gaze: restarts=2"."""
    found: dict[str, list[str]] = defaultdict(list)
    for member, name, key in sorted((*key.rpartition(".")[::2], key) for key in settings):
        found[member].append(_setting(name, settings[key]))
    return "; ".join(f"{member}: {', '.join(texts)}" if member else ", ".join(texts) for member, texts in found.items())


def _setting(key: str, value: Any) -> str:
    if key == "gradient_mode":
        return f"{value} gradients"
    if key == "precision":
        return str(value)
    if key == "made_on":
        return f"made on {value}"
    return f"noise: {value}" if key == "noise" else f"{key}={json.dumps(value)}"
