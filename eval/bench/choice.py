"""Which systems take part: those that were named, less those that the machine cannot run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from simcse_kit.errors import UserError

if TYPE_CHECKING:
    import torch


class Kind(Protocol):
    """A system that may need what a machine does not have."""

    def missing(self, device: torch.device) -> str | None:
        """Why a machine with this device cannot run it, if it cannot."""


def named_systems(names: str | None, known: Mapping[str, Kind]) -> list[str]:
    """The systems of a comma-separated list; None: all.

    Raises:
        UserError: If one is unknown or named twice.
    """
    if names is None:
        return list(known)
    listed = names.replace(" ", "").split(",")
    for name in listed:
        if name not in known:
            raise UserError(f"--systems: {name!r} is unknown; known: {', '.join(known)}")
    if len(set(listed)) < len(listed):
        raise UserError(f"--systems {names}: one is named twice")
    return listed


def runnable(
    names: Sequence[str], reference: str, known: Mapping[str, Kind], device: torch.device
) -> tuple[list[str], dict[str, str]]:
    """The systems that a machine can run, and why it cannot run the others.

    Raises:
        UserError: If the reference is not among the former.
    """
    left_out = {name: reason for name in names if (reason := known[name].missing(device)) is not None}
    if reference not in names or reference in left_out:
        raise UserError(f"--reference {reference}: {left_out.get(reference, 'is none of --systems')}")
    return [name for name in names if name not in left_out], left_out
