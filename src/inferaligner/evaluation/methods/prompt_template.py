"""A prompt template around the user's text, without gate and steering."""

from __future__ import annotations

import hashlib
import importlib.resources
from pathlib import Path

from inferaligner.errors import InputError
from inferaligner.evaluation.methods.method import Method, MethodContext
from inferaligner.evaluation.suites.user_files import MARKS, fill
from inferaligner.prompts.images import Prompt, text_of, with_text

NAME = "prompt"
OPTION = "a template: prompt=FILE, with {prompt} in it"
OPTION_IS_PATH = True
PROMPT_MARKS = ("{attack_prompt}", *MARKS)


class PromptTemplate(Method):
    """Every prompt in one template."""

    def __init__(self, name: str, title: str, context: MethodContext, template: str) -> None:
        super().__init__(name, title, context)
        mark = next((mark for mark in PROMPT_MARKS if mark in template), None)
        if mark is None:
            raise InputError(
                f"The prompt template {name} has no place for the user's text; expected one of "
                f"{', '.join(PROMPT_MARKS)} in it."
            )
        self._template = template.replace(mark, "{prompt}")

    def rewrite(self, prompt: Prompt) -> Prompt:
        filled = fill(self._template, text_of(prompt))
        assert filled is not None
        return with_text(prompt, filled)

    def settings(self) -> dict[str, object]:
        return {"template": hashlib.sha256(self._template.encode()).hexdigest()[:16]}


def make(context: MethodContext, option: str) -> Method:
    """`prompt=FILE`: any template, such as a published wording."""
    file = Path(option)
    try:
        template = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"The prompt template {file} cannot be read ({error}).") from None
    return PromptTemplate(f"prompt: {file.stem}", file.stem, context, template.strip("\n"))


def shipped(name: str) -> str:
    """A shipped template from `prompts/`."""
    file = importlib.resources.files("inferaligner.evaluation.methods") / "prompts" / f"{name}.txt"
    return file.read_text(encoding="utf-8").strip("\n")
