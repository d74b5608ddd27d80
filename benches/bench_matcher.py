"""Matching all decoder layers to their targets: ours against one call a layer, as the reference does it.

The reference's cost matrix pairs every prediction of the batch with every target of the batch and keeps the diagonal
blocks, so its cost grows with the square of the batch; it is copied to the host once a layer. Ours computes the blocks
alone, for all layers in one tensor, with one copy. Both must give identical assignments. scipy's solver is the same on
both sides.

    python benches/bench_matcher.py --out benches/results
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from detronome.config.schema import LossConfig
from detronome.losses.build import build_criterion
from detronome.losses.matcher import LayerStack, Matching
from detronome.types import Target
from harness import arguments, compare, report
from reference_detr import reference_matcher

NUM_LAYERS, NUM_CLASSES = 6, 91


def main() -> None:
    """Check that the assignments are identical, time, report."""
    parser = arguments(__doc__, repeats=30, warmup=3)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=(2, 16))
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--boxes", type=int, default=7, help="objects in an image on average")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    matcher = build_criterion(LossConfig()).matcher
    cases = {}
    for batch_size in options.batch_sizes:
        stack, targets = synthetic_predictions(batch_size, options.queries, options.boxes)
        layers = [
            {"pred_logits": logits, "pred_boxes": boxes}
            for logits, boxes in zip(stack.logits, stack.boxes_cxcywh, strict=True)
        ]
        contenders: dict[str, Callable[[], object]] = {
            "reference": lambda layers=layers, targets=targets: [reference_matcher(layer, targets) for layer in layers],
            "detronome": lambda stack=stack, targets=targets: matcher([stack], targets),
        }
        expected = [reference_matcher(layer, targets) for layer in layers]
        (matching,) = matcher([stack], targets)
        assert pairs_of_ours(matching, targets) == pairs_of_reference(expected), "the assignments differ"
        case = f"batch {batch_size}, {NUM_LAYERS} layers, {options.queries} queries, {options.boxes} objects an image"
        cases[case] = compare(contenders, repeats=options.repeats, warmup=options.warmup)
    settings = vars(options) | {"out": str(options.out)}
    report("matcher", cases, baseline="reference", settings=settings, out=options.out)


def synthetic_predictions(batch_size: int, num_queries: int, boxes: int) -> tuple[LayerStack, tuple[Target, ...]]:
    """Return random predictions, and targets whose number varies around `boxes`."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(NUM_LAYERS, batch_size, num_queries, NUM_CLASSES + 1, generator=generator)
    predicted = torch.rand(NUM_LAYERS, batch_size, num_queries, 4, generator=generator)
    targets = []
    for i in range(batch_size):
        count = boxes + (-3, 3, 0, -1, 1)[i % 5]
        targets.append(
            Target(
                boxes_cxcywh=torch.rand(count, 4, generator=generator) * 0.5 + 0.2,
                labels=torch.randint(0, NUM_CLASSES, (count,), generator=generator),
                image_id=i,
                size_hw=(480, 640),
                orig_size_hw=(480, 640),
            )
        )
    return LayerStack(logits, predicted), tuple(targets)


def pairs_of_ours(matching: Matching, targets: tuple[Target, ...]) -> list[set[tuple[int, int, int]]]:
    """Return (image, query, target of the image) of every match, one set a layer."""
    first = [sum(target.num_objects for target in targets[:i]) for i in range(len(targets))]
    images = matching.image_index.tolist()
    return [
        {(i, q, t - first[i]) for i, q, t in zip(images, queries, truths, strict=True)}
        for queries, truths in zip(matching.query_index.tolist(), matching.target_index.tolist(), strict=True)
    ]


def pairs_of_reference(layers: list[list[tuple[torch.Tensor, torch.Tensor]]]) -> list[set[tuple[int, int, int]]]:
    """Return the same for the reference's result."""
    return [
        {(i, q, t) for i, (qs, ts) in enumerate(layer) for q, t in zip(qs.tolist(), ts.tolist(), strict=True)}
        for layer in layers
    ]


if __name__ == "__main__":
    main()
