"""All pooled objectives by their names in a recipe, and how one is made of its settings.

Every objective is a module: ``forward(views, labels=None) -> {term: scalar}``, with the views as [N, D] tensors and the
labels as [N] tensors. One without parameters is its pure function and settings; one with parameters is a module of its
own that takes the ``width`` D as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from simcse_kit.objectives.contrastive import BilinearInfoNCE, consistency, info_nce, nt_xent
from simcse_kit.objectives.ranking import angle, cosent
from simcse_kit.objectives.settings import PooledObjectiveSettings
from simcse_kit.objectives.siamese import SoftmaxClassification, cosine_regression, margin_contrastive, triplet


class FunctionObjective(nn.Module):
    """A pure function of views (and labels) with its settings; the term is named after it."""

    def __init__(self, function: Callable[..., Tensor], *, labelled: bool = False, **options: Any) -> None:
        super().__init__()
        self.function = function
        self.labelled = labelled
        self.options = options

    def forward(self, views: Sequence[Tensor], labels: Tensor | None = None) -> dict[str, Tensor]:
        """The loss of V views, [N, D] each, and of their labels, [N], where it needs them."""
        inputs = [*views, labels] if self.labelled else views
        return {self.function.__name__: self.function(*inputs, **self.options)}


OBJECTIVES: dict[str, Callable[..., nn.Module]] = {
    "info_nce": partial(FunctionObjective, info_nce),
    "nt_xent": partial(FunctionObjective, nt_xent),
    "bilinear_info_nce": BilinearInfoNCE,
    "consistency": partial(FunctionObjective, consistency),
    "softmax": SoftmaxClassification,
    "cosine_regression": partial(FunctionObjective, cosine_regression, labelled=True),
    "triplet": partial(FunctionObjective, triplet),
    "margin_contrastive": partial(FunctionObjective, margin_contrastive, labelled=True),
    "cosent": partial(FunctionObjective, cosent, labelled=True),
    "angle": partial(FunctionObjective, angle, labelled=True),
}


def build_objective(settings: PooledObjectiveSettings, *, width: int) -> nn.Module:
    """The module of an objective, on the CPU; parameters, where it has any, are drawn from torch's generator.

    Args:
        settings: Its section of the recipe; its weight is left to the sum of objectives.
        width: D, of the vectors that it will see.
    """
    options = settings.model_dump(exclude={"name", "weight"})
    if settings.learned:
        options["width"] = width
    return OBJECTIVES[settings.name](**options)
