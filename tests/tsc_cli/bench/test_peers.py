"""Other projects' quantizers: the interface, and the bytes that they are said to take, counted again another way."""

from __future__ import annotations

import itertools
import math
from importlib.metadata import PackageNotFoundError
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from formats.errors import UsageError
from tsc_cli.bench import peer_adapters, peers
from tsc_cli.bench.peer_adapters import coded_bytes, lattice_bits, packed_bytes
from tsc_cli.bench.peers import Peer, Tensors

# a peer's own warnings, and those of what it imports, are not ours to mend
pytestmark = pytest.mark.filterwarnings("default")

LAYERS, HEADS, TOKENS, SIZE = 2, 2, 64, 32
VECTORS = LAYERS * 2 * HEADS * TOKENS
VALUES = VECTORS * SIZE
THETA = 5000.0
MODULES = {
    "hqq": "hqq",
    "optimum-quanto": "optimum.quanto",
    "kakeyalattice": "kakeyalattice",
    "nexusquant-kv": "nexusquant",
    "turboquant": "turboquant",
}


def cache(seed: int = 0) -> Tensors:
    """Rows with channels of different scales and means, as keys have."""
    generator = torch.Generator().manual_seed(seed)

    def rows() -> torch.Tensor:
        noise = torch.randn(1, HEADS, TOKENS, SIZE, generator=generator)
        return noise * torch.linspace(0.5, 2, SIZE) + torch.linspace(-1, 1, SIZE)

    return [(rows(), rows()) for _ in range(LAYERS)]


def config() -> Any:
    return transformers.LlamaConfig(
        hidden_size=4 * SIZE,
        num_attention_heads=4,
        num_key_value_heads=HEADS,
        num_hidden_layers=LAYERS,
        rope_parameters={"rope_theta": THETA, "rope_type": "default"},
    )


def peers_of(package: str) -> list[Peer]:
    """All peers of a package; the test is skipped if it is not there."""
    pytest.importorskip(MODULES[package])
    found, _ = peers.installed()
    return [peer for peer in found if peer.package == package]


def error(peer: Peer, layers: Tensors) -> float:
    read = peer.run(layers, config()).rows
    return sum(
        float((a - b).square().mean()) for x, y in zip(layers, read, strict=True) for a, b in zip(x, y, strict=True)
    )


def settings(peer: Peer) -> dict[str, Any]:
    return peer.run.keywords  # type: ignore[attr-defined, no-any-return]


# without any peer


def test_what_is_not_installed_is_named_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_turboquant(package: str) -> str:
        if package != "turboquant":
            raise PackageNotFoundError(package)
        return "0.2.0"

    monkeypatch.setattr(peers, "version", only_turboquant)
    found, missing = peers.installed()
    assert missing == ["optimum-quanto", "hqq", "kakeyalattice", "nexusquant-kv"]
    assert [peer.name for peer in found] == ["turboquant 4b", "turboquant 3b", "turboquant 2b"]


def test_every_package_is_either_there_or_missing() -> None:
    found, missing = peers.installed()
    assert {peer.package for peer in found} | set(missing) == set(MODULES)
    assert not {peer.package for peer in found} & set(missing)
    assert len({peer.name for peer in found}) == len(found)


@pytest.mark.parametrize(("count", "bits", "expected"), [(8, 4, 4), (9, 4, 5), (1, 1, 1), (3, 29, 11), (0, 4, 0)])
def test_packed_bytes(count: int, bits: int, expected: int) -> None:
    assert packed_bytes(count, bits) == expected


def test_lattice_bits_name_every_block_that_can_come_back() -> None:
    """All blocks at q = 1, by going through them: integers, and halves up to 1.5 of which 1.5 is clamped to 1."""
    integers = {b for b in itertools.product((-1.0, 0.0, 1.0), repeat=8) if sum(b) % 2 == 0}
    halves = {
        tuple(max(-1.0, min(1.0, x)) for x in b)
        for b in itertools.product((-1.5, -0.5, 0.5, 1.5), repeat=8)
        if sum(b) % 2 == 0
    }
    assert lattice_bits(1) == math.ceil(math.log2(len(integers | halves)))


