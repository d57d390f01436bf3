"""How published chat templates write the calls of an assistant's turn, each in the shortest template that does so."""

from __future__ import annotations

from collections.abc import Mapping

from selfdistill.contexts.chat import Chat
from support.tiny import STOP, tiny_tokenizer

HEAD = (
    "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ tools }}{{ m.content }}<|end|>"
    "{% elif m.role == 'system' %}{{ m.content }}{% else %}<|assistant|>{{ m.content }}"
)
TAIL = "<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
EACH = "{% for c in m.tool_calls or [] %}{% set f = c.function %}"

TEMPLATES = {
    "hermes": EACH + '<tool_call>\n{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}\n</tool_call>\n'
    "{% endfor %}",
    "llama": "{% if m.tool_calls and m.tool_calls | length > 1 %}{{ raise_exception('one call') }}{% endif %}"
    + EACH
    + '{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}{% endfor %}',
    "llama4": "{% if m.tool_calls %}<|python_start|>{{ m.content }}<|python_end|>"
    + EACH
    + '{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}{% endfor %}{% endif %}',
    "qwen3-coder": EACH
    + "<tool_call>\n<function={{ f.name }}>\n{% for k, v in f.arguments | items %}<parameter={{ k }}>\n{{ "
    "v | tojson if v is mapping or (v is sequence and v is not string) else v | string }}\n</parameter>\n{% endfor %}"
    "</function>\n</tool_call>{% endfor %}",
    "mistral": "{% if m.tool_calls %}[TOOL_CALLS][{% for c in m.tool_calls %}{% if c.id | length != 9 %}{{ "
    "raise_exception('id') }}{% endif %}{{ c.function | tojson }}{{ ', ' if not loop.last }}{% endfor %}]{% endif %}",
    "mistral-11": EACH + "[TOOL_CALLS]{{ f.name }}[ARGS]{{ f.arguments | tojson }}{% endfor %}",
    "olmo": "{% if m.tool_calls %}<function_calls>\n{% for c in m.tool_calls %}{{ c.function.name }}("
    "{% for k, v in c.function.arguments | items %}{{ k }}={{ v | tojson }}{{ ', ' if not loop.last }}{% endfor %})\n"
    "{% endfor %}</function_calls>{% endif %}",
    "lfm2": "{% if m.tool_calls %}<|tool_call_start|>[{% for c in m.tool_calls %}{{ c.function.name }}("
    "{% for k, v in c.function.arguments | items %}{{ k }}={{ v | tojson }}{{ ', ' if not loop.last }}{% endfor %})"
    "{{ ', ' if not loop.last }}{% endfor %}]<|tool_call_end|>{% endif %}",
    "glm": EACH + "<tool_call>{{ f.name }}\n{% for k, v in f.arguments | items %}<arg_key>{{ k }}</arg_key>\n"
    "<arg_value>{{ v if v is string else v | tojson }}</arg_value>\n{% endfor %}</tool_call>{% endfor %}",
    "deepseek": "{% if m.tool_calls %}<｜tool▁calls▁begin｜>"
    + EACH
    + "{{ '<｜tool▁call▁begin｜>' + f.name + '<｜tool▁sep｜>' + f.arguments + '<｜tool▁call▁end｜>' }}{% endfor %}"
    "<｜tool▁calls▁end｜>{% endif %}",
    "harmony": EACH
    + " to=functions.{{ f.name }}<|channel|>commentary json<|message|>{{ f.arguments | tojson }}<|call|>"
    "{% endfor %}",
    "gemma": EACH + "<|tool_call>call:{{ f.name }}{{ '{' }}{% for k, v in f.arguments | items %}{{ k }}:"
    "{% if v is string %}<|\"|>{{ v }}<|\"|>{% else %}{{ v | tojson }}{% endif %}{{ ',' if not loop.last }}{% endfor %}"
    "{{ '}' }}<tool_call|>{% endfor %}",
    "functiongemma": EACH + "<start_function_call>call:{{ f.name }}{{ '{' }}{% for k, v in f.arguments | items %}"
    "{{ k }}:{% if v is string %}<escape>{{ v }}<escape>{% else %}{{ v | tojson }}{% endif %}{{ ',' if not loop.last }}"
    "{% endfor %}{{ '}' }}<end_function_call>{% endfor %}",
    "granite": "{% if m.tool_calls %}<|tool_call|>[{% for c in m.tool_calls %}{{ c.function | tojson }}"
    "{{ ', ' if not loop.last }}{% endfor %}]{% endif %}",
    "thinking": "{% if m.tool_calls %}<think>\n\n</think>\n\n{% endif %}"
    + EACH
    + '<tool_call>\n{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}\n</tool_call>{% endfor %}',
}

FAMILIES: Mapping[str, str] = {
    "Qwen3": "hermes",
    "Qwen3-MoE": "hermes",
    "Qwen3.5": "qwen3-coder",
    "Qwen3.5-MoE": "qwen3-coder",
    "Qwen3-Next": "hermes",
    "Llama-3": "llama",
    "Llama-4": "llama4",
    "Gemma-4": "gemma",
    "GPT-OSS": "harmony",
    "OLMo-3": "olmo",
    "SmolLM3": "dropped",
    "LFM2": "lfm2",
    "GLM-4-MoE": "glm",
    "DeepSeek-V3": "deepseek",
    "Mixtral": "mistral",
    "OLMo-Hybrid": "olmo",
    "Nemotron-H": "qwen3-coder",
    "Granite hybrid": "hermes",
}
"""The template of a family's published models. The templates of the families that are missing here take no tools."""


def chat_of(calls: str) -> Chat:
    """A chat whose template writes calls in this way."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = HEAD + calls + TAIL
    return Chat(tokenizer, stop_ids=[STOP], window=256, name="toy")
