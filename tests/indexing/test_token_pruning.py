"""Scores, masks, thresholds and penalty of token pruning against plain loops and closed forms."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from indexing.models.token_pruning import (
    Pruning,
    TokenPruning,
    attention_weights,
    gated_attention,
    paper_pruning,
    token_scores,
)

pytestmark = pytest.mark.usefixtures("one_thread")
Loops = list[list[list[list[float]]]]  # batch, heads, queries, keys


def pruning(**changes: Any) -> Pruning:
    settings: dict[str, Any] = {
        "score": "pre",
        "key": "first",
        "base": (0.01, 0.01),
        "trained": (True, True),
        "temperature": (1e-4, 1e-4),
        "straight_through": False,
        "cumulative": True,
        "multiply": True,
        "keys": "none",
        "weight": 0.5,
    }
    return Pruning(**{**settings, **changes})


def heads(seed: int = 0, scale: float = 1.0, length: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of 3 titles, 4 heads of width 5."""
    generator = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(3, 3, 4, length, 5, generator=generator)
    return scale * query, key, value


def causal_bias(length: int) -> Tensor:
    return torch.full((length, length), -math.inf).triu(1)


# --- the independent implementation: Python floats, one head, query and key at a time


def raw_by_loops(query: Tensor, key: Tensor) -> Loops:
    batch, count, length, width = query.shape
    q, k = query.double().tolist(), key.double().tolist()
    return [
        [
            [
                [
                    sum(q[b][h][i][c] * k[b][h][j][c] for c in range(width)) / math.sqrt(width)
                    for j in range(length)
                ]
                for i in range(length)
            ]
            for h in range(count)
        ]
        for b in range(batch)
    ]


def weights_by_loops(query: Tensor, key: Tensor, gate: Tensor, causal: bool) -> Loops:
    raw, gates = raw_by_loops(query, key), gate.double().tolist()
    for b, h, i in itertools.product(*map(range, query.shape[:3])):
        row = raw[b][h][i]
        for j, score in enumerate(row):
            kept = 1.0 if j == i else gates[b][j]
            row[j] = 0.0 if causal and j > i else kept * math.exp(score)
        total = sum(row)
        raw[b][h][i] = [weight / total for weight in row]
    return raw


def scores_by_loops(
    query: Tensor, key: Tensor, score: str, which: str, present: Tensor, eot: Tensor, causal: bool
) -> Tensor:
    batch, count, length, _ = query.shape
    part, found = present.double().tolist(), torch.zeros(batch, length, dtype=torch.float64)
    table = (
        raw_by_loops(query, key)
        if score == "pre"
        else weights_by_loops(query, key, present, causal)
    )
    for b, h, i in itertools.product(range(batch), range(count), range(length)):
        rows, end = table[b][h], int(eot[b])
        if score == "recv":
            one = sum(part[b][q] * rows[q][i] for q in range(length)) / sum(part[b])
        elif which == "mean":
            one = sum(part[b][k] * rows[i][k] for k in range(length)) / sum(part[b])
        else:
            one = {"first": rows[i][0], "eot": rows[i][end], "eot_query": rows[end][i]}[which]
        found[b, i] += one / count
    return found


