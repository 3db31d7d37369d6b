"""Keep torch from importing its compiler, which Eosin does not use.

torch's optimizers and DDP import torch._dynamo when they first run, only to tell it what not to
compile. That takes a rank two seconds of each start.
"""

import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

COMPILER = "torch._dynamo"


def import_late() -> None:
    """Put a stand-in into the compiler's place, unless it is imported already.

    torch itself must have been imported.
    """
    if COMPILER not in sys.modules:
        sys.modules[COMPILER] = StandIn(COMPILER)


class StandIn(ModuleType):
    """Answers, for code that is not compiled, what torch asks at each start.

    At any other question it gives its place to the compiler itself.
    """

    utils = SimpleNamespace(get_optimize_ddp_mode=lambda: "no_optimization")
    trace_rules = SimpleNamespace(clear_lru_cache=lambda: None)

    @staticmethod
    def disable(function: Any, recursive: bool = True, *, wrapping: bool = True) -> Any:
        """Return the function: it is not compiled anyway."""
        return function

    @staticmethod
    def graph_break(msg: str = "") -> None:
        """Do nothing: there is no graph."""

    def __getattr__(self, name: str) -> Any:
        # inspect looks for the __file__ of all modules; for its parts importlib asks for __path__
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        if sys.modules.get(COMPILER) is self:
            del sys.modules[COMPILER]
        return getattr(importlib.import_module(COMPILER), name)
