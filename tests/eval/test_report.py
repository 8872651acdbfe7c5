"""The report follows from the result files: figures, differences, what is not run, and what is refused."""

import json
import re

import pytest

from eval.published import read_published
from eval.report import FOLDERS, ROOT, readme_with_results, results_document
from simcse_kit.data.sts import STS_TASKS
from simcse_kit.data.transfer import TRANSFER_TASKS
from simcse_kit.errors import UserError

PUBLISHED = read_published()
ROW = "simcse-unsup-bert-base"
TITLE = "STS, aggregation `all`"
VALUES = dict(zip(STS_TASKS, (69.404, 80.406, 74.3799, 80.0, 80.0, 76.0, 72.0), strict=True))
COUNTS = dict(zip(STS_TASKS, (3108, 1500, 3750, 3000, 1186, 1379, 4927), strict=True))
COUNTS |= dict(zip(TRANSFER_TASKS, (10662, 3775, 10000, 10606, 1821, 500, 1725), strict=True))
SEVEN = 532.19 / 7  # the mean of 69.40, 80.41, 74.38, 80, 80, 76, 72
MODEL = {
    "id": "m0",
    "path": "runs/some-model",
    "weights_sha256": "ab" * 32,
    "pooling": "cls",
    "head": "none",
    "normalize": False,
    "dtype": "float32",
    "max_length": 512,
}


def entry(task, value, *, model="m0", text="disk", classifier=None, **changes):
    return {
        "model": model,
        "task": task,
        "split": "test",
        "metric": "spearman",
        "aggregation": "all",
        "protocol": {"text": text, "classifier": classifier, "data_sha256": f"{task:0<64}"},
        "value": value,
        "reason": None,
        "n": COUNTS[task],
        "ci95": None,
        "subsets": {},
        **changes,
    }


def trained(seed, *, selected_on_test=False):
    return {"seed": seed, "commit": None, "data": {}, "best": None, "selected_on_test": selected_on_test}


def sts_file(*, models=(MODEL,), averages=None, **changes):
    """A result file as simcse-eval wrote it before it knew seeds, geometry and overlap."""
    return {
        "models": list(models),
        "results": [entry(task, value, **changes) for task, value in VALUES.items()],
        "averages": averages or [{"model": "m0", "name": "sts7", "value": SEVEN}],
        "versions": {},
    }


def transfer_entries(classifier, first):
    fixed = {"aggregation": None, "classifier": classifier}
    accuracies = [entry(task, first + i, metric="accuracy", **fixed) for i, task in enumerate(TRANSFER_TASKS)]
    return [*accuracies, entry("MRPC", 80.126, metric="f1", **fixed)]


@pytest.fixture
def report(tmp_path):
    """Write result files and return the document that they give."""

    def write(**files):
        for name, content in files.items():
            (tmp_path / f"{name.replace('_', '-')}.json").write_text(json.dumps(content), encoding="utf-8")
        return results_document(PUBLISHED, [tmp_path])

    return write


def table(document, title):
    """The rows of the table under a heading, each a list of cells."""
    section = re.split(rf"^#+ {re.escape(title)}$", document, maxsplit=1, flags=re.M)[1]
    section = re.split(r"^#+ ", section, maxsplit=1, flags=re.M)[0]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in section.splitlines() if line[:1] == "|"]


def footnotes(document, cell):
    """The texts of the footnotes to which a cell refers."""
    texts = dict(re.findall(r"^\[\^(\d+)\]: (.*)$", document, flags=re.M))
    return [texts[number] for number in re.findall(r"\[\^(\d+)\]", cell)]


def test_what_is_checked_in_is_what_the_result_files_give():
    again = "out of date: run `python -m eval.report`"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert results_document(PUBLISHED, FOLDERS) == (ROOT / "eval" / "RESULTS.md").read_text(encoding="utf-8"), again
    assert readme_with_results(readme, FOLDERS[0]) == readme, again


