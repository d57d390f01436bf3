"""Environments of verifiers from its release 0.4 on: a taskset, and agents that play its tasks.

An agent is a program (a harness) that asks a model over an address. Here that is the conversation of the episode, so
the package's own rollout runs whole: setup, tools, limits, rewards and cleanup.
"""

from __future__ import annotations

import asyncio
import importlib.util
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from selfdistill.config.base import working_folder_on_path
from selfdistill.config.suggest import choices
from selfdistill.config.worlds import VerifiersConfig
from selfdistill.errors import ConfigError, DataError
from selfdistill.tasks.agents.conversation import AskedModel
from selfdistill.tasks.agents.host import shared_host
from selfdistill.tasks.agents.messages import read_messages
from selfdistill.tasks.agents.task import AgentTask
from selfdistill.tasks.frames import errors_of
from selfdistill.tasks.worlds import verifiers_chat
from selfdistill.tasks.worlds.verifiers_env import HELD_OUT, SPLITS, TURNS, VerifiersTask, own_signals
from selfdistill.types import Example, Message, Reply

WITH_CODE = "bash"
"""The harness that the package takes where a taskset names none: it runs the model's commands."""
HERE = "subprocess"
"""The package's runtime on this machine."""
ENDING = 10.0
"""Seconds in which servers of an environment are ended with the process, at most."""


def verifiers_task(config: VerifiersConfig, *, seed: int = 0) -> AgentTask:
    """The task of an environment, in the way of the installed release.

    Raises:
        UserError: the package is missing, or the environment cannot be loaded.
    """
    if importlib.util.find_spec("verifiers") is None:
        raise ConfigError("task.kind 'verifiers' needs the package verifiers: pip install 'selfdistill[verifiers]'")
    return TasksetTask(config, seed=seed) if has_tasksets() else VerifiersTask(config, seed=seed)


def has_tasksets() -> bool:
    """Whether the installed release has tasksets alone. Before 0.4 they are another form, which is not played."""
    return importlib.util.find_spec("verifiers.envs") is None


