"""The policy: loading (full or LoRA), hidden states of scored tokens, the sliced head, saving."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selfdistill.config.bits import adapter_below
from selfdistill.config.sections import LoraConfig, ParallelConfig
from selfdistill.contexts.chat import Chat
from selfdistill.distributed.fsdp import (
    checkpoint_activations,
    copy_into,
    full_state_dict,
    is_sharded,
    release,
    shard,
    unsharded,
)
from selfdistill.errors import ModelError
from selfdistill.models.architecture import cache_argument, decoder_of, limit_time_steps
from selfdistill.models.attention import mask_of_nothing
from selfdistill.models.check import (
    allow_packing,
    check_head,
    check_sampling,
    check_scoring,
    check_weights,
    probe,
    runs,
)
from selfdistill.models.gguf import gguf_quantisation, quantised_as
from selfdistill.models.head import HeadInput, LossInputs, LossOutput, score_head_input, sliced_loss
from selfdistill.models.loading import Placed, find_model, read_model, read_tokenizer, stop_ids, window_of
from selfdistill.models.lora import STUDENT_ADAPTER, add_lora
from selfdistill.models.masters import Masters, widen
from selfdistill.models.products import quick_products
from selfdistill.models.quantised import check_saved, kept_in
from selfdistill.types import Scores, SequenceBatch

ADAPTER = "adapter"
"""Subfolder for the adapter of a model directory that holds merged weights."""


class Policy(nn.Module):
    """A causal language model that returns the hidden states of scored tokens for the sliced head."""

    def __init__(self, model: Any, *, vocab_size: int) -> None:
        super().__init__()
        self.model = model
        self.vocab_size = vocab_size
        self.device: torch.device = next(model.parameters()).device
        """Device of the forward passes. Offloaded weights are on the CPU between them."""
        self.padded_vocab_size: int | None = None
        """Size of the log-probabilities' last axis if it must match another model's; None: the head's own size."""
        self.scale = 1.0
        self.cap: float | None = None
        """Scale and soft cap of the logits: see :class:`~selfdistill.models.head.HeadInput`."""
        self.pads = True
        """Whether prompts of unequal length may be decoded in one batch with left padding."""
        self.continues = False
        """Whether rows may leave a batch with what was read of them and go on in another, as turns of episodes do."""
        self.shares = False
        """Whether rows may be decoded from prompts that are kept once: see :class:`SharedPrompts`."""
        self.packs = False
        """Whether batches may be packed without padding: attention alone mixes the model's tokens."""
        self.on_adapter = False
        """Whether the trained adapter's base is itself a base with a merged adapter, which exists in memory only."""
        self.compiled = False
        """Whether the functions of the logits are compiled."""
        self.gguf_quantisation: str | None = None
        """How the weights were quantised before they were converted from a GGUF file, for example ``"Q4_1"``."""
        self.quantisation: str | None = None
        """How the linear layers of the base are kept in fewer bits, ``"nf4"``; None if they are not."""
        self.masters = Masters()
        """float32 master weights of the trained bf16 weights."""
        self.dtype: torch.dtype | None = None
        """The model's number type if its shards are kept in float32; else None."""

    @property
    def causal_lm(self) -> Any:
        """The transformers model, adapters included in its layers but not wrapped around it."""
        return self.model.get_base_model() if self.is_lora else self.model

    @property
    def decoder(self) -> Any:
        """The transformers model below its head."""
        return decoder_of(self.causal_lm)

    @cached_property
    def cache_argument(self) -> str:
        """Name of the key-value cache among the arguments of the decoder's forward."""
        return cache_argument(type(self.decoder))

    @property
    def is_lora(self) -> bool:
        """Whether only an adapter is trained."""
        return getattr(self.model, "peft_config", None) is not None

    @property
    def quantised(self) -> str | None:
        """How the weights were quantised in a GGUF file, or here; None if they were not."""
        return quantised_as(self.gguf_quantisation, self.quantisation)

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder's layers.

        Raises:
            ModelError: the decoder has no list of layers.
        """
        for child in self.decoder.children():
            if isinstance(child, nn.ModuleList):
                return list(child)
        raise ModelError(f"{type(self.causal_lm).__name__} has no list of layers: they cannot be sharded or recomputed")

    def head_input(self, batch: SequenceBatch) -> HeadInput:
        """Hidden states [N, D] of the batch's scored tokens, with the head: one forward pass, packed or padded."""
        batch = batch.to(self.device)
        layout: dict[str, Any] = {}
        if batch.layout is not None:
            mask = mask_of_nothing(self.device)
            layout = {"position_ids": batch.position_BL, "attention_mask": mask, "layout": batch.layout}
        with quick_products(self.model):
            states_BLD = self.decoder(input_ids=batch.ids_BL, use_cache=False, **layout).last_hidden_state
        # One flat index: the backward of a two-dimensional index adds the gradients one by one.
        index_N = batch.row_N * states_BLD.shape[1] + batch.column_N
        return self.head_of(states_BLD.flatten(0, 1).index_select(0, index_N))

    def head_of(self, hidden_ND: Tensor) -> HeadInput:
        """Combine hidden states with the LM head."""
        head = self.causal_lm.get_output_embeddings()
        bias = getattr(head, "bias", None)
        # Mamba keeps its residuals in float32, so its last hidden states may be wider than the head's weights.
        hidden_ND = hidden_ND.to(head.weight.dtype)
        return HeadInput(
            hidden_ND,
            head.weight,
            bias,
            self.vocab_size,
            self.padded_vocab_size,
            self.compiled,
            self.scale,
            self.cap,
        )

    def forward(self, batch: SequenceBatch, job: LossInputs) -> LossOutput:
        """The loss over the batch. It is the module's ``forward`` so that FSDP and DDP hooks see the whole pass."""
        return sliced_loss(self.head_input(batch), job)

    @torch.no_grad()
    def score(self, batch: SequenceBatch, *, max_logits_per_chunk: int, temperature: float = 1.0) -> Scores:
        """Log-probability and entropy of every scored token at a temperature, without gradient."""
        head_input = replace(self.head_input(batch), temperature=temperature)
        return score_head_input(head_input, batch.target_N.to(self.device), max_logits_per_chunk=max_logits_per_chunk)

    def next_token(
        self, ids_BL: Tensor, mask_BL: Tensor | None, position_BL: Tensor, cache: Any, prompts: Any = None
    ) -> Tensor:
        """Log-probabilities [B, V] of the next token after these ids. Appends the ids to the cache.

        ``prompts``, a :class:`SharedPrompts`, stand before what the cache has; a row then has one id and no mask.
        """
        mask = mask_BL.long() if mask_BL is not None else None
        before: dict[str, Any] = {self.cache_argument: cache}
        if prompts is not None:
            mask, before["prompts"] = mask_of_nothing(self.device), prompts
        output = self.decoder(input_ids=ids_BL, attention_mask=mask, position_ids=position_BL, use_cache=True, **before)
        return self.head_of(output.last_hidden_state[:, -1]).logprobs(slice(None))

    def place(self, parallel: ParallelConfig, device: torch.device) -> None:
        """Move the policy to a device, sharded over the ranks or whole, as ``parallel`` says.

        From then on, parameters that require a gradient are kept in float32 or wider, whatever type the model computes
        with.

        Raises:
            ModelError: the layers are needed, and the decoder has no list of layers.
        """
        self.device = device
        if parallel.activation_checkpointing:
            checkpoint_activations(self.layers, quick_products)
        if not parallel.sharded:
            self.to(device)
            self.masters = Masters(self.model)
            return
        self.dtype = widen(self.model)
        weights = next(self.model.parameters()).dtype
        shard(
            self,
            self.layers,
            parallel,
            device=device,
            dtype=weights,
            computes=self.dtype,
            forward_methods=("head_input", "score", "next_token"),
        )
        with self.unsharded():  # FSDP2 sets up its module hierarchy in the root's first forward pass
            pass

    @contextmanager
    def unsharded(self) -> Iterator[None]:
        """Keep all weights whole on this rank, so that each rank may run its own number of forward passes."""
        with unsharded(self, lambda: self.head_input(probe(self.device))):
            yield

    @property
    def sharded(self) -> bool:
        """Whether each rank holds shards of the weights. FSDP2 then sums the gradients over ranks itself."""
        return is_sharded(self)

    def release(self) -> None:
        """Reshard weights after a forward pass without a backward, which leaves them unsharded."""
        release(self)

    def kept(self) -> dict[str, nn.Parameter]:
        """All parameters by name, with the masters instead of the weights that compute."""
        return {**dict(self.model.named_parameters()), **self.masters.weights}

    def trained(self) -> dict[str, nn.Parameter]:
        """Parameters that the optimiser updates, by name, in a stable order."""
        return {name: parameter for name, parameter in self.kept().items() if parameter.requires_grad}

    def trainable(self) -> list[nn.Parameter]:
        """Parameters that the optimiser updates, in a stable order."""
        return list(self.trained().values())

    def refresh(self) -> None:
        """Copy the masters to the weights that compute. Call it after every change of the masters."""
        self.masters.refresh()


