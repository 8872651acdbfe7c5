import numpy as np
import pytest
from lookup import Lookup
from sklearn.model_selection import StratifiedKFold

from simcse_kit.data.transfer import LabelledSentences, TransferTask
from simcse_kit.errors import UserError
from simcse_kit.evaluate import transfer
from simcse_kit.evaluate.classifiers import DECAYS
from simcse_kit.evaluate.transfer import score_transfer

RNG = np.random.default_rng(3)
WORDS = [f"w{i}" + " x" * int(RNG.integers(6)) for i in range(400)]
VECTORS = {word: RNG.normal(size=5) for word in WORDS}
SPLITS = {
    "MR": {"all": 150},
    "SST2": {"train": 120, "dev": 60, "test": 70},
    "TREC": {"train": 130, "test": 60},
    "MRPC": {"train": 110, "test": 90},
}


def make_task(name, seed=0, signal=2.0):
    """Sentences of random length and class; the class follows the first feature in part."""
    rng = np.random.default_rng(seed)

    def make_split(n):
        first, second = (rng.choice(WORDS, n, replace=False).tolist() for _ in range(2))
        side = [VECTORS[a][0] * (VECTORS[b][0] if name == "MRPC" else 1) for a, b in zip(first, second, strict=True)]
        labels = (signal * np.array(side) + rng.normal(size=n) > 0).astype(np.int64)
        return LabelledSentences(first, labels, second if name == "MRPC" else None)

    return TransferTask(name, {split: make_split(n) for split, n in SPLITS[name].items()}, "0")


class Stub:
    """A classifier whose figures depend on the penalty, on each training sample and on its place."""

    def dev_accuracies(self, train, dev):
        return np.array([np.mean(self.predict(train, None, decay, dev.features) == dev.labels) for decay in DECAYS])

    def predict(self, train, dev, decay, features):
        place = 1 + np.arange(len(train.labels)) % 7
        means = [
            np.average(train.features[train.labels == k], axis=0, weights=place[train.labels == k]) for k in (0, 1)
        ]
        shift = 0 if dev is None else dev.features.mean()
        return (features @ (means[1] - means[0]) > shift + np.log10(decay) / 8 + 0.4).astype(np.int64)


def run_as_senteval(task, split):
    """SentEval's protocol, written out with its own roundings: ({metric: value}, number scored)."""
    stub, splits = Stub(), {}
    for name, data in task.splits.items():
        if data.sentences2 is None:
            corpus = sorted(zip(data.sentences, data.labels, strict=True), key=lambda z: (len(z[0].split()), z[1]))
            x = [VECTORS[a] for a, _ in corpus]
        else:
            corpus = sorted(
                zip(data.sentences, data.sentences2, data.labels, strict=True),
                key=lambda z: (len(z[0].split()), len(z[1].split()), z[2]),
            )
            pairs = [(np.float32(VECTORS[a]), np.float32(VECTORS[b])) for a, b, _ in corpus]
            x = [np.r_[np.abs(u - v), u * v] for u, v in pairs]
        splits[name] = np.array(x, np.float32), np.array([z[-1] for z in corpus])

    def fit_and_predict(x, y, reg, test_x, dev=None):
        return stub.predict(transfer.Samples(x, y), dev and transfer.Samples(*dev), reg, test_x)

    def choose(x, y):
        scores = []
        for reg in [10**t for t in range(-5, -1)]:
            folds = StratifiedKFold(n_splits=10, shuffle=True, random_state=1111).split(x, y)
            regscores = [np.mean(fit_and_predict(x[a], y[a], reg, x[b]) == y[b]) for a, b in folds]
            scores.append(round(100 * np.mean(regscores), 2))
        return 10 ** (np.argmax(scores) - 5.0), max(scores)

    def f1(gold, predicted):
        tp, wrong = sum(gold & predicted), sum(gold != predicted)
        return round(100 * 2 * tp / (2 * tp + wrong), 2)

    if "all" in splits:
        x, y = splits["all"]
        devresults, testresults = [], []
        for a, b in StratifiedKFold(n_splits=10, shuffle=True, random_state=1111).split(x, y):
            reg, best = choose(x[a], y[a])
            devresults.append(best)
            testresults.append(round(100 * np.mean(fit_and_predict(x[a], y[a], reg, x[b]) == y[b]), 2))
        return {"accuracy": np.mean(devresults if split == "dev" else testresults)}, len(y)
    (x, y), (test_x, test_y) = splits["train"], splits["test"]
    if "dev" in splits:
        dev = splits["dev"]
        scores = [round(100 * np.mean(fit_and_predict(x, y, 10**t, dev[0]) == dev[1]), 2) for t in range(-5, -1)]
        reg, best, ndev = 10 ** (np.argmax(scores) - 5.0), max(scores), len(dev[1])
    else:
        (reg, best), dev, ndev = choose(x, y), None, len(y)
    if split == "dev":
        return {"accuracy": best}, ndev
    predicted = fit_and_predict(x, y, reg, test_x, dev)
    values = {"accuracy": round(100 * np.mean(predicted == test_y), 2)}
    return values | ({"f1": f1(test_y, predicted)} if task.name == "MRPC" else {}), len(test_y)


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setitem(transfer._CLASSIFIERS, "linear", Stub())


