"""Grids of ablations: every row makes a recipe, runs are what simcse-train makes, and differences are tested right."""

import contextlib
import io
import json
import random
import re
import shutil
import signal

import numpy as np
import pytest
import scipy.stats
from small_files import WORDS, write_csv, write_senteval

from eval.ablations.__main__ import main
from eval.ablations.grid import DATA, FOLDER, OPTIONS, RECIPES, Common, read_grid, recipe_of
from eval.ablations.results import Spread, read_grid_result, spread
from eval.ablations.runs import Sets, measure_run, measure_untrained
from eval.ablations.statistics import Sample, differences, holm, paired_t
from eval.ablations.table import grid_table
from eval.published import read_published
from eval.report import results_document
from simcse_kit import SentenceEncoder
from simcse_kit.data.sts import STS_TASKS, load_sts_task
from simcse_kit.errors import UserError
from simcse_kit.evaluate.bootstrap import paired_difference
from simcse_kit.evaluate.sts import score_sts
from simcse_kit.train import gradients
from simcse_kit.train.recipe_file import load_recipe

PUBLISHED = read_published()
GRIDS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
GRID = """
title: Two temperatures
about: A grid of a test.
recipe: sup-simcse-bert-base
data: nli_triplets
reference: low
untrained: {cls: bert-base-cls}
rows:
- {name: high, set: {objectives.0.temperature: 1.0}, published: simcse-temperature-1}
- {name: low, set: {objectives.0.temperature: 0.05}, published: simcse-temperature-0.05}
- {name: no synonyms here, set: {views: [{text: {name: synonym, wordnet: nowhere}}]}}
"""


# --- grids ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GRIDS)
def test_every_row_of_a_grid_makes_a_recipe_and_names_a_published_row(name, tmp_path):
    common = Common("some-model", dict.fromkeys(DATA, "file"), tmp_path, "raw", ["train.lr=0.125"])
    _, grid = read_grid(name)
    known = {row.id for _, row in PUBLISHED.rows()}
    recipes = {row.name: recipe_of(grid, row, common, seed=7, output_dir=tmp_path) for row in grid.rows}
    assert {*grid.untrained.values(), *(row.published for row in grid.rows)} - {None} <= known
    for row in grid.rows:
        recipe = recipes[row.name]
        assert (recipe.model.name, recipe.data.train, recipe.seed) == ("some-model", "file", 7)
        assert (recipe.train.lr, recipe.evaluation.text, recipe.evaluation.split) == (0.125, "raw", "dev")
        assert recipe.stages == []
    assert len({recipe.model_dump_json() for recipe in recipes.values()}) == len(recipes), "two rows are one"


def test_grids_have_the_papers_rows():
    """Every row of the papers' ablations of training settings."""
    grids = [read_grid(name)[1] for name in GRIDS]
    stands_in = {row.published for grid in grids for row in grid.rows}
    stands_in |= {name for grid in grids for name in grid.untrained.values()}
    tables = ("augmentation", "objective", "dropout", "pooling", "hard_negative", "temperature")
    names = [*(f"simcse_{table}_stsb_dev" for table in tables), "consert_batch_size", "consert_augmentation_avg"]
    names.append("sbert_ablation_stsb_dev")
    missing = {row.id for name in names for row in PUBLISHED.tables[name].rows} - stands_in
    assert missing == {"sbert-ablation-u-v-absdiff-nli-trained"}  # the same run as "MEAN"


