"""A trained model in use: it embeds images and texts, ranks them, measures itself and draws its space."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save as save_arrays

from varalign.aligner.evaluate import embed_split, measure, owners, tower_features
from varalign.data.damage import damaged
from varalign.data.datasets import ImageCaptions
from varalign.data.errors import DataError
from varalign.data.features import FeatureSet, check_names_file, save_features
from varalign.data.files import cache_key, file_states, write_atomically
from varalign.data.index import first_of_each
from varalign.data.noise import parse_noise
from varalign.encoders.build import build_image_encoder, build_text_encoder
from varalign.encoders.dual_encoder import MAX_LOGIT_SCALE, DualEncoder
from varalign.encoders.head_shape import HeadShape
from varalign.encoders.specs import SpecError, WeightsUnavailable
from varalign.encoders.towers import Towers
from varalign.evaluation.retrieval import chance, top_k
from varalign.inputs.assemble import assemble
from varalign.inputs.kept import kept_arrays
from varalign.inputs.models import saved_model
from varalign.inputs.open_data import open_data
from varalign.inputs.parts import Parts
from varalign.inputs.sources import Rows
from varalign.inputs.tower_loop import embedded_files, embedded_texts
from varalign.options.config import TrainConfig
from varalign.options.device import pick_device
from varalign.options.recipe import fill
from varalign.pictures.tsne import check_perplexities, choose_pairs, draw_tsne
from varalign.runs.checkpoint import load_checkpoint
from varalign.runs.folder import RunFolder, to_stderr


def load(
    run: Path | str,
    *,
    checkpoint: str = "best",
    data: Path | str | None = None,
    skip_missing: bool = False,
    device: str | None = None,
    threads: int = 0,
    cache: str | None = None,
) -> Aligner:
    """Open a trained run.

    Args:
        run: the run folder.
        checkpoint: `best`, `last` or `step-N`.
        data: another data folder (or features file) than the run's own.
        skip_missing: leave out captions that name a missing image.
        device: as `--device`.
        threads: threads that decode images; 0 takes all cores.
        cache: folder of cached tower features.

    Noise that the run was trained with is not in the data of the opened run.

    Raises:
        RunError: no such run or checkpoint, or a damaged one.
        WeightsUnavailable: the run's frozen towers are not where they were.
    """
    folder = RunFolder.open(Path(run))
    saved = folder.config()
    options = folder.options()
    options |= {"noise": None, "skip_missing": skip_missing or options.get("skip_missing", False)}
    options |= {"device": device, "threads": threads, "cache": cache or options.get("cache")}
    if data is not None:
        place = "features" if options.get("features") else "data"
        options |= {place: str(data), "dataset_size": None, "captions_per_image": None}
    config = TrainConfig(**options).validate()
    model = saved_model(folder).to(pick_device(device))
    aligner = Aligner(model, config, name=str(saved.get("name", folder.path.name)), run=folder)
    aligner.load_weights(checkpoint)
    return aligner


def zero_shot(
    spec: str,
    data: Path | str,
    *,
    seed: int = 0,
    skip_missing: bool = False,
    device: str | None = None,
    threads: int = 0,
    cache: str | None = None,
) -> Aligner:
    """CLIP as it was published, its own two towers and no training: the baseline that everybody asks for.

    Args:
        spec: `clip:MODEL@WEIGHTS`, for both towers.
        data: a data folder.
        seed: of the split, where the data bring none: the seed of the run to compare with.
        skip_missing, device, threads, cache: as for `load`.

    Raises:
        SpecError: another kind of encoder.
        WeightsUnavailable: the weights are neither here nor in reach.
    """
    if not spec.startswith("clip:"):
        raise SpecError(f"--zero-shot {spec!r}: takes CLIP, whose towers share a space: clip:MODEL@WEIGHTS")
    config = TrainConfig(
        data=str(data),
        image_encoder=spec,
        text_encoder=spec,
        start="random",
        seed=seed,
        skip_missing=skip_missing,
        device=device,
        threads=threads,
        cache=cache,
    ).validate()
    config = fill(config, 1)
    try:
        images, texts = build_image_encoder(spec), build_text_encoder(spec)
    except WeightsUnavailable as absent:  # the option that names them is another one here
        raise WeightsUnavailable(str(absent).replace("--image-encoder", "--zero-shot")) from None
    # its scale is at the clamp, 100, in every checkpoint that was trained to the end
    model = DualEncoder(Towers(images, texts), HeadShape(images.feature_dim, "identity"), logit_scale=MAX_LOGIT_SCALE)
    model.freeze("image")
    model.freeze("text")
    return Aligner(model.to(pick_device(device)), config, name=f"zero-shot {spec}")


class Aligner:
    """A dual encoder with its data.

    Args:
        model: the dual encoder, on its device.
        config: the options that name its data.
        name: for tables.
        run: its run folder; None for a model that was not trained here.
        parts: data and sources if they are there already; else they are opened when first needed.
    """

    def __init__(
        self,
        model: DualEncoder,
        config: TrainConfig,
        *,
        name: str,
        run: RunFolder | None = None,
        parts: Parts | None = None,
    ) -> None:
        self.model, self.config, self.name, self.run = model.eval(), config, name, run
        self.epochs = 0
        self._weights = ""  # checksum of the checkpoint that was loaded
        if parts is not None:
            self.parts = parts

    @cached_property
    def parts(self) -> Parts:
        """The data and the sources; opened when first needed."""
        config, data = open_data(self.config, to_stderr)
        return assemble(config, data, self.model, to_stderr)

    def load_weights(self, checkpoint: str) -> None:
        """Take the weights of a checkpoint of the run.

        Raises:
            RunError: there is no such checkpoint, or it is damaged.
        """
        assert self.run is not None
        found = load_checkpoint(self.run.checkpoints / checkpoint)
        found.fill(self.model)
        self._weights = found.checksum
        done = [line["epoch"] for line in self.run.read_metrics() if line.get("kind") == "eval"]
        self.epochs = max(done, default=0)

    def embed_images(self, files: Sequence[Path | str]) -> NDArray[np.float32]:
        """Unit vectors of image files.

        Args:
            files: N image files.

        Returns:
            (N, D) float32.

        Raises:
            DataError: a file cannot be read as an image, or the model was trained on features.
        """
        if self.model.image_encoder is None:
            raise DataError(
                f"{self.name}: trained on a features file, so it has no image encoder: embed features instead"
            )
        return embedded_files(self.model, self.config, files)

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors of texts.

        Args:
            texts: N texts.

        Returns:
            (N, D) float32.

        Raises:
            DataError: the model was trained on features.
        """
        if self.model.text_encoder is None:
            raise DataError(
                f"{self.name}: trained on a features file, so it has no text encoder: embed features instead"
            )
        return embedded_texts(self.model, self.config, texts)

    def rank(
        self, queries: NDArray[np.float32], candidates: NDArray[np.float32], top: int = 5
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """The best candidates of each query by cosine similarity.

        Args:
            queries: (Q, D) unit vectors.
            candidates: (C, D) unit vectors.
            top: K, how many.

        Returns:
            Scores (Q, K) and rows of the candidates (Q, K), best first.
        """
        scores, rows = top_k(torch.from_numpy(queries), torch.from_numpy(candidates), min(top, len(candidates)))
        return scores.numpy(), rows.numpy()

    def evaluate(self, split: str = "test", *, noise: str | None = None) -> dict[str, Any]:
        """The numbers of `eval --json` on a split.

        Args:
            split: `train`, `dev` or `test`.
            noise: noise injected into it on purpose, as `--noise` takes it.

        Raises:
            DataError: a noise that there is not.
        """
        parts, batch = self.parts if noise is None else self._damaged(split, noise), self.config.batch_size
        rows = parts.data.rows(split)
        images, kept, texts, captions = embed_split(parts, rows, batch)
        result = measure(parts, images, kept, texts, captions, batch_size=batch)
        if len(kept) < len(rows):
            result["unreadable"] = len(rows) - len(kept)
        return result

    def _damaged(self, split: str, text: str) -> Parts:
        noise = parse_noise(text)
        parts = self.parts
        data = damaged(parts.data, noise, split, self.config.seed)
        return assemble(parts.config, data, self.model, to_stderr, noise=noise)

    def chance(self, split: str = "test") -> dict[str, Any]:
        """What a ranking without any knowledge reaches on a split: a row for the table."""
        data = self.parts.data
        rows = data.rows(split)
        _, which = np.unique(data.image_ids[rows], return_inverse=True)
        counts = np.bincount(which, weights=np.diff(data.caption_offsets)[rows]).astype(np.int64)
        return {"model": "chance", **chance(len(counts), counts)}

    def rows(self, split: str) -> Rows:
        """Image rows of a split, or of everything for `all`."""
        data = self.parts.data
        return np.arange(len(data.split), dtype=np.int64) if split == "all" else data.rows(split)

    def visualize(
        self,
        perplexities: Sequence[float],
        *,
        split: str = "test",
        pairs: int = 1000,
        seed: int = 0,
        out: Path | None = None,
    ) -> list[Path]:
        """t-SNE pictures of a split: each image with its first caption, at several perplexities and on one sheet.

        Args:
            perplexities: one picture each; smaller than the number of points.
            split: `train`, `dev` or `test`.
            pairs: most pairs drawn, chosen by `seed`.
            seed: of the choice and of t-SNE.
            out: the folder; the run's `pictures` if None.

        Returns:
            The files written.

        Raises:
            DataError: a perplexity that does not fit the number of points.
        """
        if out is None:
            if self.run is None:
                raise DataError("name a folder for the pictures: this model has no run")
            out = self.run.pictures
        if pairs < 2:
            raise DataError(f"--pairs is {pairs}, but must be at least 2")
        if out.exists() and not out.is_dir():
            raise DataError(f"--out {out}: is a file; name a folder")
        rows = self.rows(split)
        rows = rows[choose_pairs(len(rows), pairs, seed)]
        check_perplexities(perplexities, 2 * len(rows))  # before minutes of embedding
        images, kept, texts, captions = embed_split(self.parts, rows, self.config.batch_size)
        owner = owners(self.parts.data, captions, kept)
        first = texts[torch.from_numpy(first_of_each(owner)).to(texts.device)]
        return draw_tsne(images.cpu().numpy(), first.cpu().numpy(), perplexities, out, seed=seed)

    def write_embeddings(self, file: Path, *, split: str = "all", features: bool = False) -> dict[str, Any]:
        """Write embeddings with ids, or the towers' features as a features file.

        Args:
            file: `.safetensors`, or `.npz` for embeddings.
            split: a split, or `all`.
            features: the towers' outputs, before the heads, of all images.

        Returns:
            What was written: `file`, `images`, `texts`.

        Raises:
            DataError: another ending.
        """
        if file.suffix not in {".safetensors", ".npz"} or (features and file.suffix == ".npz"):
            raise DataError(f"--out {file}: wanted a name ending in .safetensors{'' if features else ' or .npz'}")
        file.parent.mkdir(parents=True, exist_ok=True)
        parts, data = self.parts, self.parts.data
        if features:
            if split != "all":
                raise DataError(
                    "--features writes all splits into one file, as `train --features` wants: leave out --split"
                )
            return self._write_features(file)
        images, rows, texts, captions = embed_split(parts, self.rows(split), self.config.batch_size)
        arrays = {
            "image_embeddings": images.cpu().numpy(),
            "text_embeddings": texts.cpu().numpy(),
            "image_rows": rows,
            "text_rows": captions,
            "text_image_ids": owners(data, captions, rows),
            "split": data.split[rows],
        }
        if file.suffix == ".npz":
            packed = io.BytesIO()
            np.savez(packed, **arrays)  # type: ignore[arg-type]
            write_atomically(file, packed.getvalue())
        else:
            write_atomically(file, save_arrays({name: np.ascontiguousarray(value) for name, value in arrays.items()}))
        names = getattr(data, "image_names", None)
        if names is not None:
            text = "".join(f"{names[row]}\n" for row in rows.tolist())
            write_atomically(file.with_suffix(".images.txt"), text.encode("utf-8", "surrogateescape"))
        return {"file": str(file), "images": len(rows), "texts": len(captions)}

    def _write_features(self, file: Path) -> dict[str, Any]:
        data = self.parts.data
        if not isinstance(data, ImageCaptions):
            raise DataError(f"{self.name}: trained on a features file already: {self.config.features}")
        check_names_file(file, data.image_names)  # before minutes of embedding
        image_features, text_features, unreadable = tower_features(self.parts, self.config.batch_size)
        split = data.split.copy()
        split[list(unreadable)] = -1
        whole = FeatureSet(image_features, text_features, data.caption_owner, split, data.image_ids, data.image_names)
        save_features(file, whole, dtype="float32")
        return {"file": str(file), "images": len(split), "texts": len(data.captions), "unreadable": len(unreadable)}

    def search_images(self, text: str, *, top: int = 5, split: str = "all") -> list[dict[str, Any]]:
        """The images of the run's data that fit a text best, with their first captions.

        Returns:
            `image`, `caption` and `score` (cosine similarity) of each, best first.
        """
        query = self.embed_texts([text])
        images, rows, _, _ = self._embedded(split)
        scores, found = self.rank(query, images, top)
        return [self._hit(score, rows[place]) for score, place in zip(scores[0], found[0], strict=True)]

    def search_captions(self, image: Path, *, top: int = 5, split: str = "all") -> list[dict[str, Any]]:
        """The captions of the run's data that fit an image file best.

        Returns:
            `image` (that the caption belongs to), `caption` and `score` of each, best first.
        """
        query = self.embed_images([image])
        _, _, texts, captions = self._embedded(split)
        scores, found = self.rank(query, texts, top)
        owner = self.parts.data.caption_owner
        return [
            self._hit(score, owner[captions[place]], captions[place])
            for score, place in zip(scores[0], found[0], strict=True)
        ]

    def _hit(self, score: float, row: int, caption: int | None = None) -> dict[str, Any]:
        data = self.parts.data
        assert isinstance(data, ImageCaptions)
        caption = int(data.first_captions([row])[0]) if caption is None else caption
        return {"score": round(float(score), 4), "image": data.image_names[row], "caption": data.captions[caption]}

    def _embedded(self, split: str) -> tuple[NDArray[np.float32], Rows, NDArray[np.float32], Rows]:
        """The embeddings of a split: image_embeddings, image rows, text_embeddings, caption rows.

        The first search makes them and keeps them in the run's `search/`, the later ones read them.
        """

        def make() -> dict[str, NDArray[Any]]:
            images, rows, texts, captions = embed_split(self.parts, self.rows(split), self.config.batch_size)
            return {"images": images.cpu().numpy(), "rows": rows, "texts": texts.cpu().numpy(), "captions": captions}

        data = self.parts.data
        if self.run is None or not isinstance(data, ImageCaptions):
            found = make()
        else:
            rows = self.rows(split).tobytes().hex()
            key = cache_key(self._weights, data.fingerprint, file_states(data.image_paths), rows)
            found = kept_arrays(self.run.path / "search" / f"{split}.safetensors", key, make)
        return found["images"], found["rows"], found["texts"], found["captions"]
