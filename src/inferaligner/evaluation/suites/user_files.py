"""Suites of a user's own files: `KIND=SPEC`.

- harmful=SPEC, jailbreak=SPEC, over-refusal=SPEC, benign=SPEC: a file of prompts (`prompts/prompt_files.py`).
- jailbreak=TEMPLATES::QUESTIONS: every template with every question. `{prompt}`, `[INSERT PROMPT HERE]` or
  `{}` in a template stands for the question.
- utility=FILE: rows with `prompt` and `answer`, which is one of `choices`, or a number where there are none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inferaligner.errors import InputError
from inferaligner.evaluation.suites.data_files import rows_of
from inferaligner.evaluation.suites.suite import KINDS, Item, Suite, Task
from inferaligner.prompts.columns import beside, listed
from inferaligner.prompts.images import text_of, with_text
from inferaligner.prompts.prompt_files import read_prompts

MARKS = ("{prompt}", "[INSERT PROMPT HERE]", "{}")
"""The marks that stand for the question in a template."""


@dataclass(frozen=True)
class Given:
    """A source of given items."""

    given: tuple[Item, ...]

    def items(self, data: Path | None) -> list[Item]:
        return list(self.given)


def user_suite(kind: str, spec: str) -> Suite:
    """The suite of `KIND=SPEC`.

    Raises:
        InputError: there is no such kind, or the file cannot be used.
    """
    if kind not in KINDS:
        raise InputError(f"{kind}={spec}: expected one of {', '.join(KINDS)} before the '='.")
    name = f"{kind}: {Path(spec.partition('::')[0]).stem or spec}"
    task: Task = "reply"
    if kind == "utility":
        items, task = _labelled(Path(spec))
    elif "::" in spec:
        items = _crossed(spec)
    else:
        items = [Item(prompt) for prompt in read_prompts(spec)]
    return Suite(name, spec, kind, Given(tuple(items)), task, licence="the user's own file")


def fill(template: str, question: str) -> str | None:
    """The template with the question in it, or None if the template has no mark for a question."""
    mark = next((mark for mark in MARKS if mark in template), None)
    return None if mark is None else template.replace(mark, question)


def _crossed(spec: str) -> list[Item]:
    templates, _, questions = spec.partition("::")
    filled = []
    prompts = read_prompts(questions)
    for number, template in enumerate(read_prompts(templates), start=1):
        for question in prompts:
            text = fill(text_of(template), text_of(question))
            if text is None:
                raise InputError(
                    f"{templates}, template {number} has no place for a question; expected one of "
                    f"{', '.join(MARKS)} in it."
                )
            filled.append(Item(with_text(question, text), f"template {number}"))
    return filled


def _labelled(file: Path) -> tuple[list[Item], Task]:
    if not file.is_file():
        raise InputError(f"{file} does not exist; expected a file of rows with prompt, answer and choices.")
    rows = rows_of(file)
    items = [_item(row, f"{file}, row {number}") for number, row in enumerate(rows, start=1)]
    if not items:
        raise InputError(f"{file} has no rows: expected at least one with prompt and answer.")
    if all(item.choices for item in items):
        return items, "pick"
    for number, item in enumerate(items, start=1):
        if item.choices:
            raise InputError(f"{file}, row {number} has choices and others have none; give all rows choices.")
        try:
            float(str(item.answer).replace(",", ""))
        except ValueError:
            raise InputError(
                f"{file}, row {number}: the answer {str(item.answer)[:40]!r} is no number, and there are no "
                "choices to compare it with. Add a column choices."
            ) from None
    return items, "number"


def _item(row: dict[str, Any], where: str) -> Item:
    prompt, answer, choices = row.get("prompt"), row.get("answer"), row.get("choices") or ()
    if not isinstance(prompt, str) or not prompt.strip() or answer is None:
        raise InputError(f"{where}: expected a text in 'prompt' and a value in 'answer'.")
    more = beside({name: value for name, value in row.items() if name != "choices"}, "prompt")
    if more:
        raise InputError(
            f"{where}: only 'prompt' is read, but {listed(more)} may be part of the prompt too. Put the "
            "whole prompt into 'prompt', and remove or rename the others."
        )
    if isinstance(choices, str):
        choices = [choice.strip() for choice in choices.split("|")]
    if not isinstance(choices, (list, tuple)) or len(choices) == 1:
        raise InputError(f"{where}: expected two or more choices, as a list or as 'yes|no|maybe'.")
    texts = tuple(str(choice) for choice in choices)
    if texts and str(answer) not in texts:
        raise InputError(f"{where}: the answer {str(answer)[:40]!r} is not among the choices {list(texts)}.")
    return Item(prompt, str(row.get("domain") or ""), texts, str(answer))