def test_a_rows_keys_win_over_the_budget_and_the_budget_over_the_recipe(tmp_path):
    _, grid = read_grid("batch-size")
    common = Common("m", {"text": "f"}, tmp_path, "disk", ["train.batch_size=7", "train.lr=1.0e-05"], rows_seen=1000)
    sixteen = next(row for row in grid.rows if row.name == "16")
    recipe = recipe_of(grid, sixteen, common, seed=1, output_dir=tmp_path)
    assert (recipe.train.batch_size, recipe.train.lr, recipe.train.max_steps) == (16, 1e-5, 63)
    assert recipe.train.warmup_ratio == load_recipe(RECIPES / "consert-unsup-bert-base.yaml").train.warmup_ratio


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("title:", "name: x\ntitle:"), "name: Extra inputs"),
        (("reference: low", "reference: middle"), "no row is named 'middle'"),
        (("name: high", "name: Low!"), "folder 'low'"),
        (("data: nli_triplets", "data: nli"), "data: Input should be"),
        (("title: Two", "title: [Two"), "not valid YAML"),
    ],
)
def test_a_grid_that_is_none_is_refused_in_one_line(change, named, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(GRID.replace(*change))
    with pytest.raises(UserError, match=re.escape(named)) as refused:
        read_grid(str(path))
    assert "\n" not in str(refused.value)


# --- statistics -------------------------------------------------------------------------------------------------------


def test_the_paired_t_test_is_scipys():
    draw = np.random.default_rng(1)
    first, second = draw.normal(size=(2, 5))
    theirs = scipy.stats.ttest_rel(first, second)
    interval, p_value = paired_t(first - second)
    assert p_value == pytest.approx(theirs.pvalue)
    assert interval == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    assert paired_t(np.zeros(3)) == ((0, 0), 1)
    assert paired_t(np.ones(3)) == ((1, 1), 0)


def test_holms_correction_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def noisy(gold, noise, seed):
    return gold + noise * np.random.default_rng(seed).normal(size=len(gold))


def sample(gold, noise, seeds):
    predictions = [noisy(gold, noise, seed) for seed in seeds]
    return Sample([100 * scipy.stats.spearmanr(each, gold).statistic for each in predictions], predictions, gold)


GOLD = np.random.default_rng(0).uniform(0, 5, 400).round(1)


def test_over_the_pairs_one_seed_has_the_interval_of_the_paired_bootstrap():
    (found,) = differences([sample(GOLD, 1.0, [1])], sample(GOLD, 3.0, [2]))
    theirs = paired_difference(
        [noisy(GOLD, 1.0, 1)], [noisy(GOLD, 3.0, 2)], [GOLD], metric="spearman", aggregation="all"
    )
    assert found.value == pytest.approx(theirs.value)
    assert found.pairs_ci95 == pytest.approx(theirs.ci95, abs=0.1 * (theirs.ci95[1] - theirs.ci95[0]))
    assert (found.ci95, found.p_value, found.p_holm, found.significant) == (None, None, None, None)


def test_only_what_both_seeds_and_pairs_tell_apart_is_significant():
    reference = sample(GOLD, 3.0, [1, 2, 3])
    better, alike = sample(GOLD, 1.0, [4, 5, 6]), sample(GOLD, 3.0, [7, 8, 9])
    found = differences([better, alike], reference)
    assert [each.significant for each in found] == [True, False]
    p_values = [scipy.stats.ttest_rel(each.figures, reference.figures).pvalue for each in (better, alike)]
    assert [each.p_holm for each in found] == pytest.approx(holm(p_values))
    # The same small step up with every seed: certain over seeds, but within what other pairs would change.
    step = Sample(np.add(reference.figures, [0.10, 0.11, 0.12]), [noisy(GOLD, 3.0, 7)] * 3, GOLD)
    (small,) = differences([step], reference)
    assert small.p_holm < 0.05 and not small.significant
    # Far better in the mean, but not with all seeds alike.
    scattered = Sample(np.add(reference.figures, [1.0, 9.0, 30.0]), [noisy(GOLD, 1.0, 4)] * 3, GOLD)
    (wild,) = differences([scattered], reference)
    assert wild.pairs_ci95[0] > 0 and not wild.significant
    # More rows, more chance finds: what is significant alone is not among others.
    steady = Sample(np.add(reference.figures, [9.0, 10.0, 14.0]), [noisy(GOLD, 1.0, 4)] * 3, GOLD)
    (alone,), among = differences([steady], reference), differences([steady, *[alike] * 4], reference)
    assert alone.p_holm == alone.p_value < 0.05 and alone.significant
    assert among[0].p_holm == pytest.approx(5 * alone.p_value) and not among[0].significant


def test_over_the_pairs_the_mean_over_seeds_has_the_interval_of_a_naive_bootstrap():
    first, second = (
        [noisy(GOLD, noise, seed) for seed in seeds] for noise, seeds in ((1.5, (1, 2, 3)), (3, (4, 5, 6)))
    )
    draw, means = np.random.default_rng(11), []
    for _ in range(300):
        drawn = draw.integers(len(GOLD), size=len(GOLD))
        figures = [
            [100 * scipy.stats.spearmanr(run[drawn], GOLD[drawn]).statistic for run in runs] for runs in (first, second)
        ]
        means.append(np.mean(figures[0]) - np.mean(figures[1]))
    (found,) = differences([sample(GOLD, 1.5, (1, 2, 3))], sample(GOLD, 3, (4, 5, 6)))
    assert found.pairs_ci95[1] - found.value == pytest.approx(1.966 * np.std(means, ddof=1), rel=0.12)
    assert sum(found.pairs_ci95) / 2 == pytest.approx(found.value)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A folder with a grid, triplets, and STS-B dev and test of a few pairs each."""
    draw, folder = random.Random(5), tmp_path_factory.mktemp("material")

    def text():
        return " ".join(draw.choices(WORDS, k=draw.randint(2, 9)))

    write_csv(folder / "triplets.csv", ["sent0", "sent1", "hard_neg"], [[text() for _ in range(3)] for _ in range(24)])
    benchmark = folder / "STS" / "STSBenchmark"
    benchmark.mkdir(parents=True)
    for split in ("dev", "test"):
        lines = ["\t".join(["g", "f", "y", "1", f"{draw.uniform(0, 5):.2f}", text(), text()]) for _ in range(30)]
        (benchmark / f"sts-{split}.csv").write_text("".join(f"{line}\n" for line in lines))
    (folder / "two.yaml").write_text(GRID)
    return folder


@pytest.fixture(scope="module")
def command(material, tiny_checkpoint):
    """Run the command on the grid: ``command(output, *more) -> exit code``."""

    def run(output, *more, seeds="3,1"):
        fixed = ["--model", str(tiny_checkpoint("bert")), "--data", str(material), "-o", str(output), "--seeds", seeds]
        budget = {"train.batch_size": 8, "train.max_steps": 4, "train.lr": 0.001, "train.precision": "fp32"}
        budget["evaluation.every"] = 2
        options = [option for key, value in budget.items() for option in ("--set", f"{key}={value}")]
        return main([str(material / "two.yaml"), *fixed, *options, *more])

    return run


@pytest.fixture(scope="module")
def finished(command, material, tmp_path_factory):
    """The folder where the grid was run, models and all, and what the command printed."""
    output, printed = tmp_path_factory.mktemp("finished"), io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert command(output, "--triplets", str(material / "triplets.csv"), "--keep-models") == 0
    return output, printed.getvalue()


def test_the_figures_of_a_grid_are_those_of_its_models(finished, material, tiny_checkpoint):
    output, _ = finished
    result = read_grid_result(output / "two.json")
    dev, test = (load_sts_task("STSB", [material], split=split) for split in ("dev", "test"))
    assert (result.seeds, result.reference) == ([3, 1], "low")
    high, low, skipped = result.rows
    for row in (high, low):
        for run, seed in zip(row.runs, (3, 1), strict=True):
            folder = output / "runs" / "two" / f"{row.name}-{seed}"
            encoder = SentenceEncoder.from_pretrained(folder, device="cpu")
            assert run.scores.dev == score_sts(encoder, dev).value
            assert run.scores.test == score_sts(encoder, test).value
            predicted = np.load(folder / "similarities.npy")  # what the bootstrap resamples
            assert 100 * scipy.stats.spearmanr(predicted, test.subsets[0].scores).statistic == pytest.approx(
                run.scores.test
            )
            trained = json.loads((folder / "run.json").read_text())
            assert (run.seed, run.steps, run.step) == (seed, 4, trained["best"]["step"])
            lines = list(map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()))
            losses = [line["loss"] for line in lines if line["kind"] == "train"]
            assert [run.first_loss, run.last_loss] == [losses[0], losses[-1]]
            assert trained["data"]["train"].popitem()[1] == result.data["nli_triplets"]["triplets.csv"]
    figures = np.array([[run.scores.test for run in row.runs] for row in (high, low)])
    assert high.test.mean == pytest.approx(figures[0].mean()) and high.test.std == pytest.approx(figures[0].std(ddof=1))
    assert high.difference.value == pytest.approx((figures[0] - figures[1]).mean())
    assert high.difference.p_value == pytest.approx(scipy.stats.ttest_rel(*figures).pvalue)
    assert low.difference is None
    assert skipped.skipped == "the machine had no WordNet" and skipped.runs == []
    backbone = SentenceEncoder.from_pretrained(tiny_checkpoint("bert"), pooling="cls", device="cpu")
    assert result.untrained["cls"].test == score_sts(backbone, test).value


def test_the_table_shows_ours_beside_the_published_figures(finished):
    output, printed = finished
    result = read_grid_result(output / "two.json")
    table = grid_table(result, PUBLISHED)
    assert table in printed
    cells = {line.split(" | ")[0].lstrip("| "): line.strip("| ").split(" | ") for line in table.splitlines()}
    high = result.rows[0]
    assert cells["high"][1:3] == [f"{s.mean:.2f} ± {s.std:.2f}" for s in (high.dev, high.test)]
    assert cells["high"][-1] == "64.0 (STS-B dev)" and cells["low"][-2:] == ["reference", "86.2 (STS-B dev)"]
    assert cells["high"][-2].strip("*").startswith(f"{high.difference.value:+.2f}")
    assert cells["untrained, cls"][2] == f"{result.untrained['cls'].test:.2f}"
    assert cells["untrained, cls"][-1] == "16.50 (STS-B test, bert-base-uncased)"
    assert "- no synonyms here: skipped: the machine had no WordNet" in table
    assert "Supervised SimCSE, BERT-base" in table  # of the published figures


def test_the_report_shows_grids_and_none_where_there_are_none(finished, tmp_path):
    assert "Ablations here" not in results_document(PUBLISHED, [tmp_path])
    place = tmp_path / "ablations" / "tiny"
    place.mkdir(parents=True)
    shutil.copy(finished[0] / "two.json", place)
    document = results_document(PUBLISHED, [tmp_path])
    result = read_grid_result(place / "two.json")
    assert f"### Two temperatures, from {result.model}\n" in document
    assert grid_table(result, PUBLISHED) in document and "Holm" in document
    (place / "two.json").write_text(json.dumps({"grid": "two"}))
    with pytest.raises(UserError, match=r"two\.json: not a result file of eval\.ablations"):
        results_document(PUBLISHED, [tmp_path])


def test_an_interrupted_grid_goes_on_where_it_was_and_gives_the_same(
    finished, command, material, tmp_path, monkeypatch
):
    steps, stop_at = [], [11]  # in the third of four runs of four steps
    step_seed = gradients.step_seed

    def counted(*arguments):
        steps.append(arguments)
        if len(steps) == stop_at[0]:
            signal.raise_signal(signal.SIGINT)
        return step_seed(*arguments)

    monkeypatch.setattr(gradients, "step_seed", counted)
    triplets = ["--triplets", str(material / "triplets.csv")]
    assert command(tmp_path, *triplets) == 130
    assert [step[0] for step in steps] == [3] * 8 + [1] * 3  # all rows with the first seed come first
    first_seed = read_grid_result(tmp_path / "two.json")
    assert first_seed.seeds == [3] and first_seed.rows[0].difference.significant is None
    assert "±" not in grid_table(first_seed, PUBLISHED)
    assert command(tmp_path, *triplets) == 0
    assert [step[:2] for step in steps[11:]] == [(1, 4), *((1, step) for step in (1, 2, 3, 4))]
    again, whole = (read_grid_result(folder / "two.json") for folder in (tmp_path, finished[0]))
    for mine, theirs in zip(again.rows, whole.rows, strict=True):
        assert [run.scores for run in mine.runs] == [run.scores for run in theirs.runs]
        assert mine.difference == theirs.difference
    assert not list(tmp_path.rglob("*.safetensors")) and list(finished[0].rglob("*.safetensors"))
    assert command(tmp_path, *triplets) == 0 and len(steps) == 16  # nothing is trained again
    test = load_sts_task("STSB", [material])
    with pytest.raises(UserError, match="measured on other sets, and its model is gone"):
        measure_run(tmp_path / "runs" / "two" / "low-3", Sets(test, test), pooling=None, keep_model=False)


def test_a_run_that_fails_is_named(command, material, tmp_path, capsys):
    assert command(tmp_path, "--triplets", str(material / "triplets.csv"), "--set", "model.max_length=500") == 2
    assert "error: two: high, seed 3: max_length 500 does not fit" in capsys.readouterr().err


def test_with_all_tasks_the_average_is_of_the_seven_rounded_figures(tiny_checkpoint, tmp_path):
    write_senteval(tmp_path)
    found = measure_untrained(str(tiny_checkpoint("bert")), Sets.load(tmp_path, text="disk", all_tasks=True), "mean")
    encoder = SentenceEncoder.from_pretrained(tiny_checkpoint("bert"), pooling="mean", device="cpu")
    expected = {task: score_sts(encoder, load_sts_task(task, [tmp_path])).value for task in STS_TASKS}
    assert found.tasks == pytest.approx(expected) and found.test == found.tasks["STSB"]
    assert found.sts7 == pytest.approx(np.mean([round(value, 2) for value in expected.values()]))


def test_a_figure_that_is_undefined_for_a_seed_has_no_mean():
    assert spread([1.0, None]) is None and spread([]) is None
    assert spread([1.0]) == Spread(mean=1.0, std=None)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ([], "--triplets FILE is missing; needed by the rows two: high; two: low"),
        (["--triplets", "nowhere.csv"], "nowhere.csv"),
        (["--triplets", "{triplets}", "--set", "seed=4"], "--set seed=4"),
        (["--triplets", "{triplets}", "--set", "train.speed=4"], "train.speed: unknown key"),
        (["--triplets", "{triplets}", "--seeds", "1,1"], "--seeds 1,1"),
        (["--triplets", "{triplets}", "--tasks", "sts", "--sts-text", "raw"], "leave --sts-text raw out"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(more, named, command, material, tmp_path, capsys):
    given = [option.format(triplets=material / "triplets.csv") for option in more]
    assert command(tmp_path / "new", *given) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and named in error
    assert not (tmp_path / "new").exists()


def test_every_kind_of_data_has_an_option():
    assert OPTIONS.keys() == DATA.keys()
