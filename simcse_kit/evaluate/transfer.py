"""The transfer tasks, scored as SentEval and the SimCSE paper score them, or faster.

Frozen vectors are the features of a logistic regression; a task's figure is its accuracy on samples that served
nothing else, x100. The protocol is SentEval's, with the settings of SimCSE's test tables:

- The samples of a split are sorted by number of tokens (pairs: of the first sentence, then the second), then label.
  Features are the vector of the sentence, for a pair with vectors u, v the concatenation of |u - v| and u * v.
- The L2 penalty is the one of `classifiers.DECAYS` with the best accuracy on dev samples, in percent rounded to two
  decimals; of equal ones the weakest. Dev samples are, in turn, each of ten folds of the training samples; for SST2
  its dev split.
- MR, CR, SUBJ and MPQA have no test split: each of ten folds is tested on in turn, with a penalty chosen among the
  other nine alone, and the figure is the mean of the ten accuracies.
- Folds are stratified and shuffled with seed 1111.

The classifier `senteval` is SentEval's own, early-stopped Adam; `linear` is the convex optimum on the same folds and
with the same penalties. Their figures differ, by up to two points where there are few samples, and are not comparable.

This was written from knowledge of SentEval's code and was not compared with a run of it. Known differences: SentEval
computes on a GPU, with sums in another order, and rounds each fold's accuracy to two decimals before it averages.

Legend of shapes: n samples, D features, S choices of dev samples, R penalties.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from simcse_kit.data.transfer import LabelledSentences, TransferTask
from simcse_kit.errors import UserError
from simcse_kit.evaluate.classifiers import (
    DECAYS,
    ConvexRegression,
    EarlyStoppedAdam,
    Labels,
    PenalisedClassifier,
    Samples,
)
from simcse_kit.evaluate.sts import Figure
from simcse_kit.evaluate.vectors import Encoder, Vectors

Classifier = Literal["senteval", "linear"]
Metric = Literal["accuracy", "f1"]
Rows = NDArray[np.int64]

_Result = TypeVar("_Result")
_CLASSIFIERS: Mapping[Classifier, PenalisedClassifier] = {
    "senteval": EarlyStoppedAdam(),
    "linear": ConvexRegression(),
}
_FOLDS = 10
_SEED = 1111


@dataclass(frozen=True)
class TransferScore:
    """What an encoder scores on a transfer task, with the protocol that gives the figure its meaning.

    Attributes:
        task: The task.
        classifier: How the regression was fitted.
        split: `test`, or `dev` for the accuracy by which the penalty was chosen (SentEval's devacc).
        metric: `accuracy`; for MRPC's test split also `f1`, that of the paraphrases.
        figure: In [0, 100], over the samples scored.
    """

    task: TransferTask
    classifier: Classifier
    split: str
    metric: Metric
    figure: Figure

    @property
    def value(self) -> float | None:
        """The figure's value; None if it is undefined."""
        return self.figure.value


class _Fold(NamedTuple):
    """Rows of the samples and what they serve: the final fit, the choice of the penalty, the test.

    Attributes:
        train: Rows to fit to.
        choices: Within `train` and `dev`, pairs of rows to fit to and to compare the penalties on.
        dev: The task's own dev rows, None where it has none.
        test: Rows that are not in the others.
    """

    train: Rows
    choices: list[tuple[Rows, Rows]]
    dev: Rows | None
    test: Rows


def score_transfer(
    encoder: Encoder,
    tasks: Sequence[TransferTask],
    *,
    classifier: Classifier = "senteval",
    split: str = "test",
    jobs: int | None = None,
    on_task: Callable[[str, int, int], None] | None = None,
) -> list[TransferScore]:
    """Score an encoder on transfer tasks.

    Args:
        encoder: The encoder; called once, with each distinct sentence of all tasks.
        tasks: Labelled sentences.
        classifier: How the regression is fitted (see the module's docstring).
        split: `test`, or `dev`, which is quicker: it ends with the choice of the penalty.
        jobs: Number of processes, None for one a core. The figures do not depend on it.
        on_task: Called with the task's name, how many of its fits are done, and how many there are; for a display.

    Returns:
        One score a task in the order of `tasks`, for MRPC's test split two, accuracy and F1. A figure is undefined
        where vectors are not finite and where a class has too few samples for the folds.

    Raises:
        UserError: For another split.
    """
    if split not in ("test", "dev"):
        raise UserError(f"the split of transfer tasks is 'test' or 'dev', not {split!r}")
    vectors = Vectors.of(encoder, (sentence for task in tasks for sentence in task.sentences))
    scores = []
    for task in tasks:
        samples = {name: _samples(of_split, vectors) for name, of_split in task.splits.items()}
        report = partial(on_task, task.name) if on_task else None
        figures = _figures(task.name, samples, _CLASSIFIERS[classifier], split, jobs, report)
        scores += [TransferScore(task, classifier, split, metric, figure) for metric, figure in figures.items()]
    return scores


def _samples(split: LabelledSentences, vectors: Vectors) -> Samples:
    """Turn texts into features; sorted as SentEval sorts them, since folds and batches depend on the order."""
    texts = [split.sentences] if split.sentences2 is None else [split.sentences, split.sentences2]
    lengths = [np.array([len(text.split()) for text in column]) for column in texts]
    order = np.lexsort([split.labels, *reversed(lengths)])  # its last key counts most
    u, *v = (vectors.encode(column)[order] for column in texts)
    return Samples(np.hstack([abs(u - v[0]), u * v[0]]) if v else u, split.labels[order])


def _figures(
    name: str,
    splits: Mapping[str, Samples],
    classifier: PenalisedClassifier,
    split: str,
    jobs: int | None,
    report: Callable[[int, int], None] | None,
) -> dict[Metric, Figure]:
    """Score one task."""
    from sklearn.metrics import f1_score

    metrics: tuple[Metric, ...] = ("accuracy", "f1") if name == "MRPC" and split == "test" else ("accuracy",)
    n = len(splits["all" if "all" in splits else split if split in splits else "train"].labels)
    if reason := _undefined(splits):
        return {metric: Figure(None, n, reason) for metric in metrics}
    samples = Samples(*map(np.concatenate, zip(*splits.values(), strict=True)))
    folds = _folds({name: len(of_split.labels) for name, of_split in splits.items()}, samples.labels)
    choices = [(classifier, samples, *rows) for fold in folds for rows in fold.choices]
    pool = _Pool(jobs, len(choices) + (len(folds) if split == "test" else 0), report)

    accuracies = np.reshape(pool.run(_dev_accuracies, choices), (len(folds), -1, len(DECAYS))).mean(axis=1)
    best = (100 * accuracies).round(2).argmax(axis=1)
    if split == "dev":
        return {"accuracy": Figure(100 * fmean(accuracies[range(len(folds)), best].tolist()), n)}

    finals = [
        (classifier, samples, fold.train, fold.dev, fold.test, DECAYS[i]) for fold, i in zip(folds, best, strict=True)
    ]
    predictions = pool.run(_predictions, finals)
    results = [(samples.labels[fold.test], predicted) for fold, predicted in zip(folds, predictions, strict=True)]
    accuracy = Figure(100 * fmean(float(np.mean(gold == predicted)) for gold, predicted in results), n)
    if metrics == ("accuracy",):
        return {"accuracy": accuracy}
    return {"accuracy": accuracy, "f1": Figure(100 * float(f1_score(*results[0], zero_division=0)), n)}


def _undefined(splits: Mapping[str, Samples]) -> str | None:
    """Return why a task has no figure, None if it has one."""
    if not all(np.isfinite(of_split.features).all() for of_split in splits.values()):
        return "the encoder's vectors are not finite"
    fitted = splits["all"] if "all" in splits else splits["train"]
    needed = 1 if "dev" in splits else _FOLDS if "train" in splits else _FOLDS + 2  # each outer fold takes up to two
    counts = np.bincount(fitted.labels, minlength=2)
    if counts.min() < needed:
        return f"class {counts.argmin()} has {counts.min()} samples to fit to, the protocol needs {needed}"
    return None


def _folds(sizes: Mapping[str, int], labels: Labels) -> list[_Fold]:
    """Divide the rows of a task's splits, which are stacked in order; each fold has as many choices."""
    ends = np.cumsum(list(sizes.values()))
    rows = dict(zip(sizes, np.split(np.arange(len(labels)), ends[:-1]), strict=True))
    if "all" in rows:
        return [
            _Fold(train, _stratified(train, labels), None, test) for train, test in _stratified(rows["all"], labels)
        ]
    train, dev = rows["train"], rows.get("dev")
    return [_Fold(train, _stratified(train, labels) if dev is None else [(train, dev)], dev, rows["test"])]


def _stratified(rows: Rows, labels: Labels) -> list[tuple[Rows, Rows]]:
    """Divide rows into ten folds; for each of them, the rows of the others and its own."""
    from sklearn.model_selection import StratifiedKFold

    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=_SEED).split(rows, labels[rows])
    return [(rows[others], rows[own]) for others, own in folds]


