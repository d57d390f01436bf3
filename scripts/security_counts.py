"""Write the numbers of attacks, kills, faults and wrong inputs that the suite tries into docs/security.md.

The numbers come from pytest's own collection, so they need not be counted by hand.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "security.md"
COUNTED = {
    "attempts to leave the sandbox": ("sandbox/test_sandbox_attacks.py", "test_nothing_gets_out"),
    "programs that compute nothing and want a reward": ("sandbox/test_sandbox_attacks.py", "test_nothing_is_earned"),
    "results that are hostile, and checks that a candidate would answer for": (
        "sandbox/test_sandbox.py",
        "test_a_hostile_result|test_nothing_of_the_candidates",
    ),
    "trainers that were killed or left with processes of the sandbox": (
        "sandbox/test_sandbox.py",
        "test_nothing_outlives",
    ),
    "runs that were killed": ("system/test_resume.py", "test_a_run_killed|test_kill_9|test_a_folder_is_replaced"),
    "disks that were full or refused": (
        "system/test_folders.py",
        "test_a_disk_that_is_full|test_what_the_disk_refuses|test_a_file_that_cannot",
    ),
    "damaged files of a run": ("system/test_folders.py|report/test_damage.py", "test_damage_is|test_damaged_lines"),
    "folders that cannot be written to": ("system/test_folders.py", "test_an_out_that"),
    "hostile completions through whole runs (kinds of tasks)": ("system/test_fuzz.py", "test_no_completion"),
    "models that cannot be used": (
        "system/test_wrong_models.py|models/test_mistakes.py",
        "test_a_wrong_model|test_a_model_that",
    ),
    "command lines, configs, data and folders that are wrong": ("system/test_wrong_inputs.py", "test_a_wrong_input"),
    "settings that cannot be": ("system/test_cli.py", "test_a_setting"),
    "rows and files of rows that cannot be used": (
        "tasks/test_datacheck.py|tasks/test_data.py|tasks/test_code_task.py|tasks/test_odd_files.py|system/test_cli.py",
        "test_rows_that|test_what_the_check_refuses",
    ),
}
"""Kind → (test files, test names), both as patterns."""


def counts() -> dict[str, int]:
    """The number of cases of each kind in the suite."""
    files = sorted({f"tests/{name}" for names, _ in COUNTED.values() for name in names.split("|")})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *files]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return {
        kind: sum(bool(re.match(rf"tests/({names})::({tests})", line)) for line in listed)
        for kind, (names, tests) in COUNTED.items()
    }


def filled(page: str) -> str:
    """The page with its table of counts."""
    rows = "".join(f"| {kind} | {number} |\n" for kind, number in counts().items())
    table = f"<!-- counts -->\n| tried | cases |\n|---|---|\n{rows}<!-- end -->"
    return re.sub(r"<!-- counts -->.*?<!-- end -->", lambda _: table, page, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
