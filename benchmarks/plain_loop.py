"""The plain side of the training benchmarks: what one writes without kit, in fp32 and plain memory format.

segmentation_models_pytorch's U-Net over the same timm encoder, a torch Dataset, torch's cross-entropy and AdamW.
"""

import albumentations as A
import numpy as np
import pandas as pd
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from kit.data.dataset import read_tile
from kit.data.masks import IGNORE
from kit.models.encoders import encoder as kit_encoder
from kit.models.pretrained import Source, encoder_source


def start_of(recipe: str) -> Source:
    """Returns where encoders begin on both sides: lite0's at the ImageNet weights that come with kit, others random."""
    return Source(pretrained=recipe == "lite0")


class PlainUnet(nn.Module):
    """smp's U-Net, normalisation before it.

    Args:
        encoder: a timm model name.
        source: of the encoder's weights: kit's encoder gets them, smp's takes them over.

    Shape:
        (N, 3, H, W) uint8 -> (N, 2, H, W) float32 logits; H and W are multiples of 32.
    """

    def __init__(self, encoder: str, source: Source) -> None:
        super().__init__()
        with encoder_source(source):
            pyramid = kit_encoder(encoder)
        self.unet = smp.Unet(f"tu-{encoder}", encoder_weights=None, classes=2)
        if source.pretrained:
            self.unet.encoder.model.load_state_dict(pyramid.state_dict())
        config = pyramid.pretrained_cfg
        self.mean, self.std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))

    def forward(self, images: Tensor) -> Tensor:
        return self.unet((images / 255 - self.mean) / self.std)


class PlainTiles(torch.utils.data.Dataset):
    """`n` augmented crops, one tile after the other: (image (3, H, W) uint8, mask (H, W) int64).

    The tiles are read beforehand, as kit's are.
    """

    def __init__(self, rows: pd.DataFrame, transform: A.Compose, n: int) -> None:
        self.tiles = [read_tile(image, mask) for image, mask in zip(rows["image"], rows["mask"], strict=True)]
        self.transform, self.n = transform, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        image, mask = self.tiles[number % len(self.tiles)]
        made = self.transform(image=image, mask=mask)
        pixels = np.ascontiguousarray(made["image"].transpose(2, 0, 1))
        return torch.from_numpy(pixels), torch.from_numpy(made["mask"].astype(np.int64))


class PlainTraining:
    """A network in training: a call takes a step on a batch and returns its loss."""

    def __init__(self, model: PlainUnet, lr: float, wd: float = 0.01) -> None:  # AdamW's own
        self.model = model.train()
        self.optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=wd)
        self.loss_func = nn.CrossEntropyLoss(ignore_index=IGNORE)

    def __call__(self, images: Tensor, masks: Tensor) -> float:
        loss = self.loss_func(self.model(images), masks)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()
