"""The trainer's own sections of the config."""

from dataclasses import dataclass, field

from shared.augment_policy import AugmentConfig

HEADS = ("chrononet", "attention", "linear")
FREQUENCIES = ("rows", "mean")
SECONDARY = ("mask", "soft", "positive")
DRAWINGS = ("stratified", "independent")
WEIGHED = ("draws", "loss")
MIXTURES = ("convex", "additive")
MIXED = ("none", "waveforms", "images")
BATCH_NORMS = ("folded", "trained")


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """Section [labels]: what a secondary label means to the loss.

    secondary: "mask" (not counted), "soft" (a target of `secondary_value`) or "positive" (as a
        primary one).
    """

    secondary: str = "mask"
    secondary_value: float = 0.3

    def __post_init__(self) -> None:
        if self.secondary not in SECONDARY:
            raise ValueError(f"secondary must be one of {', '.join(SECONDARY)}; got {self.secondary!r}.")
        if not 0 <= self.secondary_value <= 1:
            raise ValueError(f"secondary_value must be in 0..1, got {self.secondary_value}.")


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Section [split]: what stays on one side, and computed folds where the metadata has none.

    by_author: recordings of one author stay together.
    duplicates: so do recordings whose embeddings have at least this cosine; 0 looks for none.
    """

    folds: int = 5
    seed: int = 0
    by_author: bool = True
    duplicates: float = 0.95

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise ValueError(f"folds must be at least 2, got {self.folds}.")
        if not 0 <= self.duplicates <= 1:
            raise ValueError(f"duplicates is a cosine in 0..1 (0: do not look), got {self.duplicates}.")


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """Section [sampler]: a recording of a class with n recordings weighs n ** exponent.

    weigh: "draws" (it is drawn as often as it weighs) or "loss" (all are drawn alike, and it counts
        as much as it weighs).
    drawing: "stratified" (every batch holds every class by its share, to within one clip) or
        "independent" (each clip by itself).
    views: how many of the store's augmented views each clip is drawn from, the clean one beside them, all
        alike; -1: all there are.
    """

    exponent: float = -0.5
    use_rating: bool = True
    weigh: str = "draws"
    drawing: str = "stratified"
    views: int = -1

    def __post_init__(self) -> None:
        if self.views < -1:
            raise ValueError(f"views must be a number of views, or -1 for all; got {self.views}.")
        if self.weigh not in WEIGHED:
            raise ValueError(f"weigh must be one of {', '.join(WEIGHED)}; got {self.weigh!r}.")
        if self.drawing not in DRAWINGS:
            raise ValueError(f"drawing must be one of {', '.join(DRAWINGS)}; got {self.drawing!r}.")


@dataclass(frozen=True, kw_only=True)
class MixupConfig:
    """Section [mixup]: two clips' embedding maps by shares from Beta(alpha, alpha).

    kind: "convex" (targets by the same shares) or "additive" (the union of the labels).
    """

    kind: str = "convex"
    probability: float = 0.5
    alpha: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in MIXTURES:
            raise ValueError(f"kind must be one of {', '.join(MIXTURES)}; got {self.kind!r}.")
        if not (0 <= self.probability <= 1 and self.alpha > 0):
            raise ValueError(
                f"need 0 <= probability <= 1 and alpha > 0, got {self.probability}, {self.alpha}."
            )


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Section [head]: ChronoNet's sizes count for `chrononet` only.

    stage: which of the store's maps the head reads, as in "blocks.4"; "" is the store's first.
    frequency: "rows" (every channel at every frequency is an input) or "mean" (over frequency).
    """

    name: str = "attention"
    stage: str = ""
    frequency: str = "rows"
    filters: int = 32
    gru_units: int = 64
    strides: int = 1
    dropout: float = 0.2

    def __post_init__(self) -> None:
        if self.name not in HEADS:
            raise ValueError(f"name must be one of {', '.join(HEADS)}; got {self.name!r}.")
        if self.frequency not in FREQUENCIES:
            raise ValueError(f"frequency must be one of {', '.join(FREQUENCIES)}; got {self.frequency!r}.")
        if min(self.filters, self.gru_units, self.strides) < 1 or not 0 <= self.dropout < 1:
            raise ValueError("filters, gru_units and strides must be positive, dropout in 0..1.")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Section [loss]: focal loss; alpha weighs positives, 1 - alpha negatives.

    frame_share: how much of the loss is on a clip's best frame, the rest on the clip as a whole.
    """

    alpha: float = 0.25
    gamma: float = 2.0
    frame_share: float = 0.5

    def __post_init__(self) -> None:
        if not (0 < self.alpha < 1 and self.gamma >= 0):
            raise ValueError(f"need 0 < alpha < 1 and gamma >= 0, got {self.alpha}, {self.gamma}.")
        if not 0 <= self.frame_share <= 1:
            raise ValueError(f"frame_share must be in 0..1, got {self.frame_share}.")


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Section [fit]: the training loop. An epoch draws as many clips as there are to train on.

    ema: decay per step of the averaged weights that are scored and kept; 0 keeps the last ones.
    patience: epochs without a better macro ROC-AUC, of a fold of its own, after which training
        stops and the best epoch's weights are kept; 0 trains to the end and gives up no fold.
    """

    epochs: int = 20
    batch_clips: int = 64
    accumulate: int = 1
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    warmup: float = 0.1
    clip_norm: float = 1.0
    ema: float = 0.0
    patience: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_clips, self.accumulate) < 1:
            raise ValueError("epochs, batch_clips and accumulate must be at least 1.")
        if not (self.learning_rate > 0 and 0 <= self.warmup < 1 and self.clip_norm > 0):
            raise ValueError("need learning_rate > 0, 0 <= warmup < 1 and clip_norm > 0.")
        if not (0 <= self.ema < 1 and self.patience >= 0):
            raise ValueError(f"need 0 <= ema < 1 and patience >= 0, got {self.ema}, {self.patience}.")


