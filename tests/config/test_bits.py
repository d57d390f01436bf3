"""Settings that keep numbers in fewer bits: what does not fit them is refused before torch is imported."""

from __future__ import annotations

from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from selfdistill.cli.early import check_comparison, check_run
from selfdistill.config import bits
from selfdistill.config.run import config_for, load_config
from selfdistill.errors import ConfigError
from selfdistill.training.problem import build_problem

NF4 = ("model.quantisation=nf4", "model.lora.rank=2")
EIGHT = ("optimiser.kind=adamw8bit",)


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bits, "find_spec", lambda name: ModuleSpec(name, None))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (NF4[:1], "model.quantisation 'nf4' keeps weights in 4 bits, which cannot be trained: train an adapter"),
        ((*NF4, "model.dtype=float64"), "model.quantisation 'nf4' has no kernels for float64: set model.dtype"),
        ((*NF4, "parallel=fsdp2"), "model.quantisation 'nf4' cannot be sharded: set parallel.kind to \"ddp\""),
        ((*NF4, "parallel=hsdp"), "or leave it out under 'hsdp'"),
        ((*NF4, "model.quantisation=int3"), "model.quantisation"),
        ((*EIGHT, "model.dtype=float64"), "optimiser.kind 'adamw8bit' has no kernels for float64: set model.dtype"),
        ((*EIGHT, "parallel=fsdp2"), "optimiser.kind 'adamw8bit' cannot be sharded: set parallel.kind to \"ddp\""),
        ((*EIGHT, "parallel=hsdp"), "or leave it out under 'hsdp'"),
        (("optimiser.kind=adam",), "optimiser.kind"),
        ((*NF4, "model.path=ADAPTER"), "needs a whole model below the new adapter, and ADAPTER is itself an adapter"),
    ],
)
def test_what_does_not_fit_is_refused_by_training(
    settings: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ADAPTER").mkdir()
    Path("ADAPTER/adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        check_run(load_config("countdown-grpo", settings), tmp_path / "run", resume=False)
    with pytest.raises(ConfigError, match=message):
        build_problem(load_config("countdown-grpo", settings))
    options = {
        "methods": (),
        "sweeps": (),
        "seeds": "1",
        "baseline": None,
        "main": None,
        "match": "steps",
        "split": "validation",
    }
    with pytest.raises(ConfigError, match=message):
        check_comparison(["countdown-grpo"], settings, folder=tmp_path / "compared", **options)  # type: ignore[arg-type]


def test_what_fits_is_taken(tmp_path: Path) -> None:
    check_run(load_config("countdown-grpo", (*NF4, *EIGHT)), tmp_path / "run", resume=False)
    # A command that trains nothing takes no adapter either.
    assert config_for("countdown-grpo", None, NF4[:1], command="evaluate").model.quantisation == "nf4"


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bits, "find_spec", lambda name: None)
    message = r"model.quantisation 'nf4' needs bitsandbytes: pip install 'selfdistill\[bitsandbytes\]'"
    with pytest.raises(ConfigError, match=message):
        check_run(load_config("countdown-grpo", NF4), tmp_path / "run", resume=False)
    with pytest.raises(ConfigError, match=r"optimiser\.kind 'adamw8bit' needs bitsandbytes: pip install"):
        check_run(load_config("countdown-grpo", EIGHT), tmp_path / "run", resume=False)
    with pytest.raises(ConfigError, match=message):
        config_for("countdown-grpo", None, NF4[:1], command="evaluate")
