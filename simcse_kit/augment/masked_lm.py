"""Words replaced by what a masked language model puts in their place."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerBase

from simcse_kit.augment.words import choose, core, replace_core, share_of
from simcse_kit.backbone import parse_device, position_limit, quiet
from simcse_kit.errors import UserError, one_line
from simcse_kit.locate import locate, weight_files

_ROWS = 32  # texts a forward pass; the logits of all their tokens over the whole vocabulary are what takes memory


class MaskedLMSubstitution:
    """Replace a share of the words by predictions of a masked language model (SimCSE's "MLM k%", Table 1).

    The chosen words of a text are masked together, one mask token for each word, whatever its number of pieces. What is
    put in is a word that the model's tokenizer has as one piece, with letters or digits, and is not the word that was
    there, so that exactly as many words change as are chosen. Punctuation and capitals stay as they were.

    Shape legend: B texts, T tokens, M masked words, V vocabulary.
    """

    def __init__(self, *, model: str, rate: float = 0.15, sample: bool = True, device: str | None = None) -> None:
        """Open the model.

        Args:
            model: A directory, a packaged model's name, or a hub id, of any masked language model that transformers
                opens.
            rate: In [0, 1): of the n words of a text, the nearest whole number to ``rate * n``, halves up, is replaced,
                but no more than have letters or digits, and none beyond the model's longest input.
            sample: Draw from the model's distribution; else take its first choice.
            device: Where the model runs; None: a GPU where there is one.

        Raises:
            UserError: If there is no such model, or it has no masked language modelling head.
        """
        opened, self._tokenizer = _open(locate(model))
        self._model = opened.to(parse_device(device)).eval()
        self._limit = min(self._tokenizer.model_max_length, position_limit(opened.base_model))
        self._rate, self._sample = rate, sample
        self._word_of = _whole_words(self._tokenizer)
        self._ids_of: dict[str, list[int]] = defaultdict(list)
        for token, word in self._word_of.items():
            self._ids_of[word.lower()].append(token)

    def __call__(self, texts: list[str], generator: Generator) -> list[str]:
        """Augment texts.

        Args:
            texts: B texts; one without words comes back as it is.
            generator: A CPU generator; decides which words are replaced, each set equally likely, and what is sampled.

        Returns:
            B texts.
        """
        split = [text.split() for text in texts]
        chosen = [self._choose(words, generator) for words in split]
        rows = [row for row, places in enumerate(chosen) if places]
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            self._replace([split[row] for row in part], [chosen[row] for row in part], generator)
        return [" ".join(words) or text for words, text in zip(split, texts, strict=True)]

    def _choose(self, words: list[str], generator: Generator) -> list[int]:
        """The places of the words to be replaced, ascending."""
        places = [place for place, word in enumerate(words) if core(word)]
        return [places[index] for index in choose(len(places), share_of(len(words), self._rate), generator)]

    def _replace(self, split: list[list[str]], chosen: list[list[int]], generator: Generator) -> None:
        """Replace the chosen words of each text, in place."""
        logits, found = self._logits([self._mask(*row) for row in zip(split, chosen, strict=True)])
        # A text longer than the model's input has lost its last masks; the words there stay.
        masked = [
            (words, place)
            for words, places, count in zip(split, chosen, found, strict=True)
            for place in places[:count]
        ]
        allowed = torch.full_like(logits, -torch.inf)
        allowed[:, list(self._word_of)] = 0.0
        for row, (words, place) in enumerate(masked):
            allowed[row, self._ids_of.get(core(words[place]).lower(), [])] = -torch.inf
        logits += allowed
        if self._sample:
            tokens = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)
        else:
            tokens = logits.argmax(-1)
        for (words, place), token in zip(masked, tokens.tolist(), strict=True):
            words[place] = replace_core(words[place], self._word_of[token])

    def _mask(self, words: list[str], places: list[int]) -> str:
        """A text for the model, in which the only mask tokens are those of the chosen words."""
        mask = str(self._tokenizer.mask_token)
        shown = [word.replace(mask, "") for word in words]
        for place in places:
            shown[place] = words[place].replace(core(words[place]), mask, 1)
        return " ".join(shown)

    @torch.no_grad()
    def _logits(self, masked: list[str]) -> tuple[Tensor, list[int]]:
        """The logits at all mask tokens, text by text, on the CPU [M, V], and how many of them each text has."""
        tokens = self._tokenizer(masked, padding=True, truncation=True, max_length=self._limit, return_tensors="pt")
        tokens = tokens.to(self._model.device)
        is_mask = tokens["input_ids"] == self._tokenizer.mask_token_id  # [B, T]
        logits = self._model(**tokens).logits[is_mask]
        return logits.float().cpu(), is_mask.sum(1).tolist()


def _open(directory: Path) -> tuple[Any, PreTrainedTokenizerBase]:
    """Open a model with its head; what transformers would make up is refused."""
    if not weight_files(directory):
        raise UserError(f"{directory}: no weights here (no model.safetensors)")
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(directory)
            model, info = AutoModelForMaskedLM.from_pretrained(
                directory, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
    except Exception as error:  # what malformed files bring about; the tokenizers library raises plain Exceptions
        raise UserError(f"{directory}: cannot be opened as a masked language model: {one_line(error)}") from error
    if info["missing_keys"] or tokenizer.mask_token_id is None:
        lacking = min(info["missing_keys"]) if info["missing_keys"] else "a mask token"
        raise UserError(f"{directory}: no masked language model; it lacks {lacking}")
    return model, tokenizer


def _whole_words(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The tokens that are words: read by themselves after a space, the tokenizer gives the same one token back."""
    ids = [token for token in range(len(tokenizer)) if token not in tokenizer.all_special_ids]
    words = [word.strip() for word in tokenizer.batch_decode([[token] for token in ids])]
    again = tokenizer([f" {word}" for word in words], add_special_tokens=False)["input_ids"]
    return {token: word for token, word, back in zip(ids, words, again, strict=True) if back == [token] and core(word)}
