"""Segmentation networks: an image -> logits."""

from model.build import build_model
from model.config import ModelConfig

__all__ = ["ModelConfig", "build_model"]
