"""The pruned text tower: against open_clip, plain loops, itself without padding; its traps."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from indexing.errors import ModelError
from indexing.models.clip import create_model
from indexing.models.pruned_text import PrunedText, PrunedTexts, text_tower
from indexing.models.token_pruning import Pruning, TokenPruning, paper_pruning

pytestmark = pytest.mark.usefixtures("one_thread")
NEVER = -math.inf
KEEPS_ALL = {"pre": -1e9, "post": 0.0, "recv": 0.0}
PLAIN: dict[str, Any] = {}
CUSTOM: dict[str, Any] = {"custom_text": True}
TOWERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "CLIP": (PLAIN, {}),
    "CLIP, eos": (PLAIN, {"pool_type": "eos", "eos_id": 3}),
    "CLIP, eos is 0": (PLAIN, {"pool_type": "eos", "eos_id": 0}),
    "CLIP, QuickGELU and layer scale": ({"quick_gelu": True}, {"ls_init_value": 0.5}),
    "TextTransformer": (CUSTOM, {}),
    "TextTransformer, eos, bias": (CUSTOM, {"pool_type": "eos", "eos_id": 3, "proj_bias": True}),
    "TextTransformer, no projection": (CUSTOM, {"proj_type": "none"}),
}


def make(
    options: dict[str, Any] = PLAIN, text: dict[str, Any] = PLAIN, *, layers: int = 3, seed: int = 0
) -> Any:
    """An open_clip model with weights so large that attention is far from uniform."""
    torch.manual_seed(seed)
    model = create_model(
        {
            "embed_dim": 32,
            "vision_cfg": {
                "image_size": 8,
                "layers": 1,
                "width": 16,
                "head_width": 16,
                "patch_size": 8,
            },
            "text_cfg": {
                "context_length": 12,
                "vocab_size": 50,
                "width": 32,
                "heads": 4,
                "layers": layers,
                **text,
            },
            **options,
        }
    )
    for name, weight in text_weights(model).items():
        with torch.no_grad():
            if "embedding" in name:
                weight.normal_()
            elif weight.dim() == 1:
                weight.add_(0.2 * torch.randn_like(weight))
            else:
                weight.normal_(std=1.3 * weight.shape[-1] ** -0.5)
    return model.eval()


def text_weights(model: Any) -> dict[str, nn.Parameter]:
    return {
        name: weight
        for name, weight in model.named_parameters()
        if not name.startswith(("visual", "logit"))
    }


def titles(lengths: Sequence[int] = (5, 10, 0, 1, 7), *, eos: int = 49, seed: int = 0) -> Tensor:
    """`[48] words [eos] 0 0 ...`, words between 4 and 47."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros(len(lengths), 12, dtype=torch.int64)
    for row, length in zip(ids, lengths, strict=True):
        row[0] = 48
        row[1 : length + 1] = torch.randint(4, 48, (length,), generator=generator)
        row[length + 1] = eos
    return ids


def pruned(model: Any, base: Sequence[float], **changes: Any) -> PrunedText:
    settings: dict[str, Any] = {
        "score": "pre",
        "key": "first",
        "trained": (True,) * len(base),
        "temperature": (1.0,) * len(base),
        "straight_through": True,
        "cumulative": True,
        "multiply": False,
        "keys": "same",
        "weight": 0.5,
    }
    return PrunedText(model, TokenPruning(Pruning(base=tuple(base), **{**settings, **changes})))


