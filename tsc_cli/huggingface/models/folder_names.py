"""Folders of models whose names are not UTF-8, for libraries that take UTF-8 only."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from formats.errors import StorageError
from tsc_cli.text_input import is_text


@contextlib.contextmanager
def readable(where: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Replace a name that is not UTF-8 by a link to it, in arguments of `from_pretrained`.

    The operating system takes any bytes as a name. The readers of safetensors and tokenizers take
    UTF-8.

    Raises:
        StorageError: no link can be made.
    """
    place, file = str(where["pretrained_model_name_or_path"]), where.get("gguf_file")
    if is_text([place, file]):
        yield dict(where)
        return
    with tempfile.TemporaryDirectory(prefix="tsc-") as scratch:
        link = Path(scratch) / ("model.gguf" if file is not None else "model")
        try:
            link.symlink_to(Path(place, file or "").resolve())
        except OSError as error:
            raise StorageError(
                f"the name is not UTF-8, and no link to it can be made: {error.strerror}", path=place
            ) from error
        if file is None:
            yield {**where, "pretrained_model_name_or_path": str(link)}
        else:
            yield {**where, "pretrained_model_name_or_path": scratch, "gguf_file": link.name}
