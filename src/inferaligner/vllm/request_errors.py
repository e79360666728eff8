"""vLLM's complaints about a request, in the words of whoever sent it.

For a field of several types vLLM reports every branch of each, with the names of its own classes; of a
message it begins with the kinds of message that it is not. This names the field as the client wrote it, and
what is wrong with it there. A report that is not understood is passed on as it is.
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
_MOST = 3  # of several reasons for one field


def plain_error(answer: bytes, request: bytes) -> bytes:
    """The body of an answer of status 400 to a JSON request; as it is, if it is no such report."""
    try:
        told, asked = json.loads(answer), json.loads(request)
    except (ValueError, RecursionError):
        return answer
    error = told.get("error") if isinstance(told, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    if not isinstance(error, dict) or not isinstance(message, str):
        return answer
    if _REPORT_ON_PARTS.match(message) and (plain := _of_part(message, asked)) is not None:
        return json.dumps(
            {**told, "error": {**error, "message": ": ".join(plain), "param": plain[0]}}
        ).encode()
    if not _REPORT.match(message):
        return answer
    problems = [
        (_place(where.split(".")[1:], asked, kind == "missing"), where, single or double)
        for kind, where, single, double in _PROBLEM.findall(message)
    ]
    meant = [problem for problem in problems if _is_meant(problem[1], asked)] or problems
    if not meant:
        return answer
    place = max((place for place, _, _ in meant), key=len)
    reasons = list(dict.fromkeys(reason for where, _, reason in meant if where == place))[:_MOST]
    field = ".".join(place)
    text = f"{field}: {'; or '.join(reasons)}" if field else "; or ".join(reasons)
    return json.dumps({**told, "error": {**error, "message": text, "param": field or None}}).encode()


def _of_part(message: str, asked: Any) -> tuple[str, str] | None:
    """The field of a message's part, and what is wrong with it. vLLM reads parts after the rest, and does
    not say of which message they are; None if that is not clear."""
    problems = _PROBLEM_OF_PART.findall(message)
    if not problems or not isinstance(asked, dict) or not isinstance(asked.get("messages"), list):
        return None
    number = int(problems[0][0])
    contents = [each.get("content") if isinstance(each, dict) else None for each in asked["messages"]]
    places = [at for at, parts in enumerate(contents) if isinstance(parts, list) and len(parts) > number]
    if len(places) != 1:
        return None
    place = f"messages.{places[0]}.content.{number}"
    others = {kind for at, kind, field, _ in problems if field == "type" and int(at) == number}
    for at, kind, field, reason in problems:
        if int(at) == number and kind not in others and field:
            return f"{place}.{field}", reason
    return place, "This is no part of a type that is known"


def _place(parts: list[str], asked: Any, missing: bool) -> tuple[str, ...]:
    """Those parts of a place that are fields of the request, or entries of its lists."""
    found = []
    for number, part in enumerate(parts, start=1):
        if isinstance(asked, dict) and part in asked:
            asked = asked[part]
        elif isinstance(asked, list) and part.isdigit() and int(part) < len(asked):
            asked = asked[int(part)]
        elif not (missing and number == len(parts)):
            continue
        found.append(part)
    return tuple(found)


def _is_meant(where: str, asked: Any) -> bool:
    """Whether a problem is one of the kind of message that the client sent, if it is about a message."""
    known = re.search(r"messages\.(\d+)\.(?:ChatCompletion|Custom)(\w*?)(?:Chat\w*)?MessageParam", where)
    if known is None:
        return True
    try:
        role = str(asked["messages"][int(known[1])]["role"])
    except (LookupError, TypeError):
        return True
    return known[2].lower() == role.lower()
