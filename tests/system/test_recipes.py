"""The published settings: every recipe is a valid config, and every context of its method can be rendered.

Nothing is fetched: a tiny random model with a byte-level tokenizer takes the model's place, rows of our own the data's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from selfdistill.config.run import RunConfig, load_config
from selfdistill.config.sources import shipped_configs
from selfdistill.config.tasks import CodeConfig, RowsConfig, SourceConfig
from selfdistill.tasks.rows import RowTask
from selfdistill.training.build import Parts, assemble
from selfdistill.training.problem import resolve
from selfdistill.types import Example, Rollout, RolloutGroup
from support.bytewise import save_bytewise_model

RECIPES = [name for name in shipped_configs() if any(model in name for model in ("qwen3", "olmo3", "r1-distill"))]

DOCUMENTED = "f: A tool.\nParameters: {{}}\n\ng: Another.\nParameters: {{}}\n\nBegin!\nQuestion: request {}?"
ROWS: dict[str, list[dict[str, Any]]] = {
    "openthoughts": [
        {
            "problem": f"{n} + 1?",
            "ground_truth_solution": f"\\boxed{{{n + 1}}}",
            "deepseek_solution": f"One more than {n} is \\boxed{{{n + 1}}}.",
        }
        for n in range(12)
    ],
    "dapo-processed": [{"prompt": f"{n} + 1?", "solution": str(n + 1)} for n in range(12)],
    "sciknoweval": [
        {"prompt": f"Problem {n}?\n\nA: x\nB: y\nPlease reason step by step.", "answer": "B", "system": "Tag it."}
        for n in range(12)
    ],
    "toolalpaca": [
        {"prompt": DOCUMENTED.format(n), "answer": '[{"Action": "f", "Action_Input": "{}"}]'} for n in range(12)
    ],
}
ROWS["livecodebench"] = [
    {
        "question_content": f"Print {n} more than the number that is read.",
        "public_test_cases": json.dumps([{"input": "1", "output": str(n + 1), "testtype": "stdin"}]),
        "solution": f"print(int(input()) + {n})",
    }
    for n in range(12)
]
WRONG = {
    "code": "```python\nprint('no')\n```",
    "tools": "Action: g\nAction Input: {}",
    "choice": "I cannot tell.",
    "math": "It is \\boxed{-7}.",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bytewise_model(tmp_path_factory.mktemp("model"))


def rows(config: RunConfig, folder: Path) -> Path:
    assert isinstance(config.task, RowsConfig) and config.task.preset is not None
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[config.task.preset]), encoding="utf-8")
    return path


def tiny(name: str, model: Path, folder: Path) -> Parts:
    """The recipe's parts, all its own but the weights, the rows and the device."""
    path = rows(load_config(name), folder)
    changes = [f"model.path='{model}'", "model.device='cpu'", f"task.path='{path}'", "sampling.prompts=4"]
    if isinstance(load_config(name).task, CodeConfig):
        changes.append("task.unsafe=true")  # the only code is that of ROWS: no sandbox is needed where none works
    return assemble(load_config(name, changes))


def group(parts: Parts, example: Example) -> RolloutGroup:
    """Two right completions and five wrong ones, so that each has a correct sibling and four wrong ones."""
    assert isinstance(parts.task, RowTask)
    right, wrong = parts.task.reference(example), WRONG[parts.task.name]
    rollouts = []
    for source in parts.method.sampling_roles():
        for text in (right, f"So.\n{right}", *("Hm.\n" * n + wrong for n in range(5))):
            ids = parts.chat.response(text)
            prompt = parts.chat.encode(example.prompt)
            rollouts.append(Rollout(prompt, ids, (0.0,) * len(ids), True, text, 0, source))
    verdicts = tuple(parts.task.verify(example, rollout.text, finished=True) for rollout in rollouts)
    return RolloutGroup(example, tuple(rollouts), verdicts)


