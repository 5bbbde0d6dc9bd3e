"""Weights from hubs: the local cache first, then a download, which is announced on the logger `varalign`.

Without a network the libraries' own downloads retry for twenty seconds and more. Here one request, through the same
session (proxies included), decides within `TIMEOUT` seconds whether the hub can be reached. `HF_HUB_OFFLINE=1` prevents
every download, also torchvision's and open_clip's by address.
"""

from __future__ import annotations

import logging
import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from varalign.data.waiting import waiting
from varalign.encoders.specs import WeightsUnavailable

LOGGER = logging.getLogger("varalign")
TIMEOUT = 5.0
"""Seconds to wait for a hub's first answer."""
ASK_AGAIN = 60.0
"""Seconds until a hub that did not answer is asked again."""
_SILENT: dict[str, tuple[float, str]] = {}  # address → time of the unanswered request, and the message


def download_url(url: str, *, spec: str, instead: str) -> Path:
    """The file of `url` in torch's hub cache; downloaded if it is not there.

    Args:
        url: if its file name ends in `-HASH.ext`, the first digits of the SHA-256, the download is checked against it.
        spec: the encoder spec, for the messages.
        instead: the spec that names a local file, for the messages.

    Raises:
        WeightsUnavailable: the file is not in the cache and cannot be downloaded.
    """
    import torch

    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.is_file():
        return path
    how = f"download {url}, put it at {path} (or anywhere, and pass {instead})"
    if _offline():
        raise WeightsUnavailable(f"'{spec}': its weights are not on this machine and HF_HUB_OFFLINE is set; {how}")
    LOGGER.warning("downloading %s to %s", url, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    digits = path.stem.rpartition("-")[2]
    prefix = digits if re.fullmatch("[0-9a-f]{8,}", digits) else None
    try:
        with _socket_timeout(TIMEOUT), waiting(f"downloading {path.name}"):
            torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix, progress=False)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong hash is a RuntimeError
        raise WeightsUnavailable(
            f"'{spec}': its weights are not on this machine and the download failed ({error}); {how}"
        ) from error
    return path


def hub_file(repo: str, names: Sequence[str], *, spec: str, instead: str) -> Path:
    """The first of `names` that a Hugging Face repository has, from the local cache or downloaded into it.

    Raises:
        WeightsUnavailable: none is in the cache and none can be downloaded.
    """
    from huggingface_hub import try_to_load_from_cache

    for name in names:
        cached = try_to_load_from_cache(repo, name)
        if isinstance(cached, str):
            return Path(cached)
    _reach(repo, " or ".join(names), spec, instead)
    for name in names:
        found = _download(repo, name, spec, instead)
        if found is not None:
            return found
    raise _unavailable(repo, " or ".join(names), spec, instead, "the repository has no such file")


