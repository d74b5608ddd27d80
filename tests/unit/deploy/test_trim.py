"""A trimmed model predicts what the whole model's decoder layer of its number predicts, in every family."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from tests.unit.deploy.deep_models import MODELS, config_of, whole
from torch import Tensor

from detronome.config.convert import from_dict, to_dict
from detronome.deploy.query_use import queries_by_use
from detronome.deploy.trim import Extent, detector_of, extent_of, trimmed, trimmed_config
from detronome.engine.checkpoint import load_checkpoint, write_checkpoint
from detronome.errors import CheckpointError, ConfigError
from detronome.models.detector import Detector
from detronome.types import Batch, EffectiveBatch, ModelOutput, Target

CPU = torch.device("cpu")


def images() -> tuple[Tensor, Tensor]:
    """Two images, the second one padded at the right."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.zeros(2, 64, 96, dtype=torch.bool)
    mask[1, :, 64:] = True
    return torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=generator), mask


@torch.inference_mode()
def run(detector: Detector) -> ModelOutput:
    output: ModelOutput = detector(*images())
    return output


def layers(family: str) -> list[ModelOutput]:
    """What each decoder layer of the whole model says."""
    detector = detector_of(whole(family))
    for module in detector.modules():
        if isinstance(module, Detector):
            module.all_layers = True
    output = run(detector)
    return [*output.aux_outputs, output]


def extent(family: str, *, depth: int | None = None, queries: int | None = None, size: int | None = None) -> Extent:
    own = extent_of(from_dict(whole(family).config))
    return Extent(
        decoder_layers=depth or own.decoder_layers,
        num_queries=queries or own.num_queries,
        image_size=size or own.image_size,
    )


DEPTHS = [(family, depth) for family, (_, model) in MODELS.items() for depth in range(1, model.num_decoder_layers + 1)]


@pytest.mark.parametrize(("family", "depth"), DEPTHS)
def test_a_trimmed_model_predicts_what_that_layer_predicts(family: str, depth: int) -> None:
    found = run(detector_of(trimmed(whole(family), extent(family, depth=depth))))
    expected = layers(family)
    assert len(expected) == extent(family).decoder_layers
    torch.testing.assert_close(found.pred_logits, expected[depth - 1].pred_logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.pred_boxes, expected[depth - 1].pred_boxes, rtol=1e-5, atol=1e-5)
    others = [layer for n, layer in enumerate(expected) if n != depth - 1]
    assert not any(torch.allclose(found.pred_boxes, other.pred_boxes, atol=1e-4) for other in others)


@pytest.mark.parametrize("family", MODELS)
def test_all_layers_are_given_only_when_asked_for_and_change_nothing(family: str) -> None:
    silent = run(detector_of(whole(family)))
    assert len(silent.aux_outputs) == (extent("nano").decoder_layers - 1 if family == "nano" else 0)
    torch.testing.assert_close(silent.pred_boxes, layers(family)[-1].pred_boxes, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["nano", "rtdetr", "dfine"])
def test_fewer_chosen_queries_are_the_best_of_more(family: str) -> None:
    """What they then say to each other differs; where they start does not."""
    starts = {}
    for queries in (4, 9):
        detector = detector_of(trimmed(whole(family), extent(family, depth=1, queries=queries)))
        decoder = detector.decoder
        seen: list[Tensor] = []
        handle = decoder.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[1]))
        assert run(detector).pred_boxes.shape[1] == queries
        handle.remove()
        starts[queries] = seen[0]
    torch.testing.assert_close(starts[4], starts[9][:, :4])


def test_learned_queries_are_those_named_in_their_old_order() -> None:
    smaller = trimmed(whole("detr"), extent("detr", queries=3), best_queries=[4, 1, 2, 0, 3, 5])
    weights = whole("detr").model["query_embed.weight"]
    torch.testing.assert_close(smaller.model["query_embed.weight"], weights[[1, 2, 4]], rtol=0, atol=0)
    assert run(detector_of(smaller)).pred_logits.shape == (2, 3, 4)


@pytest.mark.parametrize("family", MODELS)
def test_nothing_but_the_decoder_gets_smaller(family: str) -> None:
    own = whole(family).model
    smaller = trimmed(whole(family), extent(family, depth=1))
    assert smaller.model.keys() < own.keys()
    assert all("decoder" in name or "dec_" in name for name in own.keys() - smaller.model.keys())
    assert all(smaller.model[name].data_ptr() == own[name].data_ptr() for name in smaller.model)


def test_the_checkpoint_says_what_it_was_made_of_and_claims_no_metrics(tmp_path: Path) -> None:
    smaller = trimmed(whole("nano"), extent("nano", depth=1, queries=5, size=96), source="runs/nano")
    write_checkpoint(smaller, tmp_path / "small")
    read = load_checkpoint(tmp_path / "small")
    assert read.origin == (
        "trimmed from runs/nano (3 decoder layers, 9 queries, 192 px) to 1 decoder layer, 5 queries, 96 px"
    )
    assert read.state.best_metrics == {} and read.state.step == 40
    assert extent_of(from_dict(read.config)) == extent("nano", depth=1, queries=5, size=96)
    assert read.model.keys() == smaller.model.keys()
    with pytest.raises(CheckpointError, match="exists already"):
        write_checkpoint(smaller, tmp_path / "small")


