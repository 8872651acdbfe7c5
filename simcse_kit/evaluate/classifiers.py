"""The classifiers of the transfer tasks: logistic regression on frozen vectors, fitted in two ways.

Both choose an L2 penalty from `DECAYS` on rows that they were not fitted to. `EarlyStoppedAdam` is SentEval's own
classifier, `ConvexRegression` the optimum of the same loss by scikit-learn. torch and scikit-learn are imported where
they are used.

Legend of shapes: n rows, D features, K classes, R penalties, B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

DECAYS = (1e-5, 1e-4, 1e-3, 1e-2)
"""SentEval's L2 penalties: the loss is the mean cross-entropy plus decay / 2 times the squared norm of the weights."""

Features = NDArray[np.float32]
Labels = NDArray[np.int64]


class Samples(NamedTuple):
    """Features [n, D] with their classes [n], counted from 0."""

    features: Features
    labels: Labels

    def at(self, rows: NDArray[np.int64]) -> Samples:
        """The samples of some rows, copied."""
        return Samples(self.features[rows], self.labels[rows])


class PenalisedClassifier(Protocol):
    """What a transfer protocol needs of a classifier; all of it is deterministic, whatever the number of cores."""

    def dev_accuracies(self, train: Samples, dev: Samples) -> NDArray[np.float64]:
        """Fit to `train` with each of `DECAYS`; return the accuracies on `dev`, in [0, 1]: [R]."""

    def predict(self, train: Samples, dev: Samples | None, decay: float, features: Features) -> Labels:
        """Fit and classify.

        Args:
            train: What to fit to.
            dev: The task's own dev samples, by which a fit may stop early; None if it has none.
            decay: The penalty.
            features: What to classify, [m, D].

        Returns:
            The predicted classes [m].
        """


@dataclass(frozen=True)
class EarlyStoppedAdam:
    """SentEval's classifier without hidden layer, with the settings of SimCSE's test tables.

    A linear layer, initialised as torch does after its seed is set, is trained on cross-entropy by Adam, whose L2
    penalty (the bias has it too) is part of the gradient. Each round is `epoch_size` passes over freshly permuted
    rows, then the accuracy on the dev rows; the weights with the best accuracy are kept, of equal ones the earliest.
    A fit ends with the round that is the (`tenacity` + 1)-th without a new best, counted over all rounds and not from
    the last best, or with the one that begins at pass `max_epoch`. Without fixed dev rows, a random `held_out` share
    of the training rows takes their place. Every fit begins with the same random state.

    This is what SentEval computes, but for floating-point order: the penalties are fitted side by side, as one layer
    of R x K outputs, since they share initial weights and batches.
    """

    batch_size: int = 64
    epoch_size: int = 4
    max_epoch: int = 200
    tenacity: int = 5
    held_out: float = 0.05
    seed: int = 1111

    def dev_accuracies(self, train: Samples, dev: Samples) -> NDArray[np.float64]:
        """Fit with every penalty; see `PenalisedClassifier`."""
        with _one_thread():
            return self._fit(train, dev, DECAYS, np.random.RandomState(self.seed))[1].numpy()

    def predict(self, train: Samples, dev: Samples | None, decay: float, features: Features) -> Labels:
        """Fit with one penalty and classify; see `PenalisedClassifier`."""
        order = np.random.RandomState(self.seed)
        if dev is None:
            rows = order.permutation(len(train.labels))
            held_out = int(self.held_out * len(rows))
            train, dev = train.at(rows[held_out:]), train.at(rows[:held_out])
        with _one_thread():
            weights, _ = self._fit(train, dev, (decay,), order)
            return _predictions(weights, _with_ones(features))[0].numpy()

    def _fit(
        self, train: Samples, dev: Samples, decays: tuple[float, ...], order: np.random.RandomState
    ) -> tuple[Tensor, Tensor]:
        """Return each penalty's best weights [R, K, D + 1], bias last, and their dev accuracies [R]."""
        import torch

        x, dev_x, dev_y = _with_ones(train.features), _with_ones(dev.features), torch.from_numpy(dev.labels)
        classes = 1 + int(train.labels.max())
        y = torch.nn.functional.one_hot(torch.from_numpy(train.labels), classes).float().T.contiguous()  # [K, n]
        weights = self._initial(train.features.shape[1], classes).repeat(len(decays), 1, 1)
        adam = Adam(weights, torch.tensor(decays).view(-1, 1, 1))
        best, accuracies = weights.clone(), torch.full((len(decays),), -1.0, dtype=torch.float64)
        rounds_without_best = torch.zeros(len(decays))
        for _ in range(0, self.max_epoch + 1, self.epoch_size):
            for _ in range(self.epoch_size):
                permutation = torch.from_numpy(order.permutation(len(x)))
                for start in range(0, len(x), self.batch_size):
                    rows = permutation[start : start + self.batch_size]
                    batch = x.index_select(0, rows), y.index_select(1, rows)
                    adam.step(cross_entropy_gradient(weights, *batch))
            accuracy = (_predictions(weights, dev_x) == dev_y).double().mean(dim=1)
            better = (accuracy > accuracies) & (rounds_without_best <= self.tenacity)
            best[better], accuracies[better] = weights[better], accuracy[better]
            rounds_without_best += ~better
            if (rounds_without_best > self.tenacity).all():
                break
        return best, accuracies

    def _initial(self, features: int, classes: int) -> Tensor:
        """The weights of a fresh linear layer with its bias as the last column: [K, D + 1]."""
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            layer = torch.nn.Linear(features, classes)
        return torch.cat([layer.weight.detach(), layer.bias.detach()[:, None]], dim=1)


