"""Files of the Hugging Face hub, from its own cache or downloaded into it."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import constants, get_session, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from robustbench_lpm.errors import LpmbenchError, in_one_line


def hub_file(repository: str, file: str, revision: str | None = None) -> Path | None:
    """A file of a repository; None where the repository has no such file.

    What the cache holds is used without asking whether there is something newer. Raises LpmbenchError where the hub
    cannot be reached, or has no such repository or revision.
    """
    try:
        return Path(hf_hub_download(repository, file, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    where = f"'{repository}'" + (f" at revision '{revision}'" if revision else "")
    _check_reachable(repository, file, revision)
    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except GatedRepoError:
        raise LpmbenchError(f"{where} is open only to accounts that its owner admits; `hf auth login` first.") from None
    except RevisionNotFoundError:
        raise LpmbenchError(f"There is no {where} at {constants.ENDPOINT}.") from None
    except RepositoryNotFoundError:
        raise LpmbenchError(f"There is no '{repository}' at {constants.ENDPOINT}, or it is private.") from None
    except LocalEntryNotFoundError as error:
        raise LpmbenchError(f"{where} could not be downloaded: {in_one_line(error.__cause__ or error)}.") from None
    except EntryNotFoundError:
        return None


def _check_reachable(repository: str, file: str, revision: str | None) -> None:
    """Ask once, because the library asks six times in half a minute before it gives up."""
    try:
        get_session().head(hf_hub_url(repository, file, revision=revision), timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except OfflineModeIsEnabled:
        raise LpmbenchError(
            f"'{repository}' is not in the cache, {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to download it."
        ) from None
    except Exception as error:  # of the HTTP client, which differs with the version of the library
        raise LpmbenchError(
            f"'{repository}' is not in the cache, {constants.HF_HUB_CACHE}, and {constants.ENDPOINT} cannot be reached "
            f"({in_one_line(error)})."
        ) from None