def between(model: Any, ids: Tensor, layers: Sequence[int], **changes: Any) -> tuple[float, ...]:
    """Thresholds in the widest gap of the middle scores of what is left, layer by layer."""
    base = [NEVER] * 3
    for order, layer in enumerate(layers):
        base[layer] = KEEPS_ALL[changes["score"]]
        found = pruned(model, base, **changes)(ids, hard=True)
        left = (found.alive[layer] > 0) & found.prunable
        scores = found.scores[order][left].double().sort().values
        middle = scores[len(scores) // 5 : len(scores) * 3 // 5 + 2]
        widest = int(middle.diff().argmax())
        base[layer] = middle[widest : widest + 2].mean().item()
    return tuple(base)


@torch.no_grad()
def far(one: Tensor, other: Tensor) -> float:
    """How far apart, relative to the length of the second; of the title that changed most."""
    return float(((one - other).norm(dim=-1) / other.norm(dim=-1)).max())


# --- nothing to prune


@pytest.mark.parametrize(("options", "text"), TOWERS.values(), ids=TOWERS.keys())
def test_no_threshold_at_all_is_open_clip_to_the_bit(
    options: dict[str, Any], text: dict[str, Any]
) -> None:
    model = make(options, text)
    tower = pruned(model, (NEVER,) * 3)
    for lengths in ((1,), (0, 0), (5, 10, 0, 1, 7)):
        ids = titles(lengths, eos=text.get("eos_id", 49))
        found = tower(ids)
        expected = model.encode_text(ids)
        assert torch.equal(found.embeddings, expected)
        assert torch.equal(tower.embed(ids), expected)
    assert found.penalty.item() == 0
    assert found.kept().item() == 1
    assert found.scores == []
    assert [mask.tolist() for mask in found.alive] == [torch.ones(5, 12).tolist()] * 3
    found.penalty.backward()
    assert tower._pruning.delta.grad is not None
    assert tower._pruning.delta.grad.tolist() == [0, 0, 0]


@pytest.mark.parametrize(("options", "text"), TOWERS.values(), ids=TOWERS.keys())
@pytest.mark.parametrize(("keys", "multiply"), [("none", True), ("next", False), ("same", True)])
def test_thresholds_far_below_the_scores_are_open_clip(
    options: dict[str, Any], text: dict[str, Any], keys: str, multiply: bool
) -> None:
    model, ids = make(options, text), titles(eos=text.get("eos_id", 49))
    expected = model.encode_text(ids)
    for straight in (True, False):
        tower = pruned(
            model, (-1e9, NEVER, -1e9), keys=keys, multiply=multiply, straight_through=straight
        )
        for found in (tower(ids).embeddings, tower(ids, hard=True).embeddings, tower.embed(ids)):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert tower(ids).penalty.item() == pytest.approx(3 * 0.5 * 4 / 5)  # a title is empty


def test_start_end_and_padding_are_never_pruned() -> None:
    ids = titles()
    found = pruned(make(), (1e9,) * 3)(ids)
    words = torch.tensor([5, 10, 0, 1, 7])[:, None]
    place = torch.arange(12)
    assert torch.equal(found.prunable, (place >= 1) & (place <= words))
    for alive in found.alive:
        assert torch.equal(alive, (~found.prunable).float())
    assert found.kept().item() == 0
    assert found.penalty.item() == 0


def test_a_token_like_end_of_text_inside_a_title_ends_it() -> None:
    """As open_clip pools: at the first highest id, or the first end-of-text id."""
    for text, eos in ((PLAIN, 49), ({"pool_type": "eos", "eos_id": 3}, 3)):
        model, ids = make(PLAIN, text), titles((8,), eos=eos)
        ids[0, 4] = eos
        found = pruned(model, (-1e9,) * 3)(ids)
        assert found.prunable.sum().item() == 3
        torch.testing.assert_close(found.embeddings, model.encode_text(ids), rtol=1e-5, atol=1e-5)


# --- by value


@torch.no_grad()
def by_loops(
    model: Any, tower: PrunedText, ids: list[int], *, hard: bool, toggled: Collection[int] = ()
) -> tuple[Any, ...]:
    """One title in float64 without padding: its embedding, and masks by layer."""
    model, config = copy.deepcopy(model).double(), tower._pruning.config
    words, length = ids[: ids.index(49) + 1], ids.index(49) + 1
    thresholds = tower._pruning.thresholds().tolist()
    x = model.token_embedding.weight[words] + model.positional_embedding[:length]
    alive, masks, started = [1.0] * length, [], False
    for layer, block in enumerate(model.transformer.resblocks):
        packed = block.ln_1(x) @ block.attn.in_proj_weight.T + block.attn.in_proj_bias
        q, k, v = (part.view(length, 4, 8).transpose(0, 1) for part in packed.chunk(3, -1))
        out = alive if config.keys != "none" and started else [1.0] * length
        prunes = config.base[layer] != NEVER
        if prunes:
            score = [0.0] * length
            for head in range(4):
                table = weights(q[head], k[head], out)
                for i in range(length):
                    if config.score == "pre":
                        score[i] += float(q[head, i] @ k[head, 0]) / math.sqrt(8) / 4
                    elif config.score == "post":
                        score[i] += float(table[i, 0]) / 4
                    else:
                        parts = [out[j] * float(table[j, i]) for j in range(length)]
                        score[i] += sum(parts) / sum(out) / 4
            mask = [1.0] * length
            for i in range(1, length - 1):
                above = score[i] - thresholds[layer]
                step = hard or config.straight_through
                soft = 1 / (1 + math.exp(-above / config.temperature[layer]))
                mask[i] = float(above >= 0) if step else soft
                if i in toggled and not started:
                    mask[i] = 1 - mask[i]
            kept = zip(alive, mask, strict=True)
            alive = [old * new for old, new in kept] if config.cumulative else mask
            started = True
        elif not config.cumulative:
            alive = [1.0] * length
        if config.keys == "same":
            out = alive
        mixed = torch.cat([weights(q[h], k[h], out) @ v[h] for h in range(4)], -1)
        x = x + block.attn.out_proj(mixed)
        x = x + block.mlp(block.ln_2(x))
        if config.multiply:
            x = x * torch.tensor(alive, dtype=torch.float64)[:, None]
        masks.append(alive)
    return model.ln_final(x[-1]) @ model.text_projection, masks


def weights(query: Tensor, key: Tensor, gate: list[float]) -> Tensor:
    q, k, found = query.tolist(), key.tolist(), []
    for i in range(len(gate)):
        row = [0.0] * len(gate)
        for j in range(i + 1):
            raw = sum(a * b for a, b in zip(q[i], k[j], strict=True)) / math.sqrt(8)
            row[j] = math.exp(raw) * (1.0 if i == j else gate[j])
        found.append([weight / sum(row) for weight in row])
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize(
    ("cumulative", "multiply", "keys"),
    [
        (False, True, "none"),
        (True, True, "none"),
        (True, False, "next"),
        (True, False, "same"),
        (True, True, "same"),
    ],
)
@pytest.mark.parametrize(("score", "key"), [("pre", "first"), ("post", "first"), ("recv", "mean")])
@pytest.mark.parametrize("layers", [(0, 1, 2), (0,), (1,), (2,)])
def test_the_tower_is_that_of_plain_loops(
    layers: tuple[int, ...],
    score: str,
    key: str,
    cumulative: bool,
    multiply: bool,
    keys: str,
) -> None:
    model, ids = make(), titles((6, 3))
    how = {"score": score, "key": key, "keys": keys, "multiply": multiply, "cumulative": cumulative}
    how["temperature"] = (1.0 if score == "pre" else 0.1,) * 3
    base = between(model, ids, layers, **how)
    for straight, hard in ((False, False), (True, False), (False, True)):
        tower = pruned(model, base, straight_through=straight, **how)
        found = tower(ids, hard=hard)
        penalty = 0.0
        for b in range(2):
            embedding, masks = by_loops(model, tower, ids[b].tolist(), hard=hard)
            torch.testing.assert_close(found.embeddings[b].double(), embedding, rtol=0, atol=2e-5)
            for layer, mask in enumerate(masks):
                alive = found.alive[layer][b, : len(mask)].tolist()
                assert alive == pytest.approx(mask, abs=1e-5)
                priced = layer in layers or (cumulative and layer > min(layers))
                penalty += priced * 0.5 * sum(mask[1:-1]) / len(mask[1:-1]) / 2
        assert found.penalty.item() == pytest.approx(penalty, rel=1e-4)


@pytest.mark.parametrize(
    ("cumulative", "multiply", "keys"),
    [(False, True, "none"), (True, False, "next"), (True, False, "same"), (True, True, "same")],
)
@pytest.mark.parametrize("layers", [(0, 1, 2), (1,), (0, 2)])
def test_toggled_tokens_are_those_of_plain_loops(
    layers: tuple[int, ...], cumulative: bool, multiply: bool, keys: str
) -> None:
    """The other way round in the first layer that prunes; later ones judge for themselves."""
    model, ids = make(), titles((6, 3))
    how = {"score": "pre", "keys": keys, "multiply": multiply, "cumulative": cumulative}
    base = between(model, ids, layers, **how)
    toggled = torch.zeros(2, 8, dtype=torch.bool)
    places = [(1, 3, 4, 6), (2,)]
    for row, some in enumerate(places):
        toggled[row, list(some)] = True
    for straight, hard in ((False, False), (True, False), (False, True)):
        tower = pruned(model, base, straight_through=straight, **how)
        found, plain = tower(ids, hard=hard, toggled=toggled), tower(ids, hard=hard)
        if straight or hard:  # layer norm cancels soft masks
            assert far(found.embeddings, plain.embeddings) > 0.1
        for b in range(2):
            numbers = ids[b].tolist()
            embedding, masks = by_loops(model, tower, numbers, hard=hard, toggled=places[b])
            torch.testing.assert_close(found.embeddings[b].double(), embedding, rtol=0, atol=2e-5)
            for layer, mask in enumerate(masks):
                alive = found.alive[layer][b, : len(mask)].tolist()
                assert alive == pytest.approx(mask, abs=1e-5)
        first = found.alive[layers[0]] + plain.alive[layers[0]]
        torch.testing.assert_close(first[toggled], torch.ones(5), rtol=0, atol=1e-6)


@pytest.mark.parametrize("threshold", [-1e9, 1e9])
def test_toggling_takes_a_word_out_or_puts_it_back(threshold: float) -> None:
    """Without positions a title without a word is one that never had it."""
    model, ids = make(), titles((8,))
    with torch.no_grad():
        model.positional_embedding.zero_()
    tower = pruned(model, (threshold, NEVER, NEVER))
    for place in range(1, 9):
        toggled = torch.arange(10)[None] == place
        stays = ~toggled[0] if threshold < 0 else toggled[0] | torch.isin(ids[0, :10], special())
        words = ids[:, :10][:, stays]
        alone = torch.cat([words, torch.zeros(1, 12 - words.shape[1], dtype=torch.int64)], 1)
        found = tower(ids, hard=True, toggled=toggled).embeddings
        torch.testing.assert_close(found, model.encode_text(alone), rtol=0, atol=2e-5)


def special() -> Tensor:
    """Start and end of text."""
    return torch.tensor([48, 49])


def test_what_cannot_be_pruned_cannot_be_toggled() -> None:
    model, ids = make(), titles()
    for base in ((NEVER,) * 3, between(model, ids, (0, 2), score="pre")):
        tower = pruned(model, base)
        plain = tower(ids, hard=True)
        others = tower(ids, hard=True, toggled=~plain.prunable)
        none = tower(ids, hard=True, toggled=torch.zeros_like(plain.prunable))
        for found in (others, none):
            assert torch.equal(found.embeddings, plain.embeddings)
            assert all(map(torch.equal, found.alive, plain.alive))
    nothing = pruned(model, (NEVER,) * 3)
    assert torch.equal(
        nothing(ids, hard=True, toggled=plain.prunable).embeddings, model.encode_text(ids)
    )


@pytest.mark.parametrize("saves_memory", [False, True])
@pytest.mark.parametrize("layers", [(0,), (1,), (0, 2)])
def test_first_scores_are_those_of_the_tower_and_so_is_their_gradient(
    layers: tuple[int, ...], saves_memory: bool
) -> None:
    model, ids = make(), titles()
    tower = pruned(model, between(model, ids, layers, score="pre"))
    model.transformer.grad_checkpointing = saves_memory
    ran: list[int] = []
    for layer, block in enumerate(model.transformer.resblocks):
        block.mlp.register_forward_pre_hook(lambda *_, layer=layer: ran.append(layer))
    whole = tower(ids, hard=True)
    ran.clear()
    scores, prunable = tower.first_scores(ids)
    assert max(ran) == layers[0] == tower.first
    assert torch.equal(scores, whole.scores[0])
    assert torch.equal(prunable, whole.prunable)
    gradients = []
    for found in (scores, whole.scores[0]):
        model.zero_grad()
        found[prunable].sin().sum().backward()
        gradients.append({n: w.grad for n, w in text_weights(model).items() if w.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(value, gradients[1][name]) for name, value in gradients[0].items())
    assert pruned(model, (NEVER,) * 3).first is None


def test_kept_is_the_share_of_words_after_the_last_layer() -> None:
    model, ids = make(), titles()
    found = pruned(model, between(model, ids, (0, 2), score="pre"))(ids)
    words = found.alive[2][found.prunable]
    assert found.kept().item() == pytest.approx(words.mean().item())
    assert 0 < found.kept().item() < found.alive[0][found.prunable].mean().item() < 1
    empty = replace(found, prunable=torch.zeros_like(found.prunable))
    assert empty.kept().item() == 0


@pytest.mark.parametrize(("keys", "multiply"), [("none", True), ("next", False), ("same", True)])
def test_a_title_is_the_same_alone_and_beside_longer_ones(
    score: str, key: str, keys: str, multiply: bool
) -> None:
    model, ids = make(seed=1), titles()
    how = {"score": score, "key": key, "keys": keys, "multiply": multiply}
    tower = pruned(model, between(model, ids, (0, 1, 2), **how), **how)
    soft = pruned(model, tower._pruning.config.base, straight_through=False, **how)
    for run in (tower, soft):
        together = run(ids)
        for b in range(len(ids)):
            alone = run(ids[b : b + 1])
            torch.testing.assert_close(
                together.embeddings[b], alone.embeddings[0], rtol=0, atol=1e-5
            )
            for mask, single in zip(together.alive, alone.alive, strict=True):
                torch.testing.assert_close(mask[b, : single.shape[1]], single[0], rtol=0, atol=1e-5)


# --- inference


@pytest.mark.parametrize("keys", ["next", "same"])
@pytest.mark.parametrize(("seed", "layers"), [(0, (0, 1, 2)), (1, (1, 2)), (2, (0, 2)), (3, (0,))])
def test_dropping_tokens_is_the_same_as_hard_masks(
    score: str, key: str, keys: str, seed: int, layers: tuple[int, ...]
) -> None:
    model, ids = make(seed=seed), titles(seed=seed)
    how = {"score": score, "key": key, "keys": keys}
    base = between(model, ids, layers, **how)
    tower = pruned(model, base, **how)
    masked = tower(ids, hard=True)
    torch.testing.assert_close(tower.embed(ids), masked.embeddings, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        pruned(model, base, multiply=True, **how).embed(ids), masked.embeddings, rtol=0, atol=1e-5
    )
    kept = [int((alive * masked.prunable).sum()) for alive in masked.alive]
    assert [kept[layer] for layer in layers] == sorted({kept[layer] for layer in layers})[::-1]
    assert 0 < kept[-1] < int(masked.prunable.sum())


@pytest.mark.parametrize("keys", ["next", "same"])
def test_dropping_is_the_same_where_pruned_keys_stand_far_above_the_rest(
    score: str, key: str, keys: str
) -> None:
    """Trained towers put nearly all weight on few keys; these may be the pruned ones."""
    model, ids = make(), titles()
    with torch.no_grad():
        for block in model.transformer.resblocks:
            block.attn.in_proj_weight *= 6
    how = {"score": score, "key": key, "keys": keys}
    tower = pruned(model, between(model, ids, (0,), **how), **how)
    torch.testing.assert_close(
        tower.embed(ids), tower(ids, hard=True).embeddings, rtol=0, atol=2e-4
    )


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_score_on_its_threshold_is_kept_in_every_batch(score: str, key: str, layer: int) -> None:
    """Words that many titles share can be the very quantile that calibration finds."""
    model, ids = make(), titles((5, 10, 0, 1, 7) * 20)
    how = {"score": score, "key": key}
    keeps = [NEVER] * 3
    keeps[layer] = KEEPS_ALL[score]
    scores = pruned(model, keeps, **how)(ids, hard=True).scores[0]
    for title in range(5):
        for place in (1, 3, 7):
            keeps[layer] = scores[title, place].item()
            tower = pruned(model, keeps, **how)
            together = tower.embed(ids)[:5]
            alone = torch.cat([tower.embed(ids[row : row + 1]) for row in range(5)])
            torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("keys", "multiply"), [("none", True), ("next", False), ("same", True)])
@pytest.mark.parametrize("layers", [(), (0,), (0, 1), (2,)])
def test_masks_are_those_of_the_whole_tower_as_far_as_layers_prune(
    layers: tuple[int, ...], keys: str, multiply: bool
) -> None:
    model, ids = make(), titles()
    how = {"score": "pre", "keys": keys, "multiply": multiply}
    tower = pruned(model, between(model, ids, layers, **how), **how)
    alive, scores, prunable = tower.masks(ids)
    whole = tower(ids, hard=True)
    assert len(alive) == (layers[-1] + 1 if layers else 0)
    assert all(map(torch.equal, alive, whole.alive))
    assert len(scores) == len(layers)
    assert all(map(torch.equal, scores, whole.scores))
    assert torch.equal(prunable, whole.prunable)


@pytest.mark.parametrize(("options", "text"), TOWERS.values(), ids=TOWERS.keys())
@pytest.mark.parametrize("base", [(NEVER,) * 3, (NEVER, 0.0, NEVER)])
@pytest.mark.parametrize(("keys", "multiply"), [("none", True), ("next", False), ("same", True)])
def test_no_titles_give_no_embeddings(
    options: dict[str, Any], text: dict[str, Any], base: Sequence[float], keys: str, multiply: bool
) -> None:
    model, ids = make(options, text), titles(())
    tower = pruned(model, base, keys=keys, multiply=multiply)
    for hard in (True, False):
        found = tower(ids, hard=hard)
        assert found.embeddings.shape == model.encode_text(ids).shape
        assert [len(part) for part in found.alive] == [0, 0, 0]
        assert (found.penalty.item(), found.kept().item()) == (0, 0)
    assert torch.equal(tower.embed(ids), model.encode_text(ids))


@pytest.mark.parametrize(("keys", "widths"), [("same", [5, 5, 5]), ("next", [12, 5, 5])])
def test_dropped_tokens_cost_no_work(keys: str, widths: list[int]) -> None:
    model, ids = make(), titles((10, 4, 0))
    everything = pruned(model, (0.0, NEVER, NEVER))(ids)
    score = everything.scores[0][0, 1:11].sort().values
    threshold = score[6:8].mean().item()  # three of ten words stay, with the start and the end
    ids = ids[[0, 2, 2]]
    seen: list[int] = []
    for block in model.transformer.resblocks:
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    pruned(model, (threshold, NEVER, NEVER), keys=keys).embed(ids)
    assert seen == widths


def test_straight_through_training_sees_what_inference_sees() -> None:
    model, ids = make(), titles()
    for keys, multiply in (("none", True), ("next", False), ("same", True)):
        how = {"score": "pre", "keys": keys, "multiply": multiply}
        tower = pruned(model, between(model, ids, (0, 1, 2), **how), **how)
        soft, hard = tower(ids), tower(ids, hard=True)
        # Hard masks need no gradient, and go through fused attention.
        torch.testing.assert_close(soft.embeddings, hard.embeddings, atol=1e-5, rtol=1e-5)
        assert torch.equal(soft.penalty, hard.penalty)


# --- gradients


@pytest.mark.parametrize("straight", [True, False])
@pytest.mark.parametrize(("options", "text"), TOWERS.values(), ids=TOWERS.keys())
def test_gradients_reach_all_text_weights_and_thresholds(
    options: dict[str, Any], text: dict[str, Any], straight: bool
) -> None:
    model, ids = make(options, text), titles(eos=text.get("eos_id", 49))
    for loss in ("embeddings", "penalty"):
        tower = pruned(model, between(model, ids, (0,), score="pre"), straight_through=straight)
        model.zero_grad()
        value = tower(ids)
        (value.penalty if loss == "penalty" else value.embeddings.square().sum()).backward()
        gradient = tower._pruning.delta.grad
        assert gradient is not None
        assert gradient[0].abs() > 1e-4
        assert gradient[1:].tolist() == [0, 0]
        for name, weight in text_weights(model).items():
            if loss == "embeddings" or name.endswith(("token_embedding.weight", "0.ln_1.weight")):
                assert weight.grad is not None, name
                assert bool(weight.grad.isfinite().all()), name
                assert bool(weight.grad.any()), name


@pytest.mark.parametrize(("keys", "multiply"), [("none", True), ("next", False), ("same", True)])
def test_the_gradient_of_soft_thresholds_is_that_of_differences(keys: str, multiply: bool) -> None:
    model, ids = make(), titles()
    how = {"score": "pre", "keys": keys, "multiply": multiply, "straight_through": False}
    tower = pruned(model, between(model, ids, (0, 1, 2), **how), **how)
    delta = tower._pruning.delta

    def loss() -> Tensor:
        found = tower(ids)
        return found.embeddings[:, 0].sum() + found.penalty

    loss().backward()
    assert delta.grad is not None
    for layer in range(3):
        values = []
        for step in (0.01, -0.01):
            with torch.no_grad():
                delta[layer] = step
                values.append(loss().item())
                delta[layer] = 0
        difference = (values[0] - values[1]) / 0.02
        assert delta.grad[layer].item() == pytest.approx(difference, rel=0.02, abs=2e-3)


def test_hard_masks_give_thresholds_no_gradient() -> None:
    model, ids = make(), titles()
    found = pruned(model, between(model, ids, (0, 1, 2), score="pre"))(ids, hard=True)
    assert all(not mask.requires_grad for mask in found.alive)
    assert not found.penalty.requires_grad


@pytest.mark.parametrize(("keys", "multiply"), [("none", True), ("same", True)])
def test_under_autocast_scores_masks_and_penalty_are_float32(
    score: str, key: str, keys: str, multiply: bool
) -> None:
    model, ids = make(), titles()
    how = {"score": score, "key": key, "keys": keys, "multiply": multiply}
    how |= {"straight_through": False, "temperature": (1e-3,) * 3}
    tower = pruned(model, between(model, ids, (0, 1, 2), **how), **how)
    with torch.autocast("cpu", torch.bfloat16):
        found = tower(ids)
    assert {part.dtype for part in (*found.scores, *found.alive, found.penalty)} == {torch.float32}
    alive = torch.ones(found.prunable.shape)
    for layer, scores in enumerate(found.scores):
        threshold = tower._pruning.thresholds()[layer]
        mask = torch.sigmoid((scores - threshold) / 1e-3).where(found.prunable, torch.ones(()))
        alive = alive * mask
        assert torch.equal(found.alive[layer], alive)
    # The first layer's input is the same; what comes after it is bfloat16's.
    torch.testing.assert_close(found.scores[0], tower(ids).scores[0], rtol=1e-5, atol=1e-5)


def test_under_autocast_a_step_of_2e_5_moves_masks_of_the_tower() -> None:
    model, ids = make(), titles((5,))
    how = {"straight_through": False, "temperature": (1e-4,) * 3}
    threshold = pruned(model, (0.0, NEVER, NEVER))(ids).scores[0][0, 2].item()
    tower = pruned(model, (threshold, NEVER, NEVER), **how)
    with torch.autocast("cpu", torch.bfloat16):
        before = tower(ids).alive[0][0, 2].item()
        with torch.no_grad():
            tower._pruning.delta += 2e-5
        after = tower(ids).alive[0][0, 2].item()
    assert before == pytest.approx(0.5, abs=1e-6)
    # float32 holds a threshold of this size to 1e-7 at best: a thousandth of T.
    assert after == pytest.approx(1 / (1 + math.exp(0.2)), abs=1e-3)


@pytest.mark.parametrize("keys", ["next", "same"])
def test_queries_keys_and_values_are_computed_once_a_layer(keys: str) -> None:
    model, ids = make(), titles()
    tower = pruned(model, between(model, ids, (0, 1), score="pre", keys=keys), keys=keys)
    calls = [0, 0, 0]
    for layer, block in enumerate(model.transformer.resblocks):
        block.ln_1.register_forward_hook(
            lambda *_, layer=layer: calls.__setitem__(layer, calls[layer] + 1)
        )
    tower(ids)
    # The first layer of `next` has nothing to gate: open_clip's own attention runs there.
    assert calls == [1 if keys == "same" else 2, 1, 1]


@pytest.mark.parametrize(("keys", "multiply"), [("none", True), ("next", False), ("same", True)])
@pytest.mark.parametrize("straight", [True, False])
def test_checkpointed_activations_give_the_same_gradients(
    keys: str, multiply: bool, straight: bool
) -> None:
    model, ids = make(), titles()
    how = {"score": "pre", "keys": keys, "multiply": multiply, "straight_through": straight}
    base = between(model, ids, (0, 1), **how)
    calls: list[int] = []
    model.transformer.resblocks[1].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    found = []
    for saves_memory in (False, True):
        tower = pruned(model, base, **how)
        model.transformer.grad_checkpointing = saves_memory
        model.zero_grad()
        calls.clear()
        value = tower(ids)
        (value.embeddings.square().sum() + value.penalty).backward()
        assert len(calls) == 1 + saves_memory  # again for the gradients
        gradients = [weight.grad for weight in text_weights(model).values()]
        found.append([value.embeddings, tower._pruning.delta.grad, *value.alive, *gradients])
        calls.clear()
        with torch.no_grad():
            tower(ids)
        assert len(calls) == 1
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


def test_words_that_two_layers_prune_come_back_one_layer_after_the_other() -> None:
    """The product of masks gives the second no gradient until the first has opened."""
    model, ids = make(), titles((10, 9, 8, 7, 10, 6))
    free = pruned(model, (-1e9, -1e9, NEVER))(ids)
    highest = [scores[free.prunable].max().item() for scores in free.scores]
    for keys, multiply in (("none", True), ("next", False), ("same", False)):
        tower = pruned(
            model, (highest[0] + 1, highest[1] + 1, NEVER),
            keys=keys, multiply=multiply, temperature=(2.0,) * 3,
        )  # fmt: skip
        delta = tower._pruning.delta
        optimizer = torch.optim.Adam([delta], lr=0.1)
        for step in range(60):
            found = tower(ids)
            if not step:
                assert found.kept().item() == 0
            optimizer.zero_grad()
            (found.embeddings - free.embeddings.detach()).square().mean().backward()
            if not step:
                assert delta.grad is not None
                assert [value != 0 for value in delta.grad.tolist()] == [True, False, False]
            optimizer.step()
        assert tower(ids).kept().item() > 0.3


# --- towers of another kind


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (CUSTOM, {"no_causal_mask": True, "pool_type": "last"}),  # SigLIP
        (CUSTOM, {"no_causal_mask": True}),
        (PLAIN, {"no_causal_mask": True}),
        (CUSTOM, {"embed_cls": True}),  # CoCa
        (CUSTOM, {"pool_type": "last"}),
        (PLAIN, {"pool_type": "first"}),
        (PLAIN, {"qk_norm": True}),  # blocks with attention of open_clip's own
        (CUSTOM, {"block_type": "custom"}),
    ],
)
def test_other_towers_are_refused(options: dict[str, Any], text: dict[str, Any]) -> None:
    model = make(options, text)
    with pytest.raises(ModelError, match="token pruning needs a causal text transformer"):
        pruned(model, (0.0,) * 3)


