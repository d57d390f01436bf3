"""Check servers before anything is loaded: that they answer, and that they are vLLM with the needed endpoints.

Imports nothing heavy. Nothing is sampled: a GET of an endpoint that takes POST is answered with 405 where it exists.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from selfdistill.config.sampler import Address, ServerConfig
from selfdistill.errors import SamplerError
from selfdistill.files.http import SECONDS, Reply, Unusable, first_answer, listed_models

HINTS = {
    "/weight_info": "needs vLLM 0.32 or newer with VLLM_SERVER_DEV_MODE=1",
    "/update_weight_version": "needs vLLM 0.32 or newer with VLLM_SERVER_DEV_MODE=1",
    "/collective_rpc": "needs VLLM_SERVER_DEV_MODE=1",
    "/sleep": "needs VLLM_SERVER_DEV_MODE=1 and --enable-sleep-mode",
    "/v1/load_lora_adapter": "needs VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora",
    "/inference/v1/generate": "needs vLLM 0.32 or newer",
}
"""What to change on a server that does not know a path."""


def check_servers(config: ServerConfig, *, lora: bool, max_tokens: int | None, log: Callable[[str], None]) -> None:
    """Refuse servers that cannot sample for a run. Nothing is tried again: a run begins once a server answers.

    Some that do not answer are told to ``log``, because they get the weights later. ``max_tokens`` is the longest
    completion, if it is known.

    Raises:
        SamplerError: none answers, or one that answers is no vLLM server with the endpoints that the run needs.
    """

    def failure(url: str) -> Unusable | None:
        try:
            _check(url, config, lora=lora, max_tokens=max_tokens)
        except Unusable as unusable:
            return unusable
        return None

    with ThreadPoolExecutor(len(config.urls)) as pool:
        failures = dict(zip(config.urls, pool.map(failure, config.urls), strict=True))
    for url, found in failures.items():
        if found is not None and not found.silent:
            raise SamplerError(f"sampler {url} {found}")
    silent = [f"sampler {url}: {found}" for url, found in failures.items() if found is not None]
    if len(silent) == len(failures):
        raise SamplerError(f"{'; '.join(silent)}: start the servers, or correct sampler.urls")
    for line in silent:
        log(f"{line}; the others sample, and it gets the weights once it answers")


def _check(url: str, config: ServerConfig, *, lora: bool, max_tokens: int | None) -> None:
    """Ask one server for its models, its weights' label and each endpoint that the run needs."""
    authorization = url.authorization if isinstance(url, Address) else ""

    def ask(path: str) -> Reply:
        try:
            return first_answer(url + path, key=authorization, seconds=min(config.timeout, SECONDS))
        except Unusable as unusable:
            if unusable.silent:
                raise
            remedy = "give the address of a server started by vllm serve without --api-key"
            raise Unusable(f"{unusable}: {remedy}") from unusable

    # What answers at all: OpenAI's list of models, which vLLM and its neighbours have.
    answer = ask("/v1/models")
    models = listed_models(answer.document) if answer.ok else None
    if models is None:
        what = f"answers {answer.status} at /v1/models" if not answer.ok else "lists no models at /v1/models"
        remedy = (
            f"leave /v1 away, as in {url.removesuffix('/v1')}"
            if url.endswith("/v1")
            else "give the address of a server started by vllm serve"
        )
        raise Unusable(f"is no vLLM server ({what}): {remedy}")
    owner = next((str(entry["owned_by"]) for entry in models if entry.get("owned_by")), "vllm")
    whose = "" if owner == "vllm" else f" (its models are owned by {owner!r}, not 'vllm')"
    # Each endpoint of the run. 404 alone says that there is none; another refusal may be of this empty request.
    paths = ["/v1/load_lora_adapter"] if lora else ["/weight_info", "/update_weight_version", "/collective_rpc"]
    for path in ("/inference/v1/generate", *paths, *(["/sleep"] if config.sleep else [])):
        if ask(path).status == 404:
            raise Unusable(f"has no {path}{whose}: it {HINTS[path]}")
    # A server whose window cannot hold a completion.
    windows = [entry["max_model_len"] for entry in models if isinstance(entry.get("max_model_len"), int)]
    if windows and max_tokens is not None and max(windows) <= max_tokens:
        raise Unusable(
            f"has a window of {max(windows)} tokens, and sampling.max_tokens is {max_tokens}: start it with a larger "
            "--max-model-len, or lower sampling.max_tokens"
        )
