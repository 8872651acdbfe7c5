"""The papers' findings: each refers to rows that are there, and the command runs, resumes and is reported."""

import json
import random
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
from small_files import WORDS, write_csv, write_senteval

from eval.ablations.grid import Common, read_grid, recipe_of
from eval.ablations.results import read_grid_result
from eval.findings.__main__ import main
from eval.findings.claims import UNTRAINED, Finding, Place, published_difference, read_findings
from eval.findings.table import findings_table
from eval.findings.untrained import interval, resample
from eval.findings.verdicts import read_backbone
from eval.published import read_published
from eval.report import results_document
from simcse_kit import SentenceEncoder
from simcse_kit.data.sts import STS_TASKS, load_sts_task
from simcse_kit.errors import UserError
from simcse_kit.evaluate.sts import score_sts
from simcse_kit.train import gradients
from simcse_kit.whitening import whiten

PUBLISHED = read_published()
FINDINGS = read_findings()
ROWS = {row.id: row for _, row in PUBLISHED.rows()}

# --- the findings as data ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("finding", FINDINGS.findings, ids=lambda finding: finding.claim)
def test_a_finding_compares_rows_that_are_there_and_the_papers_figures_bear_it_out(finding):
    for pair in finding.pairs:
        ids = [FINDINGS.published_id(place) for place in pair]
        assert {*ids} - {None} <= ROWS.keys()
        difference = published_difference(FINDINGS, PUBLISHED, *pair, finding.figure)
        assert difference is None or difference > 0
    assert finding.figure in ("alignment", "uniformity") or any(
        FINDINGS.published_id(place) for pair in finding.pairs for place in pair
    )


def test_findings_are_told_apart_and_untrained_encoders_stand_beside_rows_of_their_pooling():
    claims = [finding.claim for finding in FINDINGS.findings]
    assert len(set(claims)) == len(claims)
    for encoder in FINDINGS.untrained.values():
        row = ROWS.get(encoder.published)
        assert row is None or row.pooling in (None, encoder.pooling)
        assert row is None or row.backbone == "bert-base-uncased"


def test_what_the_papers_print_is_compared_within_one_protocol():
    def difference(above, below, figure="test"):
        return published_difference(FINDINGS, PUBLISHED, Place.parse(above), Place.parse(below), figure)

    assert difference("dropout/0.1", "dropout/fixed 0.1") == pytest.approx(82.5 - 43.6)
    assert difference("main/unsup SimCSE", "untrained/mean", "sts7") == pytest.approx(76.25 - 54.81)
    assert difference("main/STS-B regression", "untrained/mean") is None  # raw text, and SentEval's
    assert difference("main/unsup SimCSE", "untrained/mean", "uniformity") is None
    assert difference("main/sup SimCSE without hard negatives", "untrained/mean", "sts7") is None
    with pytest.raises(KeyError):
        difference("dropout/0.3", "dropout/0.1")


def test_a_finding_over_two_grids_is_refused():
    with pytest.raises(ValueError, match="rows of dropout, main"):
        Finding(claim="x", source="y", figure="test", above=["main/unsup SimCSE"], below=["dropout/0.1"])
    assert Place.parse("a grid/a w/o b") == ("a grid", "a w/o b")


def test_words_are_substituted_by_the_backbones_own_masked_language_model(tmp_path):
    _, grid = read_grid("augmentation")
    (row,) = (row for row in grid.rows if row.name == "MLM 15%")
    recipe = recipe_of(grid, row, Common("some/model", {"text": "f"}, tmp_path, "disk"), seed=1, output_dir=tmp_path)
    assert recipe.views[1].text.settings["model"] == "some/model"


# --- intervals of what is not trained -------------------------------------------------------------------------------


