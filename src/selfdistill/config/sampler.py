"""The ``[sampler]`` section: which engine samples the completions, and how."""

from __future__ import annotations

import base64
import json
import urllib.parse
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidatorFunctionWrapHandler, field_validator, model_validator

from selfdistill.config.sections import MAY_CHANGE, STAYS, Strict
from selfdistill.errors import ConfigError


class HFConfig(Strict):
    """Sample with the learner's own model: no other engine, no copy of the weights."""

    kind: Literal["hf"] = "hf"


class EngineConfig(Strict):
    """Keys of every engine that has its own copy of the weights."""

    model_config = ConfigDict(json_schema_extra=MAY_CHANGE)

    importance_cap: float = Field(
        2.0,
        ge=1,
        description="Cap of a token's importance weight p_learner / p_sampler.",
        json_schema_extra=STAYS,
    )
    overlap: bool = Field(
        False,
        description="Sample the next step's completions with the weights before this step's update, during it.",
        json_schema_extra=STAYS,
    )
    max_staleness: int = Field(
        1, ge=0, description="Updates that completions may be older than the weights that learn from them."
    )
    sleep: bool = Field(False, description="Free the engine's GPU memory while the learner trains.")
    folder: str | None = Field(
        None,
        description="Where weights are written for the engine, seen under this path by it too; unset: a folder "
        "'weights' in the run's own for servers, and none for an engine of the run, which is sent them through memory.",
    )

    @model_validator(mode="after")
    def _overlap_is_stale(self) -> EngineConfig:
        if self.overlap and self.max_staleness < 1:
            raise ValueError("overlap learns from completions that are one update old: max_staleness must be 1 or more")
        if self.overlap and self.sleep:
            raise ValueError("overlap samples while the learner trains, and sleep forbids that: choose one of them")
        return self


class VLLMConfig(EngineConfig):
    """vLLM engines that the run starts and stops itself: beside each rank's model, or as servers of their own."""

    kind: Literal["vllm"] = Field(json_schema_extra=STAYS)
    gpu_memory_utilization: float = Field(
        0.4, gt=0, le=1, description="Share of the GPU's memory (on a CPU: of the machine's) for the engine."
    )
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs over which the engine's weights are spread.")
    max_model_len: int | None = Field(
        None, ge=1, description="Longest prompt and completion together; unset: the model's window."
    )
    max_num_seqs: int = Field(256, ge=1, description="Completions decoded at once.")
    enforce_eager: bool = Field(False, description="Compile nothing: a quicker start, slower decoding.")
    servers: int | None = Field(
        None,
        ge=1,
        description="Start so many vLLM servers, each on a GPU that trains nothing, and end them with the run; unset: "
        "an engine on the GPU of each rank.",
    )
    devices: list[Annotated[int, Field(ge=0)]] | None = Field(
        None,
        description="GPUs of the servers in order, as many for each as tensor_parallel_size; unset: those after the "
        "ranks' own.",
    )
    timeout: float = Field(
        1800.0,
        gt=0,
        description="Seconds that one answer of such a server may take, longer than the slowest completion; after that "
        "the server counts as hanging.",
    )

    @model_validator(mode="after")
    def _servers_alone_have_devices_and_a_timeout(self) -> VLLMConfig:
        if self.servers is None and self.timeout != type(self).model_fields["timeout"].default:
            raise ValueError("timeout is that of servers: set servers too, or leave timeout out")
        if self.devices is None:
            return self
        if self.servers is None:
            raise ValueError("devices are those of servers: set servers too, or leave devices out")
        needed = self.servers * self.tensor_parallel_size
        if len(self.devices) != needed:
            raise ValueError(
                f"devices names {len(self.devices)} GPUs, and servers = {self.servers} with tensor_parallel_size = "
                f"{self.tensor_parallel_size} need {needed}"
            )
        return self


class ServerConfig(EngineConfig):
    """vLLM servers that were started by hand; the run sends them requests and syncs the weights after every update."""

    kind: Literal["server"] = Field(json_schema_extra=STAYS)
    urls: list[str] = Field(min_length=1, description="Servers, for example ['http://127.0.0.1:8000'].")
    model: str | None = Field(
        None,
        description="Name of the model on servers that have its weights already, in commands that train nothing; "
        "unset: the first that they list.",
    )
    worker_extension: bool = Field(
        True,
        description="Whether they run with --worker-extension-cls selfdistill.sampling.vllm_worker.WorkerExtension; "
        "false: vLLM's own reload_weights, which leaves a tied head behind on CPUs.",
    )
    timeout: float = Field(600.0, gt=0, description="Seconds to wait for one answer.")
    retries: int = Field(5, ge=0, description="How often failed requests are retried.")
    wait: float = Field(
        5.0, ge=0, description="Seconds before the first retry where no server is left; doubled each time."
    )
    concurrency: int = Field(64, ge=1, description="Requests that one server has at a time.")

    @field_validator("urls", mode="wrap")
    @classmethod
    def _whole_urls(cls, given: Any, check: ValidatorFunctionWrapHandler) -> list[str]:
        secrets = {str(url): url.authorization for url in given if isinstance(url, Address)} if given else {}
        addresses = [Address.read(url) for url in check(given)]
        for url in addresses:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"a server is an http:// or https:// address, {str(url)!r} is not")
            if set("?#") & set(url):
                # Paths are appended, and a key in a query would be stored with the config.
                raise ValueError("a server's address has no ? and no #; a password goes before its host, name:word@")
            url.authorization = url.authorization or secrets.get(str(url), "")
        return list(addresses)


class Address(str):
    """A server's URL without name and password. They are kept in ``authorization`` and never shown or stored."""

    authorization: str = ""
    """The value of the ``Authorization`` header; empty if the URL had no password."""

    @classmethod
    def read(cls, url: str) -> Address:
        """The address in a URL that may hold ``name:password@``."""
        scheme, separator, location = url.rstrip("/").partition("://")
        # Split at the last @ before the path, because a password may contain others.
        host, slash, path = location.partition("/")
        login, _, host = host.rpartition("@")
        address = cls(f"{scheme}{separator}{host}{slash}{path}" if separator else url)
        if login:
            raw = ":".join(urllib.parse.unquote(part) for part in login.split(":", 1))
            address.authorization = f"Basic {base64.b64encode(raw.encode()).decode()}"
        return address


def engine_overrides(engine: str, present: object) -> list[str]:
    """The overrides that make ``hf``, ``vllm`` or servers the engine of a config whose ``[sampler]`` is ``present``.

    A table of the same kind keeps its other keys. Several servers are written with commas between them.

    Raises:
        ConfigError: the engine is none of these.
    """
    kind = engine if engine in ("hf", "vllm") else "server"
    urls = [url.strip() for url in engine.split(",")]
    if kind == "server" and not all("://" in url for url in urls):
        raise ConfigError(
            f"--engine {engine!r}: write hf, vllm, or the address of a server, such as http://127.0.0.1:8000"
        )
    table = {} if present is None else present
    same = isinstance(table, Mapping) and table.get("kind", "hf") == kind
    servers = json.dumps(urls, ensure_ascii=False)
    if kind == "server":
        return [f"sampler.urls={servers}" if same else f'sampler={{kind="server",urls={servers}}}']
    return [] if same else [f'sampler={{kind="{kind}"}}']


SamplerConfig = Annotated[
    HFConfig | VLLMConfig | ServerConfig,
    Field(discriminator="kind", description="Which engine samples, in training and everywhere else."),
]
