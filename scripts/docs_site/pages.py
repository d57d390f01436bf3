"""Pages and tables of the site that are generated from the code: keys, alarms, contexts, tasks, recipes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import resources

from pydantic import BaseModel, Field

from docs_site.commands import cell
from docs_site.config_keys import Table, tables
from selfdistill.config.run import RunConfig
from selfdistill.config.sections import AlarmsConfig
from selfdistill.config.sources import shipped_configs
from selfdistill.contexts.templates import FIELDS, load_templates
from selfdistill.methods import METHODS
from selfdistill.methods.base import Divergence
from selfdistill.methods.reference import section, weights_word
from selfdistill.tasks.check import list_tasks
from selfdistill.tracking.alarms import ALARMS


class Divergences(BaseModel):
    """The values of a method's ``divergence``."""

    divergence: Divergence = Field(description="How teacher and student are compared.")


def config_page() -> str:
    """Return the page of all keys of a config."""
    lines = [
        "# Config keys\n",
        "This page is generated from the models that check a config, so it is always up to date. `--set` takes a key's "
        "path: `--set optimiser.learning_rate=1e-5`. An unknown key is refused, and the error names the nearest key. "
        "The keys of `method` depend on its name: see [the methods](../methods/index.md).\n",
    ]
    for table in tables(RunConfig):
        lines += _table(table, "a run")
    lines.append("## Divergences\n")
    lines.append("A method that compares whole distributions takes one of these as `method.divergence`.\n")
    for table in tables(Divergences)[1:]:
        lines += _table(table, "", prefix="method.")
    return "\n".join(lines)


def _table(table: Table, whole: str, *, prefix: str = "") -> Iterator[str]:
    path = ", ".join(f"`{prefix}{name}`" for name in table.path.split(", ")) if table.path else f"Keys of {whole}"
    level = "###" if table.of or prefix or "." in table.path else "##"
    yield f"{level} {path}" + (f": `{table.of}`" if table.of else "") + "\n"
    yield f"{table.about}\n"
    if table.keys:
        yield "| key | type | default | what it is |"
        yield "|---|---|---|---|"
        for key in table.keys:
            yield f"| `{prefix}{key.path}` | {key.type} | {cell(key.default)} | {key.description} |"
        yield ""


def alarms_table() -> str:
    """Return the table of alarms with their limits and suggestions."""
    limits: dict[str, list[str]] = {name: [] for name in ALARMS}
    for key, field in AlarmsConfig.model_fields.items():
        names, colon, text = (field.description or "").partition(": ")
        for name in names.split(", ") if colon else ():
            limits[name].append(f"`{key}` {field.default:g}: {text.rstrip('.')}")
    rows = [
        f"| `{name}` | {rule.about} | {'<br>'.join(limits[name])} | {rule.suggestion} |"
        for name, rule in ALARMS.items()
    ]
    return _rows(["alarm", "it is raised when", "limit, a key of `alarms`", "suggestion"], rows)


def fields_table() -> str:
    """Return the table of the fields that the library fills."""
    return _rows(["field", "what it is"], [f"| `${name}` | {cell(text)} |" for name, text in FIELDS.items()])


def methods_table() -> str:
    """Return the table of methods with their contexts and their needs."""
    rows = []
    for name, kind in METHODS.items():
        method = kind.model_validate({})
        shown = [f"`{role.context or 'student'}` ({weights_word(role.weights)})" for role in method.roles().values()]
        sampled = (
            " and ".join(method.sampling_roles()) if method.on_policy else "no role; the responses come from the data"
        )
        rewards = "yes" if method.needs_rewards() else "no"
        rows.append(f"| [`{name}`]({name}.md) | {', '.join(shown) or '–'} | {rewards} | {sampled} |")
    return _rows(
        ["method", "contexts scored beside the student's, and weights", "needs rewards", "completions sampled by"], rows
    )


def contexts_table() -> str:
    """Return the table of the templates in every shipped context file."""
    templates = load_templates("default")
    rows = [
        f"| `{name}` | {template.description} | {', '.join(f'`{field}`' for field in sorted(template.needs)) or '–'} |"
        for name, template in templates.items()
    ]
    return _rows(["template", "what it shows", "fields it needs"], rows)


def tasks_table() -> str:
    """Return the table of tasks with their presets."""
    rows = [
        f"| `{task['kind']}` | {task['description']} | {', '.join(f'`{need}`' for need in task['needs']) or '–'} | "
        f"{', '.join(f'`{name}`' for name in task['presets']) or '–'} |"
        for task in list_tasks()
    ]
    return _rows(["task", "what it is", "keys it needs", "presets"], rows)


def recipes_table() -> str:
    """Return the table of shipped configs, each with the first sentence of its comment."""
    folder = resources.files("selfdistill.config") / "shipped"
    rows = []
    for name in shipped_configs():
        comment = (folder / f"{name}.toml").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
        text = " ".join(line.removeprefix("#").strip() for line in comment if line.startswith("#"))
        rows.append(f"| `{name}` | {cell(text.partition('. ')[0].partition('; ')[0].rstrip('.'))} |")
    return _rows(["config", "what it is"], rows)


def method_reference(name: str) -> str:
    """Return a method's reference section: definition, roles, hyperparameters."""
    return "\n".join(list(section(name))[1:])


def _rows(head: Sequence[str], rows: Sequence[str]) -> str:
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *rows])
