"""Cross-encoders: models that read both sentences of a pair at once and give it one score, without any vectors.

The upper bound that papers print beside sentence embeddings (the BERT-STSb rows of SBERT, Reimers & Gurevych 2019,
Table 2). ``python -m eval.cross_encoder`` trains one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simcse_kit.data.sts import StsTask
from simcse_kit.dtypes import parse_dtype
from simcse_kit.errors import UserError, one_line
from simcse_kit.locate import locate, weight_files

if TYPE_CHECKING:
    import torch


class PairScorer:
    """A cross-encoder of sentence-transformers, or a transformers checkpoint for the classification of sequences.

    Attributes:
        source: The path or name it was opened from.
        weight_files: The files its weights were read from.
        pooling: ``cross-encoder``: there is no vector of one sentence; this and the following as ``SentenceEncoder``
            has them.
        head_name: ``none``.
        normalize: False.
        max_length: Tokens a pair is cut to, special ones included.
    """

    pooling = "cross-encoder"
    head_name = "none"
    normalize = False

    def __init__(self, model: Any, *, source: str, weight_files: list[Path]) -> None:
        self._model = model
        self.source = source
        self.weight_files = weight_files
        self.max_length = int(model.max_seq_length)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        max_length: int | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> PairScorer:
        """Open a cross-encoder.

        Args:
            name_or_path: A directory or a hub id.
            max_length: Tokens a pair is cut to, special ones included. None: as the model says.
            device: Where it runs. None: a GPU where there is one, else the CPU.
            dtype: Of the weights. None: float32, whatever the file holds.

        Raises:
            UserError: If the model is found nowhere, is no cross-encoder, or gives a pair more than one score.
        """
        from simcse_kit import backbone as hf

        name = str(name_or_path)
        place, precision = hf.parse_device(device), parse_dtype(dtype)
        directory = locate(name)
        _check_trained(directory)
        from sentence_transformers import CrossEncoder

        try:
            with hf.quiet():
                model = CrossEncoder(
                    str(directory), device=str(place), local_files_only=True, model_kwargs={"dtype": precision}
                )
        except Exception as error:  # what malformed files bring about
            raise UserError(f"{directory}: cannot be opened as a cross-encoder: {one_line(error)}") from error
        if model.num_labels != 1:
            raise UserError(f"{directory}: gives a pair {model.num_labels} scores; for similarity it must be 1")
        limit = hf.position_limit(model.model.base_model)
        fewest = model.tokenizer.num_special_tokens_to_add(pair=True) + 2
        if max_length is not None and not fewest <= max_length <= limit:
            raise UserError(f"max_length {max_length} does not fit {name}: it takes {fewest} to {limit} tokens")
        model.max_seq_length = max_length or min(model.max_seq_length, limit)
        return cls(model, source=name, weight_files=weight_files(directory))

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        dtype: torch.dtype = self._model.dtype
        return dtype

    @property
    def weights_sha256(self) -> str:
        """The hash of the weight file; of several, the hash over their hashes."""
        from simcse_kit.backbone import sha256_of_weight_files

        return sha256_of_weight_files(self.weight_files)

    def score(self, pairs: Sequence[tuple[str, str]], *, show_progress: bool = False) -> NDArray[np.float64]:
        """Score pairs, the first sentence of each first.

        Args:
            pairs: n pairs of sentences.
            show_progress: Show a progress display on standard error.

        Returns:
            Scores, [n], behind the activation that the model itself names (a sigmoid, unless it says otherwise).
        """
        scores = self._model.predict(list(pairs), show_progress_bar=show_progress)
        return np.asarray(scores, dtype=np.float64)


def pair_similarities(
    scorer: PairScorer, tasks: Sequence[StsTask], *, show_progress: bool = False
) -> list[list[NDArray[np.float64]]]:
    """Predict every pair of every task; as ``simcse_kit.evaluate.sts.pair_similarities`` does from vectors.

    Returns:
        For each task, for each of its subsets, the scores [n].
    """
    subsets = [subset for task in tasks for subset in task.subsets]
    pairs = [pair for subset in subsets for pair in zip(subset.sentences1, subset.sentences2, strict=True)]
    ends = np.cumsum([len(subset.scores) for subset in subsets])
    parts = iter(np.split(scorer.score(pairs, show_progress=show_progress), ends[:-1]))
    return [[next(parts) for _ in task.subsets] for task in tasks]


def _check_trained(directory: Path) -> None:
    """Refuse a model whose classifier would be made up when it is opened."""
    from simcse_kit.modules import read_json

    architectures = read_json(directory / "config.json").get("architectures") or ["no architecture"]
    if not architectures[0].endswith("ForSequenceClassification"):
        raise UserError(
            f"{directory}: is no cross-encoder (its config.json names {architectures[0]}, not one "
            "...ForSequenceClassification); train one with python -m eval.cross_encoder"
        )
    if not weight_files(directory):
        raise UserError(f"{directory}: no weights here (no model.safetensors; pickled ones are not opened)")
