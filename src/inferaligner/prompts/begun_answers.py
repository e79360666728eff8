"""Prompts that do not end as the chat template ends them: begun answers and raw text, made from other
prompts.

Written for this project. An *opener* begins an answer and says nothing about the request; a *turn* is a user
message after which the assistant may say anything. The openers of the test part are used for figures alone.
Within the fitting part an opener goes with the contents of one fold, so that cross-validation holds out
contents and openers together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from inferaligner.prompts.chat import render_chat
from inferaligner.prompts.encoding import Reader, tokenizer_of

EndForm = Literal["opener", "content", "opened content", "raw"]
"""Where the content of a prompt stands.

`opener`: in the user's turn, followed by an answer that begins with an opener. `content`: in the begun
answer. `opened content`: in the begun answer, after an opener. `raw`: it is the whole text.
"""

FORMS: tuple[EndForm, ...] = get_args(EndForm)

OPENERS: tuple[str, ...] = (
    "{",
    "The answer is",
    "1.",
    "Answer:",
    "```python\n",
    "Let me think.",
    "In short,",
    "Here is",
    "Yes,",
    "<think>\n\n</think>\n\n",
    "Sure, here is how you do it:",
    "- ",
    "Hello!",
    "As requested,",
    "I",
    "**",
    '{"answer": "',
    "First,",
    "Certainly! The following is",
    "A",
)
TEST_OPENERS: tuple[str, ...] = (
    "[",
    "The result is",
    "Of course.",
    "Step 1:",
    "To summarize,",
    "Sure! Here's",
    "Okay,",
    "\n",
    "Final answer:",
    "<answer>",
    "Sure, here is how to do it:",
    "## ",
    "<think>\n",
    "The",
    "Great question!",
)
TURNS: tuple[str, ...] = (
    "Please continue.",
    "Hello",
    "Go on.",
    "What do you have for me?",
    "Hi, can you help me?",
)
TEST_TURNS: tuple[str, ...] = ("Continue.", "Hey there", "Tell me more.", "Can I ask something?")


def opener_of(number: int, fold: int, folds: int) -> str:
    """The opener for the `number`-th content of a fold of the fitting part."""
    of_fold = OPENERS[fold::folds]
    return of_fold[number % len(of_fold)]


def encode_ends(
    reader: Reader,
    contents: Sequence[str],
    openers: Sequence[str],
    turns: Sequence[str],
    form: EndForm,
    *,
    system: str | None = None,
) -> list[list[int]]:
    """Token ids of contents in one form, as a server would get them.

    Args:
        reader: The tokenizer or processor.
        contents: The contents.
        openers: The opener of each content.
        turns: The user's turn of each content, for the forms whose content is in the answer.
        form: The form of all of them.
        system: A system prompt that goes before each of them.
    """
    tokenizer = tokenizer_of(reader)
    if form == "raw":
        return [list(ids) for ids in tokenizer(list(contents))["input_ids"]]
    rows = zip(contents, openers, turns, strict=True)
    if form == "opener":
        texts = [render_chat(reader, content, system=system) + opener for content, opener, _ in rows]
    elif form == "content":
        texts = [render_chat(reader, turn, system=system) + content for content, _, turn in rows]
    else:
        texts = [
            render_chat(reader, turn, system=system) + opener + " " + content
            for content, opener, turn in rows
        ]
    # The template writes the special tokens itself.
    return [list(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
