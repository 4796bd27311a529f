"""A recipe says how a trace is encoded: its eviction, its codec, and the rows kept exactly."""

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

BESIDE_BITS = 8  # of indexer keys and states if the rows' codec is for keys and values only


@dataclass(frozen=True)
class Recipe:
    """How a trace is encoded.

    Attributes:
        codec: the name of the codec of its rows.
        settings: the codec's settings; the others have their defaults.
        evict: the filter that evicts rows first: "h2o", "streaming", or "" for none.
        evict_settings: the filter's settings.
        exact_sinks: how many first rows (attention sinks, whose errors cost most) have 12 bits.
        exact_last: how many last rows are kept bit-exact.
        embed_profile: put the codec's profile into the file, instead of its name only.
        state_bits: bits of states, 2 to 16, or 0 for bit-exact.  None codes states as rows if the
            codec codes states (lossless, scalar), else with 8 bits.
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
        """The codec's name, with the filter's in front: "h2o+scalar"."""
        return f"{self.evict}+{self.codec}" if self.evict else self.codec

    @property
    def profile(self) -> Profile | None:
        """The profile that the codec needs, or None.  Raises UnsupportedFileError, UsageError."""
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
        """Return all settings that differ from the defaults, for messages."""
        return {**self.settings, **self.evict_settings, **self._rows()}

    def _rows(self) -> dict[str, int]:
        """Return the settings of rows and states that other codecs code."""
        counts = {name: getattr(self, name) for name in ("exact_sinks", "exact_last") if getattr(self, name)}
        return counts if self.state_bits is None else counts | {"state_bits": self.state_bits}

    @property
    def state_codec(self) -> Codec:
        """The codec of the states."""
        if self.state_bits is None and codec_class(self.codec).codes_states:
            return codec_by_name(self.codec, self.settings)
        bits = BESIDE_BITS if self.state_bits is None else self.state_bits
        return codec_by_name("scalar", {"bits": bits}) if bits else codec_by_name("lossless")

    def parameters(self) -> dict[str, Any]:
        """Return all settings, defaults included, as the tier header has them."""
        parameters: dict[str, Any] = codec_by_name(self.codec, self.settings).settings.described()
        if self.evict:
            parameters |= asdict(setting.make(FILTERS[self.evict], self.evict_settings, f"filter {self.evict}"))
        return parameters | self._rows()


def recipe_of(codec: str, evict: str, values: Mapping[str, str]) -> Recipe:
    """Make a recipe of a user's settings, which may be the codec's, the filter's, or a `Recipe`'s.

    Raises:
        UsageError: there is no such codec, filter or setting, or a value is not valid.
    """
    codec_class(codec)  # raises an error first of all if it is unknown
    if evict and evict not in FILTERS:
        raise UsageError(f"there is no filter {evict!r}", hint=f"filters: {', '.join(FILTERS)}")
    of_filter = {f.name for f in fields(FILTERS[evict])} if evict else set()
    evict_settings = {key: value for key, value in values.items() if key in of_filter}
    settings = {key: value for key, value in values.items() if key not in of_filter}
    exact = {}
    state_bits = settings.pop("state_bits", None)
    if state_bits is not None:
        require(state_bits in {"0", *map(str, range(2, 17))}, f"state_bits={state_bits} is neither 0 nor from 2 to 16")
    for name in ("exact_sinks", "exact_last"):
        count = settings.pop(name, "0")
        require(count.isascii() and count.isdigit() and len(count) < 8, f"{name}={count} is not a number of rows")
        exact[name] = int(count)
    bits = None if state_bits is None else int(state_bits)
    recipe = Recipe(codec, settings, evict, evict_settings, exact["exact_sinks"], exact["exact_last"], state_bits=bits)
    recipe.parameters()  # raises an error if a setting is unknown
    return recipe