class TasksetTask(AgentTask):
    """Tasks and rewards of a taskset of verifiers, played by its agent.

    Args:
        config: the task's table; ``env`` is the taskset's id, and ``arguments`` is the package's table ``[env]``.
        seed: not used; a taskset has its own tasks.

    Raises:
        UserError: the environment cannot be loaded, has several agents that the model would play, or lets the model run
            commands on this machine.
    """

    name = "verifiers"

    def __init__(self, config: VerifiersConfig, *, seed: int = 0) -> None:
        import verifiers.v1

        self.config, self.seconds, self.replayable = config, config.seconds, config.replayable
        self._verifiers: Any = verifiers.v1
        self._label = f"task.env {config.env!r}"
        with errors_of(self._label), own_signals(), working_folder_on_path():
            verifiers_chat.register()
            self.env, self._seat, self.max_turns = self._loaded()
        self._tasks: dict[str, Any] = {}
        self._examples: dict[str, list[Example]] = {}
        self._serving: asyncio.Task[None] | None = None

    def _loaded(self) -> tuple[Any, str, int]:
        """The environment, the name of the agent that the model plays, and the most turns of an episode."""
        from pydantic import ValidationError
        from verifiers.v1.utils import loaders

        module = loaders.import_taskset(self.config.env)
        if hasattr(module, "load_environment") and not hasattr(module, "__all__"):
            raise ConfigError(
                f"{self._label} has load_environment(), which releases of verifiers from 0.4 on do not call: "
                "pip install 'verifiers<0.4'"
            )
        given = dict(self.config.arguments)
        taskset = given.get("taskset") or {}
        given["taskset"] = {**taskset, "id": self.config.env}
        kind = loaders.env_config_type(self.config.env, given.get("id") or "")
        agents = [
            name
            for name, declared in kind.model_fields.items()
            if isinstance(declared.default, self._verifiers.AgentConfig)
        ]
        for name in agents:
            given[name] = self._agent(dict(given.get(name) or {}), kind.model_fields[name].default)
        try:
            config = loaders.resolve_env_config(given)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, ("task.arguments", *first["loc"])))
            raise ConfigError(f"{self._label}: {where}: {first['msg']}") from error
        played = [name for name in agents if getattr(config, name).client is None]
        if len(played) != 1:
            raise ConfigError(
                f"{self._label} has {len(played) or 'no'} agents that the model would play"
                + (f" ({', '.join(played)}), and an episode is one conversation: " if played else ": ")
                + "name another client for all but one in task.arguments"
            )
        agent = getattr(config, played[0])
        harness = agent.harness.id if agent.harness is not None else loaders.default_harness_id(self.config.env)
        if agent.runtime.type == HERE and loaders.harness_class(harness).EXECUTES_CODE:
            raise ConfigError(
                f"{self._label}: its harness {harness!r} lets the model run commands on this machine: name a runtime "
                f"in a container, for example arguments = {{ {played[0]} = {{ runtime = {{ type = 'docker' }} }} }}"
            )
        return loaders.load_environment(config), played[0], agent.max_turns

    def _agent(self, given: dict[str, Any], declared: Any) -> dict[str, Any]:
        """The table of an agent. It calls tools in this process, unless the config or the environment says otherwise.

        Its limit of turns is the package's own, so that an episode that reaches it is judged.
        """
        from verifiers.v1.utils import loaders

        unnamed = "harness" not in given and declared.harness is None
        if unnamed and loaders.default_harness_id(self.config.env) == WITH_CODE:
            given["harness"] = {"id": verifiers_chat.ID}
        if "runtime" not in given and "runtime" not in declared.model_fields_set:
            given["runtime"] = {"type": HERE}
        own = given.get("max_turns") or declared.max_turns or self.config.turns or TURNS
        return {**given, "max_turns": min(own, self.config.turns or own)}

    def examples(self, split: str) -> Sequence[Example]:
        """The tasks of the taskset, of which two of ten are held out. They are read when they are first asked for.

        Raises:
            UserError: there are none, the taskset raises, or a prompt holds something else than texts.
        """
        if split not in SPLITS:
            raise ConfigError(f"unknown split {split!r}; {choices(split, SPLITS)}")
        if not self._examples:
            with errors_of(self._label), own_signals():
                self._examples = self._read()
        if not self._examples[split]:
            raise DataError(f"{self._label} has no tasks for {split}: of ten tasks two are held out")
        return self._examples[split]

    def _read(self) -> dict[str, list[Example]]:
        held_out = {number: name for name, number in HELD_OUT.items()}
        found: dict[str, list[Example]] = {split: [] for split in SPLITS}
        sizes = {split: getattr(self.config, split) for split in SPLITS}
        for number, task in enumerate(self.env.taskset):
            # A taskset may have no end.
            if all(len(found[split]) >= sizes[split] for split in SPLITS):
                break
            split = held_out.get(number % 10, "train")
            if len(found[split]) < sizes[split]:
                example = self._example(number, task.data)
                self._tasks[example.id] = task
                found[split].append(example)
        return found

    def _example(self, number: int, data: Any) -> Example:
        row: Mapping[str, Any] = data.model_dump(mode="json")
        prompt = data.prompt if isinstance(data.prompt, str) else [one.model_dump() for one in data.prompt or ()]
        # A conversation that the environment opens has no prompt yet.
        prompt = prompt or data.description or data.name or f"Task {number}"
        system = (Message("system", data.system_prompt),) if data.system_prompt else ()
        said = (Message("user", prompt),) if isinstance(prompt, str) else read_messages(prompt)
        answer = row.get("answer")
        answer = str(answer) if isinstance(answer, str | int | float) and not isinstance(answer, bool) else ""
        fields = {"answer": answer, "solution": answer} if answer else {}
        return Example(f"verifiers-{self.config.env}-{number}", (*system, *said), fields, dict(row))

    async def play(self, example: Example, model: AskedModel) -> Reply:
        """The package's episode of a task, with its rewards."""
        host = shared_host()
        await self._served()
        client = self._verifiers.EvalClientConfig(base_url=f"{host.address}/v1", api_key_var="NO_KEY_IS_NEEDED")
        context = self._verifiers.ModelContext(model=model.name, client=client)
        episode = await self.env.run_episode(
            self._tasks[example.id], context, on_trace=lambda trace: host.name(model.conversation, trace.id)
        )
        errors = [*episode.errors, *(error for trace in episode.traces for error in trace.errors)]
        if not episode.ok or errors:
            raise RuntimeError(f"{errors[0].type}: {errors[0].message}" if errors else "the episode is not complete")
        reward = float(sum(trace.reward for trace in episode.traces if trace.agent.name == self._seat))
        return Reply(done=True, reward=reward, success=reward >= self.config.success)

    async def _served(self) -> None:
        """Start what all episodes share, such as servers of tools; once, and until the process ends."""
        if self._serving is None:
            stop = asyncio.Event()
            self._ready = asyncio.Event()
            self._serving = asyncio.create_task(_serve(self.env, self._ready, stop))
            weakref.finalize(self, _end, asyncio.get_running_loop(), self._serving, stop)
        ready = asyncio.create_task(self._ready.wait())
        try:
            await asyncio.wait({ready, self._serving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        if self._serving.done():
            # What it raised, it raises for every episode.
            self._serving.result()


async def _serve(env: Any, ready: asyncio.Event, stop: asyncio.Event) -> None:
    # One task opens and closes, as the package's servers ask.
    async with env.serving():
        ready.set()
        await stop.wait()


def _end(loop: asyncio.AbstractEventLoop, serving: asyncio.Task[None], stop: asyncio.Event) -> None:
    """Let servers end; called when a task is forgotten, and at the end of the process."""
    ended: Future[None] = Future()

    def finish() -> None:
        stop.set()
        serving.add_done_callback(lambda _: ended.set_result(None))

    loop.call_soon_threadsafe(finish)
    with suppress(TimeoutError):
        ended.result(ENDING)
