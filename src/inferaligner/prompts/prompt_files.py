"""Prompts from files and from data sets of the hub.

A *spec* names a file or a data set: `prompts.txt` (one prompt per line), `rows.jsonl`, `rows.json`,
`table.csv`, `table.tsv`, each of the last four with an optional `:column`, or
`hf://dataset[config]:split#column`. If the spec names a column, that column alone is the prompt. Otherwise
`columns.py` chooses the column and joins the other parts of the prompt to it, or refuses the row. In a list
of messages, the last user message is the prompt (`message_lists.py`); one `InferAlignerWarning` per file
counts the rows with further messages.

A row of a .jsonl or .json file may have an `image` beside its prompt: a path (from the file's folder), a
`data:` URL, or a list of them. Such a row becomes an `ImagePrompt`.

Only blank lines are skipped: a missing prompt would shift every later row of a report, and a wrong column
would fit a gate on the wrong text. docs/prompt-files.md is the users' page.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from inferaligner.errors import InferAlignerWarning, InputError, MissingExtraError
from inferaligner.prompts.columns import default_column, listed, rest_columns, whole_prompt
from inferaligner.prompts.images import ImagePrompt, Prompt, picture_from
from inferaligner.prompts.message_lists import CHAT_COLUMNS, LeftOut, last_user_message, messages_in

SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".tsv")

_HUB = re.compile(
    r"hf://(?P<name>[^\[\]:#]+)(?:\[(?P<config>[^\]]+)\])?(?::(?P<split>[^#]+))?(?:#(?P<column>.+))?"
)

IMAGE_FIELD = "image"

_TABLE = (
    "convert it, for example with pandas: pandas.{}(FILE).to_json('rows.jsonl', orient='records', lines=True)"
)
_CONVERSIONS = {
    ".parquet": _TABLE.format("read_parquet"),
    ".xlsx": _TABLE.format("read_excel"),
    ".xls": _TABLE.format("read_excel"),
    ".arrow": "convert it with datasets: Dataset.from_file(FILE).to_json('rows.jsonl')",
    ".ndjson": "rename it to .jsonl",
    **dict.fromkeys((".gz", ".zip", ".zst", ".bz2", ".xz"), "unpack it first"),
}
"""What the user can do with a file of another kind."""


@dataclass(frozen=True)
class _ImageRow:
    """The raw values of a row with an image."""

    text: object
    images: object


# The place of a value in the source ("line 3"), for messages, and the raw value.
_Row = tuple[str, object]


def read_prompts(spec: str) -> list[Prompt]:
    """Reads the prompts that a spec names.

    Args:
        spec: A file, `FILE:column`, or `hf://dataset[config]:split#column`.

    Returns:
        The prompts in the order of the source, exactly as written.

    Warns:
        InferAlignerWarning: Rows of messages had a system prompt, earlier turns or results of tools, which
            are not part of the prompt.

    Raises:
        InputError: The source is missing, unreadable, malformed or of an unknown kind, lacks the column, has
            a value that is not text, spreads a prompt over columns that no known form joins, or has no
            prompts. The message names the file, the row and the column.
        MissingExtraError: `hf://` needs the `datasets` package.

    Example:
        read_prompts("rows.jsonl:question")
    """
    if spec.startswith("hf://"):
        rows = _hub_rows(spec)
        source = spec
    else:
        path, column = _locate(spec)
        source = str(path)
        rows = _READERS[path.suffix.lower()](_decode(path), column, source)
    folder = None if spec.startswith("hf://") else path.parent
    left_out = LeftOut()
    prompts = [_prompt(value, f"{source}, {place}", folder, left_out) for place, value in rows]
    if not prompts:
        raise InputError(f"{source} has no prompts: expected at least one")
    warning = left_out.warning(source)
    if warning is not None:
        warnings.warn(warning, InferAlignerWarning, stacklevel=2)
    return prompts


@contextmanager
def cells_of_any_length() -> Iterator[None]:
    """Lifts the csv module's limit of 131,072 characters a cell, which is a setting of the whole process."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _locate(spec: str) -> tuple[Path, str | None]:
    """Splits `FILE:column`; if a file of the whole name exists, the colon is part of its name."""
    candidates: list[tuple[str, str | None]] = [(spec, None)]
    for colon in reversed([match.start() for match in re.finditer(":", spec)]):
        before, after = spec[:colon], spec[colon + 1 :]
        # "C:\prompts.csv" is not column "\prompts.csv" of a file "C".
        if len(before) > 1 or after[:1] not in ("\\", "/"):
            candidates.append((before, after))
    for name, column in candidates:
        try:
            path = Path(name)
            is_file = path.is_file()
            is_folder = path.is_dir()
        except (OSError, ValueError) as error:  # a NUL in the name, or a name longer than the system allows
            raise InputError(f"{spec!r} is not a usable path ({error}): expected a prompt file") from error
        if is_folder and name:
            raise InputError(f"{name} is a folder: expected a prompt file ({', '.join(SUFFIXES)})")
        if not is_file:
            continue
        if path.suffix.lower() not in SUFFIXES:
            raise InputError(
                f"{name} ends in {path.suffix!r}: expected one of {', '.join(SUFFIXES)}; "
                + _CONVERSIONS.get(path.suffix.lower(), "rename or convert it")
            )
        if column is not None and not column.strip():
            raise InputError(f"{spec}: expected a column name after the colon")
        if column is not None and path.suffix.lower() == ".txt":
            raise InputError(f"{spec} names a column of a .txt file, which has none: leave out ':{column}'")
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
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        rows = _squad_rows(value["data"], source)
        if rows:
            return _object_rows(rows, column, source)
    if not isinstance(value, list):
        raise InputError(
            f"{source} holds a JSON {_kind(value)}: expected a list of strings or of objects; "
            "name a file with one object a line .jsonl"
        )
    return _object_rows([(f"item {i}", item) for i, item in enumerate(value, start=1)], column, source)


