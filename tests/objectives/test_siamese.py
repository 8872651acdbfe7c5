import math

import pytest
import torch
from naive_losses import draw

from simcse_kit.objectives import margin_contrastive, softmax_classification, triplet
from simcse_kit.objectives.siamese import SoftmaxClassification


def test_the_classifier_has_one_block_of_weights_a_feature_and_starts_near_even_odds():
    torch.manual_seed(0)
    module = SoftmaxClassification(width=6, features=("u", "v", "|u-v|", "max(u,v)^2"))
    assert module.classifier.weight.shape == (3, 24) and module.classifier.bias.shape == (3,)
    bound = 1 / math.sqrt(24)
    assert 0.8 * bound < module.classifier.weight.abs().max() <= bound

    u, v = draw(2, 9)
    zeros = torch.zeros(3, 18, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    assert softmax_classification(u, v, torch.arange(9) % 3, *zeros).item() == pytest.approx(math.log(3), abs=1e-12)


def test_features_without_sides_do_not_tell_premise_from_hypothesis():
    module = SoftmaxClassification(width=6, features=("|u-v|", "u*v", "max(u,v)^2")).double()
    u, v = draw(2, 9)
    labels = torch.arange(9) % 3
    assert module([u, v], labels)["softmax"].item() == pytest.approx(module([v, u], labels)["softmax"].item())


def test_a_triplet_costs_what_is_lacking_to_the_margin():
    anchor, positive = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    far, near = torch.tensor([[0.0, 7.0]]), torch.tensor([[0.0, 5.5]])
    assert triplet(anchor, positive, far).item() == 0
    assert triplet(anchor, positive, near).item() == pytest.approx(0.5)
    assert triplet(anchor, positive, near, margin=0.25).item() == 0
    right_angle = triplet(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 9.0]]), torch.tensor([[2.0, 0.0]]), margin=0)
    assert right_angle.item() == pytest.approx(math.sqrt(82) - 1)
    vectors = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 9.0]]), torch.tensor([[2.0, 0.0]])
    assert triplet(*vectors, margin=0.5, distance="cosine").item() == pytest.approx(1.5)


def test_dissimilar_pairs_beyond_the_margin_cost_nothing_and_similar_ones_their_distance():
    u, v = torch.zeros(2, 2), torch.tensor([[0.6, 0.8], [0.0, 3.0]])
    assert margin_contrastive(u, v, torch.tensor([0, 0]), margin=1.0).item() == 0
    assert margin_contrastive(u, v, torch.tensor([0, 0]), margin=2.0).item() == pytest.approx(0.25)
    assert margin_contrastive(u, v, torch.tensor([1, 1])).item() == pytest.approx((0.5 + 4.5) / 2)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_equal_vectors_are_not_moved(distance):
    """The distance of equal vectors has no gradient that a square root would not turn into NaN."""
    same = [torch.ones(4, 3, requires_grad=True) for _ in range(3)]
    triplet(*same, distance=distance).backward()
    margin_contrastive(*same[:2], torch.tensor([0, 1, 0, 1]), distance=distance).backward()
    for view in same:
        torch.testing.assert_close(view.grad, torch.zeros(4, 3), atol=1e-6, rtol=0)