def test_intervals_over_two_tasks_are_those_of_a_naive_bootstrap_within_subsets():
    draw = np.random.default_rng(4)
    gold = [[draw.uniform(0, 5, n) for n in sizes] for sizes in ((60, 90), (80,))]
    tasks = [SimpleNamespace(subsets=[SimpleNamespace(scores=each) for each in task]) for task in gold]
    encoders = [[[each + noise * draw.normal(size=len(each)) for each in task] for task in gold] for noise in (1, 3)]
    averages = resample(tasks, encoders).mean(axis=1)
    found, p_value = interval(7.0, averages[0] - averages[1], tasks)

    def average(encoder, chosen):
        figures = []
        for predicted, task, places in zip(encoder, gold, chosen, strict=True):
            both = [np.concatenate([x[i] for x, i in zip(side, places, strict=True)]) for side in (predicted, task)]
            figures.append(100 * scipy.stats.spearmanr(*both).statistic)
        return np.mean(figures)

    drawn = []
    for _ in range(400):
        chosen = [[draw.integers(len(each), size=len(each)) for each in task] for task in gold]
        drawn.append(average(encoders[0], chosen) - average(encoders[1], chosen))
    assert found[1] - 7 == pytest.approx(7 - found[0]) == pytest.approx(1.97 * np.std(drawn), rel=0.12)
    assert p_value == pytest.approx(2 * scipy.stats.t.sf(7 / ((found[1] - 7) / scipy.stats.t.ppf(0.975, 227)), 227))
    assert interval(0.0, np.zeros(9), tasks) == ((0, 0), 1)
    assert interval(1.0, np.array([1.0, *[np.nan] * 9]), tasks) is None


# --- the command ------------------------------------------------------------------------------------------------------

