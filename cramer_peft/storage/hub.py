"""Folders on the Hugging Face hub: found in its cache, downloaded and pushed; the network is used only when asked."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HFValidationError

from cramer_peft.errors import AdapterFileError, ConfigError, DownloadError
from cramer_peft.storage.files import CONFIG_NAME, WEIGHTS_NAME
from cramer_peft.storage.model_card import CARD_NAME, is_own_card

ADAPTER_FILES = (CONFIG_NAME, WEIGHTS_NAME, CARD_NAME)
_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_LISTED = 5


def find_folder(
    name: str | os.PathLike[str],
    files: Sequence[str],
    revision: str | None = None,
    subfolder: str | None = None,
    local_files_only: bool = True,
) -> Path:
    """Return a folder: a local one, which always wins, or that of a name on the hub, in the hub's cache.

    Nothing is read here. A name that is neither is returned as it is, for the error of who reads it.

    Args:
        name: A folder, or ``"user/name"`` on the hub.
        files: Paths in the folder that are downloaded; ``*`` stands for anything. The first is a name that must be
            there.
        revision: Branch, tag or commit on the hub; None: ``main``.
        subfolder: A folder inside it, with ``/``.
        local_files_only: False to use the network.

    Raises:
        AdapterFileError: If it is neither a folder nor in the cache.
        ConfigError: If ``revision`` is given without a name on the hub, or ``subfolder`` leads out.
        DownloadError: If the hub does not give it.
    """
    text = name if isinstance(name, str) else Path(name).as_posix()
    inside = PurePosixPath(subfolder or "")
    if inside.is_absolute() or ".." in inside.parts:
        raise ConfigError(f"subfolder: found {subfolder!r}, expected a relative path with '/' and without '..'.")
    if os.path.lexists(name) or not _NAME.fullmatch(text):
        if revision is not None:
            kind = "a path on this machine" if os.path.lexists(name) else "no name on the hub, such as user/name"
            raise ConfigError(f"revision: found {revision!r}, but {text!r} is {kind}. Leave revision out.")
        return Path(name) / inside
    try:
        if local_files_only:
            return _cached(text, (inside / files[0]).as_posix(), revision).parent
        return _downloaded(text, inside, files, revision)
    except HFValidationError as error:
        raise AdapterFileError(f"{text!r} is neither a folder nor a name on the hub: {error}") from error


def _cached(name: str, file: str, revision: str | None) -> Path:
    """Return the path of a file in the cache; huggingface_hub's ``local_files_only`` may look up addresses."""
    found = try_to_load_from_cache(name, file, revision=revision)
    if not isinstance(found, str):
        at = f" --revision {revision}" if revision else ""
        raise AdapterFileError(
            f"{name!r} is no folder here, and the hub's cache on this machine has no {file} of it"
            f"{f' at revision {revision!r}' if revision else ''}. If it is a folder, correct the path. If it is a name "
            f"on the hub, pass local_files_only=False, which downloads it, or run once: hf download {name}{at}"
        )
    return Path(found)


def _downloaded(name: str, inside: PurePosixPath, files: Sequence[str], revision: str | None) -> Path:
    patterns = [glob.escape(inside.as_posix()) + "/" + file if inside.parts else file for file in files]
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns)) / inside
        if (folder / files[0]).exists():
            return folder
        found = HfApi().list_repo_files(name, revision=revision)
    except HFValidationError:
        raise
    except Exception as error:  # those of the HTTP client, too, which have no class in common
        raise DownloadError(
            f"{name!r} is no folder here, and the hub did not give it: {' '.join(str(error).split())} Check the name, "
            "the revision, the network (HF_HUB_OFFLINE, HF_ENDPOINT) and the token (hf auth login)."
        ) from error
    places = [path.removesuffix(files[0]).rstrip("/") for path in found if f"/{path}".endswith(f"/{files[0]}")]
    advice = f"It is in {', '.join(map(repr, places[:_LISTED]))}: pass subfolder=…" if places else "Give another name."
    raise DownloadError(f"{name!r} on the hub has no {(inside / files[0]).as_posix()}. {advice}")


def push_folder(
    folder: Path,
    repo_id: str,
    files: Sequence[str],
    revision: str | None = None,
    subfolder: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
) -> str:
    """Upload a folder's files to the hub in one commit, and return its address.

    A README.md there that is no card of this library stays.

    Args:
        folder: The folder.
        repo_id: ``"user/name"``; the repository is made if it does not exist.
        files: Paths as for :func:`find_folder`; what is there under these paths and not in ``folder`` is removed.
        revision: A branch, made if it does not exist; None: ``main``.
        subfolder: A folder inside the repository, with ``/``.
        private: True: a new repository is private, and one that others can read is refused. None: as the hub decides.
        token: A token for the hub; None: the one that ``hf auth login`` stored.
        commit_message: The commit's message.

    Raises:
        ConfigError: If the repository must be private, but is not. Nothing was uploaded.
    """
    api = HfApi(token=token, library_name="cramer-peft")
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if private and not api.repo_info(repo_id).private:
        raise ConfigError(
            f"private: {repo_id!r} is on the hub already, and others can read it. Pass private=False if they may read "
            "these files, or push to another name."
        )
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    card = str(PurePosixPath(subfolder or "") / CARD_NAME)
    try:
        kept = not is_own_card(Path(api.hf_hub_download(repo_id, card, revision=revision)))
    except EntryNotFoundError:
        kept = False
    pushed = api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        path_in_repo=subfolder,
        revision=revision,
        commit_message=commit_message or "Push by cramer-peft",
        ignore_patterns=[CARD_NAME] if kept else None,
        delete_patterns=[file for file in files if not file.endswith(CARD_NAME)],
    )
    return str(pushed.commit_url)
