"""Measure ourselves beside others: `python -m benchmarks [NAME ...]` prints tables and writes JSON."""

from __future__ import annotations

import importlib.metadata
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.status import Status

from benchmarks.driver import Bench, closing
from benchmarks.groups import GROUPS, groups_for
from benchmarks.peers import PACKAGES, missing
from benchmarks.tables import to_rich
from robustbench_lpm.cli.options import prepare_machine
from robustbench_lpm.errors import LpmbenchError

console = Console(highlight=False, markup=False)
if not console.is_terminal:
    console.width = 140
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", metavar="[NAME ...]", nargs=-1, type=click.Choice(list(GROUPS)))
@click.option("--small", is_flag=True, help="Fewer images: all groups in under ten minutes on two cores.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Runs of each contestant.")
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--imagenet", type=FOLDER, help="Photos as the dataset imagenet has them; without, views of the panda.")
@click.option("--out", type=FILE, default=Path("runs/benchmarks.json"), show_default=True)
@click.option("--device", default="cpu", show_default=True, help="With cuda the default is the groups gpu-*.")
def main(
    names: tuple[str, ...], small: bool, rounds: int, threads: int, imagenet: Path | None, out: Path, device: str
) -> None:
    """Measure the groups NAME (by default all that are made for the device) side by side with other libraries. They
    are described in benchmarks/README.md."""
    settings = {"small": small, "rounds": rounds, "threads": threads, "device": device}
    result: dict[str, Any] = settings | {"photos": "imagenet" if imagenet else "panda", "versions": versions()}
    result |= {"hardware": hardware(device), "groups": {}}
    folder = str(imagenet.resolve()) if imagenet else None
    bench = Bench(small, rounds, threads, device, folder, tell=lambda _: None)
    try:  # before the minutes of measuring, not after
        prepare_machine(device, None)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.touch()
    except OSError as error:
        raise click.ClickException(f"{out} cannot be written: {error.strerror}") from None
    except LpmbenchError as error:
        raise click.ClickException(str(error)) from None
    for name, command in missing().items():
        console.print(f"{name} cannot be imported and is left out: {command}")
    for name in dict.fromkeys(names or groups_for(device)):
        start, tables = time.perf_counter(), []
        with console.status(name) as status, closing(bench):
            bench.tell = _teller(status, name)
            for table in GROUPS[name](bench):
                tables.append(table.to_json())
                console.print(to_rich(tables[-1]), "")
                result["groups"][name] = {"seconds": time.perf_counter() - start, "tables": tables}
                text = json.dumps(result, indent=1)
                # Where the photos lie is nobody's business.
                out.write_text(text.replace(json.dumps(folder), '"DIR"') if folder else text)
        console.print(f"{name} took {time.perf_counter() - start:.0f} s\n")
    console.print(f"Everything, every single timing included: {out}")


def _teller(status: Status, name: str) -> Callable[[str], None]:
    return lambda news: status.update(f"{name}: {news}")


def versions() -> dict[str, str]:
    """What was compared, and on what."""
    from robustbench_lpm.versions import versions as found

    known = found()
    for package in PACKAGES.values():
        try:
            known[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            known[package] = "not installed"
    return known


def hardware(device: str) -> dict[str, Any]:
    """The machine."""
    from robustbench_lpm.execution.machine import hardware as found

    return found(device)


if __name__ == "__main__":
    main()