def load_policy(
    path: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
    lora: LoraConfig | None = None,
    seed: int = 0,
    sampled: bool = True,
    quantisation: str | None = None,
) -> tuple[Policy, Chat]:
    """Load a model directory, a shipped model or a hub id with its tokenizer, and check that they fit each other.

    A directory that holds an adapter loads its base model and the adapter. With ``sampled`` False the model is only
    checked for scoring, and need not decode. ``quantisation`` quantises the linear layers below an adapter (``"nf4"``).

    Raises:
        ModelError: one sentence says what is wrong and what would be right.
    """
    source = find_model(path)
    folder = Path(source)
    on_adapter = lora is not None and (folder / "adapter_config.json").is_file()
    if on_adapter and quantisation is not None:
        raise ModelError(adapter_below(path))
    model = read_model(source, path, Placed(dtype, quantisation, device))
    tokenizer = read_tokenizer(path)
    rows = model.get_input_embeddings().weight.shape[0]
    # Not len(tokenizer): if ids have gaps, the largest id exceeds their number.
    ids = max(tokenizer.get_vocab().values(), default=-1) + 1
    if ids > rows:
        raise ModelError(
            f"the tokenizer of {path} has ids up to {ids - 1} but the model embeds only {rows}: "
            "they do not belong together"
        )
    chat = Chat(tokenizer, stop_ids=stop_ids(model, tokenizer), window=window_of(model), name=path)
    if lora is not None:
        model = add_lora(model, lora, path, seed)
    limit_time_steps(model)
    policy = Policy(model.to(device), vocab_size=ids).eval()
    policy.gguf_quantisation, policy.quantisation = gguf_quantisation(folder), kept_in(model)
    policy.on_adapter = on_adapter
    check_weights(policy, path)
    with runs(policy, path):
        check_head(policy, path)
        allow_packing(policy)
        rounding = check_scoring(policy, path)
        if sampled:
            check_sampling(policy, path, rounding=rounding)
    return policy, chat


