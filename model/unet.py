"""The U-Net of Ronneberger et al. 2015 (doi:10.1007/978-3-319-24574-4_28), padded.

    image -> double conv -------------- skip --------------> concat -> double conv -> 1x1 -> logits
                 | max-pool 2x2                                ^
                 v                                             | transposed conv 2x2
             double conv, twice the channels -> ... -> double conv

Convolutions keep the size (zero padding), so that logits fit the image; an image whose sides are
no multiple of 2^depth is padded by repeating its edge, and the logits are cut back.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.layers import double_conv

RGB = 3


class UNet(nn.Module):
    """(B, 3, H, W) image -> (B, num_classes, H, W) logits, for any H and W.

    Of an image that is moved by a multiple of `stride` px the logits are moved alike, off its
    edges; not with norm=group or instance, which look at the whole of it.
    """

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        super().__init__()
        self.downsample = config.downsample
        self.stride = config.downsample * 2**config.depth  # of the deepest level, in px
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
            # the pixels of a block begin alike, or they show as a checkerboard: Aitken et al. 2017,
            # arXiv:1707.02937
            for values in self.head.parameters():
                values.copy_(values[::block].repeat_interleave(block, dim=0))

    def missing(self, length: int) -> int:
        """Pixels to a multiple that the levels divide; the deepest is two wide at least, for
        instance normalisation has nothing to divide by in a single pixel."""
        return max(-length % self.stride, 2 * self.stride - length)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) float -> (B, num_classes, H, W) logits."""
        height, width = image_BCHW.shape[-2:]
        padding = (0, self.missing(width), 0, self.missing(height))
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
