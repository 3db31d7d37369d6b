"""Print what a checkpoint of a run holds, with digests of its values."""

import hashlib
import json

from common.command_line import EXIT_FAILED
from data_prep.images.resolution import mpp_text
from train.checkpoints.checkpoint_files import read_complete, verify
from train.checkpoints.digests import tensors_sha256
from train.checkpoints.load_checkpoint import load_all_tensors
from train.checkpoints.progress import read_state
from train.checkpoints.published import find_checkpoint
from train.checkpoints.state import MODEL, part_in_use
from train.metrics.scores import score_text
from train.runs.config import ShowConfig
from train.runs.newest import named_or_newest
from train.runs.run_folder import read_run_folder
from train.runs.same_run import config_sha256


def show_checkpoint(config: ShowConfig) -> int:
    """Print what a checkpoint holds. Returns the exit code, 1 if it is not intact."""
    run = read_run_folder(named_or_newest(config.run))
    path = find_checkpoint(run.checkpoints, config.checkpoint)
    print(f"checkpoint    {path}")
    if problem := verify(path):
        print(f"intact        no: {problem}")
        return EXIT_FAILED
    print("intact        yes")
    state, complete = read_state(path), read_complete(path)
    print(f"step          {state['step']}")
    print(f"epoch         {state['epochs']} of {run.config.epochs} done")
    for origin in run.origins:
        print(f"began with    {origin.source}, {origin.checkpoint}")
    if run.encoder:
        print(f"encoder       began with {run.encoder}")
    print(f"saved by      {complete.world_size} rank(s)")
    is_same = complete.config_sha256 == config_sha256(run.config)
    print(f"settings      {'the same as' if is_same else 'other than now'} in config.yaml")
    print(f"resolution    {mpp_text(run.data.labelling.mpp)}")
    if run.config.ema:
        print(f"model         the average of the weights, ema={run.config.ema:g}")
    for name, value in state["metrics"].items():
        print(f"{name:13} {score_text(value, 6)}")
    if state["best_dice"] >= 0:
        print(f"best          val/dice {state['best_dice']:.6f} at step {state['best_step']}")
    tensors = load_all_tensors(path)
    part = part_in_use(run.config)
    of_model = {
        name.replace(part, MODEL, 1): value
        for name, value in tensors.items()
        if name.startswith(f"{part}.")
    }
    rest = json.dumps(state, sort_keys=True)
    state_digest = hashlib.sha256((tensors_sha256(tensors) + rest).encode()).hexdigest()
    print(f"model sha256  {tensors_sha256(of_model)}")
    print(f"state sha256  {state_digest}")
    return 0
