"""Prompt files and data sets in, a list of prompts out.

A *spec* is a path or a data set: `prompts.txt` (a prompt a line), `rows.jsonl`, `rows.json`, `table.csv`,
`table.tsv`, each table with an optional `:column`, or `hf://dataset[config]:split#column`. Without a column
the first of `prompt`, `instruction`, `question`, `goal` is taken (in any case), then chat rows
(`{"messages": [...]}`, of which the last user message is the prompt).

A row of a .jsonl or .json file may have an `image` besides its prompt: a path (from the file's folder), a
`data:` URL, or a list of those. It is read into an `ImagePrompt`.

Nothing is skipped silently except blank lines: a prompt that went missing would shift every later row of a
report, and a wrong column would fit a gate on the wrong text.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from inferaligner.errors import InputError, MissingExtraError
from inferaligner.prompts.images import ImagePrompt, Prompt, picture_from

DEFAULT_COLUMNS = ("prompt", "instruction", "question", "goal")
CHAT_COLUMN = "messages"
SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".tsv")

_HUB = re.compile(
    r"hf://(?P<name>[^\[\]:#]+)(?:\[(?P<config>[^\]]+)\])?(?::(?P<split>[^#]+))?(?:#(?P<column>.+))?"
)

IMAGE_FIELD = "image"


@dataclass(frozen=True)
class _Shown:
    """The raw values of a row with an image."""

    text: object
    images: object


# A place in the source ("line 3"), for messages, with the raw value found there.
_Row = tuple[str, object]


def read_prompts(spec: str) -> list[Prompt]:
    """Reads every prompt that `spec` names, in order, exactly as written.

    Raises:
        InputError: the source is missing, unreadable, malformed, of an unknown kind, lacks the column or a
        field,
            holds something that is not text, or has no prompt in it. The message names the place.
        MissingExtraError: `hf://` without the `datasets` package.
    """
    if spec.startswith("hf://"):
        rows = _hub_rows(spec)
        source = spec
    else:
        path, column = _locate(spec)
        source = str(path)
        rows = _READERS[path.suffix.lower()](_decode(path), column, source)
    folder = None if spec.startswith("hf://") else path.parent
    prompts = [_prompt(value, f"{source}, {place}", folder) for place, value in rows]
    if not prompts:
        raise InputError(f"{source} has no prompt in it: expected at least one")
    return prompts


def _locate(spec: str) -> tuple[Path, str | None]:
    """Splits `FILE:column`; an existing file wins over reading a colon of its name as the column's."""
    candidates: list[tuple[str, str | None]] = [(spec, None)]
    for colon in reversed([match.start() for match in re.finditer(":", spec)]):
        before, after = spec[:colon], spec[colon + 1 :]
        # "C:\prompts.csv" is not column "\prompts.csv" of a file "C".
        if len(before) > 1 or after[:1] not in ("\\", "/"):
            candidates.append((before, after))
    for name, column in candidates:
        try:
            path = Path(name)
            found = path.is_file()
            folder = path.is_dir()
        except (OSError, ValueError) as error:  # a NUL in the name, or a name longer than the system allows
            raise InputError(f"{spec!r} is not a usable path ({error}): expected a prompt file") from error
        if folder and name:
            raise InputError(f"{name} is a folder: expected a prompt file ({', '.join(SUFFIXES)})")
        if not found:
            continue
        if path.suffix.lower() not in SUFFIXES:
            raise InputError(
                f"{name} ends in {path.suffix!r}: expected one of {', '.join(SUFFIXES)}; rename or convert it"
            )
        if column is not None and not column.strip():
            raise InputError(f"{spec}: expected a column name after the colon")
        if column is not None and path.suffix.lower() == ".txt":
            raise InputError(
                f"{spec} asks for a column of a .txt file, which has none: leave out ':{column}'"
            )
        return path, column
    raise InputError(f"{spec!r} does not exist: expected a prompt file, FILE:column, or hf://dataset#column")


def _decode(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check its permissions") from error
    if not data.strip():
        raise InputError(f"{path} is empty: expected at least one prompt")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{path} is UTF-16: expected UTF-8; save it again as UTF-8")
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}, line {line}; "
            "save it again as UTF-8"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{path} has a NUL character in line {line}: expected text; remove it")
    return text


def _text_rows(text: str, column: str | None, source: str) -> Iterator[_Row]:
    # Only real line ends separate prompts; str.splitlines would also cut at form feeds and U+2028.
    for number, line in enumerate(re.split("\r\n|\n|\r", text), start=1):
        if line.strip():
            yield f"line {number}", line


def _jsonl_rows(text: str, column: str | None, source: str) -> Iterator[_Row]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            rows.append((f"line {number}", _parsed(line, source, first_line=number)))
    return _object_rows(rows, column, source)


def _json_rows(text: str, column: str | None, source: str) -> Iterator[_Row]:
    value = _parsed(text, source, first_line=1)
    if not isinstance(value, list):
        raise InputError(
            f"{source} holds a JSON {_kind(value)}: expected a list of strings or of objects; "
            "name a file with one object a line .jsonl"
        )
    return _object_rows([(f"item {i}", item) for i, item in enumerate(value, start=1)], column, source)


def _parsed(text: str, source: str, *, first_line: int) -> object:
    try:
        value: object = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {first_line + error.lineno - 1}, column {error.colno}"
        raise InputError(f"{source}, {place}: broken JSON ({error.msg}); mend it") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or nesting without end
        place = f"from line {first_line}"
        raise InputError(f"{source}, {place}: JSON that cannot be read ({error}); mend it") from error
    return value


