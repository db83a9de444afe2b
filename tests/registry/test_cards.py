"""Every committed card holds what it promises, and a card with a mistake is refused in one line that helps."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torchvision.models import get_weight

from robustbench_lpm.attacks.contract import Cost
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.hashing import sha256_of
from robustbench_lpm.registry import cards, zoo
from robustbench_lpm.registry.cards import AttackCard, Card, DatasetCard, Kind, ModelCard, RecipeCard, SuiteCard
from robustbench_lpm.registry.tasks import resolve_attack

FIND: dict[Kind, Callable[[str], Card]] = {
    "model": cards.model,
    "attack": cards.attack,
    "dataset": cards.dataset,
    "recipe": cards.recipe,
    "suite": cards.suite,
}


@pytest.mark.parametrize("kind", FIND)
def test_every_card_is_valid(kind: Kind) -> None:
    assert cards.names(kind) == sorted(cards.names(kind)) != []
    for name in cards.names(kind):
        card = FIND[kind](name)
        assert card.name == name
        assert card.summary == card.summary.strip() != "", name
        assert "\n" not in card.summary, name


def test_every_model_builds_and_has_the_numbers_of_its_torchvision_weights() -> None:
    for name in cards.names("model"):
        card = cards.model(name)
        with torch.device("meta"):  # shapes without numbers: large networks cost nothing
            network = zoo.build(card)
        size = sum(parameter.numel() for parameter in network.parameters())
        assert size > 1000, name
        draws = hasattr(network, "sample_noise") and getattr(network, "stochastic", True)
        assert zoo.wrap(network, card).stochastic == draws, name
        if card.weights and card.weights.torchvision:
            weights = get_weight(card.weights.torchvision)
            statistics = weights.transforms()
            assert weights.meta["num_params"] == size, name
            assert (card.input.mean, card.input.std) == (list(statistics.mean), list(statistics.std)), name


def test_the_stored_weights_of_every_model_load() -> None:
    for name in cards.names("model"):
        card = cards.model(name)
        assert card.weights or card.recipe or card.hint, name
        if card.weights and card.weights.file:
            assert zoo.load_model(name).weights_sha256 == card.weights.sha256


def test_every_attack_takes_the_parameters_of_its_card() -> None:
    for name in [name for name in cards.names("attack") if not cards.attack(name).members]:
        card, function, given = zoo.load_attack(name)
        declared = inspect.signature(function).parameters
        positional = [p.name for p in declared.values() if p.kind is not p.KEYWORD_ONLY]
        assert positional == ["oracle", "images", "labels"], name
        assert ("targets" in declared) >= card.targeted, name
        cost = resolve_attack(name).cost(stochastic=True)
        assert cost is None or (cost.backwards > 0) == (card.knowledge == "white-box"), name
        assert given == card.parameters, name


def test_the_worst_case_is_over_registered_attacks() -> None:
    members = cards.attack("worst-case").members
    assert len(members) > 1
    assert set(members) <= set(cards.names("attack"))
    assert [member.name for member in resolve_attack("worst-case").members] == members


def test_the_attacks_of_the_paper_have_its_numbers() -> None:
    """Kiritani and Ono 2020: SPSA of 100 x 8192 pairs, delta and learning rate 0.01; PGD of 300 steps of 0.2/255."""
    spsa, pgd = (resolve_attack(f"{name}-kiritani2020") for name in ("spsa", "pgd"))
    numbers = {"iterations": 100, "pairs": 8192, "delta": 0.01, "learning_rate": 0.01}
    assert numbers.items() <= spsa.parameters.items()
    assert {"steps": 300, "step_size": 0.2 / 255, "restarts": 1, "eot": 1}.items() <= pgd.parameters.items()
    assert (spsa.norms, pgd.norms) == (("linf",), ("linf",))
    assert all(cards.dataset(name).default_eps("linf") == "2/255" for name in ("panda", "imagenet"))
    assert spsa.cost(stochastic=False) == Cost(100 * 2 * 8192)
    assert pgd.cost(stochastic=True) == Cost(300, 300)


def test_recipes_and_models_name_what_exists() -> None:
    for name in cards.names("recipe"):
        recipe = cards.recipe(name)
        assert cards.dataset(recipe.dataset).name == recipe.dataset
        objective = cards.resolve(recipe.objective, recipe.path)
        assert set(recipe.parameters) <= set(inspect.signature(objective).parameters), name
    for name in cards.names("model"):
        card = cards.model(name)
        if card.recipe is not None:
            assert cards.dataset(cards.recipe(card.recipe).dataset).labels == card.labels, name


def test_suites_name_what_exists() -> None:
    for part in [part for name in cards.names("suite") for part in cards.suite(name).part]:
        dataset = cards.dataset(part.dataset)
        assert all(zoo.fits(cards.model(model), dataset) for model in part.models)
        attacks = [cards.attack(name) for name in [*part.attacks, *part.audit, *part.black_box]]
        assert all(part.norm in attack.norms for attack in attacks)


MODEL = """
name = "mine"
summary = "a model"
entry = "robustbench_lpm.architectures.cnn:Cnn"
labels = "digits"
classes = 10
[input]
channels = 1
"""
ATTACK = """
name = "mine"
summary = "an attack"
entry = "robustbench_lpm.attacks.pgd:pgd"
knowledge = "white-box"
norms = ["linf"]
"""
DATASET = """
name = "mine"
summary = "a dataset"
entry = "robustbench_lpm.datasets.digits:digits"
labels = "digits"
channels = 1
"""
RECIPE = """
name = "mine"
summary = "a recipe"
dataset = "digits"
objective = "robustbench_lpm.training.objectives:cross_entropy"
epochs = 1
batch_size = 8
learning_rate = 0.1
"""
SUITE = """
name = "mine"
summary = "a suite"
[[part]]
dataset = "digits"
models = ["cnn"]
attacks = ["pgd"]
eps = ["0.1"]
"""
GOOD: list[tuple[type[Card], str]] = [
    (ModelCard, MODEL),
    (AttackCard, ATTACK),
    (DatasetCard, DATASET),
    (RecipeCard, RECIPE),
    (RecipeCard, RECIPE + "[augmentation]\nrotate = 10\nscale = [1, 1.5]\n"),
    (SuiteCard, SUITE),
]
SHA = f'sha256 = "{"0" * 64}"'
BAD: list[tuple[type[Card], str, str, str]] = [
    # card, what is replaced in it (all of it: what is appended), by what, the complaint
    (ModelCard, 'summary = "a model"', "", "key 'summary' is missing"),
    (ModelCard, 'summary = "a model"', 'sumary = "a model"', "Unknown key 'sumary'. Did you mean 'summary'?"),
    (ModelCard, "classes = 10", "classes = 10\nclases = 9", "Unknown key 'clases'. Did you mean 'classes'?"),
    (ModelCard, "channels = 1", "channels = 1\nmeen = [0.5]", "Unknown key 'input.meen'. Did you mean 'mean'?"),
    (ModelCard, "", f'[weights]\nfile = "a"\n{SHA}\nsha = 1', "Unknown key 'weights.sha'. Did you mean 'sha256'?"),
    (ModelCard, "", "[trained]\nepoch = 3", "Unknown key 'trained.epoch'. Did you mean 'epochs'?"),
    (ModelCard, "channels = 1", "channels = 2", "key 'input.channels'"),
    (ModelCard, "channels = 1", 'channels = "1"', "key 'input.channels'"),
    (ModelCard, "channels = 1", "", "key 'input.channels' is missing"),
    (ModelCard, "[input]\nchannels = 1", "", "key 'input' is missing"),
    (ModelCard, "channels = 1", "channels = 1\nmean = [0.5]", "mean and std need one number"),
    (ModelCard, "channels = 1", "channels = 1\nmean = [0.5]\nstd = [0.0]", "std must be positive"),
    (ModelCard, "channels = 1", "channels = 1\nworking_size = 0", "key 'input.working_size'"),
    (ModelCard, "channels = 1", "channels = 3\nmean = [0.5, 0.5]\nstd = [1.0, 1.0]", "each of the 3 channel(s)"),
    (ModelCard, "classes = 10", 'classes = "10"', "key 'classes'"),
    (ModelCard, "classes = 10", "classes = 10.0", "key 'classes'"),
    (ModelCard, "classes = 10", "classes = true", "key 'classes'"),
    (ModelCard, "classes = 10", "classes = 1", "key 'classes'"),
    (ModelCard, 'name = "mine"', 'name = ""', "key 'name'"),
    (ModelCard, 'name = "mine"', 'name = " mine"', "key 'name'"),
    (ModelCard, "", "[weights]\n", "exactly one of"),
    (ModelCard, "", f'[weights]\npackage = "torch"\n{SHA}', "exactly one of"),
    (ModelCard, "", f'[weights]\nfile = "a"\nurl = "http://b"\n{SHA}', "exactly one of"),
    (ModelCard, "", f'[weights]\nfile = "a"\ntorchvision = "b"\n{SHA}', "exactly one of"),
    (ModelCard, "", '[weights]\nfile = "a"', "sha256 is missing"),
    (ModelCard, "", '[weights]\nurl = "http://a"', "sha256 is missing"),
    (ModelCard, "", f'[weights]\nurl = "file:///a"\n{SHA}', "key 'weights.url'"),
    (ModelCard, "", '[weights]\nfile = "a"\nsha256 = "beef"', "key 'weights.sha256'"),
    (ModelCard, 'labels = "digits"', "labels = 3", "key 'labels'"),
    (ModelCard, 'labels = "digits"', "labels = digits", "cannot be read as TOML"),
    (ModelCard, "classes = 10", "classes = 10\nclasses = 10", "cannot be read as TOML"),
    (AttackCard, '"white-box"', '"grey-box"', "key 'knowledge'"),
    (AttackCard, '["linf"]', '["l3"]', "key 'norms.0'"),
    (AttackCard, '["linf"]', '"linf"', "key 'norms'"),
    (AttackCard, "", 'targeted = "yes"', "key 'targeted'"),
    (AttackCard, "", "targetted = true", "Unknown key 'targetted'. Did you mean 'targeted'?"),
    (DatasetCard, "", "crop = 1.5", "key 'crop'"),
    (DatasetCard, "", "size = 224", "key 'size'"),
    (DatasetCard, "", 'eps = { l3 = "3" }', "key 'eps.l3"),
    (DatasetCard, "", 'chanels = "3"', "Did you mean 'channels'?"),
    (RecipeCard, "epochs = 1", "epochs = 0", "key 'epochs'"),
    (RecipeCard, "epochs = 1", "epochs = 1\nepoch = 2", "Unknown key 'epoch'. Did you mean 'epochs'?"),
    (RecipeCard, "", "[groups]\nwhere = -1.0", "key 'groups.where'"),
    (RecipeCard, "", "[augmentation]\nrotat = 3.0", "Unknown key 'augmentation.rotat'. Did you mean 'rotate'?"),
    (RecipeCard, "", "[augmentation]\nscale = [2.0, 1.0]", "scale must be"),
    (SuiteCard, "", 'epss = "0.1"', "Unknown key 'part.0.epss'. Did you mean 'eps'?"),
    (SuiteCard, 'eps = ["0.1"]', "eps = [true]", "key 'part.0.eps.0': eps True is not a number"),
    (SuiteCard, 'eps = ["0.1"]', "eps = [0.1, nan]", "key 'part.0.eps.1'"),
    (SuiteCard, 'eps = ["0.1"]', "eps = [8]", "did you mean 8/255"),
    (SuiteCard, 'eps = ["0.1"]', "", "key 'part.0.eps' is missing"),
]  # fmt: skip
TEXT = {ModelCard: MODEL, AttackCard: ATTACK, DatasetCard: DATASET, RecipeCard: RECIPE, SuiteCard: SUITE}


def written(folder: Path, text: str, name: str = "mine") -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(("card_class", "text"), GOOD)
def test_the_cards_that_the_bad_ones_are_made_from_are_good(card_class: type[Card], text: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    card = cards.read(path, card_class)
    assert (card.name, card.path) == ("mine", path)


@pytest.mark.parametrize(("card_class", "old", "new", "complaint"), BAD)
def test_a_mistake_is_told_with_file_and_key(
    card_class: type[Card], old: str, new: str, complaint: str, tmp_path: Path
) -> None:
    text = TEXT[card_class]
    assert old in text
    path = written(tmp_path, text.replace(old, new, 1) if old else f"{text}{new}\n")
    with pytest.raises(LpmbenchError) as error:
        cards.read(path, card_class)
    assert str(path) in str(error.value)
    assert complaint in str(error.value)


def test_what_cannot_be_read_at_all_is_told_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "bytes.toml").write_bytes(b"name = '\xff'")
    for name, complaint in {
        "nothing": "There is no card",
        "folder": "cannot be read",
        "bytes": "cannot be read",
    }.items():
        path = tmp_path / f"{name}.toml"
        with pytest.raises(LpmbenchError, match=complaint) as error:
            cards.model(str(path))
        assert str(path) in str(error.value)


@pytest.mark.parametrize(("kind", "name", "complaint"), [
    ("model", "cn", "Unknown model 'cn'. Did you mean 'cnn'?"),
    ("model", "resnet5-imagenet", "Did you mean 'resnet50-imagenet'?"),
    ("attack", "pdg", "Unknown attack 'pdg'. Did you mean 'pgd'?"),
    ("attack", "xyzzy", "The nearest of "),
    ("dataset", "digit", "Unknown dataset 'digit'. Did you mean 'digits'?"),
    ("recipe", "digits-ram-lpm", "Did you mean 'digits-ramlpm'?"),
    ("suite", "dmo", "Unknown suite 'dmo'. Did you mean 'demo'?"),
])  # fmt: skip
def test_an_unknown_name_brings_the_nearest_known_one(kind: Kind, name: str, complaint: str) -> None:
    with pytest.raises(LpmbenchError) as error:
        FIND[kind](name)
    assert complaint in str(error.value)


@pytest.fixture
def other_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which the cards are looked for instead."""
    monkeypatch.setattr(cards, "root", lambda: tmp_path)
    cards._paths.cache_clear()
    yield tmp_path
    cards._paths.cache_clear()


