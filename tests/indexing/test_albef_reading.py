"""Texts through ALBEF: against transformers, against plain matrices, without what is dropped."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from indexing.errors import ModelError
from indexing.models.albef import reading
from indexing.models.albef.config import AlbefConfig
from indexing.models.albef.network import AlbefModel
from indexing.models.albef.reading import Reader, States, check_cross, cross_scores
from indexing.models.token_pruning import Pruning, TokenPruning, paper_pruning, token_scores
from indexing.models.torchvision_repair import import_torchvision

pytestmark = pytest.mark.usefixtures("one_thread")
NEVER = -math.inf
KEEPS_ALL = {"pre": -1e9, "post": 0.0, "recv": 0.0}
TEXT, LAYERS, HEADS, LENGTH = 2, 4, 4, 12
COUNT = 2 * LAYERS - TEXT  # attentions: self 0 to 3, cross 4 and 5
ORDER = (0, 1, 2, 4, 3, 5)  # as they are passed
SELF, CROSS = (0, 1, 2, 3), (4, 5)
CROSS_PAIRS = [("pre", "first"), ("pre", "mean"), ("post", "first")]
# How masks act: cumulative, multiply, keys.
ACTS = [
    (False, True, "none"),
    (True, True, "none"),
    (True, False, "next"),
    (True, False, "same"),
    (True, True, "same"),
]


def make(seed: int = 0) -> AlbefModel:
    """A model with weights so large that attention is far from uniform."""
    torch.manual_seed(seed)
    config = AlbefConfig(
        image_size=8, patch_size=4, vision_width=32, vision_layers=1, vision_heads=4,
        vocab_size=50, text_width=32, text_layers=LAYERS, text_heads=HEADS,
        text_intermediate=48, fusion_layer=TEXT, max_positions=16, embed_dim=8,
        max_text_length=LENGTH,
    )  # fmt: skip
    model = AlbefModel(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() < 2:
                weight.add_(0.2 * torch.randn_like(weight))
            elif "embeddings" in name:
                weight.normal_()
            elif "query" in name or "key" in name:
                weight.normal_(std=2 * weight.shape[-1] ** -0.5)
            else:
                weight.normal_(std=1.3 * weight.shape[-1] ** -0.5)
    return model.eval()


shared = lru_cache(make)  # for tests that leave it as it is


@lru_cache
def in_double(model: AlbefModel) -> Any:
    """Its text and fusion encoder in float64."""
    return copy.deepcopy(model.text_encoder.bert).double()


def titles(lengths: Sequence[int] = (5, 10, 0, 1, 7), seed: int = 0) -> tuple[Tensor, Tensor]:
    """`[CLS] words [SEP] [PAD] ...` and the mask; 2, 3 and 0, words between 4 and 49."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros(len(lengths), LENGTH, dtype=torch.int64)
    for row, length in zip(ids, lengths, strict=True):
        row[0], row[length + 1] = 2, 3
        row[1 : length + 1] = torch.randint(4, 50, (length,), generator=generator)
    return ids, (ids > 0).long()


def pictures(count: int, seed: int = 1) -> Tensor:
    """States of a picture encoder."""
    return torch.randn(count, 5, 32, generator=torch.Generator().manual_seed(seed))


def thresholds(**values: float) -> tuple[float, ...]:
    """`thresholds(a0=0.5)`: attention 0 alone prunes."""
    return tuple(values.get(f"a{number}", NEVER) for number in range(COUNT))


def pruned(base: Sequence[float], **changes: Any) -> TokenPruning:
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
    return TokenPruning(Pruning(base=tuple(base), **{**settings, **changes}))


def read(
    model: AlbefModel,
    pruning: TokenPruning | None,
    ids: Tensor,
    image: Tensor | None,
    *,
    hard: bool = False,
    **options: Any,
) -> States:
    """Through the text encoder, and with pictures through the fusion encoder."""
    reader = Reader(model, pruning)
    texts = reader.read(ids, (ids > 0).long(), hard=hard, **options)
    if image is None:
        return texts
    return reader.fuse(texts, image, hard=hard, follow=options.get("follow"))


@torch.no_grad()
def between(
    model: AlbefModel, ids: Tensor, image: Tensor, numbers: Collection[int], **changes: Any
) -> tuple[float, ...]:
    """Thresholds in the widest gap of the lower scores of what is left, attention by
    attention: each drops some of it."""
    base = [NEVER] * COUNT
    for number in sorted(numbers, key=ORDER.index):
        base[number] = KEEPS_ALL[changes.get("score", "pre")]
        found = read(model, pruned(base, **changes), ids, image, hard=True)
        left = (dict(found.trail)[number] > 0) & found.prunable
        scores = dict(found.scores)[number][left].double().sort().values
        gaps = scores.diff()[len(scores) // 10 : max(1, len(scores) * 2 // 5)]
        assert gaps.max() > 1e-4  # else rounding may decide
        widest = int(gaps.argmax()) + len(scores) // 10
        base[number] = scores[widest : widest + 2].mean().item()
    return tuple(base)


@torch.no_grad()
def far(one: Tensor, other: Tensor) -> float:
    """How far apart, relative to the length of the second; of the row that changed most."""
    return float(((one - other).norm(dim=-1) / other.norm(dim=-1)).max())


def text_weights(model: AlbefModel) -> dict[str, Tensor]:
    return {name: w for name, w in model.named_parameters() if "encoder.bert" in name}


# --- nothing to prune


@pytest.fixture(scope="module")
def bert() -> Any:
    import_torchvision()
    from transformers.models.bert import modeling_bert

    return modeling_bert


def bert_config(bert: Any, layers: int, **options: Any) -> Any:
    config = bert.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=layers, num_attention_heads=HEADS,
        intermediate_size=48, max_position_embeddings=16, **options,
    )  # fmt: skip
    config._attn_implementation = "eager"
    return config


