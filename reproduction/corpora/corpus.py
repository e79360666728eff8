"""A corpus: rows for fine-tuning, and their source. Each file declares one, as `CORPUS`.

A new file in this folder with a `CORPUS` in it is a new corpus; recipes name it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inferaligner.errors import InputError, MissingExtraError
from inferaligner.evaluation.suites.data_files import rows_of

_EXAMPLES = 12

Published = Mapping[str, Any]
"""A row as its publisher wrote it."""


@dataclass(frozen=True)
class Row:
    """A prompt as a user would type it, and the answer to learn.

    `key` is what the row is about: the sentence to judge, the question without its instruction. Test prompts
    are compared with it, because an instruction that all rows share would hide what they share beyond it.
    """

    prompt: str
    answer: str
    key: str


@dataclass(frozen=True)
class Hub:
    """Rows on the hub."""

    name: str
    split: str = "train"
    config: str | None = None

    def rows(self) -> list[Published]:
        """Every row.

        Raises:
            MissingExtraError: datasets is not installed.
            InputError: the hub did not deliver.
        """
        try:
            import datasets
        except ImportError:
            raise MissingExtraError(
                'Reading from the hub needs datasets: pip install "inferaligner[reproduction]"'
            ) from None
        try:
            return list(datasets.load_dataset(self.name, self.config, split=self.split))
        except Exception as error:  # whatever the HTTP library of the day raises
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(f"The hub did not deliver {self.name} ({reason}).") from None


@dataclass(frozen=True)
class Corpus:
    """Rows of one origin.

    Attributes:
        read: published rows in, rows out; a `KeyError` in it means that the file is not the one expected.
        files: any one of these, the first that is there, inside the folder of public sets; none for a corpus
            that is made by a program (`read` gets no rows then).
        example: published rows, made up for this project, for dry runs.
    """

    name: str
    title: str
    licence: str
    read: Callable[[Sequence[Published]], list[Row]]
    files: tuple[str, ...] = ()
    hub: Hub | None = None
    get: str = ""
    example: tuple[Published, ...] = ()

    def rows(self, data: Path | None) -> list[Row]:
        """Every row, from the folder of public sets or, where that has none, from the hub.

        Raises:
            InputError: the rows are nowhere, or not as published.
            MissingExtraError: the hub was asked, and datasets is not installed.
        """
        published: Sequence[Published] = ()
        if self.files or self.hub:
            file = self._file(data)
            if file is not None:
                published = rows_of(file)
            elif self.hub is not None:
                published = self.hub.rows()
            else:
                raise InputError(
                    f"The corpus {self.name} needs one of {', '.join(self.files)} in the folder that --data "
                    f"names (now {data or 'none'}). Get it here: {self.get}"
                )
        return self._read(published)

    def examples(self) -> list[Row]:
        """A few rows for a dry run: the made-up ones, read as published ones are, in some variations."""
        rows = self._read(self.example)[:_EXAMPLES]
        return [
            Row(f"{row.prompt}\n({number})", row.answer, f"{row.key} {number}")
            for number in range(-(-_EXAMPLES // len(rows)))
            for row in rows
        ]

    def _file(self, data: Path | None) -> Path | None:
        places = [data / name for name in self.files] if data is not None else []
        return next((place for place in places if place.is_file()), None)

    def _read(self, published: Sequence[Published]) -> list[Row]:
        try:
            return [row for row in self.read(published) if row.prompt.strip() and row.answer.strip()]
        except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
            raise InputError(
                f"The rows of the corpus {self.name} are not laid out as published "
                f"({type(error).__name__}: {error}). Get them anew: {self.get}"
            ) from None