def load_external(path: str, student: Policy, chat: Chat, **options: Any) -> Policy:
    """Load another model as a teacher of ``student``, without gradient. ``options`` are those of :func:`load_policy`.

    Raises:
        ModelError: it cannot be loaded, its vocabulary differs (names the first such token), or its window is shorter.
    """
    teacher, teacher_chat = load_policy(path, sampled=False, **options)
    student_vocab, teacher_vocab = chat.tokenizer.get_vocab(), teacher_chat.tokenizer.get_vocab()
    for token, number in sorted(student_vocab.items(), key=lambda item: item[1]):
        if teacher_vocab.get(token) != number:
            raise ModelError(
                f"external teacher {path} has another vocabulary than {chat.name}: token {token!r} is "
                f"{teacher_vocab.get(token, 'absent')} there and {number} here; a teacher must share every token"
            )
    if len(teacher_vocab) != len(student_vocab):
        extra = min(set(teacher_vocab) - set(student_vocab), key=teacher_vocab.__getitem__)
        raise ModelError(f"external teacher {path} has a token that {chat.name} lacks: {extra!r}")
    if teacher_chat.window < chat.window:
        raise ModelError(
            f"external teacher {path} has a window of {teacher_chat.window}, {chat.name} one of {chat.window}"
        )
    teacher.padded_vocab_size = student.causal_lm.get_output_embeddings().weight.shape[0]
    teacher.compiled = student.compiled
    return teacher.requires_grad_(False)


