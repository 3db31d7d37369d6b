"""The arithmetic and the memory layout with which a device is fast."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """The precision of forward passes on one device, and the layout of images."""

    device: torch.device
    amp: str
    """bf16, fp16 or off."""
    layout: str
    """contiguous or channels_last."""

    @property
    def memory_format(self) -> torch.memory_format:
        """The layout as torch's constant."""
        return LAYOUTS[self.layout]

    @property
    def needs_scaler(self) -> bool:
        """Whether gradients must be scaled up so that fp16 does not lose the small ones."""
        return self.amp == "fp16"

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context for a forward pass."""
        if self.amp == "off":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=DTYPES[self.amp])

    def image_to_input(self, image_BHWC: torch.Tensor) -> torch.Tensor:
        """Convert uint8 RGB images, BHWC, to float from 0 to 1, BCHW, on the device."""
        moved = image_BHWC.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        return moved.to(torch.float32, memory_format=self.memory_format).div_(255)


def choose_precision(device: torch.device, amp: str, memory_format: str) -> Precision:
    """Return the given precision and layout; 'auto' is chosen by the hardware."""
    if amp == "auto":
        amp = fast_amp(device)
    if memory_format == "auto":
        memory_format = "channels_last" if likes_channels_last(device) else "contiguous"
    return Precision(device, amp, memory_format)


def fast_amp(device: torch.device) -> str:
    """Choose the precision for a device.

    bf16 only if the hardware has units for it: emulated on a CPU it is 7 to 20 times slower.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    # Private, but nothing public asks oneDNN, which computes convolutions: torch.cpu's
    # get_capabilities() lists instruction sets, not which of them oneDNN has bf16 for.
    return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "off"


def likes_channels_last(device: torch.device) -> bool:
    """Whether a device is faster with channels_last.

    GPUs are, and CPUs with AVX-512. With AVX2, the backward pass of oneDNN is slower.
    """
    return device.type == "cuda" or torch.backends.cpu.get_cpu_capability() == "AVX512"
