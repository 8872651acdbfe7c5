"""Result files of our own kinds: one model of pydantic's each, as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from simcse_kit.errors import UserError
from simcse_kit.output import replacing

Result = TypeVar("Result")


def write_json(path: Path, result: BaseModel) -> None:
    """Write a result file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")


def public_name(model: str) -> str:
    """A model as result files name it: of a directory the last part of its path, which says nothing of the machine."""
    return Path(model).resolve().name if Path(model).is_dir() else model


def read_json(path: Path, kind: TypeAdapter[Result], program: str) -> Result:
    """Read a result file of a program.

    Raises:
        UserError: If it is not one.
    """
    try:
        return kind.validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: not a result file of {program} ({where}: {first['msg']})") from None