def test_lattice_bits_agree_with_the_package_but_for_one_setting() -> None:
    packages = {q: math.ceil(8 * math.log2(2 * q + 1)) for q in (5, 10, 19, 38)}
    assert {q: lattice_bits(q) - bits for q, bits in packages.items()} == {5: 1, 10: 0, 19: 0, 38: 0}


def test_coded_bytes_of_noise_are_its_entropy() -> None:
    generator = np.random.default_rng(0)
    even = 2 * generator.choice([-1, 0, 1], size=(3000, 8), p=[0.25, 0.5, 0.25])
    odd = 2 * generator.choice([-1, 0], size=(1000, 8)) + 1
    blocks = torch.from_numpy(generator.permutation(np.concatenate([even, odd])).astype(np.int8))
    ideal = (4000 + 3000 * 8 * 1.5 + 1000 * 8 * 1.0) / 8
    assert ideal * 0.995 < coded_bytes(blocks) < ideal * 1.005 + 10


def test_coded_bytes_see_repetition() -> None:
    block = torch.randint(-4, 5, (64, 8), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    assert coded_bytes(block.repeat(50, 1)) < 2 * coded_bytes(block)


def test_rows_of_another_shape_or_not_finite_are_refused() -> None:
    def broken(layers: Tensors, config: Any = None, *, factor: float, drop: int) -> peer_adapters.PeerResult:
        return peer_adapters.PeerResult([(k[:, :, drop:] * factor, v) for k, v in layers], 1)

    checked = peer_adapters.adapter(broken)
    assert checked(cache(), factor=1.0, drop=0).stored_bytes == 1
    for factor, drop in ((math.nan, 0), (1.0, 1)):
        with pytest.raises(UsageError, match="broken gave back"):
            checked(cache(), factor=factor, drop=drop)


@pytest.mark.parametrize("reason", [AssertionError(), ValueError("no"), RuntimeError("no\n"), ImportError("no")])
def test_what_a_peer_cannot_do_is_one_kind_of_error(reason: Exception) -> None:
    def broken(layers: Tensors) -> peer_adapters.PeerResult:
        raise reason

    with pytest.raises(UsageError, match=r"broken cannot quantize this cache: (no|AssertionError)$"):
        peer_adapters.adapter(broken)(cache())


def test_numpy_is_left_as_it_was() -> None:
    before = hasattr(np, "trapz")
    with peer_adapters.numpy_with_trapz():
        assert hasattr(np, "trapz")
    assert hasattr(np, "trapz") == before


# each peer


@pytest.mark.parametrize("package", MODULES)
def test_shapes_and_dtypes_come_back_and_the_input_is_left_alone(package: str) -> None:
    layers, kept = cache(), cache()
    for peer in peers_of(package):
        found = peer.run(layers, config())
        assert len(found.rows) == LAYERS
        for read, given, before in zip(found.rows, layers, kept, strict=True):
            for a, b, c in zip(read, given, before, strict=True):
                assert (a.shape, a.dtype) == (b.shape, torch.float32)
                assert not torch.equal(a, b)
                assert torch.equal(b, c)
        assert 0 < found.stored_bytes < VALUES * 4


@pytest.mark.parametrize("package", MODULES)
def test_more_bytes_less_error(package: str) -> None:
    """Within each kind of setting; the peers of a package are listed from the best to the smallest."""
    layers = cache()
    groups = itertools.groupby(peers_of(package), key=lambda peer: peer.name.endswith("keys by channel"))
    for _, group in groups:
        members = list(group)
        errors = [error(peer, layers) for peer in members]
        sizes = [peer.run(layers, config()).stored_bytes for peer in members]
        assert len(members) > 1
        assert errors == sorted(errors)
        assert len(set(errors)) == len(errors)
        assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("package", ["hqq", "optimum-quanto"])
def test_quantized_cache_bytes(package: str) -> None:
    for peer in peers_of(package):
        groups = VALUES // 64  # each with a scale and an offset in float16
        expected = VALUES * settings(peer)["bits"] // 8 + groups * 2 * 2
        assert peer.run(cache()).stored_bytes == expected


def test_quantized_cache_bytes_are_those_that_hqq_holds() -> None:
    quantizer = pytest.importorskip("hqq.core.quantize").Quantizer
    for peer in peers_of("hqq"):
        held = 0
        for tensor in itertools.chain.from_iterable(cache()):
            codes, facts = quantizer.quantize(
                tensor.half(), nbits=settings(peer)["bits"], group_size=64, axis=1, device="cpu"
            )
            held += codes.nbytes + facts["scale"].half().nbytes + facts["zero"].half().nbytes
        assert peer.run(cache()).stored_bytes == held


def test_kakeyalattice_bytes_are_the_packages_but_for_clamped_blocks() -> None:
    for peer in peers_of("kakeyalattice"):
        from kakeyalattice import V15KakeyaZamirE8GPU

        q = settings(peer)["q_range"]
        own = VECTORS * V15KakeyaZamirE8GPU(D=SIZE, q_range=q, device="cpu").bits_per_token_per_head
        assert peer.run(cache()).stored_bytes * 8 == own + (VALUES // 8 if q == 5 else 0)


def test_turboquant_bytes_are_what_the_package_computes() -> None:
    for peer in peers_of("turboquant"):
        from turboquant.core import compute_memory_bytes

        own = compute_memory_bytes(SIZE, settings(peer)["bits"], VECTORS)["total_bytes"]
        assert peer.run(cache()).stored_bytes == own


def test_turboquant_keeps_no_exact_rows() -> None:
    for peer in peers_of("turboquant"):
        for given, read in zip(cache(), peer.run(cache()).rows, strict=True):
            for a, b in zip(given, read, strict=True):
                assert ((a - b).abs().amax(-1) > 0).all()


def test_nexusquant_bytes_are_those_of_the_rows_that_came_back() -> None:
    """Codes and scales recovered from the rows alone, and their entropy by numpy."""
    members = peers_of("nexusquant-kv")
    hadamard = torch.tensor([[1.0]])
    while len(hadamard) < SIZE:
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    hadamard /= math.sqrt(SIZE)
    for peer in members:
        layers, bits = cache(), 0.0
        found = peer.run(layers, config())
        for (keys, values), (read_keys, read_values) in zip(layers, found.rows, strict=True):
            for exact, read, width in (
                (without_rope(keys), without_rope(read_keys), settings(peer)["key_bits"]),
                (values, read_values, settings(peer)["value_bits"]),
            ):
                largest = (exact @ hadamard).abs().amax(-1, keepdim=True)
                scale = (largest / 2 ** (width - 1)).half().float()
                doubled = (2 * (read @ hadamard) / scale).reshape(-1, 8).numpy()
                codes = np.rint(doubled)
                assert np.abs(doubled - codes).max() < 0.01  # the scales that are counted are those of the rows
                assert np.abs(codes).max() <= 2**width
                bits += len(codes) + 16 * scale.numel()
                odd = (codes % 2 != 0).any(1)
                for coset in (codes[odd], codes[~odd]):
                    counts = np.unique(coset, return_counts=True)[1]
                    bits += -(counts * np.log2(counts / counts.sum())).sum() + 16 * len(counts)
        assert found.stored_bytes <= math.ceil(bits / 8) + 4 * LAYERS
        assert found.stored_bytes > 0.9 * bits / 8  # noise has no repetition that zstd could find


def without_rope(keys: torch.Tensor) -> torch.Tensor:
    """Llama's RoPE undone: the halves of a head are the real and imaginary parts."""
    half = SIZE // 2
    angles = torch.outer(torch.arange(TOKENS).float(), THETA ** (-torch.arange(half).float() / half))
    turned = torch.complex(keys[..., :half], keys[..., half:]) * torch.polar(torch.ones_like(angles), -angles)
    return torch.cat([turned.real, turned.imag], -1)


def test_nexusquant_needs_to_know_rope() -> None:
    for peer in peers_of("nexusquant-kv"):
        with pytest.raises(UsageError, match="config"):
            peer.run(cache())


@pytest.mark.parametrize("package", ["kakeyalattice", "nexusquant-kv"])
def test_a_head_size_that_a_peer_cannot_take_is_refused(package: str) -> None:
    layers = [(torch.randn(1, 1, 8, 24), torch.randn(1, 1, 8, 24))]
    for peer in peers_of(package):
        with pytest.raises(UsageError, match="cannot quantize this cache"):
            peer.run(layers, config())
