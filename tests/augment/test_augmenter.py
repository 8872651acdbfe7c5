"""Augmentation inside tiny encoders of every family, against one sentence at a time and without padding."""

import copy
import math

import pytest
import torch
from torch import nn

from simcse_kit import SentenceEncoder, UserError
from simcse_kit.augment.augmenter import EmbeddingAugmenter, GivenEmbeddings, adversarial_noise
from simcse_kit.augment.embedding import ElementDropout, FeatureCutoff, Shuffle, SpanCutoff, TokenCutoff
from simcse_kit.batching import pad
from simcse_kit.objectives import info_nce
from simcse_kit.pooling import POOLINGS

FAMILIES = ["albert", "bert", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "roberta", "xlm-roberta"]
CUTOFFS = [TokenCutoff(rate=0.4), FeatureCutoff(rate=0.4), ElementDropout(rate=0.4), SpanCutoff(rate=0.4)]
ALL = [*CUTOFFS, ElementDropout(rate=0.4, rescale=True), SpanCutoff(rate=0.4, published=True), Shuffle()]


def described(augmentation):
    return "-".join([augmentation.name, *(key for key, value in vars(augmentation).items() if value is True)])


class Watched:
    """An encoder in training mode, what its embedding module gave, what its layers got, and what its backbone got."""

    def __init__(self, checkpoint, **options):
        self.encoder = SentenceEncoder.from_pretrained(checkpoint, device="cpu", **{"dropout": 0.0, **options}).train()
        self.encoder._passes._can_pack = False  # what is watched is padded
        self.backbone = self.encoder.backbone
        self.clean = self.augmented = self.inputs = None
        self.backbone.embeddings.register_forward_hook(self._note_clean)
        self.augmenter = EmbeddingAugmenter(self.backbone)
        self.backbone.embeddings.register_forward_hook(self._note_augmented)
        self.backbone.register_forward_pre_hook(self._note_inputs, with_kwargs=True)

    def _note_clean(self, module, args, output):
        self.clean = output
        if output.requires_grad:
            output.retain_grad()

    def _note_augmented(self, module, args, output):
        self.augmented = output

    def _note_inputs(self, module, args, kwargs):
        self.inputs = kwargs

    def fresh(self):
        self.encoder.train().zero_grad()
        return self

    def batch(self, texts):
        return pad(self.encoder.tokenize(texts), self.encoder.pad_id)

    def views(self, augmentations, ids, mask, seed=0):
        """Vectors of each view of the same rows, [V, N, D]."""
        torch.manual_seed(seed)
        views = len(augmentations)
        with self.augmenter.augment(augmentations, mask.repeat(views, 1)):
            vectors = self.encoder(ids.repeat(views, 1), mask.repeat(views, 1))
        return torch.stack(vectors.chunk(views))


@pytest.fixture(scope="module")
def opened(tiny_checkpoint):
    return {family: Watched(tiny_checkpoint(family)) for family in FAMILIES}


@pytest.fixture(params=FAMILIES)
def watched(request, opened):
    return opened[request.param].fresh()


@pytest.fixture
def bert(opened):
    return opened["bert"].fresh()


@pytest.fixture
def spied(monkeypatch):
    """Factory: the list of all draws of an augmentation's kind from now on."""

    def spy(kind):
        drawn, draw = [], kind.draw
        monkeypatch.setattr(kind, "draw", lambda self, *where: drawn.append(draw(self, *where)) or drawn[-1])
        return drawn

    return spy


def alone(encoder, ids, cut=None, scale=1.0):
    """The vector of one sentence without padding, its embedding output zeroed where ``cut`` says."""
    handle = encoder.backbone.embeddings.register_forward_hook(
        lambda module, args, output: output if cut is None else output * ~cut * scale
    )
    try:
        return encoder(ids.unsqueeze(0), torch.ones_like(ids).unsqueeze(0))[0]
    finally:
        handle.remove()


