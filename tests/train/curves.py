"""The curves of a run as TensorBoard shows them."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def read_curve(run: Path, name: str) -> list[tuple[int, float]]:
    """(step, value) of a curve in TensorBoard's files; empty where it has no point."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    known = name in events.Tags()["scalars"]
    return [(event.step, event.value) for event in events.Scalars(name)] if known else []
