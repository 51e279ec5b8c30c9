"""The config of the features, and the fingerprint that binds a store to it."""

from dataclasses import dataclass, field
from typing import Any

from shared.backbone import BackboneConfig
from shared.clips import ClipConfig
from shared.config import Sections, as_sections
from shared.mel import MelConfig

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """Section [store]: clips per shard, the unit of work and of what a kill can cost."""

    shard_clips: int = 512

    def __post_init__(self) -> None:
        if self.shard_clips < 1:
            raise ValueError(f"shard_clips must be at least 1, got {self.shard_clips}.")


@dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """The sections that decide what a store holds: [clips], [mel], [backbone], [store]."""

    clips: ClipConfig = field(default_factory=ClipConfig)
    mel: MelConfig = field(default_factory=MelConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    store: StoreConfig = field(default_factory=StoreConfig)

    def fingerprint_of(self, *, stages: list[str], weights_sha256: str, engine: str) -> dict[str, Any]:
        """Return what the fingerprint is a digest of, by name, so that differences have names."""
        sections: Sections = as_sections(self)
        del sections["store"]  # how rows are grouped into files changes none of them
        sections["backbone"] |= {
            "stages": stages,
            "weights": weights_sha256,
            "engine": engine,
        }
        return {"format_version": FORMAT_VERSION, **sections}
