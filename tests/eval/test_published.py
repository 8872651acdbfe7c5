"""published.yaml holds the papers' figures, and its commands are ones that exist."""

import json
import re
import shlex
from collections import Counter
from itertools import chain

import pytest
import typer

from eval import cross_encoder
from eval.ablations.grid import DATA, FOLDER, Common, read_grid, recipe_of
from eval.measured import AVERAGE
from eval.published import read_published
from eval.report import FOLDERS, ROOT
from simcse_kit.cli import eval as eval_command
from simcse_kit.cli import whiten as whiten_command
from simcse_kit.data.sts import STS_TASKS
from simcse_kit.data.transfer import TRANSFER_TASKS
from simcse_kit.train.recipe_file import load_recipe

PUBLISHED = read_published()
ROWS = [row for _, row in PUBLISHED.rows()]
MODEL_TABLES = ("sts_all", "sts_wmean", "transfer")
OUR_NAMES = {"STS-B": "STSB", "SICK-R": "SICKR"}
TEST_EXAMPLES = {"TREC": 500, "SST2": 1821, "MRPC": 1725}
NOT_IN_THE_LIST = {"PROMPTBERT-README"}


@pytest.fixture(scope="module")
def numbers(data_dir):
    path = data_dir.parent / "reference" / "paper-numbers.json"
    if not path.is_file():
        pytest.skip(f"no list of the papers' figures: {path}")
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_source_is_there_with_its_text(numbers):
    assert PUBLISHED.sources.keys() - numbers["sources"].keys() == NOT_IN_THE_LIST
    assert numbers["sources"].items() <= PUBLISHED.sources.items()


@pytest.mark.parametrize("table", MODEL_TABLES)
def test_every_row_of_a_model_has_the_papers_figures_and_source(numbers, table):
    published = {
        (system, backbone): (
            {OUR_NAMES.get(key, key): value for key, value in row.items() if isinstance(value, float)},
            row["source"],
            row.get("avg_source"),
        )
        for system, backbones in numbers[table].items()
        for backbone, row in backbones.items()
    }
    rows = [row for row in PUBLISHED.tables[table].rows if row.source not in NOT_IN_THE_LIST]
    ours = {(row.system, row.backbone): (row.figures, row.source, row.average_source) for row in rows}
    assert ours == published
    assert len(rows) == len(published)


def test_promptbert_has_the_figures_of_its_readme():
    (row,) = (row for row in ROWS if row.source == "PROMPTBERT-README")
    readme = "71.56±0.18 84.58±0.22 76.98±0.26 84.47±0.24 80.60±0.21 81.60±0.22 69.87±0.40 78.54±0.15"
    assert " ".join(f"{row.figures[task]:.2f}±{row.std[task]:.2f}" for task in (*STS_TASKS, AVERAGE)) == readme


def test_every_ablation_has_the_papers_figures_and_source(numbers):
    assert PUBLISHED.tables.keys() == {*MODEL_TABLES, *numbers["ablations"]}
    for name, paper in numbers["ablations"].items():
        table = PUBLISHED.tables[name]
        assert table.source == paper["source"]
        columns = paper.get("columns", [])
        published = {}
        for setting in paper.keys() - {"source", "columns", "note"}:
            values = paper[setting] if columns else [paper[setting]]
            published[setting] = [(i, value) for i, value in enumerate(values) if value is not None]
        ours = {}
        for row in table.rows:
            cells = ours.setdefault(row.system, [])
            first = columns.index(row.variant) if row.variant else 0
            cells += enumerate([*row.figures.values(), *row.std.values()], start=first)
        assert ours == published, name


def test_ids_are_unique():
    assert [identifier for identifier, times in Counter(row.id for row in ROWS).items() if times > 1] == []


def test_sources_and_notes_are_named_where_they_exist_and_exist_where_they_are_named():
    named = [table.source if row.source is None else row.source for table, row in PUBLISHED.rows()]
    assert {*named, *(row.average_source for row in ROWS)} - {None} <= PUBLISHED.sources.keys()
    assert None not in named
    assert set(chain.from_iterable(row.notes for row in ROWS)) == PUBLISHED.notes.keys()


def test_a_stated_average_agrees_with_its_figures_or_says_that_it_does_not():
    disagree = set()
    for table in MODEL_TABLES:
        for row in PUBLISHED.tables[table].rows:
            tasks = [value for task, value in row.figures.items() if task != AVERAGE]
            # Half of the last digit printed, and a little for binary fractions.
            if tasks and abs(sum(tasks) / 7 - row.figures[AVERAGE]) > 0.005 + 1e-9:
                disagree.add(row.id)
    assert disagree == {row.id for row in ROWS if any(note.startswith("average-") for note in row.notes)}


def test_an_accuracy_is_a_fraction_of_the_test_examples_or_has_a_footnote():
    impossible = {
        row.id
        for row in PUBLISHED.tables["transfer"].rows
        for task, examples in TEST_EXAMPLES.items()
        if round(100 * round(row.figures[task] / 100 * examples) / examples, 2) != row.figures[task]
    }
    assert impossible == {row.id for row in ROWS if {"average-mrpc", "mlm-fractions"} & set(row.notes)}


def test_recipes_exist_and_have_the_published_settings():
    recipes = {row.reproduce.recipe for row in ROWS if row.reproduce and row.reproduce.recipe}
    assert recipes and all((ROOT / recipe).is_file() for recipe in recipes)
    for row in PUBLISHED.tables["simcse_hyperparameters"].rows:
        train = load_recipe(ROOT / row.reproduce.recipe).train
        assert {"batch": train.batch_size, "lr": train.lr} == row.figures, row.id


