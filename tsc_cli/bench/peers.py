"""Other projects' KV-cache quantizers, to be measured beside our own codecs on the same cache.

All are optional (`pip install 'tsc-kv[bench]'`) and imported when they are first run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Protocol

from .peer_adapters import PeerResult, Tensors, kakeyalattice, nexusquant, quantized_cache, turboquant

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = ["Peer", "PeerResult", "Run", "Tensors", "installed"]


class Run(Protocol):
    """What a peer does to a cache."""

    def __call__(self, layers: Tensors, /, config: PreTrainedConfig | None = None) -> PeerResult:
        """Quantize a cache and read it back.

        Args:
            layers: per layer keys and values, (1, heads, tokens, head size), float32, as they are
                in the cache: keys with RoPE.  Full attention, from position 0 on.  Left as they
                are.
            config: of the model.  nexusquant needs it, for the base and the scaling of RoPE; the
                others do not.
        Raises:
            UsageError: the peer cannot take this cache (a head size that is no power of two, say),
                cannot work here (optimum-quanto compiles an extension when it is first run), or
                needs `config`.
        """


@dataclass(frozen=True)
class Peer:
    """One quantizer at one setting.

    Attributes:
        name: for a table, such as "kakeyalattice E8 q=19".
        package: the name on PyPI; `importlib.metadata.version` has what is installed.
        run: rows in, rows and bytes out.
    """

    name: str
    package: str
    run: Run


def _peer(name: str, package: str, adapter: Callable[..., PeerResult], **settings: Any) -> Peer:
    return Peer(name, package, partial(adapter, **settings))


def _quantized_cache(backend: str, package: str) -> list[Peer]:
    """By the axes that transformers' documentation recommends, and with keys by channel, mostly the
    better way.
    """
    found = []
    for by_channel, label in ((False, ""), (True, ", keys by channel")):
        for bits in (4, 2):
            name = f"QuantizedCache {backend} {bits}b{label}"
            found.append(_peer(name, package, quantized_cache, backend=backend, bits=bits, keys_by_channel=by_channel))
    return found


def _all() -> list[Peer]:
    return [
        *_quantized_cache("quanto", "optimum-quanto"),
        *_quantized_cache("hqq", "hqq"),
        *(_peer(f"kakeyalattice E8 q={q}", "kakeyalattice", kakeyalattice, q_range=q) for q in (38, 19, 10, 5)),
        *(
            _peer(f"nexusquant K{k}V{v}", "nexusquant-kv", nexusquant, key_bits=k, value_bits=v)
            for k, v in ((4, 4), (4, 2), (3, 2), (2, 2))
        ),
        *(_peer(f"turboquant {bits}b", "turboquant", turboquant, bits=bits) for bits in (4, 3, 2)),
    ]


def installed() -> tuple[list[Peer], list[str]]:
    """The peers that can be run here, and the packages that are missing for the others, each in the
    order of a table.

    It is the distributions that are looked up, since others than the one meant bring modules of the
    same name.
    """
    missing = []
    for package in dict.fromkeys(peer.package for peer in _all()):
        try:
            version(package)
        except PackageNotFoundError:
            missing.append(package)
    return [peer for peer in _all() if peer.package not in missing], missing