def _squad_rows(articles: Sequence[object], source: str) -> list[_Row]:
    """The questions of SQuAD's own layout, each with its paragraph as `context`; none for another layout."""
    rows: list[_Row] = []
    for a, article in enumerate(articles, start=1):
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        if not isinstance(paragraphs, list):
            return []
        for p, paragraph in enumerate(paragraphs, start=1):
            place = f"data {a}, paragraph {p}"
            questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
            if not isinstance(questions, list) or "context" not in paragraph:
                raise InputError(f"{source}, {place}: expected an object with 'context' and a list 'qas'")
            for q, question in enumerate(questions, start=1):
                if not isinstance(question, dict):
                    raise InputError(f"{source}, {place}, question {q}: expected an object with 'question'")
                rows.append((f"{place}, question {q}", {**question, "context": paragraph["context"]}))
    return rows


def _parsed(text: str, source: str, *, first_line: int) -> object:
    try:
        value: object = json.loads(text, object_pairs_hook=_once_each)
    except json.JSONDecodeError as error:
        place = f"line {first_line + error.lineno - 1}, column {error.colno}"
        raise InputError(f"{source}, {place}: broken JSON ({error.msg}); correct it") from error
    except _TwiceError as error:
        raise InputError(
            f"{source}, from line {first_line}: an object has two fields {error.args[0]!r}; rename one"
        ) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or very deep nesting
        place = f"from line {first_line}"
        raise InputError(f"{source}, {place}: JSON that cannot be read ({error}); correct it") from error
    return value


class _TwiceError(Exception):
    """A JSON object has a field twice."""


