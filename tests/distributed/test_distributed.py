"""Several processes do what one does: gradients, metrics, completions and weights, for every method and way to share.

Sums over ranks are taken in another order than in one process, so float64 agrees to 1e-12 of a gradient's norm and not
bit for bit; AdamW divides by the size of a gradient and keeps no more than 1e-9 of weights whose gradient is all
rounding (GPT-2's key bias, which no attention depends on).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from selfdistill.config.sections import ParallelConfig
from selfdistill.distributed.fsdp import check_parallel
from selfdistill.distributed.world import World
from selfdistill.errors import CheckpointError, ConfigError
from selfdistill.methods import METHODS
from selfdistill.models.policy import load_policy
from selfdistill.scoring.batching import MicroBatch, micro_batches
from selfdistill.training.run_folder import export_model
from selfdistill.types import View
from support.quick import QUICK, quick_first
from support.ranks import Case, Gradient, Sampled, WholeRun, run_cases
from support.runs import lines, metrics
from support.tiny import STOP, save_model, save_tiny_model, tiny_settings

KNOBS: dict[str, dict[str, Any]] = {
    "sdpo": {"teacher_rate": 0.3},
    "sdft": {"teacher_rate": 0.3},
    "credit": {"teacher_rate": 0.3},
    "antisd": {"warmup": 1},
    "sc_sdpo": {"teacher_rate": 0.3},
    "demopsd": {"teacher_rate": 0.3},
    "cepo": {"without_wrong": "student"},
    "rlcsd": {
        "contrasts": 2,
        "sharpness": 2.0,
        "selected_above": 0.1,
        "selected_weight": 0.4,
        "context": "solution",
        "wrong_context": "reference_only",
    },
    "sdpg": {"strength": 0.6, "reference_weight": 0.3},
    "srpo": {"teacher_rate": 0.3},
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, KNOBS.get(name, {})) for name in METHODS},
    "credit, sampled": ("credit", {"form": "advantage"}),
}
SNAPSHOT = {"name": "sdpo", "weights": {"kind": "snapshot", "every": 2}}
SHARED = {"ddp": ParallelConfig(kind="ddp"), "fsdp2": ParallelConfig(kind="fsdp2")}
SHARDED_RUNS = ("grpo", "sdpo", "pbsd")
"""Methods whose whole runs on two ranks `make test` compares; single steps it compares of those that differ most."""
WHOLE_RUNS = ("grpo", "sft", "pbsd")
OTHER_WHOLE_RUNS = ("sdpo", "antisd")
LORA = ("model.lora.rank=2", "model.lora.alpha=4", "model.lora.target_modules=['q_proj', 'down_proj']")
EXACT = ("model.dtype=float64", "steps=2")
FOUR = ("model.dtype=float64", "steps=4")
WAYS = ("fsdp2 ddp fsdp2", "fsdp2 fsdp2 ddp")
"""How a run is shared before a stop, between two, and after them."""
OTHER_WAYS = ("ddp ddp ddp", "ddp ddp fsdp2")
SHORT = 60
"""Tokens of a micro-batch so small that two ranks need different numbers of them."""
FEATURES: dict[str, ParallelConfig] = {
    "activation checkpointing, ddp": ParallelConfig(kind="ddp", activation_checkpointing=True),
    "activation checkpointing, fsdp2": ParallelConfig(kind="fsdp2", activation_checkpointing=True),
    "cpu offload": ParallelConfig(kind="fsdp2", cpu_offload=True),
    "hsdp of two shards": ParallelConfig(kind="hsdp", shards=2),
    "hsdp of two copies": ParallelConfig(kind="hsdp", shards=1),
}
ALSO = "evaluation.also=['general', { task = 'countdown', problems = 3 }]"
"""Compares the student with the weights before training, which are sharded as it is."""
FLOAT32: dict[str, tuple[Any, tuple[str, ...]]] = {
    "lora ddp": ("sdpo", ("parallel=ddp", ALSO, *LORA)),
    "lora fsdp2": ("sdpo", ("parallel=fsdp2", ALSO, *LORA)),
    "full ddp": ("sdpo", ("parallel=ddp", ALSO)),
    "full fsdp2": ("sdpo", ("parallel=fsdp2", ALSO)),
}
BF16 = ("model.dtype=bfloat16", "optimiser.learning_rate=1e-5", "optimiser.schedule=constant", "optimiser.warmup=0")
"""Float32 weights behind a model that computes in bf16, at a rate that bf16 weights would round away."""
MIXED = ("parallel.kind=fsdp2", "parallel.param_dtype=bfloat16", "parallel.reduce_dtype=float32", "steps=1")


def named(method: str) -> dict[str, Any]:
    name, hyperparameters = VARIANTS[method]
    return {"name": name, **hyperparameters}


def gradients(names: Iterable[str]) -> list[Case]:
    """One step of each, alone and shared either way."""
    cases: list[Case] = []
    for name in names:
        method = VARIANTS[name]
        cases.append(Gradient(f"gradient {name} alone", 1, method, ParallelConfig(kind="ddp"), tokens=SHORT))
        cases += [Gradient(f"gradient {name} {kind}", 2, method, how, tokens=SHORT) for kind, how in SHARED.items()]
    return cases


def all_cases() -> list[Case]:
    cases = gradients(QUICK)
    for name in dict.fromkeys((*SHARDED_RUNS, *WHOLE_RUNS)):
        cases.append(WholeRun(f"run {name} alone", 1, "exact", named(name), EXACT))
    for kind, names in (("fsdp2", SHARDED_RUNS), ("ddp", WHOLE_RUNS)):
        cases += [
            WholeRun(f"run {name} {kind}", 2, "exact", named(name), (*EXACT, f"parallel={kind}")) for name in names
        ]
    for name, how in FEATURES.items():
        cases.append(Gradient(f"feature {name}", 2, VARIANTS["sdpo"], how, tokens=SHORT))
    for kind, how in {"alone": ParallelConfig(), **SHARED}.items():
        ranks = 1 if kind == "alone" else 2
        cases.append(Gradient(f"one completion {kind}", ranks, VARIANTS["sdpo"], how, first=1))
    for name, (method, overrides) in FLOAT32.items():
        alone = tuple(override for override in overrides if not override.startswith("parallel"))
        cases.append(WholeRun(f"float32 {name} alone", 1, "model", method, ("steps=2", *alone)))
        cases.append(WholeRun(f"float32 {name}", 2, "model", method, ("steps=2", *overrides)))
    for kind, ranks in (("alone", 1), ("ddp", 2), ("fsdp2", 2)):
        share = () if kind == "alone" else (f"parallel={kind}",)
        cases.append(WholeRun(f"bf16 {kind}", ranks, "model", named("sdpo"), (*BF16, *share, "steps=4")))
    cases += [Sampled(f"sampled {shape}", 2, shape) for shape in ((5, 3), (1, 6))]
    cases += [WholeRun(f"mixed {ranks}", ranks, "model", "sdpo", MIXED) for ranks in (1, 2)]
    return cases + resumed()


def other_cases() -> list[Case]:
    """What `make test` leaves out: gradients and whole runs of the other methods, and other ways to go on."""
    cases = gradients(name for name in VARIANTS if name not in QUICK)
    sharded = [name for name in METHODS if name not in SHARDED_RUNS]
    for name in dict.fromkeys((*sharded, *OTHER_WHOLE_RUNS)):
        cases.append(WholeRun(f"run {name} alone", 1, "exact", named(name), EXACT))
    for kind, names in (("fsdp2", sharded), ("ddp", OTHER_WHOLE_RUNS)):
        cases += [
            WholeRun(f"run {name} {kind}", 2, "exact", named(name), (*EXACT, f"parallel={kind}")) for name in names
        ]
    return cases + gone_on(OTHER_WAYS)


def resumed() -> list[Case]:
    """Snapshots on two processes, and runs that go on."""
    cases: list[Case] = []
    for kind, ranks in (("ddp", 1), ("fsdp2", 2), ("ddp", 2)):
        name = "snapshot alone" if ranks == 1 else f"snapshot {kind}"
        for piece, stop_after in enumerate((3, None)):
            cases.append(
                WholeRun(
                    f"{name} {piece}",
                    ranks,
                    "exact",
                    SNAPSHOT,
                    (*FOUR, f"parallel={kind}"),
                    folder=name,
                    resume=ranks > 1,
                    stop_after=stop_after if ranks > 1 else None,
                )
            )
            if ranks == 1:
                break
    return cases + gone_on(WAYS)


def gone_on(ways: Iterable[str]) -> list[Case]:
    """Four steps by two, one and two processes, sharded or whole in each, and by one process."""
    cases: list[Case] = []
    for way in map(str.split, ways):
        folder = "resumed " + " ".join(way)
        for piece, kind in enumerate(way):
            cases.append(
                WholeRun(
                    f"{folder} {piece}",
                    1 if piece == 1 else 2,
                    "exact",
                    named("sdpo"),
                    (*FOUR, f"parallel={kind}"),
                    folder=folder,
                    resume=True,
                    stop_after=piece + 1 if piece < 2 else None,
                )
            )
    cases.append(WholeRun("resumed alone", 1, "exact", named("sdpo"), FOUR))
    return cases


def models(folder: Path) -> Path:
    """The folder, with both models in it."""
    torch.manual_seed(0)
    # GPT-2's norms compute in float64, those of newer models round to float32.
    settings = tiny_settings(n_embd=32, n_layer=2, n_head=4, n_positions=256)
    save_model(folder / "exact", transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings)))
    save_tiny_model(folder / "model", seed=0)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models(tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Any]:
    return run_cases(all_cases(), folder)


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models(tmp_path_factory.mktemp("others"))


@pytest.fixture(scope="module")
def others(other_folder: Path) -> dict[str, Any]:
    """What :func:`other_cases` came to."""
    return run_cases(other_cases(), other_folder)


def close(actual: Any, expected: Any, tolerance: float) -> bool:
    """Equal structures whose numbers differ by no more than a tolerance, relative to the largest or to 1."""
    if isinstance(expected, dict):
        return actual.keys() == expected.keys() and all(close(actual[k], expected[k], tolerance) for k in expected)
    if isinstance(expected, list | tuple):
        pairs = zip(actual, expected, strict=True)
        return len(actual) == len(expected) and all(close(mine, theirs, tolerance) for mine, theirs in pairs)
    if isinstance(expected, Tensor):
        return bool((actual - expected).norm() <= tolerance * max(1.0, float(expected.norm())))
    if isinstance(expected, float):
        return bool(abs(actual - expected) <= tolerance * max(1.0, abs(expected)))
    return bool(actual == expected)


# --- one step --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SHARED)
@pytest.mark.parametrize("method", quick_first(VARIANTS))
def test_two_ranks_have_the_gradient_and_the_numbers_of_one_process(
    method: str, kind: str, request: pytest.FixtureRequest
) -> None:
    """With so few tokens a micro-batch that the ranks have different numbers of them, and groups are split."""
    results = request.getfixturevalue("results" if method in QUICK else "others")
    alone = results[f"gradient {method} alone"]
    shared = results[f"gradient {method} {kind}"]
    assert max(float(gradient.norm()) for gradient in alone[0].values()) > 1e-4
    assert close(shared, alone, 1e-12)
    assert close(results[f"gradient {method} {kind} on rank 1"], shared, 0.0), "ranks must not drift apart"


@pytest.mark.parametrize("kind", SHARED)
def test_a_rank_without_any_view_keeps_step(kind: str, results: dict[str, Any]) -> None:
    """One completion in the whole step: the other rank has no signal at all."""
    alone = results["one completion alone"]
    assert len(alone[-1]["student"]) == 1
    assert close(results[f"one completion {kind}"], alone, 1e-12)


@pytest.mark.parametrize("name", FEATURES)
def test_how_memory_is_saved_changes_no_number(name: str, results: dict[str, Any]) -> None:
    assert close(results[f"feature {name}"], results["gradient sdpo alone"], 1e-12)


def test_of_shards_the_same_weights_are_looked_at_as_of_the_whole(results: dict[str, Any]) -> None:
    """Five rows of three are cut into three and two: the second rank begins at 9, and the next fourth one is 12."""
    assert (results["sampled (5, 3)"], results["sampled (5, 3) on rank 1"]) == ([0, 4, 8], [12])
    assert (results["sampled (1, 6)"], results["sampled (1, 6) on rank 1"]) == ([0, 4], [])


# --- whole runs ------------------------------------------------------------------------------------------------------


def same_run(shared: Path, alone: Path, *, numbers: float, weights: float) -> None:
    """Lines, completions, evaluations and weights of two finished runs."""
    assert close(metrics(shared), metrics(alone), numbers)
    assert close(lines(shared / "evaluations.jsonl"), lines(alone / "evaluations.jsonl"), numbers)
    mine, theirs = (lines(folder / "rollouts.jsonl") for folder in (shared, alone))
    assert [line["ids"] for line in mine] == [line["ids"] for line in theirs]
    assert close(mine, theirs, max(100 * numbers, 2e-5)), "they are written with five decimals"
    mine_, theirs_ = (weights_of(folder) for folder in (shared, alone))
    assert mine_.keys() == theirs_.keys()
    assert max(float((mine_[name] - theirs_[name]).abs().max()) for name in theirs_) <= weights


def weights_of(folder: Path) -> dict[str, Tensor]:
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    (file,) = (newest / "model").glob("*.safetensors")
    return load_file(file)


def where(request: pytest.FixtureRequest, quick: bool) -> Path:
    """The folder of the quick cases or of the others, which have run."""
    request.getfixturevalue("results" if quick else "others")
    found: Path = request.getfixturevalue("folder" if quick else "other_folder")
    return found


@pytest.mark.parametrize("method", quick_first((*WHOLE_RUNS, *OTHER_WHOLE_RUNS), WHOLE_RUNS))
def test_two_ranks_make_the_run_of_one_process(method: str, request: pytest.FixtureRequest) -> None:
    folder = where(request, method in WHOLE_RUNS)
    same_run(folder / f"run {method} ddp", folder / f"run {method} alone", numbers=1e-12, weights=1e-9)


@pytest.mark.parametrize("method", quick_first(METHODS, SHARDED_RUNS))
def test_two_ranks_with_shards_make_the_run_of_one_process(method: str, request: pytest.FixtureRequest) -> None:
    folder = where(request, method in SHARDED_RUNS)
    same_run(folder / f"run {method} fsdp2", folder / f"run {method} alone", numbers=1e-12, weights=1e-9)


@pytest.mark.parametrize("name", FLOAT32)
@pytest.mark.usefixtures("results")
def test_two_ranks_make_the_run_of_one_process_in_float32(name: str, folder: Path) -> None:
    same_run(folder / f"float32 {name}", folder / f"float32 {name} alone", numbers=1e-5, weights=1e-4)


@pytest.mark.usefixtures("results")
def test_mixed_precision_computes_in_bf16_and_keeps_float32(folder: Path) -> None:
    one, two, full = (metrics(folder / name)[0] for name in ("mixed 1", "mixed 2", "float32 full ddp alone"))
    for name in ("loss", "grad_norm", "student_entropy", "pmi"):
        assert two[name] == pytest.approx(one[name], rel=1e-3)
    assert one["student_entropy"] != full["student_entropy"]
    assert one["student_entropy"] == pytest.approx(full["student_entropy"], rel=0.05)
    assert {weight.dtype for weight in weights_of(folder / "mixed 2").values()} == {torch.float32}


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.usefixtures("results")
def test_two_ranks_go_as_far_in_bf16_as_one_process(kind: str, folder: Path, tmp_path: Path) -> None:
    """Ranks add up in another order, which parts the bf16 computation; where weights and average get to is the same."""
    start = {
        name: weight.bfloat16().float() for name, weight in load_file(folder / "model" / "model.safetensors").items()
    }
    gone = {}
    for run in ("bf16 alone", f"bf16 {kind}"):
        export_model(folder / run, tmp_path / run, step=4, dtype="float32")
        found = load_file(tmp_path / run / "model.safetensors")
        gone[run] = torch.cat([(found[name] - start[name]).flatten() for name in start])
        assert min(line["moved"] for line in metrics(folder / run)) > 0.98
        assert min(line["average_moved"] for line in metrics(folder / run)) > 0.98
        assert {weight.dtype for weight in weights_of(folder / run).values()} == {torch.bfloat16}
    alone, shared = gone.values()
    assert float(shared.norm()) == pytest.approx(float(alone.norm()), rel=0.02)
    assert float(torch.nn.functional.cosine_similarity(shared, alone, 0)) > 0.9
    one, two = metrics(folder / "bf16 alone")[0], metrics(folder / f"bf16 {kind}")[0]
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)
    assert two["ratio"] == pytest.approx(one["ratio"], abs=1e-5)


@pytest.mark.parametrize("way", quick_first((*WAYS, *OTHER_WAYS), WAYS))
def test_a_run_goes_on_with_another_number_of_processes(way: str, request: pytest.FixtureRequest) -> None:
    folder = where(request, way in WAYS)
    results = request.getfixturevalue("results" if way in WAYS else "others")
    for piece in range(3):
        assert results[f"resumed {way} {piece}"]["steps"] == (1, 2, 4)[piece]
    same_run(folder / f"resumed {way}", folder / "resumed alone", numbers=1e-11, weights=1e-8)


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.usefixtures("results")
def test_a_snapshot_is_renewed_saved_and_resumed_alike_on_two_ranks(kind: str, folder: Path) -> None:
    same_run(folder / f"snapshot {kind}", folder / "snapshot alone", numbers=1e-11, weights=1e-8)


@pytest.mark.usefixtures("results")
def test_shards_are_exported_as_a_model_directory_on_request(folder: Path, tmp_path: Path) -> None:
    run = folder / "resumed fsdp2 fsdp2 ddp"
    path = export_model(run, tmp_path / "model", step=2)
    assert not (path / "model").exists()
    alone = load_file(folder / "resumed alone" / "checkpoints" / path.name / "model" / "model.safetensors")
    exported = load_file(tmp_path / "model" / "model.safetensors")
    assert exported.keys() == alone.keys()
    assert max(float((exported[name] - alone[name]).abs().max()) for name in alone) <= 1e-8
    policy, chat = load_policy(str(tmp_path / "model"), dtype=torch.float64, device=torch.device("cpu"))
    assert chat.stop_ids == (STOP,)
    assert sum(weight.numel() for weight in policy.trainable()) == sum(weight.numel() for weight in alone.values())
    with pytest.raises(CheckpointError, match="has no checkpoint of step 3; it keeps: 2, 4"):
        export_model(run, tmp_path / "other", step=3)
    with pytest.raises(CheckpointError, match="holds no checkpoint: give the folder of a run that has saved one"):
        export_model(tmp_path, tmp_path / "other", step=None)


# --- dealing ---------------------------------------------------------------------------------------------------------


def view(group: int, index: int, prompt: int, completion: int) -> View:
    ids = tuple(range(completion))
    return View({"student": tuple(range(prompt))}, ids, (1.0,) * completion, (0.0,) * completion, 0.0, group, index)


def test_views_are_dealt_evenly_and_every_rank_takes_as_many_turns() -> None:
    views = [view(0, index, 10, 2 + 3 * index) for index in range(5)]
    dealt = [micro_batches(views, max_tokens=25, world=World(rank, 3)) for rank in range(3)]
    assert len({len(mine) for mine in dealt}) == 1
    counted = [[i for micro_batch in mine if not micro_batch.is_dummy for i in micro_batch.indices] for mine in dealt]
    assert sorted(i for mine in counted for i in mine) == list(range(5)), "each view once, the group on all ranks"
    assert all(counted)
    assert micro_batches([], max_tokens=25, world=World(1, 2)) == []
    shared = [micro_batches(views[:1], max_tokens=25, world=World(rank, 2)) for rank in range(2)]
    assert shared == [[MicroBatch([0], is_dummy=True)], [MicroBatch([0])]]


# --- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parallel", "size", "sentence"),
    [
        (ParallelConfig(kind="none"), 2, 'parallel.kind is "none", but 2 processes were started'),
        (ParallelConfig(kind="ddp", cpu_offload=True), 2, "parallel.cpu_offload needs sharded weights"),
        (ParallelConfig(kind="ddp", param_dtype="bfloat16"), 1, "parallel.param_dtype needs sharded weights"),
        (ParallelConfig(kind="fsdp2", shards=2), 2, 'parallel.shards is for parallel.kind = "hsdp"'),
        (
            ParallelConfig(kind="hsdp", shards=3),
            4,
            "parallel.shards is 3, which does not divide the number of processes, 4",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused(parallel: ParallelConfig, size: int, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_parallel(parallel, size)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