def _object_rows(rows: Sequence[_Row], column: str | None, source: str) -> Iterator[_Row]:
    field = column
    for place, value in rows:
        if isinstance(value, str) and column is None:
            yield place, value
            continue
        if not isinstance(value, dict):
            raise InputError(
                f"{source}, {place}: found a JSON {_kind(value)}, expected a string or an object"
            )
        field = field or _chosen(list(value), None, f"{source}, {place}")
        if field not in value:
            raise InputError(f"{source}, {place}: no field {field!r}; it has {_listed(list(value))}")
        shown = value.get(IMAGE_FIELD)
        yield place, value[field] if shown is None else _Shown(value[field], shown)


def _table_rows(text: str, column: str | None, source: str) -> Iterator[_Row]:
    delimiter = "\t" if source.lower().endswith(".tsv") else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    index = 0
    try:
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if header is None:
                header = [name.strip() for name in row]
                field = _chosen(header, column, source)
                if header.count(field) > 1:
                    raise InputError(
                        f"{source} has {header.count(field)} columns {field!r}: rename all but one"
                    )
                index = header.index(field)
                continue
            place = f"line {reader.line_num}"
            if len(row) <= index:
                raise InputError(
                    f"{source}, {place}: no field {header[index]!r}; it has {len(row)} of {len(header)}"
                )
            if any(row[len(header) :]):
                # An unquoted comma inside a prompt would cut it short without a word.
                raise InputError(
                    f"{source}, {place}: {len(row)} fields under {len(header)} columns; "
                    "quote texts that hold a separator"
                )
            yield place, row[index]
    except csv.Error as error:
        raise InputError(
            f"{source}, line {reader.line_num}: broken table ({error}); mend the quotes"
        ) from error


def _hub_rows(spec: str) -> Iterator[_Row]:
    match = _HUB.fullmatch(spec)
    if match is None:
        raise InputError(f"{spec} is not understood: expected hf://dataset[config]:split#column")
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            f'{spec} needs the datasets package: pip install "inferaligner[eval]"'
        ) from error
    name, config, split, column = match.group("name", "config", "split", "column")
    try:
        data = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the package raises its own, requests' and fsspec's errors alike
        raise InputError(
            f"{spec} cannot be loaded ({error}): check the name, the split and the network"
        ) from error
    if hasattr(data, "keys"):  # no split was named: a mapping of them
        splits = list(data.keys())
        if "train" not in splits and len(splits) != 1:
            raise InputError(
                f"{spec} has the splits {_listed(splits)}: name one, as in hf://dataset:split#column"
            )
        data = data["train" if "train" in splits else splits[0]]
    field = _chosen(list(data.column_names), column, spec)
    return ((f"row {i}", value) for i, value in enumerate(data[field], start=1))


def _chosen(names: Sequence[str], column: str | None, source: str) -> str:
    if column is not None:
        if column not in names:
            raise InputError(f"{source} has no column {column!r}: it has {_listed(names)}")
        return column
    for wanted in (*DEFAULT_COLUMNS, CHAT_COLUMN):
        for name in sorted(names, key=lambda name: name != wanted):  # the exact spelling first
            if name.lower() == wanted:
                return name
    raise InputError(
        f"{source} has no column named {', '.join(DEFAULT_COLUMNS)} or {CHAT_COLUMN}: "
        f"it has {_listed(names)}; name one, as in FILE:column"
    )


def _prompt(value: object, place: str, folder: Path | None) -> Prompt:
    if not isinstance(value, _Shown):
        return _checked(value, place)
    images = value.images if isinstance(value.images, list) else [value.images]
    if not images or not all(isinstance(image, str) and image for image in images):
        raise InputError(f"{place}: expected a path or a data URL in {IMAGE_FIELD!r}, or a list of them")
    try:
        pictures = tuple(picture_from(str(image), folder=folder) for image in images)
    except InputError as error:
        raise InputError(f"{place}: {error}") from None
    return ImagePrompt(_checked(value.text, place), pictures)


def _checked(value: object, place: str) -> str:
    if isinstance(value, list):
        value = _last_user_message(value, place)
    if not isinstance(value, str):
        raise InputError(f"{place}: the prompt is a JSON {_kind(value)}, expected a string")
    if not value.strip():
        raise InputError(f"{place}: the prompt is empty; remove the row")
    if "\0" in value:
        raise InputError(f"{place}: the prompt has a NUL character; remove it")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise InputError(f"{place}: the prompt has half a surrogate pair; mend the escape")
    return value


def _last_user_message(messages: Sequence[object], place: str) -> object:
    for message in reversed(messages):
        if not isinstance(message, dict) or "role" not in message or "content" not in message:
            raise InputError(f"{place}: found a list, expected a string or messages with role and content")
        if message["role"] == "user":
            content: object = message["content"]
            return _joined_parts(content, place) if isinstance(content, list) else content
    raise InputError(f"{place}: no message of the role 'user' among {len(messages)}")


def _joined_parts(parts: Sequence[object], place: str) -> str:
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    if len(texts) != len(parts) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{place}: the message has parts that are not text; only text prompts are read")
    return "".join(str(text) for text in texts)


def _kind(value: object) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:12])
    return f"{shown} and {len(names) - 12} more" if len(names) > 12 else shown or "none"


_READERS: dict[str, Callable[[str, str | None, str], Iterator[_Row]]] = {
    ".txt": _text_rows,
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _table_rows,
    ".tsv": _table_rows,
}
