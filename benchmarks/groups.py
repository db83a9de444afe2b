"""What is compared: each group makes tables from rows. Needs no torch; the workers do the work."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.driver import Bench, Contestant, Row, fastest_peer_in_our_memory, interleave
from benchmarks.tables import Table

DIGITS_EPS, PHOTO_EPS = 0.1, 2 / 255
# Images that we let pass at once (`evaluation.planning.default_chunk`).
DIGITS_AT_ONCE, PHOTOS_AT_ONCE = 64, 8
PGD_PEERS = ("torchattacks", "adv_lib", "cleverhans", "advertorch", "foolbox", "ART")
SPSA_PEERS = ("cleverhans", "advertorch", "torchattacks")
MIB = 2**20
PEAK = {"peak_mib": "peak, MiB"}  # of the GPU's memory


def pgd(bench: Bench) -> Iterator[Table]:
    """PGD at the same steps: two small networks on digits, one of ImageNet."""
    count = 12 if bench.small else 128
    for model in ("cnn", "cnn-at"):
        yield _pgd(bench, model, "digits", count, DIGITS_EPS, 40, DIGITS_AT_ONCE)
    photos = 1 if bench.small else 4
    yield _pgd(bench, "efficientnet-lite0", _photos(bench), photos, PHOTO_EPS, 10, PHOTOS_AT_ONCE)


def pgd_fragile(bench: Bench) -> Iterator[Table]:
    """PGD on a network that misclassifies every image: what leaving those alone is worth."""
    yield _pgd(bench, "resnet18", "digits", 8 if bench.small else 64, DIGITS_EPS, 40, DIGITS_AT_ONCE)


def _pgd(
    bench: Bench, model: str, dataset: str, count: int, eps: float, steps: int, at_once: int | None = None, *,
    untrained: bool = False,
) -> Table:  # fmt: skip
    """at_once: images in one of our batches on a CPU; None on a GPU, where the allocator is torch's for everybody.
    untrained: random weights, nearly always wrong, so that an early stop would leave nothing to do."""
    subject = _subject(bench, model, dataset, count) | ({"untrained": True} if untrained else {})
    step = 2.5 * eps / steps
    peers = _peers(PGD_PEERS, "pgd", subject, {"eps": eps, "steps": steps, "step_size": step})
    every: dict[str, Any] = {"steps": steps, "step_size": step, "early_stop": False}
    own = [
        *([] if untrained else _own("pgd", subject, eps, every | {"early_stop": True})),
        *_with_graphs(bench, _own("pgd", subject, eps, every, suffix=", no early stop")),
    ]
    alone = Contestant("the passes of that alone", "ours", "floor", "passes", subject | {"steps": steps})
    batch = at_once if at_once is not None and count > at_once else None

    def late(seen: list[Row]) -> list[Contestant]:
        return [] if at_once is None else fastest_peer_in_our_memory(seen, batch=batch)

    rows = interleave(bench, [*peers, *own, alone], late)
    title = f"PGD-{steps}, {model}, {count} images of {dataset}, eps {_eps(eps)}"
    table = Table(title, "images", rows, columns=PEAK if at_once is None else {})
    if untrained:
        table.notes.append("random weights: only its speed means anything")
    named = {row.contestant.name: row for row in rows}
    over = _overhead(named["ours, float32, no early stop"], named[alone.name])
    if over is not None:
        table.numbers["overhead"] = over
        table.notes.append(
            f"ours, float32, no early stop: {over:+.1%} over its passes forward and back alone (target: below 5 %; the "
            "median over rounds)"
        )
    return table


def spsa(bench: Bench) -> Iterator[Table]:
    """SPSA at the same forward evaluations: speed, strength, and what bfloat16 does to the estimate."""
    # 128 pairs are the peers' own defaults: as they come, they query so many versions of an image at once. A run takes
    # one to four seconds on two cores; a photo is dearer, so its small version has fewer.
    count, iterations = (8, 1) if bench.small else (16, 4)
    yield _spsa(bench, "cnn", "digits", count, DIGITS_EPS, iterations, 128, DIGITS_AT_ONCE // count)
    pairs = 16 if bench.small else 128
    yield _spsa(bench, "efficientnet-lite0", _photos(bench), 1, PHOTO_EPS, 1, pairs, PHOTOS_AT_ONCE)
    yield _strength(bench)
    yield _agreement(bench)


def _spsa(
    bench: Bench, model: str, dataset: str, count: int, eps: float, iterations: int, pairs: int,
    at_once: int | None = None,
) -> Table:  # fmt: skip
    """at_once: versions of an image in one of our batches on a CPU; None on a GPU."""
    subject = _subject(bench, model, dataset, count)
    budget = {"eps": eps, "steps": iterations, "pairs": pairs}
    peers = _peers(SPSA_PEERS, "spsa", subject, budget)
    own = _own("spsa", subject, eps, {"iterations": iterations, "pairs": pairs, "early_stop": False})
    title = f"SPSA, {model}, {count} image{'s' * (count > 1)} of {dataset}, {iterations} x {pairs} pairs"
    if at_once is None:
        each = {"each": 2 * iterations * pairs}
        alone = Contestant("the queries of that alone", "ours", "floor", "queries", subject | each)
        return Table(title, "evaluations", interleave(bench, [*peers, *own, alone]), columns=PEAK)
    # Its best setting: as many queries at once as we make.
    small_batches = Contestant(
        f"torchattacks, max_batch_size={at_once}", "system", "tuned peer", "peer",
        subject | {"attack": "spsa", "peer": "torchattacks", "budget": budget | {"at_once": at_once}},
    )  # fmt: skip

    def late(seen: list[Row]) -> list[Contestant]:
        best = small_batches
        return [
            *fastest_peer_in_our_memory(seen),
            Contestant(f"{best.name}, with our memory", "ours", "peer in our memory", best.job, best.parameters),
        ]

    return Table(title, "evaluations", interleave(bench, [*peers, small_batches, *own], late))


def _strength(bench: Bench) -> Table:
    """How much accuracy each leaves at the same iterations and pairs; its seconds are those of one run."""
    # resnet18 falls most easily of the networks for the digits: within this budget the others hardly do.
    count, iterations, pairs = (16, 20, 16) if bench.small else (64, 20, 32)
    subject = _subject(bench, "resnet18", "digits", count) | {"long": True}
    peers = _peers(SPSA_PEERS, "spsa", subject, {"eps": DIGITS_EPS, "steps": iterations, "pairs": pairs})
    settings = {"iterations": iterations, "pairs": pairs, "early_stop": False}
    rows = interleave(bench, [*peers, *_own("spsa", subject, DIGITS_EPS, settings)], rounds=1)
    title = f"SPSA's strength, resnet18, {count} images of digits, eps {_eps(DIGITS_EPS)}, {iterations} x {pairs} pairs"
    return Table(title, "evaluations", rows, notes=["one run each: it is about accuracy"])


def _agreement(bench: Bench) -> Table:
    """Cosines between the estimates in bfloat16 and in float32 along the same directions."""
    contestants = [
        Contestant(
            f"{model}, {count} image{'s' * (count > 1)}, {pairs} pairs", "ours", "ours", "agreement",
            _subject(bench, model, dataset, count) | {"pairs": pairs},
        )
        for model, dataset, count, pairs in (
            ("cnn", "digits", 16, 128), ("efficientnet-lite0", _photos(bench), 1, 64 if bench.small else 256),
        )
    ]  # fmt: skip
    return Table(
        "Cosine between SPSA's estimates in bfloat16 and in float32, same directions",
        None,
        interleave(bench, contestants, rounds=1),
        columns={"mean_cosine": "mean", "lowest_cosine": "lowest"},
        timed=False,
    )


def autoattack(bench: Bench) -> Iterator[Table]:
    """AutoAttack's standard set; the small version takes a twentieth of its steps and queries."""
    count, steps, queries = (16, 5, 250) if bench.small else (64, 100, 5000)
    subject = _subject(bench, "cnn-at", "digits", count) | {"long": True}
    peers = _peers(("pyautoattack",), "autoattack", subject, {"eps": DIGITS_EPS, "steps": steps, "queries": queries})
    own = _own("autoattack", subject, DIGITS_EPS, {"steps": steps, "queries": queries})
    title = f"AutoAttack (standard), cnn-at, {count} images of digits, eps {_eps(DIGITS_EPS)}"
    yield Table(f"{title}, {steps} steps, {queries} queries", "images", interleave(bench, [*peers, *own]))