@dataclass(frozen=True, kw_only=True)
class MixingConfig:
    """Section [mixing]: several clips into one, on waveforms, before `trainer finetune` sees them.

    combine: probability that a clip keeps its first half and gets another's second half; labels united.
    add: probability that another clip is added to it; labels united. add_range_db: the other one's level
        against its own, drawn between minus and plus so many dB.
    mixup: "waveforms", "images" (log-mels) or "none"; a share from Beta(alpha, alpha), targets by
        the same share, for a clip with mixup_probability.
    """

    combine: float = 0.0
    add: float = 0.0
    add_range_db: float = 10.0
    mixup: str = "images"
    mixup_probability: float = 0.5
    mixup_alpha: float = 0.5

    def __post_init__(self) -> None:
        for name in ("combine", "add", "mixup_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability in 0..1, got {getattr(self, name)}.")
        if self.add_range_db < 0 or self.mixup_alpha <= 0:
            raise ValueError("need add_range_db >= 0 and mixup_alpha > 0.")
        if self.mixup not in MIXED:
            raise ValueError(f"mixup must be one of {', '.join(MIXED)}; got {self.mixup!r}.")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(FitConfig):
    """Section [finetune]: the training loop of the whole network, with the keys of [fit] and these.

    unfreeze_stages: how many of the backbone's last stages are trained (0: the head only; a large
        number: all of it).
    batch_norm: "folded" (statistics are frozen: they become part of the convolutions, which are trained;
        faster) or "trained" (statistics and weights are trained, where the stage is).
    backbone_rate: the last stage's learning rate against the head's; stage_decay: each stage's against
        the one behind it.
    interpolation: the weights that are scored and kept lie so far on the way from the head's run to the
        trained ones (1: the trained ones). Excludes ema.
    checkpointing: compute the trained stages twice rather than keep them, for a small GPU.
    """

    epochs: int = 10
    batch_clips: int = 16
    learning_rate: float = 1e-3
    unfreeze_stages: int = 3
    batch_norm: str = "folded"
    backbone_rate: float = 0.5
    stage_decay: float = 0.8
    interpolation: float = 0.5
    checkpointing: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unfreeze_stages < 0 or self.batch_norm not in BATCH_NORMS:
            raise ValueError(
                f"need unfreeze_stages >= 0 and batch_norm one of {', '.join(BATCH_NORMS)}; got "
                f"{self.unfreeze_stages}, {self.batch_norm!r}."
            )
        if not (self.backbone_rate > 0 and 0 < self.stage_decay <= 1):
            raise ValueError("need backbone_rate > 0 and 0 < stage_decay <= 1.")
        if self.checkpointing and self.batch_norm == "trained":
            raise ValueError(
                "checkpointing computes a stage twice, so trained batch norms would count a batch twice: "
                'take batch_norm = "folded" with it.'
            )
        if not 0 < self.interpolation <= 1 or (self.ema and self.interpolation < 1):
            raise ValueError(
                f"interpolation must be above 0 and at most 1, and 1 with ema; got {self.interpolation} "
                f"with ema {self.ema}."
            )


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """What `trainer finetune` adds to a head's config."""

    augment: AugmentConfig = field(default_factory=AugmentConfig)
    mixing: MixingConfig = field(default_factory=MixingConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)


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
