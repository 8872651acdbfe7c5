"""Token ids against those of transformers' own call."""

from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer, CanineTokenizer

from simcse_kit.tokenization import tokenize

TEXTS = ["A man plays.", "", "a much longer text, with a comma and more words than fit " * 3, "[MASK] </s> é"]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("max_length", [3, 7, 64])
@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "modernbert", "mpnet", "deberta-v2"])
def test_token_ids_are_those_of_transformers(tiny_checkpoint, family, max_length, side):
    ours, own = (AutoTokenizer.from_pretrained(tiny_checkpoint(family), truncation_side=side) for _ in range(2))
    ours(TEXTS, padding=True)  # what a call before has set does not stay
    expected = own(TEXTS, truncation=True, max_length=max_length)["input_ids"]
    assert tokenize(ours, TEXTS, max_length) == expected
    assert max(map(len, expected)) == max_length or max_length == 64


class Watched:
    """A backend that notes how often it is changed."""

    def __init__(self, own):
        self._own, self.changes = own, []

    def __getattr__(self, name):
        if name in ("enable_truncation", "no_padding"):
            self.changes.append(name)
        return getattr(self._own, name)


def test_a_tokenizer_is_changed_only_where_it_has_to_be(tiny_checkpoint):
    own = AutoTokenizer.from_pretrained(tiny_checkpoint("bert"))
    backend = Watched(own.backend_tokenizer)
    tokenizer = SimpleNamespace(is_fast=True, truncation_side="right", backend_tokenizer=backend)
    tokenize(tokenizer, TEXTS, 7)
    backend.changes.clear()
    tokenize(tokenizer, TEXTS, 7)
    assert backend.changes == []
    own(TEXTS, padding=True)
    tokenize(tokenizer, TEXTS, 7)
    assert backend.changes == ["no_padding", "enable_truncation"]


def test_tokenizers_written_in_python():
    tokenizer = CanineTokenizer()
    assert not tokenizer.is_fast
    expected = [[tokenizer.cls_token_id, ord("a"), ord("b"), tokenizer.sep_token_id]]
    assert tokenize(tokenizer, ["abc"], 4) == expected
