"""Command lines, settings, configs, data files and folders as people get them wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

ROWS = "".join(json.dumps({"question": f"{n} + 1 = ?", "answer": str(n + 1)}) + "\n" for n in range(8))
SUMS = "".join(f'{{"question": "What is {n} + 1?", "answer": "{n + 1}"}}\n' for n in range(12))
CONFIG = 'steps = 1\nmethod = "grpo"\nmodel.path = "countdown-base"\ntask = {kind = "countdown"}\n'
Words = str | Callable[[Path], str]
"""A command line, split at blanks. Where it needs files, a function writes them and returns it."""


def after(words: str, **files: bytes | str) -> Callable[[Path], str]:
    """A command line in a folder with these files; a double underscore in their names is a dot."""

    def write(folder: Path) -> str:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else content.encode()
            (folder / name.replace("__", ".")).write_bytes(data)
        return words

    return write


def own(text: str | bytes, words: str = "train own.toml --out out") -> Callable[[Path], str]:
    """A run of one's own config."""
    return after(words, own__toml=text)


def data(text: str | bytes, words: str = "--task math", name: str = "rows__jsonl") -> Callable[[Path], str]:
    """A check of one's own rows."""
    return after(f"data check --path {name.replace('__', '.')} {words}", **{name: text})


def folder(words: str, **files: str) -> Callable[[Path], str]:
    """A command on a folder ``run`` with these files."""

    def write(place: Path) -> str:
        (place / "run").mkdir()
        for name, content in files.items():
            (place / "run" / name.replace("__", ".")).write_text(content, encoding="utf-8")
        return words

    return write


