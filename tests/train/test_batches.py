from collections import Counter

import pytest

from simcse_kit.data.nli import tuples_from_pairs
from simcse_kit.data.sts import load_sts_file
from simcse_kit.errors import UserError
from simcse_kit.train.batches import Schedule
from simcse_kit.train.prepare import prepare
from simcse_kit.train.rows import read_rows
from simcse_kit.train.sections import DataSection, TrainSection


def schedule(rows=22, *, shuffle=True, seed=5, **train):
    return Schedule.of(rows, TrainSection(**{"batch_size": 8, **train}), shuffle=shuffle, seed=seed)


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_row_is_seen_once_an_epoch_and_the_last_batch_is_short(shuffle):
    plan = schedule(epochs=3, shuffle=shuffle)
    batches = list(plan.batches(0))
    assert (plan.steps_per_epoch, plan.steps) == (3, 9)
    assert [len(batch) for batch in batches] == [8, 8, 6] * 3
    epochs = [[row for batch in batches[start : start + 3] for row in batch] for start in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(22)) for epoch in epochs)
    assert (epochs[0] == list(range(22))) is (epochs[0] == epochs[1]) is not shuffle


def test_the_short_batch_can_be_dropped_and_other_rows_are_left_out_in_every_epoch():
    plan = schedule(epochs=6, drop_last=True)
    batches = list(plan.batches(0))
    assert (plan.steps_per_epoch, plan.steps) == (2, 12)
    assert {len(batch) for batch in batches} == {8}
    seen = Counter(row for batch in batches for row in batch)
    assert max(seen.values()) <= 6 and len(seen) == 22


def test_the_order_depends_on_the_seed_and_the_epoch_alone():
    once, again, other = (list(schedule(epochs=2, seed=seed).batches(0)) for seed in (5, 5, 6))
    assert once == again
    assert once != other
    assert once[:3] != once[3:] and once[3:] != other[:3]  # a seed's second epoch is not the next seed's first
    longer = list(schedule(epochs=4).batches(0))
    assert longer[:6] == once


@pytest.mark.parametrize("done", range(10))
def test_a_run_resumed_in_the_middle_continues_the_same_sequence(done):
    plan = schedule(epochs=3)
    assert list(plan.batches(done)) == list(plan.batches(0))[done:]


@pytest.mark.parametrize(
    ("train", "steps"),
    [({"epochs": 0.5}, 2), ({"epochs": 1.5}, 5), ({"max_steps": 4}, 4), ({"epochs": 9, "max_steps": 1}, 1)],
)
def test_steps_come_from_epochs_or_are_given(train, steps):
    plan = schedule(**train)
    assert plan.steps == steps == len(list(plan.batches(0)))


def test_fewer_rows_than_a_batch_make_one_short_batch_or_none():
    assert list(schedule(rows=3, shuffle=False).batches(0)) == [[0, 1, 2]]
    with pytest.raises(UserError, match="drop_last: 3 rows do not fill one batch of 8"):
        schedule(rows=3, drop_last=True)


def test_one_column_is_read_as_it_is(files):
    rows = read_rows(DataSection(train=str(files / "texts.txt")), seed=0)
    texts = (files / "texts.txt").read_text().splitlines()
    assert rows.texts == (texts,) and rows.labels is None and len(rows) == 22


def test_columns_come_in_the_order_of_the_recipe(files):
    rows = read_rows(DataSection(train=str(files / "triplets.csv"), columns=["p", "a"]), seed=0)
    first = (files / "triplets.csv").read_text().splitlines()[1].split(",")
    assert [column[0] for column in rows.texts] == [first[1], first[0]]


