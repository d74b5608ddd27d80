"""D-FINE's losses against an oracle that goes through queries one by one, and against transformers' for one image."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from detronome.config.schema import LossConfig
from detronome.losses.build import build_criterion
from detronome.losses.fine_criterion import FineCriterion
from detronome.losses.fine_terms import answers_of
from detronome.losses.matcher import Matching
from detronome.losses.terms import BatchTotals
from detronome.models.dfine.transformer import FineDecoder
from detronome.ops.boxes import cxcywh_to_xyxy, elementwise_giou, elementwise_iou
from detronome.types import EdgeDistributions, ModelOutput, Target

NUM_CLASSES, NUM_QUERIES = 4, 7
SHIFTS = FineDecoder([16], num_classes=1, hidden_dim=16, num_heads=1, num_points=(1,), num_layers=1).shifts()


def make_target(count: int) -> Target:
    return Target(
        boxes_cxcywh=torch.rand(count, 4) * 0.3 + 0.3,
        labels=torch.randint(NUM_CLASSES, (count,)),
        image_id=1,
        size_hw=(64, 64),
        orig_size_hw=(64, 64),
    )


def layer_of(num_images: int, num_queries: int, references: Tensor | None) -> ModelOutput:
    edges = None
    if references is not None:
        edges = EdgeDistributions(
            logits=torch.randn(num_images, num_queries, 4, 33), reference_boxes=references, shifts=SHIFTS
        )
    return ModelOutput(
        pred_logits=torch.randn(num_images, num_queries, NUM_CLASSES),
        pred_boxes=torch.rand(num_images, num_queries, 4) * 0.3 + 0.3,
        edges=edges,
    )


def make_output(num_images: int, num_layers: int = 3) -> ModelOutput:
    references = torch.rand(num_images, NUM_QUERIES, 4) * 0.3 + 0.3
    start = layer_of(num_images, NUM_QUERIES, None)
    *earlier, last = [layer_of(num_images, NUM_QUERIES, references) for _ in range(num_layers)]
    return replace(last, aux_outputs=(start, *earlier), enc_outputs=layer_of(num_images, NUM_QUERIES, None))


def with_denoising(output: ModelOutput, counts: list[int], num_groups: int = 2) -> ModelOutput:
    """Add queries as the model makes them: positives and negatives, groups of them, empty where objects are fewer."""
    longest = max(counts)
    num_queries = 2 * longest * num_groups
    references = torch.rand(len(counts), num_queries, 4) * 0.3 + 0.3
    layers = [layer_of(len(counts), num_queries, None), *(layer_of(len(counts), num_queries, references) for _ in "ab")]
    position = torch.arange(num_queries)
    empty = (position % longest >= torch.tensor(counts).unsqueeze(-1)).unsqueeze(-1)
    layers = [replace(layer, pred_logits=layer.pred_logits.masked_fill(empty, -30.0)) for layer in layers]
    matches = tuple(
        (
            torch.cat([torch.arange(count) + 2 * longest * group for group in range(num_groups)]),
            torch.arange(count).repeat(num_groups),
        )
        for count in counts
    )
    return replace(output, dn_outputs=tuple(layers), dn_matches=matches)


def make_criterion() -> FineCriterion:
    criterion = build_criterion(LossConfig(classification="vfl", cost_class=2.0), with_edges=True)
    assert isinstance(criterion, FineCriterion)
    return criterion


def part_of(output: ModelOutput, images: slice) -> ModelOutput:
    """Return some images of an output, as a micro-batch has them."""

    def cut(layer: ModelOutput) -> ModelOutput:
        edges = layer.edges
        if edges is not None:
            edges = replace(edges, logits=edges.logits[images], reference_boxes=edges.reference_boxes[images])
        return ModelOutput(pred_logits=layer.pred_logits[images], pred_boxes=layer.pred_boxes[images], edges=edges)

    assert output.enc_outputs is not None
    return replace(
        cut(output),
        aux_outputs=tuple(cut(layer) for layer in output.aux_outputs),
        enc_outputs=cut(output.enc_outputs),
        dn_outputs=tuple(cut(layer) for layer in output.dn_outputs),
        dn_matches=output.dn_matches[images],
    )


def test_images_without_objects() -> None:
    output = make_output(2)
    for layer in (output, *output.aux_outputs):
        layer.pred_boxes.requires_grad_()
        if layer.edges is not None:
            layer.edges.logits.requires_grad_()
    criterion = make_criterion()
    losses = criterion(output, [make_target(0), make_target(0)])
    total = criterion.total(losses)
    total.backward()
    assert total.isfinite() and losses["loss_bbox"] == losses["loss_giou"] == losses["loss_fgl"] == 0
    assert losses["loss_ddf"] > 0, "layers learn from each other where there is nothing too"
    assert output.pred_boxes.grad is not None and output.edges is not None and output.edges.logits.grad is not None


def test_the_last_layer_alone_as_in_validation() -> None:
    output = replace(make_output(2), aux_outputs=(), enc_outputs=None, edges=None)
    criterion = make_criterion()
    losses = criterion(output, [make_target(2), make_target(0)])
    assert set(losses) == {"loss_ce", "loss_bbox", "loss_giou"} == set(criterion.evaluation_weights)


@given(seed=st.integers(0, 10_000), counts=st.lists(st.integers(0, 5), min_size=1, max_size=3))
def test_the_union_is_what_voting_by_hand_gives(seed: int, counts: list[int]) -> None:
    """Every query answers for the object it was matched with most often; of several, the first."""
    random = torch.Generator().manual_seed(seed)
    targets = [make_target(count) for count in counts]
    first = [sum(counts[:i]) for i in range(len(counts))]
    votes: list[dict[int, Counter[int]]] = [{} for _ in counts]
    matchings = []
    for num_layers in (3, 1):
        image_index, queries, answered = [], [], []
        for i, count in enumerate(counts):
            image_index += [i] * count
            chosen = [torch.randperm(NUM_QUERIES, generator=random)[:count].tolist() for _ in range(num_layers)]
            objects = [torch.randperm(count, generator=random).tolist() for _ in range(num_layers)]
            queries.append(torch.tensor(chosen).view(num_layers, count))
            answered.append(torch.tensor(objects).view(num_layers, count).long() + first[i])
            for layer in range(num_layers):
                for query, target in zip(chosen[layer], objects[layer], strict=True):
                    votes[i].setdefault(query, Counter())[target] += 1
        index = torch.tensor(image_index, dtype=torch.int64)
        matchings.append(Matching(index, torch.cat(queries, 1).long(), torch.cat(answered, 1)))
    answers = answers_of(matchings, targets, NUM_QUERIES)
    for i in range(len(counts)):
        for query in range(NUM_QUERIES):
            asked = votes[i].get(query)
            assert bool(answers.is_matched[i, query]) == bool(asked)
            if asked:
                winner = min(asked, key=lambda target: (-asked[target], target))
                assert answers.boxes_cxcywh[i, query].tolist() == targets[i].boxes_cxcywh[winner].tolist()


@pytest.mark.parametrize("counts", [[3], [2, 4], [0, 3, 1]])
def test_boxes_are_learnt_by_the_union(counts: list[int]) -> None:
    """An image counts as much as it has objects, whatever the number of queries that answer for them."""
    torch.manual_seed(0)
    targets, output = [make_target(count) for count in counts], make_output(len(counts))
    criterion = make_criterion()
    matchings = criterion.match(output, targets)
    losses = criterion(output, targets, matchings)
    answers = answers_of(list(matchings.values()), targets, NUM_QUERIES)
    assert answers.is_matched.sum() > sum(counts), "layers that disagree make the union larger"
    for suffix, layer in {"": output, "_0": output.aux_outputs[0], "_2": output.aux_outputs[2]}.items():
        l1 = giou = 0.0
        for i, count in enumerate(counts):
            chosen = answers.is_matched[i]
            boxes, truth = layer.pred_boxes[i, chosen], answers.boxes_cxcywh[i, chosen]
            if count:
                l1 += float((boxes - truth).abs().sum(-1).mean()) * count
                overlap = elementwise_giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(truth))
                giou += float((1 - overlap).mean()) * count
        assert float(losses["loss_bbox" + suffix]) == pytest.approx(l1 / sum(counts), rel=1e-4)
        assert float(losses["loss_giou" + suffix]) == pytest.approx(giou / sum(counts), rel=1e-4)


def test_classes_are_learnt_by_each_layers_own_matching() -> None:
    torch.manual_seed(0)
    targets, output = [make_target(3)], make_output(1)
    plain = build_criterion(LossConfig(classification="vfl", cost_class=2.0))
    expected, losses = plain(output, targets), make_criterion()(output, targets)
    for suffix in ("", "_0", "_1", "_2", "_enc"):
        torch.testing.assert_close(losses["loss_ce" + suffix], expected["loss_ce" + suffix])


@pytest.mark.parametrize("counts", [[3, 1, 0], [2, 2, 2]])
def test_the_loss_does_not_depend_on_how_a_batch_is_cut(counts: list[int]) -> None:
    torch.manual_seed(0)
    targets = [make_target(count) for count in counts]
    output = with_denoising(make_output(3), counts)
    criterion = make_criterion()
    totals = BatchTotals.of(targets, NUM_QUERIES)
    whole = criterion(output, targets, totals=totals)
    sums: dict[str, float] = {}
    for images in (slice(0, 2), slice(2, 3)):
        for name, value in criterion(part_of(output, images), targets[images], totals=totals).items():
            sums[name] = sums.get(name, 0.0) + float(value)
    for name, value in whole.items():
        if "_dn" in name:
            continue  # groups follow from the fullest image of a micro-batch
        assert sums[name] == pytest.approx(float(value), rel=1e-4, abs=1e-6), name


def test_queries_that_are_there_for_other_images_do_not_matter() -> None:
    """An image's denoising queries count the same beside an image with more objects."""
    torch.manual_seed(0)
    targets = [make_target(2), make_target(5)]
    output = with_denoising(make_output(2), [2, 5])
    criterion, totals = make_criterion(), BatchTotals(2, 7, 7)
    alone = criterion(part_of(output, slice(0, 1)), targets[:1], totals=totals)
    position = torch.arange(20)
    kept = position[position % 5 < 2]
    layers = tuple(
        ModelOutput(
            pred_logits=layer.pred_logits[:1, kept],
            pred_boxes=layer.pred_boxes[:1, kept],
            edges=layer.edges
            and replace(
                layer.edges,
                logits=layer.edges.logits[:1, kept],
                reference_boxes=layer.edges.reference_boxes[:1, kept],
            ),
        )
        for layer in output.dn_outputs
    )
    matches = ((torch.tensor([0, 1, 4, 5]), torch.tensor([0, 1, 0, 1])),)
    without = replace(part_of(output, slice(0, 1)), dn_outputs=layers, dn_matches=matches)
    expected = criterion(without, targets[:1], totals=totals)
    for name in ("loss_ce_dn_2", "loss_bbox_dn_0", "loss_fgl_dn_1", "loss_ddf_dn"):
        torch.testing.assert_close(alone[name], expected[name])


