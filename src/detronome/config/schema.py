"""The whole configuration of a run as frozen dataclasses: the one list of settings, defaults and units.

Every field may be set from the shell (`--set optim.lr=2e-4`), from a TOML file and from Python; presets are
functions in `presets.py` that return a whole `RunConfig`. Only `build.py` files, the trainer, the api and the
command line read these records: modules and losses take plain keywords.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NewType

__all__ = [
    "TIMM_PREFIX",
    "ActivationCheckpointing",
    "AugmentConfig",
    "BatchConfig",
    "DFineConfig",
    "DataConfig",
    "DetrConfig",
    "EvalConfig",
    "GuardConfig",
    "LossConfig",
    "ModelConfig",
    "NanoConfig",
    "OptimConfig",
    "RtDetrConfig",
    "RunConfig",
    "ScheduleConfig",
    "TimmName",
    "TrainConfig",
    "WithPretrainedBackbone",
]


TIMM_PREFIX = "timm:"
TimmName = NewType("TimmName", str)
"""A network of timm as a backbone: the prefix and its name."""


@dataclass(frozen=True, kw_only=True)
class DetrConfig:
    """Classic DETR: ResNet, transformer encoder and decoder, learned queries (arXiv 2005.12872)."""

    family: Literal["detr"] = "detr"
    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101"] | TimmName = "resnet50"
    """Or `timm:NAME`, a network of timm that gives maps of stride 8, 16 and 32; needs the extra `timm`."""
    dilation: bool = False
    """DC5: dilate the last stage instead of striding it. Not visible in a checkpoint's keys."""
    backbone_norm: Literal["frozen", "trainable"] = "frozen"
    """`frozen`: BatchNorm as fixed scale and shift, as in the reference; needs pretrained weights."""
    backbone_weights: str = "imagenet"
    """`imagenet` (downloaded by torchvision), `none` (random), or a file with a torchvision state dict."""
    frozen_stages: int = 2
    """How many parts of the backbone stay fixed: 0 none, 1 the stem, 2 stem and layer1 (reference), ... 5 all."""
    hidden_dim: int = 256
    num_heads: int = 8
    ffn_dim: int = 2048
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    num_queries: int = 100
    dropout: float = 0.1
    pre_norm: bool = False
    mask_head: bool = False
    """Make a mask for each query too, for panoptic data: needs `hidden_dim` in steps of 128 and `num_heads` of 8."""


@dataclass(frozen=True, kw_only=True)
class NanoConfig:
    """The fast family: compact CNN, queries selected from the feature map, deformable decoder (arXiv 2304.08069)."""

    family: Literal["nano"] = "nano"
    widths: tuple[int, ...] = (32, 48, 96)
    """Channels of the backbone's stages at strides 4, 8, 16."""
    depths: tuple[int, ...] = (1, 2, 1)
    """Residual blocks of each stage."""
    hidden_dim: int = 96
    num_heads: int = 6
    num_points: int = 4
    """Sampling points per head in deformable attention."""
    ffn_dim: int = 192
    num_decoder_layers: int = 2
    num_queries: int | Literal["auto"] = "auto"
    """`auto`: twice the most objects of one training image, at least 25."""
    query_size_prior: float = 0.12
    """Width and height a proposal starts from, 0-1 of the image."""
    denoising_groups: int = 2
    """Groups of noised truth boxes trained beside the queries (arXiv 2203.01305); 0 turns denoising off."""
    denoising_box_noise: float = 0.4
    denoising_label_noise: float = 0.25


