from collections import Counter

import pytest

from simcse_kit import SentenceEncoder
from simcse_kit.data.nli import triplets_from_pairs
from simcse_kit.errors import UserError
from simcse_kit.train.batches import Schedule, TrainingRows, collate, read_rows
from simcse_kit.train.recipe import DataSection, TrainSection


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


def test_one_column_is_read_once_and_seen_twice(files):
    rows = read_rows(DataSection(train=str(files / "texts.txt")), seed=0)
    texts = (files / "texts.txt").read_text().splitlines()
    assert rows.views == (texts, texts) and len(rows) == 22
    assert rows.views[0] is rows.views[1]  # and so tokenised once


def test_columns_come_in_the_order_of_the_recipe(files):
    rows = read_rows(DataSection(train=str(files / "triplets.csv"), columns=["p", "a"]), seed=0)
    first = (files / "triplets.csv").read_text().splitlines()[1].split(",")
    assert [view[0] for view in rows.views] == [first[1], first[0]]


def test_nli_pairs_become_triplets_by_the_seed(tmp_path):
    pairs = [("p", f"h{i}", label) for i, label in enumerate(["entailment"] * 4 + ["contradiction"] * 4 + ["neutral"])]
    pairs.append(("lone", "h", "entailment"))
    path = tmp_path / "nli.csv"
    path.write_text("premise,hypothesis,label\n" + "".join(f"{p},{h},{label}\n" for p, h, label in pairs))
    section = DataSection(train=str(path), columns=["premise", "hypothesis", "label"], convert="nli_triplets")
    read = [read_rows(section, seed=seed).views for seed in (0, 1)]
    for seed, views in enumerate(read):
        assert list(zip(*views, strict=True)) == triplets_from_pairs(*zip(*pairs, strict=True), seed=seed)
    assert len(read[0][0]) == 4 and read[0] != read[1]


def test_a_batch_is_the_rows_of_the_first_view_then_those_of_the_next_each_cut(tiny_checkpoint):
    encoder = SentenceEncoder.from_pretrained(tiny_checkpoint("bert"), device="cpu")
    data = TrainingRows((["a cat", "a dog", "red"], ["the ball", "a man plays the guitar", ""]))
    ids, mask = collate(encoder, data, [2, 0, 1], max_length=5)
    expected = [encoder.tokenizer(text, truncation=True, max_length=5)["input_ids"] for text in
                ["red", "a cat", "a dog", "", "the ball", "a man plays the guitar"]]  # fmt: skip
    assert ids.shape == mask.shape == (6, 5)
    assert [row[:length].tolist() for row, length in zip(ids, mask.sum(1), strict=True)] == expected
    assert all((row[length:] == encoder.pad_id).all() for row, length in zip(ids, mask.sum(1), strict=True))
