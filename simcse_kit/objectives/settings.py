"""The settings of every objective, one section of a recipe's ``objectives`` each, and what it needs of the recipe.

The keys, their meaning and their defaults are those of the functions of the same name; nothing here imports torch.
Objectives are of two kinds: pooled ones see vectors alone; token objectives see tokens, and make a forward pass of
their own.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Over = Literal["columns", "views"]
"""What an objective's views are: the columns of a row, or versions of one text."""
LabelKind = Literal["class", "score"]
"""What it learns from: class ids (int64), or gold scores (float)."""
Distance = Literal["euclidean", "cosine"]
"""How far apart two vectors are; cosine: 1 - cosine."""
Similarity = Literal["cosine", "dot"]
"""How alike two vectors are; dot: their dot product, in which their lengths count."""
Feature = Literal["u", "v", "|u-v|", "u*v", "max(u,v)^2"]
"""What a classifier sees of two vectors, dimension by dimension."""

_Positive = Annotated[float, Field(gt=0.0)]
_EITHER: frozenset[Over] = frozenset({"columns", "views"})
_COLUMNS: frozenset[Over] = frozenset({"columns"})
_VIEWS: frozenset[Over] = frozenset({"views"})


class ObjectiveSection(BaseModel):
    """What all sections share.

    Attributes:
        name: Its name in the recipe.
        weight: What its terms count in the sum; the objective itself does not know it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str
    weight: _Positive = 1.0


class PooledObjectiveSection(ObjectiveSection):
    """What the sections of objectives on pooled views share; their names are those in ``OBJECTIVES``.

    Attributes:
        min_views: The fewest views it takes.
        max_views: The most views it takes.
        over: What these views may be.
        prefers: What they are where a recipe has several columns and several views of each.
        labels: What it learns from beside them; None for nothing.
        num_classes: How many classes its labels have; None where they are no classes.
        learned: Whether it has parameters of its own, for which it is told the vectors' width.
    """

    min_views: ClassVar[int] = 2
    max_views: ClassVar[int] = 2
    over: ClassVar[frozenset[Over]]
    prefers: ClassVar[Over] = "columns"
    labels: ClassVar[LabelKind | None] = None
    num_classes: ClassVar[int | None] = None
    learned: ClassVar[bool] = False


class InfoNCESettings(PooledObjectiveSection):
    """Anchor and positive, and up to two hard negatives; two versions of a text are the first two."""

    max_views: ClassVar[int] = 4
    over: ClassVar[frozenset[Over]] = _EITHER

    name: Literal["info_nce"] = "info_nce"
    temperature: _Positive = 0.05
    hard_negative_weight: float = 0.0
    similarity: Similarity = "cosine"
    symmetric: bool = False


class NTXentSettings(PooledObjectiveSection):
    """Two versions of a text, or anchor and positive."""

    over: ClassVar[frozenset[Over]] = _EITHER
    prefers: ClassVar[Over] = "views"  # ConSERT contrasts the views of premises and of hypotheses

    name: Literal["nt_xent"] = "nt_xent"
    temperature: _Positive = 0.1
    reduction: Literal["mean", "sum"] = "mean"


class BilinearInfoNCESettings(PooledObjectiveSection):
    """Anchor and positive, such as a sentence and the next one, or two versions of a text."""

    over: ClassVar[frozenset[Over]] = _EITHER
    learned: ClassVar[bool] = True

    name: Literal["bilinear_info_nce"] = "bilinear_info_nce"


class ConsistencySettings(PooledObjectiveSection):
    """Two versions of a text."""

    over: ClassVar[frozenset[Over]] = _VIEWS
    prefers: ClassVar[Over] = "views"

    name: Literal["consistency"] = "consistency"
    temperature: _Positive = 0.05


class SoftmaxSettings(PooledObjectiveSection):
    """Premise and hypothesis, labelled contradiction 0, entailment 1, neutral 2."""

    over: ClassVar[frozenset[Over]] = _COLUMNS
    labels: ClassVar[LabelKind | None] = "class"
    num_classes: ClassVar[int | None] = 3
    learned: ClassVar[bool] = True

    name: Literal["softmax"] = "softmax"
    features: Annotated[tuple[Feature, ...], Field(min_length=1)] = ("u", "v", "|u-v|")


class CosineRegressionSettings(PooledObjectiveSection):
    """Two sentences and their gold score in [0, max_score]."""

    over: ClassVar[frozenset[Over]] = _COLUMNS
    labels: ClassVar[LabelKind | None] = "score"

    name: Literal["cosine_regression"] = "cosine_regression"
    max_score: _Positive = 5.0


class TripletSettings(PooledObjectiveSection):
    """Anchor, positive and negative."""

    min_views: ClassVar[int] = 3
    max_views: ClassVar[int] = 3
    over: ClassVar[frozenset[Over]] = _COLUMNS

    name: Literal["triplet"] = "triplet"
    margin: Annotated[float, Field(ge=0.0)] = 1.0
    distance: Distance = "euclidean"


class MarginContrastiveSettings(PooledObjectiveSection):
    """Two sentences, labelled similar (1) or not (0)."""

    over: ClassVar[frozenset[Over]] = _COLUMNS
    labels: ClassVar[LabelKind | None] = "class"
    num_classes: ClassVar[int | None] = 2

    name: Literal["margin_contrastive"] = "margin_contrastive"
    margin: _Positive = 1.0
    distance: Distance = "euclidean"


class CosentSettings(PooledObjectiveSection):
    """Two sentences and their gold score, of which only the order counts."""

    over: ClassVar[frozenset[Over]] = _COLUMNS
    labels: ClassVar[LabelKind | None] = "score"

    name: Literal["cosent"] = "cosent"
    scale: _Positive = 20.0


class AngleSettings(PooledObjectiveSection):
    """Two sentences and their gold score, of which only the order counts."""

    over: ClassVar[frozenset[Over]] = _COLUMNS
    labels: ClassVar[LabelKind | None] = "score"

    name: Literal["angle"] = "angle"
    scale: _Positive = 20.0


class MaskedLMSettings(ObjectiveSection):
    """Masked language modelling on the texts of all views; a token objective.

    ``rate`` is the share of tokens that are predicted, of which 80% are masked, 10% random, 10% left as they are. With
    ``whole_word`` all tokens of a word are predicted, or none.
    """

    name: Literal["mlm"] = "mlm"
    rate: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    whole_word: bool = False


def _named(section: Any) -> Any:
    """A section of a recipe without a name is ``info_nce``."""
    return {"name": "info_nce", **section} if isinstance(section, dict) else section


PooledObjectiveSettings = (
    InfoNCESettings
    | NTXentSettings
    | BilinearInfoNCESettings
    | ConsistencySettings
    | SoftmaxSettings
    | CosineRegressionSettings
    | TripletSettings
    | MarginContrastiveSettings
    | CosentSettings
    | AngleSettings
)
TokenObjectiveSettings = MaskedLMSettings

ObjectiveSettings = Annotated[
    PooledObjectiveSettings | TokenObjectiveSettings, Field(discriminator="name"), BeforeValidator(_named)
]
"""The section of any objective, told apart by its name."""

SECTIONS: dict[str, type[PooledObjectiveSection]] = {
    section.model_fields["name"].default: section for section in get_args(PooledObjectiveSettings)
}
"""The section of each pooled objective by its name."""
TOKEN_SECTIONS: dict[str, type[ObjectiveSection]] = {"mlm": MaskedLMSettings}
"""The section of each token objective by its name."""
