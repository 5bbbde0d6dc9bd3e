"""The images of any folder, without captions, embedded once: a store in the run folder that is brought up to date.

A store is one file of float16 vectors under a key of the model's weights and the code that reads images. It is
memory-mapped, written whole or not at all, and checked on the mapping that is then used. An image is embedded again
only where its bytes are new: a file whose inode, size and times are as before is not opened, and one that was moved,
copied or touched is known by its SHA-256. N images, D embedding.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from varalign.aligner.aligner import Aligner
from varalign.aligner.gallery import file_state
from varalign.aligner.image_gallery import ImageGallery
from varalign.canonical.hub_correction import HubCorrection
from varalign.data.errors import DataError, first_three, shown
from varalign.data.files import cache_key, digest_or_absent
from varalign.data.images import core_key
from varalign.data.readers.image_folder import ImageFolder
from varalign.data.waiting import waiting
from varalign.inputs.kept import read_kept, write_kept
from varalign.runs.lock import locked
from varalign.runs.progress import to_stderr

FORMAT = 1
"""Raised whenever the form of the store changes."""
_AT_ONCE = 512
_READERS = 8  # threads that hash: reads from a cold disk wait
_SAVE_EVERY = 60.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class FolderGallery(ImageGallery):
    """The images of a folder that can be read, in the order of their names.

    Attributes:
        digests: (N, 32) uint8, SHA-256 of the files when they were embedded.
        unreadable: names of the images that cannot be read, with the reason.
        changes: what was done to bring the store up to date, as `embed --json` says it.
    """

    digests: NDArray[np.uint8]
    unreadable: dict[str, str]
    changes: dict[str, int]

    @cached_property
    def first_copies(self) -> NDArray[np.int64]:
        """As `ImageGallery.first_copies`."""
        _, first, inverse = np.unique(self.digests, axis=0, return_index=True, return_inverse=True)
        return first[inverse.reshape(-1)].astype(np.int64)

    @cached_property
    def rows(self) -> dict[str, int]:
        """Row of each name."""
        return {name: row for row, name in enumerate(self.names)}

    def version(self, row: int) -> str:
        """As `ImageGallery.version`."""
        return self.digests[row][:8].tobytes().hex()


class _Row(NamedTuple):
    """An image of a store: what `file_state` said when it was embedded; NaN for a prior that is not known yet."""

    state: list[int]
    digest: bytes
    vector: NDArray[np.float16]
    prior: float


@dataclass
class _Images:
    """The images of a store by name, and those that cannot be read: their states and the reasons."""

    rows: dict[str, _Row]
    bad: dict[str, tuple[list[int], str]]

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any], correction: str) -> _Images:
        """What a store holds; priors of another correction are not taken."""
        names, known = about["names"], about["correction"] == correction and correction
        priors = arrays["priors"].tolist() if known else [math.nan] * len(names)
        digests = (digest.tobytes() for digest in arrays["digests"])
        parts = zip(names, arrays["states"].tolist(), digests, arrays["vectors"], priors, strict=True)
        bad = {name: (state, reason) for name, (state, reason) in about["bad"].items()}
        return cls({name: _Row(*row) for name, *row in parts}, bad)

    def arrays(self, correction: HubCorrection | None) -> dict[str, NDArray[Any]]:
        """What is stored, in the order of the names; priors that are not known are made."""
        names = sorted(self.rows)
        rows = [self.rows[name] for name in names]
        vectors = np.stack([row.vector for row in rows])
        about = {"names": names, "bad": self.bad, "correction": correction_key(correction)}
        arrays: dict[str, NDArray[Any]] = {
            "vectors": vectors,
            "states": np.array([row.state for row in rows], np.int64),
            "digests": np.frombuffer(b"".join(row.digest for row in rows), np.uint8).reshape(-1, 32),
            "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
        }
        if correction is not None:
            arrays["priors"] = priors = np.array([row.prior for row in rows], np.float32)
            new = np.flatnonzero(np.isnan(priors))
            priors[new] = correction.image_prior(torch.from_numpy(vectors[new]).float()).numpy()
            self.rows = {name: self.rows[name]._replace(prior=float(priors[at])) for at, name in enumerate(names)}
        return arrays


def open_folder(model: Aligner, folder: Path, *, follow_links: bool = False, say: Say = to_stderr) -> FolderGallery:
    """The images of a folder and its subfolders, their store brought up to date.

    The image tower is built only if there are new images.

    Args:
        model: of a run, in whose folder the store lies.
        follow_links: take images that are links leading out of the folder.
        say: called with lines on progress, on a damaged store and on images that are left out.

    Raises:
        DataError: no such folder, no image in it, or none that can be read; or the model was trained on features.
        RunError: another process is bringing the store up to date.
    """
    assert model.run is not None
    if not folder.is_dir():
        raise DataError(f"--images {folder}: there is no such folder; wanted a folder of images")
    place = Path(os.path.realpath(folder))
    states = _listed(place, follow_links, say)
    store = model.run.path / "search" / f"images-{cache_key(place)[:16]}" / "vectors.safetensors"
    key = cache_key(FORMAT, model.weights, model.config.decode, model.config.precision, core_key())
    correction = model.hub.correction
    arrays, about = _read(store, key, say)
    images = _Images.of(arrays, about, correction_key(correction)) if about else _Images({}, {})
    changes = {"embedded": 0, "reused": 0, "gone": 0}
    if about.get("correction") != correction_key(correction) or not _current(images, states):
        store.parent.mkdir(parents=True, exist_ok=True)
        with locked(store.parent):
            arrays, about = _read(store, key, lambda line: None)  # another process may have written it until now
            images = _Images.of(arrays, about, correction_key(correction)) if about else _Images({}, {})

            def save() -> None:
                write_kept(store, key, images.arrays(correction))

            try:
                changes = _update(model, place, states, images, save, say)
            except KeyboardInterrupt:  # what is embedded stays
                if images.rows:
                    save()
                raise
        arrays, about = _read(store, key, say)
    if not about:
        raise DataError(f"{store}: has vanished or been damaged just after it was written")
    bad = {name: reason for name, (_, reason) in about["bad"].items()}
    if bad:
        named = first_three([shown(name) for name in sorted(bad)])
        say(f"{len(bad):,} of {len(states):,} images cannot be read and are left out: {named}")
    names, priors = about["names"], arrays.get("priors")
    found = (place, names, follow_links, arrays["vectors"], priors, store)
    return FolderGallery(*found, arrays["digests"], bad, changes)


def _listed(folder: Path, follow_links: bool, say: Say) -> dict[str, list[int]]:
    """The state of each image file by its name."""
    images, states, refused = ImageFolder(folder, follow_links=follow_links), {}, []
    for name in images.all_names():
        try:
            found = images.find(name, lenient=False)
        except DataError:
            refused.append(shown(name))
            continue
        if found is not None and found.name == name and (state := file_state(str(found.path))):
            states[name] = state
    if refused:
        say(f"links leading out of {folder}, left out (--follow-links): {len(refused):,}, {first_three(refused)}")
    if not states:
        raise DataError(f"--images {folder}: no image in it or in its subfolders")
    return states


def _read(store: Path, key: str, say: Say) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The arrays of a store and what it says of them; empty where there is none that can be used, which is said."""
    found = read_kept(store, key, mapped=True)
    if isinstance(found, dict):
        return found, json.loads(found["about"].tobytes())
    if found:
        say(f"{store}: {found}; made anew")
    elif store.exists():
        say(f"{store}: of another model, or of another version of varalign; made anew")
    return {}, {}