# --- what can be asked for


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"score": "post", "key": "mean"}, "every token scores the same"),
        ({"score": "post", "key": "eot"}, "every score is 0"),
        ({"score": "recv", "key": "first"}, "recv with key first: recv is a mean over all"),
        ({"score": "recv", "key": "eot"}, "recv with key eot: recv is a mean over all"),
        ({"score": "recv", "key": "eot_query"}, "recv with key eot_query"),
        ({"multiply": False}, "the masks would have no effect"),
        ({"keys": "next", "cumulative": False}, "would come back in the next layer"),
        ({"keys": "same", "cumulative": False}, "would come back in the next layer"),
        ({"base": (0.1,)}, "one value a layer"),
        ({"trained": (True,)}, "one value a layer"),
        ({"temperature": (1.0, 1.0, 1.0)}, "one value a layer"),
        ({"base": (0.0, math.nan)}, "must be numbers or -inf"),
        ({"base": (math.inf, 0.0)}, "must be numbers or -inf"),
        ({"temperature": (1.0, 0.0)}, "greater than 0"),
        ({"temperature": (1.0, math.inf)}, "finite"),
        ({"weight": -0.1}, "greater than or equal to 0"),
        ({"weight": math.nan}, "greater than or equal to 0|finite"),
        ({"lambda": 0.1}, "Extra inputs"),
    ],
)
def test_what_cannot_work_is_refused_with_its_reason(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        pruning(**changes)


@pytest.mark.parametrize(("keys", "multiply"), [("none", True), ("next", False), ("same", True)])
def test_the_rest_is_accepted(score: str, key: str, keys: str, multiply: bool) -> None:
    assert pruning(score=score, key=key, keys=keys, multiply=multiply).key == key


def test_the_mean_probability_over_keys_would_be_the_same_for_every_token() -> None:
    query, key, _ = heads()
    present = torch.tensor([[1.0] * 6, [1.0] * 4 + [0.0] * 2, [1.0] * 2 + [0.0] * 4])
    weights = attention_weights(query, key, present, None)
    for b, count in enumerate((6, 4, 2)):
        means = weights[b, :, :count, :count].mean(-1)
        torch.testing.assert_close(means, torch.full_like(means, 1 / count))


def test_the_probability_on_end_of_text_would_be_0_in_a_causal_tower() -> None:
    query, key, _ = heads()
    weights = attention_weights(query, key, torch.ones(3, 6), causal_bias(6))
    assert bool((weights[:, :, :5, 5] == 0).all())


def test_json_gives_the_same_pruning_back() -> None:
    config = pruning(score="recv", key="mean", base=(-math.inf, 0.1 + 0.2), temperature=(1e-4, 3))
    assert Pruning.model_validate_json(config.model_dump_json()) == config
    # As ClipEncoder.save writes a folder's config.json; other programs read no bare Infinity.
    written = json.dumps({"pruning": config.model_dump(mode="json")}, allow_nan=False)
    assert Pruning(**json.loads(written)["pruning"]) == config
    assert config.model_dump()["base"] == (-math.inf, 0.1 + 0.2)


# --- scores and attention

PRESENT = {
    "all": torch.ones(3, 6),
    "padding": torch.tensor([[1.0] * 6, [1.0] * 4 + [0.0] * 2, [1.0] * 2 + [0.0] * 4]),
    "fractional": torch.tensor(
        [[1, 0.5, 0, 0.25, 1e-3, 1], [1, 0.1, 0.9, 1, 0, 0], [1, 1, 0, 0, 0, 0]]
    ),
}
EOT = torch.tensor([5, 3, 1])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("present", PRESENT.values(), ids=PRESENT.keys())
def test_scores_are_those_of_plain_loops(
    score: str, key: str, present: Tensor, causal: bool
) -> None:
    query, keys, _ = heads(1, scale=2.0)
    found = token_scores(query, keys, score, key, present, EOT, causal)
    expected = scores_by_loops(query, keys, score, key, present, EOT, causal)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_padding_has_no_effect_on_scores(score: str, key: str) -> None:
    query, keys, _ = heads(2)
    short = torch.tensor([3])
    for causal in (True, False):
        alone = token_scores(
            query[1:2, :, :4], keys[1:2, :, :4], score, key, torch.ones(1, 4), short, causal
        )
        padded = token_scores(query, keys, score, key, PRESENT["padding"], EOT, causal)
        torch.testing.assert_close(padded[1, :4], alone[0])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("gate", PRESENT.values(), ids=PRESENT.keys())
def test_attention_is_that_of_plain_loops(gate: Tensor, causal: bool) -> None:
    query, key, value = heads(3, scale=2.0)
    bias = causal_bias(6) if causal else None
    expected = torch.tensor(weights_by_loops(query, key, gate, causal), dtype=torch.float64)
    weights = attention_weights(query, key, gate, bias)
    torch.testing.assert_close(weights.double(), expected, rtol=1e-5, atol=1e-7)
    mixed = gated_attention(query, key, value, gate, bias)
    torch.testing.assert_close(
        mixed.double(), torch.einsum("bhij,bhjd->bhid", expected, value.double()),
        rtol=1e-5, atol=1e-6,
    )  # fmt: skip


@pytest.mark.parametrize("causal", [True, False])
def test_gates_of_one_give_plain_attention(causal: bool) -> None:
    query, key, value = heads(4, scale=3.0)
    found = gated_attention(query, key, value, torch.ones(3, 6), causal_bias(6) if causal else None)
    expected = functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("above", [0.0, 10.0, 20.0, 40.0, 200.0])
@pytest.mark.parametrize("causal", [True, False])
def test_a_gate_of_zero_is_attention_without_that_key(causal: bool, above: float) -> None:
    """Also where the key that is out would have had all the weight, to rounding."""
    query, key, value = heads(5)
    query[..., 0], key[..., 0] = math.sqrt(5), 0.0
    key[:, :, 2, 0] = above  # `above` nats over the others in every query's scores
    gate = torch.ones(3, 6)
    gate[:, 2] = 0
    bias = causal_bias(6) if causal else torch.zeros(6, 6)
    found = gated_attention(query, key, value, gate, bias)
    rest = [0, 1, 3, 4, 5]
    expected = functional.scaled_dot_product_attention(
        query[:, :, rest], key[:, :, rest], value[:, :, rest], attn_mask=bias[rest][:, rest]
    )
    torch.testing.assert_close(found[:, :, rest], expected, rtol=1e-5, atol=1e-6)
    own = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    torch.testing.assert_close(found[:, :, 2], own[:, :, 2], rtol=1e-5, atol=1e-6)


@given(
    gate=st.lists(st.floats(0, 1, width=32), min_size=6, max_size=6),
    scale=st.sampled_from([0.1, 1.0, 10.0, 100.0]),
    causal=st.booleans(),
)
def test_rows_sum_to_one(gate: list[float], scale: float, causal: bool) -> None:
    query, key, _ = heads(6, scale)
    gates = torch.tensor(gate).expand(3, 6)
    weights = attention_weights(query, key, gates, causal_bias(6) if causal else None)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 4, 6), rtol=0, atol=1e-5)
    assert bool((weights >= 0).all())