@dataclass(frozen=True)
class ConvexRegression:
    """The optimum of the penalised loss, by scikit-learn's `LogisticRegression` (L-BFGS; the bias is not penalised).

    Features are centred on the training rows and divided by their root mean squared norm, one number for all of them:
    this turns neither the classifier nor the penalty's shape, but the figures do not depend on the vectors' scale, and
    `DECAYS` mean for every encoder what they mean for vectors of unit length.
    """

    max_iterations: int = 1000

    def dev_accuracies(self, train: Samples, dev: Samples) -> NDArray[np.float64]:
        """Fit with every penalty; see `PenalisedClassifier`."""
        predictions = self._predictions(train, DECAYS, dev.features)
        return np.array([np.mean(predicted == dev.labels) for predicted in predictions])

    def predict(self, train: Samples, dev: Samples | None, decay: float, features: Features) -> Labels:
        """Fit with one penalty, without use for `dev`, and classify; see `PenalisedClassifier`."""
        return self._predictions(train, (decay,), features)[0]

    def _predictions(self, train: Samples, decays: tuple[float, ...], features: Features) -> list[Labels]:
        """Fit with each penalty, the strongest first and each from the last one's weights."""
        from sklearn.linear_model import LogisticRegression
        from threadpoolctl import threadpool_limits

        centre = train.features.mean(axis=0, dtype=np.float64)
        x = train.features - centre
        scale = np.linalg.norm(x) / len(x) ** 0.5 or 1.0
        x, test_x = x / scale, (features - centre) / scale
        model = LogisticRegression(max_iter=self.max_iterations, warm_start=True)
        predictions = {}
        with threadpool_limits(1):
            for decay in sorted(decays, reverse=True):
                model.set_params(C=1 / (len(x) * decay)).fit(x, train.labels)
                predictions[decay] = model.predict(test_x)
        return [predictions[decay] for decay in decays]


class Adam:
    """Adam (Kingma & Ba 2015, algorithm 1) with an L2 penalty in the gradient, as `torch.optim.Adam` defines it.

    Written out because a step of torch's own costs more than all the rest of a step of these small models.

    Args:
        weights: Float32 of any shape; each step changes them in place.
        decay: The penalty; broadcasts to `weights`.
    """

    _LR, _BETA1, _BETA2, _EPSILON = 1e-3, 0.9, 0.999, 1e-8

    def __init__(self, weights: Tensor, decay: Tensor) -> None:
        import torch

        self._weights, self._decay = weights, decay.expand_as(weights).contiguous()  # broadcasting is slower
        self._mean, self._square = torch.zeros_like(weights), torch.zeros_like(weights)
        self._steps = 0

    def step(self, gradient: Tensor) -> None:
        """Take a step along a gradient that does not contain the penalty's."""
        self._steps += 1
        gradient = gradient.addcmul(self._weights, self._decay)
        self._mean.lerp_(gradient, 1 - self._BETA1)
        self._square.mul_(self._BETA2).addcmul_(gradient, gradient, value=1 - self._BETA2)
        scale = (1 - self._BETA2**self._steps) ** 0.5
        size = self._LR / (1 - self._BETA1**self._steps)
        self._weights.addcdiv_(self._mean, self._square.sqrt().div_(scale).add_(self._EPSILON), value=-size)


def cross_entropy_gradient(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Gradient of R mean cross-entropies.

    Args:
        weights: [R, K, D].
        x: Features [B, D].
        y: One-hot labels [K, B].

    Returns:
        The gradient by the weights, [R, K, D].
    """
    error = _logits(weights, x).softmax(dim=1).sub_(y).div_(len(x))
    return (error.flatten(0, 1) @ x).view_as(weights)


def _logits(weights: Tensor, x: Tensor) -> Tensor:
    """The logits [R, K, n] that weights [R, K, D] give features [n, D]."""
    return (weights.flatten(0, 1) @ x.T).view(*weights.shape[:2], len(x))


def _predictions(weights: Tensor, x: Tensor) -> Tensor:
    """The classes [R, n] that weights [R, K, D] give features [n, D]."""
    return _logits(weights, x).argmax(dim=1)


def _with_ones(features: Features) -> Tensor:
    """Append a feature that is 1, whose weight is the bias: [n, D + 1]."""
    import torch

    return torch.nn.functional.pad(torch.from_numpy(features), (0, 1), value=1.0)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch on one thread: figures do not depend on the number of cores, and workers leave each other theirs."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
