"""What has to be known of a model type to read its config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tsc_cli.checkpoints.config_fields import Fields

from .attention import Rule as LayerRule
from .attention import Shape
from .attention import shape as usual_shape
from .feed_forward import Rule as FeedForwardRule


@dataclass(frozen=True)
class Architecture:
    """How to read the config of one model type.

    Attributes:
        layers: what each layer caches.
        feed_forward: its feed-forward parts; None where parameters are not computed for this type.
        tied: whether embeddings and output share their matrix, where the config does not say it.
        defaults: what the architecture's own configuration class gives fields that a config leaves out.
        aliases: older name of a field, under which configs may have it.
        harmless: fields that look as if they mattered, and do not for this type.
        shape: heads and sizes.
        positions: learned positions are a matrix of its own.
    """

    layers: LayerRule
    feed_forward: FeedForwardRule | None
    tied: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    harmless: frozenset[str] = frozenset()
    shape: Callable[[Fields], Shape] = usual_shape
    positions: bool = False