def test_ours_stands_below_the_published_row_with_the_difference_between_the_figures_as_shown(report):
    rows = table(report(simcse_unsup_bert_base=sts_file()), TITLE)
    at = next(i for i, row in enumerate(rows) if row[-1] == f"`{ROW}`")
    published, ours, difference = (row[2:10] for row in rows[at : at + 3])
    assert published == ["68.40", "82.41", "74.38", "80.91", "78.56", "76.85", "72.23", "76.25"]
    assert ours == ["69.40", "80.41", "74.38", "80.00", "80.00", "76.00", "72.00", "76.03"]
    assert difference == ["+1.00", "-2.00", "+0.00", "-0.91", "+1.44", "-0.85", "-0.23", "-0.22"]


def test_our_result_says_how_it_was_measured(report):
    document = report(simcse_unsup_bert_base=sts_file(models=[{**MODEL, "training": trained(7)}]))
    line = next(line for line in document.splitlines() if line.startswith(f"- {ROW} "))
    for part in ("pooling cls", "head none", "float32", "512 tokens", "seeds 7", "weights abababab", "STS12 STS12000"):
        assert part in line
    assert "Protocol: spearman, aggregation `all`, text disk, test split" in document
    assert "chosen on a test split" not in document
    chosen = [{**MODEL, "training": trained(7, selected_on_test=True)}]
    assert "seeds 7, **chosen on a test split**" in report(simcse_unsup_bert_base=sts_file(models=chosen))


