"""The recipe: one YAML file, validated whole before anything runs.

The keys, their meaning and their defaults are the fields of the models below. Unknown keys are refused with a
suggestion, and all errors are reported at once with their path.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from simcse_kit.augment.embedding import Adversarial, EmbeddingSettings
from simcse_kit.augment.text import check_text_augmentation
from simcse_kit.errors import UserError
from simcse_kit.objectives.settings import (
    InfoNCESettings,
    LabelKind,
    MaskedLMSettings,
    ObjectiveSettings,
    Over,
    PooledObjectiveSection,
    PooledObjectiveSettings,
)
from simcse_kit.template import split_template

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
Rate = Annotated[float, Field(ge=0.0, lt=1.0)]


def _is_template(template: str) -> str:
    try:
        split_template(template)
    except UserError as error:
        raise ValueError(str(error)) from None
    return template


Template = Annotated[str, AfterValidator(_is_template)]


class _Converted(NamedTuple):
    texts: int
    labels: LabelKind | None
    needs_columns: bool


_CONVERTED: dict[Convert, _Converted] = {
    "nli_triplets": _Converted(3, None, needs_columns=True),
    "nli_quadruplets": _Converted(4, None, needs_columns=True),
    "nli_pairs": _Converted(2, "class", needs_columns=True),
    "labelled_pairs": _Converted(2, "class", needs_columns=True),
    "scored_pairs": _Converted(2, "score", needs_columns=False),
    "next_sentence": _Converted(2, None, needs_columns=False),
    "next_three_sentences": _Converted(2, None, needs_columns=False),
}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSection(_Section):
    """Which encoder is trained, and how its vectors are made.

    ``max_length`` is that of training; the saved model takes texts as long as its backbone does. ``template`` is what
    pooling ``mask`` puts a text into, as ``{text}`` and ``{mask}``, and counts among the tokens of a text;
    ``remove_template_bias`` takes what the template gives without a text away from the vectors in training
    (PromptBERT).
    """

    name: str
    pooling: PoolingName = "cls"
    head: Literal["none", "mlp"] = "mlp"
    keep_head: bool = False
    template: Template | None = None
    remove_template_bias: bool = False
    dropout: Rate | None = None
    max_length: Annotated[int, Field(ge=3)] = 32
    revision: str | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _parts_exist(self) -> Self:
        if self.keep_head and self.head == "none":
            raise ValueError("keep_head: there is no head to keep (model.head is none)")
        if self.pooling != "mask" and (self.template or self.remove_template_bias):
            raise ValueError("template: only pooling mask has one")
        return self


class DataSection(_Section):
    """The training text: one column gives two views of each text, two anchor and positive, more hard negatives too.

    ``convert`` makes rows of something else: of labelled NLI pairs (columns premise, hypothesis, label)
    ``nli_triplets`` makes anchors, positives and contradictions, ``nli_quadruplets`` the same with a neutral hypothesis
    beside each contradiction, and ``nli_pairs`` pairs with classes; ``labelled_pairs`` takes integer labels as they
    are; ``scored_pairs`` are gold scores in any file that ``evaluation.data`` takes; ``next_sentence`` and
    ``next_three_sentences`` find positives in documents, text files with blank lines between them.
    """

    train: str | list[str]
    columns: Annotated[list[str], Field(min_length=1, max_length=4)] = ["text"]
    convert: Convert | None = None
    shuffle: bool = True

    @property
    def texts(self) -> int:
        """How many texts a row has."""
        return len(self.columns) if self.convert is None else _CONVERTED[self.convert].texts

    @property
    def labels(self) -> LabelKind | None:
        """What label a row has."""
        return None if self.convert is None else _CONVERTED[self.convert].labels

    @model_validator(mode="after")
    def _columns_fit(self) -> Self:
        if len(set(self.columns)) < len(self.columns):
            raise ValueError(f"columns: {self.columns} names one column twice")
        if self.convert and _CONVERTED[self.convert].needs_columns and len(self.columns) != 3:
            raise ValueError(f"convert: {self.convert} needs three columns: two texts and a label")
        return self


class TextViewSection(_Section):
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


class ViewSection(_Section):
    """One view of every text: what is done to the text, to its embeddings, and whether dropout is on.

    ``template`` is one of its own in place of ``model.template``. ``dropout: same`` takes the first view's vectors, as
    if both had one dropout mask (SimCSE's "fixed 0.1").
    """

    text: TextViewSection | None = None
    template: Template | None = None
    embedding: Annotated[EmbeddingSettings | Adversarial, Field(discriminator="name")] | None = None
    dropout: bool | Literal["same"] = True

    @property
    def adversarial(self) -> Adversarial | None:
        """The attack on the first view that this view is, if it is one."""
        return self.embedding if isinstance(self.embedding, Adversarial) else None

    @model_validator(mode="after")
    def _takes_the_first_view_as_it_is(self) -> Self:
        if self.dropout == "same" and (self.text or self.template or self.embedding):
            raise ValueError("dropout: same takes the first view as it is, without an augmentation of its own")
        if self.adversarial and (self.text or self.template):
            raise ValueError("embedding: adversarial starts from the first view's text, without another one")
        return self


class TrainSection(_Section):
    """How it is trained. ``encoders: 2`` gives the views or columns behind the first an encoder of their own.

    ``trained_share`` below 1 mixes the weights that training began with into what is evaluated and saved: less is
    gained on the data, and less forgotten (WiSE-FT; 0.5 is a good guess).

    ``chunk_size`` is a key of the format that takes its default only.
    """

    batch_size: Annotated[int, Field(ge=1)] = 64
    chunk_size: None = None
    encoders: Literal[1, 2] = 1
    epochs: Annotated[float, Field(gt=0.0)] = 1
    max_steps: Annotated[int, Field(ge=1)] | None = None
    lr: Annotated[float, Field(ge=0.0)] = 3e-5
    schedule: Literal["linear", "constant", "cosine"] = "linear"
    warmup_ratio: Rate = 0.0
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0.0)] | None = 1.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    drop_last: bool = False
    trained_share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    log_every: Annotated[int, Field(ge=1)] = 1
    save_every: Annotated[int, Field(ge=1)] | None = None
    keep_last: Annotated[int, Field(ge=1)] = 1
    patience: Annotated[int, Field(ge=1)] | None = None


class EvaluationSection(_Section):
    """What chooses the best model: Spearman on an STS set, every so many optimiser steps and at the end.

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


class ReportSection(_Section):
    """What is measured before and after training, shown, and never used to choose a model."""

    data: str
    task: str = "STSB"
    split: str = "test"
    text: Literal["disk", "raw"] = "disk"
    neighbours: Annotated[int, Field(ge=0)] = 0


class Recipe(_Section):
    """One training run."""

    model: ModelSection
    data: DataSection
    views: list[ViewSection] = []
    objectives: Annotated[list[ObjectiveSettings], Field(min_length=1)] = [InfoNCESettings()]
    train: TrainSection = TrainSection()
    evaluation: EvaluationSection = EvaluationSection()
    report: ReportSection | None = None
    stages: list[dict[str, Any]] = []
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    output_dir: Annotated[str, Field(min_length=1)]

    @property
    def views_per_text(self) -> list[ViewSection]:
        """The views of each text: as given, else two with a dropout mask each of a single text, one of a pair's."""
        return self.views or [ViewSection()] * (2 if self.pooled and self.data.texts == 1 else 1)

    @property
    def pooled(self) -> list[PooledObjectiveSettings]:
        """The objectives that see vectors."""
        return [section for section in self.objectives if isinstance(section, PooledObjectiveSection)]

    @property
    def masked_lm(self) -> MaskedLMSettings | None:
        """The objective that predicts masked tokens, if there is one."""
        return next((section for section in self.objectives if isinstance(section, MaskedLMSettings)), None)

    @property
    def adversarial(self) -> Adversarial | None:
        """The attack of the view that is one."""
        return next((view.adversarial for view in self.views if view.adversarial), None)

    def over(self, objective: PooledObjectiveSection) -> Over:
        """What an objective's views are here: the one kind of which there are several, of both what it prefers."""
        several: dict[Over, bool] = {"columns": self.data.texts > 1, "views": len(self.views_per_text) > 1}
        possible = [over for over in objective.over if several[over]]
        return objective.prefers if len(possible) != 1 else possible[0]

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        names = [objective.name for objective in self.objectives]
        vectors = bool(self.pooled)
        attacks = [view.adversarial for view in self.views if view.adversarial]
        rules = {
            "objectives: each may be named once": len(set(names)) < len(names),
            "objectives: a hard_negative_weight needs a third column in data.columns": self.data.texts < 3
            and any(getattr(objective, "hard_negative_weight", 0) for objective in self.objectives),
            "train.patience: nothing would be evaluated (evaluation.data is null)": self.train.patience is not None
            and self.evaluation.data is None,
            "views.0: dropout: same needs a view before it": self.views_per_text[0].dropout == "same",
            "views.0: adversarial needs a view before it": self.views_per_text[0].adversarial is not None,
            "views: a template needs model.pooling: mask": self.model.pooling != "mask"
            and any(view.template for view in self.views),
            "views: adversarial of labels needs an objective that learns from labels (or of: views)": any(
                attack.of == "labels" for attack in attacks
            )
            and all(objective.labels is None for objective in self.pooled),
            "views: only one view may be adversarial": len(attacks) > 1,
            "views: adversarial starts from the first view, so train.encoders must be 1": bool(attacks)
            and self.train.encoders == 2,
            "views: no objective compares the views of a text, so only the first would be used": len(self.views) > 1
            and all(self.over(objective) == "columns" for objective in self.pooled),
            "model.head: no objective is on vectors, so head must be none": not vectors and self.model.head != "none",
            "train.encoders: no objective is on vectors, so encoders must be 1": not vectors
            and self.train.encoders == 2,
            f"data.convert: no objective learns from the labels of {self.data.convert}": self.data.labels is not None
            and all(objective.labels is None for objective in self.pooled),
        }
        broken = [rule for rule, is_broken in rules.items() if is_broken]
        broken += [problem for objective in self.pooled for problem in self._problems(objective)]
        broken += [problem for number, stage in enumerate(self.stages) for problem in _misplaced(number, stage)]
        if broken:
            raise ValueError("\n".join(broken))
        return self

    def _problems(self, objective: PooledObjectiveSection) -> Iterator[str]:
        over = self.over(objective)
        there = len(self.views_per_text) if over == "views" else self.data.texts
        # A third version of a text is no hard negative.
        fewest, most = objective.min_views, objective.max_views if over == "columns" else 2
        if over not in objective.over or not fewest <= there <= most:
            count = f"{fewest}" if fewest == most else f"{fewest} to {most}"
            what = " or ".join(sorted(objective.over, reverse=True))
            yield f"objectives: {objective.name} needs {count} {what}, here are {there} {over}"
        if objective.labels is not None and objective.labels != self.data.labels:
            ways = ", ".join(name for name, made in _CONVERTED.items() if made.labels == objective.labels)
            yield f"objectives: {objective.name} needs a {objective.labels} for each row; set data.convert to {ways}"


def stage_contents(recipe: Recipe) -> list[dict[str, Any]]:
    """The contents of the recipes that a recipe stands for: its own, or its stages' one after another.

    Every stage is the root with its own keys over it (lists whole), and starts from the best model of the stage before.
    The last one writes to ``output_dir``; stage i of the others to ``output_dir`` with ``-stage<i>`` behind it.
    """
    if not recipe.stages:
        return [recipe.model_dump()]
    root = recipe.model_dump(exclude={"stages"})
    last = len(recipe.stages)
    places = [f"{recipe.output_dir}-stage{number}" for number in range(1, last)] + [recipe.output_dir]
    contents = [merge(root, stage) | {"output_dir": place} for stage, place in zip(recipe.stages, places, strict=True)]
    for content, before in zip(contents[1:], places, strict=False):
        content["model"] = {**content["model"], "name": before}
    return contents


def stage_recipes(recipe: Recipe) -> list[Recipe]:
    """The runs that a recipe stands for, of ``stage_contents``.

    Raises:
        ValidationError: If a stage's keys make no recipe.
    """
    return [Recipe.model_validate(content) for content in stage_contents(recipe)]


def _misplaced(number: int, stage: dict[str, Any]) -> Iterator[str]:
    """What a stage must leave to the root or to the stage before it."""
    for key in ("stages", "extends", "output_dir"):
        if key in stage:
            yield f"stages.{number}.{key}: belongs to the recipe and not to a stage"
    model = stage.get("model", {})
    if not isinstance(model, dict):
        yield f"stages.{number}.model: keys belong below it (got {model!r})"
    elif number and "name" in model:
        yield f"stages.{number}.model.name: a later stage starts from the best model of the one before"


def merge(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """``own`` over ``base``: mappings key by key, everything else whole."""
    merged = dict(base)
    for key, value in own.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged
