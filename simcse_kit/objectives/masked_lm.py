"""Masked language modelling, alone or beside other objectives: a token objective, with a forward pass of its own.

Token objectives are the second kind of objectives: they see tokens and the encoder where pooled ones see vectors.

Legend: B rows, T tokens, M tokens to be predicted, V vocabulary.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from transformers import AutoModelForMaskedLM
from transformers.modeling_outputs import BaseModelOutput

from simcse_kit.backbone import quiet
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
    """

    def __init__(self, encoder: SentenceEncoder, *, rate: float) -> None:
        """Open the head.

        Args:
            encoder: What is trained; it was opened from files.
            rate: In (0, 1): the probability of each token that is not special to be predicted.

        Raises:
            UserError: If the encoder's tokenizer has no mask token, or its family no such head.
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

    def mask(self, ids: Tensor, attention_mask: Tensor, generator: Generator) -> MaskedTokens:
        """Draw the tokens to be predicted and hide them, 80% behind the mask token, 10% behind a random one.

        Args:
            ids: Token ids, [B, T], on the CPU; they stay as they are.
            attention_mask: 1 for tokens, 0 for padding, [B, T].
            generator: A CPU generator.
        """
        allowed = attention_mask.bool() & ~torch.isin(ids, self._special)
        chosen = (torch.rand(ids.shape, generator=generator) < self._rate) & allowed
        hidden = torch.rand(ids.shape, generator=generator)
        random = torch.randint(self._vocabulary, ids.shape, generator=generator)
        masked = ids.masked_fill(chosen & (hidden < _MASKED), self._mask_id)
        masked = torch.where(chosen & (hidden >= 1 - _RANDOM), random, masked)
        places = chosen.flatten().nonzero().squeeze(1)
        return MaskedTokens(masked, places, ids.flatten()[places])

    def forward(self, encoder: SentenceEncoder, tokens: MaskedTokens, attention_mask: Tensor) -> Tensor:
        """The sum over the M hidden tokens of their cross-entropy, a scalar; 0 for M = 0.

        Logits are computed for the hidden tokens alone, [M, V].
        """
        states = encoder.token_states(tokens.ids, attention_mask)
        hidden = states.flatten(0, 1)[tokens.places]
        logits = self.head(inputs_embeds=hidden.unsqueeze(0)).logits.squeeze(0)
        return nn.functional.cross_entropy(logits.float(), tokens.targets, reduction="sum")


class _Given(nn.Module):
    """Stands where a masked language model has its encoder, and passes on the states that it is given."""

    def forward(self, *inputs: object, inputs_embeds: Tensor, **options: object) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=inputs_embeds)


def _open_head(encoder: SentenceEncoder) -> nn.Module:
    """The masked language model of the encoder's checkpoint, without the encoder in it."""
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
        warnings.warn(f"{encoder.source} has no head for masked tokens: mlm begins with a new one", stacklevel=2)
    setattr(model, model.base_model_prefix, _Given())
    decoder, words = model.get_output_embeddings(), encoder.backbone.get_input_embeddings().weight
    if decoder is None or decoder.weight.shape != words.shape:
        raise UserError(f"objectives: mlm: {type(model).__name__} has a head that this objective cannot use")
    if getattr(model.config, "tie_word_embeddings", True):
        decoder.weight = words
    head: nn.Module = model.to(encoder.device, encoder.dtype)
    return head
