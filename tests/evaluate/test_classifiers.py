import copy
import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp

from simcse_kit.evaluate.classifiers import (
    DECAYS,
    Adam,
    ConvexRegression,
    EarlyStoppedAdam,
    Samples,
    cross_entropy_gradient,
)


def noisy(n, features=6, classes=3, seed=0, noise=2.0):
    """Samples whose classes a linear map of the features tells in part."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, features)).astype(np.float32)
    scores = x @ np.random.default_rng(99).normal(size=(features, classes)) + noise * rng.normal(size=(n, classes))
    return Samples(x, scores.argmax(axis=1))


def test_adam_is_torchs():
    rng = torch.Generator().manual_seed(0)
    decays = [0.0, 1e-2, 1.0]
    ours = torch.randn(3, 4, generator=rng)
    theirs = [row.clone().requires_grad_() for row in ours]
    reference = torch.optim.Adam([{"params": [row], "weight_decay": d} for row, d in zip(theirs, decays, strict=True)])
    adam = Adam(ours, torch.tensor(decays)[:, None])
    for _ in range(60):
        gradient = torch.randn(3, 4, generator=rng)
        adam.step(gradient)
        for row, part in zip(theirs, gradient, strict=True):
            row.grad = part
        reference.step()
    torch.testing.assert_close(ours, torch.stack([row.detach() for row in theirs]), rtol=1e-5, atol=1e-7)


def test_gradient_is_autograds():
    rng = torch.Generator().manual_seed(0)
    weights = torch.randn(4, 3, 5, generator=rng, requires_grad=True)
    x, labels = torch.randn(7, 5, generator=rng), torch.tensor([0, 2, 1, 1, 0, 2, 2])
    torch.stack([torch.nn.functional.cross_entropy(x @ each.T, labels) for each in weights]).sum().backward()
    y = torch.nn.functional.one_hot(labels).float().T
    torch.testing.assert_close(cross_entropy_gradient(weights.detach(), x, y), weights.grad)


def fit_as_senteval(setting, train, dev, decay, held_out=None):
    """One penalty, one model, torch's own layer, loss and optimiser."""
    order = np.random.RandomState(setting.seed)
    torch.manual_seed(setting.seed)
    model = torch.nn.Linear(train.features.shape[1], train.labels.max() + 1)
    optimiser = torch.optim.Adam(model.parameters(), weight_decay=decay)
    if held_out is not None:
        permutation = order.permutation(len(train.labels))
        n = int(held_out * len(train.labels))
        dev, train = (Samples(train.features[p], train.labels[p]) for p in (permutation[:n], permutation[n:]))
    x, y = map(torch.from_numpy, train)
    best, best_accuracy, passes, misses, stop = None, -1, 0, 0, False
    while not stop and passes <= setting.max_epoch:
        for _ in range(setting.epoch_size):
            permutation = order.permutation(len(x))
            for i in range(0, len(x), setting.batch_size):
                rows = permutation[i : i + setting.batch_size]
                optimiser.zero_grad()
                torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
                optimiser.step()
        passes += setting.epoch_size
        with torch.no_grad():
            accuracy = (model(torch.from_numpy(dev.features)).argmax(dim=1).numpy() == dev.labels).mean()
        if accuracy > best_accuracy:
            best, best_accuracy = copy.deepcopy(model), accuracy
        else:
            stop = misses >= setting.tenacity
            misses += 1
    return best, best_accuracy, passes


SETTINGS = [
    EarlyStoppedAdam(batch_size=16, epoch_size=1),
    EarlyStoppedAdam(batch_size=32, epoch_size=3, max_epoch=9, tenacity=50),
]


@pytest.mark.parametrize("setting", SETTINGS)
def test_fits_side_by_side_equal_one_after_the_other(setting):
    # On these dev samples the misses before the first gains and those after them count together.
    train, dev, test = noisy(200), noisy(60, seed=4), noisy(3000, seed=2).features
    found = setting.dev_accuracies(train, dev)
    passes = []
    for decay, accuracy in zip((*DECAYS, 1.0), (*found, None), strict=True):
        model, best, n = fit_as_senteval(setting, train, dev, decay)
        passes.append(n)
        assert accuracy in (best, None)
        expected = model(torch.from_numpy(test)).argmax(dim=1).numpy()
        np.testing.assert_array_equal(setting.predict(train, dev, decay, test), expected)
    if setting.max_epoch == 9:
        assert set(passes) == {12}
    else:
        assert len(set(passes)) > 1 and max(passes) < 200


