"""The U-Net of Ronneberger et al. 2015 (doi:10.1007/978-3-319-24574-4_28), padded.

    image -> double conv -------------- skip --------------> concat -> double conv -> 1x1 -> logits
                 | max-pool 2x2                                ^
                 v                                             | transposed conv 2x2
             double conv, twice the channels -> ... -> double conv

Convolutions keep the size by zero padding, so the logits fit the image. If the image's sides are
not multiples of 2^depth, its edges are repeated up to a multiple, and the logits are cut back.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.layers import double_conv

RGB = 3


class UNet(nn.Module):
    """Network from images (B, 3, H, W) to logits (B, num_classes, H, W), for any H and W.

    If an image is moved by a multiple of `stride` px, its logits move with it, except near the
    edges; not with norm=group or instance, which depend on the whole image.
    """

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        super().__init__()
        self.downsample = config.downsample
        self.stride = config.downsample * 2**config.depth  # px per pixel of the deepest level
        block = config.downsample**2
        widths = [config.width * 2**level for level in range(config.depth + 1)]
        self.encoder = nn.ModuleList(
            double_conv(before, width, config.norm)
            for before, width in zip([RGB * block, *widths[:-1]], widths, strict=True)
        )
        self.dropout = nn.Dropout2d(config.dropout)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in widths[-2::-1]
        )
        self.decoder = nn.ModuleList(
            double_conv(2 * width, width, config.norm) for width in widths[-2::-1]
        )
        self.head = nn.Conv2d(widths[0], num_classes * block, 1)
        with torch.no_grad():
            # the pixels of a block start with equal weights: other weights show as a checkerboard
            # (Aitken et al. 2017, arXiv:1707.02937)
            for values in self.head.parameters():
                values.copy_(values[::block].repeat_interleave(block, dim=0))

    def num_padded(self, length: int) -> int:
        """Return by how many px to pad a side of `length` px to a multiple of `stride`.

        The deepest level is at least two pixels wide: instance normalisation of a single pixel
        would divide by zero.
        """
        return max(-length % self.stride, 2 * self.stride - length)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Compute logits: (B, 3, H, W) float -> (B, num_classes, H, W)."""
        height, width = image_BCHW.shape[-2:]
        padding = (0, self.num_padded(width), 0, self.num_padded(height))
        features = F.pad(image_BCHW, padding, mode="replicate") if any(padding) else image_BCHW
        features = F.pixel_unshuffle(features, self.downsample)
        skips = []
        for level in self.encoder[:-1]:
            features = level(features)
            skips.append(features)
            features = F.max_pool2d(features, 2)
        features = self.dropout(self.encoder[-1](features))
        for up, level in zip(self.up, self.decoder, strict=True):
            features = level(torch.cat((skips.pop(), up(features)), dim=1))
        logits = F.pixel_shuffle(self.head(features), self.downsample)
        return logits[..., :height, :width]