@pytest.mark.usefixtures("stub")
@pytest.mark.parametrize("split", ["test", "dev"])
@pytest.mark.parametrize("name", SPLITS)
def test_the_protocol_is_sentevals(name, split):
    task = make_task(name)
    scores = score_transfer(Lookup(VECTORS), [task], classifier="linear", split=split, jobs=1)
    values, n = run_as_senteval(task, split)
    assert {score.metric: score.value for score in scores} == pytest.approx(values, abs=0.011)
    assert [score.metric for score in scores] == list(values)
    assert all(score.task is task and (score.classifier, score.split) == ("linear", split) for score in scores)
    assert {(score.figure.n, score.figure.reason) for score in scores} == {(n, None)}


class Nearest(Stub):
    """Predicts the class of the nearest training sample: perfect wherever a test sample was trained on."""

    def predict(self, train, dev, decay, features):
        known = train.features if dev is None else np.concatenate([train.features, dev.features])
        labels = train.labels if dev is None else np.concatenate([train.labels, dev.labels])
        return labels[((features[:, None] - known) ** 2).sum(axis=2).argmin(axis=1)]


def test_no_test_sample_is_ever_trained_on(monkeypatch):
    monkeypatch.setitem(transfer._CLASSIFIERS, "linear", Nearest())
    vectors = {f"{split}{i}": RNG.normal(size=5) for split in ("all", "train", "dev", "test") for i in range(1000)}
    tasks = [
        TransferTask(name, {s: labelled_at_random(s, 1000) for s in splits}, "0") for name, splits in SPLITS.items()
    ]
    for split in ("test", "dev"):
        scores = score_transfer(Lookup(vectors), tasks[:3], classifier="linear", split=split, jobs=1)
        assert all(42 < score.value < 58 for score in scores)


def labelled_at_random(prefix, n):
    return LabelledSentences([f"{prefix}{i}" for i in range(n)], RNG.integers(0, 2, n))


@pytest.mark.usefixtures("stub")
def test_each_distinct_sentence_is_encoded_once_over_all_tasks():
    encoder, tasks = Lookup(VECTORS), [make_task("MR"), make_task("MRPC", seed=1), make_task("SST2", seed=2)]
    together = score_transfer(encoder, tasks, classifier="linear", jobs=1)
    (asked,) = encoder.calls
    assert len(asked) == len(set(asked)) and set(asked) == {s for task in tasks for s in task.sentences}
    alone = [s.value for t in tasks for s in score_transfer(encoder, [t], classifier="linear", jobs=1)]
    assert [score.value for score in together] == alone


def test_figures_do_not_depend_on_the_number_of_processes():
    tasks = [make_task("TREC"), make_task("SST2")]
    values = [
        [score.value for score in score_transfer(Lookup(VECTORS), tasks, classifier=classifier, jobs=jobs)]
        for jobs in (1, 2)
        for classifier in ("senteval", "linear")
    ]
    assert values[:2] == values[2:]
    assert all(value > 60 for value in values[1])


@pytest.mark.usefixtures("stub")
def test_fits_are_counted_for_a_display():
    reports = []
    score_transfer(
        Lookup(VECTORS),
        [make_task("TREC"), make_task("SST2")],
        classifier="linear",
        jobs=1,
        on_task=lambda *report: reports.append(report),
    )
    assert reports == [("TREC", i, 11) for i in range(1, 12)] + [("SST2", 1, 2), ("SST2", 2, 2)]


@pytest.mark.parametrize("classifier", ["senteval", "linear"])
def test_constant_vectors_give_the_share_of_the_majority(classifier):
    texts = [f"text {i}" for i in range(600)]
    labels = np.arange(600)
    splits = {"train": (labels % 4 > 0), "test": (labels % 5 > 1)}  # 75% and 60% paraphrases
    task = TransferTask("MRPC", {s: LabelledSentences(texts, y.astype(int), texts) for s, y in splits.items()}, "0")
    encoder = Lookup({text: [0.6, 0.8] for text in texts})
    accuracy, f1 = score_transfer(encoder, [task], classifier=classifier, jobs=1)
    assert (accuracy.value, f1.value) == pytest.approx((60, 75))


@pytest.mark.parametrize(
    ("name", "labels", "reason"),
    [
        ("MR", [0] * 139 + [1] * 11, "class 1 has 11 samples to fit to, the protocol needs 12"),
        ("TREC", [0] * 120 + [1] * 1 + [2] * 9, "class 1 has 1 samples to fit to, the protocol needs 10"),
        ("MRPC", [0] * 110, "class 1 has 0 samples to fit to, the protocol needs 10"),
        ("SST2", [1] * 120, "class 0 has 0 samples to fit to, the protocol needs 1"),
    ],
)
def test_too_few_samples_of_a_class_leave_the_figure_undefined(name, labels, reason):
    task = make_task(name)
    fitted = task.splits["all" if name == "MR" else "train"]
    fitted.labels[:] = labels
    for score in score_transfer(Lookup(VECTORS), [task], jobs=1):
        assert (score.value, score.figure.reason) == (None, reason)
        assert score.figure.n == len(task.splits["all" if name == "MR" else "test"].labels)


def test_vectors_that_are_not_finite_leave_the_figure_undefined():
    task = make_task("TREC")
    broken = VECTORS | {task.splits["test"].sentences[0]: np.full(5, np.nan)}
    (score,) = score_transfer(Lookup(broken), [task], split="dev", jobs=1)
    assert (score.value, score.figure.n) == (None, 130)
    assert score.figure.reason == "the encoder's vectors are not finite"


def test_another_split_is_refused():
    with pytest.raises(UserError, match="'test' or 'dev', not 'train'"):
        score_transfer(Lookup(VECTORS), [make_task("SST2")], split="train")
