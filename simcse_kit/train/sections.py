"""The sections of a recipe: their keys, defaults, and the rules within each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from simcse_kit.augment.embedding import Adversarial, EmbeddingSettings, Rate
from simcse_kit.augment.text import check_text_augmentation
from simcse_kit.data.tokens import tokens_directory
from simcse_kit.errors import UserError
from simcse_kit.objectives.settings import LabelKind
from simcse_kit.template import MASK_TEMPLATE, split_template

PoolingName = Literal["cls", "cls_pooler", "mean", "max", "mask", "last2_mean", "first_last_mean", "first_last_mean_h0"]
Convert = Literal[
    "nli_triplets",
    "nli_quadruplets",
    "nli_pairs",
    "labelled_pairs",
    "scored_pairs",
    "next_sentence",
    "next_three_sentences",
]
_TEST_IN_NAME = re.compile(r"(?<![a-z])test(?![a-z])", re.IGNORECASE)


def _check_template(template: str | None) -> None:
    try:
        split_template(template or MASK_TEMPLATE)
    except UserError as error:
        raise ValueError(f"template: {error}") from None


class Converted(NamedTuple):
    """What a converter makes: texts a row, their label, and whether it needs the columns to be named."""

    texts: int
    labels: LabelKind | None
    needs_columns: bool


CONVERTED: dict[Convert, Converted] = {
    "nli_triplets": Converted(3, None, needs_columns=True),
    "nli_quadruplets": Converted(4, None, needs_columns=True),
    "nli_pairs": Converted(2, "class", needs_columns=True),
    "labelled_pairs": Converted(2, "class", needs_columns=True),
    "scored_pairs": Converted(2, "score", needs_columns=False),
    "next_sentence": Converted(2, None, needs_columns=False),
    "next_three_sentences": Converted(2, None, needs_columns=False),
}


class Section(BaseModel):
    """Keys that are all known, and numbers that are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ArchitectureSection(Section):
    """A new BERT with random weights; the keys are those of transformers' ``BertConfig``.

    Left out, ``intermediate_size`` is four times ``hidden_size`` and ``max_position_embeddings`` is
    ``model.max_length``. The vocabulary is the tokenizer's.
    """

    num_hidden_layers: Annotated[int, Field(ge=1)]
    hidden_size: Annotated[int, Field(ge=1)]
    num_attention_heads: Annotated[int, Field(ge=1)]
    intermediate_size: Annotated[int, Field(ge=1)] | None = None
    max_position_embeddings: Annotated[int, Field(ge=3)] | None = None
    hidden_act: Literal["gelu", "gelu_new", "relu", "silu"] = "gelu"
    hidden_dropout_prob: Rate = 0.1
    attention_probs_dropout_prob: Rate = 0.1
    initializer_range: Annotated[float, Field(gt=0.0)] = 0.02
    layer_norm_eps: Annotated[float, Field(gt=0.0)] = 1e-12

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size: {self.hidden_size} is no multiple of num_attention_heads ({self.num_attention_heads})"
            )
        return self


class ModelSection(Section):
    """Which encoder is trained, and how its vectors are made.

    ``new`` begins with random weights in place of a checkpoint's; ``name`` is then where the tokenizer is, such as a
    directory of ``simcse-prepare``.

    ``max_length`` is that of training; the saved model takes texts as long as its backbone does. ``template`` is what
    pooling ``mask`` puts a text into, as ``{text}`` and ``{mask}``, and counts among the tokens of a text;
    ``remove_template_bias`` takes what the template gives without a text away from the vectors in training
    (PromptBERT).
    """

    name: str
    new: ArchitectureSection | None = None
    pooling: PoolingName = "cls"
    head: Literal["none", "mlp"] = "mlp"
    keep_head: bool = False
    template: str | None = None
    remove_template_bias: bool = False
    dropout: Rate | None = None
    max_length: Annotated[int, Field(ge=3)] = 32
    revision: str | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _parts_exist(self) -> Self:
        if self.new and (self.new.max_position_embeddings or self.max_length) < self.max_length:
            raise ValueError(f"new.max_position_embeddings: max_length {self.max_length} needs as many")
        if self.new and self.pooling == "cls_pooler":
            raise ValueError("pooling: cls_pooler is a checkpoint's own, and a new model has none")
        if self.keep_head and self.head == "none":
            raise ValueError("keep_head: there is no head to keep (model.head is none)")
        _check_template(self.template)
        if self.pooling != "mask" and (self.template or self.remove_template_bias):
            raise ValueError("template: only pooling mask has one")
        if self.remove_template_bias and not self.template:
            raise ValueError("template: remove_template_bias needs to know it; name it here, a saved model's own too")
        return self