def test_there_is_a_recipe_for_every_published_setting() -> None:
    sizes = ("qwen3-1.7b", "qwen3-4b", "qwen3-8b")
    expected = {f"{method}-{size}" for method in ("opsd", "pbsd") for size in sizes}
    expected |= {f"purified-{size}" for size in ("qwen3-4b", "qwen3-8b", "olmo3-7b-think")}
    expected |= {f"antisd-{m}" for m in ("qwen3-8b", "qwen3-4b-instruct", "olmo3-7b-instruct", "olmo3-7b-think")}
    expected |= {f"{method}-{data}-qwen3-8b" for method in ("sdpo", "credit") for data in ("science", "tools")}
    expected |= {"sdpo-code-qwen3-8b", "credit-code-qwen3-8b", "credit-science-olmo3-7b-instruct"}
    expected |= {"sc-sdpo-science-qwen3-8b", "demopsd-science-qwen3-4b-instruct", "crisp-qwen3-8b"}
    expected |= {"rlcsd-qwen3-8b", "sdpg-qwen3-4b", "srpo-science-qwen3-8b", "rlsd-qwen3-8b", "cepo-qwen3-4b"}
    expected |= {"antisd-qwen3-30b-a3b", "purified-r1-distill-7b", "pbsd-tools-qwen3-8b"}
    assert expected <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_where_it_comes_from_what_it_takes_and_what_to_expect(name: str) -> None:
    folder = Path(__file__).parents[2] / "src" / "selfdistill" / "config" / "shipped"
    text = (folder / f"{name}.toml").read_text(encoding="utf-8")
    head = " ".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("# "))
    for part in ("arXiv ", "Deviations: ", "Data: ", "Memory: ", "Expected: "):
        assert part in head
    config = load_config(name)
    assert config.model.device == "cuda" and config.model.lora is not None
    if isinstance(config.task, RowsConfig) and isinstance(config.task.path, SourceConfig):
        assert config.task.path.split == "train"


PUBLISHED = {
    "opsd": {"clip_norm": 0.1, "weight_decay": 0.0, "temperature": 1.0, "top_p": 0.95},
    "antisd": {"clip_norm": 1.0, "weight_decay": 0.01, "temperature": 0.7, "top_p": 0.95},
    "sdpo": {"clip_norm": 1.0, "weight_decay": 0.01},
    "credit": {"clip_norm": 1.0, "weight_decay": 0.01},
    "purified": {"clip_norm": 1.0, "weight_decay": 0.0},
    "pbsd": {"clip_norm": 1.0, "weight_decay": 0.0},
    "sc_sdpo": {"clip_norm": 1.0, "weight_decay": 0.01},
    "demopsd": {"clip_norm": 1.0, "weight_decay": 0.01},
    "crisp": {"clip_norm": 1.0, "weight_decay": 0.01},
    "rlcsd": {"clip_norm": 1.0, "weight_decay": 0.01, "temperature": 1.0, "top_p": 0.95},
    "rlsd": {"clip_norm": 1.0, "weight_decay": 0.01, "temperature": 1.0, "top_p": 0.95},
    "cepo": {"clip_norm": 1.0, "weight_decay": 0.01},
    "sdpg": {"clip_norm": 1.0, "weight_decay": 0.01},
    "srpo": {"clip_norm": 1.0, "weight_decay": 0.01},
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_every_setting_around_its_loss(name: str) -> None:
    config = load_config(name)
    # CRISP is a recipe of OPSD's class.
    method = "crisp" if name.startswith("crisp") else str(config.method["name"])
    found = {"clip_norm": config.optimiser.clip_norm, "weight_decay": config.optimiser.weight_decay}
    found |= {"temperature": config.evaluation.temperature, "top_p": config.evaluation.top_p}
    assert found.items() >= PUBLISHED[method].items()
    # Named, not left to defaults that may move; and where the words are not the papers', the file says so.
    assert {"warmup", "clip_norm", "weight_decay"} <= config.optimiser.model_fields_set
    assert {"temperature", "top_p"} <= config.evaluation.model_fields_set
    ours = ("pbsd", "rlcsd", "rlsd", "cepo", "sdpg", "crisp")
    assert config.contexts == ("default" if method in ours else "papers")
    if method == "opsd":
        score, sampled = resolve(config).method["score_temperature"], config.sampling.temperature
        assert score == sampled == 1.1
        assert (config.sampling.thinking, config.method["teacher_thinking"]) == (False, True)


@pytest.mark.parametrize("name", RECIPES)
def test_every_context_of_a_recipe_is_rendered(name: str, model: Path, tmp_path: Path) -> None:
    parts = tiny(name, model, tmp_path)
    groups = [group(parts, example) for example in parts.examples[:3]]
    rewards = [[verdict.reward for verdict in one.verdicts[:4]] for one in groups]
    assert rewards == [[1.0, 1.0, 0.0, 0.0]] * 3

    views = parts.trainer.prepare(groups, step=1)
    wrong = next(view for view in views.views if view.reward == 0.0)
    question = groups[wrong.group].example.prompt[-1].content
    shown = {role: parts.chat.tokenizer.decode(ids) for role, ids in wrong.prompts.items()}
    assert set(shown) == {"student", *parts.method.roles()}
    assert question in shown["student"]
    for role, about in parts.method.roles().items():
        without = (about.context or "").startswith(("other_question", "reference_only"))
        assert (question in shown[role]) != without
        assert (shown[role] == shown["student"]) == (about.context is None)
    assert views.dropped == len(views.skipped) == 0
