import hashlib
import json
import re
import shutil

import numpy as np
import pytest
from scipy.stats import spearmanr

from simcse_kit.data.senteval import data_root
from simcse_kit.data.sts import STS_TASKS, load_evaluation, load_sts_file, load_sts_task
from simcse_kit.errors import UserError

DATA = data_root()
pytestmark = pytest.mark.usefixtures("no_network")
needs_data = pytest.mark.skipif(DATA is None, reason="SIMCSE_KIT_DATA names no data folder")

# annotated pairs of the official test sets
COUNTS = {
    "STS12": {"MSRpar": 750, "MSRvid": 750, "SMTeuroparl": 459, "surprise.OnWN": 750, "surprise.SMTnews": 399},
    "STS13": {"FNWN": 189, "headlines": 750, "OnWN": 561},
    "STS14": {"deft-forum": 450, "deft-news": 300, "headlines": 750, "images": 750, "OnWN": 750, "tweet-news": 750},
    "STS15": {"answers-forums": 375, "answers-students": 750, "belief": 375, "headlines": 750, "images": 750},
    "STS16": {"answer-answer": 254, "headlines": 249, "plagiarism": 230, "postediting": 244, "question-question": 209},
    "STSB": {"STSB": 1379},
    "SICKR": {"SICKR": 4927},
}

# Spearman of word overlap with gold, computed apart from this code: a shifted line would show
OVERLAP = {
    ("STS12", "test"): 0.491, ("STS13", "test"): 0.503, ("STS14", "test"): 0.562, ("STS15", "test"): 0.698,
    ("STS16", "test"): 0.600, ("STSB", "train"): 0.586, ("STSB", "dev"): 0.653, ("STSB", "test"): 0.565,
    ("SICKR", "train"): 0.574, ("SICKR", "dev"): 0.589, ("SICKR", "test"): 0.575,
}  # fmt: skip


def dice(a, b):
    a, b = set(re.findall(r"\w+", a.lower())), set(re.findall(r"\w+", b.lower()))
    return 2 * len(a & b) / (len(a) + len(b))


def pairs_of(task):
    return [pair for s in task.subsets for pair in zip(s.sentences1, s.sentences2, s.scores.tolist(), strict=True)]


@needs_data
@pytest.mark.reference
@pytest.mark.parametrize("name", STS_TASKS)
def test_pair_counts(name):
    task = load_sts_task(name.lower(), [DATA / "sts"])
    assert (task.name, task.split, task.text) == (name, "test", "disk")
    assert {s.name: len(s.scores) for s in task.subsets} == COUNTS[name]
    assert all(len(s.sentences1) == len(s.sentences2) == len(s.scores) for s in task.subsets)
    assert {s.scores.dtype for s in task.subsets} == {np.dtype(np.float64)}


@needs_data
@pytest.mark.reference
@pytest.mark.parametrize(("name", "split"), OVERLAP)
def test_text_and_gold_are_aligned(name, split):
    pairs = pairs_of(load_sts_task(name, [DATA / "sts"], split=split))
    overlap = spearmanr([dice(a, b) for a, b, _ in pairs], [score for _, _, score in pairs]).statistic
    assert overlap == pytest.approx(OVERLAP[name, split], abs=5e-4)


@needs_data
@pytest.mark.reference
@pytest.mark.parametrize(("split", "rows"), [("train", 5749), ("dev", 1500), ("test", 1379)])
def test_raw_stsb_has_the_same_scores_and_other_text(split, rows):
    raw = load_sts_task("STSB", [DATA / "sts"], split=split, text="raw")
    disk = load_sts_task("STSB", [DATA / "sts"], split=split)
    assert raw.text == "raw"
    assert len(raw.subsets[0].scores) == rows
    np.testing.assert_array_equal(raw.subsets[0].scores, disk.subsets[0].scores)
    assert raw.subsets[0].sentences1 != disk.subsets[0].sentences1
    assert any(sentence != sentence.lower() for sentence in raw.subsets[0].sentences2)
    own = load_sts_file(DATA / "sts" / "raw" / "STSBenchmark" / f"sts-{split}.csv", name="STSB", split=split)
    assert pairs_of(own) == pairs_of(raw)
    assert own.data_sha256 == raw.data_sha256


@needs_data
@pytest.mark.reference
def test_sick_text_carries_no_carriage_return_and_keeps_its_case():
    subset = load_sts_task("SICKR", [DATA / "sts"]).subsets[0]
    assert not any("\r" in sentence for sentence in subset.sentences1 + subset.sentences2)
    assert subset.sentences1[0] == "There is no boy playing outdoors and there is no man smiling"
    assert (subset.scores[0], subset.scores.min(), subset.scores.max()) == (3.3, 1.0, 5.0)


