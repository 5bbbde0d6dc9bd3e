"""ResNet-18 as an image encoder: torchvision's architecture without its classifier."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from varalign.data.images import Preprocess
from varalign.encoders.base import ImageEncoder, ImageOptions, plain
from varalign.encoders.hub import download_url
from varalign.encoders.specs import EncoderSpec
from varalign.encoders.weights import load_exactly, named_file, read_state_dict

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
DEFAULT_IMAGE_SIZE = 224


class ResNet18(ImageEncoder):
    """torchvision's ResNet-18; features are the 512 globally averaged channels before the classifier.

    Its weights are random, ImageNet's (`resnet18@imagenet`) or a torchvision state dict (`resnet18@FILE`). It is fully
    convolutional, so any image size works with the same weights (224 by default, 112 for quick runs on a CPU).
    """

    def __init__(self, spec: EncoderSpec, options: ImageOptions) -> None:
        super().__init__()
        from torchvision.models import resnet18

        self.net = resnet18(weights=None)
        self.net.fc = nn.Identity()
        self.feature_dim = 512
        self.spec = str(spec if spec.weights == "imagenet" else spec.with_absolute_path())
        self.has_source = spec.weights is not None
        self.preprocess = Preprocess(
            size=options.image_size or DEFAULT_IMAGE_SIZE,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            interpolation="bilinear",
        )
        if options.load_weights and spec.weights is not None:
            self._load(spec)

    def _load(self, spec: EncoderSpec) -> None:
        assert spec.weights is not None
        if spec.weights == "imagenet":
            from torchvision.models import ResNet18_Weights

            path = download_url(
                ResNet18_Weights.IMAGENET1K_V1.url, spec=self.spec, instead="--image-encoder resnet18@FILE"
            )
        else:
            path = named_file(spec.weights, self.spec)
        state = read_state_dict(path)
        load_exactly(self.net, {k: v for k, v in state.items() if not k.startswith("fc.")}, path, self.spec)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 512) features of pixels (B, 3, S, S)."""
        features: Tensor = self.net(pixels)
        return features

    def blocks(self) -> list[nn.Module]:
        """The four stages."""
        return [self.net.layer1, self.net.layer2, self.net.layer3, self.net.layer4]

    def architecture(self) -> dict[str, Any]:
        """Kind and preprocessing; nothing else varies."""
        return plain({"kind": "resnet18", "preprocess": asdict(self.preprocess)})
