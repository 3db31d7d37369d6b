"""A start imports nothing large that its first step does not need."""

import subprocess
import sys

import pytest

START = """
import sys
from train.loop import compiler, start
compiler.import_late()
import torch, torch.distributed as dist
from train.config import TrainConfig
from train.loop.batch_step import parallelise
from train.loop.determinism import be_deterministic
from train.loop.optimizer import build_optimizer
from train.ranks.distributed import Ranks
from torch.nn.parallel import DistributedDataParallel

be_deterministic(TrainConfig())
assert torch.are_deterministic_algorithms_enabled()
assert torch.is_deterministic_algorithms_warn_only_enabled()
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
model = torch.nn.Linear(2, 1)
optimizer = build_optimizer(model, TrainConfig())
parallel = parallelise(model, Ranks(0, 2, torch.device("cpu")))
assert isinstance(parallel, DistributedDataParallel)
parallel(torch.ones(1, 2)).sum().backward()
before = model.bias.item()
optimizer.step()
optimizer.zero_grad()
assert abs(before - model.bias.item() - 1e-3) < 1e-6, "Adam's first step is lr"
dist.destroy_process_group()
print("imported", *sys.modules)
import torch.distributed.checkpoint.state_dict_saver
print(type(sys.modules["torch._dynamo"]).__name__)
"""
LATE = {
    "scipy": "scores of a validation",
    "tensorboard": "rank 0's curves",
    "torch.distributed.checkpoint": "a save",
    "torch._inductor": "compiling",
    "sympy": "compiling",
}
REAL = """
import sys, torch
from train.loop import compiler
compiler.import_late()
from torch._dynamo import OptimizedModule
assert sys.modules["torch._dynamo"] is torch._dynamo
assert not isinstance(torch._dynamo, compiler.StandIn)
double = torch.compile(lambda x: 2 * x, backend="eager")
print(double(torch.ones(1)).item())
"""


def run(code: str) -> list[str]:
    """Run code in a fresh interpreter; returns the lines that it prints."""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.splitlines()


def test_the_first_step_imports_nothing_that_comes_later() -> None:
    imported, compiler = run(START)
    assert "torch.optim.adam" in imported.split()
    assert not set(imported.split()) & set(LATE)
    assert compiler == "StandIn", "a save asks for the compiler"


@pytest.mark.repeats
def test_who_asks_for_the_compiler_gets_it() -> None:
    assert run(REAL) == ["2.0"]
