"""The commands of the README do what they say, from words to files."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from robustbench_lpm.cli import console, run
from robustbench_lpm.cli.options import prepare_machine
from robustbench_lpm.execution.recording import PROGRESS
from robustbench_lpm.options import Options
from robustbench_lpm.records import runs as records
from robustbench_lpm.registry import cards
from tests.architectures.test_golden_vectors import golden_keys, golden_state
from tests.cli import lpmbench
from tests.processes import interrupted

MODEL_COMMANDS = [
    "attack", "train", "glimpses", "sweep", "invariance", "converge", "curve", "certify", "corruptions", "spatial",
    "audit", "grade",
]  # fmt: skip
Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("kind", ["models", "attacks", "datasets", "suites"])
def test_listings(kind: str, capsys: Capture) -> None:
    lpmbench(f"{kind} --json")
    names = [row["name"] for row in json.loads(capsys.readouterr().out)]
    lpmbench(kind)
    table = capsys.readouterr().out
    assert all(name in table for name in names)
    for words in (names[0], f"show {names[0]}"):
        lpmbench(f"{kind} {words}")
        assert f'name = "{names[0]}"' in capsys.readouterr().out
    lpmbench(f"{kind} {names[0]} --json")
    assert json.loads(capsys.readouterr().out)["name"] == names[0]


@pytest.mark.usefixtures("plotted")
def test_attack_report_verify_publish(tmp_path: Path, capsys: Capture) -> None:
    lpmbench(
        "attack --model ramlpm --model cnn --attack pgd --eps 2/255,0.1 --limit 8 --steps 2 --draws 5 --threads 1"
        " --gradient-mode detached"
    )
    found = records.read_all(tmp_path / "runs")
    assert {(r.model, round(r.eps, 4)) for r in found} == {
        ("ramlpm", 0.0078),
        ("ramlpm", 0.1),
        ("cnn", 0.0078),
        ("cnn", 0.1),
    }
    assert {r.predictions.shape for r in found} == {(8, 5), (8, 1)}
    assert "up to" in capsys.readouterr().out

    lpmbench("report")
    table = pd.read_csv(tmp_path / "runs" / "leaderboard.csv")
    assert len(table) == 4
    for record in found:
        (row,) = table[table["record"] == record.id].to_dict("records")
        assert row["robust_accuracy"] == pytest.approx(record.robust_accuracy.value)
    assert {p.name for p in (tmp_path / "runs").glob("leaderboard.*")} == {
        f"leaderboard.{k}" for k in ("csv", "md", "tex", "json", "html")
    }

    for record in found:
        lpmbench(f"verify {record.path}")
    assert "FAILS" not in capsys.readouterr().out
    lpmbench(f"publish --out results runs/{found[0].path.name if found[0].path else ''}")
    (published,) = records.read_all(tmp_path / "results")
    assert published.id == found[0].id
    assert (tmp_path / "results" / "leaderboard.html").is_file()


# Each takes up to two seconds of the processor to import, torch._dynamo by way of torchvision; pandas writes records.
SLOW_IMPORTS = {
    "art", "cleverhans", "jinja2", "lightning_fabric", "matplotlib", "pyautoattack", "ray", "scipy.stats", "seaborn",
    "sklearn", "sympy", "tensorboard", "torch._dynamo", "torch._inductor", "torchvision", "triton",
}  # fmt: skip


@pytest.mark.parametrize("model", ["cnn", "ramlpm"])
def test_an_attack_imports_only_what_it_uses(tmp_path: Path, model: str) -> None:
    words = ["attack", "--model", model, "--attack", "pgd", "--steps", "1", "--limit", "20", "--draws", "1"]
    code = (
        "import json, sys\n"
        "from robustbench_lpm.cli import run\n"
        f"status = run({words!r})\n"
        f"json.dump([status, sorted({SLOW_IMPORTS!r} & set(sys.modules))], sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert json.loads(done.stderr) == [0, []]
    assert len(records.read_all(tmp_path / "runs")) == 1


def test_the_same_command_again_runs_nothing(tmp_path: Path, capsys: Capture) -> None:
    line = "attack --model cnn --attack fgsm --eps 0.1 --limit 5 --threads 1"
    lpmbench(line)
    (path,) = (tmp_path / "runs").rglob("record.json")
    written = path.stat().st_mtime_ns
    capsys.readouterr()
    lpmbench(line)
    assert "already run" in capsys.readouterr().out
    assert path.stat().st_mtime_ns == written
    lpmbench(f"{line} --force")
    assert path.stat().st_mtime_ns != written


def test_models_are_arguments_or_options_each_once(tmp_path: Path) -> None:
    settings = "--attack fgsm --eps 0.1 --limit 2 --threads 1"
    lpmbench(f"attack cnn --model cnn-at cnn {settings} --out both")
    lpmbench(f"attack --model cnn {settings} --out option")
    both, (option,) = records.read_all(tmp_path / "both"), records.read_all(tmp_path / "option")
    assert {record.model for record in both} == {"cnn", "cnn-at"}
    assert option.id in {record.id for record in both}


@pytest.mark.parametrize("name", MODEL_COMMANDS)
def test_every_command_takes_a_model_both_ways(name: str, tmp_path: Path, capsys: Capture) -> None:
    """The same model twice is one model; where only one is taken, two are an error that says so."""
    more = ""
    if name == "grade":  # the images are looked at first
        more = f" --adversarials {tmp_path}"
        np.savez(tmp_path / "adversarials.npz", index=np.arange(1), adversarial=np.zeros((1, 1, 32, 32), np.float32))
    said = []
    for words in ("ramlmp", "--model ramlmp", "ramlmp --model ramlmp"):
        assert run(shlex.split(f"{name} {words}{more}")) == 1
        said.append(capsys.readouterr().err)
    assert len(set(said)) == 1
    assert "ramlmp" in said[0]
    if name in ("train", "sweep", "glimpses", "audit", "curve", "grade"):
        assert run(shlex.split(f"{name} ram --model cnn{more}")) == 2
        assert "takes one MODEL, not 2: ram, cnn" in capsys.readouterr().err


def test_a_dry_run_plans_and_runs_nothing(tmp_path: Path, capsys: Capture) -> None:
    line = "attack cnn ramlpm --attack fgsm,pgd --steps 3 --eot 2 --gradient-mode detached --limit 6 --threads 1"
    lpmbench(f"{line} --dry-run --device cuda:99 --out runs")
    shown = capsys.readouterr().out
    assert "Device 'cuda:99' is not available" in shown
    assert "Planned on the CPU instead" in shown
    assert re.search(r"cnn +pgd +linf 0.1 +6 +18 +18 +12 ", shown)
    assert re.search(r"ramlpm +pgd \(detached\) +linf 0.1 +6 +36 +36 +240 ", shown)
    assert re.search(r"Total to run +4 runs ", shown)
    assert not list(tmp_path.iterdir())
    assert run(shlex.split(f"{line} --dry-run --device toaster")) == 1
    lpmbench("attack cnn --attack fgsm --limit 6 --threads 1 --eps 0.1")
    capsys.readouterr()
    lpmbench("attack cnn --attack fgsm --limit 6 --threads 1 --eps 0.1 --dry-run")
    assert re.search(r"Total to run +0 runs ", capsys.readouterr().out)


def test_a_long_run_says_first_what_makes_it_shorter(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(console, "TOO_LONG", 0.0)  # every run is long
    settings = "--attack pgd,noise --steps 1 --limit 70 --threads 1 --draws 1 --eps 0.1"
    lpmbench(f"attack cnn {settings}")
    (told,) = re.findall(r"Shorter with .*", capsys.readouterr().out)  # once
    assert re.fullmatch(r"Shorter with --limit \(64 takes about \d+ s\), --steps\.", told)
    lpmbench(f"attack ramlpm {settings} --eot 1 --limit 3")
    (told,) = re.findall(r"Shorter with .*", capsys.readouterr().out)
    assert told == "Shorter with --limit, --steps, --eot, --gradient-mode detached, --draws."


def test_the_command_that_comes_next_can_be_pasted(tmp_path: Path, capsys: Capture) -> None:
    lpmbench("attack cnn --attack noise --eps 0.1 --limit 2 --threads 1 --out 'my runs'")
    (following,) = re.findall(r"lpmbench (report --results .*)", capsys.readouterr().out)
    lpmbench(f"{following} --out report --layout attacks --title 'Mine'")
    assert (tmp_path / "report" / "leaderboard.csv").is_file()
    assert r"\caption{Mine}" in (tmp_path / "report" / "table-attacks.tex").read_text()


def test_the_recorded_command_repeats_the_run(tmp_path: Path) -> None:
    lpmbench(
        "attack --model ramlpm --attack pgd --eps 0.07 --limit 4 --steps 2 --draws 3 --mc 2 --seed 5 --target random"
    )
    (record,) = records.read_all(tmp_path / "runs")
    assert record.command.startswith("lpmbench attack ")
    lpmbench(f"{record.command.removeprefix('lpmbench ')} --out again --threads 1")
    (again,) = records.read_all(tmp_path / "again")
    assert again.id == record.id
    for name in (records.RECORD, records.OUTCOMES, records.ADVERSARIALS):
        assert (tmp_path / "again" / again.folder_name / name).read_bytes() == (record.path or tmp_path).joinpath(
            name
        ).read_bytes()


LITE = [f"efficientnet-lite{number}" for number in range(3)]  # of ImageNet's models, those that are installed


def test_the_panda_with_its_picture(tmp_path: Path, capsys: Capture) -> None:
    lpmbench("attack --attack pgd --steps 5 --size 224 --dataset panda --threads 1")
    shown = capsys.readouterr().out
    assert "Skipping ramlpm-imagenet: no weights" in shown
    found = records.read_all(tmp_path / "runs")
    assert sorted(record.model for record in found) == LITE
    for record in found:
        assert record.clean_predictions.tolist() == [[388]]
        assert record.robust_accuracy.value == 0
        assert record.outcomes["linf"][0] <= 2 / 255 + 1e-6
    pictures = list((tmp_path / "runs").rglob("picture.png"))
    assert len(pictures) == len(LITE)
    assert all(Image.open(picture).size[0] > 600 for picture in pictures)


def test_another_picture_and_label(tmp_path: Path) -> None:
    Image.new("RGB", (100, 90), (120, 160, 90)).save(tmp_path / "green.png")
    line = "attack --attack noise --dataset panda --image green.png --label 7 --size original --threads 1"
    lpmbench(f"{line} --model efficientnet-lite0")
    (record,) = records.read_all(tmp_path / "runs")
    assert record.labels.tolist() == [7]
    assert record.pictures()[0].clean.shape == (3, 100, 100)  # padded to a square


def test_a_model_that_cannot_run_does_not_stop_the_others(tmp_path: Path, capsys: Capture) -> None:
    line = "attack --model ramlpm-imagenet --model efficientnet-lite0 --attack noise --dataset panda --threads 1"
    assert run(line.split()) == 1
    complaint = capsys.readouterr().err
    assert "lpmbench: ramlpm-imagenet: Model 'ramlpm-imagenet' has no weights" in complaint
    assert complaint.strip().endswith("1 of 2 models could not be attacked: ramlpm-imagenet.")
    (record,) = records.read_all(tmp_path / "runs")
    assert record.model == "efficientnet-lite0"


def test_eot_is_counted_for_stochastic_models_alone(tmp_path: Path) -> None:
    lpmbench("attack --model cnn --model ramlpm --attack fgsm --eot 4 --gradient-mode detached --limit 2 --threads 1")
    found = {record.model: record.outcomes["backwards"].tolist() for record in records.read_all(tmp_path / "runs")}
    assert found == {"cnn": [1, 1], "ramlpm": [4, 4]}


def test_models_for_32_pixels_read_other_sizes(tmp_path: Path) -> None:
    lpmbench(
        "attack --model cnn --model resnet18 --model ram --model ramlpm --attack noise --size 28 --eps 0 --limit 20"
        " --draws 2"
    )
    accuracy = {record.model: record.clean_accuracy.value for record in records.read_all(tmp_path / "runs")}
    assert min(accuracy.values()) > 0.8
    assert len(accuracy) == 4


def test_grade_what_someone_else_made(tmp_path: Path) -> None:
    lpmbench("attack --model cnn --attack fgsm --eps 0.1 --limit 12 --save-adversarials --threads 1")
    (ours,) = records.read_all(tmp_path / "runs")
    assert set(ours.class_names) >= {int(label) for label in ours.labels}
    assert all(name == str(label) for label, name in ours.class_names.items())
    for model in ("resnet18", "ram"):
        lpmbench(
            f"grade --adversarials {ours.path} --model {model} --name 'from cnn' --limit 9 --eps 0.125 --out {model}"
            " --threads 1"
        )
        (graded,) = records.read_all(tmp_path / model)
        assert (graded.model, graded.attack, len(graded.outcomes)) == (model, "from cnn", 9)
        # The command in its record makes the same record.
        program, rest = graded.command.split(" ", 1)
        assert program == "lpmbench"
        lpmbench(f"{rest.replace('DIR', str(ours.path))} --out again-{model} --threads 1")
        (again,) = records.read_all(tmp_path / f"again-{model}")
        assert (again.id, again.command) == (graded.id, graded.command)
        assert again.outcomes.equals(graded.outcomes)


def test_train_resume_and_use(tmp_path: Path, capsys: Capture) -> None:
    lpmbench("train cnn --epochs 1 --out small --threads 1")
    assert run(["train", "cnn", "--epochs", "1", "--out", "small", "--threads", "1"]) != 0
    assert "--resume" in capsys.readouterr().err
    lpmbench("attack --model small/card.toml --attack fgsm --eps 0.01 --limit 5 --threads 1")
    (record,) = records.read_all(tmp_path / "runs")
    assert record.configuration["model"]["weights_sha256"]


@pytest.mark.slow
def test_ctrl_c_in_a_training_says_how_to_go_on(tmp_path: Path) -> None:
    words = ["train", "cnn", "--seed", "3", "--out", "mine", "--threads", "1"]
    log = Path("mine") / "log.csv"
    status, complaint = interrupted(words, lambda: log.is_file() and len(log.read_text().splitlines()) >= 2)
    assert status == 130
    assert "lpmbench train cnn --seed 3 --out mine --resume" in complaint
    assert len(complaint.strip().splitlines()) == 1


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_half_written_and_the_command_goes_on(tmp_path: Path) -> None:
    """A real process, a real signal; the run ends in the same bytes as one that was left alone."""
    words = shlex.split(
        "attack --model ramlpm --attack pgd --eps 0.1 --limit 192 --steps 2 --eot 1 --gradient-mode detached --draws 4 "
        "--threads 1"
    )
    status, complaint = interrupted(
        [*words, "--out", "broken"], lambda: any(Path("broken").rglob("block-*.safetensors"))
    )
    assert status == 130
    assert complaint.strip().startswith("lpmbench: Interrupted")
    assert "Traceback" not in complaint
    assert not list(Path("broken").rglob("record.json"))
    assert list((Path("broken") / PROGRESS).rglob("block-*.safetensors"))
    for out in ("broken", "straight"):
        lpmbench(shlex.join([*words, "--out", out]))
    (resumed,), (straight,) = records.read_all(Path("broken")), records.read_all(Path("straight"))
    for name in (records.RECORD, records.OUTCOMES, records.ADVERSARIALS):
        assert (resumed.path or tmp_path).joinpath(name).read_bytes() == (straight.path or tmp_path).joinpath(
            name
        ).read_bytes()
    leftovers = [path for path in Path("broken").rglob(".*") if path.is_file()]
    assert not leftovers


def test_a_checkpoint_of_the_authors_runs_with_their_padding_and_is_verified(tmp_path: Path, capsys: Capture) -> None:
    state = {f"module.{name}": tensor.float() for name, tensor in golden_state(golden_keys("sim2mnist")).items()}
    torch.save({"model_state_dict": state, "epoch": 3}, tmp_path / "best_model.ckpt")
    attack = (
        "--attack fgsm --dataset digits --labels-fit --size 96 --limit 2 --eps 0.01 --draws 3 "
        "--gradient-mode detached --threads 1"
    )
    lpmbench(f"attack --model ramlpm-sim2mnist --checkpoint best_model.ckpt {attack}")
    (record,) = records.read_all(tmp_path / "runs")
    assert record.configuration["model"]["parameters"]["padding"] == "reference"
    assert "--checkpoint best_model.ckpt" in record.command
    lpmbench(f"verify {record.path} --checkpoint best_model.ckpt")
    assert "6 of 6 on 2 stored images" in capsys.readouterr().out


@pytest.fixture(scope="module")
def authors_imagenet_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of the ImageNet experiment as the authors' code saves it, with weights that nobody trained."""
    path = tmp_path_factory.mktemp("checkpoint") / "best_model.ckpt"
    state = {f"module.{name}": tensor.float() for name, tensor in golden_state(golden_keys("imagenet")).items()}
    torch.save({"model_state_dict": state, "epoch": 3}, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("attack", "settings", "data", "size", "forwards"), [
    ("spsa", "--set pairs=2 --set iterations=2", "imagenet --data images", "original", 2 * 2 * 2),
    ("pgd", "--steps 2 --gradient-mode detached", "panda", "224", 2),
])  # fmt: skip
def test_the_attacks_of_the_paper_on_a_checkpoint_of_its_authors(
    attack: str, settings: str, data: str, size: str, forwards: int, authors_imagenet_checkpoint: Path, tmp_path: Path
) -> None:
    """End to end at both sizes; the pictures are small, and one is not square."""
    for name, shape in {"n01440764": (60, 90), "n02510455": (80, 80)}.items():
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.effect_noise(shape, 60).convert("RGB").save(tmp_path / "images" / name / "1.png")
    (tmp_path / "images" / "class_index.json").write_text('{"n01440764": 0, "n02510455": 388}')
    lpmbench(
        f"attack --model ramlpm-imagenet --checkpoint {authors_imagenet_checkpoint} --attack {attack}-kiritani2020"
        f" {settings} --dataset {data} --size {size} --draws 2 --threads 1"
    )
    (record,) = records.read_all(tmp_path / "runs")
    assert record.configuration["model"]["parameters"]["padding"] == "reference"
    assert record.eps == 2 / 255
    assert record.outcomes["forwards"].tolist() == [forwards] * len(record.outcomes)
    assert set(record.labels) == {388} if data == "panda" else {0, 388}
    moved = [abs(picture.adversarial - picture.clean).max() for picture in record.pictures()]
    assert all(0 < distance <= 2 / 255 + 1e-6 for distance in moved)


