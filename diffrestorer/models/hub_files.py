"""Files on Hugging Face's hub: from its cache if they are there, else downloaded, and without a network no retries."""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import (
    constants,
    get_session,
    hf_hub_download,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

SECONDS_TO_ANSWER = 10
"""Time in which the hub has to answer before it counts as out of reach."""


class HubError(ValueError):
    """Something that the hub's cache lacks and that cannot be downloaded; the message says why, in a clause."""


def find_hub_file(repository: str, names: Sequence[str]) -> Path:
    """Return the first of some files that a repository has: one that is in the cache, else one that is downloaded.

    Raises:
        HubError: there is none of them, or it cannot be had.
    """
    _check_name(repository)
    for name in names:
        found = try_to_load_from_cache(repository, name)
        if isinstance(found, str):
            return Path(found)
    check_network()
    for name in names:
        try:
            return Path(hf_hub_download(repository, name))
        except LocalEntryNotFoundError as error:
            raise HubError(_first_line(error)) from None
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise HubError(_first_line(error)) from None
    raise HubError(f"{repository} has no {' and no '.join(names)}")


def find_snapshot(repository: str, patterns: Sequence[str]) -> Path:
    """Return the folder of a repository's files, downloaded where the cache lacks them.

    Args:
        repository: `OWNER/NAME`.
        patterns: of the files to fetch, such as `*/config.json`.

    Raises:
        HubError: it cannot be had.
    """
    # Online, the newest version; else the one that is there.
    _check_name(repository)
    try:
        check_network()
        return Path(snapshot_download(repository, allow_patterns=list(patterns)))
    except (HubError, HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = _first_line(error)
    try:
        return Path(snapshot_download(repository, local_files_only=True))
    except (OSError, ValueError):
        raise HubError(reason) from None


def check_network() -> None:
    """Refuse to download anything where nothing can be downloaded.

    Raises:
        HubError: the hub cannot be reached, or HF_HUB_OFFLINE is set.
    """
    if constants.is_offline_mode():
        raise HubError("HF_HUB_OFFLINE is set, so that nothing is downloaded")
    if reason := _why_unreachable():
        raise HubError(
            f"{constants.ENDPOINT} cannot be reached ({reason}); HF_HUB_OFFLINE=1 says so in advance"
        )


@contextmanager
def cache_without_network() -> Iterator[None]:
    """Let libraries that fetch from the hub by themselves look only into its cache where it cannot be reached.

    They would try each file six times.
    """
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or bool(_why_unreachable())
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _check_name(repository: str) -> None:
    """Refuse what can be no repository, such as the path of a folder that is not there."""
    try:
        validate_repo_id(repository)
    except HFValidationError:
        raise HubError("it is not of the form OWNER/NAME") from None


@functools.cache
def _why_unreachable() -> str:
    """Try the hub once per process; return why it does not answer, or nothing."""
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS_TO_ANSWER)
    except Exception as error:  # the client's own kinds, which change with its version
        return _first_line(error)
    return ""


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0].rstrip(". ")
