"""Defences in the prompt: a text around what the user wrote. The steering and the gate stay away."""

from __future__ import annotations

import hashlib
import importlib.resources
from pathlib import Path

from inferaligner.errors import InputError
from inferaligner.evaluation.methods.method import Method, MethodContext, Needs
from inferaligner.evaluation.suites.user_files import MARKS, fill
from inferaligner.prompts.images import Prompt, text_of, with_text

NAME = "prompt"
NEEDS: Needs = "nothing"
PROMPT_MARKS = (*MARKS, "{attack_prompt}")


class PromptTemplate(Method):
    """Every prompt inside one template."""

    def __init__(self, name: str, title: str, bench: MethodContext, template: str) -> None:
        super().__init__(name, title, bench)
        # The longest first: "{}" must not be found where "{attack_prompt}" stands.
        place = next((p for p in ("{attack_prompt}", *MARKS) if p in template), None)
        if place is None:
            raise InputError(
                f"The prompt template {name} has no place for the user's text; expected one of "
                f"{', '.join(PROMPT_MARKS)} in it."
            )
        self._template = template.replace(place, "{prompt}")

    def rewrite(self, prompt: Prompt) -> Prompt:
        filled = fill(self._template, text_of(prompt))
        assert filled is not None
        return with_text(prompt, filled)

    def settings(self) -> dict[str, object]:
        return {"template": hashlib.sha256(self._template.encode()).hexdigest()[:16]}


def make(bench: MethodContext, option: str) -> Method:
    """`prompt=FILE`: any template, so that the published wordings can be run."""
    if not option:
        raise InputError("The method prompt needs a template: prompt=FILE, with {prompt} in it.")
    file = Path(option)
    try:
        template = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"The prompt template {file} cannot be read ({error}).") from None
    return PromptTemplate(f"prompt: {file.stem}", file.stem, bench, template.strip("\n"))


def shipped(name: str) -> str:
    """A wording of our own from `prompts/`."""
    place = importlib.resources.files("inferaligner.evaluation.methods") / "prompts" / f"{name}.txt"
    return place.read_text(encoding="utf-8").strip("\n")