@pytest.fixture
def folder(tmp_path):
    """A small SentEval folder: every task of STS_TASKS, blank golds, quotation marks, CRLF."""
    for name in STS_TASKS[:5]:
        year = tmp_path / "STS" / f"{name}-en-test"
        year.mkdir(parents=True)
        for subset in COUNTS[name]:
            (year / f"STS.input.{subset}.txt").write_text(f'a "{subset}\tb\nskipped\tpair\nc\u2028c\td\n')
            (year / f"STS.gs.{subset}.txt").write_text("0.5\n\n5\n")
    (tmp_path / "STS" / "STS13-en-test" / "STS.input.SMT.txt").write_text("not\tread\n")
    rows = 'genre\tfile\t2012\t1\t4.000\t"x\ty\ngenre\tfile\t2012\t2\t0\tz\tw"\tlicence\tterms\n'
    for where in (tmp_path / "STS" / "STSBenchmark", tmp_path / "raw" / "STSBenchmark"):
        where.mkdir(parents=True)
        (where / "sts-dev.csv").write_text(rows if "raw" not in where.parts[-2] else rows.replace("x", "X"))
    (tmp_path / "SICK").mkdir()
    header = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment"
    (tmp_path / "SICK" / "SICK_trial.txt").write_bytes(f"{header}\r\n1\ta\tb\t3.6\tNEUTRAL\r\n".encode())
    return tmp_path


def test_every_layout_of_a_folder(folder):
    task = load_sts_task("STS13", [folder])
    assert pairs_of(task) == [
        pair for name in ("FNWN", "headlines", "OnWN") for pair in [(f'a "{name}', "b", 0.5), ("c\u2028c", "d", 5.0)]
    ]
    assert pairs_of(load_sts_task("STSB", [folder], split="dev")) == [('"x', "y", 4.0), ("z", 'w"', 0.0)]
    assert pairs_of(load_sts_task("STSB", [folder], split="dev", text="raw")) == [('"X', "y", 4.0), ("z", 'w"', 0.0)]
    assert pairs_of(load_sts_task("SICKR", [folder], split="dev")) == [("a", "b", 3.6)]