@dataclass(frozen=True, kw_only=True)
class RtDetrConfig:
    """RT-DETRv2: hybrid encoder, queries selected from three maps, deformable decoder (arXiv 2407.17140)."""

    family: Literal["rtdetr"] = "rtdetr"
    backbone: (
        Literal["resnet18vd", "resnet34vd", "resnet50vd", "resnet101vd", "hgnetv2_b4", "hgnetv2_b5", "hgnetv2_b6"]
        | TimmName
    ) = "resnet50vd"
    """Or `timm:NAME`, a network of timm that gives maps of stride 8, 16 and 32; needs the extra `timm`."""
    backbone_norm: Literal["frozen", "trainable"] = "frozen"
    """`frozen`: BatchNorm as fixed scale and shift; needs pretrained weights. The encoder's always learns."""
    backbone_weights: str = "imagenet"
    """`imagenet` (downloaded from the authors), `none` (random), or a file with a state dict."""
    frozen_stages: int = 1
    """How many parts of the backbone stay fixed: 0 none, 1 the stem, ... 5 all."""
    encoder_dim: int = 256
    """Channels of the maps in the encoder."""
    encoder_ffn_dim: int = 1024
    encoder_expansion: float = 1.0
    """Width of the encoder's fusing blocks, as a part of `encoder_dim`."""
    num_encoder_layers: int = 1
    """Attention layers on the coarsest map."""
    hidden_dim: int = 256
    """Channels of the decoder's queries."""
    num_heads: int = 8
    ffn_dim: int = 1024
    num_points: tuple[int, ...] = (4, 4, 4)
    """Sampling points per head on each map, finest first."""
    sampling: Literal["default", "discrete"] = "default"
    """`default`: bilinear between the cells of a map. `discrete`: the nearest cell, for runtimes without grid sampling;
    for fine-tuning weights trained with `default`."""
    num_decoder_layers: int = 6
    num_queries: int = 300
    num_denoising: int = 100
    """Noised truth boxes of the fullest image, trained beside the queries; 0 turns denoising off."""
    denoising_box_noise: float = 1.0
    denoising_label_noise: float = 0.5


@dataclass(frozen=True, kw_only=True)
class DFineConfig:
    """D-FINE: RT-DETR whose boxes are read from distributions over the places of their edges (arXiv 2410.13842)."""

    family: Literal["dfine"] = "dfine"
    backbone: Literal[
        "hgnetv2_b0", "hgnetv2_b1", "hgnetv2_b2", "hgnetv2_b3", "hgnetv2_b4", "hgnetv2_b5", "hgnetv2_b6"
    ] = "hgnetv2_b4"
    backbone_affine: bool = False
    """Scale and shift by a learned number after each activation of the backbone."""
    backbone_norm: Literal["frozen", "trainable"] = "frozen"
    """`frozen`: BatchNorm as fixed scale and shift; needs pretrained weights. The encoder's always learns."""
    backbone_weights: str = "imagenet"
    """`imagenet` (downloaded from the authors), `none` (random), or a file with a state dict."""
    frozen_stages: int = 1
    """How many parts of the backbone stay fixed: 0 none, 1 the stem, ... 5 all."""
    encoder_dim: int = 256
    """Channels of the maps in the encoder."""
    encoder_ffn_dim: int = 1024
    encoder_expansion: float = 1.0
    """Width of the branches of the encoder's fusing blocks, as a part of half `encoder_dim`."""
    encoder_depth: float = 1.0
    """Depth of these branches, as a part of three blocks."""
    num_encoder_layers: int = 1
    """Attention layers on the coarsest map."""
    hidden_dim: int = 256
    """Channels of the decoder's queries."""
    num_heads: int = 8
    ffn_dim: int = 1024
    num_points: tuple[int, ...] = (3, 6, 3)
    """Sampling points per head on each map, finest first: as many maps as there are entries, the coarsest of stride
    32."""
    sampling: Literal["default", "discrete"] = "default"
    """`default`: bilinear between the cells of a map. `discrete`: the nearest cell, for runtimes without grid sampling;
    for fine-tuning weights trained with `default`."""
    num_decoder_layers: int = 6
    reg_scale: float = 4.0
    """The larger, the finer are small shifts of an edge beside large ones."""
    num_queries: int = 300
    num_denoising: int = 100
    """Noised truth boxes of the fullest image, trained beside the queries; 0 turns denoising off."""
    denoising_box_noise: float = 1.0
    denoising_label_noise: float = 0.5


ModelConfig = DetrConfig | NanoConfig | RtDetrConfig | DFineConfig
WithPretrainedBackbone = DetrConfig | RtDetrConfig | DFineConfig
"""Families with `backbone_weights`."""

