"""What the commands share: exit codes, one line for a user's mistake, quiet libraries, consoles."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simcse_kit.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from simcse_kit.encoder import SentenceEncoder

ModelArgument = Annotated[
    str, typer.Argument(help="A directory, a packaged model's name or a hub id.", metavar="MODEL")
]
ColumnOption = Annotated[
    str | None,
    typer.Option(help="The input's column of texts; by default 'text', or the only one there is.", metavar="NAME"),
]
PoolingOption = Annotated[
    str | None,
    typer.Option(
        help="cls, cls_pooler, mean, max, ... (see the README); by default as the model says.", metavar="NAME"
    ),
]
MaxLengthOption = Annotated[
    int | None,
    typer.Option(help="Tokens a text is cut to, special ones included; by default as the model says.", metavar="N"),
]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, ...; by default a GPU if there is one.", metavar="NAME")
]
DtypeOption = Annotated[
    str | None,
    typer.Option(help="The type of the weights: float32 (default), bfloat16, float16; on a CPU int8.", metavar="NAME"),
]
AllowPickleOption = Annotated[
    bool,
    typer.Option(
        "--allow-pickle", help="Open pickled weights where there are no safetensors; a stranger's can run any code."
    ),
]

EXIT_FAILURE = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

# The class itself moved from click into typer; its subclass is public in every version.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]

_PIPE_WIDTH = 200
_DEFAULT_COLUMN = "text"


def command_app() -> typer.Typer:
    """An app for one command whose errors `run` reports."""
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def run(app: typer.Typer, args: Sequence[str] | None = None) -> int:
    """Run a command and turn what ends it into an exit code.

    A user's mistake, on the command line or in the input, becomes one line on standard error. Any other exception
    passes through: it is a fault of ours, and the interpreter ends with its traceback and code 1.

    Args:
        app: The command.
        args: Its arguments; by default the process's.

    Returns:
        0 done; 2 the user's mistake; 130 interrupted; 1 standard output was closed by its reader.
    """
    _quiet_libraries()
    of_python, warnings.formatwarning = warnings.formatwarning, _one_line_warning
    try:
        code = typer.main.get_command(app).main(None if args is None else list(args), standalone_mode=False) or 0
        sys.stdout.flush()
    except _UsageError as error:
        message = error.format_message().rstrip(".").replace("Value error, ", "")  # type: ignore[attr-defined]
        return _complain(f"{message}; see --help")
    except UserError as error:
        return _complain(str(error))
    except BrokenPipeError:
        return _stdout_closed()
    finally:
        warnings.formatwarning = of_python
    if code == EXIT_INTERRUPTED:
        print("interrupted", file=sys.stderr)
    return int(code)


def open_encoder(
    model: str,
    *,
    pooling: str | None,
    max_length: int | None,
    device: str | None,
    dtype: str | None,
    allow_pickle: bool,
) -> SentenceEncoder:
    """Open a model as `SentenceEncoder.from_pretrained` does, and say so while that takes its seconds.

    Raises:
        UserError: As it does, and for a device that is not there.
    """
    with opening(model, device):
        from simcse_kit.encoder import SentenceEncoder

        return SentenceEncoder.from_pretrained(
            model, pooling=pooling, max_length=max_length, device=device, dtype=dtype, allow_pickle=allow_pickle
        )


@contextmanager
def opening(model: str, device: str | None) -> Iterator[None]:
    """Say that a model is being opened, for the seconds that this takes, once its device was found to be there.

    Raises:
        UserError: For a device that is not there.
    """
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(f"Opening {model}")):
        if device is not None:
            _check_device(device)
        yield


def read_texts(path: Path, column: str | None) -> list[str]:
    """Read a file's texts; unlike training data, the blank lines of a .txt are rows, so that rows keep their number.

    Raises:
        UserError: If the file cannot be read, has no rows or not the column, or the column has a cell that is no text.
    """
    from simcse_kit.data.files import column_names, format_of, read_lines
    from simcse_kit.data.readers import read_columns

    if format_of(path) != ".txt":
        column = column or _sole_column(path, column_names(path))
        return read_columns(path, [column])[column]
    if column is not None:
        raise UserError(f"--column {column}: {path} is plain text and has no columns; leave --column out")
    texts = list(read_lines(path))
    if not texts:
        raise UserError(f"{path} has no rows")
    return texts


def _sole_column(path: Path, columns: Sequence[str]) -> str:
    """The column of texts where none was named."""
    if _DEFAULT_COLUMN in columns:
        return _DEFAULT_COLUMN
    if len(columns) > 1:
        raise UserError(f"{path}: which column holds the texts? Name it with --column: {', '.join(columns)}")
    return columns[0]


def output_console() -> Console:
    """A console on standard output; wide where no terminal limits it, so that a piped table is not folded."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # an unknown name, no such device, torch built without it
        raise UserError(f"--device {device}: {str(error).partition(chr(10))[0]}") from error


def _complain(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return EXIT_USER_ERROR


def _stdout_closed() -> int:
    """Let the interpreter's own flush at exit go nowhere, or it would report the closed pipe once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_FAILURE


def _one_line_warning(message: Warning | str, *where: object, **more: object) -> str:
    """A warning as the user needs it; where in the code it arose tells them nothing."""
    return f"warning: {message}\n"


def _quiet_libraries() -> None:
    """Keep other libraries' warnings out of our lines; the user's own settings stand.

    The variables are read when the libraries are imported, which commands do after this.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module=r"(?!simcse_kit\b)")
