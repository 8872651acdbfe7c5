"""Substitution by tiny random masked language models, against one text and one mask at a time."""

from collections import Counter

import pytest
import torch
from scipy.stats import chisquare
from transformers import AutoModelForMaskedLM, AutoTokenizer

from simcse_kit.augment.masked_lm import MaskedLMSubstitution
from simcse_kit.augment.text import open_text_augmentation
from simcse_kit.augment.words import core
from simcse_kit.errors import UserError

FAMILIES = ["bert", "roberta", "xlm-roberta", "distilbert", "electra", "albert", "deberta-v2", "modernbert", "mpnet"]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def masked_lm(tiny_checkpoint, tmp_path_factory):
    """Factory: a tiny encoder of a family with a random head, saved."""
    made = {}

    def make(family="bert"):
        if family not in made:
            torch.manual_seed(3)
            directory = tmp_path_factory.mktemp(f"lm-{family}")
            model = AutoModelForMaskedLM.from_pretrained(tiny_checkpoint(family))
            model.get_output_embeddings().bias.data.normal_()
            model.save_pretrained(directory)
            AutoTokenizer.from_pretrained(tiny_checkpoint(family)).save_pretrained(directory)
            made[family] = str(directory)
        return made[family]

    return make


def changed(before, after):
    """The places of the words that differ, were it only in case they do not."""
    pairs = zip(before.split(), after.split(), strict=True)
    return [place for place, (old, new) in enumerate(pairs) if old.casefold() != new.casefold()]


@pytest.mark.parametrize("sample", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_as_many_words_change_as_the_rate_says(masked_lm, sentences, family, sample):
    augment = MaskedLMSubstitution(model=masked_lm(family), rate=0.3, sample=sample)
    texts = [*sentences * 3, "", "  ", "--  ...", "- - - - - - - one two", "[MASK] <mask> and the dog"]
    for before, after in zip(texts, augment(texts, seeded(1)), strict=True):
        words = before.split()
        wanted = min(int(0.3 * len(words) + 0.5), sum(bool(core(word)) for word in words))
        assert len(changed(before, after)) == wanted
        assert bool(after) == bool(before)
        for place in changed(before, after):
            old, new = words[place], after.split()[place]
            assert new.replace(core(new), core(old), 1) == old  # the punctuation
            assert old[0].isupper() <= new[0].isupper() or not core(new)[0].isalpha()


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_the_first_choice_is_that_of_the_model_for_one_text_at_a_time(masked_lm, sentences, family):
    tokenizer = AutoTokenizer.from_pretrained(masked_lm(family))
    model = AutoModelForMaskedLM.from_pretrained(masked_lm(family)).eval()

    def ids_of(text, **options):
        return tokenizer(text, **options)["input_ids"]

    texts = [text.lower() for text in sentences if len(text.split()) >= 4]
    augmented = MaskedLMSubstitution(model=masked_lm(family), rate=0.25, sample=False)(texts, seeded(4))
    checked = 0
    for before, after in zip(texts, augmented, strict=True):
        places = changed(before, after)
        shown = before.split()
        for place in places:
            shown[place] = shown[place].replace(core(shown[place]), tokenizer.mask_token)
        ids = ids_of(" ".join(shown), return_tensors="pt")
        with torch.no_grad():
            rows = model(input_ids=ids).logits[ids == tokenizer.mask_token_id]
        for place, logits in zip(places, rows, strict=True):
            old, new = core(before.split()[place]), core(after.split()[place])
            (chosen,) = ids_of(f" {new}", add_special_tokens=False)
            for token in torch.nonzero(logits > logits[chosen]).flatten().tolist():
                word = tokenizer.decode([token]).strip()
                is_piece = ids_of(f" {word}", add_special_tokens=False) != [token]
                assert word.lower() == old or is_piece or not word.isalnum()
            checked += 1
    assert checked > 10


def test_samples_follow_the_distribution_of_the_model(masked_lm):
    tokenizer = AutoTokenizer.from_pretrained(masked_lm())
    model = AutoModelForMaskedLM.from_pretrained(masked_lm()).eval()
    number = 3000
    texts = MaskedLMSubstitution(model=masked_lm(), rate=0.5)(["... guitar"] * number, seeded(6))
    drawn = Counter(text.split()[1] for text in texts)
    ids = tokenizer("... [MASK]", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        shares = model(input_ids=ids).logits[0, ids[0] == tokenizer.mask_token_id][0].softmax(-1)
    # Upper case is never read by this tokenizer.
    vocabulary = [word for word in tokenizer.get_vocab() if word.isalnum() and word.islower() | word.isdigit()]
    vocabulary.remove("guitar")
    expected = shares[tokenizer.convert_tokens_to_ids(vocabulary)].double()
    expected = (expected / expected.sum() * number).tolist()
    assert set(drawn) <= set(vocabulary)
    frequent = [(drawn[word], count) for word, count in zip(vocabulary, expected, strict=True) if count >= 5]
    rare = (number - sum(seen for seen, _ in frequent), number - sum(count for _, count in frequent))
    assert len(frequent) > 4
    assert chisquare(*zip(*frequent, rare, strict=True)).pvalue > 1e-4


def test_the_generator_decides_everything(masked_lm, sentences):
    augment = open_text_augmentation("masked_lm", rate=0.3, model=masked_lm())
    generator, global_state = seeded(2), torch.get_rng_state()
    before = generator.get_state()
    first = augment(sentences, generator)
    assert augment(sentences, generator) != first
    assert augment(sentences, generator.set_state(before)) == first
    assert open_text_augmentation("masked_lm", rate=0.3, model=masked_lm())(sentences, seeded(2)) == first
    assert torch.equal(torch.get_rng_state(), global_state)
    assert augment([], generator) == []


def test_the_end_of_a_text_longer_than_the_model_stays(masked_lm):
    augment = MaskedLMSubstitution(model=masked_lm(), rate=0.5)
    (text,) = augment(["cat " * 300], seeded(0))
    places = changed("cat " * 300, text)
    assert 30 <= len(places) <= 94  # of 96 tokens, two are [CLS] and [SEP]
    assert max(places) < 94
    only_at_the_end = "- " * 150 + "cat"
    assert augment([only_at_the_end], seeded(0)) == [only_at_the_end]


def test_encoders_without_the_head_are_refused(tiny_checkpoint, tmp_path):
    with pytest.raises(UserError, match=r"no masked language model; it lacks cls\.predictions"):
        MaskedLMSubstitution(model=str(tiny_checkpoint("bert")))
    with pytest.raises(UserError, match=r"no weights here \(no model.safetensors\)"):
        MaskedLMSubstitution(model=str(tmp_path))
