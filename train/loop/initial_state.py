"""Build the state of a run at step 0."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from common import seeds
from model import build_model
from model.precision import Precision
from train.checkpoints.progress import Progress
from train.checkpoints.state import State
from train.config import TrainConfig
from train.loop.optimizer import build_optimizer


def build_state(
    config: TrainConfig,
    num_classes: int,
    precision: Precision,
    weights: Mapping[str, Tensor] | None = None,
) -> State:
    """Build the state of a run at step 0; the seed gives the weights that are not given."""
    torch.manual_seed(seeds.derive_seed(config.seed, "weights"))
    model = build_model(config.model, num_classes).to(precision.device)
    if weights:
        model.load_state_dict(model.state_dict() | dict(weights))
    model.to(memory_format=precision.memory_format)
    optimizer = build_optimizer(model, config)
    scaler = torch.amp.GradScaler(precision.device.type, enabled=precision.needs_scaler)
    averaged = copy.deepcopy(model).requires_grad_(False) if config.ema else None
    return State(model, optimizer, scaler, Progress(), averaged)