def ramlpm(bench: Bench) -> Iterator[Table]:
    """RAM-LPM against the loop that it is written down as, and at growing images."""
    for model, size, runs, batch in (("ramlpm-sim2mnist", 96, 10, 8), ("ramlpm-imagenet", 224, 1, 4)):
        batch = batch // 2 if bench.small else batch
        for backward in (False, True):
            what = "forward and backward" if backward else "forward"
            setting = {"model": model, "size": size, "batch": batch, "runs": runs, "backward": backward}
            rows = interleave(bench, [c for precision in ("float32", "bfloat16") for c in _pair(precision, setting)])
            title = f"{model}, {what}, {size} px, M = {runs}, batch {batch}"
            yield Table(title, "images", rows, images=batch)
    for runs in (1, 10):
        yield _flatness(bench, runs)


def _pair(precision: str, setting: dict[str, Any]) -> list[Contestant]:
    how = " (autocast)" if precision == "bfloat16" else ""
    reference = Contestant(
        f"reference loop, {precision}{how}", "system", "peer", "glimpsing",
        setting | {"formulation": "reference", "precision": precision}, against=f"reference loop, {precision}{how}",
    )  # fmt: skip
    return [
        reference,
        Contestant(
            f"ours, {precision}", "ours", "ours", "glimpsing",
            setting | {"formulation": "ours", "precision": precision}, against=reference.name,
        ),
    ]  # fmt: skip