def test_a_tower_that_is_not_open_clips_own_is_refused() -> None:
    class HFTextEncoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transformer = nn.TransformerEncoderLayer(16, 2)
            self.pooler = nn.Identity()

    model = nn.Module()
    model.text = HFTextEncoder()
    with pytest.raises(ModelError, match="this model's is HFTextEncoder"):
        text_tower(model)
    with pytest.raises(ModelError, match="Identity"):
        text_tower(nn.Identity())


def test_a_pruning_for_another_number_of_layers_is_refused() -> None:
    with pytest.raises(ModelError, match="the text tower has 3 layers and the pruning is for 2"):
        pruned(make(), (0.0, 0.0))


# --- the traps, each with its remedy


def at_a_tenth(**changes: Any) -> float:
    """What a mask of 0.1 on all words of layer 1 of 2 does to the embedding."""
    model, ids = make(layers=2), titles((5, 10, 7))
    wide = 1e6
    how = {"temperature": (wide, 1.0), "straight_through": False, **changes}
    tower = pruned(model, (wide * math.log(9), NEVER), **how)
    found = tower(ids)
    words = found.alive[0][found.prunable]
    torch.testing.assert_close(words, torch.full_like(words, 0.1), rtol=1e-4, atol=0)
    return far(found.embeddings, model.encode_text(ids))