def save_policy(
    policy: Policy,
    chat: Chat,
    folder: Path,
    *,
    writes: bool = True,
    adapter_only: bool = False,
    adapter: str = STUDENT_ADAPTER,
) -> None:
    """Write a directory that :func:`load_policy` and transformers can load: full weights, or only the adapter.

    An adapter trained on top of another adapter has no base directory that transformers and peft would load correctly.
    It is saved merged, as full weights, and also by itself in the subfolder :data:`ADAPTER` for a resume.
    ``adapter_only`` leaves out the merged weights; ``adapter`` names another one than the student's. Every rank must
    call; only the rank with ``writes`` writes.

    Raises:
        ModelError: the weights are quantised and there is no adapter.
    """
    check_saved(policy, chat.name)
    state = full_state_dict(policy.model, keep=writes, dtype=policy.dtype) if policy.sharded else None
    if not writes:
        return
    folder.mkdir(parents=True, exist_ok=True)
    if policy.is_lora:
        merged = policy.on_adapter and not adapter_only
        adapter_folder = folder / ADAPTER if merged else folder
        # Embeddings are never trained with an adapter. Else peft would ask the hub for the base's config.
        policy.model.save_pretrained(
            adapter_folder, selected_adapters=[adapter], save_embedding_layers=False, state_dict=state
        )
        if adapter != STUDENT_ADAPTER:
            # peft writes any other adapter into a subfolder of its name.
            for path in (adapter_folder / adapter).iterdir():
                path.rename(adapter_folder / path.name)
            (adapter_folder / adapter).rmdir()
        if merged:
            # Merge from the files: merging in memory and undoing it would round the base's weights.
            dtype = policy.dtype or next(policy.causal_lm.parameters()).dtype
            read_model(str(adapter_folder), str(adapter_folder), Placed(dtype)).save_pretrained(folder)
    else:
        policy.model.save_pretrained(folder, state_dict=state)
        if policy.dtype is not None:
            # save_pretrained wrote the dtype of the shards, and loaders use it as their default.
            policy.model.config.dtype = policy.dtype
            policy.model.config.save_pretrained(folder)
    chat.tokenizer.save_pretrained(folder)


def load_weights(policy: Policy, folder: Path) -> None:
    """Load the weights that :func:`save_policy` wrote, in the number type that it wrote, sharded or not."""
    if policy.is_lora:
        from safetensors.torch import load_file

        stored = load_file((folder / ADAPTER if policy.on_adapter else folder) / "adapter_model.safetensors")
        for name, parameter in policy.model.named_parameters():
            if f".{STUDENT_ADAPTER}." in name:
                copy_into(parameter, stored[name.replace(f".{STUDENT_ADAPTER}.", ".")])
        return
    from transformers import AutoModelForCausalLM

    parameters = policy.kept()
    state = AutoModelForCausalLM.from_pretrained(folder, dtype=next(iter(parameters.values())).dtype).state_dict()
    for name, value in {**policy.model.state_dict(keep_vars=True), **parameters}.items():
        copy_into(value, state[name])
    policy.refresh()


@torch.no_grad()
def fingerprint(policy: Policy) -> str:
    """A short hash of the weights. A resume compares it to check that it starts from the same weights."""
    digest = hashlib.sha256()
    for name, parameter in policy.model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {float(parameter.double().sum())!r}\n".encode())
    return digest.hexdigest()[:16]


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
"""Number types of models, by their names in a config."""


def parse_dtype(name: str) -> torch.dtype:
    """One of :data:`DTYPES`."""
    return DTYPES[name]
