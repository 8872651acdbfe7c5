"""Templates: sentences with a place for a text and a place for a mask, whose state is the text's vector."""

from __future__ import annotations

import re

from simcse_kit.errors import UserError

MASK_TEMPLATE = 'This sentence : "{text}" means {mask}.'
"""That of PromptBERT (Jiang et al. 2022, arXiv:2201.04337)."""

_TEMPLATE = re.compile(r"([^{}]*)\{text\}([^{}]*)\{mask\}([^{}]*)")


def split_template(template: str) -> tuple[str, str, str]:
    """The parts of a template before ``{text}``, from there to ``{mask}``, and behind it.

    Raises:
        UserError: If it does not have each of them once, the text first.
    """
    parts = _TEMPLATE.fullmatch(template)
    if parts is None:
        raise UserError(f"template {template!r} needs {{text}} once and, behind it, {{mask}} once")
    before, between, behind = parts.groups()
    return before, between, behind