def _dev_accuracies(classifier: PenalisedClassifier, samples: Samples, train: Rows, dev: Rows) -> NDArray[np.float64]:
    return classifier.dev_accuracies(samples.at(train), samples.at(dev))


def _predictions(
    classifier: PenalisedClassifier, samples: Samples, train: Rows, dev: Rows | None, test: Rows, decay: float
) -> Labels:
    own_dev = None if dev is None else samples.at(dev)
    return classifier.predict(samples.at(train), own_dev, decay, samples.features[test])


@dataclass
class _Pool:
    """Runs the fits of a task in processes.

    Attributes:
        jobs: Number of processes, None for one a core.
        fits: Number of all fits.
        report: Called with the number of fits done, and of all.
        done: Number of fits done.
    """

    jobs: int | None
    fits: int
    report: Callable[[int, int], None] | None
    done: int = 0

    def run(self, fit: Callable[..., _Result], calls: Sequence[tuple[object, ...]]) -> list[_Result]:
        """Call a function once a tuple of arguments; the processes share large arrays that recur in them."""
        from joblib import Parallel, delayed

        parallel = Parallel(n_jobs=-1 if self.jobs is None else self.jobs, return_as="generator")
        results = []
        for result in parallel(delayed(fit)(*call) for call in calls):
            results.append(result)
            self.done += 1
            if self.report is not None:
                self.report(self.done, self.fits)
        return results