ActivationCheckpointing = Literal["none", "backbone", "transformer", "all"]


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Matching costs and loss weights."""

    classification: Literal["softmax", "quality", "vfl"] = "softmax"
    """`softmax`: cross-entropy with a no-object class (DETR). `quality`: sigmoid, targets follow the box's IoU. `vfl`:
    varifocal, sigmoid, target and weight are the box's IoU (RT-DETR)."""
    cost_class: float = 1.0
    cost_bbox: float = 5.0
    cost_giou: float = 2.0
    weight_class: float = 1.0
    weight_bbox: float = 5.0
    weight_giou: float = 2.0
    weight_mask: float = 1.0
    """Of the focal loss of masks, where the model makes them."""
    weight_dice: float = 1.0
    """Of the dice loss of masks."""
    weight_fgl: float = 0.15
    """Of the places of edges, in D-FINE: of queries that have an object in any layer."""
    weight_ddf: float = 1.5
    """Of what earlier layers learn from the last one, in D-FINE."""
    no_object_weight: float = 0.1
    """Weight of the no-object class in the softmax cross-entropy."""
    quality_exponent: float = 1.5
    """The `quality` target is IoU to this power once fully ramped up."""
    quality_ramp: float = 1.5
    """The exponent grows linearly and is full at 1/ramp of the training; at first every match has target 1."""
    aux_loss: bool = True
    """Supervise every decoder layer, not only the last."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Geometry and colour of training and evaluation images. The defaults are DETR's recipe."""

    sizes: tuple[int, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    """Short sides in pixels, one drawn for each image."""
    max_size: int = 1333
    """Longest side in pixels after a resize."""
    square: bool = False
    """Resize to squares instead, without keeping the aspect, also at evaluation and prediction (RT-DETR, D-FINE); one
    of the sizes is drawn for each step, so that nothing is padded. `max_size` and `eval_max_size` mean nothing then."""
    horizontal_flip: float = 0.5
    vertical_flip: float = 0.0
    crop: Literal["none", "detr", "fraction"] = "detr"
    """`detr`: resize to one of `crop_resize`, cut a window of `crop_px`. `fraction`: cut one of the image's aspect."""
    crop_probability: float = 0.5
    crop_resize: tuple[int, ...] = (400, 500, 600)
    crop_px: tuple[int, int] = (384, 600)
    crop_fraction: tuple[float, float] = (0.6, 1.0)
    """Side of a `fraction` window relative to the image's."""
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    """Colour jitter: a factor drawn from 1 - x to 1 + x for each."""
    eval_size: int = 800
    """Short side in pixels at evaluation and prediction."""
    eval_max_size: int = 1333


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which data, and how it is loaded."""

    root: str = ""
    """The data folder; set by `DATA` on the command line."""
    train_split: str = "train"
    val_split: str = "val"
    """Evaluated during training; best checkpoint and early stopping follow it. Empty: train without."""
    annotations: Literal["instances", "panoptic"] = "instances"
    """`panoptic`: the segments of `panoptic_<split>.json` and its PNG maps, things and stuff, each with a mask and a
    box."""
    workers: int | Literal["auto"] = "auto"
    prefetch: int = 2
    """Batches each worker prepares ahead."""
    buckets: tuple[str, ...] | Literal["auto"] = "auto"
    """Padded shapes as `HEIGHTxWIDTH`; each image goes into the smallest that holds it, whatever its neighbours. Empty:
    a step is padded to its largest image. `auto`: six shapes that fit the data, or none where the model has trainable
    BatchNorm, which wants whole batches."""
    decode: Literal["exact", "fast"] = "exact"
    """`fast`: libjpeg-turbo's fast transform and upsampling, and photos of twice the wanted size or more are decoded at
    a fraction of it: some levels off, and several times quicker for large photos."""
    augment_on: Literal["cpu", "device"] = "cpu"
    """Where flips, crops, resizes and colours are applied: in the workers, or where the model is (few processors beside
    a fast GPU). The same numbers are drawn either way."""
    cache: Literal["none", "ram", "disk"] = "none"
    """Keep the decoded training images, in memory shared by all workers or in the cache folder."""
    cache_gib: float = 8.0
    """Most that the cache may take; what does not fit is decoded each time."""
    cache_reduced: bool = False
    """Reduce photos that are larger than the augmentation can use before anything else, so that more fit; they are then
    resized twice."""
    shard_window: int = 8
    """Sharded data: shards whose images are shuffled together. More mix better, fewer need less room."""
    shard_cache_gib: float = 64.0
    """Sharded data at an address: most that the local copies may take."""
    on_bad_image: Literal["replace", "skip", "stop"] = "replace"
    """When an image cannot be read or decoded in training: another one takes its place, the batch is smaller by it, or
    the run ends. Evaluation leaves it out, or ends."""
    bad_image_budget: float = 0.001
    """Part of the split's images that may be bad, 0-1, before the run ends; one image always may, but with 0."""


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """micro_batch_size x accumulation x world_size = global_batch_size."""

    global_batch_size: int = 16
    micro_batch_size: int | Literal["auto"] = "auto"
    """Images in one forward pass; the gradient does not depend on it (BatchNorm apart)."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW."""

    lr: float = 1e-4
    backbone_lr: float = 1e-5
    weight_decay: float = 1e-4
    decay_one_dimensional: bool = True
    """Decay biases and norms too, as the reference does."""
    clip_norm: float = 0.1
    """Largest total gradient norm; 0 turns clipping off."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning-rate factor as a pure function of the step."""

    kind: Literal["constant", "step", "multistep", "exponential", "cyclical", "cosine", "one_cycle"] = "step"
    warmup_steps: int = 0
    """Linear rise from 0 before the schedule proper."""
    drop_epochs: tuple[int, ...] = (200,)
    """`step`: the first entry is the period. `multistep`: the epochs at which the rate drops."""
    gamma: float = 0.1
    """Factor of one drop; for `exponential`, of one epoch."""
    min_factor: float = 0.0
    """Where `cosine`, `one_cycle` end and what `cyclical` falls to."""
    cycle_epochs: float = 10.0
    """Length of one `cyclical` triangle."""
    peak_fraction: float = 0.3
    """Part of `one_cycle` spent rising."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The run."""

    epochs: int | Literal["auto"] = 300
    """`auto`: enough for a small detector to level off."""
    seed: int = 42
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    ema_decay: float = 0.0
    """Decay of the moving average of the weights; 0 turns it off. Evaluation uses the average."""
    log_steps: int = 10
    """Steps between log records; metrics are read from the device only then."""
    eval_epochs: int | Literal["auto"] = 1
    """Epochs between evaluations; the last epoch is always evaluated. `auto`: about 20 evaluations in a run."""
    checkpoint_minutes: float = 5.0
    """A checkpoint is written with every evaluation, and after this time without one."""
    keep_checkpoints: int = 1
    """Newest checkpoints kept, beside the best one."""
    early_stop_patience: int = 0
    """Evaluations without a better metric before the run stops; 0 turns it off."""
    early_stop_min_delta: float = 0.0
    metric: Literal["AP", "AP50", "AP75", "PQ"] = "AP"
    """What `best` and early stopping follow; `PQ`, panoptic quality, where the model makes masks."""
    freeze: tuple[str, ...] = ()
    """Parts of the model that stay as they are, by their names in it, e.g. `backbone`, or `detr` to train the mask head
    alone. They compute as in evaluation, so they have no auxiliary losses either."""
    worst_case_first: bool | Literal["auto"] = "auto"
    """Run the largest shape with the most objects of this data set through training and evaluation before the first
    step, so that memory runs out then or never. `auto`: on GPUs."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Over several ranks: `ddp` keeps the whole model on each, `fsdp` a part of it."""
    checkpoint_activations: ActivationCheckpointing = "none"
    """What is computed again in backward instead of kept: less memory, more time, the same gradients. `backbone`: its
    trained stages. `transformer`: each layer of encoder and decoder. `all`: both."""
    compile: bool = False
    """Let torch's compiler make kernels of backbone and transformer layers, in training and evaluation: minutes at the
    start, then faster steps on GPUs. Dropout draws other numbers."""
    channels_last: bool = True
    """Keep the colours of a pixel, and the channels of a feature map's cell, side by side in memory: mostly faster."""
    hang_minutes: float = 10.0
    """A rank that makes no progress for this long is reported and the run ends, so that a launcher can start it again;
    0 turns the watchdog off."""


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """What becomes of a step whose loss or gradient is not finite, or far above what is usual in the run."""

    loss_spike_factor: float = 10.0
    """A loss of this many times its running mean is a spike, and its step is skipped; 0 turns the check off."""
    gradient_spike_factor: float = 100.0
    """The same for the gradient's norm."""
    on_spike: Literal["skip", "rewind"] = "skip"
    """`rewind`: go back to the last checkpoint, and leave out the batches before the spike too."""
    rewind_steps: int = 10
    """Batches before a spike that a rewind leaves out with it."""
    max_skipped_steps: int = 5
    """Steps skipped in a row before something is done: a module that overflows in bf16 or fp16 computes in fp32, or the
    run goes back to its last checkpoint at a lower rate, or it stops."""
    max_rollbacks: int = 2
    """Times that a run goes back before it stops."""
    rollback_lr_factor: float = 0.5
    """The rates are multiplied by this each time."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation."""

    batch_size: int | Literal["auto"] = "auto"
    max_detections: int = 100
    panoptic_score: float = 0.85
    """Probability above which a query's mask takes part in the panoptic map, 0-1."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that defines a run, beside the data and the output folder."""

    preset: str = "detr-r50"
    model: ModelConfig = field(default_factory=DetrConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    data: DataConfig = field(default_factory=DataConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
