"""Several networks used as one: the mean of their probabilities."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import nn

FREE_PART = 0.5  # of a GPU's free memory for weights; the rest is for what they compute


class Ensemble(nn.Module):
    """Networks that are applied one after the other. Whoever applies them takes the mean."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.are_together = True
        # moved by it, an image gives the same answer of each member
        self.stride = math.lcm(*(getattr(member, "stride", 1) for member in members))

    def place(self, device: torch.device) -> None:
        """Move all members to a device if they fit; otherwise each goes there when it is used."""
        self.are_together = fits(self, device)
        self.to(device if self.are_together else torch.device("cpu"))

    def in_turn(self, device: torch.device) -> Iterator[nn.Module]:
        """Yield each member while it is on the device."""
        for member in self.members:
            if self.are_together:
                yield member
            else:
                yield member.to(device)
                member.to(torch.device("cpu"))


def fits(model: nn.Module, device: torch.device) -> bool:
    """Whether the weights of a model fit into the memory of a device, beside what they compute."""
    if device.type != "cuda":
        return True
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return sum(tensor.nbytes for tensor in model.state_dict().values()) <= FREE_PART * free_bytes
