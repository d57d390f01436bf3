"""docs/integrations.md and docs/python.md are true, and the notebooks run: their code is taken from the files."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import selfdistill as sd
from selfdistill import objectives

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def blocks(page: str) -> list[str]:
    """The Python of a page, block by block."""
    return re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def integrations(*, trl: bool = False) -> dict[str, Any]:
    """What the page's snippets define."""
    space: dict[str, Any] = {"__name__": "integrations"}
    for code in blocks("integrations.md"):
        if trl or "trl" not in code:
            exec(compile(code, "integrations.md", "exec"), space)
    return space


PROMPT, HINTED, COMPLETION = (3, 11, 12), (3, 11, 20, 21, 12), (13, 14, 2)


def batch(*, same: bool) -> dict[str, torch.Tensor]:
    """One completion, of which the teacher sees more (or the same)."""
    rows = {"input": PROMPT, "teacher": PROMPT if same else HINTED}
    made = {f"{name}_ids": torch.tensor([[*prompt, *COMPLETION, 0, 0]]) for name, prompt in rows.items()}
    masks = {
        name: torch.tensor([[0] * len(rows[row]) + [1] * len(COMPLETION) + [0, 0]])
        for name, row in (("completion_mask", "input"), ("teacher_mask", "teacher"))
    }
    return {**made, **masks}


def test_a_plain_loop_learns_from_hindsight(model: Path) -> None:
    policy, _ = sd.load_policy(model)
    space = integrations()
    logprobs = space["completion_logprobs"](
        policy.model, batch(same=False)["input_ids"], batch(same=False)["completion_mask"]
    )
    logits = policy.model(input_ids=torch.tensor([[*PROMPT, *COMPLETION]])).logits[0, 2:5]
    torch.testing.assert_close(logprobs, logits.log_softmax(-1))
    assert float(space["hindsight_loss"](policy.model, batch(same=True)).detach()) == 0.0
    optimiser = torch.optim.AdamW(policy.trainable(), lr=1e-3)
    losses = []
    for _ in range(4):
        optimiser.zero_grad()
        loss = space["hindsight_loss"](policy.model, batch(same=False))
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")  # TRL asks for it
def test_a_trl_trainer_takes_the_loss(model: Path, tmp_path: Path) -> None:
    trl: Any = pytest.importorskip("trl", reason="TRL is not installed", exc_type=ImportError)
    policy, chat = sd.load_policy(model)
    space = integrations(trl=True)
    rows = [{name: value[0].tolist() for name, value in batch(same=False).items()}] * 2
    expected = float(space["hindsight_loss"](policy.model, batch(same=False)).detach())
    import datasets

    trainer = space["HindsightTrainer"](
        model=policy.model,
        args=trl.SFTConfig(
            output_dir=str(tmp_path),
            max_steps=1,
            per_device_train_batch_size=2,
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            report_to=[],
            use_cpu=True,
            bf16=False,
            logging_steps=1,
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        data_collator=lambda found: {name: torch.tensor([row[name] for row in found]) for name in found[0]},
        processing_class=chat.tokenizer,
    )
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-3)


def test_verls_form_of_antisd_is_the_methods_loss() -> None:
    loss_of = integrations()["antisd_policy_loss"]
    generator = torch.Generator().manual_seed(0)
    old, teacher = (-torch.rand(2, 4, generator=generator) for _ in range(2))
    log_prob = old.clone().requires_grad_()
    advantages = torch.tensor([[1.0] * 4, [-0.5] * 4])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    padded = teacher.masked_fill(mask == 0, float("nan"))
    loss, numbers = loss_of(old, log_prob, padded, advantages, mask, strength=0.3)
    loss.backward()

    method = sd.build_method("antisd", {"gated": False, "strength": 0.3})
    kept = mask.bool()
    probs = torch.stack([old[kept].exp(), 1 - old[kept].exp()], -1)  # of the token, of all others
    student = probs.log().requires_grad_()
    tokens = sd.TokenSlice(
        torch.zeros(5, dtype=torch.long),
        {"student": student, "teacher": torch.stack([teacher[kept].exp(), 1 - teacher[kept].exp()], -1).log()},
        {"advantage": advantages[kept], "old_logprob": old[kept]},
        {"gate": 1.0},
    )
    expected = method.loss(tokens).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    assert log_prob.grad is not None and student.grad is not None
    torch.testing.assert_close(log_prob.grad[kept], student.grad[:, 0])
    assert log_prob.grad[~kept].abs().sum() == 0
    assert numbers["actor/u"] == pytest.approx(float((teacher - old)[kept].mean()))
    assert objectives.antisd_advantage(torch.zeros(1)) == 0


# --- pages and notebooks that run as scripts ------------------------------------------------------------------------


def run(code: str, folder: Path) -> str:
    """What a script prints; its errors are shown when it fails."""
    script = folder / "script.py"
    script.write_text(code, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", str(script)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # nothing that a notebook would show in red
    return done.stdout


def cells(path: Path, kind: str = "code") -> list[str]:
    """The cells of a notebook."""
    return [
        "".join(cell["source"])
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == kind
    ]


def test_the_page_about_python_runs(tmp_path: Path) -> None:
    said = run("\n".join(blocks("python.md")), tmp_path)
    assert "{'context hint: no start': 3}" in said
    assert "skipped: " in said and " × context feedback: no feedback" in said
    assert (tmp_path / "look" / "index.html").is_file()
    assert json.loads((tmp_path / "runs" / "even" / "summary.json").read_text())["steps"] == 3


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_whole_and_runs(path: Path, tmp_path: Path) -> None:
    book = json.loads(path.read_text(encoding="utf-8"))
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    for cell in book["cells"]:
        assert set(cell) == {"cell_type", "id", "metadata", "source"} | (
            {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
        )
        assert cell["cell_type"] != "code" or (cell["outputs"], cell["execution_count"]) == ([], None)
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    assert cells(path, "markdown")[0].startswith("# ")
    run("\n\n".join(cells(path)), tmp_path)


def test_the_notebooks_are_these() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["u_in_ten_lines", "your_method_in_an_evening"]
    # The first cell of the first is what its title promises.
    assert len([line for line in cells(NOTEBOOKS[0])[0].splitlines() if line.strip()]) <= 10
