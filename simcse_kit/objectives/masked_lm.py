"""Masked language modelling, alone or beside other objectives: a token objective, with a forward pass of its own.

Token objectives are the second kind of objectives: they see tokens and the encoder where pooled ones see vectors.

Legend: B rows, T tokens, M tokens to be predicted, V vocabulary.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from simcse_kit.backbone import quiet
from simcse_kit.batching import to_device
from simcse_kit.encoder import SentenceEncoder
from simcse_kit.errors import UserError, one_line

# Of the tokens to be predicted, the shares that are masked and that become a random token (Devlin et al. 2019,
# arXiv:1810.04805, section 3.1); the rest stays as it is.
_MASKED, _RANDOM = 0.8, 0.1


class MaskedTokens(NamedTuple):
    """A batch with masked tokens.

    Attributes:
        ids: Token ids, [B, T].
        places: Where in the flattened batch the tokens are that are to be predicted, [M].
        targets: The tokens that were there, [M].
    """

    ids: Tensor
    places: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> MaskedTokens:
        """The batch on a device."""
        return MaskedTokens(*(to_device(each, device) for each in self))

    def of_rows(self, rows: Tensor) -> MaskedTokens:
        """Some rows of the batch, [n] indices."""
        tokens = torch.zeros_like(self.ids, dtype=torch.long).flatten()
        tokens[self.places] = self.targets
        hidden = torch.zeros_like(tokens, dtype=torch.bool)
        hidden[self.places] = True
        hidden, tokens = (each.view_as(self.ids)[rows].flatten() for each in (hidden, tokens))
        places = hidden.nonzero().squeeze(1)
        return MaskedTokens(self.ids[rows], places, tokens[places])


class MaskedLM(nn.Module):
    """Predicts masked tokens with the checkpoint's own head on top of the encoder that is trained.

    As in SimCSE (Gao et al. 2021, arXiv:2104.08821, appendix D) the texts of all views are masked anew and encoded a
    second time. The word embeddings in front of the encoder and those behind the head are one and the same where the
    checkpoint ties them; SimCSE's own code copies the head and then trains the two apart.

    A checkpoint without such a head gets a new one, drawn from torch's generator.

    Attributes:
        head: The checkpoint's masked language model, with nothing where its encoder was.
    """

    def __init__(
        self,
        encoder: SentenceEncoder,
        *,
        rate: float,
        whole_word: bool = False,
        full_rows: bool = False,
        compiled: bool = False,
    ) -> None:
        """Open the head.

        Args:
            encoder: What is trained.
            rate: In (0, 1): the probability of each token that is not special to be predicted.
            whole_word: Predict all tokens of a word or none; each word then has this probability.
            full_rows: No row is ever padded, so that attention needs no mask and its quickest kernel serves.
            compiled: Have torch compile the backbone for training; takes ``full_rows``.

        Raises:
            UserError: If the encoder's tokenizer has no mask token, or does not tell where words begin, or its family
                has no such head.
        """
        super().__init__()
        if encoder.tokenizer.mask_token_id is None:
            raise UserError(
                f"objectives: mlm needs a tokenizer with a mask token, and that of {encoder.source} has none"
            )
        self.head = _open_head(encoder)
        self._rate = rate
        self._mask_id = encoder.tokenizer.mask_token_id
        # A tokenizer may have tokens that the checkpoint has no embeddings for.
        self._vocabulary = min(len(encoder.tokenizer), encoder.backbone.config.vocab_size)
        self._special = torch.tensor(encoder.tokenizer.all_special_ids)
        self._continues = _continuations(encoder.tokenizer) if whole_word else None
        self._full_rows = full_rows
        # A function and no module, which would be a second owner of the backbone's weights.
        self._compiled: Callable[..., Any] | None = torch.compile(encoder.backbone.forward) if compiled else None

    def mask(self, ids: Tensor, attention_mask: Tensor, generator: Generator) -> MaskedTokens:
        """Draw the tokens to be predicted and hide them, 80% behind the mask token, 10% behind a random one.

        Args:
            ids: Token ids, [B, T], on the CPU; they stay as they are.
            attention_mask: 1 for tokens, 0 for padding, [B, T].
            generator: A CPU generator.
        """
        special = torch.isin(ids, self._special)
        allowed = attention_mask.bool() & ~special
        draws = torch.rand(ids.shape, generator=generator)
        if self._continues is not None:
            draws = _by_word(draws, special, self._continues[ids])
        chosen = (draws < self._rate) & allowed
        hidden = torch.rand(ids.shape, generator=generator)
        random = torch.randint(self._vocabulary, ids.shape, generator=generator)
        masked = ids.masked_fill(chosen & (hidden < _MASKED), self._mask_id)
        masked = torch.where(chosen & (hidden >= 1 - _RANDOM), random, masked)
        places = chosen.flatten().nonzero().squeeze(1)
        return MaskedTokens(masked, places, ids.flatten()[places])

    def forward(self, encoder: SentenceEncoder, tokens: MaskedTokens, attention_mask: Tensor) -> Tensor:
        """The sum over the M hidden tokens of their cross-entropy, a scalar; 0 for M = 0."""
        logits = self.logits(encoder, tokens, attention_mask)
        return nn.functional.cross_entropy(logits.float(), tokens.targets, reduction="sum")

    def logits(self, encoder: SentenceEncoder, tokens: MaskedTokens, attention_mask: Tensor) -> Tensor:
        """What is predicted at the hidden tokens, and computed for them alone, [M, V]."""
        if self._full_rows:
            backbone = self._compiled if self._compiled is not None and self.training else encoder.backbone
            states = backbone(input_ids=tokens.ids).last_hidden_state
        else:
            states = encoder.token_states(tokens.ids, attention_mask)
        hidden = states.flatten(0, 1)[tokens.places]
        logits: Tensor = self.head(inputs_embeds=hidden.unsqueeze(0)).logits.squeeze(0)
        return logits


def _by_word(draws: Tensor, special: Tensor, continues: Tensor) -> Tensor:
    """For each token the draw of its word's first one, [B, T] each; behind a special token any other begins a word."""
    behind = torch.ones_like(special)
    behind[:, 1:] = special[:, :-1]
    begins = ~continues | special | behind
    places = torch.where(begins, torch.arange(draws.shape[1]), 0).cummax(dim=1).values
    return draws.gather(1, places)