def _flatness(bench: Bench, runs: int) -> Table:
    batch = 8
    contestants = [
        Contestant(
            f"{size} px", "ours", "ours", "glimpsing",
            {
                "model": "ramlpm-sim2mnist", "size": size, "batch": batch, "runs": runs, "backward": False,
                "formulation": "ours", "precision": "float32",
            },
            against="96 px",
        )
        for size in (96, 224, 512, 1024)
    ]  # fmt: skip
    title = f"ramlpm-sim2mnist, forward at growing images, M = {runs}, batch {batch}"
    return Table(title, "images", interleave(bench, contestants), images=batch, ratio="time")


# Model, attack, images (small, full), parameters, options.
OUTCOMES: tuple[tuple[str, str, tuple[int, int], dict[str, Any], dict[str, Any]], ...] = (
    ("cnn", "pgd", (20, 300), {"steps": 40}, {}),
    ("cnn-at", "pgd", (20, 300), {"steps": 40}, {}),
    ("resnet18", "pgd", (20, 300), {"steps": 10}, {}),
    ("cnn", "apgd-margin", (20, 300), {"steps": 40}, {}),
    ("resnet18", "spsa", (16, 64), {"iterations": 20, "pairs": 32}, {}),
    ("ramlpm", "pgd", (16, 128), {"steps": 10, "eot": 5}, {"gradient_mode": "detached"}),
    ("ram", "pgd", (16, 128), {"steps": 10, "eot": 5}, {"gradient_mode": "detached"}),
)


def precision(bench: Bench) -> Iterator[Table]:
    """Whether bfloat16 fells the same images as float32."""
    contestants = [
        Contestant(
            f"{model}, {attack}, {counts[not bench.small]} images", "ours", "ours", "outcomes",
            {"model": model, "attack": attack, "count": counts[not bench.small], "eps": DIGITS_EPS,
             "parameters": parameters} | options,
        )
        for model, attack, counts, parameters, options in OUTCOMES
    ]  # fmt: skip
    columns = {
        "float32": "accuracy, float32", "bfloat16": "bfloat16", "differ": "images that differ",
        "seed": "float32, seed 1", "seed_differ": "images that differ by the seed",
    }  # fmt: skip
    notes = ["of a stochastic model an image differs by the share of its draws"]
    rows = interleave(bench, contestants, rounds=1)
    yield Table(f"Outcomes in both precisions, digits, eps {_eps(DIGITS_EPS)}", None, rows, notes=notes,
                columns=columns, timed=False)  # fmt: skip