@torch.no_grad()
def test_without_pruning_it_is_bert(bert: Any) -> None:
    model, (ids, mask) = shared(), titles()
    image = pictures(5)
    other = bert.BertModel(bert_config(bert, TEXT), add_pooling_layer=False).eval()
    missing, _ = other.load_state_dict(model.text_encoder.bert.state_dict(), strict=False)
    assert missing == ["embeddings.token_type_embeddings.weight"]  # which ALBEF has not
    other.embeddings.token_type_embeddings.weight.zero_()
    x = other(ids, attention_mask=mask).last_hidden_state
    texts = Reader(model, None).read(ids, mask)
    torch.testing.assert_close(texts.x[mask > 0], x[mask > 0], rtol=1e-5, atol=1e-5)
    hidden = torch.where(mask > 0, 0.0, torch.finfo().min)[:, None, None, :]
    for number in range(TEXT, LAYERS):
        options = {"is_decoder": True, "add_cross_attention": True}
        layer = bert.BertLayer(bert_config(bert, 1, **options), layer_idx=0).eval()
        weights = model.text_encoder.bert.encoder.layer[number].state_dict()
        layer.load_state_dict(weights)
        found = layer(x, attention_mask=hidden, encoder_hidden_states=image)
        x = found[0] if isinstance(found, tuple) else found
    fused = Reader(model, None).fuse(texts, image)
    torch.testing.assert_close(fused.x[mask > 0], x[mask > 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("cumulative", "multiply", "keys"), ACTS)
def test_no_threshold_at_all_is_no_pruning_to_the_bit(
    cumulative: bool, multiply: bool, keys: str
) -> None:
    model, (ids, _) = make(), titles()
    image = pictures(5)
    plain = read(model, None, ids, image)
    acts = {"cumulative": cumulative, "multiply": multiply, "keys": keys}
    pruning = pruned((NEVER,) * COUNT, **acts)
    for hard in (False, True):
        found = read(model, pruning, ids, image, hard=hard)
        assert torch.equal(found.x, plain.x)
        assert torch.equal(found.alive, torch.ones(5, LENGTH))
        assert (found.scores, found.masks, found.began) == ((), (), False)
        assert found.kept().item() == 1
        penalty = Reader(model, pruning).penalty(found)
        assert penalty.item() == 0
    penalty.backward()
    assert pruning.delta.grad is not None
    assert pruning.delta.grad.tolist() == [0] * COUNT
    assert Reader(model, None).penalty(plain).item() == 0


@pytest.mark.parametrize(("cumulative", "multiply", "keys"), ACTS)
def test_thresholds_far_below_the_scores_change_nothing(
    cumulative: bool, multiply: bool, keys: str
) -> None:
    model, (ids, mask) = shared(), titles()
    image = pictures(5)
    plain = read(model, None, ids, image)
    acts = {"cumulative": cumulative, "multiply": multiply, "keys": keys}
    for straight, hard in ((True, False), (False, False), (True, True)):
        pruning = pruned((-1e9,) * COUNT, straight_through=straight, **acts)
        found = read(model, pruning, ids, image, hard=hard)
        torch.testing.assert_close(found.x[mask > 0], plain.x[mask > 0], rtol=5e-5, atol=5e-5)
        # 6 attentions at 0.5 keep all of 4 titles; the fifth has no words.
        assert Reader(model, pruning).penalty(found).item() == pytest.approx(6 * 0.5 * 4 / 5)


# --- by plain matrices


class ByHand:
    """One text in float64 without padding, one attention after the other."""

    @torch.no_grad()
    def __init__(
        self,
        model: AlbefModel,
        pruning: TokenPruning,
        ids: Sequence[int],
        image: Tensor | None,
        *,
        hard: bool = False,
        toggled: Collection[int] = (),
        exempt: Collection[int] = (),
    ) -> None:
        self.config, self.taus = pruning.config, pruning.thresholds().tolist()
        self.hard, self.toggled = hard, toggled
        self.words = [place for place in range(1, len(ids) - 1) if place not in exempt]
        bert = in_double(model)
        self.alive = torch.ones(len(ids), dtype=torch.float64)
        self.scores: dict[int, Tensor] = {}
        self.masks: dict[int, Tensor] = {}
        self.after: dict[int, Tensor] = {}
        words = bert.embeddings.word_embeddings.weight[list(ids)]
        embedded = words + bert.embeddings.position_embeddings.weight[: len(ids)]
        self.x = bert.embeddings.LayerNorm(embedded)
        for number, layer in enumerate(bert.encoder.layer[: TEXT if image is None else LAYERS]):
            self.one_layer(number, layer, None if number < TEXT else image)

    def one_layer(self, number: int, layer: Any, image: Tensor | None) -> None:
        config, x = self.config, self.x
        gate = self.alive if config.keys != "none" else torch.ones_like(self.alive)
        q, k, v = heads_of(layer.attention, x, x)
        raw = q @ k.mT / math.sqrt(8)
        if not config.cumulative:
            self.alive = torch.ones_like(self.alive)
        if config.base[number] != NEVER:
            self.mask(number, self.self_scores(raw, gate))
        self.after[number] = self.alive
        if config.keys == "same":
            gate = self.alive
        x = added(layer.attention.output, gated(raw, gate) @ v, x)
        if image is not None:
            q, k, v = heads_of(layer.crossattention, x, image.double())
            raw, crossing = q @ k.mT / math.sqrt(8), number - TEXT + LAYERS
            if config.base[crossing] != NEVER:
                columns = {
                    ("pre", "first"): raw[:, :, 0],
                    ("pre", "mean"): raw.mean(-1),
                    ("post", "first"): raw.softmax(-1)[:, :, 0],
                }
                self.mask(crossing, columns[config.score, config.key].mean(0))
            self.after[crossing] = self.alive
            x = added(layer.crossattention.output, raw.softmax(-1) @ v, x)
        inner = functional.gelu(layer.intermediate.dense(x))
        x = layer.output.LayerNorm(layer.output.dense(inner) + x)
        self.x = x * self.alive[:, None] if config.multiply else x

    def self_scores(self, raw: Tensor, gate: Tensor) -> Tensor:
        table = gated(raw, gate)
        columns = {
            ("pre", "first"): raw[:, :, 0],
            ("pre", "eot"): raw[:, :, -1],
            ("pre", "eot_query"): raw[:, -1, :],
            ("pre", "mean"): (raw * gate).sum(-1) / gate.sum(),
            ("post", "first"): table[:, :, 0],
            ("post", "eot_query"): table[:, -1, :],
            ("recv", "mean"): (table * gate[:, None]).sum(1) / gate.sum(),
        }
        return columns[self.config.score, self.config.key].mean(0)

    def mask(self, number: int, scores: Tensor) -> None:
        """Eq. 3, token by token."""
        mask = torch.ones_like(self.alive)
        for place in self.words:
            above = float(scores[place]) - self.taus[number]
            soft = 1 / (1 + math.exp(-above / self.config.temperature[number]))
            step = self.hard or self.config.straight_through
            mask[place] = float(above >= 0) if step else soft
            if place in self.toggled and not self.masks:
                mask[place] = 1 - mask[place]
        self.scores[number], self.masks[number] = scores, mask
        self.alive = self.alive * mask


def heads_of(attention: Any, x: Tensor, memory: Tensor) -> Iterator[Tensor]:
    """Queries, keys and values, [heads, n, 8]."""
    for projection, part in (("query", x), ("key", memory), ("value", memory)):
        yield getattr(attention.self, projection)(part).view(-1, HEADS, 8).transpose(0, 1)


def gated(raw: Tensor, gate: Tensor) -> Tensor:
    """Attention in which key j counts `gate[j]`, and the token itself 1."""
    gates = gate.expand(len(gate), -1).clone().fill_diagonal_(1)
    table = gates * (raw - raw.amax(-1, keepdim=True)).exp()
    return table / table.sum(-1, keepdim=True)


def added(output: Any, attended: Tensor, x: Tensor) -> Tensor:
    found: Tensor = output.LayerNorm(output.dense(attended.transpose(0, 1).flatten(1)) + x)
    return found


def compare(found: States, row: int, by_hand: ByHand) -> None:
    length = len(by_hand.x)
    close: dict[str, Any] = {"rtol": 0, "atol": 1e-4}
    torch.testing.assert_close(found.x[row, :length].double(), by_hand.x, **close)
    torch.testing.assert_close(found.alive[row, :length].double(), by_hand.alive, **close)
    for number, after in found.trail:
        torch.testing.assert_close(after[row, :length].double(), by_hand.after[number], **close)
    assert dict(found.scores).keys() == by_hand.scores.keys()
    for number, scores in found.scores:
        torch.testing.assert_close(scores[row, :length].double(), by_hand.scores[number], **close)


def check_by_hand(base: Sequence[float], model: AlbefModel, ids: Tensor, **how: Any) -> None:
    image = pictures(len(ids))
    for straight, hard in ((False, False), (True, False), (False, True)):
        pruning = pruned(base, straight_through=straight, **how)
        found = read(model, pruning, ids, image, hard=hard)
        penalty = 0.0
        for row, text in enumerate(ids.tolist()):
            by_hand = ByHand(model, pruning, text[: text.index(3) + 1], image[row], hard=hard)
            compare(found, row, by_hand)
            masks = by_hand.masks
            if pruning.config.cumulative:  # from the first that prunes on
                first = next(n for n in ORDER if base[n] != NEVER)
                masks = {n: by_hand.after[n] for n in ORDER[ORDER.index(first) :]}
            penalty += sum(float(mask[by_hand.words].mean()) for mask in masks.values())
        price = Reader(model, pruning).penalty(found).item()
        assert price == pytest.approx(0.5 * penalty / len(ids), rel=1e-4)


@pytest.mark.parametrize(("cumulative", "multiply", "keys"), ACTS)
@pytest.mark.parametrize("numbers", [(1, 2), (4,), (0, 4), (3, 5), range(COUNT)])
def test_states_masks_and_scores_are_those_of_plain_matrices(
    numbers: Collection[int], cumulative: bool, multiply: bool, keys: str
) -> None:
    model, (ids, _) = shared(), titles((6, 3))
    how = {"cumulative": cumulative, "multiply": multiply, "keys": keys}
    check_by_hand(between(model, ids, pictures(2), numbers, **how), model, ids, **how)


@pytest.mark.parametrize(("cumulative", "multiply", "keys"), [ACTS[0], ACTS[2], ACTS[4]])
def test_every_score_is_that_of_plain_matrices(
    score: str, key: str, cumulative: bool, multiply: bool, keys: str
) -> None:
    """All attentions prune, or where a cross-attention has no such score, the others."""
    model, (ids, _) = shared(seed=1), titles((6, 9, 10))
    numbers = range(COUNT) if (score, key) in CROSS_PAIRS else SELF
    how = {"score": score, "key": key, "temperature": (1.0 if score == "pre" else 0.1,) * COUNT}
    how |= {"cumulative": cumulative, "multiply": multiply, "keys": keys}
    check_by_hand(between(model, ids, pictures(3), numbers, **how), model, ids, **how)


@pytest.mark.parametrize(("score", "key"), CROSS_PAIRS)
def test_cross_scores_are_sums_over_plain_loops(score: Any, key: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    query = 2 * torch.randn(2, 3, 4, 5, generator=generator)
    keys = torch.randn(2, 3, 6, 5, generator=generator)
    found = cross_scores(query, keys, score, key)
    assert found.dtype == torch.float32
    for b in range(2):
        for i in range(4):
            expected = 0.0
            for head in range(3):
                raw = [
                    sum(q * k for q, k in zip(query[b, head, i].tolist(), one, strict=True))
                    / math.sqrt(5)
                    for one in keys[b, head].tolist()
                ]
                total = sum(map(math.exp, raw))
                expected += {
                    ("pre", "first"): raw[0],
                    ("pre", "mean"): sum(raw) / 6,
                    ("post", "first"): math.exp(raw[0]) / total,
                }[score, key] / 3
            assert found[b, i].item() == pytest.approx(expected, rel=1e-5)


def test_the_printed_recipe_multiplies_the_output_of_layers_by_their_own_masks() -> None:
    """In a fusion layer by that of self-attention times that of cross-attention."""
    model, (ids, mask) = make(), titles()
    image, outputs = pictures(5), []
    for layer in model.text_encoder.bert.encoder.layer:
        layer.output.register_forward_hook(lambda *args: outputs.append(args[2]))
    config = paper_pruning(COUNT).model_copy(update={"temperature": (0.05,) * COUNT})
    free = read(model, TokenPruning(config), ids, image)
    middles = tuple(dict(free.scores)[n][free.prunable].median().item() for n in range(COUNT))
    pruning = TokenPruning(config.model_copy(update={"base": middles}))
    reader = Reader(model, pruning)
    outputs.clear()
    texts = reader.read(ids, mask)
    own = {n: pruning.mask(n, found, texts.prunable) for n, found in texts.scores}
    assert 0.2 < own[1][texts.prunable].mean() < 0.8
    assert torch.equal(texts.x, outputs[1] * own[1][..., None])
    outputs.clear()
    fused = reader.fuse(texts, image)
    own = {n: pruning.mask(n, found, texts.prunable) for n, found in fused.scores}
    assert torch.equal(fused.x, outputs[1] * (own[3] * own[5])[..., None])
    assert all(torch.equal(mask, own[n]) for n, mask in fused.masks)


# --- what is never pruned


@pytest.mark.parametrize(("cumulative", "multiply", "keys"), ACTS)
def test_start_end_padding_and_exempt_tokens_are_never_pruned(
    cumulative: bool, multiply: bool, keys: str
) -> None:
    model, (ids, _) = shared(), titles()
    exempt = torch.zeros_like(ids).bool()
    exempt[0, 2] = exempt[1, 9:] = exempt[4, 1] = True  # and where there is no word, too
    acts = {"cumulative": cumulative, "multiply": multiply, "keys": keys}
    found = read(model, pruned((1e9,) * COUNT, **acts), ids, pictures(5), exempt=exempt)
    words = torch.tensor([5, 10, 0, 1, 7])[:, None]
    place = torch.arange(LENGTH)
    stays = ~((place >= 1) & (place <= words)) | exempt
    assert torch.equal(found.prunable, ~stays)
    for _, alive in (*found.trail, *found.masks):
        assert torch.equal(alive, stays.float())
    assert found.kept().item() == 0
    if multiply:
        assert bool((found.x[~stays] == 0).all())
        assert bool((found.x[stays].abs().sum(-1) > 0).all())


def test_kept_is_the_share_of_prunable_tokens() -> None:
    model, (ids, _) = shared(), titles()
    found = read(model, pruned(thresholds(a0=0.0)), ids, None)
    above = dict(found.scores)[0][found.prunable] >= 0
    assert found.kept().item() == pytest.approx(above.float().mean().item())
    assert 0.1 < found.kept().item() < 0.9
    assert replace(found, prunable=torch.zeros_like(found.prunable)).kept().item() == 0


@pytest.mark.parametrize(("cumulative", "multiply", "keys"), ACTS)
def test_exempt_tokens_survive_and_the_others_prune_as_usual(
    cumulative: bool, multiply: bool, keys: str
) -> None:
    model, (ids, _) = shared(), titles((6, 9))
    image, places = pictures(2), [(2, 3), (5,)]
    how = {"cumulative": cumulative, "multiply": multiply, "keys": keys}
    base = between(model, ids, image, (0, 2, 4), **how)
    exempt = torch.zeros_like(ids).bool()
    for row, some in enumerate(places):
        exempt[row, list(some)] = True
    for hard in (False, True):
        pruning = pruned(base, **how)
        found = read(model, pruning, ids, image, hard=hard, exempt=exempt)
        plain = read(model, pruning, ids, image, hard=hard)
        assert bool((found.alive[exempt[:, :11]] == 1).all())
        assert any(bool((alive[exempt[:, :11]] == 0).any()) for _, alive in plain.trail)
        others = ~exempt[:, :11]  # the first attention has seen nothing else yet
        assert torch.equal(found.trail[0][1][others], plain.trail[0][1][others])
        for row, text in enumerate(ids.tolist()):
            text = text[: text.index(3) + 1]
            compare(
                found,
                row,
                ByHand(model, pruning, text, image[row], hard=hard, exempt=places[row]),
            )


@pytest.mark.parametrize(("cumulative", "multiply", "keys"), ACTS)
@pytest.mark.parametrize("pair", [("pre", "mean"), ("post", "first")], ids="-".join)
def test_a_text_is_the_same_alone_in_a_batch_and_with_more_padding(
    pair: tuple[str, str], cumulative: bool, multiply: bool, keys: str
) -> None:
    model, (ids, mask) = shared(seed=2), titles((5, 8, 0, 1, 7))
    image = pictures(5)
    how: dict[str, Any] = {"score": pair[0], "key": pair[1]}
    how |= {"cumulative": cumulative, "multiply": multiply, "keys": keys}
    base = between(model, ids, image, range(COUNT), **how)
    for straight in (True, False):
        reader = Reader(model, pruned(base, straight_through=straight, **how))
        together = reader.fuse(reader.read(ids, mask), image)
        assert together.x.shape[1] == 10  # columns that only pad cost nothing
        more = functional.pad(ids, (0, 4)), functional.pad(mask, (0, 4))
        padded = reader.fuse(reader.read(*more), image)
        assert torch.equal(together.x, padded.x)
        for row in range(5):
            one = slice(row, row + 1)
            alone = reader.fuse(reader.read(ids[one], mask[one]), image[one])
            length = int(mask[row].sum())
            assert alone.x.shape[1] == length
            close: dict[str, Any] = {"rtol": 0, "atol": 1e-4}
            torch.testing.assert_close(together.x[row, :length], alone.x[0], **close)
            torch.testing.assert_close(together.alive[row, :length], alone.alive[0], **close)


# --- dropping


@torch.no_grad()
def removed(
    model: AlbefModel, pruning: TokenPruning, ids: Sequence[int], image: Tensor
) -> tuple[Tensor, list[int]]:
    """The states of a text out of which dropped tokens are taken, and the places of what is
    left. Positions are those that the tokens had in the whole text.

    `same` takes tokens out before the self-attention that scored them, `next` after the layer;
    a cross-attention can do no more than the latter.
    """
    config, taus = pruning.config, pruning.thresholds().tolist()
    bert = in_double(model)
    x = bert.embeddings.word_embeddings.weight[list(ids)]
    x = bert.embeddings.LayerNorm(x + bert.embeddings.position_embeddings.weight[: len(ids)])
    places = list(range(len(ids)))

    def stay(number: int, scores: Tensor) -> list[bool]:
        return [
            place in (0, len(ids) - 1) or config.base[number] == NEVER or value >= taus[number]
            for place, value in zip(places, scores.tolist(), strict=True)
        ]

    for number, layer in enumerate(bert.encoder.layer):
        q, k, v = heads_of(layer.attention, x, x)
        raw = q @ k.mT / math.sqrt(8)
        scores = {
            ("pre", "first"): raw[:, :, 0],
            ("pre", "mean"): raw.mean(-1),
            ("post", "first"): raw.softmax(-1)[:, :, 0],
            ("recv", "mean"): raw.softmax(-1).mean(1),
        }[config.score, config.key].mean(0)
        stays = stay(number, scores)
        if config.keys == "same":
            x, places = x[stays], [place for place, left in zip(places, stays, strict=True) if left]
            raw, v, stays = raw[:, stays][:, :, stays], v[:, stays], [True] * len(places)
        x = added(layer.attention.output, raw.softmax(-1) @ v, x)
        if number >= TEXT:
            q, k, v = heads_of(layer.crossattention, x, image.double())
            raw = q @ k.mT / math.sqrt(8)
            scores = {
                ("pre", "first"): raw[:, :, 0],
                ("pre", "mean"): raw.mean(-1),
                ("post", "first"): raw.softmax(-1)[:, :, 0],
                ("recv", "mean"): raw[:, :, 0],  # not asked for
            }[config.score, config.key].mean(0)
            crossing = stay(number - TEXT + LAYERS, scores)
            stays = [one and other for one, other in zip(stays, crossing, strict=True)]
            x = added(layer.crossattention.output, raw.softmax(-1) @ v, x)
        inner = functional.gelu(layer.intermediate.dense(x))
        x = layer.output.LayerNorm(layer.output.dense(inner) + x)
        x, places = x[stays], [place for place, left in zip(places, stays, strict=True) if left]
    return x, places


@pytest.mark.parametrize("keys", ["same", "next"])
@pytest.mark.parametrize("pair", [*CROSS_PAIRS, ("recv", "mean")], ids="-".join)
@pytest.mark.parametrize("numbers", [(4,), (1, 2, 5), range(COUNT)])
def test_hard_masks_are_the_same_as_taking_tokens_out(
    numbers: Collection[int], pair: tuple[str, str], keys: str
) -> None:
    if pair[0] == "recv":
        numbers = set(numbers) & set(SELF) or {1}
    model, (ids, _) = shared(seed=4), titles((6, 10, 3))
    image = pictures(3)
    how: dict[str, Any] = {"score": pair[0], "key": pair[1], "keys": keys}
    base = between(model, ids, image, numbers, **how)
    for changes in ({}, {"multiply": True}):
        pruning = pruned(base, **how, **changes)
        for hard in (True, False):
            found = read(model, pruning, ids, image, hard=hard)
            assert 0 < found.kept().item() < 1
            for row, text in enumerate(ids.tolist()):
                x, places = removed(model, pruning, text[: text.index(3) + 1], image[row])
                left = (found.alive[row] > 0) & found.valid[row]
                assert left.nonzero().flatten().tolist() == places
                close: dict[str, Any] = {"rtol": 0, "atol": 1e-4}
                torch.testing.assert_close(found.x[row, places].double(), x, **close)


def test_straight_through_has_the_value_of_hard_masks_and_the_gradient_of_soft_ones() -> None:
    model, (ids, mask) = make(), titles()
    image = pictures(5)
    for cumulative, multiply, keys in ACTS:
        how = {"cumulative": cumulative, "multiply": multiply, "keys": keys}
        base = between(model, ids, image, range(COUNT), **how)
        found = read(model, pruned(base, **how), ids, image)
        hard = read(model, pruned(base, **how), ids, image, hard=True)
        torch.testing.assert_close(found.x[mask > 0], hard.x[mask > 0], rtol=0, atol=1e-4)
        assert all(map(torch.equal, dict(found.trail).values(), dict(hard.trail).values()))
        assert not hard.alive.requires_grad
        # What reaches the first threshold by the masks of its own attention alone.
        gradients = []
        for straight in (True, False):
            pruning = pruned(base, **how, straight_through=straight)
            first = read(model, pruning, ids, None).trail[0][1]
            (first * torch.arange(first.numel()).view(first.shape)).sum().backward()
            assert pruning.delta.grad is not None
            gradients.append(pruning.delta.grad)
        assert gradients[0][0].abs() > 1
        assert torch.equal(*gradients)


# --- gradients


@pytest.mark.parametrize("straight", [True, False])
def test_the_text_embedding_teaches_text_layers_and_matching_teaches_all(straight: bool) -> None:
    """Contrastive losses do not see the masks of the fusion encoder; the last mask of a
    cross-attention acts on keys that nobody reads."""
    model, (ids, mask) = make(), titles()
    image = pictures(5)
    base = between(model, ids, image, range(COUNT))
    pruning = pruned(base, straight_through=straight)
    reader = Reader(model, pruning)
    delta = pruning.delta

    def reached(loss: Tensor) -> list[bool]:
        delta.grad = None
        loss.backward()
        assert delta.grad is not None
        return [value != 0 for value in delta.grad.tolist()]

    assert reached(model.text_vectors(reader.read(ids, mask).x)[:, 0].sum()) == [
        number < TEXT for number in range(COUNT)
    ]
    fused = reader.fuse(reader.read(ids, mask), image)
    assert reached(model.itm_head(fused.x[:, 0])[:, 1].sum()) == [True] * 5 + [False]
    fused = reader.fuse(reader.read(ids, mask), image)
    assert reached(reader.penalty(fused)) == [True] * COUNT
    for name, weight in text_weights(model).items():
        assert weight.grad is not None, name
        assert bool(weight.grad.isfinite().all()), name


@pytest.mark.parametrize(("cumulative", "multiply", "keys"), ACTS)
def test_the_gradient_of_soft_thresholds_is_that_of_differences(
    cumulative: bool, multiply: bool, keys: str
) -> None:
    model, (ids, mask) = make(), titles()
    image = pictures(5)
    how = {"cumulative": cumulative, "multiply": multiply, "keys": keys}
    base = between(model, ids, image, range(COUNT), **how)
    pruning = pruned(base, straight_through=False, **how)
    reader, delta = Reader(model, pruning), pruning.delta

    def loss() -> Tensor:
        fused = reader.fuse(reader.read(ids, mask), image)
        # All that is read of the fusion encoder: [CLS]. Its length is fixed by the norm.
        return fused.x[:, 0, :9].sum() + reader.penalty(fused)

    loss().backward()
    assert delta.grad is not None
    for number in range(COUNT):
        values = []
        for step in (0.01, -0.01):
            with torch.no_grad():
                delta[number] = step
                values.append(loss().item())
                delta[number] = 0
        difference = (values[0] - values[1]) / 0.02
        assert delta.grad[number].item() == pytest.approx(difference, rel=0.02, abs=2e-3)


@pytest.mark.parametrize(("cumulative", "multiply", "keys"), ACTS[1:])
def test_what_was_dropped_stays_dropped(cumulative: bool, multiply: bool, keys: str) -> None:
    model, (ids, _) = shared(), titles()
    image = pictures(5)
    how = {"cumulative": cumulative, "multiply": multiply, "keys": keys}
    for numbers in ((0,), (4,), range(COUNT)):
        pruning = pruned(between(model, ids, image, numbers, **how), **how)
        found = read(model, pruning, ids, image)
        for (_, before), (_, after) in zip(found.trail, found.trail[1:], strict=False):
            assert bool((after <= before).all())
        if multiply:
            assert bool((found.x[found.alive == 0] == 0).all())


# --- another model with the same masks, other pictures


@pytest.mark.parametrize(("cumulative", "multiply", "keys"), ACTS)
@pytest.mark.parametrize("numbers", [(1,), (3, 5), range(COUNT)])
def test_another_model_follows_the_masks(
    numbers: Collection[int], cumulative: bool, multiply: bool, keys: str
) -> None:
    model, other, (ids, mask) = shared(), shared(seed=9), titles()
    image = pictures(5)
    how = {"cumulative": cumulative, "multiply": multiply, "keys": keys}
    for straight in (True, False):
        base = between(model, ids, image, numbers, **how)
        pruning = pruned(base, straight_through=straight, **how)
        leader = Reader(model, pruning)
        texts = leader.read(ids, mask)
        fused = leader.fuse(texts, image)
        for follower in (Reader(model, pruning), Reader(other, pruning)):
            followed = follower.read(ids, mask, follow=texts)
            both = follower.fuse(followed, image, follow=fused)
            for found, ahead in ((followed, texts), (both, fused)):
                assert (found.scores, found.masks) == ((), ())
                assert found.began == ahead.began
                assert [n for n, _ in found.trail] == [n for n, _ in ahead.trail]
                for (_, one), (_, two) in zip(found.trail, ahead.trail, strict=True):
                    assert torch.equal(one, two)
                assert torch.equal(found.x, ahead.x) == (follower._bert is leader._bert)
        own = Reader(other, pruning).read(ids, mask)
        if min(numbers) < TEXT:
            pairs = zip(own.trail, texts.trail, strict=True)
            assert any(not torch.equal(one, two) for (_, one), (_, two) in pairs)
        # The fused states of the leader lead through the text encoder, too.
        assert torch.equal(leader.read(ids, mask, follow=fused).x, texts.x)


def test_who_follows_scores_nothing_and_hard_masks_go_through_fused_attention(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, (ids, _) = shared(), titles()
    image = pictures(5)
    pruning = pruned(between(model, ids, image, range(COUNT)))
    leader = read(model, pruning, ids, image)
    with monkeypatch.context() as patched:
        for name in ("token_scores", "cross_scores"):
            patched.setattr(reading, name, None)
        found = read(model, pruning, ids, image, follow=leader)
        assert torch.equal(found.x, leader.x)
    monkeypatch.setattr(reading, "gated_attention", None)
    hard = read(model, pruning, ids, image, hard=True)
    left = (leader.alive > 0) & leader.valid
    torch.testing.assert_close(hard.x[left], leader.x[left], rtol=0, atol=1e-4)


def test_where_nothing_is_pruned_there_is_nothing_to_follow() -> None:
    model, (ids, _) = shared(), titles()
    plain = read(model, None, ids, pictures(5))
    assert torch.equal(read(model, None, ids, pictures(5), follow=plain).x, plain.x)
    never = pruned((NEVER,) * COUNT)
    leader = read(model, never, ids, pictures(5))
    found = read(model, never, ids, pictures(5), follow=leader)
    assert torch.equal(found.x, plain.x)
    assert not found.began


@pytest.mark.parametrize(("cumulative", "multiply", "keys"), ACTS)
def test_other_pictures_have_masks_of_their_own_and_the_text_keeps_its(
    cumulative: bool, multiply: bool, keys: str
) -> None:
    model, (ids, mask) = make(), titles((6, 3, 9))
    image, how = pictures(3), {"cumulative": cumulative, "multiply": multiply, "keys": keys}
    pruning = pruned(between(model, ids, image, (0, 1, 4, 5), **how), **how)
    reader = Reader(model, pruning)
    texts = reader.read(ids, mask)
    own = reader.fuse(texts, image)
    rows, others = torch.tensor([0, 0, 2, 1]), torch.tensor([1, 2, 0, 0])
    taken = texts.take(rows)
    wrong = reader.fuse(taken, image[others])
    assert torch.equal(taken.alive, texts.alive[rows])
    assert (taken.scores, taken.masks, taken.trail) == ((), (), ())
    again = reader.fuse(reader.read(ids[rows], mask[rows]), image[others])
    torch.testing.assert_close(wrong.x, again.x, rtol=0, atol=1e-5)
    for number in CROSS:
        assert torch.equal(dict(wrong.trail)[number], dict(again.trail)[number])
    different = (dict(wrong.trail)[5] != dict(own.trail)[5][rows]).any(1)
    assert bool(different.any())
    for row, (text, picture) in enumerate(zip(rows.tolist(), others.tolist(), strict=True)):
        words = ids[text].tolist()
        by_hand = ByHand(model, pruning, words[: words.index(3) + 1], image[picture])
        length = len(by_hand.x)
        torch.testing.assert_close(wrong.x[row, :length].double(), by_hand.x, rtol=0, atol=1e-4)
    # Gradients find their way back to the text's own masks.
    gradients = []
    for fused in (wrong, again):
        pruning.delta.grad = None
        fused.x[:, 0, :9].sum().backward()
        gradients.append(pruning.delta.grad)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)
    assert bool(gradients[0][:1].abs() > 0.01)


# --- the penalty


def test_the_penalty_counts_a_cumulative_mask_wherever_its_token_lives() -> None:
    """Of one text, whose scores are known: 8 words, of which attention 0 drops 2, 4 drops 3."""
    model, (ids, mask) = shared(), titles((8,))
    image = pictures(1)

    def cut(number: int, dropped: int, **base: float) -> float:
        found = read(model, pruned(thresholds(**{**base, f"a{number}": -1e9})), ids, image)
        left = (dict(found.trail)[number] > 0) & found.prunable
        scores = dict(found.scores)[number][left].detach().sort().values
        return float(scores[dropped - 1 : dropped + 1].mean())

    first = cut(0, 2)
    second = cut(4, 3, a0=first)
    base = thresholds(a0=first, a4=second)
    # Order: self 0, 1, 2, cross 4, self 3, cross 5.
    cases: list[tuple[dict[str, Any], float, float]] = [
        ({}, 2 * 6 / 8, 3 * 6 / 8 + 3 * 3 / 8),
        ({"norm": "mean_layers"}, 6 / 8, (3 * 6 + 3 * 3) / 8 / 6),
        ({"trained": (False,) * 4 + (True,) * 2}, 0, 3 * 3 / 8),
        ({"trained": (True,) + (False,) * 5}, 2 * 6 / 8, 3 * 6 / 8 + 2 * 3 / 8),
        ({"trained": (False,) * 6}, 0, 0),
    ]
    for changes, after_text, after_all in cases:
        pruning = pruned(base, **changes)
        reader = Reader(model, pruning)
        texts = reader.read(ids, mask)
        assert reader.penalty(texts).item() == pytest.approx(0.5 * after_text)
        assert reader.penalty(reader.fuse(texts, image)).item() == pytest.approx(0.5 * after_all)
    # Without cumulative masks each is priced for itself, and those that do not prune are not.
    how: dict[str, Any] = {"cumulative": False, "multiply": True, "keys": "none"}
    for norm, factor in (("sum_layers", 1.0), ("mean_layers", 0.5)):
        pruning = pruned(base, **how, norm=norm)
        found = read(model, pruning, ids, image)
        shares = [mask[found.prunable].mean().item() for _, mask in found.masks]
        by_hand = ByHand(model, pruning, ids[0].tolist()[:10], image[0])
        assert shares == [float(by_hand.masks[n][1:9].mean()) for n in (0, 4)]
        assert shares[0] == 6 / 8
        price = Reader(model, pruning).penalty(found).item()
        assert price == pytest.approx(0.5 * factor * sum(shares))


# --- precision, memory


@pytest.mark.parametrize(("cumulative", "multiply", "keys"), ACTS)
@pytest.mark.parametrize("pair", CROSS_PAIRS, ids="-".join)
def test_under_autocast_scores_and_masks_are_float32(
    pair: tuple[str, str], cumulative: bool, multiply: bool, keys: str
) -> None:
    """Scores of a layer are those of its states, whatever these lost by rounding."""
    model, (ids, mask) = make(), titles()
    image = pictures(5).bfloat16()
    how: dict[str, Any] = {"score": pair[0], "key": pair[1], "straight_through": False}
    how |= {"cumulative": cumulative, "multiply": multiply, "keys": keys}
    base = between(model, ids, image.float(), range(COUNT), **how)
    pruning = pruned(base, **how, temperature=(1e-2,) * COUNT)
    reader = Reader(model, pruning)
    inputs: dict[int, Tensor] = {}
    layers = model.text_encoder.bert.encoder.layer
    attentions = [layer.attention for layer in layers]
    attentions += [layer.crossattention for layer in layers[TEXT:]]
    for number, attention in enumerate(attentions):

        def note(_: Any, args: tuple[Tensor], number: int = number) -> None:
            inputs.setdefault(number, args[0].float())

        attention.self.query.register_forward_pre_hook(note)
    with torch.autocast("cpu", torch.bfloat16):
        texts = reader.read(ids, mask)
        fused = reader.fuse(texts, image)
        penalty = reader.penalty(fused)
        model.text_vectors(texts.x)
    parts = [part for _, part in (*fused.scores, *fused.masks, *fused.trail)]
    assert {part.dtype for part in (*parts, fused.alive, penalty)} == {torch.float32}
    before = torch.ones(texts.valid.shape)
    for (number, found), (_, after) in zip(fused.scores, fused.trail, strict=True):
        with torch.no_grad():
            memory = inputs[number] if number in SELF else image.float()
            heads = attentions[number].heads(inputs[number], memory)
            if number in SELF:
                present = texts.valid * (before if keys != "none" else 1.0)
                expected = token_scores(
                    heads.query, heads.key, *pair, present,  # type: ignore[arg-type]
                    texts.valid.sum(1) - 1, causal=False,
                )  # fmt: skip
            else:
                expected = cross_scores(heads.query, heads.key, *pair)  # type: ignore[arg-type]
            before = after
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            assert torch.equal(
                pruning.mask(number, found, texts.prunable),
                torch.sigmoid((found - pruning.thresholds()[number]) / 1e-2).where(
                    texts.prunable, torch.ones(())
                ),
            )
    # The first attention has lost nothing yet.
    plain = read(model, pruning, ids, image.float())
    torch.testing.assert_close(dict(fused.scores)[0], dict(plain.scores)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("number", [0, 4])
def test_under_autocast_a_step_of_2e_5_moves_masks(number: int) -> None:
    model, (ids, _) = shared(), titles((5,))
    how: dict[str, Any] = {"straight_through": False, "temperature": (1e-4,) * COUNT}
    with torch.autocast("cpu", torch.bfloat16):
        free = read(model, pruned(thresholds(**{f"a{number}": 0.0})), ids, pictures(1))
        place = int(dict(free.scores)[number][0, 1:6].abs().argmin()) + 1
        tau = dict(free.scores)[number][0, place].item()
        pruning = pruned(thresholds(**{f"a{number}": tau}), **how)
        before = dict(read(model, pruning, ids, pictures(1)).trail)[number][0, place].item()
        with torch.no_grad():
            pruning.delta += 2e-5
        after = dict(read(model, pruning, ids, pictures(1)).trail)[number][0, place].item()
    assert before == pytest.approx(0.5, abs=1e-6)
    # float32 holds a threshold of this size to 1e-7 at best: a thousandth of T.
    assert after == pytest.approx(1 / (1 + math.exp(0.2)), abs=2e-3)


@pytest.mark.parametrize(("cumulative", "multiply", "keys"), ACTS)
@pytest.mark.parametrize("straight", [True, False])
def test_checkpointed_activations_give_the_same_values_and_gradients(
    straight: bool, cumulative: bool, multiply: bool, keys: str
) -> None:
    model, (ids, mask) = make(), titles()
    image = pictures(5).requires_grad_()
    how = {"cumulative": cumulative, "multiply": multiply, "keys": keys}
    base = between(model, ids, image.detach(), range(COUNT), **how)
    model.train()  # with dropout
    calls: list[int] = []
    model.text_encoder.bert.encoder.layer[3].intermediate.register_forward_hook(
        lambda *_: calls.append(1)
    )
    found = []
    for saves_memory in (False, True):
        torch.manual_seed(7)
        pruning = pruned(base, straight_through=straight, **how)
        model.set_grad_checkpointing(saves_memory)
        model.zero_grad()
        image.grad = None
        calls.clear()
        reader = Reader(model, pruning)
        fused = reader.fuse(reader.read(ids, mask), image)
        (fused.x[:, 0].square().sum() + fused.x[:, 3, 0].sum() + reader.penalty(fused)).backward()
        assert len(calls) == 1 + saves_memory  # again for the gradients
        gradients = [weight.grad for weight in text_weights(model).values()]
        masks = [alive for _, alive in fused.trail]
        found.append([fused.x, image.grad, pruning.delta.grad, *masks, *gradients])
        calls.clear()
        with torch.no_grad():
            reader.fuse(reader.read(ids, mask), image)
        assert len(calls) == 1
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


def test_checkpoints_are_told_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch repeats the random numbers, as of dropout, of devices that arguments are on."""
    seen: list[bool] = []

    def checkpoint(run: Any, *args: Any, **_: Any) -> Any:
        seen.append(any(isinstance(arg, Tensor) for arg in args))
        return run(*args)

    monkeypatch.setattr(reading, "checkpoint", checkpoint)
    model, (ids, _) = make(), titles()
    model.set_grad_checkpointing()
    read(model, None, ids, pictures(5))
    assert seen == [True] * LAYERS


# --- toggled tokens, weights to look at


@pytest.mark.parametrize(("cumulative", "multiply", "keys"), ACTS)
@pytest.mark.parametrize("numbers", [(0, 1, 4), (1,)])
def test_toggled_tokens_are_the_other_way_round_in_the_first_attention_that_prunes(
    numbers: Collection[int], cumulative: bool, multiply: bool, keys: str
) -> None:
    model, (ids, _) = shared(), titles((6, 3))
    image, places = pictures(2), [(1, 3, 4, 6), (2,)]
    how = {"cumulative": cumulative, "multiply": multiply, "keys": keys}
    base = between(model, ids, image, numbers, **how)
    toggled = torch.zeros_like(ids).bool()  # as wide as the ids; `read` is narrower
    for row, some in enumerate(places):
        toggled[row, list(some)] = True
    toggled[:, [0, 7, 11]] = True  # which may not be pruned
    for straight, hard in ((False, False), (True, False), (False, True)):
        pruning = pruned(base, straight_through=straight, **how)
        found = read(model, pruning, ids, image, hard=hard, toggled=toggled)
        narrow = read(model, pruning, ids, image, hard=hard, toggled=toggled[:, :8])
        plain = read(model, pruning, ids, image, hard=hard)
        assert torch.equal(found.x, narrow.x)
        assert far(found.x[:, 0], plain.x[:, 0]) > 0.01
        for row, text in enumerate(ids.tolist()):
            text = text[: text.index(3) + 1]
            compare(
                found,
                row,
                ByHand(model, pruning, text, image[row], hard=hard, toggled=places[row]),
            )


@pytest.mark.parametrize("number", CROSS)
def test_watched_weights_are_those_of_the_attention(number: int) -> None:
    model, (ids, mask) = make(), titles((6, 3))
    image = pictures(2)
    pruning = pruned(between(model, ids, image, (0, 4)))
    plain = read(model, pruning, ids, image, hard=True)
    reader = Reader(model, pruning, watched=number)
    assert reader.weights is None
    states: list[Tensor] = []
    attention = model.text_encoder.bert.encoder.layer[number - LAYERS + TEXT].crossattention
    attention.output.register_forward_hook(lambda *args: states.append(args[1][1]))
    fused = reader.fuse(reader.read(ids, mask, hard=True), image, hard=True)
    torch.testing.assert_close(fused.x, plain.x, rtol=0, atol=1e-5)
    for row in range(2):
        q, k, _ = heads_of(attention, states[0][row], image[row])
        expected = (q @ k.mT / math.sqrt(8)).softmax(-1)
        torch.testing.assert_close(reader.weights[row], expected, rtol=0, atol=1e-5)
    gradient = torch.autograd.grad(fused.x[:, 0].sum(), reader.weights)[0]  # for Grad-CAM
    assert bool(gradient[:, :, 0].any())
    with torch.autocast("cpu", torch.bfloat16):
        reader.fuse(reader.read(ids, mask, hard=True), image, hard=True)
    sums = reader.weights.sum(-1)
    assert reader.weights.dtype == torch.float32
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-6)


# --- what cannot be


@pytest.mark.parametrize(
    ("score", "key"),
    [("recv", "mean"), ("pre", "eot"), ("pre", "eot_query"), ("post", "eot_query")],
)
def test_scores_that_a_cross_attention_has_not_are_refused(score: Any, key: Any) -> None:
    reason = f"score {score} with key {key} is not defined on cross-attention.*use score pre"
    with pytest.raises(ValueError, match=reason):
        check_cross(score, key)
    with pytest.raises(ModelError, match=reason):
        Reader(shared(), pruned(thresholds(a0=0.0, a5=0.0), score=score, key=key))
    Reader(shared(), pruned(thresholds(a0=0.0, a3=0.0), score=score, key=key))  # self alone
    for pair in CROSS_PAIRS:
        check_cross(*pair)  # type: ignore[arg-type]


def test_a_pruning_for_other_sizes_is_refused() -> None:
    with pytest.raises(ModelError, match="6 attentions that may prune and the pruning is for 4"):
        Reader(shared(), pruned((0.0,) * LAYERS))


# --- the traps, each with its remedy


def at_a_tenth(numbers: Collection[int], **changes: Any) -> float:
    """What masks of 0.1 do to [CLS] after all layers."""
    model, (ids, _) = shared(), titles((5, 10, 7))
    image, wide = pictures(3), 1e6
    base = thresholds(**{f"a{n}": wide * math.log(9) for n in numbers})
    how = {"temperature": (wide,) * COUNT, "straight_through": False, **changes}
    found = read(model, pruned(base, **how), ids, image)
    for n in numbers:
        words = dict(found.trail)[n][found.prunable]
        torch.testing.assert_close(words, torch.full_like(words, 0.1), rtol=1e-4, atol=0)
    return far(found.x[:, 0], read(model, None, ids, image).x[:, 0])


def test_soft_masks_act_as_the_output_of_a_layer_is_normed_before() -> None:
    """Trap 1, which is one of towers that norm the input of a layer."""
    assert at_a_tenth((0,), multiply=True, keys="none") > 0.1
    assert at_a_tenth((4,), multiply=True, keys="none") > 0.1
    assert at_a_tenth((0,), keys="same") > 0.1
    assert at_a_tenth((4,), keys="next") > 0.1


def test_a_zeroed_token_comes_back_unless_masks_are_cumulative() -> None:
    """Trap 2: its state after the next layer is a constant, but none of 0."""
    model, (ids, _) = shared(), titles()
    image = pictures(5)
    how: dict[str, Any] = {"multiply": True, "keys": "none"}
    base = between(model, ids, image, (0,), **how)
    back = read(model, pruned(base, cumulative=False, **how), ids, image)
    dropped = dict(back.trail)[0] == 0
    assert bool((back.x[dropped].abs().sum(-1) > 1).all())
    assert bool((back.alive == 1).all())
    gone = read(model, pruned(base, **how), ids, image)
    assert bool((gone.x[dropped] == 0).all())
    assert torch.equal(gone.alive == 0, dropped)


def test_a_zeroed_token_still_takes_attention_and_one_out_of_the_keys_does_not() -> None:
    model, (ids, _) = shared(), titles((8, 8))
    image = pictures(2)
    for numbers in ((0,), (4,)):
        base = between(model, ids, image, numbers)
        zeroed = read(model, pruned(base, multiply=True, keys="none"), ids, image, hard=True)
        gone = read(model, pruned(base, multiply=True, keys="next"), ids, image, hard=True)
        assert torch.equal(zeroed.alive, gone.alive)
        assert far(zeroed.x[:, 0], gone.x[:, 0]) > 0.1


def change_of_content(**changes: Any) -> float:
    """What it does to [CLS] to put another word, pruned as well, for a pruned one.

    Attention 0 alone prunes; the raw score of a word there depends on nothing but itself.
    """
    model = shared()
    ids, image = titles((8,))[0].repeat(46, 1), pictures(1).expand(46, -1, -1)
    ids[:, 3] = torch.arange(4, 50)
    free = read(model, pruned(thresholds(a0=-1e9)), ids, None)
    base = thresholds(a0=dict(free.scores)[0][:, 3].median().item() + 1e-3)
    found = read(model, pruned(base, **changes), ids, image)
    alive = dict(found.trail)[0]
    out = alive[:, 3] == 0
    assert 20 < int(out.sum()) < 46
    assert bool((alive[out] == alive[out][0]).all())
    x = found.x[out][:, 0]
    return far(x, x[:1].expand_as(x))


def test_the_layer_that_scores_leaks_unless_its_own_keys_are_out() -> None:
    """Trap 3."""
    assert change_of_content(keys="same") < 1e-5
    assert change_of_content(keys="same", multiply=True) < 1e-5
    assert change_of_content(keys="next") > 0.05
    assert change_of_content(keys="none", multiply=True) > 0.05


@pytest.mark.parametrize(("cumulative", "multiply", "keys"), ACTS)
@pytest.mark.parametrize("straight", [True, False])
def test_of_the_last_layer_only_masks_of_its_own_keys_are_seen(
    straight: bool, cumulative: bool, multiply: bool, keys: str
) -> None:
    """Trap 4. Matching reads [CLS], guessing the hidden words, which are exempt."""
    model, (ids, mask) = make(), titles()
    image, hidden = pictures(5), torch.zeros_like(ids).bool()
    hidden[:, 2] = True
    how = {"cumulative": cumulative, "multiply": multiply, "keys": keys}
    pruning = pruned(
        between(model, ids, image, range(COUNT), **how), straight_through=straight, **how
    )
    reader = Reader(model, pruning)
    fused = reader.fuse(reader.read(ids, mask, exempt=hidden), image)
    words = model.text_encoder.words(fused.x[hidden[:, :LENGTH]])
    (model.itm_head(fused.x[:, 0]).square().sum() + words.square().sum()).backward()
    assert pruning.delta.grad is not None
    seen = [value != 0 for value in pruning.delta.grad.tolist()]
    assert (seen[3], seen[5]) == (keys == "same", False)
    assert all(seen[n] for n in (0, 1, 2, 4))


def test_a_hidden_word_that_is_pruned_cannot_be_guessed_and_so_is_exempt() -> None:
    """Its state would be 0, whatever the text; the head would say the same for all."""
    model, (ids, _) = shared(), titles((6, 6))
    image, hidden = pictures(2), torch.zeros_like(ids).bool()
    hidden[:, 3] = True
    pruning = pruned((1e9,) * COUNT, multiply=True)
    blind = read(model, pruning, ids, image)
    assert torch.equal(blind.x[0, 3], blind.x[1, 3])
    seeing = read(model, pruning, ids, image, exempt=hidden)
    assert far(seeing.x[0, 3], seeing.x[1, 3]) > 0.1
