"""Rows in the conversation form of PIXIU: a question, then the right answer."""

from __future__ import annotations

from collections.abc import Sequence

from reproduction.corpora.corpus import Published, Row


def conversation_rows(rows: Sequence[Published]) -> list[Row]:
    """One row per conversation; its key is the text between "Text:" and "Answer:", if the prompt has both."""
    found = []
    for row in rows:
        asked, said = (turn["value"] for turn in row["conversations"][:2])
        _, marked, text = asked.partition("Text:")
        key = text.rpartition("Answer:")[0].strip() if marked else asked
        found.append(Row(asked, said.strip(), key or asked))
    return found