def memory(bench: Bench) -> Iterator[Table]:
    """What one SPSA iteration on a photo adds to a fresh process at most."""
    if bench.device != "cpu":
        yield Table("Memory of SPSA", None, [], notes=["skipped: it is about the memory of a process on a CPU"])
        return
    subject = _subject(bench, "efficientnet-lite0", _photos(bench), 1)
    contestants = [
        Contestant(
            f"ours, {pairs} pairs", "ours", "ours", "ours",
            subject | {
                "attack": "spsa", "eps": PHOTO_EPS, "precision": "float32",
                "parameters": {"iterations": 1, "pairs": pairs, "early_stop": False},
            },
        )
        for pairs in (64, 512, *([] if bench.small else [8192]))
    ]  # fmt: skip
    for pairs in (64, 128):
        (peer,) = _peers(("torchattacks",), "spsa", subject, {"eps": PHOTO_EPS, "steps": 1, "pairs": pairs})
        contestants.append(Contestant(f"torchattacks, {pairs} pairs", "system", "peer", "peer", peer.parameters))
    rows = []
    for contestant in contestants:
        answer = bench.ask_fresh(contestant, memory=True)
        row = Row(contestant, skipped=answer.get("skipped"))
        if row.skipped is None:
            row.seconds, row.facts = [answer["seconds"]], answer["facts"]
            row.facts["peak_mib"] = row.facts["peak_bytes"] / MIB
        rows.append(row)
        bench.tell(contestant.name)
    title = "Memory that one SPSA iteration adds at most, efficientnet-lite0, 224 px, one image"
    notes = ["one fresh process each"]
    yield Table(title, None, rows, notes=notes, columns={"peak_mib": "peak, MiB"}, timed=False)


def startup(bench: Bench) -> Iterator[Table]:
    """How long a command takes to answer."""
    script = Path(sys.executable).with_name("lpmbench")
    lpmbench = [str(script)] if script.is_file() else [sys.executable, "-m", "robustbench_lpm"]
    commands = {
        "lpmbench --help": [*lpmbench, "--help"],
        "lpmbench models": [*lpmbench, "models"],
        "python alone": [sys.executable, "-c", "pass"],
    }
    rows = {name: Row(Contestant(name, "", "floor" if name == "python alone" else "ours", "", {})) for name in commands}
    for number in range(bench.rounds + 1):  # the first is the warm-up
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            if number:
                rows[name].seconds.append(time.perf_counter() - start)
    yield Table("Start-up", None, list(rows.values()))


def gpu_digits(bench: Bench) -> Iterator[Table]:
    """Attacks on many small images on a GPU, each beside its passes alone."""
    digits, drawn = (8, 4) if bench.small else (500, 100)
    tables: list[Callable[[], Table]] = [
        lambda: _pgd(bench, "cnn", "digits", digits, DIGITS_EPS, 20),
        lambda: _pgd(bench, "resnet18", "digits", digits, DIGITS_EPS, 20),
        lambda: _eot_pgd(bench, "ramlpm", drawn, 10, 5),
        lambda: _spsa(bench, "cnn", "digits", *((4, DIGITS_EPS, 1) if bench.small else (200, DIGITS_EPS, 4)), 128),
    ]
    yield from _in_fresh_workers(bench, tables)


def gpu_photos(bench: Bench) -> Iterator[Table]:
    """PGD on networks of ImageNet on a GPU, beside its passes alone."""
    photos = 1 if bench.small else 128
    yield from _in_fresh_workers(
        bench,
        [
            partial(_pgd, bench, model, "noise", photos, PHOTO_EPS, 10, untrained=True)
            for model in ("resnet50-imagenet", "vit-b-16-imagenet")
        ],
    )


def gpu_training(bench: Bench) -> Iterator[Table]:
    """Training steps on a GPU, each beside its passes alone."""
    settings = (("ramlpm-imagenet", 512, 64), ("ramlpm-imagenet", 512, 256), ("resnet18-cifar10", 32, 256))
    yield from _in_fresh_workers(
        bench, [partial(_training, bench, model, side, 2 if bench.small else batch) for model, side, batch in settings]
    )


def _in_fresh_workers(bench: Bench, tables: Iterable[Callable[[], Table]]) -> Iterator[Table]:
    for table in tables:
        yield table()
        bench.close()  # the next one finds the GPU's memory empty