def _current(images: _Images, states: Mapping[str, list[int]]) -> bool:
    """Whether a store's images are those of the folder, unchanged."""
    stored = {name: row.state for name, row in images.rows.items()} | {name: why[0] for name, why in images.bad.items()}
    return stored == states


def _update(
    model: Aligner,
    folder: Path,
    states: Mapping[str, list[int]],
    images: _Images,
    save: Callable[[], None],
    say: Say,
) -> dict[str, int]:
    """Make a store's images those of the folder; returns what was done. Saved once a minute, and at the end.

    Raises:
        DataError: no image can be read, or the model gives NaN.
    """
    by_digest = {row.digest: row for row in images.rows.values()}  # those of images that are gone too: one was moved
    changes = {"embedded": 0, "reused": 0, "gone": len(images.rows.keys() - states.keys())}
    images.rows = {name: row for name, row in images.rows.items() if row.state == states.get(name)}
    images.bad = {name: why for name, why in images.bad.items() if why[0] == states.get(name)}
    wanted = [name for name in states if name not in images.rows and name not in images.bad]
    saved, unsure = time.monotonic(), 0
    with ThreadPoolExecutor(_READERS) as readers, waiting("images", len(wanted)) as bar:
        for start in range(0, len(wanted), _AT_ONCE):
            part = wanted[start : start + _AT_ONCE]
            digests = dict(zip(part, readers.map(digest_or_absent, [folder / name for name in part]), strict=True))
            first = {digests[name]: name for name in reversed(part) if digests[name] not in by_digest}
            reasons = _embed(model, folder, states, first, by_digest) if first else {}
            changes["embedded"] += sum(digest in by_digest for digest in first)
            for name, digest in digests.items():
                if digest in by_digest:
                    images.rows[name] = by_digest[digest]._replace(state=states[name])
                elif digest in reasons:
                    images.bad[name] = states[name], reasons[digest]
                else:
                    unsure += 1
            bar.advance(len(part))
            if time.monotonic() - saved > _SAVE_EVERY and images.rows:
                save()
                saved = time.monotonic()
    if not images.rows:
        reason = next((reason for _, reason in images.bad.values()), "they changed while they were read")
        raise DataError(f"--images {folder}: none of {len(states):,} images can be read: {reason}")
    if unsure:
        say(f"{unsure:,} images changed while they were read and are left out until the next time")
    save()
    changes["reused"] = len(images.rows.keys() & set(wanted)) - changes["embedded"]
    return changes


def _embed(
    model: Aligner,
    folder: Path,
    states: Mapping[str, list[int]],
    first: Mapping[bytes, str],
    by_digest: dict[bytes, _Row],
) -> dict[bytes, str]:
    """Add images, named by digest, to `by_digest`; returns why others cannot be read. One that changed is neither."""
    names = list(first.values())
    rows, vectors, reasons = model.embed_readable([folder / name for name in names])
    if not np.isfinite(vectors).all():
        name = names[rows[np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0]]]
        raise DataError(f"{folder / name}: the model gives NaN for this image; take another checkpoint (--checkpoint)")
    same = {name: file_state(str(folder / name)) == states[name] for name in names}
    digests = list(first)
    for row, vector in zip(rows.tolist(), vectors.astype(np.float16), strict=True):
        if same[names[row]]:
            by_digest[digests[row]] = _Row(states[names[row]], digests[row], vector, math.nan)
    return {digests[row]: reason for row, reason in reasons.items() if same[names[row]]}


def correction_key(correction: HubCorrection | None) -> str:
    """What the priors depend on; empty without a correction."""
    if correction is None:
        return ""
    banks = [
        (name, hashlib.sha256(tensor.cpu().numpy().data).hexdigest())
        for bank in (correction.images, correction.texts)
        for name, tensor in bank.tensors.items()
    ]
    return cache_key(correction.name, correction.tau, banks)
