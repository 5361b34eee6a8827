"""Models of the Hugging Face hub, through its cache."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from detr_kit.checkpoints.huggingface import CONFIG_FILE, PROCESSOR_FILE, WEIGHT_FILES, shards_of
from detr_kit.errors import DetrKitError

_WEIGHT_SUFFIXES = {".pth", ".pt", ".bin", ".safetensors"}
_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def looks_like_hub_name(text: str) -> bool:
    """Whether `text` is written as `owner/name` or `owner/name@revision`, and not as a file's."""
    return _NAME.fullmatch(text) is not None and Path(text).suffix not in _WEIGHT_SUFFIXES


def is_hub_name(text: str) -> bool:
    """Whether `text` is to be taken for a name of the hub.

    Where the owner is a folder here, a mistyped path is more likely.
    """
    return looks_like_hub_name(text) and not Path(text.split("/")[0]).is_dir()


def fetch_model(name: str) -> Path:
    """Return the cached folder of a model's config, processor and weights, fetching what lacks.

    Raises DetrKitError, saying what to fetch, where the cache lacks a file that the hub does not
    give: it cannot be reached, or has no such model.
    """
    config = _fetch(name, CONFIG_FILE)
    if config is None:
        raise DetrKitError(f"{name}: this model of the hub has no {CONFIG_FILE}")
    # The rest comes from the same commit; one folder of the cache holds what belongs together.
    commit = config.parent.name
    _fetch(name, PROCESSOR_FILE, commit)
    cached = [file for file in WEIGHT_FILES if (config.parent / file).is_file()]
    for file in cached or WEIGHT_FILES:
        weights = _fetch(name, file, commit)
        if weights is not None:
            for shard in shards_of(weights):
                _fetch(name, shard, commit)
            return config.parent
    raise DetrKitError(f"{name}: this model of the hub has none of {', '.join(WEIGHT_FILES)}")


def _fetch(name: str, file: str, commit: str | None = None) -> Path | None:
    """Return a file of the cache, fetched if need be; None where the model has no such file."""
    from huggingface_hub import (
        get_hf_file_metadata,
        hf_hub_download,
        hf_hub_url,
        try_to_load_from_cache,
    )
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    repository, _, asked = name.partition("@")
    revision = commit or asked or "main"
    try:
        cached = try_to_load_from_cache(repository, file, revision=revision)
        if commit is not None and cached is not None:
            # A path, or a mark that the model is known to have no such file.
            return Path(cached) if isinstance(cached, str) else None
        if cached is None:
            # hf_hub_download tries for half a minute; this asks once whether there is a hub.
            with suppress(EntryNotFoundError):  # the cache is to remember that there is none
                get_hf_file_metadata(hf_hub_url(repository, file, revision=revision))
        return Path(hf_hub_download(repository, file, revision=revision))
    except LocalEntryNotFoundError as error:
        raise _unreachable(name, file) from error
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, HFValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DetrKitError(
            f"{name}: no such file or folder here, and the Hugging Face hub does not give its "
            f"{file}: {reason}"
        ) from error
    # Every layer down to the socket and the disk has its own exceptions.
    except Exception as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise _unreachable(name, file, f" ({reason})") from error


def _unreachable(name: str, file: str, reason: str = "") -> DetrKitError:
    repository, _, asked = name.partition("@")
    command = f"hf download {repository}" + (f" --revision {asked}" if asked else "")
    return DetrKitError(
        f"{name}: no such file or folder here, and as a model of the Hugging Face hub its {file} "
        f"is not in the cache and cannot be fetched{reason}; with network, fetch it by "
        f"`{command}`, or give a local folder"
        + (", which may lack it" if file == PROCESSOR_FILE else "")
    )