@pytest.mark.parametrize("augmentation", CUTOFFS, ids=described)
def test_a_cutoff_zeroes_what_it_should_and_leaves_the_attention_mask(watched, sentences, augmentation):
    ids, mask = watched.batch(sentences[::2])
    vectors = watched.views([None, augmentation, None], ids, mask)
    clean, augmented = watched.clean.chunk(3)[1], watched.augmented.chunk(3)[1]
    assert torch.equal(watched.inputs["attention_mask"], mask.repeat(3, 1))
    zeroed, width = (augmented == 0) & (clean != 0), clean.shape[-1]  # DeBERTa zeroes its padding itself
    assert torch.equal(augmented, clean * ~zeroed)
    for row, n in enumerate(mask.sum(1).tolist()):
        cut, padding = zeroed[row, :n], zeroed[row, n:]
        if isinstance(augmentation, FeatureCutoff):
            assert cut.all(0).sum() == cut.any(0).sum() == math.floor(width * 0.4)
            assert (augmented[row, n:][:, cut[0]] == 0).all()
        else:
            assert not padding.any()
        if isinstance(augmentation, TokenCutoff):
            assert cut.all(1).sum() == cut.any(1).sum() == math.floor(n * 0.4)
        if isinstance(augmentation, ElementDropout):
            assert cut.sum() == math.floor(n * width * 0.4)
        if isinstance(augmentation, SpanCutoff):
            kept = [token for token in range(n) if not cut[token].any()]
            assert kept == list(range(kept[0], kept[0] + max(math.floor(n * 0.6), 1)))
            assert cut.all(1).sum() == n - len(kept)
        # What is zeroed is attended to and pooled.
        expected = alone(watched.encoder, ids[row, :n], cut)
        assert (vectors[1, row] - expected).abs().max() < 1e-5
    assert (vectors[1] - vectors[0]).abs().amax(dim=1)[mask.sum(1) > 2].min() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_views_are_the_same_whether_the_encoder_packs_or_pads(tiny_checkpoint, opened, sentences, family):
    packing = SentenceEncoder.from_pretrained(tiny_checkpoint(family), device="cpu", dropout=0.0).train()
    padding, augmenter = opened[family].fresh(), EmbeddingAugmenter(packing.backbone)
    ids, mask = padding.batch(sentences[::2])
    expected = padding.views([None, *ALL], ids, mask)
    torch.manual_seed(0)
    with augmenter.augment([None, *ALL], mask.repeat(len(ALL) + 1, 1)), augmenter.recording() as recorded:
        found = packing(ids.repeat(len(ALL) + 1, 1), mask.repeat(len(ALL) + 1, 1))
    assert packing.packs == (family not in ("deberta-v2", "mpnet"))
    assert (found - expected.flatten(0, 1)).abs().max() < 1e-5
    real = mask.repeat(len(ALL) + 1, 1).bool()
    assert (recorded[0] - padding.augmented)[real].abs().max() < 1e-5
    weights = torch.randn(found.shape)
    gradients = [
        torch.autograd.grad((v * weights).sum(), [*e.backbone.embeddings.parameters()])
        for v, e in ((found, packing), (expected.flatten(0, 1), padding.encoder))
    ]
    for one, other in zip(*gradients, strict=True):
        assert (one - other).abs().max() < 1e-4 * other.abs().max()


def test_clean_rows_of_a_mixed_batch_are_those_of_a_clean_one(watched, sentences):
    ids, mask = watched.batch(sentences[:6])
    clean = watched.views([None] * (len(ALL) + 2), ids, mask)
    first, *augmented, last = watched.views([None, *ALL, None], ids, mask)
    assert torch.equal(first, clean[0])
    assert torch.equal(last, clean[-1])
    for augmentation, view in zip(ALL, augmented, strict=True):
        assert (view - clean[0]).abs().max() > 1e-3, augmentation