def test_layer_norm_cancels_a_soft_mask_and_gated_keys_do_not() -> None:
    assert at_a_tenth(multiply=True, keys="none") < 0.02
    assert at_a_tenth(multiply=False, keys="next") > 0.1
    assert at_a_tenth(multiply=False, keys="same") > 0.2


def test_a_pruned_token_comes_back_without_cumulative_masks() -> None:
    model, ids = make(), titles()
    base = between(model, ids, (0, 1, 2), score="pre")

    def came_back(found: PrunedTexts) -> int:
        steps = zip(found.alive, found.alive[1:], strict=False)
        return sum(int(((before == 0) & (after == 1)).sum()) for before, after in steps)

    assert came_back(pruned(model, base, multiply=True, keys="none", cumulative=False)(ids)) > 3
    assert came_back(pruned(model, base, multiply=True, keys="none")(ids)) == 0
    assert came_back(pruned(model, base)(ids)) == 0


def test_a_zeroed_token_still_takes_attention_and_a_gated_one_does_not() -> None:
    """Its state is 0, so layer norm makes it the same constant for all: a key like any other."""
    model, ids = make(), titles((8, 8))
    base = (*between(model, ids, (0,), score="pre")[:1], NEVER, NEVER)
    zeroed = pruned(model, base, multiply=True, keys="none")(ids, hard=True)
    gone = pruned(model, base, keys="next")
    assert far(zeroed.embeddings, gone(ids, hard=True).embeddings) > 0.1
    torch.testing.assert_close(gone.embed(ids), gone(ids, hard=True).embeddings, rtol=0, atol=1e-5)