WRONG_INPUTS: Mapping[str, tuple[Words, str]] = {
    # command lines
    "train without a config": ("train", "missing argument 'config';"),
    "train with two configs": ("train countdown-grpo countdown-sdpo", "got unexpected extra argument(s) (countdown-s"),
    "train with an unknown option": (
        "train countdown-grpo --epochs 3",
        "train has no option --epochs; there are: --dry-run",
    ),
    "train with steps as an option": (
        "train countdown-grpo --steps 3",
        "train has no option --steps; here it is --set steps=…",
    ),
    "train with an option without its value": (
        "train countdown-grpo --out",
        "option '--out' requires an argument; see",
    ),
    "train by no processes": ("train countdown-grpo --launch 0", "invalid value for '--launch': Input should be"),
    "train by a word of processes": (
        "train countdown-grpo --launch two",
        "invalid value for '--launch': Input should be",
    ),
    "train all weights in 4 bits": (
        "train countdown-grpo --out out --set model.quantisation=nf4",
        "model.quantisation 'nf4' keeps weights in 4 bits, which cannot be trained: train an adapter",
    ),
    "train shards with moments in 8 bits": (
        "train countdown-grpo --out out --set optimiser.kind=adamw8bit --set parallel=fsdp2",
        "optimiser.kind 'adamw8bit' cannot be sharded: set parallel.kind to",
    ),
    "train a model": ("train countdown-base", "countdown-base is a model, which names no method and no task"),
    "train a task": ("train countdown", "not found; "),
    "train a method": ("train sdpo", "not found; "),
    "train a folder of nothing": (folder("train run"), "run is neither a run folder nor a model directory"),
    "train a name with a capital": ("train Countdown-GRPO", "not found; "),
    "train a path with a tilde": ("train ~/own.toml", "not found; "),
    "train a Python file": (
        after("train own.py", own__py="steps = 1\n"),
        'own.py: no method: write for example method.name = "antisd"',
    ),
    "train a YAML file": (after("train own.yaml", own__yaml="steps: 1\n"), "is not valid TOML: "),
    "train an empty name": (lambda place: "train ''", "not found; "),
    "resume what was never begun elsewhere": (
        folder("train countdown-grpo --out run --resume", notes__txt="mine"),
        "run is not empty and holds no run: choose another --out",
    ),
    "compare without a folder": ("compare countdown-grpo", "missing option '--out';"),
    "compare nothing": ("compare --out out", "missing argument 'CONFIG...';"),
    "compare with seeds of words": (
        "compare countdown-grpo --out out --seeds one",
        "--seeds 'one': write whole numbers and commas, for example --seeds 0,1",
    ),
    "compare with no seeds": (
        "compare countdown-grpo --out out --seeds ,",
        "--seeds ',': write whole numbers and commas, for example --seeds 0,1,2",
    ),
    "compare with a negative seed": (
        "compare countdown-grpo --out out --seeds -1",
        "--seeds '-1': write whole numbers and commas, for example --seeds 0,1,",
    ),
    "compare with one seed twice": (
        "compare countdown-grpo --out out --seeds 1,1",
        "--seeds '1,1' names a seed twice: a run repeated bit for bit adds noth",
    ),
    "compare with no jobs": (
        "compare countdown-grpo --out out --jobs 0",
        "invalid value for '--jobs': Input should be g",
    ),
    "compare with a strange baseline": (
        "compare countdown-grpo --out out --baseline sdpo",
        "--baseline 'sdpo' is no arm; arms: countdown-grpo",
    ),
    "compare with a strange main arm": (
        "compare countdown-grpo --out out --main sdpo",
        "--main 'sdpo' is no arm; arms: countdown-grpo",
    ),
    "compare one config twice": (
        "compare countdown-grpo countdown-grpo --out out",
        "two arms are named 'countdown-grpo': give one of the configs another f",
    ),
    "evaluate nothing": ("evaluate", "missing argument 'model';"),
    "evaluate without a task": (
        "evaluate countdown-base",
        "countdown-base is a model, which names no task: add --task, for",
    ),
    "evaluate an unknown task": ("evaluate countdown-base --task chess", "evaluate: task: unknown kind 'chess'"),
    "evaluate a task that needs rows": ("evaluate countdown-base --task math", "evaluate: task.path: field required"),
    "evaluate no samples": (
        "evaluate countdown-base --task countdown --samples 0",
        "invalid value for '--samples': Input should b",
    ),
    "evaluate half a sample": (
        "evaluate countdown-base --task countdown --samples 0.5",
        "invalid value for '--samples': Input should b",
    ),
    "evaluate no problems": (
        "evaluate countdown-base --task countdown --limit 0",
        "invalid value for '--limit': Input should be",
    ),
    "evaluate an unknown split": ("evaluate countdown-base --task countdown --split dev", "unknown split 'dev'"),
    "evaluate at a negative temperature": (
        "evaluate countdown-base --task countdown --temperature -1",
        "invalid value for '--temperature': Input shou",
    ),
    "evaluate at no temperature": (
        "evaluate countdown-base --task countdown --temperature nan",
        "invalid value for '--temperature': Input shou",
    ),
    "evaluate at an endless temperature": (
        "evaluate countdown-base --task countdown --temperature inf",
        "temperature must be a number of at least 0, got inf",
    ),
    "evaluate no tokens": (
        "evaluate countdown-base --task countdown --max-tokens 0",
        "invalid value for '--max-tokens': Input shoul",
    ),
    "evaluate more tokens than the window": (
        "evaluate countdown-base --task countdown --max-tokens 99999",
        "no prompt fits: the longest of 256 has 14 tokens, completions may take",
    ),
    "evaluate with a negative seed": (
        "evaluate countdown-base --task countdown --seed -1",
        "invalid value for '--seed': Input should be g",
    ),
    "evaluate with a method": (
        "evaluate countdown-base --task countdown --set method=grpo",
        "--set method=grpo: evaluate trains nothing, so it has no method to set",
    ),
    "inspect without a folder": ("inspect countdown-base --task countdown", "missing option '--out';"),
    "inspect an unknown method": (
        "inspect countdown-base --task countdown --out out --methods sdqo",
        "unknown method 'sdqo'",
    ),
    "inspect no method": (
        "inspect countdown-base --task countdown --out out --methods ,",
        "Nothing to inspect: pass --methods, --config or --contexts.",
    ),
    "inspect an unknown context": (
        "inspect countdown-base --task countdown --out out --contexts nope",
        "unknown context 'nope'",
    ),
    "inspect absent completions": (
        "inspect countdown-base --task countdown --out out --rollouts no.jsonl",
        "no.jsonl is no file; a run writes its completions to rollouts.jsonl",
    ),
    "inspect absent words": (
        "inspect countdown-base --task countdown --out out --words no",
        "no holds no word list: name them answer.txt, deliberation.txt, connect",
    ),
    "contexts of nothing": ("contexts", "missing argument 'config';"),
    "contexts of an unknown config": ("contexts nope", "not found; "),
    "contexts of no examples": ("contexts countdown-grpo --examples 0", "invalid value for '--examples': Input should"),
    "teachers of an unknown config": ("teachers nope", "not found; "),
    "teachers of no problems": ("teachers countdown-opsd --problems 0", "invalid value for '--problems': Input should"),
    "export nothing": ("export", "missing argument 'RUN';"),
    "export a folder that is not there": (
        "export nope --out out",
        "nope holds no checkpoint: give the folder of a run that has saved one",
    ),
    "export a folder of nothing": (
        folder("export run --out out"),
        "run holds no checkpoint: give the folder of a run that has saved one",
    ),
    "export a file": (
        after("export own.toml --out out", own__toml="x"),
        "own.toml holds no checkpoint: give the folder of a run that has saved",
    ),
    "export a model": (
        "export countdown-base --out out",
        "countdown-base holds no checkpoint: give the folder of a run that has",
    ),
    "watch a folder that is not there": (
        "watch nope",
        "there is no folder nope; a run makes its own when its model is loaded",
    ),
    "watch a folder of nothing": (folder("watch run"), "run is not the folder of a run: it has no config.json"),
    "watch a file": (
        after("watch own.toml", own__toml="x"),
        "own.toml is not the folder of a run: it has no config.json",
    ),
    "watch a port that is none": (
        folder("watch run --port 99999", config__json="{}"),
        "invalid value for '--port': Input should be l",
    ),
    "watch at a host that is none": (
        folder("watch run --host no.such.host.invalid", config__json="{}"),
        "cannot serve at no.such.host.invalid:8642: Name or service not known;",
    ),
    "watch a damaged config": (folder("watch run --static", config__json="{"), "is not valid JSON"),
    "watch damaged metrics": (
        folder("watch run --static", config__json="{}", metrics__jsonl='{"step": 1\n{}\n'),
        "metrics.jsonl, line 1: not valid JSON",
    ),
    "watch metrics of brackets": (
        folder("watch run --static", config__json="{}", metrics__jsonl="[" * 100_000 + "\n"),
        "metrics.jsonl, line 1: not valid JSON",
    ),
    "watch metrics of a number without end": (
        folder("watch run --static", config__json="{}", metrics__jsonl='{"step": ' + "9" * 5000 + "}\n"),
        "metrics.jsonl, line 1: not valid JSON",
    ),
    "watch completions of brackets": (
        folder("watch run --static", config__json="{}", rollouts__jsonl="[" * 100_000 + "\n"),
        "rollouts.jsonl, line 1: not valid JSON",
    ),
    "init with an adapter that is no JSON": (
        folder("init --model run --data run/rows.jsonl", adapter_config__json="{", rows__jsonl=SUMS),
        "adapter_config.json is no JSON (",
    ),
    "methods of no name": ("methods nope", "unknown method 'nope'"),
    "configs of no name": ("configs nope", "not found; "),
    "a command that is none": ("eval countdown-base", "there is no command eval; did you mean 'evaluate'?"),
    "an option that is none": (
        "--verbose",
        "there is no option --verbose; did you mean '--version'?",
    ),
    "data without a command": ("data chek", "there is no command data chek; did you mean 'check'?"),
    # settings
    "a setting of a list as a number": (
        "train countdown-grpo --out out --set steps=[1]",
        "countdown-grpo: steps: input should be a valid integer (got [1])",
    ),
    "a setting of half a list": (
        "train countdown-grpo --out out --set method.stop=[1",
        "unknown key method.stop for method 'grpo'",
    ),
    "a setting of no steps": (
        "train countdown-grpo --out out --set steps=0",
        "countdown-grpo: steps: input should be greater than or equal to 1 (got",
    ),
    "a setting of half a step": (
        "train countdown-grpo --out out --set steps=1.5",
        "countdown-grpo: steps: input should be a valid integer, got a number w",
    ),
    "a setting of endless steps": (
        "train countdown-grpo --out out --set steps=inf",
        "countdown-grpo: steps: input should be a finite number (got inf)",
    ),
    "a setting of no learning": (
        "train countdown-grpo --out out --set optimiser.learning_rate=-1",
        "countdown-grpo: optimiser.learning_rate: input should be greater than",
    ),
    "a setting of nan": (
        "train countdown-grpo --out out --set optimiser.learning_rate=nan",
        "countdown-grpo: optimiser.learning_rate: input should be a finite numb",
    ),
    "a setting of the other spelling": (
        "train countdown-grpo --out out --set optimizer.lr=1e-5",
        "countdown-grpo: unknown key 'optimizer'",
    ),
    "a setting of no prompts": (
        "train countdown-grpo --out out --set sampling.prompts=0",
        "countdown-grpo: sampling.prompts: input should be greater than or equa",
    ),
    "a setting of one completion for grpo": (
        "train countdown-grpo --out out --set sampling.completions=0",
        "countdown-grpo: sampling.completions: input should be greater than or",
    ),
    "a setting with blanks": (
        lambda place: "train countdown-grpo --out out --set 'steps = x'",
        "countdown-grpo: steps: input should be a valid integer, unable to pars",
    ),
    "a setting with a dash": (
        "train countdown-grpo --out out --set sampling.max-tokens=3",
        "countdown-grpo: unknown key 'sampling.max-tokens'",
    ),
    "a setting of a name alone": ("train countdown-grpo --out out --set .=1", "countdown-grpo: unknown key ''"),
    "a setting of dots": (
        "train countdown-grpo --out out --set sampling..prompts=1",
        "countdown-grpo: unknown key 'sampling.'",
    ),
    "a setting of an unknown sampler": (
        "train countdown-grpo --out out --set sampler.kind=sglang",
        "countdown-grpo: sampler: unknown kind 'sglang'",
    ),
    "a setting of an unknown parallel kind": (
        "train countdown-grpo --out out --set parallel.kind=zero3",
        "countdown-grpo: parallel.kind: input should be 'none', 'ddp', 'fsdp2'",
    ),
    "a setting of an unknown schedule": (
        "train countdown-grpo --out out --set optimiser.schedule=cosin",
        "countdown-grpo: optimiser.schedule: input should be 'constant', 'linea",
    ),
    "a setting of a device without its kind": (
        "train countdown-grpo --out out --set model.device=0",
        "countdown-grpo: model.device: input should be a valid string (got 0)",
    ),
    "a setting of an adapter of rank 0": (
        "train countdown-grpo --out out --set model.lora.rank=0",
        "countdown-grpo: model.lora.rank: input should be greater than or equal",
    ),
    "a setting of absent layers": (
        "train countdown-grpo --out out --set model.lora.rank=2 --set model.lora.target_modules=['nope']",
        "model.lora.target_modules of countdown-base: no module of the model is",
    ),
    "a setting of an absent reward": (
        "train countdown-grpo --out out --set reward=nope.module:f",
        "reward 'nope.module:f': module 'nope.module' cannot be imported (No mo",
    ),
    "a setting of a sink that is none": (
        "train countdown-grpo --out out --set sinks=['mlflow']",
        "countdown-grpo: sinks: input should be a valid list (got '[mlflow]')",
    ),
    "a setting of an alarm that is none": (
        "train countdown-grpo --out out --set alarms.stop_on=['nope']",
        "countdown-grpo: unknown key 'alarms.stop_on'",
    ),
    # configs
    "a config of nothing": (own(""), 'own.toml: no method: write for example method.name = "antisd"'),
    "a config of zero bytes": (own(b"\x00" * 20), "is not valid TOML: "),
    "a config of a table twice": (own(CONFIG + "[sampling]\nprompts = 1\n[sampling]\n"), "is not valid TOML: "),
    "a config of a key twice": (own("steps = 1\nsteps = 2\n"), "is not valid TOML: "),
    "a config of words without quotes": (own("method = grpo\n"), "is not valid TOML: "),
    "a config of the JSON kind": (own('{"steps": 1}'), "is not valid TOML: "),
    "a config of a truth that is none": (own(CONFIG + "model.compile = True\n"), "is not valid TOML: "),
    "a config of a path of Windows": (
        own('steps = 1\nmethod = "grpo"\nmodel.path = "C:\\models"\n'),
        "is not valid TOML: ",
    ),
    "a config of an unknown table": (own(CONFIG + "[trainer]\ngpus = 1\n"), "own.toml: unknown key 'trainer'"),
    "a config that is a folder": (
        folder("train run --out out"),
        "run is neither a run folder nor a model directory: it holds no config.json of either",
    ),
    "a JSON config of a list": (
        after("train own.json --out out", own__json="[]"),
        "config own.json holds no table of keys",
    ),
    "a JSON config that is none": (after("train own.json --out out", own__json="{"), "is not valid JSON"),
    "a JSON config of brackets": (after("train own.json --out out", own__json="[" * 100_000), "is not valid JSON"),
    "a preset that is none": (
        "data check --path rows.jsonl --preset gsm9k",
        "preset 'gsm9k' not found; did you mean 'gsm8k'",
    ),
    "a preset of another kind": (
        data(ROWS, "--task choice --preset gsm8k"),
        "task.preset 'gsm8k' is for task.kind 'math', not 'choice'",
    ),
    # data
    "data without a path": ("data check --task math", "name the rows to check with --path"),
    "data without a task": (data(ROWS, ""), "name a --task (math, choice, tools, code, text) or a --preset (aime"),
    "data of an unknown task": (data(ROWS, "--task maths"), "data check: task: unknown kind 'maths'"),
    "data of a task of its own": (
        data(ROWS, "--task countdown"),
        "task 'countdown' makes its own problems, so there are no rows to check",
    ),
    "data that is not there": ("data check --path nope.jsonl --task math", "data file nope.jsonl not found"),
    "data that is a folder of nothing": (
        folder("data check --path run --task math"),
        "data set run cannot be read as a folder saved by datasets: Directory r",
    ),
    "data of an unknown kind": (data("a\tb\n", name="rows__tsv"), "is read in no way: save it as .jsonl"),
    "data in a spreadsheet": (data(b"PK\x03\x04", name="rows__xlsx"), "is read in no way: save it as .jsonl"),
    "data in a pickle": (data(b"\x80\x04.", name="rows__pkl"), "is read in no way: save it as .jsonl"),
    "data in YAML": (data("- question: 1\n", name="rows__yaml"), "is read in no way: save it as .jsonl"),
    "data without a network": (
        "data check --path openai/gsm8k --preset gsm8k",
        "data file openai/gsm8k not found; a data set of the hub needs its spli",
    ),
    "data of an unknown key": (data(ROWS, "--task math --set task.anwser=a"), "data check: unknown key 'task.anwser'"),
    "data of a column that is not there": (
        data(ROWS, "--task math --set task.answer=gold"),
        "no 'gold', which field 'answer' needs; the row has question,",
    ),
    "data as a pointer of git-lfs": (
        data("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        "is a pointer of git-lfs, not the file itself",
    ),
    "data as a page of a web server": (
        data("<!doctype html>\n<html></html>\n"),
        "seems to be a page of HTML or XML",
    ),
    "data of blank lines": (data("\n\n\n"), "data file rows.jsonl holds no rows"),
    "data of one object": (data(json.dumps({"rows": [1]}, indent=1)), "a row must be a JSON object, this is a number"),
    "data of another encoding": (
        data('{"question": "é", "answer": "1"}\n'.encode("latin-1")),
        "data file rows.jsonl is not UTF-8 text: invalid continuation byte at b",
    ),
    "data that is cut": (data(ROWS[:-9]), "malformed JSON (Unterminated string starting at at column 27"),
    "data of single quotes": (
        data("{'question': 'a', 'answer': '1'}\n"),
        "malformed JSON (Expecting property name enclosed in double q",
    ),
    "data of questions that are numbers": (
        data('{"question": 3, "answer": "1"}\n' * 2, "--task choice"),
        "the prompt has no lines 'A: …', 'B: …'; name the columns of ",
    ),
    "choices without options": (
        data('{"question": "a?", "answer": "B"}\n', "--task choice"),
        "the prompt has no lines 'A: …', 'B: …'; name the columns of ",
    ),
    "choices whose answer is none of them": (
        data('{"question": "a?\\nA: x\\nB: y", "answer": "C"}\n', "--task choice"),
        "the answer 'C' is neither a letter nor a text of its options",
    ),
    "calls that are no JSON": (
        data('{"prompt": "a", "answer": "f(1)"}\n', "--task tools"),
        "the answer is not valid JSON: Expecting value at character 1",
    ),
    "calls without a name": (
        data('{"prompt": "a", "answer": [{"arguments": {}}]}\n', "--task tools"),
        "a call needs the keys name and arguments (or Action and Acti",
    ),
    "code without tests": (
        data('{"prompt": "a"}\n', "--task code"),
        "the code task needs public_tests, hidden_tests or both: columns that h",
    ),
    "code whose tests are no Python": (
        data('{"prompt": "a", "t": "assert ("}\n', "--task code --set task.hidden_tests=t"),
        "the tests are no Python: '(' was never closed (their line 1)",
    ),
}
"""What is wrong, the command, and words of the sentence that says so."""
