"""Masked language modelling, against the models of transformers that have it."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

from simcse_kit import SentenceEncoder
from simcse_kit.batching import pad
from simcse_kit.errors import UserError
from simcse_kit.objectives import masked_lm
from simcse_kit.objectives.masked_lm import MaskedLM, MaskedTokens

FAMILIES = ["albert", "bert", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "roberta", "xlm-roberta"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def with_head(tiny_checkpoint, tmp_path):
    """A random checkpoint of a family that has a head for masked tokens."""

    def make(family):
        torch.manual_seed(3)
        model = AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(tiny_checkpoint(family)))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        model.tie_weights()
        model.save_pretrained(tmp_path / family)
        AutoTokenizer.from_pretrained(tiny_checkpoint(family)).save_pretrained(tmp_path / family)
        return tmp_path / family

    return make


@pytest.fixture
def opened(tiny_checkpoint):
    encoder = SentenceEncoder.from_pretrained(tiny_checkpoint("bert"), device="cpu")
    torch.manual_seed(0)
    return encoder, MaskedLM(encoder, rate=0.15)


def batch_of(encoder, sentences):
    return pad(encoder.tokenize(sentences), encoder.pad_id)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_has_the_loss_and_the_gradient_of_the_checkpoints_own_model(with_head, sentences, family):
    directory = with_head(family)
    encoder = SentenceEncoder.from_pretrained(directory, device="cpu")
    objective = MaskedLM(encoder, rate=0.4)
    ids, mask = batch_of(encoder, sentences)
    tokens = objective.mask(ids, mask, generator())
    loss = objective(encoder, tokens, mask)

    model = AutoModelForMaskedLM.from_pretrained(directory).eval()
    labels = torch.full_like(ids, -100).flatten()
    labels[tokens.places] = tokens.targets
    expected = model(input_ids=tokens.ids, attention_mask=mask, labels=labels.view_as(ids)).loss
    assert loss.item() / len(tokens.targets) == pytest.approx(expected.item(), rel=1e-5)

    loss.backward()
    (expected * len(tokens.targets)).backward()
    own, theirs = (one.get_input_embeddings().weight.grad for one in (encoder.backbone, model))
    torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-4)  # of both their places, where the two are tied
    head = {id(parameter): parameter for parameter in objective.parameters()}
    assert head and all(parameter.grad is not None and parameter.grad.any() for parameter in head.values())


def test_tokens_are_masked_at_the_published_rates_and_special_ones_never(opened):
    encoder, objective = opened
    ids, mask = batch_of(encoder, ["the cat plays the guitar on a quiet street"] * 4_000 + ["the cat"])
    tokens = objective.mask(ids, mask, generator())
    special = torch.isin(ids, torch.tensor(encoder.tokenizer.all_special_ids)).flatten()
    allowed = int((~special).sum())
    assert not special[tokens.places].any()
    torch.testing.assert_close(tokens.targets, ids.flatten()[tokens.places])
    before, after = ids.flatten(), tokens.ids.flatten()
    others = torch.ones_like(before, dtype=torch.bool)
    others[tokens.places] = False
    assert torch.equal(before[others], after[others])

    count = len(tokens.places)
    assert count / allowed == pytest.approx(0.15, abs=4 * (0.15 * 0.85 / allowed) ** 0.5)
    hidden, spread = after[tokens.places], 4 * (0.25 / count) ** 0.5
    vocabulary = len(encoder.tokenizer)
    assert (hidden == encoder.tokenizer.mask_token_id).double().mean() == pytest.approx(
        0.8 + 0.1 / vocabulary, abs=spread
    )
    # A random token is now and then the one that was there.
    assert (hidden == tokens.targets).double().mean() == pytest.approx(0.1 + 0.1 / vocabulary, abs=spread)
    assert len(set(hidden.tolist())) > vocabulary * 0.8


def naive_words(tokenizer, ids):
    """Places of a row word by word, read off the text of its tokens; special ones left out."""
    words, behind_special = [], True
    family = type(tokenizer).__name__
    for place, token in enumerate(tokenizer.convert_ids_to_tokens(ids)):
        if ids[place] in tokenizer.all_special_ids:
            behind_special = True
            continue
        if family in ("BertTokenizer", "MPNetTokenizer"):
            goes_on = token.startswith("##")
        else:
            goes_on = token[0] not in "▁Ġ" and any(character.isalnum() for character in token)
        if goes_on and not behind_special:
            words[-1].append(place)
        else:
            words.append([place])
        behind_special = False
    return words


@pytest.mark.parametrize("family", ["bert", "mpnet", "roberta", "xlm-roberta", "deberta-v2"])
def test_words_are_hidden_whole_at_the_rate_of_tokens(tiny_checkpoint, sentences, family):
    encoder = SentenceEncoder.from_pretrained(tiny_checkpoint(family), device="cpu")
    objective = MaskedLM(encoder, rate=0.3, whole_word=True)
    ids, mask = batch_of(encoder, [*sentences, "unforgettable guitarists, quietly"] * 100)
    tokens = objective.mask(ids, mask, generator())
    hidden = torch.zeros(ids.numel(), dtype=torch.bool)
    hidden[tokens.places] = True
    lengths, shares = [], []
    for row, seen in zip(ids.tolist(), hidden.view_as(ids).tolist(), strict=True):
        for word in naive_words(encoder.tokenizer, row):
            assert len({seen[place] for place in word}) == 1
            lengths.append(len(word))
            shares.append(seen[word[0]])
    assert max(lengths) > 3
    assert sum(shares) / len(shares) == pytest.approx(0.3, abs=4 * (0.21 / len(shares)) ** 0.5)
    assert sum(map(int.__mul__, lengths, map(int, shares))) == len(tokens.places)


def test_whole_words_need_a_vocabulary_that_tells_where_they_begin(tiny_checkpoint, monkeypatch):
    encoder = SentenceEncoder.from_pretrained(tiny_checkpoint("roberta"), device="cpu")
    size = len(encoder.tokenizer)
    monkeypatch.setattr(type(encoder.tokenizer), "get_vocab", lambda self: {f"t{i}": i for i in range(size)})
    with pytest.raises(UserError, match="whole_word: the tokenizer does not tell where words begin"):
        MaskedLM(encoder, rate=0.15, whole_word=True)


def test_what_is_masked_depends_on_the_generator_alone(opened, sentences):
    encoder, objective = opened
    ids, mask = batch_of(encoder, sentences)
    one, same, other = (objective.mask(ids, mask, generator(seed)) for seed in (1, 1, 2))
    assert all(map(torch.equal, one, same))
    assert not torch.equal(one.ids, other.ids)


def test_a_batch_in_which_nothing_is_hidden_has_no_loss_and_no_gradient(opened, sentences):
    encoder, objective = opened
    ids, mask = batch_of(encoder, sentences)
    nothing = MaskedTokens(ids, torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long))
    loss = objective(encoder, nothing, mask)
    loss.backward()
    assert loss.item() == 0.0
    assert not any(parameter.grad.any() for parameter in objective.parameters())


def test_logits_are_computed_for_hidden_tokens_alone(opened, sentences):
    encoder, objective = opened
    ids, mask = batch_of(encoder, sentences)
    tokens, seen = objective.mask(ids, mask, generator()), []
    objective.head.get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: seen.append(output.shape)
    )
    objective(encoder, tokens, mask)
    assert [shape[:-1].numel() for shape in seen] == [len(tokens.places)]


def test_a_checkpoint_without_a_head_gets_one_by_the_seed_and_its_own_embeddings(opened):
    encoder, objective = opened
    heads = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        heads.append(MaskedLM(encoder, rate=0.15).head.cls.predictions.transform.dense.weight)
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    assert objective.head.get_output_embeddings().weight is encoder.backbone.get_input_embeddings().weight


def test_a_tokenizer_without_a_mask_token_is_refused(tiny_checkpoint, monkeypatch):
    encoder = SentenceEncoder.from_pretrained(tiny_checkpoint("bert"), device="cpu")
    encoder.tokenizer.mask_token = None
    with pytest.raises(UserError, match="mlm needs a tokenizer with a mask token"):
        masked_lm.MaskedLM(encoder, rate=0.15)
