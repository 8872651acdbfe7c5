import hashlib
import shutil

import numpy as np
import pytest

from simcse_kit.data.transfer import TRANSFER_TASKS, load_transfer_task
from simcse_kit.errors import UserError

pytestmark = pytest.mark.usefixtures("no_network")

# samples of each class, as SentEval counts them
COUNTS = {
    "MR": {"all": [5331, 5331]},
    "CR": {"all": [1368, 2407]},
    "SUBJ": {"all": [5000, 5000]},
    "MPQA": {"all": [7294, 3312]},
    "SST2": {"train": [29780, 37569], "dev": [428, 444], "test": [912, 909]},
    "TREC": {"train": [86, 1162, 1250, 1223, 835, 896], "test": [9, 138, 94, 65, 81, 113]},
    "MRPC": {"train": [1323, 2753], "test": [578, 1147]},
}
EMPTY = {"CR": 4, "MPQA": 3}


@pytest.mark.reference
@pytest.mark.parametrize("name", TRANSFER_TASKS)
def test_counts(data_dir, name):
    task = load_transfer_task(name, [data_dir / "transfer"])
    assert {split: np.bincount(of_split.labels).tolist() for split, of_split in task.splits.items()} == COUNTS[name]
    for of_split in task.splits.values():
        columns = [of_split.sentences] + ([of_split.sentences2] if name == "MRPC" else [])
        assert [len(column) for column in columns] == [len(of_split.labels)] * len(columns)
        assert sum(sentence == "" for column in columns for sentence in column) == EMPTY.get(name, 0)
        assert (of_split.sentences2 is None) == (name != "MRPC")
        assert of_split.labels.dtype == np.int64


@pytest.mark.reference
def test_text_and_labels_belong_together(data_dir):
    def found(name, split, sentence):
        of_split = load_transfer_task(name, [data_dir / "transfer"]).splits[split]
        return {of_split.labels[i] for i, text in enumerate(of_split.sentences) if text == sentence}

    assert found("MR", "all", "simplistic , silly and tedious .") == {0}
    assert found("MPQA", "all", "it had to happen and the sooner the better") == {1}
    assert found("SST2", "dev", "unflinchingly bleak and desperate") == {0}
    assert found("TREC", "train", "Which city has the oldest relationship as a sister\xf0city with Los Angeles ?") == {
        4
    }
    assert found("MRPC", "train", 'Amrozi accused his brother , whom he called " the witness " , of deliberately '
                                  "distorting his evidence .") == {1}  # fmt: skip


FILES = {
    "MR/rt-polarity.pos": b'good  film "\n\n',
    "MR/rt-polarity.neg": "bad\u2028film \n".encode(),
    "CR/custrev.pos": b"a\n", "CR/custrev.neg": b"b\n",
    "SUBJ/subj.objective": b"fact\n", "SUBJ/subj.subjective": b"view\n",
    "MPQA/mpqa.pos": b"c\n", "MPQA/mpqa.neg": b"d\n",
    "SST/binary/sentiment-train": b"fine \t1\npoor\t0\n",
    "SST/binary/sentiment-dev": b"x\t0\n", "SST/binary/sentiment-test": b"y\t1\r\n",
    "TREC/train_5500.label": b"LOC:city Where is a \xf0 ?\nABBR:exp What is C : D\n",
    "TREC/TREC_10.label": b"NUM:dist How far ?\n",
    "MRPC/msr_paraphrase_train.txt": b'\xef\xbb\xbfQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t2\t3\t"a \tb\n',
    "MRPC/msr_paraphrase_test.txt": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t2\t3\tc\té\n".encode(),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    for file, content in FILES.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(content)
    return tmp_path


def content_of(task):
    return {
        split: list(zip(s.sentences, *[s.sentences2] if s.sentences2 else [], s.labels.tolist(), strict=True))
        for split, s in task.splits.items()
    }


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("MR", {"all": [('good film "', 1), ("", 1), ("bad film", 0)]}),
        ("cr", {"all": [("a", 1), ("b", 0)]}),
        ("Subj", {"all": [("fact", 1), ("view", 0)]}),
        ("MPQA", {"all": [("c", 1), ("d", 0)]}),
        ("sst-2", {"train": [("fine", 1), ("poor", 0)], "dev": [("x", 0)], "test": [("y", 1)]}),
        ("TREC", {"train": [("Where is a \xf0 ?", 4), ("What is C : D", 0)], "test": [("How far ?", 5)]}),
        ("MRPC", {"train": [('"a', "b", 1)], "test": [("c", "é", 0)]}),
    ],
)
def test_every_layout_of_a_folder(folder, name, content):
    task = load_transfer_task(name, [folder])
    assert content_of(task) == content
    prefix = {"SST2": "SST/binary"}.get(task.name, task.name) + "/"
    files = b"".join(content for file, content in FILES.items() if file.startswith(prefix))
    assert task.data_sha256 == hashlib.sha256(files).hexdigest()


def test_the_first_folder_with_the_task_serves_and_sentevals_root_too(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    shutil.copytree(folder / "CR", root / "data" / "downstream" / "CR")
    (root / "data" / "downstream" / "CR" / "custrev.pos").write_text("other\n")
    first = {order: load_transfer_task("CR", order).splits["all"].sentences[0] for order in [(root, folder), (folder,)]}
    assert list(first.values()) == ["other", "a"]
    with pytest.raises(UserError, match=r"SST2: no folder SST/binary in .*root"):
        load_transfer_task("SST2", [root])


@pytest.mark.parametrize(
    ("name", "file", "content", "said"),
    [
        ("MR", "MR/rt-polarity.neg", None, ["rt-polarity.neg", "No such file"]),
        ("MR", "MR/rt-polarity.neg", b"", ["rt-polarity.neg has no samples"]),
        ("MR", "MR/rt-polarity.neg", b"a\n\xe9\n", ["rt-polarity.neg, line 2", "UTF-8"]),
        ("SST2", "SST/binary/sentiment-dev", b"x\t0\ny 1\n", ["sentiment-dev, line 2", "2 tab-separated"]),
        ("SST2", "SST/binary/sentiment-dev", b"x\t2\n", ["sentiment-dev, line 1", "'2'", "0, 1"]),
        ("TREC", "TREC/TREC_10.label", None, ["TREC_10.label", "No such file"]),
        ("TREC", "TREC/TREC_10.label", b"NUM:dist a\nNUM a:b\n", ["TREC_10.label, line 2", "'NUM'"]),
        ("TREC", "TREC/TREC_10.label", b"num:dist a\n", ["TREC_10.label, line 1", "'num'", "ABBR"]),
        ("TREC", "TREC/TREC_10.label", b"", ["TREC_10.label has no samples"]),
        ("MRPC", "MRPC/msr_paraphrase_test.txt", b"h\n1\t2\t3\ta\n", ["test.txt, line 2", "5 tab-separated", "4"]),
        ("MRPC", "MRPC/msr_paraphrase_test.txt", b"h\nyes\t2\t3\ta\tb\n", ["test.txt, line 2", "'yes'"]),
        ("MRPC", "MRPC/msr_paraphrase_test.txt", b"h\n", ["msr_paraphrase_test.txt has no samples"]),
        ("SST-5", "CR/custrev.pos", b"a\n", ["no transfer task 'SST-5' (did you mean 'SST2'?)", "MRPC"]),
    ],
)
def test_mistakes(folder, name, file, content, said):
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_transfer_task(name, [folder])
    assert [part for part in said if part not in str(caught.value)] == []