def test_nothing_is_left_to_learn_where_layers_agree_and_are_right() -> None:
    target = make_target(2)
    references = target.boxes_cxcywh.repeat(1, 4, 1)[:, :NUM_QUERIES]
    output = make_output(1)
    sure = torch.full((1, NUM_QUERIES, 4, 33), -40.0)
    sure[..., 16] = 40.0
    edges = EdgeDistributions(logits=sure, reference_boxes=references, shifts=SHIFTS)
    layers = [
        replace(layer, pred_boxes=references, edges=layer.edges and edges) for layer in (*output.aux_outputs, output)
    ]
    output = replace(
        layers[-1],
        aux_outputs=tuple(replace(layer, aux_outputs=(), enc_outputs=None) for layer in layers[:-1]),
        enc_outputs=None,
    )
    # Every query is at one of the objects; only which of them may differ.
    losses = make_criterion()(output, [replace(target, boxes_cxcywh=target.boxes_cxcywh[:1], labels=target.labels[:1])])
    assert losses["loss_ddf"] == pytest.approx(0, abs=1e-6)
    assert losses["loss_bbox"] == pytest.approx(0, abs=1e-6) and losses["loss_fgl"] == pytest.approx(0, abs=1e-4)


def test_a_cost_that_is_no_number_is_told() -> None:
    output = make_output(1)
    output.pred_logits[0, 0] = torch.nan
    losses = make_criterion()(output, [make_target(2)])
    assert losses["loss_bbox"].isnan()


