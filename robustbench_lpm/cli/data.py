"""lpmbench data: make the datasets that are made from others."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from robustbench_lpm.cli import options
from robustbench_lpm.cli.console import counting_bar, quoted_path, say, shown_path
from robustbench_lpm.errors import LpmbenchError

SHOWN = 60  # images of a contact sheet


@click.group()
def data() -> None:
    """Make the datasets that are made from others, seeded and documented.

    \b
    lpmbench data sim2mnist --data DIR-OF-MNIST --out DIR
    lpmbench train ramlpm-sim2mnist-fast --data DIR
    """


@data.command()
@options.path("--data", "The directory that holds MNIST's four files.")
@options.path("--out", "Where sim2mnist.npz goes; by default sim2mnist/ in $LPMBENCH_DATA or ~/.cache/lpmbench/data, "
              "where --dataset sim2mnist finds it.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--force", is_flag=True, help="Write over a sim2mnist.npz that was made otherwise.")
def sim2mnist(data: Path | None, out: Path | None, seed: int, force: bool) -> None:
    """SIM2MNIST, regenerated: MNIST's digits turned, scaled 1 to 2.4, moved and cluttered, on 96 x 96 pixels.

    Writes sim2mnist.npz (10,000 / 5,000 / 50,000 images for training, validation and test, under the names of the
    original file; 60 MB), sim2mnist.png (a contact sheet) and sim2mnist.json (the recipe and the hashes of all
    arrays). It takes about a minute. The original generator and its clutter were never published: this recipe is ours.
    """
    from robustbench_lpm.datasets.mnist import read_all_digits
    from robustbench_lpm.datasets.sim2mnist import FILE, Recipe, hashes, packed, regenerate
    from robustbench_lpm.datasets.splits import data_root
    from robustbench_lpm.records.runs import write_atomically
    from robustbench_lpm.reporting.pictures import contact_sheet

    recipe, directory = Recipe(seed=seed), out if out is not None else data_root(None) / "sim2mnist"
    path, provenance = directory / FILE, directory / "sim2mnist.json"
    if path.exists() and not force:
        if _recipe_of(provenance) == asdict(recipe):
            say(f"{shown_path(path)} is there already, of the same recipe.")
            return
        raise LpmbenchError(f"{path} exists and was made otherwise; --force overwrites it, --out chooses another.")
    digits, labels = read_all_digits(data)
    directory.mkdir(parents=True, exist_ok=True)
    options.prepare_machine("cpu", threads=1)  # many small steps: a second thread makes each slower
    with counting_bar("drawing", sum(recipe.sizes.values()), "images") as move:
        arrays = regenerate(recipe, digits, labels, lambda done: move(completed=done))
    provenance.unlink(missing_ok=True)  # it must never describe a file that is not there
    write_atomically(path, packed(arrays))
    sheet = contact_sheet(arrays["x_train"][:SHOWN], arrays["y_train"][:SHOWN].argmax(1))
    write_atomically(directory / "sim2mnist.png", sheet)
    command = f"lpmbench data sim2mnist --seed {seed}"
    content = {"recipe": asdict(recipe), "command": command, "sha256": hashes(arrays)}
    write_atomically(provenance, (json.dumps(content, indent=1) + "\n").encode())
    say(f"Written to {shown_path(directory)}: {FILE}, sim2mnist.png, sim2mnist.json")
    say(f"Use it: lpmbench train ramlpm-sim2mnist-fast --data {quoted_path(directory)}")


def _recipe_of(path: Path) -> object:
    """The recipe in a sim2mnist.json; None where there is none."""
    try:
        return json.loads(path.read_text())["recipe"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