class _Given(nn.Module):
    """Stands where a masked language model has its encoder, and passes on the states that it is given."""

    def forward(self, *inputs: object, inputs_embeds: Tensor, **options: object) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=inputs_embeds)


def _open_head(encoder: SentenceEncoder) -> PreTrainedModel:
    """The masked language model of the encoder's checkpoint, or a new one, without the encoder in it."""
    model: Any = _own_model(encoder) if encoder.weight_files else _new_model(encoder)
    setattr(model, model.base_model_prefix, _Given())
    decoder, words = model.get_output_embeddings(), encoder.backbone.get_input_embeddings().weight
    if decoder is None or decoder.weight.shape != words.shape:
        raise UserError(f"objectives: mlm: {type(model).__name__} has a head that this objective cannot use")
    if getattr(model.config, "tie_word_embeddings", True):
        decoder.weight = words
    head: PreTrainedModel = model.to(encoder.device, encoder.dtype)
    return head


def _new_model(encoder: SentenceEncoder) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForMaskedLM.from_config(encoder.backbone.config)  # type: ignore[no-untyped-call]
    return model


def _own_model(encoder: SentenceEncoder) -> PreTrainedModel:
    """The masked language model of the encoder's checkpoint."""
    file = encoder.weight_files[0]
    try:
        with quiet():
            model, info = AutoModelForMaskedLM.from_pretrained(
                file.parent,
                config=encoder.backbone.config,
                use_safetensors=file.suffix == ".safetensors",
                output_loading_info=True,
            )
    except Exception as error:  # what malformed files bring about; the tokenizers library raises plain Exceptions
        raise UserError(
            f"objectives: mlm: {encoder.source} cannot be opened with a head for it: {one_line(error)}"
        ) from error
    if info["missing_keys"]:
        warnings.warn(f"{encoder.source} has no head for masked tokens: mlm begins with a new one", stacklevel=3)
    own: PreTrainedModel = model
    return own


def _continuations(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Which tokens go on with a word that another one began, [V]: by WordPiece's prefix, or by what marks a new word.

    Raises:
        UserError: If the vocabulary has neither.
    """
    known = {number: token for token, number in tokenizer.get_vocab().items()}
    tokens = [known.get(number, "") for number in range(max(known) + 1)]  # some vocabularies have gaps
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"] if tokenizer.is_fast else {}
    prefix = model.get("continuing_subword_prefix") if model.get("type") == "WordPiece" else None
    if prefix:
        return torch.tensor([token.startswith(prefix) for token in tokens])
    # SentencePiece's and byte-level vocabularies mark what follows a space; punctuation is a word of its own.
    mark = max("▁Ġ", key=lambda sign: sum(token.startswith(sign) for token in tokens))
    if not any(token.startswith(mark) for token in tokens):
        raise UserError("objectives: mlm: whole_word: the tokenizer does not tell where words begin")
    return torch.tensor([not token.startswith(mark) and any(map(str.isalnum, token)) for token in tokens])
