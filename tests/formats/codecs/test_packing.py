"""Small integers in bytes: what comes back, how many share a byte, and in which order."""

from __future__ import annotations

import pytest
import torch

from formats.codecs.packing import codes_per_byte, pack, packed_shape, unpack


@pytest.mark.parametrize("levels", [2, 3, 4, 5, 6, 7, 11, 15, 16, 17, 255, 256, 257, 4096, 65536])
def test_packing_gives_every_code_back(levels: int) -> None:
    generator = torch.Generator().manual_seed(levels)
    for length in (1, 2, 7, 64):
        codes = torch.randint(0, levels, (3, 2, length), generator=generator, dtype=torch.int32)
        packed = pack(codes, levels)
        assert packed.dtype == torch.uint8
        assert tuple(packed.shape) == packed_shape((3, 2, length), levels)
        unpacked = unpack(packed, levels, length)
        assert unpacked.dtype == torch.int32
        assert torch.equal(unpacked, codes)
    assert levels ** max(1, codes_per_byte(levels)) <= 256 or codes_per_byte(levels) == 0


def test_as_many_codes_share_a_byte_as_fit() -> None:
    alphabets = {2: 8, 3: 5, 4: 4, 5: 3, 6: 3, 7: 2, 16: 2, 17: 1, 256: 1, 257: 0, 65536: 0}
    assert {levels: codes_per_byte(levels) for levels in alphabets} == alphabets


def test_the_first_code_is_the_lowest_digit_and_the_first_plane_the_low_bytes() -> None:
    ternary = torch.tensor([[1, 2, 0, 1, 2, 2]])
    assert pack(ternary, 3).tolist() == [[1 + 2 * 3 + 1 * 27 + 2 * 81, 2]]
    assert pack(torch.tensor([[7, 200]]), 256).tolist() == [[7, 200]]
    assert pack(torch.tensor([[300, 4095]]), 4096).tolist() == [[[300 - 256, 255]], [[1, 15]]]
    assert unpack(torch.tensor([[255]], dtype=torch.uint8), 3, 5).tolist() == [[0, 1, 1, 0, 3]]  # 3: no code of ours
