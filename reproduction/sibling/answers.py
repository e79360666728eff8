"""The target's own greedy answers, kept in a file from which an interrupted run goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from inferaligner.models.generation import end_tokens
from reproduction.sibling.prompts import Asked, encode

console = Console()


def own_answers(
    model: Any, tokenizer: Any, asked: Sequence[Asked], file: Path, *, tokens: int, batch_size: int = 96
) -> dict[str, list[int]]:
    """Answer tokens by `Asked.key`, the end token included where the answer ends within `tokens`."""
    known: dict[str, list[int]] = {}
    if file.exists():
        rows = map(json.loads, file.read_text("utf-8").splitlines())
        known = {row["key"]: row["tokens"] for row in rows if row["limit"] == tokens}
    missing = list({one.key: one for one in asked if one.key not in known}.values())
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as out:
        stream = answer_tokens(model, tokenizer, missing, tokens=tokens, batch_size=batch_size)
        for row, answer in track(stream, file.stem, total=len(missing), console=console):
            known[missing[row].key] = answer
            out.write(json.dumps({"key": missing[row].key, "limit": tokens, "tokens": answer}) + "\n")
            out.flush()
    return {one.key: known[one.key] for one in asked}


def answer_tokens(
    model: Any, tokenizer: Any, asked: Sequence[Asked], *, tokens: int, batch_size: int = 96
) -> Iterator[tuple[int, list[int]]]:
    """Yields (index, answer) batch by batch, shortest conversations first; greedy."""
    if not asked:
        return
    encoded = encode(tokenizer, asked)
    order = sorted(range(len(encoded)), key=lambda row: len(encoded[row]))
    ends = end_tokens(model)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch: Mapping[str, Any] = tokenizer.pad(
            {"input_ids": [encoded[row] for row in rows]}, padding_side="left", return_tensors="pt"
        ).to(model.device)
        with torch.no_grad():
            output = model.generate(
                **batch,
                max_new_tokens=tokens,
                pad_token_id=tokenizer.pad_token_id,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
            )
        for row, sequence in zip(rows, output[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
            stop = next((at + 1 for at, token in enumerate(sequence) if token in ends), len(sequence))
            yield row, sequence[:stop]
