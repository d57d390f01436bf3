"""A Python interpreter as a tool: programs that a model writes run in the sandbox."""

from __future__ import annotations

from selfdistill.errors import ConfigError
from selfdistill.files.text import shortened
from selfdistill.sandbox.sandbox import Limits, Outcome, Sandbox
from selfdistill.tasks.tools.loop import LONGEST_ERROR, ToolError


class ProgramFailed(ToolError):
    """What a program printed before it failed, and why it failed."""


class PythonTool:
    """A Python interpreter for :meth:`ToolLoop.tools`, as its method :meth:`python`.

    Every program runs in a process of its own, without network and files, under limits. Several episodes may share one
    interpreter: no program sees what another one did.

    Args:
        limits: the limits of each program; None is those of tests of programs: 5 seconds of a processor, 512 MiB.
        workers: programs that run at once; others wait.
        characters: characters of output that the model is told, at most. What is left out is counted in their place.

    Raises:
        UserError: no isolation works here, and model-written code is not run without one.
        ConfigError: ``workers`` or ``characters`` is below 1.
    """

    def __init__(self, limits: Limits | None = None, *, workers: int = 2, characters: int = 2000) -> None:
        if min(workers, characters) < 1:
            raise ConfigError(f"PythonTool needs at least 1 worker and 1 character, not {workers} and {characters}")
        self.characters = characters
        self._sandbox = Sandbox(limits, workers=workers)

    def python(self, code: str) -> str:
        """Run a Python program and return what it prints. Every program starts anew."""
        outcome = self._sandbox.run(code)
        printed = shortened(outcome.output.strip(), self.characters)
        if outcome.clean:
            return printed or "the program prints nothing"
        raise ProgramFailed(
            "\n".join(filter(None, [shortened(_why(outcome), LONGEST_ERROR), printed and f"It printed:\n{printed}"]))
        )


def _why(outcome: Outcome) -> str:
    """The last line of a traceback, or the limit that was reached."""
    if outcome.end == "crash":
        return "the interpreter crashed"
    if outcome.end != "exit":
        return f"the program reached its limit of {outcome.end}"
    lines = outcome.errors.strip().splitlines()
    return lines[-1] if lines else f"the program ended with code {outcome.code}"