@pytest.mark.parametrize(
    ("convert", "negatives"),
    [("nli_triplets", ["contradiction"]), ("nli_quadruplets", ["contradiction", "neutral"])],
)
def test_nli_pairs_become_triplets_or_quadruplets_by_the_seed(tmp_path, convert, negatives):
    labels = ["entailment"] * 4 + ["contradiction"] * 4 + ["neutral"] * 4
    pairs = [("p", f"h{i}", label) for i, label in enumerate(labels)]
    pairs.append(("lone", "h", "entailment"))
    path = tmp_path / "nli.csv"
    path.write_text("premise,hypothesis,label\n" + "".join(f"{p},{h},{label}\n" for p, h, label in pairs))
    section = DataSection(train=str(path), columns=["premise", "hypothesis", "label"], convert=convert)
    read = [read_rows(section, seed=seed).texts for seed in (0, 1)]
    for seed, columns in enumerate(read):
        assert list(zip(*columns, strict=True)) == tuples_from_pairs(*zip(*pairs, strict=True), negatives, seed=seed)
        assert len(columns) == section.texts == 2 + len(negatives)
    assert len(read[0][0]) == 4 and read[0] != read[1]


def test_nli_pairs_and_labelled_pairs_keep_their_classes(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("a,b,label\np,h,entailment\nq,i,-\nr,j,Contradiction\ns,k,1\n")
    rows = read_rows(DataSection(train=str(path), columns=["a", "b", "label"], convert="nli_pairs"), seed=0)
    # names as SBERT numbers them; 1 is the hub's id of neutral; a row without gold label is left out
    assert rows.texts == (["p", "r", "s"], ["h", "j", "k"]) and rows.labels.tolist() == [1, 0, 2]
    path.write_text("a,b,label\np,h,0\nq,i,1\n")
    rows = read_rows(DataSection(train=str(path), columns=["a", "b", "label"], convert="labelled_pairs"), seed=0)
    assert rows.texts == (["p", "q"], ["h", "i"]) and rows.labels.tolist() == [0, 1]
    path.write_text("a,b,label\np,h,0\nq,i,yes\n")
    for convert, problem in (("labelled_pairs", "is no class"), ("nli_pairs", "is no NLI label")):
        with pytest.raises(UserError, match=rf"{path.name}: row 2: 'yes' {problem}"):
            read_rows(DataSection(train=str(path), columns=["a", "b", "label"], convert=convert), seed=0)


def test_scored_pairs_are_read_as_an_evaluation_would_be(files):
    rows = read_rows(DataSection(train=str(files / "sts.csv"), convert="scored_pairs"), seed=0)
    task = load_sts_file(files / "sts.csv", name="x", split="train").subsets[0]
    assert rows.texts == (task.sentences1, task.sentences2)
    assert rows.labels.tolist() == pytest.approx(task.scores.tolist())


@pytest.mark.parametrize("convert", ["next_sentence", "next_three_sentences"])
def test_documents_give_positives(tmp_path, convert):
    path = tmp_path / "documents.txt"
    path.write_text("one\ntwo\nthree\n\nlone\n\nfour\nfive\n")
    anchors, positives = read_rows(DataSection(train=str(path), convert=convert), seed=0).texts
    assert anchors == ["one", "two", "four"] and positives[1:] == ["three", "five"]
    assert positives[0] in (["two"] if convert == "next_sentence" else ["two", "three"])


@pytest.mark.parametrize(("score", "shown"), [("7", "7"), ("-0.5", "-0.5")])
def test_gold_scores_out_of_the_objectives_range_are_refused(recipe, tmp_path, score, shown):
    path = tmp_path / "scored.csv"
    path.write_text(f"sentence1,sentence2,score\na cat,a dog,5\na man,a ball,{score}\n")
    columns = {"data__train": str(path), "data__columns": ["text"], "data__convert": "scored_pairs"}
    with pytest.raises(UserError, match=rf"^data.train, row 2: score {shown} is not between 0 and 5, the max_score of"):
        prepare(recipe(**columns, objectives=[{"name": "cosine_regression"}]))
    prepare(recipe(**columns, objectives=[{"name": "cosent"}]))


def test_a_number_too_large_for_a_class_is_refused(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(f"a,b,label\nx,y,1\nx,y,{10**20}\n")
    with pytest.raises(UserError, match="row 2: '1000000000"):
        read_rows(DataSection(train=str(path), columns=["a", "b", "label"], convert="labelled_pairs"), seed=0)
