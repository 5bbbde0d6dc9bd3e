"""The trained model in use: embedding, ranking, search, evaluation and t-SNE plots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from varalign.aligner import hub_bank
from varalign.aligner.embedding_files import write_embeddings, write_features, write_unpaired
from varalign.aligner.encode import Encodes
from varalign.aligner.evaluate import SplitEmbeddings, embed_split, evaluate
from varalign.aligner.exports.sharing import Shares
from varalign.aligner.gallery import Gallery, open_gallery
from varalign.aligner.map_table import write_map
from varalign.aligner.opening import opened
from varalign.aligner.run_report import add_layouts
from varalign.canonical.hub_correction import HubCorrection, HubForm, as_items, as_queries
from varalign.data.damage import damaged
from varalign.data.errors import DataError
from varalign.data.files import cache_key
from varalign.data.noise import parse_noise
from varalign.data.ranks import world
from varalign.encoders.dual_encoder import DualEncoder, without_heads
from varalign.encoders.specs import SIDES, Side
from varalign.evaluation.retrieval import chance, reachable, top_k
from varalign.inputs.assemble import assemble
from varalign.inputs.open_data import Data, open_data
from varalign.inputs.parts import Parts, short
from varalign.inputs.sources import Rows
from varalign.options.config import TrainConfig
from varalign.options.fields import OPTIONS
from varalign.pictures.style import PictureForm
from varalign.pictures.tsne import (
    Collapsed,
    check_seed,
    choose_pairs,
    draw_layouts,
    fitting_perplexities,
    layouts,
    pair_points,
)
from varalign.runs.checkpoint import Checkpoint
from varalign.runs.folder import RunFolder
from varalign.runs.progress import to_stderr


class Aligner(Encodes, Shares):
    """A dual encoder with its data.

    Args:
        build: builds the model, on its device and in eval mode, with at least the towers of the given sides.
        config: the options that name the data.
        name: of the model, for tables.
        run: its run folder; None for a model that was not trained here.
        checkpoint: origin of the weights; `weights` is its checksum.
        parts: data and sources if they are open already; otherwise they are opened at first use.
        bank: the file that keeps the hub correction of these weights; None: it is chosen at first use, and not kept.
    """

    def __init__(
        self,
        build: Callable[[Sequence[Side]], DualEncoder],
        config: TrainConfig,
        *,
        name: str,
        run: RunFolder | None = None,
        checkpoint: Checkpoint | None = None,
        parts: Parts | None = None,
        bank: Path | None = None,
    ) -> None:
        self.config, self.name, self.run = config, name, run
        self._bank = bank
        self.epochs = 0 if checkpoint is None else checkpoint.epochs
        self.weights = "" if checkpoint is None else checkpoint.checksum
        self._state = {} if checkpoint is None else checkpoint.state
        self._build = build
        self._one_tower: dict[Side, DualEncoder] = {}
        self._building = RLock()
        if parts is not None:
            self.parts = parts

    @cached_property
    def model(self) -> DualEncoder:
        """The whole model, built at first use."""
        with self._building:  # threads share one
            return vars(self).get("model") or self._build(SIDES)

    @cached_property
    def parts(self) -> Parts:
        """The data and the sources, opened at first use."""
        config, data = self._open_data()
        return assemble(config, data, self.model, to_stderr)

    @cached_property
    def hub(self) -> hub_bank.Chosen:
        """The hub correction that the model's own options ask for, with the line that says so."""
        source, form = self.config.hub_correction, self.config.hub_form
        if source == "off":
            return hub_bank.OFF
        if self._bank is None:
            return self._chosen(source, form, "test")
        key = cache_key("hub correction", self.weights, source, form)
        return hub_bank.kept(self._bank, key, lambda: self._chosen(source, form, "test"))

    def _chosen(self, source: str, form: HubForm, split: str) -> hub_bank.Chosen:
        folds = None if self.run is None else self.run.chosen_by_folds()
        return hub_bank.choose(self.parts, source, form, split, folds=folds)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        **options: Any,
    ) -> Aligner:
        """A model that `save_pretrained` wrote, or `push_to_hub` put on the hub.

        Args:
            name_or_path: a folder, or the name of a repository on the hub.
            revision, token, cache_dir, force_download, local_files_only: of the repository, as huggingface_hub takes
                them.
            options: those of `varalign.load`.

        Raises:
            RunError: what is there is no model of varalign.
        """
        from varalign.aligner.exports.repository import pulled

        of_hub = {"revision": revision, "token": token, "cache_dir": cache_dir}
        of_hub |= {"force_download": force_download, "local_files_only": local_files_only}
        return cls(**opened(pulled(name_or_path, **of_hub), **options))

    def _with_tower(self, side: Side) -> DualEncoder:
        """A model with at least the tower of this side; a query does not need the other one, which may be large."""
        self._require_towers(side)
        with self._building:
            if "model" in vars(self):
                return self.model
            if side not in self._one_tower:
                self._one_tower[side] = self._build((side,))
            return self._one_tower[side]

    def _open_data(self) -> tuple[TrainConfig, Data]:
        """The data, and the options with their place resolved.

        Raises:
            DataError: an exported model, which has none of its own, and none are named.
        """
        features = self.config.features
        named = self.config.data is not None or (features is not None and Path(features).is_file())
        if self.run is not None and self.run.exported and not named:
            if features is not None:
                raise DataError(f"{self.run.path}: an exported model of features has no data: name its run instead")
            raise DataError(f"{self.run.path}: an exported model has no data of its own: name some by --data")
        return open_data(self.config, to_stderr)

    def captions(self) -> list[str]:
        """The captions of the data, which are opened without a tower; DataError where they are gone."""
        data = self.parts.data if "parts" in vars(self) else self._open_data()[1]
        return list(data.caption_texts or [])

    def __getstate__(self) -> dict[str, Any]:
        """Without the data, which are opened anew, and the lock."""
        return {name: value for name, value in vars(self).items() if name not in ("parts", "_building")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._building = RLock()

    def _require_towers(self, side: Side) -> None:
        if self.config.features is not None:
            raise DataError(
                f"{self.name}: trained on a features file, so it has no {side} encoder: embed features instead"
            )

    def rank(
        self,
        queries: NDArray[np.float32],
        candidates: NDArray[np.float32],
        top: int = 5,
        *,
        prior: NDArray[np.float32] | None = None,
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """The best candidates of each query by cosine similarity.

        Args:
            queries: (Q, D) unit vectors.
            candidates: (C, D) unit vectors.
            top: K, the number of candidates for each query.
            prior: (C,) subtracted from the similarities of each candidate: that of a hub correction.

        Returns:
            Scores (Q, K) and rows of the candidates (Q, K), best first.
        """
        q, c = torch.from_numpy(queries), torch.from_numpy(candidates)
        if prior is not None:
            q, c = as_queries(q), as_items(c, torch.from_numpy(prior))
        scores, rows = top_k(q, c, min(top, len(candidates)))
        return scores.numpy(), rows.numpy()

    def embedded(self, split: str) -> SplitEmbeddings:
        """The unit vectors of a split's images and texts.

        Raises:
            DataError: the data have no such split.
        """
        return embed_split(self.parts, self.rows(split))

    def evaluate(
        self,
        split: str = "test",
        *,
        noise: str | None = None,
        hub_correction: str | None = None,
        hub_form: HubForm | None = None,
        found: SplitEmbeddings | None = None,
    ) -> dict[str, Any]:
        """The numbers of `eval --json` on a split.

        Args:
            split: `train`, `dev` or `test`.
            noise: noise to inject into it, in the form of `--noise`.
            hub_correction: as `eval --hub-correction`; None: as the model's options say.
            hub_form: as `eval --hub-form`; None: as the model's options say.
            found: `embedded(split)`, where it is there already and no noise is asked for.

        Raises:
            DataError: `noise` names an unknown kind, or a rate out of range.
        """
        self.rows(split)
        correction = self._correction(hub_correction, hub_form, split)
        parts = self.parts if noise is None else self._noisy(self.model, split, noise)
        result = evaluate(parts, split, correction, found=found)
        return {**result, "hub_correction": None if correction is None else correction.name}

    def _noisy(self, model: DualEncoder, split: str, noise: str) -> Parts:
        """A model with the run's data, noise injected into a split."""
        kinds = parse_noise(noise)
        data = damaged(self.parts.data, kinds, split, self.config.seed)
        return assemble(self.parts.config, data, model, to_stderr, noise=kinds)

    def _correction(self, source: str | None, form: HubForm | None, split: str) -> HubCorrection | None:
        if source is None and form is None:
            return self.hub.correction
        form = form or self.config.hub_form
        OPTIONS["hub_form"].validate(form)
        chosen = self._chosen(source or self.config.hub_correction, form, split)
        to_stderr(chosen.line)
        return chosen.correction

    def chance(self, split: str = "test") -> dict[str, Any]:
        """The recalls of a random ranking on a split, as a row of the result table."""
        data = self.parts.data
        found = data.candidates(data.rows(split))
        text, image = found.pairs.T
        texts_per_image = np.bincount(image, minlength=len(found.rows))
        return {"model": "chance", **chance(len(found.rows), texts_per_image, images_per_text=np.bincount(text))}

    def zero_shot(self, split: str = "test", *, noise: str | None = None) -> dict[str, Any] | None:
        """The frozen towers without heads, as a row of the result table, where both are of one CLIP; else None.

        Args:
            split, noise: as for `evaluate`.
        """
        towers, parts = self.model, self.parts
        if towers.shape.head == "identity" or not towers.share_a_space():
            return None
        plain = without_heads(towers).to(parts.device).eval()
        towers.eval()
        parts = parts.with_model(plain, parts.config) if noise is None else self._noisy(plain, split, noise)
        return {"model": f"zero-shot {short(parts.config.text_spec)}", **evaluate(parts, split, None)}

    def reachable(self, split: str = "test") -> dict[str, Any] | None:
        """The most that a model can reach on a split: a row for the table, or None where that is all.

        It is less where equal captions count as different texts (`--same-caption distinct`).
        """
        data = self.parts.data
        found = data.candidates(data.rows(split))
        if data.same_caption == "positive" or len(np.unique(data.equal_captions[found.captions])) == len(found.owner):
            return None
        return {"model": "reachable", **reachable(data.equal_captions[found.captions], found.owner, len(found.rows))}

    def rows(self, split: str) -> Rows:
        """Image rows of a split; `all` gives every image.

        Raises:
            DataError: the data have no such split.
        """
        rows = _rows(self.parts, split)
        if not len(rows):
            raise DataError(f"{self.name}: its data have no {split} split; name another one by --split")
        return rows

    def visualize(
        self,
        perplexities: Sequence[float],
        *,
        split: str = "test",
        pairs: int = 1000,
        seed: int = 0,
        out: Path | None = None,
        form: PictureForm = "png",
    ) -> list[Path]:
        """t-SNE plots of a split: each image with its first caption, one file per perplexity and a sheet of all.

        Args:
            perplexities: of the plots; those that are not below the number of points are left out with a remark.
            split: `train`, `dev`, `test` or `all`.
            pairs: maximum number of pairs, drawn by `seed`.
            seed: of the draw and of t-SNE.
            out: the folder; the run's `pictures` if None, and the layouts are then on the map of its report too.
            form: of the files.

        Returns:
            The files written; none, with a line on standard error, if an encoder has collapsed.

        Raises:
            DataError: no perplexity fits the number of points.
        """
        if out is None and self.run is None:
            raise DataError("name a folder for the pictures: this model has no run")
        if pairs < 2:
            raise DataError(f"--pairs is {pairs}, but must be at least 2")
        if out is not None and out.exists() and not out.is_dir():
            raise DataError(f"--out {out}: is a file; name a folder")
        check_seed(seed)
        rows = self.rows(split)
        rows = rows[choose_pairs(len(rows), pairs, seed)]
        fitting_perplexities(perplexities, 2 * len(rows))  # before minutes of embedding
        found = embed_split(self.parts, rows)
        if not world().is_writer:
            return []
        images, texts = (part.cpu().numpy() for part in found.first_pairs())
        try:
            points = pair_points(images, texts)
        except Collapsed as error:
            to_stderr(str(error))
            return []
        wanted = fitting_perplexities(perplexities, len(points), to_stderr)
        places = dict(zip(wanted, layouts(points, wanted, seed=seed), strict=True))
        gap = float(np.linalg.norm(images.mean(axis=0) - texts.mean(axis=0)))
        about = f"{self.name}, {split} split, seed {seed}, modality gap {gap:.3f}"
        folder = self.run.pictures if out is None else out  # type: ignore[union-attr]
        files = draw_layouts(places, folder, about=about, form=form)
        if out is None and self.run is not None:
            named = {f"t-SNE, perplexity {perplexity:g}": layout for perplexity, layout in places.items()}
            add_layouts(self.run, split, found.rows[found.first[:, 0]], named)
        return files

    def write_embeddings(self, file: Path, *, split: str = "all") -> dict[str, Any]:
        """Write the embeddings of a split, or of all images, with ids: see `embedding_files.write_embeddings`.

        To a file that ends in `.parquet` the map is written instead: see `map_table.write_map`.
        """
        if file.suffix == ".parquet":
            return write_map(self.parts, self.rows(split), file, self.hub.correction)
        return write_embeddings(self.parts, self.rows(split), file, self.hub.correction)

    def write_features(
        self, file: Path, *, unpaired_images: str | None = None, unpaired_texts: str | None = None
    ) -> dict[str, Any]:
        """Write the towers' outputs as a features file for `train --features`: see `embedding_files.write_features`.

        Args:
            file: ends in `.safetensors`.
            unpaired_images, unpaired_texts: as the options of `train`; their features are written instead of those of
                the run's data, see `embedding_files.write_unpaired`.
        """
        if unpaired_images is None and unpaired_texts is None:
            return write_features(self.parts, file)
        config = replace(self.parts.config, unpaired_images=unpaired_images, unpaired_texts=unpaired_texts)
        return write_unpaired(replace(self.parts, config=config), file)

    def search_images(self, query: str | Path, *, top: int = 5, split: str = "all") -> list[dict[str, Any]]:
        """The images of the run's data that fit a text, or are like an image file, best, with their first captions.

        Args:
            query: a text, or the path of an image file.

        Returns:
            `image`, `caption`, `score` and `file` of each, best first. The score is the cosine similarity; for a text,
            with a hub correction, less the image's prior.
        """
        return self._search(query, "image", top, split)

    def search_captions(self, query: str | Path, *, top: int = 5, split: str = "all") -> list[dict[str, Any]]:
        """The captions of the run's data that fit an image file, or are like a text, best.

        Returns:
            `image` (that the caption belongs to), `caption` and `score` of each, best first; as `search_images`.
        """
        return self._search(query, "text", top, split)

    def _search(self, query: str | Path, side: Side, top: int, split: str) -> list[dict[str, Any]]:
        of: Side = "text" if isinstance(query, str) else "image"
        self._require_towers(of)
        gallery = self.gallery(split, side)
        vector = self.embed_texts([query]) if isinstance(query, str) else self.embed_images([query])
        scores, rows = self.rank(vector, gallery.embeddings, top, prior=gallery.prior if of != side else None)
        if gallery.changed(rows[0]):
            gallery = self.gallery(split, side, fresh=True)
            scores, rows = self.rank(vector, gallery.embeddings, top, prior=gallery.prior if of != side else None)
        return _hits(scores[0], rows[0], gallery)

    def gallery(self, split: str, side: Side, *, fresh: bool = False) -> Gallery:
        """The embedded images, or captions, of a split of the run's data."""
        assert self.run is not None
        file = self.run.path / "search" / f"{split}-{side}s.safetensors"
        correction = self.hub.correction

        def open_parts() -> tuple[Parts, Rows]:
            parts = self._with_source(side)
            return parts, _rows(parts, split)

        return open_gallery(file, side, self.config, self.weights, open_parts, correction, fresh=fresh)

    def _with_source(self, side: Side) -> Parts:
        """The parts with at least the tower and the source of this side."""
        if "parts" in vars(self):
            return self.parts
        config, data = self._open_data()
        return assemble(config, data, self._with_tower(side), to_stderr, sides=(side,))


def _rows(parts: Parts, split: str) -> Rows:
    return np.arange(len(parts.data.split), dtype=np.int64) if split == "all" else parts.data.rows(split)


def _hits(scores: NDArray[Any], rows: NDArray[Any], gallery: Gallery) -> list[dict[str, Any]]:
    found = []
    for score, row in zip(scores.tolist(), rows.tolist(), strict=True):
        image, caption = gallery.labels[row]
        found.append({"score": round(score, 4), "image": image, "caption": caption})
        if gallery.files:
            found[-1]["file"] = gallery.files[row]
    return found