def test_a_registered_card_is_named_like_its_file(other_root: Path) -> None:
    (other_root / "models").mkdir()
    written(other_root / "models", MODEL, "mine")
    path = written(other_root / "models", MODEL, "yours")
    assert cards.names("model") == ["mine", "yours"]
    assert cards.model("mine").name == "mine"
    with pytest.raises(LpmbenchError, match=r"name is 'mine', but the file is called 'yours\.toml'") as error:
        cards.model("yours")
    assert str(path) in str(error.value)


ENTRIES = [
    # entry, trust, the complaint
    ("robustbench_lpm.architectures.cnn:Cn", False, "Unknown entry 'Cn'. Did you mean 'Cnn'?"),
    ("robustbench_lpm.architectures.cnn:Tensor", False, "Unknown entry 'Tensor'. Known: Cnn."),
    ("robustbench_lpm.architectures.cnn", False, "must look like 'module:function'"),
    (":Cnn", False, "must look like 'module:function'"),
    ("robustbench_lpm.architectures.cn:Cnn", False, "cannot be imported"),
    ("robustbench_lpm.registry.zoo:load_model", False, "is no model, attack, dataset or objective"),
    ("robustbench_lpm.registry.zoo:load_model", True, "is no model, attack, dataset or objective"),
    ("robustbench_lpm.training:train", False, "is no model, attack, dataset or objective"),
    ("robustbench_lpm:evaluate", False, "is no model, attack, dataset or objective"),
    ("os:system", False, "read it, then add --trust"),
    ("robustbench_lpm_of_mine:Cnn", False, "read it, then add --trust"),
    ("robustbench_lpm_of_mine:Cnn", True, "cannot be imported"),
    ("os:sistem", True, "Did you mean 'system'?"),
]


