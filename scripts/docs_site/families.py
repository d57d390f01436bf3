"""Write the table of families in docs/models.md: the behaviour of replicas with random weights when they are loaded.

    PYTHONPATH=scripts:tests python -m docs_site.families

The text between ``<!-- families -->`` and ``<!-- end families -->`` is generated; the rest of the page stays as it is.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import torch

from selfdistill.config.sections import LoraConfig
from selfdistill.contexts.thinking import MARKS
from selfdistill.errors import ModelError
from selfdistill.models.attention import obstacle
from selfdistill.models.policy import Policy, load_policy
from selfdistill.tasks.tools.task import chat_syntax
from support.families import CURRENT, REFUSED, SAMPLED, TOWERS, save_current, saved
from support.tool_templates import FAMILIES as FAMILY_TEMPLATES
from support.tool_templates import TEMPLATES, chat_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
HEADER = ("family", "class", "loads", "packs", "LoRA", "thinking", "tool calls", "notes")
THINKING = {
    "Qwen3": "<think>",
    "Qwen3-MoE": "<think>",
    "Qwen3.5": "<think>",
    "Qwen3.5-MoE": "<think>",
    "Qwen3-Next": "<think>",
    "Gemma-4": "<|channel>thought",
    "GPT-OSS": "<|channel|>analysis<|message|>",
    "OLMo-3": "<think>",
    "SmolLM3": "<think>",
    "GLM-4-MoE": "<think>",
    "DeepSeek-V3": "<think>",
}
"""Family → the text that its published models write before their thinking, if any; it is among the known marks."""
OTHERS = {
    "OLMo-2": "olmo2",
    "Mixtral": "mixtral",
    "Phi-3": "phi3",
    "OLMo-Hybrid": "olmo hybrid",
    "Mamba": "mamba",
    "FalconMamba": "falcon mamba",
    "Mamba-2": "mamba2",
    "Nemotron-H": "nemotron-h, time steps with a limit",
    "Zamba2": "zamba2",
    "Jamba": "jamba",
    "Bamba": "bamba",
    "Falcon-H1": "falcon-h1",
    "Granite hybrid": "granite hybrid",
    "RecurrentGemma": "recurrent gemma, a state of its own",
    "MiniMax-01": "minimax, a cache of its own",
    "RWKV": "rwkv, a state",
}
"""Further replicas by the name of their family; the last ones are refused."""
FAMILIES = (*CURRENT, *OTHERS)
_TABLE = re.compile(r"(<!-- families -->\n).*?(<!-- end families -->)", re.DOTALL)


def line(family: str) -> str:
    """Return a family's row of the table, by loading its replica plain and with an adapter."""
    with tempfile.TemporaryDirectory() as folder:
        if family in CURRENT:
            path, kind = save_current(Path(folder), family), SAMPLED[CURRENT[family][0]][0]
        else:
            path, kind = (
                saved(Path(folder), OTHERS[family]),
                (SAMPLED.get(OTHERS[family]) or REFUSED[OTHERS[family]])[0],
            )
        notes = []
        try:
            plain = _load(path)
            adapted = _load(path, lora=LoraConfig(rank=2, alpha=4.0))
        except ModelError as error:
            # Only the reason: the library's text in brackets and the advice change between its releases.
            reason = re.sub(r" \(.*\)", "", str(error).replace(f" of {path}", "")).partition(": ")[0]
            return _row(family, f"`{kind}`", "refused", "–", "–", "–", "–", reason)
    if family in TOWERS:
        notes.append("a tower for images is left out of adapters")
    if plain.cap is not None:
        notes.append("logits softly capped")
    spared = sorted(_linear(plain) - _adapted(adapted))
    if spared:
        notes.append(f"`all-linear` spares {', '.join(f'`{name}`' for name in spared)}")
    marks = THINKING.get(family, "")
    if marks and marks not in {known.begin for known in MARKS}:
        raise ValueError(f"{family}: {marks} is among no known marks of thinking")
    packs = "yes" if plain.packs else f"padded: {obstacle(plain.causal_lm) or 'other scores if packed'}"
    shown = _code(marks) if marks else "–"
    return _row(family, f"`{kind}`", "yes", packs, "yes", shown, tool_calls(family), "; ".join(notes))


def tool_calls(family: str) -> str:
    """Return the syntax of calls of a family's template, detected by rendering a call and reading it back."""
    if family not in FAMILY_TEMPLATES:
        return "–"
    chat = chat_of(TEMPLATES.get(FAMILY_TEMPLATES[family], ""))
    syntax = chat_syntax(chat)
    return "not written" if syntax is None else _code(syntax[0].label)


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def _load(path: Path, lora: LoraConfig | None = None) -> Policy:
    return load_policy(str(path), dtype=torch.float32, device=torch.device("cpu"), lora=lora)[0]


def _linear(policy: Policy) -> set[str]:
    """Return the last names of the linear layers below the head."""
    return {n.rpartition(".")[2] for n, m in policy.decoder.named_modules() if isinstance(m, torch.nn.Linear)}


def _adapted(policy: Policy) -> set[str]:
    return {name.split(".lora_")[0].rpartition(".")[2] for name in policy.trained()}


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def filled(page: str) -> str:
    """Return the page with its table regenerated."""
    table = "\n".join([_row(*HEADER), f"|{'---|' * len(HEADER)}", *map(line, FAMILIES)])
    return _TABLE.sub(lambda match: f"{match[1]}\n{table}\n\n{match[2]}", page)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
