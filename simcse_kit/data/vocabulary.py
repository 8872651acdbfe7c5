"""A WordPiece vocabulary learned from text (Wu et al. 2016, arXiv:1609.08144, section 4.1), lower-cased as BERT's."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from simcse_kit.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# BERT's, by which its tokenizer class knows them.
_UNKNOWN = "[UNK]"
_SPECIAL = ["[PAD]", _UNKNOWN, "[CLS]", "[SEP]", "[MASK]"]
_CONTINUED = "##"
# The share of characters that the vocabulary knows; words with others are unknown as a whole.
_COVERAGE = 0.9999
# The most of the vocabulary that single characters may take, at the start of words and within them.
_CHARACTER_SHARE = 0.5


def character_counts(texts: Iterable[str]) -> Counter[str]:
    """Count the characters of texts, lower-cased and without accents."""
    from tokenizers.normalizers import BertNormalizer

    raw: Counter[str] = Counter()
    for text in texts:
        raw.update(text)
    # Character by character it is the same, and there are few different ones.
    normalizer, counts = BertNormalizer(lowercase=True), Counter[str]()
    for character, count in raw.items():
        for part in normalizer.normalize_str(character):
            if not part.isspace():
                counts[part] += count
    return counts


def learn_vocabulary(texts: Iterable[str], characters: Counter[str], size: int) -> PreTrainedTokenizerBase:
    """Learn a vocabulary; the same texts give the same one.

    Args:
        texts: What it is learned from.
        characters: ``character_counts`` of them.
        size: Of the vocabulary, special tokens and single characters included; short texts may give fewer.

    Returns:
        A tokenizer as BERT's, with the tokens [PAD], [UNK], [CLS], [SEP] and [MASK], 0 to 4.

    Raises:
        UserError: If there are no characters, or ``size`` has no room for them.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import BertTokenizer

    kept = _most_frequent(characters)
    alphabet = [*kept, *(f"{_CONTINUED}{each}" for each in kept if _stands_within_words(each))]
    if len(alphabet) > _CHARACTER_SHARE * size:
        raise UserError(
            f"a vocabulary of {size:,} is too small for this text: {len(alphabet):,} of it would be single characters"
        )
    tokenizer = Tokenizer(models.WordPiece(unk_token=_UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        # Named beforehand, single pieces have fixed numbers; the trainer's own differ from call to call, and with them
        # which of two equally frequent pairs comes first.
        special_tokens=[*_SPECIAL, *alphabet],
        initial_alphabet=kept,
        limit_alphabet=len(kept),
        continuing_subword_prefix=_CONTINUED,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return BertTokenizer(vocab=tokenizer.get_vocab(), do_lower_case=True)


def _most_frequent(characters: Counter[str]) -> list[str]:
    """The most frequent characters, as many as the coverage asks for."""

    def covering() -> Iterator[str]:
        left = characters.total() * (1 - _COVERAGE)
        uncovered = characters.total()
        for character, count in sorted(characters.items(), key=lambda item: (-item[1], item[0])):
            if uncovered <= left:
                return
            uncovered -= count
            yield character

    kept = list(covering())
    if not kept:
        raise UserError("there is no text to learn a vocabulary from")
    return kept


def _stands_within_words(character: str) -> bool:
    """Whether BERT's rules leave a character in its word: punctuation and Chinese ones are words of their own."""
    punctuation = unicodedata.category(character).startswith("P") or (character.isascii() and not character.isalnum())
    return not punctuation and "CJK" not in unicodedata.name(character, "")
