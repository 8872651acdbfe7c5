"""The recipe: one YAML file, validated whole before anything runs.

The keys, their meaning and their defaults are the fields of the models here and in ``sections``. Unknown keys are
refused with a suggestion, and all errors are reported at once with their path.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from simcse_kit.augment.embedding import Adversarial
from simcse_kit.objectives.settings import (
    InfoNCESettings,
    MaskedLMSettings,
    ObjectiveSettings,
    Over,
    PooledObjectiveSection,
    PooledObjectiveSettings,
)
from simcse_kit.train.sections import (
    CONVERTED,
    DataSection,
    EvaluationSection,
    ModelSection,
    ReportSection,
    Section,
    TrainSection,
    ViewSection,
)


class Recipe(Section):
    """One training run."""

    model: ModelSection
    data: DataSection
    views: list[ViewSection] = Field(default_factory=list)
    objectives: list[ObjectiveSettings] = Field(default=[InfoNCESettings()], min_length=1)
    train: TrainSection = TrainSection()
    evaluation: EvaluationSection = EvaluationSection()
    report: ReportSection | None = None
    stages: list[dict[str, Any]] = Field(default_factory=list)
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
        first = self.views_per_text[0]
        rules = {
            "objectives: each may be named once": len(set(names)) < len(names),
            "objectives: a hard_negative_weight needs a third column in data.columns": self.data.texts < 3
            and any(getattr(objective, "hard_negative_weight", 0) for objective in self.objectives),
            "train.patience: nothing would be evaluated (evaluation.data is null)": self.train.patience is not None
            and self.evaluation.data is None,
            "views.0: dropout: same needs a view before it": first.dropout == "same",
            "views.0: adversarial needs a view before it": first.adversarial is not None,
            "views.0: adversarial starts from it, so it must have no text, template or embedding": bool(attacks)
            and bool(first.text or first.template or first.embedding),
            "views: dropout: same is the first view's vector, so train.encoders must be 1": self.train.encoders == 2
            and any(view.dropout == "same" for view in self.views),
            "views: no objective is on vectors, so a view is its text alone": not vectors
            and any(view.embedding or view.dropout is not True for view in self.views),
            "views: a template needs model.pooling: mask": self.model.pooling != "mask"
            and any(view.template for view in self.views),
            "views: adversarial of labels needs an objective that learns from labels (or of: views)": any(
                attack.of == "labels" for attack in attacks
            )
            and all(objective.labels is None for objective in self.pooled),
            "views: only one view may be adversarial": len(attacks) > 1,
            "views: adversarial needs the loss of the whole batch, so train.chunk_size must be null": bool(attacks)
            and self.train.chunk_size is not None,
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
        broken += [*self._problems_of_tokens()]
        broken += [problem for objective in self.pooled for problem in self._problems(objective)]
        broken += [problem for number, stage in enumerate(self.stages) for problem in _misplaced(number, stage)]
        if broken:
            raise ValueError("\n".join(broken))
        return self

    def _problems_of_tokens(self) -> Iterator[str]:
        directory = self.data.tokens
        if directory is None:
            return
        if self.pooled:
            yield f"objectives: mlm alone learns from tokens, which data.train {directory} holds; name no other one"
        if self.data.texts != 1 or self.data.convert:
            yield f"data.columns: data.train {directory} holds tokens, which have no columns and are not converted"
        if self.views or self.model.template:
            yield f"views: data.train {directory} holds tokens, which are seen as they are: no views, no template"

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
            ways = ", ".join(name for name, made in CONVERTED.items() if made.labels == objective.labels)
            yield f"objectives: {objective.name} needs a {objective.labels} for each row; set data.convert to {ways}"


def _misplaced(number: int, stage: dict[str, Any]) -> Iterator[str]:
    """What a stage must leave to the root or to the stage before it."""
    for key in ("stages", "extends", "output_dir"):
        if key in stage:
            yield f"stages.{number}.{key}: belongs to the recipe and not to a stage"
    model = stage.get("model", {})
    if not isinstance(model, dict):
        yield f"stages.{number}.model: keys belong below it (got {model!r})"
    else:
        for key in sorted({"name", "new"} & model.keys() if number else ()):
            yield f"stages.{number}.model.{key}: a later stage starts from the best model of the one before"
