"""sentence-transformers' own losses on the same vectors give the same values and gradients."""

import importlib

import pytest
import torch
from naive_losses import draw, draw_labels, make


class Given(torch.nn.Module):
    """A model whose embeddings are its input."""

    device = torch.device("cpu")

    def forward(self, features):
        return features


@pytest.fixture(scope="module")
def losses():
    return importlib.import_module("sentence_transformers.sentence_transformer.losses")


def dot_score(a, b):
    return a @ b.T


def softmax(losses, weights, **features):
    loss = losses.SoftmaxLoss(Given(), 6, 3, **features)
    loss.classifier.load_state_dict(weights)
    return loss


# Where conventions differ: our golds are 0 to 5 and theirs 0 to 1; their temperature is 1 / scale; their margins are 5
# (triplet) and 0.5 (contrastive) by default, and their contrastive distance is 1 - cosine.
PEERS = {
    "one direction": ("info_nce", 2, {}, lambda st, _: st.MultipleNegativesRankingLoss(Given(), scale=20)),
    "hard negatives": ("info_nce", 3, {}, lambda st, _: st.MultipleNegativesRankingLoss(Given(), scale=20)),
    "two hard negatives": ("info_nce", 4, {}, lambda st, _: st.MultipleNegativesRankingLoss(Given(), scale=20)),
    "dot products": (
        "info_nce",
        4,
        {"similarity": "dot", "temperature": 1.0},
        lambda st, _: st.MultipleNegativesRankingLoss(Given(), scale=1, similarity_fct=dot_score),
    ),
    "both directions": (
        "info_nce",
        2,
        {"symmetric": True},
        lambda st, _: st.MultipleNegativesRankingLoss(
            Given(), scale=20, directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"
        ),
    ),
    "softmax": ("softmax", 2, {}, lambda st, module: softmax(st, module.classifier.state_dict())),
    "softmax of products": (
        "softmax",
        2,
        {"features": ("u", "v", "|u-v|", "u*v")},
        lambda st, module: softmax(st, module.classifier.state_dict(), concatenation_sent_multiplication=True),
    ),
    "regression": ("cosine_regression", 2, {"max_score": 1.0}, lambda st, _: st.CosineSimilarityLoss(Given())),
    "cosent": ("cosent", 2, {}, lambda st, _: st.CoSENTLoss(Given())),
    "angle": ("angle", 2, {}, lambda st, _: st.AnglELoss(Given())),
    "triplet": ("triplet", 3, {"margin": 5.0}, lambda st, _: st.TripletLoss(Given())),
    "triplet by cosine": (
        "triplet",
        3,
        {"distance": "cosine"},
        lambda st, _: st.TripletLoss(Given(), st.TripletDistanceMetric.COSINE, triplet_margin=1.0),
    ),
    "contrastive": (
        "margin_contrastive",
        2,
        {"margin": 0.5, "distance": "cosine"},
        lambda st, _: st.ContrastiveLoss(Given()),
    ),
    "contrastive by distance": (
        "margin_contrastive",
        2,
        {"margin": 4.0},
        lambda st, _: st.ContrastiveLoss(Given(), st.SiameseDistanceMetric.EUCLIDEAN, margin=4.0),
    ),
}


@pytest.mark.parametrize("peer", PEERS)
def test_the_peers_value_and_gradient(losses, peer):
    name, views, options, build = PEERS[peer]
    module, labels = make(name, options, dtype=torch.float32), draw_labels(name, 16)
    peer_loss = build(losses, module)
    values, grads = [], []
    for loss in (
        lambda views: module(views, labels)[name],
        lambda views: peer_loss([{"sentence_embedding": view} for view in views], labels),
    ):
        vectors = [view.requires_grad_() for view in draw(views, 16, dtype=torch.float32)]
        result = loss(vectors)
        result.backward()
        values.append(result.item())
        grads.append(torch.cat([view.grad for view in vectors]))
    assert values[0] == pytest.approx(values[1], abs=2e-5, rel=2e-5)
    torch.testing.assert_close(grads[0], grads[1], atol=2e-5, rtol=1e-4)
