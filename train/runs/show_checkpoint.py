"""Print what a checkpoint of a run holds, with digests of its values."""

import hashlib
import json

from common.command_line import EXIT_FAILED
from train.checkpoints import checkpoint
from train.metrics.scores import score_text
from train.runs.config import ShowConfig
from train.runs.newest import named_or_newest
from train.runs.run_folder import config_sha256, read_run


def show_checkpoint(config: ShowConfig) -> int:
    """Print what a checkpoint holds. Returns the exit code, 1 where it is not intact."""
    run = read_run(named_or_newest(config.run))
    path = checkpoint.find(run.checkpoints, config.checkpoint)
    print(f"checkpoint    {path}")
    if problem := checkpoint.verify(path):
        print(f"intact        no: {problem}")
        return EXIT_FAILED
    print("intact        yes")
    state = json.loads((path / checkpoint.STATE).read_text())
    complete = json.loads((path / checkpoint.COMPLETE).read_text())
    print(f"step          {state['step']}")
    print(f"epoch         {state['epochs']} of {run.config.epochs} done")
    print(f"saved by      {complete['world_size']} rank(s)")
    is_same = complete["config_sha256"] == config_sha256(run.config)
    print(f"settings      {'those of' if is_same else 'others than now in'} config.yaml")
    for name, value in state["metrics"].items():
        print(f"{name:13} {score_text(value, 6)}")
    if state["best_dice"] >= 0:
        print(f"best          val/dice {state['best_dice']:.6f} at step {state['best_step']}")
    tensors = checkpoint.all_tensors(path)
    of_model = {name: value for name, value in tensors.items() if name.startswith("model.")}
    rest = json.dumps(state, sort_keys=True)
    state_digest = hashlib.sha256((checkpoint.digest(tensors) + rest).encode()).hexdigest()
    print(f"model sha256  {checkpoint.digest(of_model)}")
    print(f"state sha256  {state_digest}")
    return 0