@pytest.mark.parametrize("augmentation", CUTOFFS, ids=described)
def test_gradients_flow_where_nothing_is_cut(watched, sentences, augmentation):
    ids, mask = watched.batch(sentences[:4])
    vectors = watched.views([None, augmentation], ids, mask)
    (vectors * torch.randn(vectors.shape)).sum().backward()
    gradient, cut = watched.clean.grad, watched.augmented == 0
    assert (gradient[cut] == 0).all()
    real = mask.repeat(2, 1).bool().unsqueeze(-1) & ~cut
    assert (gradient[real] != 0).float().mean() > 0.999
    assert all(parameter.grad is not None for parameter in watched.backbone.embeddings.parameters())


def test_rescaled_dropout_divides_what_is_left(bert, sentences):
    ids, mask = bert.batch(sentences)
    plain = bert.views([ElementDropout(rate=0.2)], ids, mask), bert.augmented
    scaled = bert.views([ElementDropout(rate=0.2, rescale=True)], ids, mask), bert.augmented
    assert torch.allclose(scaled[1] * 0.8, plain[1], atol=1e-6)
    assert torch.equal(scaled[1] == 0, plain[1] == 0)


@pytest.mark.parametrize("augmentation", ALL, ids=described)
def test_off_in_evaluation_mode_and_afterwards(bert, sentences, augmentation):
    ids, mask = bert.batch(sentences)
    plain, encoded = bert.encoder(ids, mask), bert.encoder.encode(sentences)
    with bert.augmenter.augment([augmentation], mask):
        assert not torch.equal(bert.encoder(ids, mask), plain)
        assert (bert.encoder.encode(sentences) == encoded).all()
        bert.encoder.eval()
        assert torch.equal(bert.encoder(ids, mask), plain)
        bert.encoder.train()
    assert torch.equal(bert.encoder(ids, mask), plain)
    with pytest.raises(RuntimeError, match="stop"), bert.augmenter.augment([augmentation], mask):
        raise RuntimeError("stop")
    assert torch.equal(bert.encoder(ids, mask), plain)


def test_a_copy_of_the_encoder_is_not_augmented(tiny_checkpoint, sentences):
    encoder = SentenceEncoder.from_pretrained(tiny_checkpoint("bert"), device="cpu", dropout=0.0).train()
    augmenter = EmbeddingAugmenter(encoder.backbone)
    twin = copy.deepcopy(encoder)
    ids, mask = pad(encoder.tokenize(sentences), encoder.pad_id)
    plain = twin(ids, mask)
    with augmenter.augment([Shuffle()], mask):
        assert torch.equal(twin(ids, mask), plain)
        assert not torch.equal(encoder(ids, mask), plain)


def test_nothing_is_drawn_where_nothing_is_augmented(bert, sentences):
    _, mask = bert.batch(sentences)
    state = torch.get_rng_state()
    with bert.augmenter.augment([None, None], mask):
        assert torch.equal(torch.get_rng_state(), state)
    with bert.augmenter.augment([None, Shuffle()], mask):
        assert not torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("augmentation", ALL, ids=described)
def test_draws_depend_on_the_seed_and_neither_on_padding_nor_on_neighbours(bert, sentences, augmentation):
    ids, mask = bert.batch(sentences)
    (vectors,) = bert.views([augmentation], ids, mask)
    (again,) = bert.views([augmentation], ids, mask)
    (other,) = bert.views([augmentation], ids, mask, seed=1)
    assert torch.equal(again, vectors)
    assert ((other - vectors).abs().amax(dim=1) > 1e-4)[mask.sum(1) > 8].float().mean() > 0.5
    wider = [nn.functional.pad(tensor, (0, 7)) for tensor in (ids, mask)]
    (padded,) = bert.views([augmentation], *wider)
    assert (padded - vectors).abs().max() < 1e-5
    among_others = [text if row % 2 else "the cat sleeps" for row, text in enumerate(sentences)]
    (mixed,) = bert.views([augmentation], *bert.batch(among_others))
    assert (mixed - vectors)[1::2].abs().max() < 1e-5