def test_gradients_are_exact_also_at_a_gate_of_zero() -> None:
    query, key, _ = (part.double()[:1, :1].requires_grad_() for part in heads(7))
    gate = torch.tensor([[1.0, 0.0, 0.3, 0.0, 1.0, 0.7]], dtype=torch.float64, requires_grad=True)

    def weights(query: Tensor, key: Tensor, gate: Tensor) -> Tensor:
        return attention_weights(query, key, gate, None)

    assert torch.autograd.gradcheck(weights, (query, key, gate), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("above", [0.0, 50.0])
def test_a_gate_of_zero_has_a_gradient_and_the_log_form_has_none(above: float) -> None:
    query, key, value = heads(8)
    query[..., 0] = math.sqrt(5)
    key[:, :, 2, 0] = above
    gate = torch.ones(3, 6)
    gate[:, 2] = 0
    gate.requires_grad_()
    gated_attention(query, key, value, gate, causal_bias(6))[:, :, 5].sum().backward()
    assert gate.grad is not None
    assert bool(gate.grad.isfinite().all())
    assert float(gate.grad[:, 2].abs().min()) > 1e-3
    logs = gate.detach().clone().requires_grad_()
    raw = query @ key.transpose(-1, -2) / math.sqrt(5) + logs.log()[:, None, None, :]
    (raw.softmax(-1) @ value)[:, :, 5].sum().backward()
    assert logs.grad is not None
    assert not bool(logs.grad[:, 2].isfinite().any())


# --- masks


@pytest.mark.parametrize(
    ("above", "mask", "slope"),
    [
        (1e-5, 0.525, 2494),
        (1e-4, 0.731, 1966),
        (3e-4, 0.953, 452),
        (5e-4, 0.993, 66),
        (1e-3, 1.000, 0.45),
        (1e-2, 1.000, 0.0),
        (-1e-4, 0.269, 1966),
    ],
)
def test_masks_and_slopes_of_the_printed_temperature(
    above: float, mask: float, slope: float
) -> None:
    scores = torch.tensor([[0.01 + above]], requires_grad=True)
    found = TokenPruning(pruning()).mask(1, scores, torch.tensor([[True]]))
    found.backward()
    assert scores.grad is not None
    assert found.item() == pytest.approx(mask, abs=6e-4)
    assert scores.grad.item() == pytest.approx(slope, rel=0.02)


def some_scores() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(50, 40, generator=generator), torch.rand(50, 40, generator=generator) < 0.7


def test_straight_through_is_0_or_1_with_the_gradient_of_the_sigmoid() -> None:
    values, prunable = some_scores()
    found, gradients = [], []
    for straight in (True, False):
        model = TokenPruning(pruning(straight_through=straight, temperature=(0.7, 0.7)))
        scores = values.clone().requires_grad_()
        mask = model.mask(0, scores, prunable)
        (mask * torch.arange(40)).sum().backward()
        found.append(mask)
        gradients.append((scores.grad, model.delta.grad))
    assert found[0].unique().tolist() == [0.0, 1.0]
    assert torch.equal(found[0], ((values >= 0.01) | ~prunable).float())
    torch.testing.assert_close(gradients[0], gradients[1])
    torch.testing.assert_close(found[1][prunable], torch.sigmoid((values - 0.01) / 0.7)[prunable])


def test_hard_masks_are_0_or_1_without_a_gradient() -> None:
    values, prunable = some_scores()
    for straight in (True, False):
        model = TokenPruning(pruning(straight_through=straight))
        mask = model.mask(0, values.requires_grad_(), prunable, hard=True)
        assert not mask.requires_grad
        assert torch.equal(mask, ((values >= 0.01) | ~prunable).float())


def test_a_score_on_the_threshold_is_kept() -> None:
    for straight in (True, False):
        for score, key, rounding in (("pre", "first", 1e-4), ("recv", "mean", 1e-5)):
            model = TokenPruning(
                pruning(score=score, key=key, base=(0.25,) * 2, straight_through=straight)
            )
            steps = torch.tensor([[0, 0.5, -0.5, -1.5]]) * rounding  # rounding, and more than that
            scores, prunable = 0.25 + steps, torch.ones(1, 4).bool()
            mask = model.mask(0, scores, prunable, hard=True)
            assert mask.tolist() == [[1, 1, 1, 0]]
            if straight:
                assert torch.equal(model.mask(0, scores, prunable), mask)


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("straight", [True, False])
def test_what_is_not_prunable_is_kept_and_has_no_gradient(straight: bool, hard: bool) -> None:
    model = TokenPruning(pruning(straight_through=straight, temperature=(1e6, 1e6)))
    scores = torch.full((2, 3), -1e6).requires_grad_()
    prunable = torch.tensor([[False, True, False], [False, False, False]])
    mask = model.mask(0, scores, prunable, hard=hard)
    assert bool((mask[~prunable] == 1).all())
    assert mask[0, 1].item() == pytest.approx(
        0.0 if hard or straight else 1 / (1 + math.e), abs=1e-6
    )
    if not hard:
        mask.sum().backward()
        assert scores.grad is not None
        assert torch.equal(scores.grad != 0, prunable)


# --- penalty


@pytest.mark.parametrize("norm", ["sum_layers", "mean_layers"])
@pytest.mark.parametrize("trained", [(True, True, True), (True, False, True), (False, True, False)])
def test_the_penalty_is_that_of_plain_loops(norm: str, trained: tuple[bool, ...]) -> None:
    layers = {"base": (0.1,) * 3, "temperature": (1.0,) * 3, "trained": trained}
    model = TokenPruning(pruning(norm=norm, weight=0.3, **layers))
    generator = torch.Generator().manual_seed(3)
    masks = [(layer, torch.rand(4, 7, generator=generator)) for layer in range(3)]
    prunable = torch.rand(4, 7, generator=generator) < 0.6
    prunable[2] = False  # a title of no words counts as one of none kept
    total = 0.0
    for layer, mask in masks:
        if trained[layer]:
            for b in range(4):
                words = [float(mask[b, i]) for i in range(7) if prunable[b, i]]
                total += sum(words) / max(len(words), 1) / 4
    total *= 0.3 / (sum(trained) if norm == "mean_layers" else 1)
    assert model.penalty(masks, prunable).item() == pytest.approx(total, rel=1e-6)


def test_the_penalty_of_no_masks_is_0_and_can_be_part_of_a_loss() -> None:
    model = TokenPruning(pruning(trained=(False, False)))
    prunable = torch.ones(2, 3).bool()
    for masks in ([], [(0, torch.rand(2, 3))]):
        loss = model.penalty(masks, prunable)
        assert loss.item() == 0
        loss.backward()
    assert model.delta.grad is not None
    assert model.delta.grad.tolist() == [0, 0]


def test_the_penalty_of_no_titles_is_0() -> None:
    nothing = torch.ones(0, 4)
    assert TokenPruning(pruning()).penalty([(0, nothing)], nothing.bool()).item() == 0


# --- thresholds


def test_thresholds_are_base_plus_delta_and_frozen_ones_stay() -> None:
    model = TokenPruning(
        pruning(base=(-3.0, 0.5, -math.inf), trained=(True, False, True), temperature=(1.0,) * 3)
    )
    with torch.no_grad():
        model.delta += torch.tensor([0.25, 0.125, 7.0])
    assert model.thresholds().dtype == torch.float32
    assert model.thresholds().tolist() == [-2.75, 0.5, -math.inf]
    assert [model.prunes(layer) for layer in range(3)] == [True, True, False]
    model.thresholds()[:2].sum().backward()
    assert model.delta.grad is not None
    assert model.delta.grad.tolist() == [1, 0, 0]


@pytest.mark.parametrize(("score", "key"), [("post", "first"), ("recv", "mean")])
def test_thresholds_of_probabilities_are_kept_within_bounds(score: str, key: str) -> None:
    layers = {"trained": (True,) * 4, "temperature": (1.0,) * 4}
    model = TokenPruning(pruning(score=score, key=key, base=(0.5, 0.5, 0.5, -math.inf), **layers))
    with torch.no_grad():
        model.delta += torch.tensor([0.25, 0.5, -0.75, 1.0])
    assert model.thresholds().tolist() == [0.75, pytest.approx(0.95), 0.0, -math.inf]


def test_thresholds_out_of_bounds_can_come_back() -> None:
    """Clamped alone, they would have no gradient and stay out for good."""
    layers = {"base": (0.5,) * 3, "trained": (True,) * 3, "temperature": (1.0,) * 3}
    model = TokenPruning(pruning(score="recv", key="mean", **layers))
    with torch.no_grad():
        model.delta += torch.tensor([3.0, -3.0, 0.1])
    model.thresholds().sum().backward()
    assert model.delta.grad is not None
    assert model.delta.grad.tolist() == [1, 1, 1]


def test_clamping_puts_delta_back_and_touches_nothing_else() -> None:
    bases = (0.5, 0.5, 0.5, 0.99, -math.inf)
    layers = {"base": bases, "trained": (True, True, True, False, True), "temperature": (1.0,) * 5}
    model = TokenPruning(pruning(score="post", **layers))
    with torch.no_grad():
        model.delta += torch.tensor([3.0, -3.0, 1e-7, 3.0, 3.0])
    before = model.delta.tolist()
    thresholds = model.thresholds().tolist()
    for _ in range(3):
        model.clamp_()
        assert model.delta.tolist() == [pytest.approx(0.45), -0.5, *before[2:]]
        assert model.thresholds().tolist() == pytest.approx(thresholds, abs=1e-7)


def test_raw_scores_have_thresholds_of_any_size() -> None:
    model = TokenPruning(pruning(base=(-4.0, 3.0)))
    assert model.thresholds().tolist() == [-4, 3]
    with torch.no_grad():
        model.delta += torch.tensor([-40.0, 30.0])
    model.clamp_()
    assert model.thresholds().tolist() == [-44, 33]


# --- recipes


@pytest.mark.parametrize("layers", [1, 4, 12])
def test_the_printed_recipe(layers: int) -> None:
    config = paper_pruning(layers)
    assert config.base == pytest.approx([0.01 * (layer + 1) / layers for layer in range(layers)])
    assert config.base[-1] == 0.01
    assert config.temperature == (1e-4,) * layers
    assert config.trained == (True,) * (layers - 1) + (False,)
    assert (config.score, config.key, config.weight) == ("post", "first", 0.1)
    assert (config.multiply, config.keys, config.norm) == (True, "none", "sum_layers")
    assert not config.straight_through


# --- float32 throughout


def test_autocast_changes_no_score_mask_or_penalty(score: str, key: str) -> None:
    query, keys, value = heads(9)
    present, prunable = PRESENT["fractional"], torch.ones(3, 6).bool()
    model = TokenPruning(pruning(score=score, key=key, temperature=(1e-2, 1e-2)))

    def everything() -> list[Tensor]:
        scores = token_scores(query, keys, score, key, present, EOT, causal=True)
        mask = model.mask(0, scores, prunable)
        mixed = gated_attention(query, keys, value, present, causal_bias(6))
        return [scores, mask, model.penalty([(0, mask)], prunable), mixed]

    plain = everything()
    with torch.autocast("cpu", torch.bfloat16):
        cast = everything()
    assert all(tensor.dtype == torch.float32 for tensor in cast)
    assert all(map(torch.equal, plain, cast))


def test_bfloat16_values_stay_bfloat16_and_are_mixed_in_float32() -> None:
    query, key, value = (part.bfloat16() for part in heads(10))
    gate = PRESENT["fractional"]
    found = gated_attention(query, key, value, gate, None)
    exact = gated_attention(query.float(), key.float(), value.float(), gate, None)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, exact.bfloat16())


def test_a_step_of_2e_5_moves_a_threshold_and_its_masks() -> None:
    model = TokenPruning(pruning(trained=(True, False)))
    optimizer = torch.optim.Adam([model.delta], lr=2e-5)
    scores, prunable = torch.full((1, 2), 0.01), torch.ones(1, 2).bool()
    with torch.autocast("cpu", torch.bfloat16):
        before = model.mask(0, scores, prunable)
        model.penalty([(0, before)], prunable).backward()
        optimizer.step()
        after = model.mask(0, scores, prunable)
    assert model.thresholds().tolist() == pytest.approx([0.01 + 2e-5, 0.01], abs=1e-9)
    assert before[0].tolist() == pytest.approx([0.5, 0.5], abs=1e-6)
    assert after[0].tolist() == pytest.approx([1 / (1 + math.exp(0.2))] * 2, abs=1e-4)
    # What it is kept in float32 for:
    threshold = torch.tensor(0.01, dtype=torch.bfloat16)
    assert threshold + 2e-5 == threshold
