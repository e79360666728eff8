"""Rewrites vLLM's validation errors so that they name the field as the client wrote it.

For a field with several permitted types vLLM reports the failure of every type, with the names of its own
classes. Of these failures, this module keeps the ones that concern the client's value. An error in an unknown
format is passed on unchanged.
"""

from __future__ import annotations

import json
import re
from typing import Any

_REPORT = re.compile(r"\d+ validation errors?:")
_TEXT = r"""(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)")"""
_PROBLEM = re.compile(rf"'type': '(\w+)', 'loc': '([^']*)', 'msg': {_TEXT}")
_REPORT_ON_PARTS = re.compile(r"\d+ validation errors? for ValidatorIterator")
_PROBLEM_OF_PART = re.compile(r"^(\d+)\.(\w+)(?:\.(\S+))?\n  (.+?) \[type=", re.MULTILINE)
_MAX_REASONS = 3  # for one field


def readable_error(answer: bytes, request: bytes) -> bytes:
    """Rewrites the body of an answer with status 400.

    Args:
        answer: vLLM's JSON.
        request: the client's JSON.

    Returns:
        The answer with `message` and `param` of its error rewritten; unchanged if it is no validation error.
    """
    try:
        reported, sent = json.loads(answer), json.loads(request)
    except (ValueError, RecursionError):
        return answer
    error = reported.get("error") if isinstance(reported, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    if not isinstance(error, dict) or not isinstance(message, str):
        return answer
    if _REPORT_ON_PARTS.match(message) and (part := _part_problem(message, sent)) is not None:
        return json.dumps(
            {**reported, "error": {**error, "message": ": ".join(part), "param": part[0]}}
        ).encode()
    if not _REPORT.match(message):
        return answer
    problems = [
        (_client_path(where.split(".")[1:], sent, kind == "missing"), where, single or double)
        for kind, where, single, double in _PROBLEM.findall(message)
    ]
    relevant = [problem for problem in problems if _is_relevant(problem[1], sent)] or problems
    if not relevant:
        return answer
    deepest = max((path for path, _, _ in relevant), key=len)
    reasons = list(dict.fromkeys(reason for path, _, reason in relevant if path == deepest))[:_MAX_REASONS]
    field = ".".join(deepest)
    text = f"{field}: {'; or '.join(reasons)}" if field else "; or ".join(reasons)
    return json.dumps({**reported, "error": {**error, "message": text, "param": field or None}}).encode()


def _part_problem(message: str, sent: Any) -> tuple[str, str] | None:
    """The faulty field in a part of a message's content, and the reason.

    vLLM validates these parts last, and its error does not name the message. None if several messages have
    such a part.
    """
    problems = _PROBLEM_OF_PART.findall(message)
    if not problems or not isinstance(sent, dict) or not isinstance(sent.get("messages"), list):
        return None
    number = int(problems[0][0])
    contents = [each.get("content") if isinstance(each, dict) else None for each in sent["messages"]]
    places = [at for at, parts in enumerate(contents) if isinstance(parts, list) and len(parts) > number]
    if len(places) != 1:
        return None
    place = f"messages.{places[0]}.content.{number}"
    others = {kind for at, kind, field, _ in problems if field == "type" and int(at) == number}
    for at, kind, field, reason in problems:
        if int(at) == number and kind not in others and field:
            return f"{place}.{field}", reason
    return place, "This part has no known type"


def _client_path(parts: list[str], sent: Any, missing: bool) -> tuple[str, ...]:
    """The parts of a path that are fields of the request or indices of its lists, without vLLM's classes."""
    path = []
    for number, part in enumerate(parts, start=1):
        if isinstance(sent, dict) and part in sent:
            sent = sent[part]
        elif isinstance(sent, list) and part.isdigit() and int(part) < len(sent):
            sent = sent[int(part)]
        elif not (missing and number == len(parts)):
            continue
        path.append(part)
    return tuple(path)


def _is_relevant(where: str, sent: Any) -> bool:
    """False for a problem with a message as another kind than the client sent (by its role)."""
    known = re.search(r"messages\.(\d+)\.(?:ChatCompletion|Custom)(\w*?)(?:Chat\w*)?MessageParam", where)
    if known is None:
        return True
    try:
        role = str(sent["messages"][int(known[1])]["role"])
    except (LookupError, TypeError):
        return True
    return known[2].lower() == role.lower()
