"""A recipe: how a trace is to be coded, with what it evicts, how, and what it keeps exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from formats import settings as setting
from formats.codecs import Codec, codec_by_name, codec_class
from formats.codecs.klt import profile_store
from formats.errors import UsageError
from formats.settings import require
from formats.trace.eviction import FILTERS

if TYPE_CHECKING:
    from formats.codecs.klt.profile import Profile

BESIDE_BITS = 8  # of indexer keys and states where the codec of the rows is for keys and values only


@dataclass(frozen=True)
class Recipe:
    """How a trace is to be coded.

    Attributes:
        codec: the codec of its rows, by name.
        settings: of the codec; what is not given has the codec's default.
        evict: "h2o", "streaming" or "": what is done before the codec.
        evict_settings: of the filter.
        exact_sinks: rows of the first positions that are kept at 12 bits: attention sinks, whose damage costs most.
        exact_last: rows of the last positions that are kept bit-exact.
        embed_profile: hold the codec's profile in the file, instead of naming it.
        state_bits: of states, 2 to 16, or 0 for bit-exact; None is bit-exact with the lossless codec, as rows are with
            the scalar one, and 8 bits with others.
    """

    codec: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    evict: str = ""
    evict_settings: Mapping[str, Any] = field(default_factory=dict)
    exact_sinks: int = 0
    exact_last: int = 0
    embed_profile: bool = False
    state_bits: int | None = None

    @property
    def name(self) -> str:
        return f"{self.evict}+{self.codec}" if self.evict else self.codec

    @property
    def profile(self) -> Profile | None:
        """The profile that the codec needs.  Raises UnsupportedFileError if it is not on this machine."""
        return profile_store.resolve(str(self.settings.get("profile", ""))) if self.needs_profile else None

    @property
    def needs_profile(self) -> bool:
        """Whether the codec needs a profile of the model."""
        return codec_class(self.codec).needs_profile

    @property
    def exact(self) -> bool:
        """Whether every bit of the trace comes back."""
        return codec_class(self.codec).exact and not self.evict and self.state_codec.exact

    def given(self) -> dict[str, Any]:
        """What differs from the defaults, for a person."""
        return {**self.settings, **self.evict_settings, **self._rows()}

    def _rows(self) -> dict[str, int]:
        """What the codec does not code."""
        counts = {name: getattr(self, name) for name in ("exact_sinks", "exact_last") if getattr(self, name)}
        return counts if self.state_bits is None else counts | {"state_bits": self.state_bits}

    @property
    def state_codec(self) -> Codec:
        """What codes the states."""
        if self.state_bits is None and codec_class(self.codec).codes_states:
            return codec_by_name(self.codec, self.settings)
        bits = BESIDE_BITS if self.state_bits is None else self.state_bits
        return codec_by_name("scalar", {"bits": bits}) if bits else codec_by_name("lossless")

    def parameters(self) -> dict[str, Any]:
        """Everything that was set or left at its default, as the tier header holds it."""
        parameters: dict[str, Any] = codec_by_name(self.codec, self.settings).settings.described()
        if self.evict:
            parameters |= asdict(setting.make(FILTERS[self.evict], self.evict_settings, f"filter {self.evict}"))
        return parameters | self._rows()


def recipe_of(codec: str, evict: str, values: Mapping[str, str]) -> Recipe:
    """A recipe by hand: every setting goes to whatever has one of that name.

    Raises:
        UsageError: nothing has; the settings that exist are named.
    """
    codec_class(codec)  # refuses an unknown one before anything else
    if evict and evict not in FILTERS:
        raise UsageError(f"there is no filter {evict!r}", hint=f"filters: {', '.join(FILTERS)}")
    of_filter = {f.name for f in fields(FILTERS[evict])} if evict else set()
    rest = {key: value for key, value in values.items() if key not in of_filter}
    exact = {}
    state_bits = rest.pop("state_bits", None)
    if state_bits is not None:
        require(state_bits in {"0", *map(str, range(2, 17))}, f"state_bits={state_bits} is neither 0 nor from 2 to 16")
    for name in ("exact_sinks", "exact_last"):
        count = rest.pop(name, "0")
        require(count.isascii() and count.isdigit() and len(count) < 8, f"{name}={count} is not a number of rows")
        exact[name] = int(count)
    of_evict = {key: value for key, value in values.items() if key in of_filter}
    bits = None if state_bits is None else int(state_bits)
    recipe = Recipe(codec, rest, evict, of_evict, exact["exact_sinks"], exact["exact_last"], state_bits=bits)
    recipe.parameters()  # refuses what nothing knows
    return recipe