def test_without_dev_samples_a_share_of_the_training_samples_is_held_out():
    setting, train, test = EarlyStoppedAdam(batch_size=16, epoch_size=2, tenacity=2), noisy(230), noisy(3000, seed=2)
    model, _, _ = fit_as_senteval(setting, train, None, 1e-3, held_out=0.05)
    expected = model(torch.from_numpy(test.features)).argmax(dim=1).numpy()
    np.testing.assert_array_equal(setting.predict(train, None, 1e-3, test.features), expected)


def minimise(train, decay):
    """Weights and bias that minimise mean cross-entropy + decay / 2 |weights|^2 on centred features of norm 1."""
    x = train.features.astype(float) - train.features.mean(axis=0, dtype=float)
    norm = np.sqrt((x**2).sum(axis=1).mean())
    classes, n = train.labels.max() + 1, len(x)

    def loss(flat):
        w, b = flat[:-classes].reshape(classes, -1), flat[-classes:]
        logits = x / norm @ w.T + b
        nll = logsumexp(logits, axis=1) - logits[np.arange(n), train.labels]
        return nll.mean() + decay / 2 * (w**2).sum()

    flat = minimize(loss, np.zeros(classes * (x.shape[1] + 1)), method="BFGS", options={"gtol": 1e-6}).x
    return flat[:-classes].reshape(classes, -1) / norm, flat[-classes:]


@pytest.mark.parametrize("decay", [1e-4, 1e-2])
def test_convex_regression_finds_the_optimum(decay):
    train, test = noisy(120, features=4), noisy(3000, features=4, seed=1).features
    w, b = minimise(train, decay)
    expected = ((test - train.features.mean(axis=0)) @ w.T + b).argmax(axis=1)
    predicted = ConvexRegression().predict(train, None, decay, test)
    assert np.mean(predicted == expected) > 0.998
    w, b = minimise(train, 30 * decay)
    assert np.mean(predicted == ((test - train.features.mean(axis=0)) @ w.T + b).argmax(axis=1)) < 0.995


def test_penalties_fitted_on_the_way_equal_those_fitted_alone():
    train, dev = noisy(150), noisy(1000, seed=1)
    alone = [np.mean(ConvexRegression().predict(train, None, d, dev.features) == dev.labels) for d in DECAYS]
    assert ConvexRegression().dev_accuracies(train, dev) == pytest.approx(alone, abs=0.003)
    assert alone[0] != alone[-1]


def test_scale_and_offset_of_the_vectors_do_not_matter_to_convex_regression():
    train, test = noisy(150), noisy(1000, seed=1).features
    expected = ConvexRegression().predict(train, None, 1e-3, test)
    moved = Samples(train.features * 300 + 50, train.labels)
    assert np.mean(ConvexRegression().predict(moved, None, 1e-3, test * 300 + 50) == expected) > 0.998


@pytest.mark.parametrize("classifier", [EarlyStoppedAdam(), ConvexRegression()])
@pytest.mark.parametrize("value", [0.0, 0.1, 100.0])
def test_constant_features_give_the_majority(classifier, value):
    train = Samples(np.full((100, 5), value, np.float32), np.repeat([0, 1, 2], [30, 45, 25]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert classifier.dev_accuracies(train, train).tolist() == [0.45] * 4
        assert set(classifier.predict(train, None, 1e-5, train.features)) == {1}


@pytest.mark.filterwarnings("error")
def test_badly_conditioned_features_converge_in_silence():
    train = noisy(400, features=40, classes=2, noise=0.0)
    stretched = Samples((train.features * np.logspace(-2, 3, 40)).astype(np.float32), train.labels)
    assert ConvexRegression().dev_accuracies(stretched, stretched).max() > 0.6


def test_torchs_random_state_and_threads_are_left_alone():
    torch.manual_seed(5)
    expected, threads = torch.rand(1), torch.get_num_threads()
    torch.manual_seed(5)
    EarlyStoppedAdam(max_epoch=0).dev_accuracies(noisy(50), noisy(50))
    assert torch.equal(torch.rand(1), expected)
    assert torch.get_num_threads() == threads
