"""One file of a model on a hub, without its weights or its code."""

from __future__ import annotations

from pathlib import Path

from formats.errors import UsageError

from .libraries import quiet_environment


def file_of(name: str, file: str, *, optional: bool = False) -> Path | None:
    """The file in the local hub cache, fetched into it where it is not there; all of one model are in one folder.

    Args:
        name: a hub id.
        optional: a file that is neither in the cache nor can be asked for is taken as one that the model does not have.
    Returns:
        None where the model has no such file.
    Raises:
        UsageError: there is no such model, it is not given to everybody, or the hub cannot be reached.
    """
    quiet_environment()
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    hint = "tsc models lists what is on this machine; a local file or folder will do, too"
    try:
        return Path(hf_hub_download(name, file))
    except GatedRepoError as error:
        raise UsageError(f"the hub gives {name} only to those who were granted access", hint=hint) from error
    except RepositoryNotFoundError as error:
        raise UsageError(f"the hub knows no model {name}, or keeps it private", hint=hint) from error
    except LocalEntryNotFoundError as error:  # not in the cache, and no hub to ask whether there is one
        if optional:
            return None
        raise UsageError(f"{name} is not in the local hub cache, and the hub cannot be reached", hint=hint) from error
    except EntryNotFoundError:
        return None
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UsageError(f"the {file} of {name} cannot be fetched: {reason}", hint=hint) from error
