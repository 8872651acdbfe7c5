from pathlib import Path

import pytest
import yaml

from simcse_kit.errors import UserError
from simcse_kit.train.recipe_file import load_recipe
from simcse_kit.train.stages import stage_recipes

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))
LEAST = {"model": {"name": "m"}, "data": {"train": "t.txt"}, "output_dir": "out"}

# The keys that scripts and papers rely on, and their defaults.
CONTRACT = {
    "model": {"pooling": "cls", "head": "mlp", "keep_head": False, "dropout": None, "max_length": 32},
    "data": {"columns": ["text"], "shuffle": True},
    "views": [],
    "objectives": [{"name": "info_nce", "weight": 1.0, "temperature": 0.05, "hard_negative_weight": 0.0}],
    "train": {
        "batch_size": 64,
        "chunk_size": None,
        "encoders": 1,
        "epochs": 1,
        "max_steps": None,
        "lr": 3.0e-5,
        "schedule": "linear",
        "warmup_ratio": 0.0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "precision": "fp32",
        "drop_last": False,
        "log_every": 1,
        "save_every": None,
        "keep_last": 1,
        "patience": None,
    },
    "evaluation": {"data": None, "task": "STSB", "split": "dev", "every": 125},
    "stages": [],
    "seed": 42,
}


@pytest.fixture
def write(tmp_path):
    """Write a recipe: text as it stands, or the least recipe with other sections merged into it."""

    def make(content="", name="recipe.yaml", **sections):
        path = tmp_path / name
        if not content:
            merged = {key: sections.pop(key, {}) | LEAST[key] for key in ("model", "data")}
            content = yaml.safe_dump(LEAST | merged | sections)
        path.write_text(content)
        return path

    return make


def errors(path, *overrides):
    with pytest.raises(UserError) as caught:
        load_recipe(path, list(overrides))
    return str(caught.value).splitlines()


def pick(content, key):
    for part in key.split("."):
        content = content[int(part) if isinstance(content, list) else part]
    return content


def test_what_a_recipe_leaves_out_is_as_the_contract_says(write):
    recipe = load_recipe(write()).model_dump()
    for section, expected in CONTRACT.items():
        if isinstance(expected, dict):
            assert {key: recipe[section][key] for key in expected} == expected
        elif section == "objectives":
            assert [{key: recipe[section][0][key] for key in expected[0]}] == expected
        else:
            assert recipe[section] == expected


def test_the_resolved_recipe_is_itself_a_recipe(write):
    recipe = load_recipe(write(train={"lr": 5e-5}))
    assert load_recipe(write(yaml.safe_dump(recipe.model_dump()), "resolved.yaml")) == recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_project_loads(path):
    load_recipe(path)


def test_recipes_are_found():
    assert len(RECIPES) >= 10


def test_a_recipe_overrides_the_one_it_extends_key_by_key(write, tmp_path):
    (tmp_path / "sub").mkdir()
    write(train={"lr": 1e-4, "batch_size": 7}, data={"columns": ["a", "b"]}, name="base.yaml")
    path = write("extends: ../base.yaml\ntrain: {lr: 2e-4}\ndata: {columns: [c]}\n", "sub/child.yaml")
    recipe = load_recipe(path)
    assert (recipe.train.lr, recipe.train.batch_size) == (2e-4, 7)
    assert (recipe.data.train, recipe.data.columns) == ("t.txt", ["c"])  # lists are replaced whole
    write("extends: child.yaml\n", "sub/grandchild.yaml")
    (line,) = errors(tmp_path / "sub" / "grandchild.yaml")
    assert "extends child.yaml" in line and "one level" in line
    (line,) = errors(write("extends: nowhere.yaml\n", "lost.yaml"))
    assert "nowhere.yaml" in line


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.lr=3e-5", "train.lr", 3e-5),  # text to YAML 1.1
        ("train.lr=.5", "train.lr", 0.5),
        ("train.weight_decay=1E-2", "train.weight_decay", 0.01),
        ("objectives.0.temperature=0.1", "objectives.0.temperature", 0.1),
        ("objectives=[{weight: 2}]", "objectives.0.weight", 2.0),
        ("data.columns=[a, b, c, d]", "data.columns", ["a", "b", "c", "d"]),
        ("data.columns.0=other", "data.columns.0", "other"),
        ("data.train=[a.txt, b.txt]", "data.train", ["a.txt", "b.txt"]),
        ("data.shuffle=false", "data.shuffle", False),
        ("train.max_grad_norm=null", "train.max_grad_norm", None),
        ("train.max_grad_norm=", "train.max_grad_norm", None),
        ("model.dropout=0", "model.dropout", 0.0),
        ("seed=7", "seed", 7),
        ("output_dir=runs/a=b", "output_dir", "runs/a=b"),
        ("evaluation.data=scenes", "evaluation.data", "scenes"),
    ],
)
def test_overrides_are_yaml_at_a_path(write, override, key, value):
    path = write(data={"columns": ["text"]})
    assert pick(load_recipe(path, [override]).model_dump(), key) == value


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.lr", "expected key.path=value"),
        ("=3", "expected key.path=value"),
        ("train..lr=3", "expected key.path=value"),
        ("objectives.1.temperature=0.1", "no such place"),
        ("objectives.first.temperature=0.1", "no such place"),
        ("output_dir.x=1", "no such place"),
        ("train.lr=[", "not valid YAML"),
        ("extends=other.yaml", "extends"),
    ],
)
def test_an_override_that_does_not_fit_is_named(write, override, says):
    (line,) = errors(write(), override)
    assert says in line