def test_image_sizes_are_scaled_together_with_the_shapes_that_images_are_padded_to() -> None:
    config = config_of("detr", eval_size=800, eval_max_size=1333)
    config = replace(config, data=replace(config.data, buckets=("480x640", "800x1344")))
    smaller = trimmed_config(config, replace(extent_of(config), image_size=400))
    assert (smaller.augment.eval_size, smaller.augment.eval_max_size) == (400, 666)
    assert smaller.data.buckets == ("256x320", "416x672") or smaller.data.buckets == ("256x320", "400x672")
    assert smaller.augment.sizes == config.augment.sizes
    same = trimmed_config(config, replace(extent_of(config), decoder_layers=1))
    assert same.data.buckets == config.data.buckets and same.augment == config.augment


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ({"decoder_layers": 4}, "4 decoder layers: the model has 3"),
        ({"decoder_layers": 0}, "0 decoder layers are too few"),
        ({"num_queries": 10}, "10 queries: the model has 9"),
        ({"num_queries": 0}, "0 queries are too few"),
        ({"image_size": 224}, "224 pixels: the model has 192"),
        ({"image_size": 31}, "31 pixels are too few"),
    ],
)
def test_what_cannot_be_trimmed_is_refused(wanted: dict[str, int], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        trimmed(whole("nano"), replace(extent("nano"), **wanted))


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        trimmed(whole("nano"), Extent(decoder_layers=9, num_queries=0, image_size=1))
    assert [problem.where for problem in error.value.problems] == ["--decoder-layers", "--queries", "--image-size"]


def test_layers_that_never_learned_to_predict_are_refused() -> None:
    config = config_of("nano")
    silent = replace(whole("nano"), config=to_dict(replace(config, loss=replace(config.loss, aux_loss=False))))
    with pytest.raises(ConfigError, match="without auxiliary losses"):
        trimmed(silent, extent("nano", depth=1))
    trimmed(silent, extent("nano", queries=3))


def test_weights_of_another_model_are_refused() -> None:
    weights = {name: tensor for name, tensor in whole("nano").model.items() if not name.startswith("fuse")}
    with pytest.raises(CheckpointError, match=r"fuse\.0\.weight"):
        trimmed(replace(whole("nano"), model=weights), extent("nano", depth=1))


class Says(Detector):
    """A detector that always says the same."""

    activation = "softmax"
    num_queries = 4

    def __init__(self, logits: Tensor, boxes: Tensor) -> None:
        super().__init__()
        self.logits, self.boxes = logits, boxes

    def parts_to_compile(self) -> list[torch.nn.Module]:
        return []

    def forward(self, images: Tensor, padding_mask: Tensor, targets: object = None) -> ModelOutput:
        count = len(images)
        return ModelOutput(pred_logits=self.logits.expand(count, -1, -1), pred_boxes=self.boxes.expand(count, -1, -1))


def batches(*truths: tuple[list[list[float]], list[int]]) -> list[EffectiveBatch]:
    targets = tuple(
        Target(
            boxes_cxcywh=torch.tensor(boxes).view(-1, 4),
            labels=torch.tensor(labels, dtype=torch.int64),
            image_id=n,
            size_hw=(32, 32),
            orig_size_hw=(32, 32),
        )
        for n, (boxes, labels) in enumerate(truths)
    )
    shape = (len(targets), 32, 32)
    images = torch.zeros(shape[0], 3, *shape[1:], dtype=torch.uint8)
    return [EffectiveBatch((Batch(images=images, padding_mask=torch.zeros(shape, dtype=torch.bool), targets=targets),))]


LEFT, RIGHT = [0.25, 0.5, 0.4, 0.4], [0.75, 0.5, 0.4, 0.4]


def test_queries_are_ranked_by_the_objects_they_found() -> None:
    logits = torch.tensor(
        [
            [9.0, 0.0, 0.0],  # class 0 at the left, very sure
            [0.0, 5.0, 0.0],  # class 1 at the right
            [2.0, 0.0, 0.0],  # class 0 at the right
            [1.0, 0.0, 0.0],  # class 0 at the left, less sure: never the finder
        ]
    )
    model = Says(logits, torch.tensor([LEFT, RIGHT, RIGHT, LEFT]))
    seen = batches(([RIGHT], [1]), ([RIGHT, LEFT], [1, 0]), ([RIGHT], [1]), ([], []))
    # 1 found three, 0 found one, 2 and 3 none: of these, 2 is surer.
    assert queries_by_use(model, seen, precision="fp32", device=CPU) == [1, 0, 2, 3]


def test_without_objects_queries_are_ranked_by_their_scores() -> None:
    logits = torch.tensor([[0.0, 0.0, 5.0], [4.0, 0.0, 0.0], [0.0, 0.0, 9.0], [0.0, 1.0, 0.0]])
    model = Says(logits, torch.tensor([LEFT] * 4))
    assert queries_by_use(model, batches(([], [])), precision="fp32", device=CPU) == [1, 3, 0, 2]


@pytest.mark.parametrize(("family", "share"), list(product(["detr", "dfine"], [True, False])))
def test_a_detector_may_share_the_tensors_of_its_checkpoint(family: str, share: bool) -> None:
    checkpoint = whole(family)
    own = detector_of(checkpoint, share=share).state_dict()
    kept = [name for name in own if own[name].data_ptr() == checkpoint.model[name].data_ptr()]
    assert kept == (list(own) if share else [])