def hub_folder(
    repo: str,
    patterns: Sequence[Sequence[str]],
    needed: Sequence[Sequence[str]],
    *,
    spec: str,
    instead: str,
    inside: str = "",
    described: str = "",
) -> Path:
    """A folder with the files of a Hugging Face repository that match `patterns`, from the cache or downloaded into it.

    Args:
        repo: `name` or `owner/name`.
        patterns: groups of patterns of files to download; a group is used only if those before it were not enough.
        needed: groups of file names; the folder must have one file of each group.
        spec: the encoder spec, for the messages.
        instead: the option with a folder of the user's own, for the messages.
        inside: a folder in the repository that may hold the needed files in place of its root.
        described: a file that says more of the model where the repository has it. Where the cache cannot tell, the hub
            is asked; where it gives no answer, a line on the logger `varalign` says so.

    Raises:
        WeightsUnavailable: the cache lacks one and the hub cannot be reached, or has no such repository or file.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    def complete(folder: Path) -> bool:
        place = folder / inside if (folder / inside).is_dir() else folder
        return all(any((place / name).is_file() for name in group) for group in needed)

    wanted = ", ".join(" or ".join(group) for group in needed)
    try:
        folder = Path(snapshot_download(repo, local_files_only=True))
        if complete(folder) and _has_description(repo, folder, described, spec, instead):
            return folder
    except LocalEntryNotFoundError:
        pass
    _reach(repo, wanted, spec, instead)
    for group in patterns:
        try:
            with _own_bar(repo):
                folder = Path(snapshot_download(repo, allow_patterns=list(group), etag_timeout=TIMEOUT))
        except OSError as error:  # the hub's errors are all OSErrors
            raise _unavailable(repo, wanted, spec, instead, str(error)) from error
        if complete(folder):
            if described and not (folder / described).is_file():
                _download(repo, described, spec, instead)  # the cache then knows that there is none
            return folder
    raise _unavailable(repo, wanted, spec, instead, "the repository lacks one of these")


def _has_description(repo: str, folder: Path, name: str, spec: str, instead: str) -> bool:
    """False where the repository has a file that the cache lacks: other programs download a model without it."""
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    if not name or (folder / name).is_file() or try_to_load_from_cache(repo, name) is _CACHED_NO_EXIST:
        return True
    try:
        _reach(repo, name, spec, instead)
        return _download(repo, name, spec, instead) is None
    except WeightsUnavailable:
        LOGGER.warning(
            "'%s': its copy in the cache has no %s, and the hub gives no answer whether there is one: the folder is "
            "read as a model that says nothing of its pooling",
            spec,
            name,
        )
        return True


def _download(repo: str, name: str, spec: str, instead: str) -> Path | None:
    """One file of a repository, downloaded into the cache; None if the repository has no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        with _own_bar(f"{repo}/{name}"):
            return Path(hf_hub_download(repo, name, etag_timeout=TIMEOUT))
    except LocalEntryNotFoundError as error:  # also an EntryNotFoundError, but says that the hub was not reached
        raise _unavailable(repo, name, spec, instead, str(error)) from error
    except EntryNotFoundError:
        return None
    except OSError as error:
        raise _unavailable(repo, name, spec, instead, str(error)) from error


@contextmanager
def _own_bar(what: str) -> Iterator[None]:
    """Shows a download by our bar, and none of huggingface_hub's."""
    from huggingface_hub import utils

    bars: Any = utils
    was_disabled = bars.are_progress_bars_disabled()
    bars.disable_progress_bars()
    try:
        with waiting(f"downloading {what}"):
            yield
    finally:
        if not was_disabled:
            bars.enable_progress_bars()


def _reach(repo: str, files: str, spec: str, instead: str) -> None:
    """Announce a download, and check with one request that the hub answers."""
    from huggingface_hub import constants, get_session

    if _offline():
        raise _unavailable(repo, files, spec, instead, "HF_HUB_OFFLINE is set")
    asked, silence = _SILENT.get(constants.ENDPOINT, (0.0, ""))
    if silence and time.monotonic() - asked < ASK_AGAIN:  # the second tower does not wait for it again
        raise _unavailable(repo, files, spec, instead, silence)
    LOGGER.warning("downloading %s of %s from %s", files, repo, constants.ENDPOINT)
    try:
        # Any answer, even a 404, means that the hub is reachable. The session is httpx's or requests', whose errors
        # have only Exception in common.
        get_session().head(f"{constants.ENDPOINT}/{repo}/resolve/main/README.md", timeout=TIMEOUT)
    except Exception as error:
        silence = f"{constants.ENDPOINT} gives no answer: {error}"
        _SILENT[constants.ENDPOINT] = time.monotonic(), silence
        raise _unavailable(repo, files, spec, instead, silence) from error


def _unavailable(repo: str, files: str, spec: str, instead: str, reason: str) -> WeightsUnavailable:
    reason = reason.strip().splitlines()[0] if reason.strip() else "no reason given"
    return WeightsUnavailable(
        f"'{spec}': its weights are not on this machine and cannot be downloaded ({reason}); where there is a network, "
        f"download {files} from https://huggingface.co/{repo} to this machine and pass {instead}"
    )


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """While entered, sets the time that urllib, which torch's download uses, waits for a server."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
