"""Segmentation networks: an image -> logits."""

from typing import TYPE_CHECKING, Any

from model.config import ModelConfig

if TYPE_CHECKING:
    from model.build import build_model

__all__ = ["ModelConfig", "build_model"]


def __getattr__(name: str) -> Any:
    """Import build_model only when it is used: torch takes seconds to load."""
    if name != "build_model":
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from model.build import build_model

    return build_model
