"""The blocks of docs/python.md, run one after another."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from formats import load
from formats.errors import LockedError
from tests import ROOT
from tests.support.families import PROMPT, SUPPORTED
from tests.support.models import byte_tokenizer, llama
from tests.tsc_cli.huggingface.test_foreign import batch, build

PAGE = ROOT / "docs" / "python.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_every_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ids, mask = batch()
    names = {
        "model": SUPPORTED["llama"].build(torch.float32),
        "input_ids": torch.tensor([PROMPT]),
        "batch_ids": ids,
        "assistant": llama(),
        "tokenizer": byte_tokenizer(),
        "batch_mask": mask,
        "translator": build("t5"),
        "source_ids": torch.tensor([PROMPT[:9]]),
    }
    assert len(BLOCKS) == 8
    assert "append(" in BLOCKS[1]
    assert "chat_tokens(" in BLOCKS[2]
    for block in BLOCKS:
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["result"].fidelity.kl_mean < 1e-9
    assert names["cache"].get_seq_length() == len(PROMPT) + 7
    assert (tmp_path / "batch.tsc").exists()
    with pytest.raises(LockedError, match="encrypted with a key"):
        load(tmp_path / "secret.tsc")