def test_all_errors_come_at_once_each_with_its_key(write):
    path = write(train={"bath_size": 8, "lr": -1, "precision": "fp64"}, seed=1.5, modle={}, views=[{"txet": {}}])
    lines = errors(path, "objectives.0.temprature=0.1")
    assert all(line.startswith(f"{path}: ") for line in lines)
    found = [line.removeprefix(f"{path}: ") for line in lines]
    assert {line.partition(": ")[0] for line in found} == {
        *("train.bath_size", "train.lr", "train.precision", "seed", "modle", "views.0.txet", "objectives.0.temprature")
    }
    assert "train.bath_size: unknown key; did you mean 'batch_size'?" in found
    assert "modle: unknown key; did you mean 'model'?" in found
    assert "objectives.0.temprature: unknown key; did you mean 'temperature'?" in found
    assert any("fp32" in line and "'fp64'" in line for line in found)


@pytest.mark.parametrize(
    ("overrides", "begins"),
    [
        (["model.head=none", "model.keep_head=true"], "model.keep_head: "),
        (["objectives.0.hard_negative_weight=0.5"], "objectives: a hard_negative_weight"),
        (["objectives=[{}, {temperature: 0.1}]"], "objectives: each"),
        (["objectives=[]"], "objectives: "),
        (["data.columns=[a, a]"], "data.columns: "),
        (["data.columns=[]"], "data.columns: "),
        (["data.columns=[a, b, c, d, e]"], "data.columns: "),
        (["data.columns=[a, b]", "data.convert=nli_triplets"], "data.convert: "),
        (["data.columns=[a, b, c, d]", "data.convert=nli_quadruplets"], "data.convert: "),
        (["train.patience=3"], "train.patience: "),
        (["train.lr=.nan"], "train.lr: "),
        (["objectives.0.temperature=0"], "objectives.0.temperature: "),
        (["model.dropout=1"], "model.dropout: "),
        (["model.pooling=sum"], "model.pooling: "),
        (
            ["views=[{text: {name: crop, rate: .2}}, {embedding: {name: adversarial, of: views}}]"],
            "views.0: adversarial starts",
        ),
        (["views=[{}, {embedding: {name: adversarial}}]"], "views: adversarial of labels needs"),
        (["views=[{}, {embedding: {name: adversarial, noise: 1}}]"], "views.1.embedding.noise: unknown key"),
        (["objectives=[{name: mlm, rte: 0.1}]"], "objectives.0.rte: unknown key; did you mean 'rate'?"),
        (
            ["model.head=none", "objectives=[{name: mlm}]", "views=[{dropout: false}]"],
            "views: no objective is on vectors",
        ),
        (["model.pooling=mask", "model.remove_template_bias=true"], "model.template: remove_template_bias needs"),
        (["model.pooling=mask", "model.template=of {text}"], "model.template: template 'of {text}' needs"),
        (["model.template='{text} is {mask}'"], "model.template: only pooling mask"),
        (["train.encoders=2", "views=[{}, {dropout: same}]"], "views: dropout: same is the first view"),
        (["train.chunk_size=0"], "train.chunk_size: "),
        (["train.encoders=3"], "train.encoders: "),
        (["stages=[{train: {lr: -1}}]"], "stages.0.train.lr: "),
        (["stages=[{}, {trian: {}}]"], "stages.1.trian: unknown key; did you mean 'train'?"),
        (["stages=[{output_dir: x}]"], "stages.0.output_dir: belongs to the recipe"),
        (["stages=[{stages: []}]"], "stages.0.stages: belongs to the recipe"),
        (["stages=[{}, {model: {name: x}}]"], "stages.1.model.name: a later stage starts from"),
        (["stages=[{model: 3}]"], "stages.0.model: keys belong below it"),
        (["views=[{text: {name: crops}}, {}]"], "views.0.text.name: no text augmentation 'crops' (did you mean 'crop'"),
        (["views=[{text: {name: crop, model: x}}, {}]"], "views.0.text.name: crop takes no 'model'"),
        (["views=[{}, {}, {}]"], "objectives: info_nce needs 2 views or columns, here are 3 views"),
        (["views=[{}, {}]", "data.columns=[a, b]"], "views: no objective compares the views of a text"),
        (
            ["data.columns=[a, b, c]", "data.convert=labelled_pairs"],
            "data.convert: no objective learns from the labels",
        ),
        (["views=[{embedding: {name: shufle}}, {}]"], "views.0.embedding.name: 'shufle' is unknown; did you mean"),
        (["views=[{embedding: {name: token_cutoff, rate: 1.5}}, {}]"], "views.0.embedding.rate: "),
        (
            ["views=[{embedding: {name: shuffle, rat: 1.5}}, {}]"],
            "views.0.embedding.rat: unknown key; known here: name",
        ),
        (["views=[{embedding: {rate: 0.1}}, {}]"], "views.0.embedding.name: missing"),
        (["views=[{dropout: same}, {}]"], "views.0: dropout: same"),
        (["views=[{}]"], "objectives: info_nce needs 2 to 4 views or columns, here are 1 columns"),
        (["objectives=[{name: triplet}]"], "objectives: triplet needs 3 columns"),
        (
            ["objectives=[{name: triplet}]", "data.columns=[a, b, c]", "data.convert=nli_quadruplets"],
            "objectives: triplet needs 3 columns, here are 4 columns",
        ),
        (["objectives=[{name: cosent}]", "data.columns=[a, b]"], "objectives: cosent needs a score for each row"),
        (["objectives=[{name: info_nse}]"], "objectives.0.name: 'info_nse' is unknown; did you mean 'info_nce'?"),
        (["train=5"], "train: "),
        (["seed=5000000000"], "seed: "),
        (["evaluation.data=sts", "evaluation.split=test"], "evaluation.data: "),
        (["evaluation.data=hub:owner/name:test"], "evaluation.data: "),
        (["evaluation.data=hub:owner/name:dev+test[:50]"], "evaluation.data: "),
        (["evaluation.data=some/sts-test.csv"], "evaluation.data: "),
    ],
)
def test_settings_that_cannot_work_are_refused(write, overrides, begins):
    path = write()
    (line,) = errors(path, *overrides)
    assert line.startswith(f"{path}: {begins}")