@pytest.mark.parametrize(("entry", "trust", "complaint"), ENTRIES)
def test_an_entry_that_leads_nowhere(entry: str, trust: bool, complaint: str, tmp_path: Path) -> None:
    path = written(tmp_path, MODEL.replace("robustbench_lpm.architectures.cnn:Cnn", entry))
    with pytest.raises(LpmbenchError) as error:
        cards.resolve_entry(cards.model(str(path)), trust=trust)
    assert str(path) in str(error.value)
    assert complaint in str(error.value)


def test_code_from_outside_does_not_run_without_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "outside_code.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('ran').touch()\nCnn = dict\n"
    )
    card = cards.model(str(written(tmp_path, MODEL.replace("robustbench_lpm.architectures.cnn", "outside_code"))))
    with pytest.raises(LpmbenchError, match="read it, then add --trust"):
        cards.resolve_entry(card)
    assert not (tmp_path / "ran").exists()
    assert cards.resolve_entry(card, trust=True) is dict
    assert (tmp_path / "ran").exists()
    del sys.modules["outside_code"]


def test_the_call_of_an_entry_tells_wrong_parameters(tmp_path: Path) -> None:
    for table, complaint in {
        "widht = 3": "Unknown parameter 'widht'. Did you mean 'width'?",
        'width = "three"': "mine.toml: ",
    }.items():
        with pytest.raises(LpmbenchError) as error:
            zoo.build(cards.model(str(written(tmp_path, f"{MODEL}[parameters]\n{table}\n"))))
        assert complaint in str(error.value)
    text = MODEL.replace("cnn:Cnn", "torchvision_models:torchvision_model")
    with pytest.raises(LpmbenchError, match="architecture missing"):
        zoo.build(cards.model(str(written(tmp_path, text))))


