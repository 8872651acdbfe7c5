import naive
import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from simcse_kit import SentenceEncoder, UserError
from simcse_kit import whitening as whitening_module
from simcse_kit.whitening import mean_and_covariance, whiten, whitening_layer

WIDTH = 32


@pytest.fixture(scope="module")
def texts(sentences):
    """Two hundred distinct sentences of the tiny tokenizers' words, and repetitions of some."""
    words = sorted({word for sentence in sentences for word in sentence.split()})
    draw = np.random.default_rng(0)
    distinct = {" ".join(draw.choice(words, size=draw.integers(2, 12))) for _ in range(200)}
    return [*sorted(distinct), *sorted(distinct)[:20]]


def open_tiny(tiny_checkpoint, family="bert", **options):
    return SentenceEncoder.from_pretrained(tiny_checkpoint(family), device="cpu", **options)


def deviation(vectors):
    """How far the mean is from 0 and the covariance from the identity, at most; plain numpy in float64."""
    vectors = np.asarray(vectors, dtype=np.float64)
    identity = np.eye(vectors.shape[1])
    return max(np.abs(vectors.mean(axis=0)).max(), np.abs(np.cov(vectors, rowvar=False) - identity).max())


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("pooling", ["cls", "cls_pooler", "mean", "max", "mask", "last2_mean", "first_last_mean"])
def test_the_set_has_mean_0_and_identity_covariance_wherever_it_is_opened(
    tiny_checkpoint, texts, tmp_path, pooling, head
):
    encoder = open_tiny(tiny_checkpoint, pooling=pooling)
    torch.manual_seed(1)
    encoder.add_head(keep=head)
    torch.nn.init.normal_(encoder.head.linear.weight, std=0.2)
    encoder.normalize = True
    before = encoder.encode(texts)
    whitened = whiten(encoder, texts)
    vectors = whitened.encode(texts)
    assert deviation(vectors) < 1e-4
    whitened.save_pretrained(tmp_path)
    for opened in (SentenceTransformer(str(tmp_path), device="cpu"), SentenceEncoder.from_pretrained(tmp_path)):
        assert naive.largest_difference(opened.encode(texts), vectors) < 1e-3
        assert deviation(opened.encode(texts)) < 1e-4
    assert naive.largest_difference(encoder.encode(texts), before) == 0
    assert whitened.head_name == ("mlp" if head else "none")