GRID = """
title: Two rows
about: Two of the rows of the grid of this name.
recipe: sup-simcse-bert-base
data: nli_triplets
reference: unsup SimCSE
rows:
- {name: unsup SimCSE, recipe: unsup-simcse-bert-base, data: text, published: simcse-unsup-bert-base}
- {name: sup SimCSE, published: simcse-sup-bert-base}
"""


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    draw, folder = random.Random(5), tmp_path_factory.mktemp("material")

    def text():
        return " ".join(draw.choices(WORDS, k=draw.randint(2, 9)))

    write_senteval(folder)
    write_csv(folder / "triplets.csv", ["sent0", "sent1", "hard_neg"], [[text() for _ in range(3)] for _ in range(24)])
    (folder / "text.txt").write_text("".join(f"{text()}\n" for _ in range(24)))
    pairs = [{"premise": text(), "hypothesis": text(), "label": "neutral"} for _ in range(40)]
    (folder / "pairs.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    (folder / "main.yaml").write_text(GRID)
    return folder


@pytest.fixture(scope="module")
def command(material, tiny_checkpoint):
    """Run the command on the grid of two rows: ``command(output, *more) -> exit code``."""

    def run(output, *more):
        given = {"text": "text.txt", "triplets": "triplets.csv", "pairs": "pairs.jsonl"}
        options = [part for name, file in given.items() for part in (f"--{name}", str(material / file))]
        budget = {"train.batch_size": 12, "train.precision": "fp32", "train.lr": 0.001, "evaluation.every": 1}
        options += [part for key, value in budget.items() for part in ("--set", f"{key}={value}")]
        options += ["--model", str(tiny_checkpoint("bert")), "--data", str(material), "-o", str(output)]
        return main([str(material / "main.yaml"), *options, "--seeds", "1,2", "--rows", "36", *more])

    return run


@pytest.fixture(scope="module")
def steps():
    """The seeds of the steps that were trained."""
    return []


@pytest.fixture(scope="module")
def finished(command, steps, tmp_path_factory):
    """The folder of a run that was interrupted in its second seed and went on."""
    output, step_seed = tmp_path_factory.mktemp("finished"), gradients.step_seed

    def counted(*arguments):
        steps.append(arguments[0])
        if len(steps) == 8:  # of twelve: two rows, two seeds, three steps
            signal.raise_signal(signal.SIGINT)
        return step_seed(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradients, "step_seed", counted)
        assert command(output) == 130
        assert read_grid_result(output / "main.json").seeds == [1]
        assert command(output) == 0
        before = (output / f"{UNTRAINED}.json").stat().st_mtime_ns
        assert command(output) == 0
    assert (output / f"{UNTRAINED}.json").stat().st_mtime_ns == before, "measured again"
    return output


def test_the_command_goes_on_where_it_was_interrupted_and_trains_nothing_twice(finished, steps):
    assert steps.count(1) == 6 and steps.count(2) in (6, 7)  # the interrupted step comes again
    assert [len(row.runs) for row in read_grid_result(finished / "main.json").rows] == [2, 2]
    assert not list(finished.rglob("*.safetensors"))


def test_untrained_encoders_have_the_figures_of_their_models(finished, material, tiny_checkpoint):
    result = read_backbone(finished).untrained
    assert {row.name: row.encoder for row in result.rows} == FINDINGS.untrained
    pairs = [json.loads(line) for line in (material / "pairs.jsonl").read_text().splitlines()[:36]]
    sentences = list(dict.fromkeys(pair[side] for side in ("premise", "hypothesis") for pair in pairs))
    tasks = [load_sts_task(name, [material]) for name in STS_TASKS]
    figures = {}
    for row in result.rows:
        encoder = SentenceEncoder.from_pretrained(tiny_checkpoint("bert"), pooling=row.encoder.pooling, device="cpu")
        if row.encoder.whitened:
            encoder = whiten(encoder, sentences)
        expected = {task.name: score_sts(encoder, task).value for task in tasks}
        assert row.scores.tasks == pytest.approx(expected)
        figures[row.name] = np.mean([round(value, 2) for value in expected.values()])
        assert row.sts7_ci95[0] < row.scores.sts7 < row.sts7_ci95[1]
    found = result.difference("cls", "mean, whitened", "sts7")
    assert found.value == pytest.approx(figures["cls"] - figures["mean, whitened"])
    assert (found.ci95[0] < 0 < found.ci95[1]) == (found.p_value > 0.05)


def test_the_report_has_verdicts_where_there_are_results_and_one_line_where_there_are_none(finished, tmp_path):
    empty = results_document(PUBLISHED, [tmp_path])
    assert "Not run: the" in empty and "On tiny" not in empty
    place = tmp_path / "ablations" / "tiny"
    place.mkdir(parents=True)
    shutil.copy(finished / "main.json", place)
    assert "Not run: the" in results_document(PUBLISHED, [tmp_path])  # a grid alone: not the command's folder
    shutil.copy(finished / f"{UNTRAINED}.json", place)
    document = results_document(PUBLISHED, [tmp_path])
    assert "Not run: the" not in document and "### On tiny\n" in document and "### Two rows, from tiny" in document
    assert findings_table(FINDINGS, read_backbone(finished), PUBLISHED) in document
    assert "| Supervised SimCSE is above unsupervised SimCSE. | SimCSE Table 5 |" in document
    for changed, named in (("weights_sha256", "of other weights"), ("STSB dev", "another STSB dev")):
        content = json.loads((finished / f"{UNTRAINED}.json").read_text())
        (content if changed in content else content["rows"][0]["scores"]["sets"])[changed] = "other"
        (place / f"{UNTRAINED}.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=rf"main\.json: .*{named}"):
            read_backbone(place)


def test_without_grids_the_command_takes_all_that_findings_need(capsys, tmp_path):
    assert main(["--model", "m", "--data", str(tmp_path), "-o", str(tmp_path / "new"), "--text", "t"]) == 2
    error = capsys.readouterr().err
    assert "--documents FILE is missing" in error and "objective: next sentence" in error and error.count("\n") == 1
    assert not (tmp_path / "new").exists()
    trained = {place.grid for each in FINDINGS.findings for pair in each.pairs for place in pair} - {UNTRAINED}
    assert set(FINDINGS.grids) == trained


def test_whitening_needs_pairs(command, material, capsys, tmp_path):
    options = ["--model", "m", "--data", str(material), "-o", str(tmp_path / "new")]
    assert main(["dropout", *options, "--text", str(material / "text.txt")]) == 2
    assert "--pairs FILE is missing" in capsys.readouterr().err