def test_the_first_folder_with_the_task_serves_and_sentevals_root_too(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("other")
    shutil.copytree(folder / "SICK", root / "data" / "downstream" / "SICK")
    sick = root / "data" / "downstream" / "SICK" / "SICK_trial.txt"
    sick.write_text(sick.read_text().replace("3.6", "1.5"))
    assert pairs_of(load_sts_task("SICKR", [root, folder], split="dev")) == [("a", "b", 1.5)]
    assert pairs_of(load_sts_task("SICKR", [folder, root], split="dev")) == [("a", "b", 3.6)]
    assert len(load_sts_task("STS12", [root, str(folder)]).subsets) == 5
    with pytest.raises(UserError, match=r"STS14: no folder STS/STS14-en-test in .*other"):
        load_sts_task("STS14", [root])


def test_the_hash_is_of_the_contents_wherever_they_lie(folder, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy")
    shutil.copytree(folder / "STS", copy / "STS")
    hashes = {load_sts_task("STS16", [where]).data_sha256 for where in (folder, copy)}
    year = copy / "STS" / "STS16-en-test"
    contents = b"".join(
        (year / f"STS.{kind}.{x}.txt").read_bytes() for x in COUNTS["STS16"] for kind in ("input", "gs")
    )
    assert hashes == {hashlib.sha256(contents).hexdigest()}
    (year / "STS.gs.headlines.txt").write_text("0.6\n\n5\n")
    assert load_sts_task("STS16", [copy]).data_sha256 not in hashes


def write(folder, file, content):
    (folder / file).write_text(content)


HEADLINES, GOLD = "STS/STS15-en-test/STS.input.headlines.txt", "STS/STS15-en-test/STS.gs.headlines.txt"
SICK, STSB = "SICK/SICK_trial.txt", "STS/STSBenchmark/sts-dev.csv"


@pytest.mark.parametrize(
    ("task", "split", "file", "content", "said"),
    [
        ("STS15", "test", GOLD, "1\n2\n", ["STS.input.headlines.txt has 3 lines", "STS.gs.headlines.txt 2"]),
        ("STS15", "test", GOLD, "1\n\nhigh\n", ["STS.gs.headlines.txt, line 3", "'high'", "0 to 5"]),
        ("STS15", "test", GOLD, "1\n\nnan\n", ["STS.gs.headlines.txt, line 3", "'nan'"]),
        ("STS15", "test", GOLD, "5.01\n\n\n", ["STS.gs.headlines.txt, line 1", "5.01"]),
        ("STS15", "test", GOLD, "\n\n\n", ["STS.input.headlines.txt", "no scored pairs"]),
        ("STS15", "test", HEADLINES, "a\tb\nc\td\ne f\n", ["STS.input.headlines.txt, line 3", "2 tab-separated"]),
        ("STS15", "test", GOLD, None, ["STS.gs.headlines.txt", "No such file"]),
        ("STSB", "dev", STSB, "g\tf\ty\t1\t5\tx\n", ["sts-dev.csv, line 1", "7 tab-separated", "6"]),
        ("STSB", "dev", STSB, "g\tf\ty\t1\t-1\tx\ty\n", ["sts-dev.csv, line 1", "'-1'"]),
        ("STSB", "dev", STSB, "", ["sts-dev.csv", "no scored pairs"]),
        ("SICKR", "dev", SICK, "header\n1\ta\tb\t0.5\tX\n", ["SICK_trial.txt, line 2", "1 to 5"]),
        ("SICKR", "dev", SICK, "header\n1\ta\tb\n", ["SICK_trial.txt, line 2", "4 tab-separated"]),
        ("SICKR", "test", SICK, "header\n", ["SICK_test_annotated.txt", "No such file"]),
    ],
)
def test_malformed_files(folder, task, split, file, content, said):
    if content is None:
        (folder / file).unlink()
    else:
        write(folder, file, content)
    with pytest.raises(UserError) as caught:
        load_sts_task(task, [folder], split=split)
    assert [part for part in said if part not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        ("STS17", {}, "no STS task 'STS17' (did you mean 'STS1"),
        ("sick", {}, "did you mean 'SICKR'"),
        ("STS12", {"split": "dev"}, "STS12 has no split 'dev', only test"),
        ("SICKR", {"split": "trial"}, "SICKR has no split 'trial', only train, dev, test"),
        ("STS12", {"text": "raw"}, "STS12 has no raw text, only STSB has"),
        ("STSB", {"text": "Raw"}, "'disk' or 'raw', not 'Raw'"),
    ],
)
def test_mistaken_requests(folder, arguments, options, said):
    with pytest.raises(UserError) as caught:
        load_sts_task(arguments, [folder], **options)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("own.csv", 'score,sentence2,sentence1\n0.9,"b, b",NA\n-12,d,c\n'),
        ("own.tsv", "sentence_A\tx\tsentence_B\trelatedness_score\nNA\t\tb, b\t0.9\nc\t\td\t-12\n"),
        (
            "own.jsonl",
            '{"sentence1": "NA", "sentence2": "b, b", "label": 0.9}\n'
            '{"sentence1": "c", "sentence2": "d", "label": -12, "more": null}\n',
        ),
    ],
)
def test_a_file_of_ones_own(tmp_path, file, content):
    path = tmp_path / file
    path.write_text(content)
    task = load_evaluation(str(path), task="mine", split="dev")
    assert (task.name, task.split, task.text) == ("mine", "dev", "disk")
    assert pairs_of(task) == [("NA", "b, b", 0.9), ("c", "d", -12.0)]
    assert task.data_sha256 == hashlib.sha256(content.encode()).hexdigest()


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("own.csv", "a,b\nx,y\n", ["own.csv", "sentence1, sentence2 and score", "a, b"]),
        ("own.csv", "sentence1,sentence2,score\nx,y,high\n", ["own.csv, row 1 (line 2)", "'score'", "'high'"]),
        ("own.csv", "sentence1,sentence2,score\nx,y,nan\n", ["own.csv, row 1 (line 2)", "finite"]),
        ("own.csv", "sentence1,sentence2,score\n", ["own.csv", "no scored pairs"]),
        ("own.csv", "", ["own.csv is empty"]),
        ("own.jsonl", "", ["own.jsonl is empty"]),
        ("own.jsonl", json.dumps({"sentence1": "x", "sentence2": None, "score": 1}), ["row 1", "'sentence2'", "null"]),
        ("own.jsonl", json.dumps({"sentence1": "x", "sentence2": "y", "score": True}), ["row 1", "'score'", "True"]),
        ("own.jsonl", json.dumps({"sentence1": "x", "sentence2": "y", "score": 10**400}), ["row 1", "'score'"]),
        ("own.doc", "x", ["own.doc", ".csv"]),
    ],
)
def test_mistakes_in_a_file_of_ones_own(tmp_path, file, content, said):
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError) as caught:
        load_evaluation(tmp_path / file, task="STSB", split="dev")
    assert [part for part in said if part not in str(caught.value)] == []


def test_folders_and_scenes_as_evaluation_data(folder):
    from simcse_kit.data.scenes import scene_pairs

    assert pairs_of(load_evaluation(folder, task="sickr", split="dev")) == [("a", "b", 3.6)]
    assert pairs_of(load_evaluation(str(folder), task="STSB", split="dev", text="raw"))[0] == ('"X', "y", 4.0)
    scenes = load_evaluation("scenes", task="STSB", split="test")
    assert (scenes.name, scenes.split, pairs_of(scenes)) == ("scenes", "test", scene_pairs("test"))
    with pytest.raises(UserError, match="no file or folder nowhere"):
        load_evaluation("nowhere", task="STSB", split="dev")
