"""Whatever is typed wrong ends with one clear line on stderr and a non-zero status, never with a traceback."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robustbench_lpm.cli import COMMANDS, run

CASES: list[tuple[str, str]] = [
    ("modles", "Did you mean 'models'?"),
    ("attack --model cmn", "Did you mean 'cnn'?"),
    ("attack --attack pdg", "Did you mean 'pgd'?"),
    ("attack --dataset digit", "Did you mean 'digits'?"),
    ("attack --model cnn --eps 2/0", "divides by zero"),
    ("attack --model cnn --eps -0.1", "zero or more"),
    ("attack --model cnn --eps ,", "empty"),
    ("attack --model cnn --eps many", "not a number"),
    ("attack --model cnn --norm l3", "l3"),
    ("attack --model cnn --size huge", "Size 'huge'"),
    ("attack --model cnn --limit 0", "--limit"),
    ("attack --model cnn --limit ten", "ten"),
    ("attack --model cnn --steps 0", "--steps"),
    ("attack --model cnn --attack noise --steps 3", "takes no steps"),
    ("attack --model cnn --attack spsa --eot 3", "takes no eot"),
    ("attack --model cnn --eot 0", "--eot"),
    ("attack --model cnn --set stepz=3", "Did you mean 'steps'?"),
    ("attack --model cnn --set steps", "must look like"),
    ("attack --model cnn --set loss=hinge --limit 2", "parameter 'loss' = 'hinge'"),
    ("attack --model cnn --set steps=many --limit 2", "parameter 'steps' = 'many'"),
    ("attack --model cnn --set steps=-1", "greater than 0"),
    ("attack --model cnn --attack spsa --set delta=0", "greater than 0"),
    ("attack --model cnn --target 10", "out of range"),
    ("attack --model cnn --attack noise --target 1", "cannot aim"),
    ("attack --model ramlpm --gradient-mode detach", "Did you mean 'detached'?"),
    ("attack --model ram --noise frzen --limit 1", "Did you mean 'frozen'?"),
    ("attack --model ram --noise policy=still --limit 1", "Unknown noise mode 'still'"),
    ("attack --model ram --noise polcy=frozen --limit 1", "Did you mean 'policy'?"),
    ("attack --model cnn --noise policy=frozen --limit 1", "deterministic: it has no source of noise"),
    ("attack --model cnn --attack gaze --limit 1", "moves fixations; model 'cnn' has none"),
    ("attack --model cnn --attack pgd --surrogate cnn-at --limit 1", "takes no surrogates"),
    ("attack --model cnn --attack transfer --surrogate cmn --limit 1", "Did you mean 'cnn'?"),
    ("attack --model cnn --attack worst-case --set steps=3", "a worst case has no parameter 'steps'"),
    ("attack --model cnn --attack worst-case --set momentum.stepz=3", "Did you mean 'steps'?"),
    ("attack --model cnn --device cuda:99", "not available"),
    ("attack --model cnn --device toaster", "not available"),
    ("attack --model cnn --checkpoint nowhere.pt", "no checkpoint at nowhere.pt"),
    ("attack --model cnn --checkpoint a\0b", "null character"),
    ("attack --model cnn --model ramlmp --attack noise --limit 1", "Did you mean 'ramlpm'?"),
    ("attack --checkpoint nowhere.pt", "exactly one MODEL"),
    ("attack --model ramlpm-imagenet --dataset panda", "no weights"),
    ("attack --model cnn --dataset panda --labels-fit", "reads 1 channel"),
    ("attack --model cnn --dataset mnist --data {tmp}", "MNIST"),
    ("attack --model efficientnet-lite0 --dataset imagenet", "--data"),
    ("attack --model efficientnet-lite0 --dataset imagenet --data {tmp}/none", "none"),
    ("attack --model efficientnet-lite0 --dataset panda --label 1000", "1000"),
    ("attack --model efficientnet-lite0 --dataset panda --image {tmp}/text.png --label 388", "text.png"),
    ("attack --model efficientnet-lite0 --dataset panda --image {tmp}/gone.png --label 388", "gone.png"),
    ("attack --model {tmp}/bad.toml", "bad.toml"),
    ("train cmn", "Did you mean 'cnn'?"),
    ("train efficientnet-lite0", "names no recipe"),
    ("train cnn --epochs 0", "--epochs"),
    ("train cnn --resume --out {tmp}/none", "none"),
    ("run dmeo", "Did you mean 'demo'?"),
    ("run {tmp}/suite.toml", "'pdg', which is not among the attacks"),
    ("attack --model cnn --norm l2 --dataset {tmp}/data.toml", "no default eps for 'l2'"),
    ("report --results {tmp}", "no records"),
    ("report --title mine", "--title and --intervals go with --layout"),
    ("report --layout models", "--layout"),
    ("publish {tmp}", "no records"),
    ("verify {tmp}", "record.json"),
    ("grade --adversarials {tmp}/none --model cnn --eps 0.1", "no PNG files"),
    ("grade --adversarials {tmp} --model cnn --eps 1/255,2/255", "takes one eps"),
    ("models show ramlmp", "Did you mean 'ramlpm'?"),
    ("models list all", "unexpected extra argument (all)"),
    ("attack --modle cnn", "--model"),
    ("sweep", "Missing argument 'MODEL'"),
    ("sweep ramlmp", "Did you mean 'ramlpm'?"),
    ("sweep cnn", "Model 'cnn' sees an image whole"),
    ("sweep ram --glimpses 0..3", "--glimpses '0..3'"),
    ("sweep ram --mc two", "--mc 'two'"),
    ("sweep ram --draws 0", "--draws"),
    ("sweep ram --limit 0", "--limit"),
    ("sweep ram --split dev", "--split"),
    ("sweep ram --dataset digit", "Did you mean 'digits'?"),
    ("sweep ram --dataset panda", "predicts the labels 'digits'"),
    ("sweep ram --checkpoint nowhere.pt", "no checkpoint at nowhere.pt"),
    ("sweep ram --device toaster", "not available"),
    ("sweep ramlpm-imagenet --dataset panda", "no weights"),
    ("invariance", "Missing argument 'MODEL...'"),
    ("invariance ram cmn", "Did you mean 'cnn'?"),
    ("invariance ram resnet50-imagenet", "cannot be compared"),
    ("invariance ram --rotate x", "--rotate 'x'"),
    ("invariance ram --scale 0..2", "factor above 0"),
    ("invariance ram --translate 1..0", "--translate '1..0'"),
    ("invariance ram cnn --checkpoint a.pt", "exactly one MODEL"),
    ("audit", "Missing argument 'MODEL'"),
    ("audit cmn", "Did you mean 'cnn'?"),
    ("audit cnn --attack pdg", "Did you mean 'pgd'?"),
    ("audit cnn --black-box sqare --limit 1", "Did you mean 'square'?"),
    ("audit cnn --attack fgsm --eps 0", "needs an eps above 0"),
    ("audit cnn --attack fgsm --eps 0.1,0", "needs an eps above 0"),
    ("audit cnn --attack fgsm --eps many", "not a number"),
    ("audit cnn --attack fgsm --steps 3", "takes no steps"),
    ("audit cnn --attack fgsm --set fgsm.etc=1", "parameter 'etc'"),
    ("audit cnn --attack fgsm --set square.quereis=1", "Did you mean 'queries'?"),
    ("audit cnn --attack fgsm --set eot", "must look like"),
    ("audit cnn --attack transfer --surrogate cmn --limit 1", "Did you mean 'cnn'?"),
    ("audit cnn --attack fgsm --noise policy=frozen --limit 1", "deterministic"),
    ("audit cnn --attack fgsm --target 10 --limit 1", "out of range"),
    ("audit cnn --dataset digit", "Did you mean 'digits'?"),
    ("audit cnn --attack fgsm --checkpoint nowhere.pt", "no checkpoint at nowhere.pt"),
    ("audit ramlpm-imagenet --dataset panda", "no weights"),
    ("audit cnn --device toaster", "not available"),
    ("glimpses", "Missing argument 'MODEL'"),
    ("glimpses ramlmp", "Did you mean 'ramlpm'?"),
    ("glimpses cnn --limit 2", "Model 'cnn' sees an image whole"),
    ("glimpses ramlpm --attack pdg", "Did you mean 'pgd'?"),
    ("glimpses ramlpm --limit 0", "--limit"),
    ("glimpses ramlpm --draws 0", "--draws"),
    ("glimpses ramlpm --pictures -1", "--pictures"),
    ("glimpses ramlpm --mc 0,1", "--mc '0,1' must be whole numbers from 1"),
    ("glimpses ramlpm --mc two", "--mc 'two' must be whole numbers from 1"),
    ("glimpses ramlpm --mc ,", "must be whole numbers from 1"),
    ("glimpses ramlpm --eps 0.1,0.2", "one eps"),
    ("glimpses ramlpm --eps many", "not a number"),
    ("glimpses ramlpm --attack noise --steps 3", "takes no steps"),
    ("glimpses ramlpm --gradient-mode detach --limit 1", "Did you mean 'detached'?"),
    ("glimpses ramlpm-imagenet --dataset panda", "no weights"),
    ("glimpses ramlpm --dataset digit", "Did you mean 'digits'?"),
    ("glimpses ramlpm --device toaster", "not available"),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "bad.toml").write_text("name = 'x'\nentri = 'y'\n")
    (tmp_path / "suite.toml").write_text(
        'name = "s"\nsummary = "s"\n[[part]]\ndataset = "digits"\nmodels = ["cnn"]\nattacks = ["pgd"]\neps = ["0.1"]\n'
        "[part.parameters.pdg]\nsteps = 3\n"
    )
    (tmp_path / "data.toml").write_text(
        'name = "d"\nsummary = "d"\nentry = "robustbench_lpm.datasets.digits:digits"\nlabels = "digits"\nclasses = 10\n'
        'channels = 1\n[eps]\nlinf = "0.1"\n'
    )
    return tmp_path


@pytest.mark.parametrize(("line", "message"), CASES, ids=[line for line, _ in CASES])
def test_one_clear_line(line: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = run(line.format(tmp=folder).split())
    complaint = capsys.readouterr().err.strip()
    assert status not in (0, 130)
    assert message in complaint
    assert len(complaint.splitlines()) == 1
    assert complaint.startswith("lpmbench: ")
    assert not list(folder.rglob("record.json"))


EXAMPLES = {
    "audit": "lpmbench audit cnn --dataset digits --eps 0.1",
    "glimpses": "lpmbench glimpses ramlpm --limit 32",
    "invariance": "lpmbench invariance ramlpm cnn --rotate 0..360:15",
    "sweep": "lpmbench sweep ram --glimpses 1,2,4,8 --mc 1..4",
}


def test_every_command_answers_to_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("", *COMMANDS):
        assert run([*([command] if command else []), "--help"]) == 0
        shown = capsys.readouterr().out
        assert shown.startswith(f"Usage: lpmbench {command}".rstrip())
        assert "--help" in shown
        assert EXAMPLES.get(command, "") in shown


def test_nan_logits_end_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "nan_model.py").write_text(
        "import torch\n"
        "class Nan(torch.nn.Module):\n"
        "    def __init__(self, *, channels, classes):\n"
        "        super().__init__()\n"
        "        self.w = torch.nn.Parameter(torch.ones(classes) * float('nan'))\n"
        "    def forward(self, x):\n"
        "        return x.flatten(1).sum(1, keepdim=True) * self.w\n"
    )
    import torch

    torch.save({"w": torch.full((10,), float("nan"))}, tmp_path / "w.pt")
    (tmp_path / "nan.toml").write_text(
        'name = "nan"\nsummary = "all logits are NaN"\nentry = "nan_model:Nan"\nlabels = "digits"\nclasses = 10\n'
        "[input]\nchannels = 1\n"
    )
    card = str(tmp_path / "nan.toml")
    words = ["attack", "--model", card, "--checkpoint", str(tmp_path / "w.pt"), "--limit", "2", "--out", str(tmp_path)]
    assert run(words) != 0
    assert "--trust" in capsys.readouterr().err
    assert run([*words, "--trust"]) != 0
    complaint = capsys.readouterr().err.strip()
    assert "NaN or infinite logits" in complaint
    assert len(complaint.splitlines()) == 1


def test_a_truncated_picture_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    line = ["attack", "--model", "efficientnet-lite0", "--dataset", "panda", "--image", str(path), "--label", "388"]
    assert run(line) != 0
    assert "cut.png" in capsys.readouterr().err
