"""Text that comes token by token is the text of all tokens, whatever kind of tokenizer, and costs a few of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram, WordPiece

from tests.support import models
from tsc_cli.cli.streaming import TextStream

SPECIAL = ["<s>", "</s>", "<|im_end|>"]
WORDS = ["a", "b", "he", "llo", "n't", ".", ",", "é", "e\u0301", "\u0301", "👩", "\u200d", "世"]


def fast(backend: Tokenizer) -> Any:
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    backend.add_tokens([AddedToken("<tool>", normalized=False)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def byte_level() -> Any:
    """GPT-2's kind: each token is bytes, and a character may lie in four of them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: number for number, char in enumerate(alphabet)}
    merges = [("Ġ", "a"), ("Ġ", "b"), ("Ã", "©"), ("ð", "Ł")]
    vocab |= {"".join(pair): len(vocab) + number for number, pair in enumerate(merges)}
    backend = Tokenizer(BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return fast(backend)


def byte_fallback() -> Any:
    """Llama 2's kind: words with a mark for a space, single bytes for what has no word, the first space taken off."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", *WORDS, *(f"▁{word}" for word in WORDS)]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    backend = Tokenizer(BPE(vocab=vocab, merges=[], byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return fast(backend)


def metaspace() -> Any:
    """T5's kind."""
    pieces = [("<unk>", 0.0), ("▁", -1.0), *((f"▁{word}", -2.0) for word in WORDS), *((word, -3.0) for word in WORDS)]
    backend = Tokenizer(Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return fast(backend)


def word_piece() -> Any:
    """BERT's kind: a space before every piece that does not say otherwise."""
    pieces = ["[UNK]", *WORDS, *(f"##{word}" for word in WORDS)]
    backend = Tokenizer(WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return fast(backend)


KINDS: dict[str, Callable[[], Any]] = {
    "byte-level": byte_level,
    "byte-fallback": byte_fallback,
    "metaspace": metaspace,
    "word-piece": word_piece,
}
MADE: dict[str, Any] = {}


def tokenizer_of(kind: str) -> Any:
    return MADE.setdefault(kind, KINDS[kind]()) if kind not in MADE else MADE[kind]


def whole(tokenizer: Any, tokens: list[int]) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def streamed(tokenizer: Any, tokens: list[int]) -> list[str]:
    pieces: list[str] = []
    stream = TextStream(tokenizer, pieces.append)
    for token in tokens:
        stream.add(token)
    stream.end()
    assert stream.text == whole(tokenizer, tokens)
    return pieces


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_the_pieces_are_the_whole(kind: str, data: Any) -> None:
    tokenizer = tokenizer_of(kind)
    tokens = data.draw(st.lists(st.integers(0, len(tokenizer) + 2), max_size=40))  # the last are no token's
    assert "".join(streamed(tokenizer, tokens)) == whole(tokenizer, tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_long_random_texts(kind: str) -> None:
    tokenizer, generator = tokenizer_of(kind), random.Random(5)
    likely = [*range(len(tokenizer) - 30, len(tokenizer)), *generator.choices(range(len(tokenizer)), k=60)]
    for _ in range(20):
        tokens = generator.choices(likely, k=300)
        assert "".join(streamed(tokenizer, tokens)) == whole(tokenizer, tokens)


@pytest.mark.parametrize("text", ["👩‍👩‍👧 and e\u0301", "naïve — 世界\ufffd!", "a  b\n\n c", "  two spaces first"])
def test_characters_come_whole(text: str) -> None:
    tokenizer = models.byte_tokenizer()  # one token a byte
    pieces = streamed(tokenizer, tokenizer(text)["input_ids"])
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces if "\ufffd" not in text)
    assert sum(bool(piece) for piece in pieces) >= len(text) - 1  # each as soon as it is there


def test_bytes_that_are_no_text_end_as_they_are() -> None:
    tokenizer = models.byte_tokenizer()
    tokens = [*tokenizer("ab")["input_ids"], *tokenizer("世")["input_ids"][:2]]
    assert "".join(streamed(tokenizer, tokens)) == "ab\ufffd"


def test_a_token_costs_the_same_however_long_the_text_is(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = models.byte_tokenizer()
    lengths: list[int] = []
    decode = tokenizer.decode

    def counted(tokens: Any, **settings: Any) -> Any:
        lengths.append(len(tokens))
        return decode(tokens, **settings)

    monkeypatch.setattr(tokenizer, "decode", counted)
    stream = TextStream(tokenizer, lambda piece: None)
    for token in tokenizer("word 世界 " * 100)["input_ids"]:
        stream.add(token)
    assert max(lengths) <= 8


def test_without_a_tokenizer_the_ids_are_the_text() -> None:
    pieces: list[str] = []
    stream = TextStream(None, pieces.append)
    for token in (5, 6):
        stream.add(token)
    stream.end()
    assert pieces == ["5 ", "6 "]
    assert stream.text == "5 6 "