def test_edges_beyond_all_shifts_are_taken_to_the_outermost() -> None:
    """A reference far off, and one without size: the loss stays finite, and points at the last shift."""
    target = replace(make_target(1), boxes_cxcywh=torch.tensor([[0.5, 0.5, 0.9, 0.9]]))
    output = make_output(1)
    references = torch.zeros(1, NUM_QUERIES, 4)
    references[..., :2] = 0.5
    references[..., 2:] = 0.01
    references[:, 1:, 2:] = 0
    for layer in (output, *output.aux_outputs):
        if layer.edges is not None:
            layer.edges.reference_boxes.copy_(references)
            layer.edges.logits.zero_()
            layer.edges.logits[..., -1] = 50.0
    losses = make_criterion()(output, [target])
    assert losses["loss_fgl"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_edge_and_distillation_terms_are_those_of_transformers_for_one_image(seed: int) -> None:
    pytest.importorskip("transformers")
    from transformers import DFineConfig
    from transformers.loss.loss_d_fine import DFineLoss

    torch.manual_seed(seed)
    peer = DFineLoss(DFineConfig(num_labels=NUM_CLASSES))
    target, output = make_target(4), make_output(1)
    criterion = make_criterion()
    matchings = criterion.match(output, [target])
    losses = criterion(output, [target], matchings)
    answers = answers_of(list(matchings.values()), [target], NUM_QUERIES)
    query = answers.is_matched[0].nonzero()[:, 0]
    same = (answers.boxes_cxcywh[0, query, None] == target.boxes_cxcywh).all(-1)
    indices = [(query, same.long().argmax(1))]

    def theirs(layer: ModelOutput) -> dict[str, Any]:
        assert layer.edges is not None and output.edges is not None
        outputs = {
            "pred_boxes": layer.pred_boxes,
            "pred_corners": layer.edges.logits.flatten(-2),
            "ref_points": layer.edges.reference_boxes,
            "teacher_corners": output.edges.logits.flatten(-2),
            "teacher_logits": output.pred_logits,
        }
        truth = [{"boxes": target.boxes_cxcywh, "class_labels": target.labels}]
        return peer.loss_local(outputs, truth, indices, len(query))

    # One image's mean over its matched queries, times its objects over all of them, which are 1.
    first, second = (theirs(layer) for layer in output.aux_outputs[1:])
    torch.testing.assert_close(losses["loss_fgl_1"], first["loss_fgl"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(losses["loss_fgl"], theirs(output)["loss_fgl"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(losses["loss_ddf"], first["loss_ddf"] + second["loss_ddf"], atol=1e-5, rtol=1e-4)


def test_denoising_edges_against_one_by_one() -> None:
    """Each positive counts alike, over objects times groups."""
    torch.manual_seed(0)
    counts = [2, 3]
    targets, output = [make_target(count) for count in counts], with_denoising(make_output(2), counts)
    losses = make_criterion()(output, targets)
    layer = output.dn_outputs[1]
    assert layer.edges is not None
    total = 0.0
    for i, (queries, objects) in enumerate(output.dn_matches):
        for query, number in zip(queries.tolist(), objects.tolist(), strict=True):
            truth, reference = targets[i].boxes_cxcywh[number], layer.edges.reference_boxes[i, query]
            iou = float(elementwise_iou(cxcywh_to_xyxy(layer.pred_boxes[i, query]), cxcywh_to_xyxy(truth)))
            sides = (cxcywh_to_xyxy(truth) - cxcywh_to_xyxy(reference)) * torch.tensor([-1, -1, 1, 1])
            for edge, side in enumerate(sides / reference[2:].repeat(2)):
                log_p = layer.edges.logits[i, query, edge].log_softmax(-1)
                upper = int((side >= SHIFTS).sum())
                lower, near = upper - 1, (side - SHIFTS[upper - 1]) / (SHIFTS[upper] - SHIFTS[upper - 1])
                total -= iou * float(log_p[lower] * (1 - near) + log_p[upper] * near)
    assert float(losses["loss_fgl_dn_1"]) == pytest.approx(total / (5 * 2), rel=1e-4)


@pytest.mark.parametrize("counts", [[2, 3], [0, 2]])
def test_denoising_layers_learn_from_the_last_one(counts: list[int]) -> None:
    """Query by query; positives and negatives are weighed against each other as the ordinary queries' two kinds are."""
    torch.manual_seed(1)
    targets, output = [make_target(count) for count in counts], with_denoising(make_output(2), counts)
    criterion = make_criterion()
    matchings = criterion.match(output, targets)
    losses = criterion(output, targets, matchings)
    union = answers_of([m for suffix, m in matchings.items() if suffix != "_dn"], targets, NUM_QUERIES)
    _, student, teacher = output.dn_outputs
    assert student.edges is not None and teacher.edges is not None
    longest, total = max(counts), 0.0
    for i, (queries, objects) in enumerate(output.dn_matches):
        answer = dict(zip(queries.tolist(), objects.tolist(), strict=True))
        kinds: dict[bool, list[float]] = {True: [], False: []}
        for query in range(student.pred_logits.shape[1]):
            if query % longest >= counts[i]:
                continue  # there only for the fuller image
            wanted = (teacher.edges.logits[i, query] / 5).softmax(-1)
            given_p = (student.edges.logits[i, query] / 5).log_softmax(-1)
            divergence = float((wanted * (wanted.log() - given_p)).sum(-1).mean()) * 25
            if query in answer:
                truth = targets[i].boxes_cxcywh[answer[query]]
                quality = elementwise_iou(cxcywh_to_xyxy(student.pred_boxes[i, query]), cxcywh_to_xyxy(truth))
            else:
                quality = teacher.pred_logits[i, query].sigmoid().max()
            kinds[query in answer].append(divergence * float(quality))
        matched = int(union.is_matched[i].sum())
        roots = {True: matched**0.5, False: (NUM_QUERIES - matched) ** 0.5}
        total += sum(roots[kind] * sum(kinds[kind]) / max(len(kinds[kind]), 1) for kind in kinds) / sum(roots.values())
    assert float(losses["loss_ddf_dn"]) == pytest.approx(total / len(counts), rel=1e-4)
