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


def find_folder(
    name: str | os.PathLike[str],
    files: Sequence[str],
    revision: str | None = None,
    subfolder: str | None = None,
    local_files_only: bool = True,
) -> Path:
    """Return a folder on this machine, which always wins, or that of a name on the hub, in the hub's cache.

    Nothing is read. A name that is neither is returned as it is, for the error of who reads it.

    Args:
        name: A folder, or ``"user/name"`` on the hub.
        files: Paths in it that are downloaded; ``*`` stands for anything. The first is a name that must be there.
        revision: Branch, tag or commit on the hub; None: ``main``.
        subfolder: A folder inside it, with ``/``.
        local_files_only: False to use the network.

    Raises:
        AdapterFileError: If it is neither a folder nor in the cache.
        ConfigError: If ``revision`` is given without a name on the hub, or ``subfolder`` leads out.
        DownloadError: If the hub does not give it.
    """
    text = name if isinstance(name, str) else Path(name).as_posix()
    inside, here = _inside(subfolder), os.path.lexists(name)
    if here or not _NAME.fullmatch(text):
        if revision:
            kind = "on this machine" if here else "no name on the hub, such as user/name"
            raise ConfigError(f"revision: found {revision!r}, but {text!r} is {kind}. Leave revision out.")
        if not here and not local_files_only:
            raise AdapterFileError(f"{text!r} is neither a folder nor a name on the hub, such as user/name.")
        return Path(name) / inside
    if not local_files_only:
        return _downloaded(text, inside, files, revision or None)
    file = (inside / files[0]).as_posix()
    try:  # huggingface_hub's own local_files_only may look up other addresses
        found = try_to_load_from_cache(text, file, revision=revision or None)
    except HFValidationError:
        found = None
    if not isinstance(found, str):
        at, option = (f" at {revision!r}", f" --revision {revision}") if revision else ("", "")
        raise AdapterFileError(
            f"{text!r} is no folder here, and the hub's cache on this machine has no {file} of that name{at}. Correct "
            "the path of a folder. Download what is on the hub by local_files_only=False, or once by: "
            f"hf download {text}{option}"
        )
    return Path(found).parent


def _inside(subfolder: str | None) -> PurePosixPath:
    inside = PurePosixPath(subfolder or "")
    if inside.is_absolute() or ".." in inside.parts:
        raise ConfigError(f"subfolder: found {subfolder!r}, expected a relative path with '/' and without '..'.")
    return inside


def _downloaded(name: str, inside: PurePosixPath, files: Sequence[str], revision: str | None) -> Path:
    patterns = [glob.escape(inside.as_posix()) + "/" + file if inside.parts else file for file in files]
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns)) / inside
        if (folder / files[0]).exists():
            return folder
        known = [path for path in HfApi().list_repo_files(name, revision=revision) if Path(path).name == files[0]]
    except Exception as error:  # those of the HTTP client have no class in common
        raise DownloadError(
            f"{name!r} is no folder here, and the hub did not give it: {' '.join(str(error).split())} Check the name, "
            "the revision, the network (HF_HUB_OFFLINE, HF_ENDPOINT) and the token (hf auth login)."
        ) from error
    places = ", ".join(repr(str(PurePosixPath(path).parent)) for path in known[:5])
    advice = f"It is in {places}: pass subfolder=…" if known else "Give another name or revision."
    raise DownloadError(f"{name!r} on the hub has no {(inside / files[0]).as_posix()}. {advice}")


def push_folder(
    folder: Path,
    repo_id: str,
    files: Sequence[str],
    revision: str | None = None,
    subfolder: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
) -> str:
    """Upload a folder to the hub in one commit, and return its address; a README.md of one's own there stays.

    Args:
        folder: The folder.
        repo_id: ``"user/name"``; the repository is made if it does not exist.
        files: As for :func:`find_folder`; what is there under these paths, and not in ``folder``, is removed.
        revision: A branch, made if it does not exist; None: ``main``.
        subfolder: A folder inside the repository, with ``/``.
        private: True: it is made private, and one that others can read is refused. None: as the hub decides.
        token: A token for the hub; None: that of ``hf auth login``.

    Raises:
        ConfigError: If the name is no name, or the repository must be private, but is not. Nothing was uploaded.
    """
    if not _NAME.fullmatch(repo_id):
        raise ConfigError(f"repo_id: found {repo_id!r}, expected a name such as 'user/name'.")
    _inside(subfolder)
    api = HfApi(token=token, library_name="cramer-peft")
    api.create_repo(repo_id, private=private, exist_ok=True)
    if private and not api.repo_info(repo_id).private:
        raise ConfigError(
            f"private: others can read {repo_id!r} on the hub. Push to another name, or pass private=False if they may "
            "read these files, too."
        )
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    try:
        card = api.hf_hub_download(repo_id, CARD_NAME, subfolder=subfolder, revision=revision)
        kept = [] if is_own_card(Path(card)) else [CARD_NAME]
    except EntryNotFoundError:
        kept = []
    pushed = api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        path_in_repo=subfolder,
        revision=revision,
        commit_message="Push by cramer-peft",
        ignore_patterns=kept,
        delete_patterns=[file for file in files if not file.endswith(CARD_NAME)],
    )
    return str(pushed.commit_url)
