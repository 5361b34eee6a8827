"""Models of the Hugging Face hub: fetched once, then read from its cache."""

from __future__ import annotations

import re
from pathlib import Path

from detr_kit.checkpoints.huggingface import CONFIG_FILE, PROCESSOR_FILE, WEIGHT_FILES, shards_of
from detr_kit.errors import DetrKitError

_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def is_hub_name(text: str) -> bool:
    """Whether `text` is written as `owner/name` or `owner/name@revision`.

    Where the owner is a folder here, a mistyped path is more likely than a name.
    """
    return _NAME.fullmatch(text) is not None and not Path(text.split("/")[0]).is_dir()


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
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    revision = commit or revision or "main"
    if commit is not None:
        cached = try_to_load_from_cache(repository, file, revision=commit)
        if cached is not None:  # a path, or a mark that the model is known to have no such file
            return Path(cached) if isinstance(cached, str) else None
    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except LocalEntryNotFoundError as error:
        raise DetrKitError(
            f"{name}: no such file or folder here, and as a model of the Hugging Face hub its "
            f"{file} is not in the cache and the hub cannot be reached; with network, fetch it "
            f"by `hf download {repository}`, or give a local folder"
        ) from error
    except EntryNotFoundError:
        return None
    # Every layer down to the socket has its own exceptions.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise DetrKitError(
            f"{name}: no such file or folder here, and the Hugging Face hub does not give its "
            f"{file}: {reason}"
        ) from error
