"""Every option of a training run: type, default, range and help text. A new option is one entry here.

`TrainConfig` (config.py) adds what follows from several options; rules.py holds the rules about combinations.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from varalign.data.readers.reading import SEPARATORS, SPLIT_BY
from varalign.encoders.specs import parse_image_spec, parse_text_spec
from varalign.losses import LOSSES
from varalign.options.declaration import REPORTERS, Option, checkpoint_interval, declared, option, reporters
from varalign.options.hub_sources import check_hub_source
from varalign.options.voice_list import FEWEST_DEV, check_voices
from varalign.schedules import SCHEDULES

PRETRAINED_IMAGE = "clip:ViT-B-32@openai"
PRETRAINED_TEXT = "bert:bert-base-uncased"
CUSTOM_IMAGE = "resnet18"
CUSTOM_TEXT = "lstm"

_data, _encoders, _start, _loss, _training, _output = (
    partial(option, group) for group in ("data", "encoders", "start", "loss", "training", "output")
)


@dataclass(frozen=True)
class Options:
    """The options of `varalign train`, with underscores, in the order of the help and of `config.json`."""

    data: str | None = _data(
        "folder of images and captions (default: data/flickr8k if it exists, else the built-in sample); with "
        "--features: the pictures that the report shows",
        metavar="DIR",
        common=True,
    )
    features: str | None = _data(
        "train on this features file, written by `varalign embed --features`, instead of on images",
        metavar="FILE",
        common=True,
    )
    captions: str | None = _data(
        "captions file, where it is not found by its name (relative to here, else to the data folder)",
        metavar="FILE",
        common=True,
    )
    images: str | None = _data(
        "folder of the images, where it is not found by its name (relative to here, else to the data folder)",
        metavar="DIR",
        common=True,
    )
    separator: str | None = _data(
        "what separates the columns of a captions file (default: found out)", choices=tuple(SEPARATORS)
    )
    image_column: str | None = _data("column of the images' names (default: found by its name)", metavar="NAME")
    caption_column: str | None = _data("column of the captions (default: found by its name)", metavar="NAME")
    follow_links: bool = _data(
        "read images that are links leading out of their folder, as those of a hub's cache are", False
    )
    split_by: str | None = _data(
        "seed draws train, dev and test anew, whatever splits the data have; near-duplicates keeps images that are "
        "nearly the same in one split; none: every image is for training, and the figures come from nested "
        "cross-validation (default: the data's own splits; else none below 1,000 images where voices are fitted on "
        "frozen encoders, else drawn by seed)",
        choices=SPLIT_BY,
    )
    dataset_size: int | None = _data(
        "train on N images of the training split, drawn by seed (default: all)", low=2, common=True
    )
    captions_per_image: int | None = _data("use the first N captions of each image only (default: all)", low=1)
    same_caption: Literal["positive", "distinct"] = _data(
        "what equal captions are, but for case, spaces and the final stop: one text, right for every image that has it "
        "(positive), or each right for its own image alone, as in published figures (distinct)",
        "positive",
    )
    skip_missing: bool = _data("leave out captions that name a missing image, instead of stopping", False)
    exclude: str | None = _data(
        "leave the pairs of this table out of training: `pairs.csv` of `varalign diagnose` with wrong pairs marked in "
        "its column exclude, or any table of images and captions",
        metavar="FILE",
    )
    max_bad: float = _data(
        "stop the run when a larger share of the images is unreadable", 0.01, low=0.0, high=1.0, on_resume=True
    )
    unpaired_images: str | None = _data(
        "folder of images without captions, by which the closed form is fitted too (self-training); with --features, a "
        "features file of them",
        metavar="DIR|FILE",
    )
    unpaired_texts: str | None = _data(
        "file of texts without images for the same: a text a line, or any captions file; with --features, a features "
        "file of them",
        metavar="FILE",
    )
    augment: bool | None = _data(
        "random resized crop and flip of the training images (default: on where the image encoder trains)"
    )
    flip: float = _data(
        "probability of mirroring a training image; pass 0 where captions tell left from right", 0.5, low=0.0, high=1.0
    )
    word_dropout: float = _data(
        "probability of leaving out a word of a caption in a step, drawn anew each epoch; needs a text encoder that "
        "trains",
        0.0,
        low=0.0,
        high=0.95,
    )
    crop_area: float = _data(
        "smallest share of a training image's area that a random crop keeps", 0.5, low=0.01, high=1.0
    )
    color_jitter: float = _data(
        "multiply brightness, contrast and saturation of training images by random factors from 1 - X to 1 + X",
        0.0,
        low=0.0,
        high=1.0,
    )
    shuffle_buffer: int | None = _data(
        "read tar shards one after the other, in an order drawn anew each epoch, and move each image by up to N places "
        "(default: 4096 for remote shards; local ones are read in a wholly random order, which 0 stands for)",
        low=0,
    )
    decode: Literal["exact", "fast"] = _data(
        "fast decodes large JPEG files at 1/2, 1/4 or 1/8 of their size; pixels differ slightly", "exact"
    )
    decoded_cache: Literal["off", "disk"] = _data(
        "decode the training images once, at 1.5 times the training size, keep the pixels on disk and crop from them: "
        "much faster, but crops of larger images are slightly softer; without a value: disk",
        "off",
        bare="disk",
        removed={"device": "disk"},
        common=True,
    )
    noise: str | None = _data(
        "inject noise into the training pairs on purpose, such as swap-images=0.4,drop-words=0.1", metavar="SPEC"
    )

    use_pretrained: bool = _encoders(
        f"short for --image-encoder {PRETRAINED_IMAGE} --text-encoder {PRETRAINED_TEXT}", False, common=True
    )
    image_encoder: str | None = _encoders(
        f"image encoder as kind:name@weights (default: {CUSTOM_IMAGE})",
        metavar="SPEC",
        check=parse_image_spec,
        common=True,
    )
    text_encoder: str | None = _encoders(
        f"text encoder as kind:name@weights (default: {CUSTOM_TEXT})",
        metavar="SPEC",
        check=parse_text_spec,
        common=True,
    )
    image_size: int | None = _encoders(
        "side in pixels of the square that each image is resized to (default: the encoder's own)",
        low=16,
        high=1024,
        common=True,
    )
    max_length: int | None = _encoders(
        "most tokens of a caption, special tokens included (default: the tokenizer's own)", low=3, high=512
    )
    pooling: Literal["auto", "mean", "cls", "last"] = _encoders(
        "how token vectors are pooled into one text vector (auto: as the encoder's folder says, else their mean; "
        "cls: not with lstm)",
        "auto",
    )
    word_vectors: str | None = _encoders(
        "file of pretrained word vectors that the word embedding of lstm starts from: GloVe, word2vec's text form or "
        "fastText's .vec",
        metavar="FILE",
    )
    bidirectional: bool = _encoders("run the LSTM in both directions", False)
    unfreeze: int = _encoders("train the last N blocks of frozen encoders too", 0, low=0, common=True)
    lora: int = _encoders(
        "rank of low-rank adapters (LoRA, extra `lora`) that train beside the linear layers of the frozen encoders; "
        "0: none",
        0,
        metavar="R",
        low=0,
        high=512,
    )
    wise_ft: bool = _encoders(
        "after training, average the trained encoders' weights with their pretrained ones, in the share that is best "
        "on dev (WiSE-FT)",
        False,
    )
    freeze: Literal["auto", "none", "image", "text", "both"] = _encoders(
        "encoders whose weights are not trained (auto: those with pretrained weights)", "auto"
    )
    embedding_dim: int = _encoders(
        "dimensions of the shared space; with --members those of the closed form, to which each member adds 64",
        recipe=True,
        low=1,
        high=4096,
    )
    head: Literal["linear", "mlp"] = _encoders(
        "projection head on each encoder; with the closed-form start, linear is its map alone", recipe=True
    )
    hidden_dim: int = _encoders("width of the mlp head's hidden layer", recipe=True, low=1)
    dropout: float = _encoders("dropout in the heads", recipe=True, low=0.0, high=0.95)
    members: int = _encoders(
        "number of perceptrons trained from random weights beside the closed forms, which stay as fitted; the "
        "similarities are averaged. 0: none, and nothing is trained, as below 1,000 images where nothing is said",
        recipe=True,
        metavar="K",
        low=0,
        high=64,
    )

    members_share: float | None = _encoders(
        "the members' part of the similarity (default: chosen on held-out pairs)", low=0.0, high=1.0
    )

    continue_from: str | None = _start(
        "start from the best weights of another run, in a new run folder, with more epochs, other data or another "
        "batch size; options that are not given are that run's",
        metavar="RUN",
        common=True,
    )
    start: Literal["auto", "closed-form", "random"] = _start(
        "initial heads: regularised canonical correlation of the encoders' features, or random weights (auto: "
        "closed-form where both encoders are frozen)",
        "auto",
    )
    voices: str = _start(
        "the scorers that are averaged, with commas between: closed-form, kernel, lexical (a kernel that reads the "
        "captions' words too), zero-shot (both encoders of one CLIP), members (see --members); each counts as held-out "
        "pairs say. none: one head is trained on top of the closed form (auto: all that the run can have)",
        "auto",
        metavar="LIST",
        check=check_voices,
        common=True,
    )
    settings: Literal["auto", "dev", "cv"] = _start(
        "what voices, their settings and their weights are chosen on: the dev split, or a cross-validation over train "
        f"and dev together, all of whose pairs are then fitted on (auto: dev where it has {FEWEST_DEV} images and a "
        "test split is there)",
        "auto",
        common=True,
    )
    ridge: float | None = _start(
        "ridge of the closed form, as a multiple of the mean variance (default: chosen on dev)", low=0.0
    )
    text_ridge: float | None = _start(
        "ridge of the texts' side (default: --ridge where that is given, else chosen on dev)", low=0.0
    )
    power: float | None = _start(
        "exponent of the correlations in the closed form's maps (default: chosen on dev)", low=0.0
    )
    map_lr: float | None = _start(
        "learning rate of the closed form's maps, as a multiple of --lr; 0 leaves them as fitted", recipe=True, low=0.0
    )
    pair_weighting: Literal["none", "closed-form", "moments"] = _start(
        "weight each training pair by its probability of being right, from closed-form scores before training "
        "(closed-form) or from its margins over the epochs (moments)",
        "none",
    )
    pair_warmup: float = _start(
        "share of the epochs before --pair-weighting moments begins to weight", 0.2, low=0.0, high=1.0
    )

    loss: str = _loss(
        "contrastive loss; all but clip are other people's, for comparison", "clip", choices=LOSSES, common=True
    )
    loss_strength: float | None = _loss(
        "the loss's own parameter, such as the exponent of gce or the factor of structure (default: its paper's value)"
    )
    attack_steps: int = _loss("attack steps of the adversarial losses: 1 is FGSM, more is PGD", 1, low=1, high=100)
    schedule: str = _loss(
        "how the two directions of the loss are weighted at each step", "variance", choices=SCHEDULES, common=True
    )
    schedule_floor: float = _loss("least weight of a direction", 0.05, low=0.0, high=0.5)
    schedule_beta: float = _loss("decay of the moving average of the schedule's statistic", 0.9, low=0.0, high=0.9999)
    schedule_gamma: float = _loss("exponent of the statistic in the weights", 1.0, low=0.0)
    fixed_weight: float = _loss("weight of image-to-text under --schedule fixed", 0.5, low=0.0, high=1.0)
    replay_run: str | None = _loss("run whose weights --schedule replay uses, shuffled in time", metavar="RUN")
    duplicates: Literal["positive", "ignore"] = _loss(
        "whether the other positives of a query stay in its denominator (positive) or leave it (ignore)", "positive"
    )

    epochs: int = _training("passes over the training images; 0 without members", recipe=True, low=0, common=True)
    batch_size: int = _training("images in a step", recipe=True, low=2, common=True)
    lr: float = _training(
        "learning rate of the heads and of encoders that start from random weights", recipe=True, low=0.0, common=True
    )
    tower_lr: float = _training("learning rate of pretrained encoders that train", 1e-5, low=0.0)
    weight_decay: float = _training("weight decay of AdamW", recipe=True, low=0.0)
    input_noise: float = _training(
        "standard deviation of the Gaussian noise added to the heads' inputs, as a multiple of each feature's own",
        recipe=True,
        low=0.0,
        high=10.0,
    )
    feature_mixup: float = _training(
        "mix the features of each pair in a step with those of another, in a share drawn from a symmetric beta "
        "distribution with this parameter (FuseMix; 1: uniform; 0: no mixing)",
        0.0,
        low=0.0,
        high=100.0,
    )
    accumulate: int = _training(
        "number of parts in which each batch passes through encoders that train, so that a batch needs the memory of a "
        "part; the gradients are those of the whole batch, and the encoders run twice; batch norms (resnet18) take "
        "their statistics from a part",
        1,
        low=1,
        high=4096,
        common=True,
    )
    gradient_checkpointing: bool = _training(
        "keep only what enters each block of the encoders that train, and compute the rest again in the backward pass: "
        "less memory, about a third more time, the same gradients; not for resnet18 and lstm",
        False,
        common=True,
    )
    shard: bool = _training(
        "split the weights of the encoders, their gradients and the optimiser's state over the processes that torchrun "
        "has started (FSDP), for encoders whose training does not fit one GPU; for evaluations each process still "
        "gathers the weights of one encoder",
        False,
        common=True,
    )
    captions_per_step: int = _training(
        "captions of an image used in a step, drawn anew each epoch", recipe=True, low=1, high=100
    )
    captions_as: Literal["mean", "each"] = _training(
        "how several captions of an image are used in a step: averaged into one text (mean), or each as a positive "
        "(each)",
        recipe=True,
    )
    warmup: float = _training("share of the steps over which the learning rate rises linearly", 0.05, low=0.0, high=1.0)
    lr_schedule: Literal["cosine", "step", "constant"] = _training(
        "how the learning rate falls after the warm-up (step: to a tenth at 60 and again at 85 per cent of the steps)",
        "cosine",
    )
    average_weights: float = _training(
        "decay of a moving average of the weights over the steps, such as 0.999; the average is measured on dev and "
        "kept as the model; 0: none",
        0.0,
        metavar="DECAY",
        low=0.0,
        high=0.99999,
    )
    clip_grad: float = _training("scale gradients down to this norm; 0: never", 1.0, low=0.0)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = _training(
        "floating-point type of the encoders (auto: bf16 on a GPU that has it, and in training steps on a CPU that "
        "multiplies it; else fp32)",
        "auto",
    )
    feature_precision: Literal["fp32", "bf16"] = _training(
        "floating-point type in which frozen encoders make their features; bf16 takes half of the time on a CPU that "
        "has it, and is taken where each of 64 rows keeps a cosine of 0.9999 with fp32 (MiniLM: 0.99997)",
        "fp32",
    )
    max_nonfinite: int = _training(
        "steps in a row that may be skipped because their loss or gradient is not finite; after that the run goes back "
        "to a checkpoint with a lower learning rate, and the second time it stops",
        10,
        low=1,
    )
    evaluations: int = _training(
        "number of evaluations on dev, evenly spaced, besides the one at the start; 0: one after each epoch",
        recipe=True,
        low=0,
    )
    patience: int = _training("stop after N epochs without a better mean recall on dev; 0: never", 0, low=0)
    hub_correction: str = _training(
        "after training, score with a correction for items that are near every query, by a bank of other queries: "
        "auto, off, train, dev, unpaired (see --unpaired-images), or a features file, a file of texts or a folder of "
        "images (auto: what is unpaired, else the larger of train and dev, where Recall@1 of held-out pairs gains)",
        "auto",
        metavar="WORD|FILE",
        check=check_hub_source,
        common=True,
    )
    hub_form: Literal["bank", "centroids", "variance"] = _training(
        "what the hub correction keeps of its bank: the embeddings (bank), the means of 128 clusters of them with "
        "their shares (centroids), or their mean and covariance alone (variance)",
        "bank",
    )
    seed: int = _training(
        "seed of splits, sample order, augmentation and weights", 0, metavar="S", low=0, high=2**63 - 1, common=True
    )
    device: str | None = _training(
        "cpu, cuda, cuda:N or mps (default: the fastest here)", metavar="DEVICE", common=True, on_resume=True
    )
    threads: int = _training("threads that decode images; 0: one for each core", 0, low=0, common=True, on_resume=True)

    out: str | None = _output("run folder (default: runs/<date>-<time>)", metavar="DIR", common=True)
    cache: str | None = _output(
        "folder of cached encoder features and of unpacked images (default: ~/.cache/varalign)",
        metavar="DIR",
        on_resume=True,
    )
    checkpoint_every: int | str = _output(
        "write a checkpoint every N steps (200) or minutes (10m; 0: never), besides those of the best weights on dev",
        "10m",
        metavar="N[m]",
        check=checkpoint_interval,
        on_resume=True,
    )
    keep: int = _output("number of checkpoints kept besides the best", 2, low=1)
    profile: bool = _output(
        "tell where the time went (data, encoders, loss, optimiser, evaluations, saving) in a table on the run's page, "
        "and write a trace of some steps (RUN/profile_trace.json, for ui.perfetto.dev); counts this command alone",
        False,
        on_resume=True,
    )
    report_to: str | None = _output(
        f"report metrics to {', '.join(REPORTERS)}: one or several with commas; each is an extra",
        metavar="NAME,...",
        check=reporters,
        on_resume=True,
    )
    tensorboard: bool = _output("short for --report-to tensorboard, which writes into the run folder", False)


OPTIONS: dict[str, Option] = declared(Options)
RECIPE = tuple(name for name, option in OPTIONS.items() if option.recipe)
"""The options whose default depends on the start and on how many images there are."""
