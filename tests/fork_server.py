"""Processes forked from one that has imported torch: no seconds of imports for each.

`Server` starts this file as a process of its own, so that whatever the tests have imported, started
or patched is not in the processes that it forks.
"""

import importlib
import json
import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

# torch itself imports _dynamo late, at the first step
PRELOAD = ("train.loop.start", "train.evaluation.report", "torch._dynamo", "tests.faults.rank")


class Server:
    """Forks processes on request."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fork_server"],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdin
        assert self.process.stdout
        self.requests, self.answers = self.process.stdin, self.process.stdout

    def start(self, function: str, *arguments: Any) -> int:
        """Call "module:function" in a process of its own; returns its pid. Arguments are JSON's."""
        return int(self.ask({"function": function, "arguments": arguments}))

    def exit_code(self, pid: int) -> int | None:
        """Of a process started here: None while it runs, minus the signal that ended it."""
        code = self.ask({"pid": pid})
        return None if code is None else int(code)

    def ask(self, request: dict[str, Any]) -> Any:
        """Send a request and return the answer."""
        print(json.dumps(request), file=self.requests, flush=True)
        return json.loads(self.answers.readline())

    def close(self) -> None:
        """End the server, and what it has started."""
        self.requests.close()
        self.process.wait()
        self.answers.close()


def serve() -> None:
    """Answer requests until there are no more."""
    for module in PRELOAD:
        importlib.import_module(module)
    context = multiprocessing.get_context("fork")
    processes = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "pid" in request:
            answer = processes[request["pid"]].exitcode
        else:
            process = context.Process(target=call, args=(request["function"], request["arguments"]))
            process.start()
            assert process.pid
            answer = process.pid
            processes[process.pid] = process
        print(json.dumps(answer), flush=True)
    for process in processes.values():
        process.kill()


def call(function: str, arguments: list[Any]) -> None:
    """Call a function by its name."""
    module, _, name = function.partition(":")
    getattr(importlib.import_module(module), name)(*arguments)


if __name__ == "__main__":
    serve()