class DataSection(Section):
    """The training text: one column gives two views of each text, two anchor and positive, more hard negatives too.

    ``convert`` makes rows of something else: of labelled NLI pairs (columns premise, hypothesis, label)
    ``nli_triplets`` makes anchors, positives and contradictions, ``nli_quadruplets`` the same with a neutral hypothesis
    beside each contradiction, and ``nli_pairs`` pairs with classes; ``labelled_pairs`` takes integer labels as they
    are; ``scored_pairs`` are gold scores in any file that ``evaluation.data`` takes; ``next_sentence`` and
    ``next_three_sentences`` find positives in documents, text files with blank lines between them.

    A directory of tokens (``simcse-prepare``) gives rows of ``model.max_length`` tokens, cut from documents that stand
    end to end; only masked language modelling learns from them.
    """

    train: str | list[str]
    columns: Annotated[list[str], Field(min_length=1, max_length=4)] = ["text"]
    convert: Convert | None = None
    shuffle: bool = True

    @property
    def tokens(self) -> Path | None:
        """The directory of tokens that ``train`` names, if it names one."""
        return tokens_directory(self.train)

    @property
    def texts(self) -> int:
        """How many texts a row has."""
        return len(self.columns) if self.convert is None else CONVERTED[self.convert].texts

    @property
    def labels(self) -> LabelKind | None:
        """What label a row has."""
        return None if self.convert is None else CONVERTED[self.convert].labels

    @model_validator(mode="after")
    def _columns_fit(self) -> Self:
        if len(set(self.columns)) < len(self.columns):
            raise ValueError(f"columns: {self.columns} names one column twice")
        if self.convert and CONVERTED[self.convert].needs_columns and len(self.columns) != 3:
            raise ValueError(f"convert: {self.convert} needs three columns: two texts and a label")
        return self


