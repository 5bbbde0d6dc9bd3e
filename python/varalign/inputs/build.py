"""From options to parts: the data, the model and the sources that feed it, for a new run or a saved one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from varalign.data.damage import damaged
from varalign.data.datasets import ImageCaptions, load_dataset
from varalign.data.decoded import DecodedCache, decoded_cache
from varalign.data.device_cache import DeviceCache
from varalign.data.features import FeatureSet, load_features
from varalign.data.files import cache_key, file_states
from varalign.data.images import Augment
from varalign.data.noise import Noise, parse_noise
from varalign.data.sample import SAMPLE_SIZE, write_sample
from varalign.data.tokenizers import load_tokenizer
from varalign.encoders.dual_encoder import SIDES, DualEncoder
from varalign.encoders.image import build_image_encoder
from varalign.encoders.saved import dual_encoder_from_config
from varalign.encoders.specs import WeightsUnavailable
from varalign.encoders.text import build_text_encoder
from varalign.inputs.feature_cache import default_cache, image_features, text_features
from varalign.inputs.sources import FeatureRows, ImageSource, LiveCaptions, LiveImages, Rows, TextSource
from varalign.options.config import TrainConfig
from varalign.options.declaration import ConfigError
from varalign.options.device import pick_precision
from varalign.runs.folder import RunError, RunFolder, read_metric_lines
from varalign.schedules import LossSchedule, build_schedule

Say = Callable[[str], None]
Data = ImageCaptions | FeatureSet

USUAL_DATA = Path("data/flickr8k")
SAMPLE_DATA = Path("data/sample")


@dataclass
class Parts:
    """What training and evaluation work on.

    Attributes:
        config: the options, with the data folder resolved.
        data: images and captions, or their features.
        model: the dual encoder, on the device.
        images, texts: where inputs come from.
        device: where the model is.
    """

    config: TrainConfig
    data: Data
    model: DualEncoder
    images: ImageSource
    texts: TextSource
    device: torch.device

    def autocast(self) -> AbstractContextManager[Any]:
        """The arithmetic that `precision` names, for towers and heads; losses and metrics stay outside."""
        dtype = pick_precision(self.config.precision, self.device)
        return nullcontext() if dtype == torch.float32 else torch.autocast(self.device.type, dtype)

    @property
    def name(self) -> str:
        """The encoders in short, for tables."""
        if self.config.features:
            return f"features:{Path(self.config.features).name}"
        return f"{_short(self.config.image_spec)} + {_short(self.config.text_spec)}"

    @property
    def train_rows(self) -> Rows:
        """Training images that features could be made for."""
        rows = self.data.rows("train")
        if isinstance(self.images, FeatureRows) and self.images.unreadable:
            rows = rows[[row not in self.images.unreadable for row in rows.tolist()]]
        return rows

    def bad_images(self) -> dict[str, str]:
        """Names of the images found unreadable so far, with the reason."""
        if isinstance(self.images, LiveImages):
            return {self.images.names[row]: reason for row, reason in sorted(self.images.bad.items())}
        if isinstance(self.images, FeatureRows) and isinstance(self.data, ImageCaptions):
            return {self.data.image_names[row]: reason for row, reason in sorted(self.images.unreadable.items())}
        return {}

    def save_assets(self, run: RunFolder) -> dict[str, Any]:
        """Write what the model is rebuilt from into the run folder; returns its description for `config.json`."""
        encoder = self.model.text_encoder
        if encoder is not None:
            run.assets.mkdir(exist_ok=True)
            encoder.tokenizer.save(run.assets)
        return self.model.to_config()


def _short(spec: str) -> str:
    """A spec with only the last part of a path in it: `clip:ViT-B-32@/a/b/c.pt` → `clip:ViT-B-32@c.pt`."""
    head, mark, place = spec.rpartition("@" if "@" in spec else ":")
    return head + mark + Path(place).name if Path(place).is_absolute() or Path(place).exists() else spec


def open_data(config: TrainConfig, say: Say) -> tuple[TrainConfig, Data]:
    """The data that the options name, and the options with their place resolved.

    Without `data` and `features`: `data/flickr8k` if it is there, else the built-in sample, written to `data/sample`.

    Raises:
        DataError: for everything in the data that no run can be made of.
    """
    if config.features is not None:
        path = Path(config.features).resolve()
        features = load_features(path)
        for note in features.notes:
            say(note)
        features = features.limited(config.dataset_size, config.seed)
        return replace(config, features=str(path)), damaged(
            checked(features, str(path)), parse_noise(config.noise), "train", config.seed
        )
    folder = Path(config.data) if config.data is not None else USUAL_DATA
    if config.data is None and not USUAL_DATA.is_dir():
        folder = SAMPLE_DATA
        say(f"no --data and no {USUAL_DATA}: training on the built-in sample in {folder}")
        say(write_sample(folder, seed=0))
        if config.augment is None:  # its captions tell place, size and left from right, which crops and mirrors change
            config = replace(config, augment=False)
        if config.image_size is None and config.image_spec == "resnet18":
            config = replace(config, image_size=SAMPLE_SIZE)
    elif config.data is None:
        say(f"no --data: training on {folder}")
    dataset = load_dataset(
        folder,
        seed=config.seed,
        skip_missing=config.skip_missing,
        dataset_size=config.dataset_size,
        captions_per_image=config.captions_per_image,
    )
    for note in dataset.notes:
        say(note)
    return replace(config, data=str(folder.resolve())), damaged(
        checked(dataset, str(folder)), parse_noise(config.noise), "train", config.seed
    )


def checked(data: Data, place: str) -> Data:
    """The data, if each split has what training needs.

    Raises:
        ConfigError: naming the split that has too few images.
    """
    if lacking := data.lacking():
        raise ConfigError(f"{place}: {lacking[0]}")
    return data


def assemble(config: TrainConfig, data: Data, model: DualEncoder, say: Say, *, noise: Noise | None = None) -> Parts:
    """Sources for a model: cached features where a tower stays as it is and sees no augmentation, else live inputs.

    Args:
        config: the options, from `open_data`.
        data: the data, from `open_data`.
        model: on its device.
        say: called with remarks on progress.
        noise: noise for the pixels of plain batches; else the options' noise goes into the pixels of training batches.

    Raises:
        ConfigError: the model takes features and the data are images, or the other way round.
    """
    device = model.log_logit_scale.device
    images: ImageSource
    texts: TextSource
    if isinstance(data, FeatureSet):
        _check_widths(data, model, config.features)
        images = FeatureRows(torch.from_numpy(data.image_features).to(device))
        texts = FeatureRows(torch.from_numpy(data.text_features).to(device))
    else:
        images = _image_source(config, data, model, say, noise)
        texts = _text_source(config, data, model, say)
    return Parts(config, data, model, images, texts, device)


def _check_widths(data: FeatureSet, model: DualEncoder, place: str | None) -> None:
    found = (data.image_features.shape[1], data.text_features.shape[1])
    wanted = (model.image_feature_dim, model.text_feature_dim)
    if found != wanted:
        raise ConfigError(
            f"{place}: features of {found[0]} and {found[1]} dimensions, but the model takes {wanted[0]}, {wanted[1]}"
        )


def new_model(config: TrainConfig, data: Data) -> DualEncoder:
    """A fresh dual encoder for these options; its random weights come from torch's generator.

    With the closed-form start its heads are zeros, and `place_start` gives it others.
    """
    shape: dict[str, Any] = {
        "embedding_dim": config.embedding_dim or 1,
        "head": config.head if config.start == "random" else "residual",
        "hidden_dim": config.hidden_dim,
        "dropout": config.dropout,
        "input_noise": config.input_noise,
    }
    if isinstance(data, FeatureSet):
        widths = {"image_feature_dim": data.image_features.shape[1], "text_feature_dim": data.text_features.shape[1]}
        return DualEncoder(None, None, **shape, **widths)
    try:
        image_encoder = build_image_encoder(config.image_spec, image_size=config.image_size)
    except WeightsUnavailable as absent:
        try:
            build_text_encoder(config.text_spec, captions=[""], pooling=config.pooling)
        except WeightsUnavailable as too:  # one message with all that is to be fetched
            raise WeightsUnavailable(f"{absent}\n{too}") from None
        raise
    captions = [data.captions[row] for row in data.caption_rows(data.rows("train")).tolist()]
    text_encoder = build_text_encoder(
        config.text_spec,
        captions=captions,
        pooling=config.pooling,
        bidirectional=config.bidirectional,
        max_length=config.max_length,
    )
    model = DualEncoder(image_encoder, text_encoder, **shape)
    for side in SIDES:
        if config.freezes(side):
            model.freeze(side, config.unfreeze)
            if config.lora:
                model.adapt(side, config.lora)
    if config.lora and not model.adapters:
        raise ConfigError(f"--lora {config.lora}: no tower is frozen; leave it out, or freeze one by --freeze")
    if config.unfreeze and not model.frozen:
        raise ConfigError(f"--unfreeze {config.unfreeze}: no tower is frozen; leave it out, or freeze one by --freeze")
    return model


def _image_source(
    config: TrainConfig, data: ImageCaptions, model: DualEncoder, say: Say, noise: Noise | None
) -> ImageSource:
    encoder, device = model.image_encoder, model.log_logit_scale.device
    assert encoder is not None
    in_pixels = noise if noise is not None else parse_noise(config.noise)
    frozen = model.fully_frozen("image")
    augmented = config.augment if config.augment is not None else not frozen
    preprocess = replace(encoder.preprocess, decode=config.decode)
    live = LiveImages(
        paths=data.image_paths,
        names=data.image_names,
        preprocess=preprocess,
        augment=Augment(flip=config.flip, jitter=(config.color_jitter,) * 3) if augmented else None,
        seed=config.seed,
        threads=config.threads,
        device=device,
        max_bad=config.max_bad,
        noise=in_pixels,
        noise_in="training" if noise is None else "plain",
    )
    if not frozen or augmented or in_pixels.pixels:
        if config.decoded_cache != "off":
            live.decoded = partial(_decoded, config, data, live, say)
        if config.decoded_cache == "device":
            if live.noise_in == "training" and in_pixels.pixels:
                raise ConfigError(
                    f"--decoded-cache device: the pixels of --noise {in_pixels} are damaged on the CPU: pass "
                    "--decoded-cache disk"
                )
            live.resident = partial(_resident, live, say)
        return live
    key = cache_key("image", encoder.weights_fingerprint(), preprocess, data.image_names, file_states(data.image_paths))
    path = _cache(config) / f"image-{key}.safetensors"
    matrix, unreadable = image_features(model, live, len(data.image_paths), encoder.feature_dim, path, say)
    return FeatureRows(matrix.to(device), unreadable)


def _decoded(config: TrainConfig, data: ImageCaptions, live: LiveImages, say: Say) -> DecodedCache | None:
    folder = _cache(config)
    rows, threads = data.rows("train"), config.threads
    try:
        return decoded_cache(
            live.paths, live.preprocess, folder, augment=live.augment, rows=rows, threads=threads, say=say
        )
    except OSError as error:  # the run can go on without its cache
        say(f"decoded images are not kept: {folder} cannot be written: {error}; name another folder by --cache")
        return None


def _resident(live: LiveImages, say: Say, decoded: DecodedCache) -> DeviceCache:
    try:
        resident = DeviceCache(decoded, live.preprocess, live.device, augment=live.augment, seed=live.seed)
    except (MemoryError, ValueError) as error:
        raise ConfigError(
            f"--decoded-cache device: {error}: pass --decoded-cache disk, which crops on the CPU's threads, or a "
            "smaller --image-size"
        ) from None
    say(f"decoded cache: {len(decoded)} images, {resident.nbytes / 2**20:.0f} MiB, now on {live.device}")
    if live.device.type == "cpu":
        say("--decoded-cache device: without a GPU, --decoded-cache disk gives the same batches many times faster")
    return resident


def _text_source(config: TrainConfig, data: ImageCaptions, model: DualEncoder, say: Say) -> TextSource:
    encoder, device = model.text_encoder, model.log_logit_scale.device
    assert encoder is not None
    live = LiveCaptions(data.captions, encoder.tokenizer, device, word_dropout=config.word_dropout, seed=config.seed)
    if not model.fully_frozen("text"):
        return live
    key = cache_key("text", encoder.weights_fingerprint(), encoder.tokenizer.fingerprint, json.dumps(data.captions))
    path = _cache(config) / f"text-{key}.safetensors"
    matrix: Tensor = text_features(model, live, len(data.captions), encoder.feature_dim, path, say)
    return FeatureRows(matrix.to(device))


def _cache(config: TrainConfig) -> Path:
    return Path(config.cache) if config.cache is not None else default_cache()


def saved_model(run: RunFolder) -> DualEncoder:
    """The model of a saved run, its checkpointed weights still to be loaded.

    Raises:
        RunError: the run's files do not describe a model.
        WeightsUnavailable, WeightsChanged: a frozen tower is not where it was, or not what it was.
    """
    description = run.config().get("model")
    if not isinstance(description, dict):
        raise RunError(f"{run.path / 'config.json'}: describes no model")
    try:
        tokenizer = load_tokenizer(run.assets) if description["text_encoder"] is not None else None
        return dual_encoder_from_config(description, tokenizer=tokenizer)
    except (KeyError, TypeError) as error:
        raise RunError(f"{run.path / 'config.json'}: its description of the model is damaged: {error!r}") from None


def new_schedule(config: TrainConfig) -> LossSchedule:
    """The loss schedule that the options name.

    Raises:
        RunError: `replay_run` is no run, or has no step.
    """
    replay = None
    if config.replay_run is not None:
        lines = read_metric_lines(RunFolder.open(Path(config.replay_run)).metrics)
        steps = [line.get("w_i2t") for line in lines if line.get("kind") == "step"]
        replay = [float(weight) for weight in steps if isinstance(weight, float)]
        if not replay or len(replay) < len(steps):
            raise ConfigError(f"--replay-run {config.replay_run}: that run's metrics.jsonl has no steps with weights")
    return named_schedule(config.schedule, config, replay)


def named_schedule(name: str, config: TrainConfig, replay: Sequence[float] | None = None) -> LossSchedule:
    """A schedule under the options' floor, decay, power, fixed weight and seed.

    Args:
        name: one of `varalign.schedules.SCHEDULES`.
        config: the options; their own `schedule` is not looked at.
        replay: w_i2t of every step that `replay` shuffles.
    """
    return build_schedule(
        name,
        floor=config.schedule_floor,
        beta=config.schedule_beta,
        gamma=config.schedule_gamma,
        fixed_weight=config.fixed_weight,
        seed=config.seed,
        replay=replay or (),
    )