def test_rows_and_batches_have_draws_of_their_own(bert):
    ids, mask = bert.batch(["the cat sleeps and the dog runs"] * 20)
    torch.manual_seed(0)
    cuts = []
    for _ in range(2):
        with bert.augmenter.augment([FeatureCutoff(), FeatureCutoff()], mask):
            bert.encoder(ids, mask)
        cuts += (bert.augmented[:, 0] == 0).int().tolist()
    assert len({tuple(cut) for cut in cuts}) == 40


# Shuffling.


def states(watched, ids, mask, **inputs):
    return watched.backbone(input_ids=ids, attention_mask=mask, output_hidden_states=True, **inputs).hidden_states


@pytest.mark.parametrize("keep_special", [False, True])
def test_shuffling_reorders_the_tokens_and_puts_their_states_back(watched, sentences, spied, keep_special):
    ids, mask = watched.batch(sentences)
    drawn = spied(Shuffle)
    with watched.augmenter.augment([Shuffle(keep_special=keep_special)], mask):
        shuffled = states(watched, ids, mask)
    assert len(drawn) == len(sentences)
    for row, n in enumerate(mask.sum(1).tolist()):
        new_position = drawn[row][:n].tolist()
        reordered = [0] * n
        for token in range(n):
            reordered[new_position[token]] = ids[row, token].item()
        reference = states(watched, torch.tensor([reordered]), torch.ones(1, n, dtype=torch.long))
        for layer, expected in zip(shuffled, reference, strict=True):
            for token in range(n):
                assert (layer[row, token] - expected[0, new_position[token]]).abs().max() < 1e-4
        if keep_special and n > 2:
            assert (new_position[0], new_position[-1]) == (0, n - 1)


@pytest.mark.parametrize("family", ["albert", "bert", "distilbert", "electra", "roberta", "xlm-roberta"])
@pytest.mark.parametrize("published", [False, True])
def test_shuffling_is_permuting_the_position_ids(opened, sentences, spied, family, published):
    watched = opened[family].fresh()
    ids, mask = watched.batch(sentences)
    drawn = spied(Shuffle)
    with watched.augmenter.augment([None, Shuffle(published=published)], mask.repeat(2, 1)):
        both = states(watched, ids.repeat(2, 1), mask.repeat(2, 1))
    # RoBERTa counts positions from 2 and gives padding 1; the published code counts them from 0 all the same.
    offset = 2 if "roberta" in family else 0
    positions = torch.stack(drawn) + (0 if published else offset)
    expected = states(watched, ids, mask, position_ids=positions), states(watched, ids, mask)
    for layer, shuffled, clean in zip(both, *expected, strict=True):
        got_clean, got_shuffled = layer.chunk(2)
        assert ((got_shuffled - shuffled) * mask.unsqueeze(-1)).abs().max() < 1e-4
        assert (got_clean - clean).abs().max() < 1e-5


def test_published_shuffling_differs_only_where_positions_have_an_offset(watched, sentences):
    ids, mask = watched.batch(sentences)
    corrected, published = (
        watched.views([None, Shuffle(published=published)], ids, mask)[1] for published in (False, True)
    )
    offset = watched.backbone.config.model_type in ("mpnet", "roberta", "xlm-roberta")
    assert ((corrected - published).abs().max() > 1e-3) == offset


@pytest.mark.parametrize("pooling", ["cls", "mean", "first_last_mean", "mask"])
def test_poolings_find_their_tokens_in_a_shuffled_view(tiny_checkpoint, sentences, pooling):
    watched = Watched(tiny_checkpoint("bert"), pooling=pooling)
    ids, mask = watched.batch(sentences)
    torch.manual_seed(0)
    with watched.augmenter.augment([Shuffle()], mask):
        hidden = states(watched, ids, mask)
    pooled = mask * (ids == watched.encoder.tokenizer.mask_token_id) if pooling == "mask" else mask
    assert torch.allclose(watched.views([Shuffle()], ids, mask)[0], POOLINGS[pooling](hidden, pooled), atol=1e-6)


# The published span, and adversarial views.


