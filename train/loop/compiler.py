"""Keep torch from importing its compiler, which Eosin does not use.

torch's optimizers and DDP import torch._dynamo when they first run, only to tell it what not to
compile. That takes a rank two seconds of each start.
"""

import importlib
import sys
from types import ModuleType
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

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.utils = Part(self, "utils", get_optimize_ddp_mode=lambda: "no_optimization")
        self.trace_rules = Part(self, "trace_rules", clear_lru_cache=lambda: None)

    @staticmethod
    def disable(function: Any, *given: Any, **options: Any) -> Any:
        """Return the function: it is not compiled anyway."""
        return function

    @staticmethod
    def graph_break(msg: str = "") -> None:
        """Do nothing: there is no graph."""

    def __getattr__(self, name: str) -> Any:
        # inspect looks for the __file__ of all modules; for its parts importlib asks for __path__
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        return getattr(self.real(), name)

    def real(self) -> ModuleType:
        """Give the place to the compiler itself, and return it."""
        if sys.modules.get(COMPILER) is self:
            del sys.modules[COMPILER]
        return importlib.import_module(COMPILER)


class Part:
    """A module of the compiler's, of which a start asks little."""

    def __init__(self, whole: StandIn, name: str, **answers: Any) -> None:
        self.__dict__.update(answers, whole=whole, name=name)

    def __getattr__(self, asked: str) -> Any:
        return getattr(getattr(self.whole.real(), self.name), asked)