@pytest.mark.parametrize(("table", "complaint"), [
    ("stps = 3", "Unknown parameter 'stps'. Did you mean 'steps'?"),
    ("eps = 0.3", "'eps' is set for each run"),
    ('norm = "l2"', "'norm' is set for each run"),
    ("targets = 3", "'targets' is set for each run"),
])  # fmt: skip
def test_wrong_parameters_of_an_attack(table: str, complaint: str, tmp_path: Path) -> None:
    path = written(tmp_path, f"{ATTACK}[parameters]\n{table}\n")
    with pytest.raises(LpmbenchError) as error:
        zoo.load_attack(str(path))
    assert complaint in str(error.value)
    key, _, value = table.partition(" = ")
    with pytest.raises(LpmbenchError, match=key):  # --set goes the same way
        zoo.load_attack("pgd", parameters={key: value})


def test_an_attack_without_a_parameter_that_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "needy_attack.py").write_text("def needy(oracle, images, labels, *, norm, eps, steps): ...\n")
    text = ATTACK.replace("robustbench_lpm.attacks.pgd:pgd", "needy_attack:needy")
    with pytest.raises(LpmbenchError, match="steps missing"):
        zoo.load_attack(str(written(tmp_path, text)), trust=True)
    del sys.modules["needy_attack"]


