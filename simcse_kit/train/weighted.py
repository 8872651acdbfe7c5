"""The weighted sum of a recipe's objectives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from simcse_kit.objectives import build_objective
from simcse_kit.objectives.settings import Over
from simcse_kit.train.recipe import Recipe


class WeightedObjectives(nn.Module):
    """The weighted sum of a recipe's objectives, each pooled one on the views that are meant for it."""

    def __init__(self, recipe: Recipe, *, width: int) -> None:
        """Build the pooled objectives; the parameters of those that have any are drawn by the recipe's seed."""
        super().__init__()
        torch.manual_seed(recipe.seed)
        self.weights: dict[str, float] = {section.name: section.weight for section in recipe.objectives}
        self.over: dict[str, Over] = {section.name: recipe.over(section) for section in recipe.pooled}
        self.labelled = [section.name for section in recipe.pooled if section.labels is not None]
        self.objectives = nn.ModuleDict(
            {section.name: build_objective(section, width=width) for section in recipe.pooled}
        )

    def forward(
        self, by_text: list[list[Tensor]], labels: Tensor | None, token_terms: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and each objective's terms before weighting.

        Args:
            by_text: For each text of the rows its views, [N, D] each. An objective over columns sees the first view of
                each; one over views sees the views of each text, and its losses add up, as in ConSERT.
            labels: [N], or None.
            token_terms: The losses of token objectives by their names.
        """
        terms = dict(token_terms or {})
        weighted = [self.weights[name] * term for name, term in terms.items()]
        for objective in self.objectives:
            for name, term in self._terms(objective, by_text, labels):
                terms[name] = terms[name] + term if name in terms else term
                weighted.append(self.weights[objective] * term)
        return torch.stack(weighted).sum(), terms

    def of_labels(self, texts: list[Tensor], labels: Tensor | None) -> Tensor:
        """The loss of those objectives alone that learn from labels, on a view of each text, [N, D] each."""
        by_text = [[view] for view in texts]
        return self._sum((name, term) for name in self.labelled for _, term in self._terms(name, by_text, labels))

    def of_views(self, by_text: list[list[Tensor]]) -> Tensor:
        """The loss of those objectives alone that compare views of a text, on two views of each, [N, D] each."""
        names = [name for name, over in self.over.items() if over == "views"]
        return self._sum((name, term) for name in names for _, term in self._terms(name, by_text, None))

    def _sum(self, terms: Iterator[tuple[str, Tensor]]) -> Tensor:
        return torch.stack([self.weights[name] * term for name, term in terms]).sum()

    def _terms(self, name: str, by_text: list[list[Tensor]], labels: Tensor | None) -> Iterator[tuple[str, Tensor]]:
        """Each term of an objective, once for each text where it compares views."""
        for views in by_text if self.over[name] == "views" else [[views[0] for views in by_text]]:
            yield from self.objectives[name](views, labels).items()