class TextViewSection(Section):
    """An augmentation of the text, before it is tokenised; settings as in ``simcse_kit.augment.text``."""

    name: str
    rate: Rate | None = None
    model: str | None = None
    sample: bool | None = None
    device: str | None = None
    wordnet: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What was set, by its name."""
        return self.model_dump(exclude={"name"}, exclude_none=True)

    @model_validator(mode="after")
    def _is_known(self) -> Self:
        try:
            check_text_augmentation(self.name, self.settings)
        except UserError as error:
            raise ValueError(f"name: {error}") from None
        return self


class ViewSection(Section):
    """One view of every text: what is done to the text, to its embeddings, and whether dropout is on.

    ``template`` is one of its own in place of ``model.template``. ``dropout: same`` takes the first view's vectors, as
    if both had one dropout mask (SimCSE's "fixed 0.1").
    """

    text: TextViewSection | None = None
    template: str | None = None
    embedding: Annotated[EmbeddingSettings | Adversarial, Field(discriminator="name")] | None = None
    dropout: bool | Literal["same"] = True

    @property
    def adversarial(self) -> Adversarial | None:
        """The attack on the first view that this view is, if it is one."""
        return self.embedding if isinstance(self.embedding, Adversarial) else None

    @model_validator(mode="after")
    def _takes_the_first_view_as_it_is(self) -> Self:
        _check_template(self.template)
        if self.dropout == "same" and (self.text or self.template or self.embedding):
            raise ValueError("dropout: same takes the first view as it is, without an augmentation of its own")
        if self.adversarial and (self.text or self.template):
            raise ValueError("embedding: adversarial starts from the first view's text, without another one")
        return self


class TrainSection(Section):
    """How it is trained. ``encoders: 2`` gives the views or columns behind the first an encoder of their own.

    ``trained_share`` below 1 mixes the weights that training began with into what is evaluated and saved: less is
    gained on the data, and less forgotten (WiSE-FT; 0.5 is a good guess). A head, which begins at random, is left out,
    and a stage begins with what the stage before it has saved.

    ``bias_correction: false`` is AdamW as BERT's, SBERT's and ConSERT's code has it, with an ``adam_epsilon`` of 1e-6.

    ``chunk_size`` rows of a process are encoded at a time (GradCache), whatever the batch is; null tries the whole
    batch and, out of memory in a single process, ever smaller chunks.

    ``compile`` has torch compile the backbone for training on a GPU, where rows are of one length (tokens).
    ``save_dtype`` and ``shard_mb`` are of the model's files: a smaller type, and files of at most so many MB (10^6
    bytes); whoever opens them has float32 again, so that training can go on.
    """

    batch_size: Annotated[int, Field(ge=1)] = 64
    chunk_size: Annotated[int, Field(ge=1)] | None = None
    encoders: Literal[1, 2] = 1
    epochs: Annotated[float, Field(gt=0.0)] = 1
    max_steps: Annotated[int, Field(ge=1)] | None = None
    lr: Annotated[float, Field(ge=0.0)] = 3e-5
    schedule: Literal["linear", "constant", "cosine"] = "linear"
    warmup_ratio: Rate = 0.0
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    adam_epsilon: Annotated[float, Field(gt=0.0)] = 1e-8
    bias_correction: bool = True
    max_grad_norm: Annotated[float, Field(gt=0.0)] | None = 1.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    drop_last: bool = False
    trained_share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    log_every: Annotated[int, Field(ge=1)] = 1
    save_every: Annotated[int, Field(ge=1)] | None = None
    keep_last: Annotated[int, Field(ge=1)] = 1
    patience: Annotated[int, Field(ge=1)] | None = None
    compile: bool = False
    save_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    shard_mb: Annotated[int, Field(ge=1)] | None = None


class EvaluationSection(Section):
    """What chooses the best model: Spearman on an STS set, every so many optimiser steps and at the end.

    As often masked tokens of what ``simcse-prepare`` held out are predicted, which chooses nothing.

    A model chosen on a test split has no test figure any more, so one is refused unless ``allow_test`` is set, which
    run.json then records.
    """

    data: str | None = None
    task: str = "STSB"
    split: str = "dev"
    text: Literal["disk", "raw"] = "disk"
    every: Annotated[int, Field(ge=0)] = 125
    allow_test: bool = False

    @property
    def on_test(self) -> bool:
        """Whether the set is a test split, by the recipe's word, the hub's, or the name of a file."""
        if self.data is None:
            return False
        if self.data.startswith("hub:"):  # whose split may read test[:100] or dev+test
            splits = self.data.removeprefix("hub:").partition(":")[2]
            return any(part.partition("[")[0] == "test" for part in splits.split("+"))
        file = Path(self.data)
        return self.split == "test" or (file.suffix != "" and _TEST_IN_NAME.search(file.name) is not None)

    @model_validator(mode="after")
    def _selects_on_dev(self) -> Self:
        if self.on_test and not self.allow_test:
            raise ValueError(
                f"data: {self.data} ({self.split}) is a test split, on which no model should be chosen; name a dev "
                "split, or set evaluation.allow_test (recorded in run.json)"
            )
        return self


class ReportSection(Section):
    """What is measured before and after training, shown, and never used to choose a model."""

    data: str
    task: str = "STSB"
    split: str = "test"
    text: Literal["disk", "raw"] = "disk"
    neighbours: Annotated[int, Field(ge=0)] = 0
