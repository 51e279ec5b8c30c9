"""The trainer's own sections of the config."""

from dataclasses import dataclass, field

HEADS = ("chrononet", "attention", "linear")


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """Section [labels]: what a secondary label means to the loss.

    secondary: "mask" (not counted) or "soft" (a target of `secondary_value`).
    """

    secondary: str = "mask"
    secondary_value: float = 0.3

    def __post_init__(self) -> None:
        if self.secondary not in ("mask", "soft"):
            raise ValueError(f"secondary must be 'mask' or 'soft', got {self.secondary!r}.")
        if not 0 <= self.secondary_value <= 1:
            raise ValueError(f"secondary_value must be in 0..1, got {self.secondary_value}.")


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Section [split]: computed folds, where the metadata has no `fold` column."""

    folds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise ValueError(f"folds must be at least 2, got {self.folds}.")


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """Section [sampler]: a recording of a class with n recordings is drawn by n ** exponent."""

    exponent: float = -0.5
    use_rating: bool = True


@dataclass(frozen=True, kw_only=True)
class MixupConfig:
    """Section [mixup]: convex mixup of embedding maps, Beta(alpha, alpha)."""

    probability: float = 0.5
    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not (0 <= self.probability <= 1 and self.alpha > 0):
            raise ValueError(
                f"need 0 <= probability <= 1 and alpha > 0, got {self.probability}, {self.alpha}."
            )


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Section [head]: ChronoNet's sizes count for `chrononet` only.

    stage: which of the store's maps the head reads, as in "blocks.4"; "" is the store's first.
    """

    name: str = "chrononet"
    stage: str = ""
    filters: int = 32
    gru_units: int = 64
    strides: int = 1
    dropout: float = 0.2

    def __post_init__(self) -> None:
        if self.name not in HEADS:
            raise ValueError(f"name must be one of {', '.join(HEADS)}; got {self.name!r}.")
        if min(self.filters, self.gru_units, self.strides) < 1 or not 0 <= self.dropout < 1:
            raise ValueError("filters, gru_units and strides must be positive, dropout in 0..1.")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Section [loss]: focal loss; alpha weighs positives, 1 - alpha negatives."""

    alpha: float = 0.25
    gamma: float = 2.0

    def __post_init__(self) -> None:
        if not (0 < self.alpha < 1 and self.gamma >= 0):
            raise ValueError(f"need 0 < alpha < 1 and gamma >= 0, got {self.alpha}, {self.gamma}.")


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Section [fit]: the training loop. An epoch draws as many clips as there are to train on."""

    epochs: int = 20
    batch_clips: int = 64
    accumulate: int = 1
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    warmup: float = 0.1
    clip_norm: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_clips, self.accumulate) < 1:
            raise ValueError("epochs, batch_clips and accumulate must be at least 1.")
        if not (self.learning_rate > 0 and 0 <= self.warmup < 1 and self.clip_norm > 0):
            raise ValueError("need learning_rate > 0, 0 <= warmup < 1 and clip_norm > 0.")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All sections of the trainer."""

    labels: LabelConfig = field(default_factory=LabelConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    mixup: MixupConfig = field(default_factory=MixupConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    fit: FitConfig = field(default_factory=FitConfig)
