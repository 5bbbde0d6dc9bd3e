"""Opens the data that the options name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from varalign.data.damage import damaged
from varalign.data.datasets import ImageCaptions, load_dataset
from varalign.data.exclusions import without_excluded
from varalign.data.features import FeatureSet, load_features
from varalign.data.matched import matched
from varalign.data.noise import parse_noise
from varalign.data.ranks import world
from varalign.data.readers.folders import given_place
from varalign.data.readers.reading import HUB, Reading, of_hub
from varalign.data.sample import SAMPLE_SIZE, write_sample
from varalign.data.shards.shard_members import address_of, shown_place
from varalign.options.config import TrainConfig
from varalign.options.declaration import ConfigError
from varalign.options.fields import CUSTOM_IMAGE
from varalign.options.hub_sources import HUB_SOURCES

Say = Callable[[str], None]
Data = ImageCaptions | FeatureSet

REMOTE_BUFFER = 4096
"""`--shuffle-buffer` where shards are remote and nothing was said."""
USUAL_DATA = Path("data/flickr8k")
SAMPLE_DATA = Path("data/sample")


def open_data(config: TrainConfig, say: Say, *, whole_below: int = 0) -> tuple[TrainConfig, Data]:
    """The data that the options name, and the options with the data's place resolved.

    Args:
        config: the options.
        say: called with notes on the data.
        whole_below: where a folder has no splits of its own and fewer images than this, and the run needs none, every
            image is for training, as with `--split-by none`; the options that come back say so.

    Noise is in the training split, and the excluded pairs are not: they were found among the noisy ones.

    Without `data` and `features`: the folder of `captions` or `images`; else `data/flickr8k` if it is there; else the
    built-in sample, written to `data/sample`.

    Raises:
        DataError: for every fault of the data because of which no run is possible.
    """
    data: Data
    if config.features is not None:
        place = Path(config.features).resolve()
        data = load_features(place)
        config = replace(config, features=str(place))
        if config.data is not None:
            config, data = _pictured(config, data)
    else:
        config, place = _folder(config, say)
        if of_hub(place):
            from huggingface_hub.constants import ENDPOINT

            name = str(place).removeprefix(HUB).partition(":")[0]
            say(f"{place}: downloaded from {ENDPOINT}/datasets/{name}, unless the cache of `datasets` has it")
        data = load_dataset(
            place,
            seed=config.seed,
            skip_missing=config.skip_missing,
            dataset_size=config.dataset_size,
            captions_per_image=config.captions_per_image,
            reading=Reading.of(config),
            whole_below=0 if config.needs_held_out or config.dataset_size is not None else whole_below,
        )
        config = replace(config, split_by=data.split_by)
        given = {name: getattr(config, name) for name in ("captions", "images")}
        found: dict[str, Any] = {
            name: str(given_place(path, place).resolve()) for name, path in given.items() if path is not None
        }
        config = replace(config, data=resolved(place), **found)
        if config.shuffle_buffer is None and address_of(place) is not None:
            config = replace(config, shuffle_buffer=REMOTE_BUFFER)
        if config.shuffle_buffer and data.image_shards is None:
            say("--shuffle-buffer changes nothing: these images lie in no tar shards")
    for note in data.notes:
        say(note)
    data = replace(data, same_caption=config.same_caption)
    if isinstance(data, FeatureSet):
        data = data.limited(config.dataset_size, config.seed)
    data = damaged(checked(data, str(place), config), parse_noise(config.noise), "train", config.seed)
    others = ("exclude", "unpaired_images", "unpaired_texts")
    named = {name: str(Path(value).resolve()) for name in others if (value := getattr(config, name)) is not None}
    if config.hub_correction not in HUB_SOURCES:
        named["hub_correction"] = str(Path(config.hub_correction).resolve())
    config = replace(config, **named)  # type: ignore[arg-type]
    if config.exclude is not None:
        data, line = without_excluded(data, Path(str(config.exclude)))
        say(line)
    return config, checked(data, str(place), config)


def resolved(place: Path) -> str:
    """A place of data as a run remembers it: absolute, or where it is on the web."""
    return shown_place(place) if of_hub(place) or address_of(place) is not None else str(place.resolve())


def _pictured(config: TrainConfig, features: FeatureSet) -> tuple[TrainConfig, FeatureSet]:
    """The features with the pictures of `data`, and its captions where the file has none; places resolved."""
    place = Path(str(config.data))
    reading = Reading.of(config)
    folder = load_dataset(place, seed=config.seed, skip_missing=config.skip_missing, reading=reading)
    found = matched(features, folder, place)
    texts = found.captions if features.texts is None else features.texts
    config = replace(config, data=resolved(place))
    return config, replace(features, image_paths=found.image_paths, texts=texts)


def _folder(config: TrainConfig, say: Say) -> tuple[TrainConfig, Path]:
    """The data folder; for the built-in sample, the options with what suits its images where nothing was said."""
    if config.data is not None:
        return config, Path(config.data)
    if config.captions is not None or config.images is not None:
        return config, Path(config.captions).parent if config.captions else Path(str(config.images))
    if USUAL_DATA.is_dir():
        say(f"no --data: training on {USUAL_DATA}")
        return config, USUAL_DATA
    say(f"no --data and no {USUAL_DATA}: training on the built-in sample in {SAMPLE_DATA}")
    say(world().by_writer(lambda: write_sample(SAMPLE_DATA, seed=0)))
    if config.augment is None:  # its captions tell place, size and left from right, which crops and mirrors change
        config = replace(config, augment=False)
    if config.image_size is None and config.image_spec == CUSTOM_IMAGE:
        config = replace(config, image_size=SAMPLE_SIZE)
    return config, SAMPLE_DATA


def checked(data: Data, place: str, config: TrainConfig | None = None) -> Data:
    """The data, if each split has what the run needs; dev and test too where no options are given.

    Raises:
        ConfigError: naming the split that has too few images.
    """
    if lacking := data.lacking(held_out=config is None or config.needs_held_out):
        either = "; or leave out --members and --epochs: voices alone need neither dev nor test"
        untrained = config is not None and config.mixes_voices and (config.members or config.epochs)
        raise ConfigError(f"{place}: {'; '.join(lacking)}{either if untrained else ''}")
    return data
