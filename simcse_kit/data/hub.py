"""Files and data sets from the Hugging Face hub, fetched once and cached by its own libraries."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from simcse_kit.data.rows import Row, arrow_rows, require_columns
from simcse_kit.errors import UserError, one_line

_URL = re.compile(
    r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?/(?P<file>.+)"
)
_SPLIT = re.compile(r"hub:(?P<repo>[^/:]+/[^/:@]+)(?:@(?P<revision>[^/:]+))?(?:/(?P<config>[^/:]+))?:(?P<split>.+)")
_BATCH = 4096  # rows decoded at a time


def fetch_file(url: str) -> Path:
    """Return the local copy of a file in a data set repository, downloading it unless it is cached.

    Where the hub does not answer, the copy that an earlier run fetched for this revision serves.

    Args:
        url: ``hf://datasets/owner/name@revision/path/in/repository``; without ``@revision`` the main branch.

    Raises:
        UserError: for a malformed address, what the hub does not have, and a hub out of reach.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    repo, revision, file = _parse_url(url)
    with _hub_errors(url):
        try:  # asking first spares half a minute of the download's own retries where the hub is out of reach
            get_hf_file_metadata(hf_hub_url(repo, file, repo_type="dataset", revision=revision))
        except Exception:
            cached = try_to_load_from_cache(repo, file, revision=revision, repo_type="dataset")
            if isinstance(cached, str):
                return Path(cached)
            raise
        return Path(hf_hub_download(repo, file, repo_type="dataset", revision=revision))


def stated_sha256(url: str) -> str | None:
    """Return the SHA-256 that the hub states for a large (LFS) file; for a small file it states another hash.

    Raises:
        UserError: as ``fetch_file``.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    repo, revision, file = _parse_url(url)
    with _hub_errors(url):
        return get_hf_file_metadata(hf_hub_url(repo, file, repo_type="dataset", revision=revision)).etag


def load_split(name: str) -> Any:
    """Return one split of a data set on the hub as a ``datasets.Dataset``.

    Args:
        name: ``hub:owner/name@revision/configuration:split``, where the revision and the configuration may be left
            out; the split as the ``datasets`` library takes it, ``train[:1000]`` included.

    Raises:
        UserError: for a malformed name, what the hub does not have, and a hub out of reach.
    """
    found = _SPLIT.fullmatch(name)
    if not found:
        raise UserError(
            f"{name!r} is not of the form hub:owner/name@revision/configuration:split "
            "(@revision and /configuration may be left out)"
        )
    import datasets

    revision = found["revision"] and unquote(found["revision"])
    with _hub_errors(name):
        return datasets.load_dataset(found["repo"], found["config"], split=found["split"], revision=revision)


def split_rows(name: str, dataset: Any, columns: Sequence[str]) -> Iterator[Row]:
    """Yield the rows of a ``datasets.Dataset``.

    Args:
        name: what the rows carry as their source.
        dataset: what ``load_split`` returned.
        columns: the columns wanted. A class label comes as its integer id.

    Raises:
        UserError: for a column the data set does not have.
    """
    require_columns(name, columns, dataset.column_names)
    batches = dataset.select_columns(list(columns)).with_format("arrow").iter(_BATCH)
    return arrow_rows(name, batches, columns)


def _parse_url(url: str) -> tuple[str, str | None, str]:
    found = _URL.fullmatch(url)
    if not found:
        raise UserError(f"{url!r} is not of the form hf://datasets/owner/name@revision/file")
    revision = found["revision"]
    return found["repo"], revision and unquote(revision), found["file"]


@contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    """Say in one line why ``what`` could not be had, whichever of their many errors the hub's libraries raise."""
    try:
        yield
    except Exception as error:
        raise UserError(f"{what}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    from huggingface_hub import errors

    match error:
        case errors.GatedRepoError():
            return "access must be asked for on the hub; do so, then log in with `hf auth login`"
        case errors.RepositoryNotFoundError():
            return "the hub has no such data set, or it is private; check the name, or log in with `hf auth login`"
        case errors.RevisionNotFoundError():
            return "the data set has no such revision"
        case errors.RemoteEntryNotFoundError():
            return "the data set has no such file"
        case _:
            return (
                f"not to be had from the hub, nor cached here ({type(error).__name__}: {one_line(error)}); "
                "fetch it once where there is a connection, or name a local file"
            )