def test_a_row_without_a_result_is_not_run_and_has_no_line_of_ours(report):
    rows = table(report(simcse_unsup_bert_base=sts_file()), TITLE)
    others = [row for row in rows[2:] if len(row) == 12 and row[-1] not in (f"`{ROW}`", "")]
    assert len(others) == len(PUBLISHED.tables["sts_all"].rows) - 1
    assert {row[-1] for row in others} == {"not run"}
    assert sum(row[0].startswith("- ") for row in rows) == 2


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"aggregation": "wmean"}, "aggregation wmean, not all"),
        ({"metric": "pearson"}, "metric pearson, not spearman"),
        ({"text": "raw"}, "text raw, not disk"),
        ({"split": "dev"}, "split dev, not test"),
        ({"n": 9927}, "SICKR over 9927, not 4927"),
        ({"models": [{**MODEL, "pooling": "mean"}]}, "pooling mean, not cls"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_figure_of_another_protocol_is_refused_and_the_difference_named(report, changes, named):
    with pytest.raises(UserError, match=re.escape(named)) as error:
        report(simcse_unsup_bert_base=sts_file(**changes))
    assert f"{ROW}.json" in str(error.value) and "\n" not in str(error.value)


def test_a_result_stands_beside_no_row_of_other_tasks_nor_does_a_file_of_several_models(report):
    with pytest.raises(UserError, match="none of the tasks of the published row simcse-unsup-bert-base-transfer"):
        report(simcse_unsup_bert_base_transfer=sts_file())
    two = sts_file(models=[MODEL, {**MODEL, "id": "m1"}])
    with pytest.raises(UserError, match="holds 2 models"):
        report(simcse_unsup_bert_base_transfer=sts_file(aggregation=None), simcse_unsup_bert_base=two)


def test_a_file_of_both_aggregations_shows_each_beside_its_own_row_only(report):
    both = sts_file()
    both["results"] += [entry(task, value - 10, aggregation="wmean") for task, value in VALUES.items()]
    document = report(simcse_unsup_bert_base=both, simcse_unsup_bert_base_wmean=both)
    for title, expected in ((TITLE, ["69.40", "76.03"]), ("STS, aggregation `wmean`", ["59.40", "-"])):
        ours = next(row for row in table(document, title) if row[0] == "- ours")
        assert [ours[2], ours[9]] == expected


def test_several_seeds_are_one_result_with_mean_and_standard_deviation(report):
    content = sts_file(models=[{**MODEL, "id": f"m{i}", "training": trained(i)} for i in range(2)])
    content["results"] += [entry(task, 0.0, model="m1") for task in VALUES]
    content["results"][0]["ci95"] = [67.0, 71.0]
    content["averages"].append({"model": "m1", "name": "sts7", "value": 0.0})
    known = {"models": ["m0", "m1"], "n": 2}
    content["seeds"] = [
        {**known, "task": task, "metric": "spearman", "mean": value - 1, "std": 0.333} for task, value in VALUES.items()
    ]
    content["seeds"].append({**known, "task": "sts7", "metric": None, "mean": 75.0, "std": 0.2})
    document = report(simcse_unsup_bert_base=content, quickstart=content)
    measured = table(document, "Spearman, aggregation `all`, text disk, test split")[2:]
    assert [row[:3] for row in measured] == [["quickstart", "cls", "68.40 ± 0.33"]]  # no interval of one seed
    rows = table(document, TITLE)
    at = next(i for i, row in enumerate(rows) if row[0] == "- ours")
    assert (rows[at][2], rows[at][9]) == ("68.40 ± 0.33", "75.00 ± 0.20")
    assert (rows[at + 1][2], rows[at + 1][9]) == ("+0.00", "-1.25")
    assert "seeds 0, 1; weights abababab, abababab" in document


def test_other_files_make_a_table_for_each_protocol(report):
    content = sts_file(models=[MODEL, {**MODEL, "id": "m1", "path": "words:vectors/glove.txt", "pooling": "mean"}])
    content["results"][0]["ci95"] = [67.0, 71.126]
    content["results"] += [entry("STS12", 50.0, model="m1"), entry("STSB", 40.0, model="m1", text="raw")]
    document = report(quickstart=content)
    header, _, *rows = table(document, "Spearman, aggregation `all`, text disk, test split")
    assert header == ["model", "pooling", *STS_TASKS[:5], "STS-B", "SICK-R", "Avg."]
    assert rows[0][:3] + rows[0][-1:] == ["some-model", "cls", "69.40 [67.00, 71.13]", "76.03"]
    assert rows[1] == ["glove.txt", "mean", "50.00", *["-"] * 7]
    raw = table(document, "Spearman, aggregation `all`, text raw, test split")
    assert raw[2:] == [["glove.txt", "mean", "40.00"]]


def test_rows_of_ablations_lie_beside_the_folders_of_grids_and_neither_is_taken_for_the_other(tmp_path):
    ablations = tmp_path / "ablations"
    (ablations / "some-model").mkdir(parents=True)
    content = {**sts_file(), "results": [entry("STSB", 81.25, split="dev", n=1500)], "averages": []}
    (ablations / "simcse-dropout-0.1.json").write_text(json.dumps(content), encoding="utf-8")
    document = results_document(PUBLISHED, [tmp_path, ablations])
    rows = table(document, "SimCSE Table 3: dropout")
    assert next(row[1] for row in rows if row[0] == "- ours") == "81.25"
    assert "Ablations here" not in document
    (ablations / "some-model" / "simcse-dropout-0.2.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"0\.2\.json: not a result file of eval\.ablations"):
        results_document(PUBLISHED, [tmp_path, ablations])


def test_the_classifiers_of_one_file_are_kept_apart(report):
    content = sts_file()
    content["results"] = transfer_entries("linear", 70.0) + transfer_entries("senteval", 60.0)
    content["averages"] = [{"model": "m0", "name": "transfer7", "value": 73.0}]
    document = report(quickstart=content, simcse_unsup_bert_base_transfer=content)
    for classifier, figures in (("linear", ["70.00", "76.00", "80.13", "73.00"]), ("senteval", ["60.00", "66.00"])):
        header, _, row = table(document, f"Accuracy, text disk, test split, classifier {classifier}")
        assert header[-1 if classifier == "senteval" else -2] == "MRPC F1"
        assert [row[2], *row[8:]][: len(figures)] == figures
    ours = next(row for row in table(document, "Transfer tasks") if row[0] == "- ours")
    assert ours[2:9] == [f"{60 + i}.00" for i in range(7)]
    assert ours[9] == "-"  # the file's average is the other classifier's


def test_footnotes_say_what_is_wrong_with_a_published_row_once(report):
    document = report()
    rows = table(document, TITLE)
    mean = next(row for row in rows if row[0].startswith("BERT-avg"))
    assert any("repeats the figure of STS13" in text for text in footnotes(document, mean[0]))
    sbert = next(row for row in rows if row[0].startswith("SBERT-NLI[") and row[1] == "bert-base-uncased")
    assert any("74.86, not 74.89" in text for text in footnotes(document, sbert[0]))
    for note in PUBLISHED.notes.values():
        assert document.count(f"]: {note}\n") == 1


def test_overlap_with_training_text_and_undefined_figures_are_footnotes_of_the_figure(report):
    content = sts_file()
    content["results"][0]["overlap"] = {"train_rows": 509, "of_rows": 29722, "sentences": 12, "of_sentences": 2758}
    content["results"][1]["overlap"] = {"train_rows": 0, "of_rows": 29722, "sentences": 0, "of_sentences": 2758}
    content["results"][2].update(value=None, reason="all 3750 cosine similarities are equal (1)")
    content["averages"] = []
    document = report(quickstart=content)
    row = table(document, "Spearman, aggregation `all`, text disk, test split")[2]
    (overlap,) = footnotes(document, row[2])
    assert "12 of the 2,758 sentences" in overlap and "509 of its 29,722 rows" in overlap
    assert row[3] == "80.41"
    assert footnotes(document, row[4]) == ["Undefined: all 3750 cosine similarities are equal (1)."]
    assert row[4].startswith("-") and len(row) == 9


def test_an_undefined_figure_has_no_difference(report):
    content = sts_file(averages=[{"model": "m0", "name": "sts7", "value": 1.0}])
    content["results"][0].update(value=None, reason="all 3108 cosine similarities are equal (1)")
    rows = table(report(simcse_unsup_bert_base=content), TITLE)
    difference = next(row for row in rows if row[0] == "- difference")
    assert (difference[2], difference[3], difference[9]) == ("-", "-2.00", "-")


def test_geometry_is_a_table_of_its_own(report):
    content = sts_file()
    shape = {"alignment": 0.204, "uniformity": -2.346, "anisotropy": 0.1, "effective_rank": None}
    content["geometry"] = [{"model": "m0", "task": "STSB", "split": "test", "text": "disk", **shape}]
    _, _, row = table(report(quickstart=content), "Geometry")
    assert row == ["quickstart", "STS-B test, disk", "0.20", "-2.35", "0.10", "-"]


def test_the_readme_shows_only_results_of_the_papers_protocol(tmp_path):
    overlap = {"train_rows": 509, "of_rows": 29722, "sentences": 12, "of_sentences": 2758}
    for name, changes in {"ours": {"overlap": overlap}, "other": {"aggregation": "wmean"}}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(sts_file(**changes)), encoding="utf-8")
    before = (ROOT / "README.md").read_text(encoding="utf-8")
    after = readme_with_results(before, tmp_path)
    assert "| ours | cls | 69.40[^1] |" in after and "[^1]: 12 of the 2,758" in after and "| other |" not in after
    written = r"(<!-- (results|speed): .*? -->).*?(<!-- end of \2 -->)"
    kept_before, kept_after = (re.subn(written, r"\1\3", text, flags=re.S) for text in (before, after))
    assert kept_before == kept_after and kept_before[1] == 2


def test_the_geometry_of_several_seeds_is_their_mean(report):
    content = sts_file(models=[{**MODEL, "id": f"m{i}", "training": trained(i)} for i in range(2)])
    known = {"models": ["m0", "m1"], "n": 2}
    content["results"] += [entry(task, 0.0, model="m1") for task in VALUES]
    content["seeds"] = [
        {**known, "task": task, "metric": "spearman", "mean": value, "std": 0.1} for task, value in VALUES.items()
    ]
    place = {"task": "STSB", "split": "test", "text": "disk"}
    content["geometry"] = [
        {"model": "m0", **place, "alignment": 0.2, "uniformity": -2.0, "anisotropy": 0.1, "effective_rank": 50.0},
        {"model": "m1", **place, "alignment": 0.4, "uniformity": -3.0, "anisotropy": 0.2, "effective_rank": None},
    ]
    _, _, row = table(report(quickstart=content), "Geometry")
    assert row == ["quickstart", "STS-B test, disk", "0.30", "-2.50", "0.15", "-"]