def test_stages_override_the_root_and_go_on_from_one_another(write):
    path = write(
        train={"lr": 1e-5, "epochs": 2},
        stages=[{"train": {"lr": 2e-5}, "seed": 1}, {"views": [{}, {"embedding": {"name": "shuffle"}}]}, {}],
    )
    first, second, last = stage_recipes(load_recipe(path))
    assert (first.train.lr, first.train.epochs, first.seed, first.model.name) == (2e-5, 2, 1, "m")
    assert (second.train.lr, second.views[1].embedding.name, second.seed) == (1e-5, "shuffle", 42)
    assert [run.output_dir for run in (first, second, last)] == ["out-stage1", "out-stage2", "out"]
    assert [run.model.name for run in (second, last)] == ["out-stage1", "out-stage2"]
    assert stage_recipes(last) == [last]


@pytest.mark.parametrize(
    ("data", "split", "on_test"),
    [
        ("hub:owner/testing:dev", "dev", False),
        ("test/latest.csv", "dev", False),
        ("latest_test.jsonl", "dev", True),
        ("scenes", "test", True),
        (None, "test", False),
    ],
)
def test_a_test_split_is_known_by_its_name_and_may_be_forced(write, data, split, on_test):
    overrides = [f"evaluation.data={data or 'null'}", f"evaluation.split={split}", "evaluation.allow_test=true"]
    assert load_recipe(write(), overrides).evaluation.on_test is on_test


def test_rules_between_sections_are_all_named(write):
    path = write(objectives=[{"hard_negative_weight": 1.0}, {}], train={"patience": 1})
    assert [line.split(": ")[1] for line in errors(path)] == ["objectives", "objectives", "train.patience"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("- model", "mapping"),
        ("", "mapping"),
        ("model: [", "line 1"),
        (
            "model: {name: a}\nseed: 1\nmodel: {pooling: cls}\n",
            "line 3: not valid YAML (the key 'model' is there twice",
        ),
        ("model: {name: a, name: b}\n", "'name' is there twice"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, content, says):
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    (line,) = errors(path)
    assert str(path) in line and says in line


def test_a_recipe_that_is_not_there_or_not_text_is_named(tmp_path):
    assert errors(tmp_path / "nowhere.yaml") == [f"{tmp_path / 'nowhere.yaml'}: there is no such recipe"]
    (tmp_path / "bytes.yaml").write_bytes(b"model: \xff")
    for name in ("bytes.yaml", "."):
        (line,) = errors(tmp_path / name)
        assert "cannot be read" in line