def test_the_whole_cost_is_told_beforehand(capsys: Capture) -> None:
    """SPSA of the paper: 100 iterations of 8192 pairs; a stochastic model is not looked at between them."""
    from robustbench_lpm.cli.console import announce, duration
    from robustbench_lpm.protocol.plan import make_plan
    from robustbench_lpm.registry.tasks import resolve_attack, resolve_data, resolve_model

    model, attack, data = resolve_model("ramlpm"), resolve_attack("spsa-kiritani2020"), resolve_data("digits")
    announce(make_plan(model, attack, data, Options(eps=0.1, limit=1)), 455_000.0)
    told = capsys.readouterr().out
    assert "up to 1,638,400 forwards and 0 backwards, 40 forwards to grade, about 5.3 days" in told
    announce(make_plan(model, attack, data, Options(eps=0.1, limit=300)), None)
    assert "491,520,000 forwards and 0 backwards (1,638,400 and 0 for each image)" in capsys.readouterr().out
    assert [duration(seconds) for seconds in (89, 3600, 9000, 71 * 3600)] == ["89 s", "60 min", "2.5 h", "71.0 h"]


def test_verify_takes_the_card_of_an_unregistered_model(tmp_path: Path, capsys: Capture) -> None:
    for file in ("cnn.toml", "cnn.safetensors"):
        (tmp_path / file).write_bytes((cards.root() / "models" / file).read_bytes())
    (tmp_path / "cnn.toml").write_text((tmp_path / "cnn.toml").read_text().replace('name = "cnn"', 'name = "mine"'))
    lpmbench("attack --model ./cnn.toml --attack fgsm --eps 0.05 --limit 2 --threads 1")
    (record,) = records.read_all(tmp_path / "runs")
    assert record.command.startswith("lpmbench attack --model ./cnn.toml ")
    lpmbench(f"verify {record.path}")
    assert "not checked" in capsys.readouterr().out
    lpmbench(f"verify {record.path} --model ./cnn.toml")
    assert "not checked" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("precision", "known", "told"), [("bfloat16", False, 1), ("bfloat16", True, 0), ("float32", False, 0)]
)
def test_precision_that_does_not_pay_is_told(
    precision: str, known: bool, told: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("robustbench_lpm.architectures.precision.pays", lambda device: known)
    prepare_machine("cpu", None, precision)
    assert capsys.readouterr().err.count("float32 would be faster") == told