def change_of_content(**changes: Any) -> float:
    """What it does to the embedding to put another word, pruned as well, for a pruned one.

    Layer 0 alone prunes; the raw score of a word there depends on nothing but itself.
    """
    model = make()
    ids = titles((8,)).repeat(44, 1)
    ids[:, 3] = torch.arange(4, 48)
    scores = pruned(model, (-1e9, NEVER, NEVER))(ids).scores[0]
    base = (scores[:, 3].median().item() + 1e-4, NEVER, NEVER)
    found = pruned(model, base, **changes)(ids)
    out = found.alive[0][:, 3] == 0
    assert 20 < int(out.sum()) < 44
    others = torch.arange(12) != 3
    masks = found.alive[0][out][:, others[: found.prunable.shape[1]]]
    assert bool((masks == masks[0]).all())
    embeddings = found.embeddings[out]
    return far(embeddings, embeddings[:1].expand_as(embeddings))


def test_the_layer_that_scores_leaks_unless_its_keys_are_gated() -> None:
    assert change_of_content(keys="same") < 1e-6
    assert change_of_content(keys="same", multiply=True) < 1e-6
    assert change_of_content(keys="next") > 0.1
    assert change_of_content(keys="none", multiply=True) > 0.1


@pytest.mark.parametrize("straight", [True, False])
def test_the_last_mask_is_vacuous_unless_its_own_keys_are_gated(straight: bool) -> None:
    model, ids = make(), titles()
    for keys, multiply in (("none", True), ("next", False), ("next", True), ("same", False)):
        how = {"score": "pre", "keys": keys, "multiply": multiply, "straight_through": straight}
        tower = pruned(model, between(model, ids, (0, 1, 2), **how), **how)
        tower(ids).embeddings.square().sum().backward()
        gradient = tower._pruning.delta.grad
        assert gradient is not None
        assert gradient[0].item() != 0
        assert (gradient[2].item() != 0) == (keys == "same")


def test_the_printed_recipe_neither_trains_nor_prices_its_last_mask() -> None:
    model, ids = make(), titles()
    config = paper_pruning(3)
    found = pruned(model, (0.0,) * 3, score="post", straight_through=False)(ids)
    # Its thresholds moved among the scores, where its masks are neither all 0 nor all 1.
    middles = tuple(scores[found.prunable].median().item() for scores in found.scores)
    moved = config.model_copy(update={"base": middles, "temperature": (0.05,) * 3})
    tower = PrunedText(model, TokenPruning(moved))
    found = tower(ids)
    words = found.prunable.sum(1).clamp_min(1)
    shares = [((mask * found.prunable).sum(1) / words).mean().item() for mask in found.alive]
    assert 0.1 < shares[2] < 0.9
    assert found.penalty.item() == pytest.approx(0.1 * (shares[0] + shares[1]), rel=1e-5)
    found.penalty.backward()
    gradient = tower._pruning.delta.grad
    assert gradient is not None
    assert [value.item() != 0 for value in gradient] == [True, True, False]