def test_dimensions_are_those_of_the_largest_variance(tiny_checkpoint, texts):
    encoder = open_tiny(tiny_checkpoint)
    raw = encoder.encode(texts).astype(np.float64)
    centred = raw - raw.mean(axis=0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    few = whiten(encoder, texts, 5)
    assert few.dimension == 5
    expected = centred @ directions[:5].T / singular[:5] * np.sqrt(len(texts) - 1)
    found = few.encode(texts)
    signs = np.sign((expected * found).sum(axis=0))
    assert naive.largest_difference(found * signs, expected) < 1e-4
    assert naive.largest_difference(found, whiten(encoder, texts).encode(texts)[:, :5]) < 1e-4


def test_a_layer_norm_costs_a_dimension(tiny_checkpoint, texts):
    """Its outputs, before weight and bias, sum to 0: one direction does not vary, and is no whitened dimension."""
    assert whiten(open_tiny(tiny_checkpoint), texts).dimension == WIDTH - 1
    assert whiten(open_tiny(tiny_checkpoint, pooling="last2_mean"), texts).dimension == WIDTH
    with pytest.raises(UserError, match=r"vary in 31 of 32 directions, not in 32; .* at most 31 dimensions$"):
        whiten(open_tiny(tiny_checkpoint), texts, WIDTH)


def test_a_set_larger_than_a_window_is_whitened_as_a_whole(tiny_checkpoint, texts, monkeypatch):
    encoder = open_tiny(tiny_checkpoint)
    expected = whiten(encoder, texts).encode(texts)
    monkeypatch.setattr(whitening_module, "_WINDOW", 7)
    in_blocks = whiten(encoder, iter(texts), show_progress=True).encode(texts)
    assert deviation(in_blocks) < 1e-4
    assert naive.largest_difference(np.abs(in_blocks), np.abs(expected)) < 1e-3


def test_whitening_is_undone_and_done_again_by_the_next(tiny_checkpoint, texts):
    encoder = open_tiny(tiny_checkpoint)
    again = whiten(whiten(encoder, texts[:100]), texts, 20)
    assert again.dimension == 20
    assert deviation(again.encode(texts)) < 1e-4


def test_the_record_of_a_whitened_encoder_is_its_own(tiny_checkpoint, texts, tmp_path):
    encoder = open_tiny(tiny_checkpoint)
    one, same, other = whiten(encoder, texts), whiten(encoder, texts), whiten(encoder, texts[50:])
    assert one.weights_sha256 == same.weights_sha256
    assert len({encoder.weights_sha256, one.weights_sha256, other.weights_sha256}) == 3
    assert (one.source, one.normalize, one.training) == (encoder.source, False, False)


def test_moments_are_those_of_numpy_far_from_the_origin():
    draw = np.random.default_rng(3)
    vectors = (draw.normal(size=(500, 6)) * [1, 2, 3, 1e-2, 1e-3, 1] + 1000).astype(np.float32)
    mean, covariance = mean_and_covariance(np.array_split(vectors, 7), 6)
    expected = np.cov(vectors.astype(np.float64), rowvar=False)
    np.testing.assert_allclose(mean, vectors.mean(axis=0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(covariance, expected, rtol=1e-9, atol=1e-12)


def test_float32_is_precise_enough_for_the_smallest_variance_that_is_kept():
    """Vectors of length 1 whose deviations reach from 0.2 down to the limit."""
    draw = np.random.default_rng(0)
    basis, _ = np.linalg.qr(draw.normal(size=(64, 64)))
    deviations = np.geomspace(0.2, 1e-5, 64)
    vectors = (draw.normal(size=(2000, 64)) * deviations) @ basis.T + basis[0]
    vectors = vectors.astype(np.float32)
    layer = whitening_layer(*mean_and_covariance([vectors], 64), None)
    assert 45 < layer.linear.out_features < 50
    with torch.no_grad():
        assert deviation(layer(torch.from_numpy(vectors))) < 1e-4


def constant(tiny_checkpoint):
    encoder = open_tiny(tiny_checkpoint)
    torch.nn.init.zeros_(encoder.backbone.encoder.layer[-1].output.LayerNorm.weight)
    return encoder


@pytest.mark.parametrize(
    ("make", "count", "dimensions", "message"),
    [
        (open_tiny, 0, None, r"^32 dimensions take more than 32 distinct sentences, and there are 0; give more"),
        (open_tiny, 32, None, r"^32 dimensions take more than 32 distinct sentences, and there are 32; give more"),
        (open_tiny, 8, 8, r"^8 dimensions take more than 8 distinct .* there are 8; .* ask for fewer dimensions$"),
        (open_tiny, 200, 33, r"^dimensions 33: the vectors of .* have 32; ask for 1 to 32$"),
        (open_tiny, 200, 0, r"^dimensions 0: .* ask for 1 to 32$"),
        (constant, 200, None, r"^all vectors of the text set are equal"),
        (lambda tiny: open_tiny(tiny, dtype="bfloat16"), 200, None, r"needs float32 weights, .* torch\.bfloat16$"),
    ],
)
def test_what_cannot_be_whitened_is_refused(tiny_checkpoint, texts, make, count, dimensions, message):
    repeated = [*texts[:count], *texts[:count]]
    with pytest.raises(UserError, match=message):
        whiten(make(tiny_checkpoint), repeated, dimensions)


def test_fewer_dimensions_than_sentences_will_do(tiny_checkpoint, texts):
    whitened = whiten(open_tiny(tiny_checkpoint), texts[:9], 8)
    assert deviation(whitened.encode(texts[:9])) < 1e-4
