from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from inferaligner.errors import ModelLoadError
from inferaligner.models.hub import HubRepository, download, look_up


def answer(monkeypatch: pytest.MonkeyPatch, result: Any) -> None:
    def model_info(self: Any, repository: str, **_: Any) -> Any:
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)


def http_error(kind: type[Exception]) -> Exception:
    # Without its constructor, which wants a response of the HTTP library of the day.
    return kind.__new__(kind)


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)


def test_files_of_a_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    siblings = [SimpleNamespace(rfilename="config.json"), SimpleNamespace(rfilename="q4/model.gguf")]
    answer(monkeypatch, SimpleNamespace(siblings=siblings))
    expected = HubRepository("org/name", "v1", frozenset({"config.json", "q4/model.gguf"}))
    assert look_up("org/name", "v1") == expected


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (http_error(errors.RepositoryNotFoundError), "no such model on the hub. Check the spelling"),
        (http_error(errors.GatedRepoError), "org/name is gated on the hub"),
        (http_error(errors.RevisionNotFoundError), "no revision None of it"),
        (ConnectionError("Name or service not known"), r"could not be reached \(Name or service not known\)"),
        (
            errors.OfflineModeIsEnabled("offline mode is enabled"),
            r"could not be reached \(offline mode is enabled\)",
        ),
        (TimeoutError(), r"could not be reached \(TimeoutError\)"),
    ],
)
def test_why_it_cannot_be_read(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    answer(monkeypatch, error)
    with pytest.raises(ModelLoadError, match=message):
        look_up("org/name")


def test_cached_snapshot_is_used_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answer(monkeypatch, ConnectionError("down"))
    (tmp_path / "config.json").touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "model.gguf").touch()
    monkeypatch.setattr(
        huggingface_hub,
        "try_to_load_from_cache",
        lambda _id, file, revision: str(tmp_path / file) if (tmp_path / file).exists() else None,
    )
    found = look_up("org/name", "v1")
    assert found == HubRepository(str(tmp_path), None, frozenset({"config.json", "sub/model.gguf"}))
    assert download(found, "*.json") == tmp_path


def test_download_asks_for_the_patterns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def snapshot_download(repository: str, **kwargs: Any) -> str:
        asked.append((repository, kwargs))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert download(HubRepository("org/name", "v1", frozenset()), "a.gguf") == tmp_path
    assert asked == [("org/name", {"revision": "v1", "allow_patterns": ["a.gguf"]})]


def test_download_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(*_: Any, **__: Any) -> str:
        raise OSError("disk full")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(ModelLoadError, match="org/name from the hub failed: disk full"):
        download(HubRepository("org/name", None, frozenset()), "*.json")
