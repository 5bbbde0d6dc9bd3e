"""ResNet-18 as an image encoder: torchvision's architecture without its classifier.

The network is written here: `import torchvision` imports all its models, and with them torch._dynamo, which takes three
times as long as `import torch`. Names, first weights under a seed and results are torchvision's, bit for bit.

Source: He et al. 2016, "Deep residual learning for image recognition".
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from varalign.data.images import Preprocess
from varalign.encoders.base import ImageEncoder, ImageOptions, plain
from varalign.encoders.hub import download_url
from varalign.encoders.specs import EncoderSpec
from varalign.encoders.weights import load_exactly, named_file, read_state_dict

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
DEFAULT_IMAGE_SIZE = 224
IMAGENET_WEIGHTS = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
"""torchvision's `ResNet18_Weights.IMAGENET1K_V1`."""


class _Block(nn.Module):
    """Two 3×3 convolutions beside a shortcut, which is a 1×1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        shortcut = None
        if stride != 1 or inputs != outputs:
            shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(B, outputs, S / stride, S / stride) of x (B, inputs, S, S)."""
        out: Tensor = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.downsample is None else self.downsample(x)
        found: Tensor = self.relu(out)
        return found


class _Network(nn.Module):
    """Pixels (B, 3, S, S) to the averages of 512 channels (B, 512)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(_Block(64, 64, 1), _Block(64, 64, 1))
        self.layer2 = nn.Sequential(_Block(64, 128, 2), _Block(128, 128, 1))
        self.layer3 = nn.Sequential(_Block(128, 256, 2), _Block(256, 256, 1))
        self.layer4 = nn.Sequential(_Block(256, 512, 2), _Block(512, 512, 1))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        nn.Linear(512, 1000)  # torchvision's classifier: made to draw as many random numbers, not kept
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(B, 512)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return torch.flatten(self.avgpool(x), 1)


class ResNet18(ImageEncoder):
    """torchvision's ResNet-18; features are the 512 globally averaged channels before the classifier.

    Its weights are random, ImageNet's (`resnet18@imagenet`) or a torchvision state dict (`resnet18@FILE`). It is fully
    convolutional, so any image size works with the same weights (224 by default, 112 for quick runs on a CPU).
    """

    def __init__(self, spec: EncoderSpec, options: ImageOptions) -> None:
        super().__init__()
        self.net = _Network()
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
            path = download_url(IMAGENET_WEIGHTS, spec=self.spec, instead="--image-encoder resnet18@FILE")
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