def test_a_row_without_commands_trains_and_measures_nothing():
    for table, row in PUBLISHED.rows():
        if row.reproduce and table.protocol:
            assert bool(row.reproduce.commands) or row.reproduce.recipe is None, row.id


def parsed(app, program, arguments):
    """The values that a command would get; a wrong option or value is an error."""
    return typer.main.get_command(app).make_context(program, list(arguments)).params


def as_bash_runs_it(command):
    """The commands, as lists of words, that a command with bash's loops over seeds and braces stands for."""
    loop = re.fullmatch(r"for seed in ([\d ]+); do (.*); done", command)
    commands = [loop[2].replace("$seed", seed) for seed in loop[1].split()] if loop else [command]
    for words in map(shlex.split, commands):
        yield [word for pattern in words for word in braces(pattern)]


def braces(pattern):
    found = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}", pattern)
    return [f"{found[1]}{i}" for i in range(int(found[2]), int(found[3]) + 1)] if found else [pattern]


def commands_of(row):
    """The row's commands, one at a time, as a program and its arguments."""
    commands = row.reproduce.commands if row.reproduce else []
    return chain.from_iterable(map(as_bash_runs_it, commands))


def recipes_of(row):
    """What the row's commands train."""
    for program, *arguments in commands_of(row):
        if program == "accelerate":
            arguments = arguments[arguments.index("simcse_kit.cli.train") + 1 :]
        if program in ("simcse-train", "accelerate"):
            assert arguments[0] == row.reproduce.recipe
            yield load_recipe(ROOT / arguments[0], arguments[1:])


@pytest.mark.parametrize(
    ("table", "row"),
    [(table, row) for table, row in PUBLISHED.rows() if row.reproduce and row.reproduce.commands],
    ids=lambda value: getattr(value, "id", ""),
)
def test_the_commands_of_a_row_exist_and_give_a_result_of_its_name_and_protocol(table, row):
    recipes = list(recipes_of(row))
    made, seeds = [recipe.output_dir for recipe in recipes], [recipe.seed for recipe in recipes]
    for program, *arguments in commands_of(row):
        if program == "python":
            assert arguments[:2] == ["-m", "eval.cross_encoder"]
            trained = parsed(cross_encoder.app, program, arguments[2:])
            made.append(f"cross-encoder:{trained['output']}")
            seeds.append(trained["seed"])
            assert trained["text"] == table.protocol.text
        elif program == "simcse-whiten":
            made.append(str(parsed(whiten_command.app, program, arguments)["output"]))
        elif program == "simcse-eval":
            options = parsed(eval_command.app, program, arguments)
        else:
            assert program in ("simcse-train", "accelerate")
    assert options["models"] == made or not made
    assert options["as_seeds"] == (len(made) > 1)
    assert seeds == row.reproduce.seeds
    is_ablation = table not in map(PUBLISHED.tables.get, (*MODEL_TABLES, "sbert_stsb_test"))
    folder = FOLDERS[is_ablation]
    assert folder.is_dir()  # else simcse-eval refuses it
    assert ROOT / options["json"] == folder / f"{row.id}.json"
    tasks = {"sts": STS_TASKS, "transfer": TRANSFER_TASKS, "STSB": ["STSB"]}[options["tasks"]]
    assert set(tasks) == table.protocol.n.keys()
    protocol = table.protocol.model_dump(exclude_none=True, exclude={"n"})
    if options["tasks"] == "transfer":
        assert protocol.pop("metric") == "accuracy"
    assert {part: options[part] for part in protocol} == protocol
    assert options["pooling"] in (None, row.pooling) or row.pooling is None


GRIDS = [read_grid(path.stem)[1] for path in sorted(FOLDER.glob("*.yaml"))]
OF_THE_RUN = {"data": {"train"}, "evaluation": {"data", "task", "split", "text"}, "seed": True, "output_dir": True}


def settings(recipe):
    """What a recipe says of the model and its training, wherever its files lie."""
    content = recipe.model_dump(exclude=OF_THE_RUN)
    if [objective.name for objective in recipe.objectives] == ["nt_xent"]:  # to which both views are alike
        content["views"].sort(key=str)
    return content


@pytest.mark.parametrize(
    ("grid", "grid_row"),
    [pytest.param(grid, row, id=row.published) for grid in GRIDS for row in grid.rows if row.published],
)
def test_the_commands_of_a_row_train_what_its_row_of_a_grid_does(grid, grid_row, tmp_path):
    common = Common("bert-base-uncased", dict.fromkeys(DATA, "file"), tmp_path, "disk")
    theirs = settings(recipe_of(grid, grid_row, common, seed=1, output_dir=tmp_path))
    (row,) = (row for row in ROWS if row.id == grid_row.published)
    ours = list(map(settings, recipes_of(row)))
    assert ours == [theirs] * len(ours)
    assert ours or row.id == "sbert-nli-bert-base"  # whose command measures the released model


@pytest.mark.parametrize("row", [row for row in ROWS if re.search("mlm-.*-transfer", row.id)], ids=lambda row: row.id)
def test_a_row_with_masked_language_modelling_has_the_settings_of_the_one_without(row):
    (plain,) = (other for other in ROWS if other.id == row.id.replace("mlm-", ""))
    ((with_mlm,), (without,)) = map(recipes_of, (row, plain))
    contrast, mlm = with_mlm.objectives
    assert (mlm.name, mlm.weight) == ("mlm", 0.1)
    assert with_mlm.model_copy(update={"objectives": [contrast], "output_dir": without.output_dir}) == without
