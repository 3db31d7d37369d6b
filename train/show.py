"""Show a checkpoint: step, epoch, metrics, whether it is intact, and digests.

    python -m train.show run=DIR [checkpoint=latest]

The digests are sha256 over the values alone: they do not depend on the number of ranks that
trained or saved, and two checkpoints with one digest are the same to the bit.
"""

import hashlib
import json
from dataclasses import dataclass

from common import command_line
from common.command_line import EXIT_FAILED
from train.checkpoints import checkpoint
from train.metrics.scores import score_text
from train.runs.newest import named_or_newest
from train.runs.run_folder import config_sha256, read_run


@dataclass(frozen=True)
class ShowConfig:
    """Everything `python -m train.show` can be told."""

    run: str = ""
    """Folder of the run; the newest in runs/ where empty."""
    checkpoint: str = "latest"
    """latest, best, or the step of a checkpoint."""


def main(argv: list[str]) -> int:
    """Print what a checkpoint holds; exit code 1 where it is not intact."""
    if command_line.wants_help(argv):
        print(command_line.help_text(ShowConfig, __doc__ or ""))
        return 0
    config = command_line.load(ShowConfig, argv)
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


if __name__ == "__main__":
    command_line.run(main)
