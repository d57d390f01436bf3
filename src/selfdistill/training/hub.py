"""Uploads an exported model to the hub, or to another server of its interface (``HF_ENDPOINT``)."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

from selfdistill.errors import CheckpointError, ConfigError


def make_repo(name: str, *, private: bool = False) -> str:
    """Make a model repository unless it exists; returns its whole name. Call it before anything takes long.

    Raises:
        ConfigError: the name is none.
        CheckpointError: the hub does not answer, or refuses.
    """
    api = HfApi()
    try:
        return str(api.create_repo(name, private=private, exist_ok=True).repo_id)
    except HFValidationError as error:
        raise ConfigError(f"--push {name!r} is no repository: write OWNER/NAME") from error
    # A failed connection raises an error of the client's HTTP library, another one in each of its major releases.
    except Exception as error:
        raise CheckpointError(f"--push {name}: {api.endpoint} {_why(error)}") from error


def upload(name: str, folder: Path, *, message: str) -> str:
    """Upload a folder as one commit; returns the commit's address.

    Raises:
        CheckpointError: the hub does not answer, or refuses.
    """
    api = HfApi()
    try:
        return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message=message).commit_url)
    except Exception as error:
        raise CheckpointError(f"--push {name}: {api.endpoint} {_why(error)}") from error


def _why(error: Exception) -> str:
    """Why the hub did not do it, in some words."""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        remedy = (
            ": log in with hf auth login, or set HF_TOKEN to a token that may write" if status in (401, 403) else ""
        )
        return f"refuses ({status}){remedy}"
    if isinstance(error, OfflineModeIsEnabled):
        return "is not asked, because HF_HUB_OFFLINE is set"
    if isinstance(error, LocalTokenNotFoundError):
        return "wants a login: hf auth login, or set HF_TOKEN"
    return f"does not answer ({type(error).__name__}: {error})"
