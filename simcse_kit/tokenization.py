"""From texts to token ids, and tokenizers with a change: texts put into a template, or lower-cased.

A change is made to the tokenizer itself, so that whoever opens the saved one does the same.
"""

from __future__ import annotations

import copy
from threading import Lock
from typing import NamedTuple

from tokenizers import Tokenizer
from tokenizers.normalizers import Lowercase, Sequence
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from simcse_kit.backbone import quiet
from simcse_kit.errors import UserError, one_line
from simcse_kit.locate import locate
from simcse_kit.modules import read_layout
from simcse_kit.template import split_template

# A tokenizer cuts as it was last told to, so threads that cut at different lengths take turns.
_ONE_AT_A_TIME = Lock()


def open_tokenizer(name: str, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model as an encoder uses it, without the model; of a directory that need not hold one.

    Raises:
        UserError: If the model is found nowhere, or has no tokenizer.
    """
    directory = locate(name, revision=revision)
    layout = read_layout(directory)
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(directory / (layout.transformer if layout else ""))
    except Exception as error:  # what malformed files bring about; the tokenizers library raises plain Exceptions
        raise UserError(f"{directory}: no tokenizer can be opened here: {one_line(error)}") from error
    return with_lower_casing(tokenizer) if layout and layout.lower_case else tokenizer


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int) -> list[list[int]]:
    """Token ids of each text, cut to so many tokens, special ones and those of a template included."""
    if not tokenizer.is_fast:
        ids: list[list[int]] = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
        return ids
    backend = tokenizer.backend_tokenizer
    cut = {"max_length": max_length, "stride": 0, "strategy": "longest_first", "direction": tokenizer.truncation_side}
    with _ONE_AT_A_TIME:
        # Changed only where it has to be, as transformers does: who uses it otherwise is not asked to wait.
        if backend.padding is not None:
            backend.no_padding()
        if backend.truncation != cut:
            backend.enable_truncation(**cut)
        # Where each token stands in its text, which transformers would ask for, takes as long as the tokens.
        return [encoding.ids for encoding in backend.encode_batch_fast(texts)]


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills up short rows; any will do for a tokenizer without one, as it is masked."""
    return int(tokenizer.pad_token_id or 0)


class TemplateTokenizer:
    """A tokenizer, and what it becomes with each of several templates."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Copy a tokenizer: one cannot serve two threads at a time."""
        self._plain = copy.deepcopy(tokenizer)
        self._templated: dict[str, PreTrainedTokenizerBase] = {}
        self.pad_id = pad_id(tokenizer)

    def tokenize(self, texts: list[str], max_length: int, template: str | None = None) -> list[list[int]]:
        """Token ids of each text, in a template in place of the tokenizer's own, if one is given."""
        if template is None:
            return tokenize(self._plain, texts, max_length)
        if template not in self._templated:
            self._templated[template] = with_mask_template(self._plain, template)
        return tokenize(self._templated[template], texts, max_length)


class TemplateTokens(NamedTuple):
    """A template's tokens before and behind the text, those at the ends of every input included."""

    before: list[int]
    after: list[int]


def template_tokens(tokenizer: PreTrainedTokenizerBase, template: str) -> TemplateTokens:
    """The tokens that a template puts around every text; spaces beside the text and the mask are nobody's.

    Raises:
        UserError: If it is no template, or the tokenizer has no mask token, or does not put one token before a text and
            one behind it.
    """
    edges = tokenizer("")["input_ids"]
    if not tokenizer.is_fast or tokenizer.mask_token_id is None or not (len(edges) == 2 or _is_templated(tokenizer)):
        raise UserError("pooling mask needs a tokenizer with a mask token and one token at each end, as BERT's")
    before, between, behind = (
        tokenizer(part.strip(), add_special_tokens=False)["input_ids"] for part in split_template(template)
    )
    return TemplateTokens([edges[0], *before], [*between, tokenizer.mask_token_id, *behind, edges[-1]])


def with_mask_template(tokenizer: PreTrainedTokenizerBase, template: str) -> PreTrainedTokenizerFast:
    """A tokenizer that puts every text into a template, the way tokenizers add their special tokens.

    So a long text loses its own end and not the mask.

    Raises:
        UserError: As ``template_tokens``.
    """
    parts = template_tokens(tokenizer, template)
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.post_processor = TemplateProcessing(
        single="before $A after",
        special_tokens=[
            {"id": name, "ids": ids, "tokens": tokenizer.convert_ids_to_tokens(ids)}
            for name, ids in parts._asdict().items()
        ],
    )
    return _of_general_class(backend, tokenizer)


def with_lower_casing(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A tokenizer that lower-cases texts before its own rules (``do_lower_case`` of sentence-transformers)."""
    own = tokenizer.backend_tokenizer.normalizer
    if own is not None and own.normalize_str("A") == "a":
        return tokenizer
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.normalizer = Sequence([Lowercase(), own]) if own is not None else Lowercase()
    return _of_general_class(backend, tokenizer)


def _is_templated(tokenizer: PreTrainedTokenizerBase) -> bool:
    return tokenizer.mask_token_id in tokenizer("")["input_ids"]


def _of_general_class(backend: Tokenizer, like: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """A tokenizer around a changed backend; those of model families build their own backend when they are opened."""
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        model_max_length=like.model_max_length,
        truncation_side=like.truncation_side,
        **like.special_tokens_map,
    )
