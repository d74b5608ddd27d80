"""One training step of DETR-R50: ours, transformers' and the reference's.

All three start from the same random weights, see the same images of 480x640 with 7 boxes each (batch 2, padded, classes
of COCO), freeze the stem and layer1, train 41.30 M parameters, and do forward, losses of all six decoder layers,
backward, clipping at 0.1 and AdamW. Before timing, with dropout off, the losses of all three must agree. The reference
and transformers get images that are already normalised floats; ours normalises bytes within the step. transformers
drops no attention weights by default, which saves it work that the other two do.

The step is bound by convolutions, which are the same for all (306 GFLOP), so on a CPU there is at most a factor of
about 1.7 to gain. Where ours gains: frozen norms folded into the convolutions, channels-last, dropout masks drawn four
to a number, fused AdamW; see the docstrings of `models.layers` and `models.backbones.resnet`.

    python benches/bench_step.py --threads 2 --out benches/results
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from detronome.config.schema import DetrConfig, LossConfig
from detronome.engine.optim import build_optimizer
from detronome.losses.build import build_criterion
from detronome.models.build import build_model
from detronome.models.detr.model import DETR
from detronome.types import Batch, Target
from harness import arguments, compare, report
from reference_detr import ReferenceCriterion, ReferenceDETR, ReferenceStep

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "parity"))

NUM_CLASSES = 91
TRAINABLE = 41_302_368
CONFIG = DetrConfig(backbone_weights="none")


def main() -> None:
    """Check that the contenders compute the same, time them, report."""
    parser = arguments(__doc__, repeats=10)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("H", "W"))
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--boxes", type=int, default=7, help="objects in each image")
    parser.add_argument("--skip", nargs="*", default=[], choices=["transformers"], help="contenders to leave out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    batch = synthetic_batch(options.batch_size, tuple(options.size), options.boxes)
    builders = {"reference": reference_step, "detronome": our_step, "transformers": transformers_step}
    builders = {name: build for name, build in builders.items() if name not in options.skip}
    losses = first_losses(builders, batch)
    print("first loss without dropout:", {name: round(loss, 5) for name, loss in losses.items()}, file=sys.stderr)
    spread = max(losses.values()) - min(losses.values())
    assert spread < 1e-3 * min(losses.values()), f"the contenders compute different losses: {losses}"

    steps = {name: build(initial_model(CONFIG), batch) for name, build in builders.items()}
    samples = compare(steps, repeats=options.repeats, warmup=options.warmup)
    settings = vars(options) | {"losses": losses, "out": str(options.out)}
    case = f"batch {options.batch_size}, {options.size[0]}x{options.size[1]}, {options.boxes} boxes, fp32"
    report("step", {case: samples}, baseline="reference", settings=settings, out=options.out)


def synthetic_batch(batch_size: int, size_hw: tuple[int, int], boxes: int) -> Batch:
    """Return noise images, the second and later ones a little narrower than the batch."""
    generator = torch.Generator().manual_seed(1)
    height, width = size_hw
    images = torch.randint(0, 256, (batch_size, 3, height, width), dtype=torch.uint8, generator=generator)
    padding_mask = torch.zeros(batch_size, height, width, dtype=torch.bool)
    padding_mask[1:, :, width - width // 10 :] = True
    targets = tuple(
        Target(
            boxes_cxcywh=torch.rand(boxes, 4, generator=generator) * 0.4 + 0.2,
            labels=torch.randint(1, NUM_CLASSES, (boxes,), generator=generator),
            image_id=i,
            size_hw=size_hw,
            orig_size_hw=size_hw,
        )
        for i in range(batch_size)
    )
    images[padding_mask[:, None].expand_as(images)] = 0
    return Batch(images=images, padding_mask=padding_mask, targets=targets)


def initial_model(config: DetrConfig) -> DETR:
    """Return our model with seeded weights; the norms shrink the activations as trained ones do."""
    torch.manual_seed(0)
    model = build_model(config, NUM_CLASSES)
    assert isinstance(model, DETR)
    for name, buffer in model.named_buffers():
        if name.endswith(("bn2.running_var", "bn3.running_var", "downsample.1.running_var")):
            buffer.fill_(4.0)
    return model


def first_losses(builders: dict[str, Callable[[DETR, Batch], Callable[[], float]]], batch: Batch) -> dict[str, float]:
    """Return each contender's loss before any update, without dropout."""
    model = initial_model(replace(CONFIG, dropout=0.0))
    return {name: build(model, batch)() for name, build in builders.items()}


def our_step(model: DETR, batch: Batch) -> Callable[[], float]:
    """Return a function that does one step of ours."""
    model = clone(model).train()
    criterion = build_criterion(LossConfig())
    optimizer = build_optimizer(model, lr=1e-4, backbone_lr=1e-5, weight_decay=1e-4, decay_one_dimensional=True)
    parameters = trainable(model)

    def step() -> float:
        output = model(batch.images, batch.padding_mask, batch.targets)
        total = criterion.total(criterion(output, batch.targets))
        total.backward()
        nn.utils.clip_grad_norm_(parameters, 0.1, foreach=True)
        optimizer.step()
        optimizer.zero_grad()
        return float(total.detach())

    return step


def transformers_step(model: DETR, batch: Batch) -> Callable[[], float]:
    """Return a function that does one step of transformers' model."""
    from transformers_detr import build_transformers_detr, transformers_targets

    config = replace(CONFIG, dropout=model.transformer.encoder.layers[0].dropout.p)
    peer = build_transformers_detr(model, config, auxiliary_loss=True).train()
    parameters = trainable(peer)
    backbone = [p for name, p in peer.named_parameters() if "backbone" in name and p.requires_grad]
    rest = [p for name, p in peer.named_parameters() if "backbone" not in name and p.requires_grad]
    optimizer = torch.optim.AdamW([{"params": rest}, {"params": backbone, "lr": 1e-5}], lr=1e-4, weight_decay=1e-4)
    pixels, mask = normalized(model, batch), (~batch.padding_mask).long()
    labels = transformers_targets(batch.targets)

    def step() -> float:
        loss = peer(pixel_values=pixels, pixel_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 0.1)
        optimizer.step()
        return float(loss.detach())

    return step


def reference_step(model: DETR, batch: Batch) -> Callable[[], float]:
    """Return a function that does one step of the reference."""
    peer = ReferenceDETR(num_classes=NUM_CLASSES, dropout=model.transformer.encoder.layers[0].dropout.p)
    peer.load_state_dict(model.state_dict())
    trainable(peer)
    step = ReferenceStep(peer.train(), ReferenceCriterion(NUM_CLASSES))
    pixels = normalized(model, batch)
    return lambda: step(pixels, batch.padding_mask, batch.targets)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that are trained, which must be as many as the reference's."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    count = sum(parameter.numel() for parameter in parameters)
    assert count == TRAINABLE, f"{type(model).__name__} trains {count:,} parameters, not {TRAINABLE:,}"
    return parameters


def normalized(model: DETR, batch: Batch) -> Tensor:
    return model.normalizer(batch.images, batch.padding_mask).contiguous()


def clone(model: DETR) -> DETR:
    copy = initial_model(replace(CONFIG, dropout=model.transformer.encoder.layers[0].dropout.p))
    copy.load_state_dict(model.state_dict())
    return copy


if __name__ == "__main__":
    main()