def _once_each(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    fields: dict[str, object] = {}
    for name, value in pairs:
        if name in fields:
            raise _TwiceError(name)
        fields[name] = value
    return fields


def _object_rows(rows: Sequence[_Row], column: str | None, source: str) -> Iterator[_Row]:
    field = column
    for place, value in rows:
        if isinstance(value, str) and column is None:
            yield place, value
            continue
        if not isinstance(value, dict):
            raise InputError(f"{source}, {place}: a JSON {_kind(value)}, expected a string or an object")
        field = field or default_column(list(value), source)
        if field not in value:
            raise InputError(f"{source}, {place}: no field {field!r}; it has {listed(list(value))}")
        cell, text = _from_columns(value, field, column, place, source)
        images = value.get(IMAGE_FIELD)
        yield (cell, text) if images is None else (place, _ImageRow(text, images))


def _from_columns(row: Mapping[str, object], field: str, column: str | None, place: str, source: str) -> _Row:
    """The raw prompt of a row with columns; `column` is None where `field` was chosen automatically."""
    value = row[field] if column is not None else whole_prompt(row, field, f"{source}, {place}", source)
    place = f"{place}, column {field!r}"
    surely = field.lower() in CHAT_COLUMNS
    if isinstance(value, str) and (surely or column is None):
        value = messages_in(value, f"{source}, {place}", surely=surely)
    return place, value


def _table_rows(text: str, column: str | None, source: str) -> Iterator[_Row]:
    lines = _table_lines(text, source)
    if not lines:
        return
    header = [name.strip() for name in lines[0][1]]
    field = default_column(header, source) if column is None else column
    if field not in header:
        raise InputError(f"{source} has no column {field!r}: it has {listed(header)}")
    wanted = [field] if column is not None else [field, *rest_columns(header, field)]
    for name in wanted:
        if header.count(name) > 1:
            raise InputError(f"{source} has {header.count(name)} columns {name!r}: rename all but one")
    index = header.index(field)
    for number, cells in lines[1:]:
        place = f"line {number}"
        if len(cells) <= index:
            raise InputError(f"{source}, {place}: no field {field!r}; it has {len(cells)} of {len(header)}")
        if any(cells[len(header) :]):
            # An unquoted comma inside a prompt would cut it short silently.
            raise InputError(
                f"{source}, {place}: {len(cells)} fields under {len(header)} columns; "
                "quote texts that hold a separator"
            )
        row = dict(zip(header, cells, strict=False))
        yield _from_columns({name: row.get(name) for name in wanted}, field, column, place, source)


def _table_lines(text: str, source: str) -> list[tuple[int, list[str]]]:
    """The rows that are not blank, each with the number of its last line."""
    delimiter = "\t" if source.lower().endswith(".tsv") else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        with cells_of_any_length():
            return [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise InputError(
            f"{source}, line {reader.line_num}: broken table ({error}); correct the quotes"
        ) from error


def _hub_rows(spec: str) -> Iterator[_Row]:
    match = _HUB.fullmatch(spec)
    if match is None:
        raise InputError(f"{spec} cannot be read: expected hf://dataset[config]:split#column")
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
    if hasattr(data, "keys"):  # no split was named: a mapping of all splits
        splits = list(data.keys())
        if "train" not in splits and len(splits) != 1:
            raise InputError(
                f"{spec} has the splits {listed(splits)}: name one, as in hf://dataset:split#column"
            )
        data = data["train" if "train" in splits else splits[0]]
    names = list(data.column_names)
    source = spec if column is None else spec.removesuffix(f"#{column}")
    field = default_column(names, source) if column is None else column
    if field not in names:
        raise InputError(f"{spec} has no column {field!r}: it has {listed(names)}")
    # Only the columns that are needed: others may hold images, which would be decoded.
    wanted = [field] if column is not None else [field, *rest_columns(names, field)]
    rows = zip(*(data[name] for name in wanted), strict=True)
    return (
        _from_columns(dict(zip(wanted, row, strict=True)), field, column, f"row {i}", source)
        for i, row in enumerate(rows, start=1)
    )


def _prompt(value: object, place: str, folder: Path | None, left_out: LeftOut) -> Prompt:
    if not isinstance(value, _ImageRow):
        return _checked(value, place, left_out)
    images = value.images if isinstance(value.images, list) else [value.images]
    if not images or not all(isinstance(image, str) and image for image in images):
        raise InputError(f"{place}: expected a path or a data URL in {IMAGE_FIELD!r}, or a list of them")
    try:
        pictures = tuple(picture_from(str(image), folder=folder) for image in images)
    except InputError as error:
        raise InputError(f"{place}: {error}") from None
    return ImagePrompt(_checked(value.text, place, left_out), pictures)


def _checked(value: object, place: str, left_out: LeftOut) -> str:
    if isinstance(value, list):
        value = last_user_message(value, place, left_out)
    if not isinstance(value, str):
        raise InputError(f"{place}: the prompt is a JSON {_kind(value)}, expected a string")
    if not value.strip():
        raise InputError(f"{place}: the prompt is empty; remove the row")
    if "\0" in value:
        raise InputError(f"{place}: the prompt has a NUL character; remove it")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise InputError(f"{place}: the prompt has half a surrogate pair; correct the escape")
    return value


def _kind(value: object) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


_READERS: dict[str, Callable[[str, str | None, str], Iterator[_Row]]] = {
    ".txt": _text_rows,
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _table_rows,
    ".tsv": _table_rows,
}