def test_the_published_span_is_token_0_outside(watched, sentences, spied):
    ids, mask = watched.batch(sentences)
    drawn = spied(SpanCutoff)
    _, published = watched.views([None, SpanCutoff(rate=0.4, published=True)], ids, mask)
    outside = torch.stack(drawn).squeeze(-1)
    assert (outside.sum(1) == torch.tensor([n - max(math.floor(n * 0.6), 1) for n in mask.sum(1).tolist()])).all()
    expected = watched.encoder(ids * ~outside, mask)
    assert (published - expected).abs().max() < 1e-5


def perturbed(watched, ids, mask, embeddings):
    with watched.augmenter.augment([GivenEmbeddings(embeddings)], mask):
        return watched.encoder(ids, mask)


def test_adversarial_noise_is_the_normalised_gradient(watched, sentences):
    """As the published code makes it: backward, read the gradient of the embedding output, clear the parameters'."""
    ids, mask = watched.batch(sentences)
    with watched.augmenter.recording() as recorded:
        vectors = watched.views([None, FeatureCutoff()], ids, mask)
    (embeddings,) = recorded
    loss = info_nce(vectors[0], vectors[1], temperature=0.5)
    noise = adversarial_noise(loss, embeddings, norm=0.7)
    assert all(parameter.grad is None for parameter in watched.encoder.parameters())
    embeddings.retain_grad()
    loss.backward(retain_graph=True)
    gradient = embeddings.grad
    assert not noise.requires_grad
    for row, n in enumerate(mask.repeat(2, 1).sum(1).tolist()):
        for token in range(n):
            expected = 0.7 * gradient[row, token] / gradient[row, token].norm()
            assert (noise[row, token] - expected).abs().max() < 1e-5
        assert (noise[row, n:] == 0).all()
    assert torch.allclose(adversarial_noise(loss * 1024, embeddings, norm=0.7), noise, atol=1e-6)


def test_an_adversarial_view_raises_the_loss_as_its_gradient_says(bert, sentences):
    ids, mask = bert.batch(sentences)
    with bert.augmenter.recording() as recorded:
        clean = bert.encoder(ids, mask)
    anchor = clean.detach() + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    loss = info_nce(anchor, clean, temperature=0.5)
    noise = adversarial_noise(loss, recorded[0])
    assert (perturbed(bert, ids, mask, recorded[0]) - clean).abs().max() < 1e-6
    (gradient,) = torch.autograd.grad(loss, recorded[0], retain_graph=True)
    raised = info_nce(anchor, perturbed(bert, ids, mask, recorded[0] + 1e-3 * noise), temperature=0.5)
    slope = ((raised - loss) / 1e-3).item()
    assert slope == pytest.approx(gradient.norm(dim=-1).sum().item(), rel=0.05)
    assert slope > 0


def test_an_adversarial_view_trains_the_embeddings_and_shares_their_dropout(tiny_checkpoint, sentences):
    watched = Watched(tiny_checkpoint("bert"), dropout=0.3)
    ids, mask = watched.batch(sentences)
    with watched.augmenter.recording() as recorded:
        clean = watched.encoder(ids, mask)
    noise = adversarial_noise(clean.square().sum(), recorded[0])
    vectors = perturbed(watched, ids, mask, recorded[0] + noise)
    assert len(recorded) == 1
    assert not torch.equal(watched.clean, recorded[0])  # another mask was drawn, and not used
    assert torch.equal(watched.augmented, recorded[0] + noise)
    vectors.sum().backward()
    assert watched.backbone.embeddings.word_embeddings.weight.grad.abs().sum() > 0


# What cannot be.


def test_a_backbone_without_an_embedding_module_is_refused():
    with pytest.raises(UserError, match=r"^Linear has no embedding module with a LayerNorm, .*; augment the text"):
        EmbeddingAugmenter(nn.Linear(2, 2))


def test_rows_that_do_not_divide_into_views_are_refused(bert, sentences):
    _, mask = bert.batch(sentences[:5])
    with (
        pytest.raises(ValueError, match=r"^5 rows do not divide into 2 views$"),
        bert.augmenter.augment([None, Shuffle()], mask),
    ):
        pass
