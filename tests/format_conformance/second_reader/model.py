"""MODEL, for the second reader: what the layers of a model keep, and how many bytes that takes.

As `second_reader`, written from docs/format.md alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

from tests.format_conformance.second_reader.codecs import ITEM_SIZES, Part, need
from tests.format_conformance.second_reader.payload import as_integer, as_list, as_object, as_text

SIZES = {"heads", "key_size", "value_size"}
# by kind: the numbers that a run has
NAMES = {"full": SIZES, "cross": SIZES, "sliding": SIZES | {"window"}, "none": set()}


@dataclass(frozen=True)
class State:
    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def heads(self) -> int:
        return self.shape[0] if len(self.shape) >= 3 else 1

    @property
    def size(self) -> int:
        return math.prod(self.shape) // self.heads

    @property
    def bytes(self) -> int:
        """Of one sequence."""
        return math.prod(self.shape) * ITEM_SIZES[self.dtype]


@dataclass(frozen=True)
class Layer:
    """Layers are alike if all of this is equal."""

    kind: str
    heads: int  # 0, as the sizes, where the kind is none
    key_size: int
    value_size: int
    window: int | None
    index_size: int  # 0: no indexer keys
    states: tuple[State, ...]

    @property
    def has_rows(self) -> bool:
        return self.kind != "none"

    @property
    def row_values(self) -> int:
        """How many values a row has in one sequence."""
        return self.heads * (self.key_size + self.value_size) + self.index_size

    def shape(self, part: Part) -> tuple[int, int]:
        """Heads, and values of one."""
        return {
            "keys": (self.heads, self.key_size),
            "values": (self.heads, self.value_size),
            "indexer": (1, self.index_size),
        }[part]


@dataclass(frozen=True)
class Geometry:
    dtype: str
    item: int
    batch: int
    layers: list[Layer]
    padding: list[int]  # of each sequence
    row_bytes: list[int]  # bytes of one row in all layers before each layer; the last, in all layers

    @property
    def state_bytes(self) -> int:
        """The bytes of all states of one snapshot."""
        return self.batch * sum(state.bytes for layer in self.layers for state in layer.states)


def read_states(value: object) -> tuple[State, ...]:
    states = []
    for entry in as_list(value, "MODEL: states", 16):
        state = as_object(entry, "MODEL: state", {"name", "shape", "dtype"})
        shape = as_list(state["shape"], "MODEL: shape of a state", 6)
        need(len(shape) >= 1, "MODEL: shape of a state is empty")
        dtype = as_text(state["dtype"], "MODEL: dtype of a state")
        need(dtype in ITEM_SIZES, "MODEL: dtype of a state")
        sizes = tuple(as_integer(size, "MODEL: shape of a state", 1, 2**20) for size in shape)
        states.append(State(as_text(state["name"], "MODEL: name of a state"), sizes, dtype))
    need(len(states) >= 1, "MODEL: empty list of states")
    need(len({state.name for state in states}) == len(states), "MODEL: two states of one name")
    return tuple(states)


def read_run(entry: object, most: int) -> list[Layer]:
    """The layers of one run, of which there are at most `most`."""
    kind = as_text(as_object(entry, "MODEL: run of layers").get("kind"), "MODEL: kind")
    need(kind in NAMES, "MODEL: kind")
    optional = frozenset({"states"} | ({"index_size"} if kind != "none" else set()))
    run = as_object(entry, "MODEL: run of layers", {"count", "kind"} | NAMES[kind], optional)
    numbers = NAMES[kind] | (run.keys() & {"index_size"})
    size = {name: as_integer(run[name], f"MODEL: {name}", 1, 2**20) for name in sorted(numbers)}
    heads, key_size, value_size, index_size = (
        size.get(name, 0) for name in ("heads", "key_size", "value_size", "index_size")
    )
    states = read_states(run["states"]) if "states" in run else ()
    count = as_integer(run["count"], "MODEL: count", 1, most)
    return [Layer(kind, heads, key_size, value_size, size.get("window"), index_size, states)] * count


def read_padding(value: object, batch: int) -> list[int]:
    padding = [as_integer(rows, "MODEL: padding", 0, 2**20) for rows in as_list(value, "MODEL: padding", batch)]
    need(len(padding) == batch, "MODEL: padding of another number of sequences")
    need(any(padding), "MODEL: padding of nothing")
    return padding


def read_model(model: dict[str, object]) -> Geometry:
    required = {"schema", "dtype", "batch", "layers", "fingerprint"}
    as_object(model, "MODEL", required, frozenset({"padding", "lost_by"}))
    need(as_text(model.get("lost_by", "nothing"), "MODEL: lost_by") != "", "MODEL: lost_by is empty")
    need(model["schema"] == "tsc.model/1", "MODEL: schema")
    dtype = as_text(model["dtype"], "MODEL: dtype")
    need(dtype in ITEM_SIZES, "MODEL: dtype")
    batch = as_integer(model["batch"], "MODEL: batch", 1, 2**20)
    padding = read_padding(model["padding"], batch) if "padding" in model else [0] * batch
    layers: list[Layer] = []
    for entry in as_list(model["layers"], "MODEL: layers", 4096):
        layers += read_run(entry, 4096 - len(layers))
    need(len(layers) >= 1, "MODEL: no layers")
    for value in as_object(model["fingerprint"], "MODEL: fingerprint").values():
        as_text(value, "MODEL: fingerprint")
    item = ITEM_SIZES[dtype]
    sizes = [item * batch * layer.row_values for layer in layers]
    return Geometry(dtype, item, batch, layers, padding, list(accumulate(sizes, initial=0)))
