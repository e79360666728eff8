"""Published data sets, read from a folder of the user or from the hub.

The folder has one folder per set, or all files in one; the files keep their publishers' names. Nothing is
downloaded without `--hub`, because several of these sets have terms that a user should read first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inferaligner.errors import InputError, MissingExtraError
from inferaligner.evaluation.suites.data_files import rows_of
from inferaligner.evaluation.suites.suite import Item

Row = Mapping[str, Any]
FOLDER = "__folder__"
Reader = Callable[[Sequence[Row]], list[Item]]


@dataclass(frozen=True)
class Published:
    """One or more files of a public set.

    Attributes:
        files: paths inside the data folder. `read` gets the rows of all files, each row with its file's stem
            in the column `__file__` and its file's folder in the column `FOLDER`.
        read: makes items of rows; a `KeyError` in it is reported as a file that is not as published.
        get: the address of the files, for error messages.
        hub: `owner/name[:split]` of the same rows on the hub; empty if they are not there.
    """

    files: tuple[str, ...]
    read: Reader
    get: str
    hub: str = ""

    def items(self, data: Path | None) -> list[Item]:
        rows: list[Row] = []
        for name in self.files:
            file = self._find(name, data)
            origin = {"__file__": file.stem, FOLDER: str(file.parent)}
            rows += [{**row, **origin} for row in rows_of(file)]
        try:
            return self.read(rows)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise InputError(
                f"{', '.join(self.files)} in {data} is not laid out as published ({type(error).__name__}: "
                f"{error}). Get it anew: {self.get}"
            ) from None

    def from_hub(self) -> list[Item]:
        """The same items, from the hub.

        Raises:
            InputError: the set is not on the hub, or the hub did not deliver it.
            MissingExtraError: the package datasets is not installed.
        """
        if not self.hub:
            raise InputError(f"There is no copy of {self.files[0]} on the hub. Get it here: {self.get}")
        try:
            import datasets
        except ImportError:
            raise MissingExtraError(
                'Reading from the hub needs datasets: pip install "inferaligner[eval]"'
            ) from None
        name, _, split = self.hub.partition(":")
        try:
            rows = list(datasets.load_dataset(name, split=split or "test"))
        except Exception as error:  # of datasets, or of the HTTP library that it uses
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(
                f"The hub did not deliver {name} ({reason}). Or put {self.files[0]} into the folder of "
                f"--data; get it here: {self.get}"
            ) from None
        return self.read(rows)

    def _find(self, name: str, data: Path | None) -> Path:
        if data is None:
            raise InputError(
                f"{name} is not shipped with inferaligner: give the folder that holds it with --data FOLDER "
                f"(or INFERALIGNER_DATA). Get it here: {self.get}"
                + (f", or from the hub ({self.hub}) with --hub." if self.hub else "")
            )
        for file in (data / name, data / Path(name).name):
            if file.is_file():
                return file
        raise InputError(f"{data / name} does not exist. Get it here: {self.get}")