@pytest.mark.parametrize(("named", "complaint"), [
    ("../secret.pt", "leads out of"),
    ("sub/../../secret.pt", "leads out of"),
    ("/etc/hostname", "leads out of"),
    ("link.pt", "leads out of"),
    ("linked/secret.pt", "leads out of"),
    ("missing.pt", "is missing from"),
    ("sub", "is missing from"),
])  # fmt: skip
def test_weights_lie_beside_the_card_and_nowhere_else(named: str, complaint: str, tmp_path: Path) -> None:
    folder = tmp_path / "cards"
    (folder / "sub").mkdir(parents=True)
    secret = tmp_path / "secret.pt"
    torch.save({}, secret)
    (folder / "link.pt").symlink_to(secret)
    (folder / "linked").symlink_to(tmp_path)
    path = written(folder, f'{MODEL}[weights]\nfile = "{named}"\nsha256 = "{sha256_of(secret)}"\n')
    with pytest.raises(LpmbenchError, match=complaint) as error:
        zoo.load_model(str(path))
    assert str(path) in str(error.value)


def test_a_file_in_a_folder_beside_the_card_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    inside = tmp_path / "sub/weights.pt"
    inside.touch()
    (tmp_path / "link.pt").symlink_to(inside)
    card = cards.model(str(written(tmp_path, MODEL)))
    for named in ("sub/weights.pt", "sub/../sub/weights.pt", "link.pt"):
        assert cards.confined(card, named) == inside.resolve()


@pytest.mark.parametrize("words", [["models"], ["attacks"], ["datasets"], ["models", "show", "cnn"], ["--help"]])
def test_listing_imports_neither_torch_nor_pandas(words: list[str]) -> None:
    code = (
        "import json, sys\n"
        "from robustbench_lpm.cli import run\n"
        f"status = run({words!r})\n"
        "json.dump([status, sorted({'torch', 'torchvision', 'pandas', 'numpy'} & set(sys.modules))], sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stderr) == [0, []]
    assert done.stdout
