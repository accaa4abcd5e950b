"""Upload of a model folder to the hub."""

from __future__ import annotations

import re
from pathlib import Path

from distil_jax.errors import FaultError, UserError, first_line, one_line

_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def require_repository(repository: str) -> None:
    """Raises UserError where `repository` is no name of a repository, or the hub is switched off."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
        valid = _REPOSITORY.fullmatch(repository) is not None
    except HFValidationError:
        valid = False
    if not valid:
        raise UserError(
            f"{one_line(repository, 200)}: not the name of a repository; give user/name, of letters, digits, '-', '_' "
            "and '.'"
        )
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{repository}: HF_HUB_OFFLINE is set; unset it to upload")


def push_folder(folder: Path, repository: str, *, private: bool = False, message: str = "") -> str:
    """Upload the files of a model folder as one commit, and return the address of the repository.

    The repository is made where there is none. Files that it has already are not sent again, so the same command
    continues an upload that was interrupted. The hub's address and the token are those of huggingface_hub
    (`HF_ENDPOINT`, `HF_TOKEN`, `hf auth login`).

    Args:
        folder: the files.
        repository: "user/name" or "organisation/name".
        private: of a new repository: only its owners see it.
        message: of the commit; empty: that of the hub.

    Raises:
        UserError: not the name of a repository, not logged in, or not allowed to write there.
        FaultError: the hub does not answer, or refuses the files.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    require_repository(repository)
    api = HfApi()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message or None)
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise UserError(
                f"{repository}: the hub does not let you write there (status {status}); log in with `hf auth login` "
                "or set HF_TOKEN to a token with write access"
            ) from error
        raise FaultError(f"{repository}: the hub refused the upload: {first_line(error)}") from error
    except Exception as error:  # no connection, an unreadable file: which library raises depends on the hub's version
        raise FaultError(
            f"{repository}: the upload broke off ({first_line(error)}); the same command continues it"
        ) from error
    return str(address)
