"""Which columns of a row make its prompt, where the user named none.

The first of `DEFAULT_COLUMNS` that a row has (upper or lower case) is chosen, or else a column of messages.
If that column is only part of the prompt, the rest is joined to it by the rule of a known form (`FORMS`), or
the row is refused with a message that names the columns. The rest of a prompt is every column of `_PARTS`
whose text is not in the chosen column already.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inferaligner.errors import InputError
from inferaligner.prompts.message_lists import CHAT_COLUMNS, says_no_more

DEFAULT_COLUMNS = ("prompt", "instruction", "question", "goal")


@dataclass(frozen=True)
class Form:
    """A public form of rows whose prompt stands in two columns.

    Attributes:
        name: The data set that is known for it.
        column: The default column.
        rest: The column that belongs to it.
        rest_first: Whether the rest stands before the column, with a blank line between them; otherwise it
            stands on the next line.
    """

    name: str
    column: str
    rest: str
    rest_first: bool = False

    def joined(self, column: str, rest: str) -> str:
        """The prompt; a blank half adds nothing."""
        return f"{rest}\n\n{column}" if self.rest_first else with_input(column, rest)


FORMS = (
    Form("Alpaca", "instruction", "input"),
    Form("Dolly", "instruction", "context"),
    Form("SQuAD", "question", "context", rest_first=True),
)

_SYSTEM = ("system", "system_prompt", "system_message")
_PARTS = {
    *("input", "inputs", "query", *DEFAULT_COLUMNS),
    *("context", "contexts", "contextstring", "background", "evidence", "history"),
    *("passage", "passages", "paragraph", "document", "documents", "article", "story", "table", "text"),
    *("options", "choices", "endings"),
    *_SYSTEM,
    *("tools", "functions"),
}
"""Columns, in lower case, that hold part of a prompt in some public data set."""

_SURE = 16
"""Characters. A shorter text, such as the option "5", may be in a prompt by chance."""

_OPTION = re.compile(r"(op|opt|option|choice|ending)_?[a-e0-9]")


def with_input(instruction: str, rest: str | None) -> str:
    """An instruction with its input on the next line: Alpaca's form, for every reader of such rows."""
    return "\n".join(part for part in (instruction, rest or "") if part.strip()) or instruction


def default_column(names: Sequence[str], source: str) -> str:
    """The column that is read if the user named none.

    Raises:
        InputError: None of the default columns exists; the message lists the columns.
    """
    for wanted in (*DEFAULT_COLUMNS, *CHAT_COLUMNS):
        column = _named(wanted, names)
        if column is not None:
            return column
    message = (
        f"{source} has no column named {', '.join((*DEFAULT_COLUMNS, *CHAT_COLUMNS[:-1]))} or "
        f"{CHAT_COLUMNS[-1]}: it has {listed(names)}; name one, as in {with_column(source, 'column')}"
    )
    if len(names) == 1 and (separator := next((mark for mark in ";\t|" if mark in names[0]), None)):
        message += (
            f". Is it separated by {separator!r}? A .csv file is read with commas, a .tsv file with tabs"
        )
    raise InputError(message)


def rest_columns(names: Sequence[str], column: str) -> list[str]:
    """The columns that may hold further parts of the prompt beside the automatically chosen `column`."""
    chosen = column.lower()
    if chosen in CHAT_COLUMNS:
        parts = {*_SYSTEM, "tools", "functions"}
    elif chosen in ("prompt", "goal"):
        parts = {*_PARTS, *CHAT_COLUMNS} - {chosen, "goal", "text"}
    else:
        parts = {*_PARTS, *CHAT_COLUMNS} - {chosen, "goal"}
    lower = {name.lower() for name in names}
    lettered = {"a", "b"} <= lower and chosen not in CHAT_COLUMNS
    return [
        name
        for name in names
        if name != column
        and (
            name.lower() in parts
            or (chosen not in CHAT_COLUMNS and _OPTION.fullmatch(name.lower()))
            or (lettered and name.lower() in ("a", "b", "c", "d", "e"))
        )
    ]


def whole_prompt(row: Mapping[str, object], column: str, place: str, source: str) -> object:
    """The prompt of a row whose column was chosen automatically.

    Args:
        row: The values by column; at least `column` and the columns of `rest_columns`.
        column: The column that `default_column` chose.
        place: The row, for messages.
        source: The file or data set as the user named it, without a column.

    Raises:
        InputError: Another column holds a part of the prompt, and no form says how the two are joined.
    """
    value, joined = row[column], None
    rest = {name: row[name] for name in rest_columns(list(row), column) if not _is_empty(row[name])}
    for form in FORMS:
        name = _named(form.rest, list(rest)) if form.column == column.lower() else None
        if name is not None and isinstance(value, str) and isinstance(rest[name], str):
            if form.rest_first and not value.strip():
                break  # a context without a question is no prompt
            value, joined = form.joined(value, str(rest[name])), name
            break
    left_over = [name for name in beside(row, column) if name != joined]
    if left_over:
        raise InputError(
            f"{place}: the column {column!r} was chosen, but {listed(left_over)} may be part of the prompt "
            f"too. Put the whole prompt into one column 'prompt', or give {with_column(source, column)}, "
            f"which reads {column!r} alone"
            + (
                ". `fit --system TEXT` sets one system prompt for all prompts"
                if {name.lower() for name in left_over} & set(_SYSTEM)
                else ""
            )
        )
    return value


def beside(row: Mapping[str, object], column: str) -> list[str]:
    """The columns of a row that may hold part of the prompt beside a column that is read alone."""
    names = rest_columns(list(row), column)
    return [name for name in names if not _is_empty(row[name]) and not _stands_in(name, row, column)]


def with_column(source: str, column: str) -> str:
    """The spec of one column of a source."""
    return f"{source}#{column}" if source.startswith("hf://") else f"{source}:{column}"


def listed(names: Sequence[str]) -> str:
    """Names for a message, at most twelve of them."""
    shown = ", ".join(repr(name) for name in names[:12])
    return f"{shown} and {len(names) - 12} more" if len(names) > 12 else shown or "none"


def _named(wanted: str, names: Sequence[str]) -> str | None:
    spelled = [name for name in names if name.lower() == wanted]
    return wanted if wanted in spelled else next(iter(spelled), None)  # the exact spelling first


def _is_empty(value: object) -> bool:
    if isinstance(value, float):
        return math.isnan(value)  # how pandas writes an empty cell
    return value is None or value in ([], {}) or (isinstance(value, str) and not value.strip())


def _stands_in(name: str, row: Mapping[str, object], column: str) -> bool:
    """Whether the column's text is in the prompt already, as in a `prompt` made from the other columns."""
    part, whole = row[name], row[column]
    if name.lower() in CHAT_COLUMNS:
        return says_no_more(part, whole)
    if not isinstance(part, str) or not isinstance(whole, str):
        return False
    part, whole = " ".join(part.split()), " ".join(whole.split())
    # Alpaca's `text` is the whole row in a template.
    return (
        part == whole or (len(part) >= _SURE and part in whole) or (name.lower() == "text" and whole in part)
    )
