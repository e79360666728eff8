"""Model repositories on the hub: their file lists, and downloads of some of their files.

One quick request checks that a repository exists and can be read, and lists its files, before anything large
is
downloaded: a misspelled name fails at once, with its own message. Without a network, the local cache is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors

from inferaligner.errors import ModelLoadError

# The hub answers in well under a second; a hanging proxy must not make the program hang.
_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class HubRepository:
    """A model repository that can be read.

    Attributes:
        source: Its hub id, or the folder of its cached snapshot if the hub could not be reached.
        revision: Branch, tag or commit; None for the default branch and for a cached snapshot.
        files: The names of its files.
    """

    source: str
    revision: str | None
    files: frozenset[str]


def look_up(repository: str, revision: str | None = None) -> HubRepository:
    """Looks a model repository up on the hub, or else in the local cache.

    Raises:
        ModelLoadError: It does not exist, is private or gated, or the hub cannot be reached and the local
            cache does not have it.
    """
    name = f"{repository}@{revision}" if revision else repository
    try:
        info = huggingface_hub.HfApi().model_info(repository, revision=revision, timeout=_TIMEOUT_SECONDS)
    except errors.GatedRepoError as error:
        raise _gated(name) from error
    except errors.RevisionNotFoundError as error:
        raise ModelLoadError(
            f"The hub has {repository} but no revision {revision!r} of it. Check the branch, tag or commit."
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise ModelLoadError(
            f"There is no folder {name!r} here and no such model on the hub. Check the spelling; for a "
            "private model, log in with `hf auth login`."
        ) from error
    except Exception as error:  # offline mode, and any error of the HTTP library in use
        return _cached(repository, revision, name, error)
    files = frozenset(sibling.rfilename for sibling in info.siblings or ())
    return HubRepository(repository, revision, files)


def download(repository: HubRepository, *patterns: str) -> Path:
    """Downloads the files of ``repository`` that match ``patterns``, unless they are cached.

    Returns:
        The folder with the files.

    Raises:
        ModelLoadError: The download failed, or the repository is gated.
    """
    folder = Path(repository.source)
    if folder.is_dir():
        return folder
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repository.source, revision=repository.revision, allow_patterns=list(patterns)
            )
        )
    except errors.GatedRepoError as error:
        raise _gated(repository.source) from error
    except Exception as error:
        raise ModelLoadError(
            f"The download of {', '.join(patterns)} of {repository.source} from the hub failed: "
            f"{str(error) or type(error).__name__}. Try again, or download the model and give its folder."
        ) from error


def _gated(name: str) -> ModelLoadError:
    return ModelLoadError(
        f"{name} is gated on the hub and this account has no access to it. Accept its terms on the model's "
        "page and log in with `hf auth login`."
    )


def _cached(repository: str, revision: str | None, name: str, error: Exception) -> HubRepository:
    for file in ("config.json", "adapter_config.json"):
        cached = huggingface_hub.try_to_load_from_cache(repository, file, revision=revision)
        if isinstance(cached, str):
            folder = Path(cached).parent
            files = frozenset(
                path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
            )
            return HubRepository(str(folder), None, files)
    reason = (str(error) or type(error).__name__).splitlines()[0]
    raise ModelLoadError(
        f"There is no folder {name!r} here, the local cache has no model of that name, and the hub could not "
        f"be reached ({reason}). Connect to the network, or give the folder of a model on this machine."
    ) from error