def _eot_pgd(bench: Bench, model: str, count: int, steps: int, draws: int) -> Table:
    """PGD on a stochastic model, its gradient averaged over draws of noise and detached from the fixations."""
    subject = _subject(bench, model, "digits", count)
    step = 2.5 * DIGITS_EPS / steps
    budget = {"eps": DIGITS_EPS, "steps": steps, "step_size": step, "draws": draws}
    parameters = {"steps": steps, "step_size": step, "eot": draws, "early_stop": False}
    glimpsing = subject | {"gradient_mode": "detached"}
    alone = Contestant(
        "the passes of that alone", "ours", "floor", "passes", glimpsing | {"steps": steps, "draws": draws}
    )
    rows = interleave(
        bench,
        [
            *_peers(("torchattacks",), "eot-pgd", subject, budget),
            *_with_graphs(bench, _own("pgd", glimpsing, DIGITS_EPS, parameters)),
            alone,
        ],
    )
    title = f"PGD-{steps} x {draws} draws, {model}, {count} images of digits, eps {_eps(DIGITS_EPS)}"
    return Table(title, "images", rows, notes=["accuracy left: on one draw"], columns=PEAK)


def _training(bench: Bench, model: str, side: int, batch: int) -> Table:
    """Steps of the model's own recipe, data in memory: with augmentation, noise, optimiser and transfers."""
    steps = 1 if bench.small else 10
    setting: dict[str, Any] = {"model": model, "side": side, "batch": batch, "steps": steps}
    contestants = []
    for name, precision in (("float32", "32-true"), ("bfloat16", "bf16-mixed")):
        given = setting | {"precision": precision}
        alone = Contestant(f"the passes of that alone, {name}", "ours", "floor", "training", given | {"bare": True})
        ours = Contestant(f"ours, {name}", "ours", "ours", "training", given, against=alone.name)
        contestants += [ours, alone]
    title = f"Training, {model}, {side} px, {steps} step{'s' * (steps > 1)} of {batch} images"
    return Table(title, "images", interleave(bench, contestants), images=batch * steps, columns=PEAK)


GROUPS: dict[str, Callable[[Bench], Iterator[Table]]] = {
    "pgd": pgd,
    "pgd-fragile": pgd_fragile,
    "spsa": spsa,
    "autoattack": autoattack,
    "ramlpm": ramlpm,
    "precision": precision,
    "memory": memory,
    "startup": startup,
    "gpu-digits": gpu_digits,
    "gpu-photos": gpu_photos,
    "gpu-training": gpu_training,
}


def groups_for(device: str) -> list[str]:
    """The groups that are measured where none is named."""
    return [name for name in GROUPS if name.startswith("gpu") == device.startswith("cuda")]


def _photos(bench: Bench) -> str:
    return "imagenet" if bench.imagenet else "panda"


def _subject(bench: Bench, model: str, dataset: str, count: int) -> dict[str, Any]:
    folder = {"folder": bench.imagenet} if dataset == "imagenet" else {}
    return {"model": model, "dataset": dataset, "count": count} | folder


def _peers(names: tuple[str, ...], attack: str, subject: dict[str, Any], budget: dict[str, Any]) -> list[Contestant]:
    return [
        Contestant(name, "system", "peer", "peer", subject | {"attack": attack, "peer": name, "budget": budget})
        for name in names
    ]


def _own(
    attack: str, subject: dict[str, Any], eps: float, parameters: dict[str, Any], suffix: str = ""
) -> list[Contestant]:
    return [
        Contestant(
            f"ours, {precision}{suffix}", "ours", "ours", "ours",
            subject | {"attack": attack, "eps": eps, "precision": precision, "parameters": parameters},
        )
        for precision in ("float32", "bfloat16")
    ]  # fmt: skip


def _with_graphs(bench: Bench, own: list[Contestant]) -> list[Contestant]:
    """Contestants of ours and, on a GPU, the first of them with CUDA graphs, which count no evaluations."""
    if not bench.device.startswith("cuda"):
        return own
    first = own[0]
    graphs = replace(first, name=f"{first.name}, CUDA graphs", parameters=first.parameters | {"graphs": True})
    return [first, graphs, *own[1:]]


def _overhead(ours: Row, floor: Row) -> float | None:
    """The median over rounds: what disturbs a round disturbs both."""
    if not ours.seconds or not floor.seconds:
        return None
    return median(a / b for a, b in zip(ours.seconds, floor.seconds, strict=True)) - 1


def _eps(eps: float) -> str:
    return f"{eps * 255:g}/255" if eps == PHOTO_EPS else f"{eps:g}"
