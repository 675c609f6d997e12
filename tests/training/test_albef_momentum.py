"""The slow copy in closed form, and the ring against a plain list."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from indexing.models.albef.config import AlbefConfig
from indexing.models.albef.network import AlbefModel
from training.albef.momentum import NOBODY, Momentum

CONFIG = AlbefConfig(
    image_size=4, patch_size=2, vision_width=4, vision_layers=1, vision_heads=1, vocab_size=7,
    text_width=4, text_layers=2, text_heads=1, text_intermediate=4, fusion_layer=1,
    max_positions=4, embed_dim=3, max_text_length=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> AlbefModel:
    return AlbefModel(CONFIG)


def test_the_copy_is_a_moving_average() -> None:
    model = AlbefModel(CONFIG)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    momentum = Momentum(model, 0, 0.9)
    steps = [2.0, -1.0, 0.5, 3.0]
    with torch.no_grad():
        for value in steps:
            for parameter in model.parameters():
                parameter.fill_(value)
            momentum.follow(model)
    average = sum(0.1 * 0.9 ** (len(steps) - 1 - n) * value for n, value in enumerate(steps))
    for name, value in momentum.model.state_dict().items():
        torch.testing.assert_close(value, 0.9**4 * start[name] + average)
    assert all((parameter == 3).all() for parameter in model.parameters())
    # What shares its memory with the embeddings is moved once, not twice.
    language = momentum.model.text_encoder
    decoder = language.cls.predictions.decoder.weight
    assert decoder is language.bert.embeddings.word_embeddings.weight


def test_a_momentum_of_0_is_the_model_itself(model: AlbefModel) -> None:
    momentum = Momentum(AlbefModel(CONFIG), 0, 0.0)
    momentum.follow(model)
    for name, value in momentum.model.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name])


def test_the_copy_is_not_trained_and_has_no_dropout(model: AlbefModel) -> None:
    momentum = Momentum(model.train(), 4, 0.9)
    assert not any(parameter.requires_grad for parameter in momentum.parameters())
    for put in (momentum.train, nn.ModuleList([momentum]).train):
        put()
        assert not any(module.training for module in momentum.modules())
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def vectors(numbers: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """What the pairs of these numbers put into the queue."""
    pairs = torch.tensor(numbers, dtype=torch.int64)
    images = torch.stack([pairs, 2 * pairs, 3 * pairs], 1).float()
    return images, -images, pairs


@settings(max_examples=40)
@given(size=st.integers(0, 9), batches=st.lists(st.integers(0, 25), max_size=8))
def test_the_ring_holds_the_last_entries_whatever_the_batches(
    model: AlbefModel, size: int, batches: list[int]
) -> None:
    momentum, put = Momentum(model, size, 0.9), 0
    for count in batches:
        momentum.enqueue(*vectors(list(range(put, put + count))))
        put += count
    expected = list(range(max(0, put - size), put))
    found = momentum.pairs.tolist()
    assert sorted(number for number in found if number != NOBODY) == expected
    assert len(found) == size
    for place, number in enumerate(found):
        image, text, _ = vectors([0 if number == NOBODY else number])
        assert torch.equal(momentum.image_queue[place], image[0])
        assert torch.equal(momentum.text_queue[place], text[0])
    # The next entry takes the place of the oldest.
    momentum.enqueue(*vectors([put]))
    if size:
        assert sorted(number for number in momentum.pairs.tolist() if number != NOBODY) == (
            list(range(max(0, put + 1 - size), put + 1))
        )


def test_the_papers_batch_goes_into_the_papers_queue(model: AlbefModel) -> None:
    """320 does not divide 65,536, which ALBEF's own code asks for."""
    momentum = Momentum(model, 65_536, 0.995)
    for batch in range(206):
        momentum.enqueue(*vectors(list(range(320 * batch, 320 * (batch + 1)))))
        assert int((momentum.pairs != NOBODY).sum()) == min(65_536, 320 * (batch + 1))
    last = 206 * 320
    assert momentum.pairs.sort().values.tolist() == list(range(last - 65_536, last))
    assert int(momentum.place) == last - 65_536
    assert torch.equal(momentum.image_queue[:, 2], 3 * momentum.pairs.float())


def test_what_is_saved_is_all_there_is(model: AlbefModel, tmp_path: Any) -> None:
    momentum = Momentum(model, 5, 0.9)
    momentum.enqueue(*vectors([3, 4, 5]))
    other = Momentum(AlbefModel(CONFIG), 5, 0.9)
    torch.save(momentum.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for each in (momentum, other):
        each.enqueue(*vectors([6, 7, 8, 9]))
    state, read = momentum.state_dict(), other.state_dict()
    assert state.keys() == read.keys()
    for name, value in state.items():
        assert torch.equal(value, read[name]), name
    assert sorted(read["pairs"].tolist()) == [5, 6, 7, 8, 9]


def test_half_precision_is_stored_whole(model: AlbefModel) -> None:
    momentum = Momentum(model, 2, 0.9)
    images, texts, pairs = vectors([1, 2])
    momentum.enqueue(images.bfloat16(), texts.bfloat16(), pairs)
    assert momentum.image_queue.dtype == torch.float32
    assert torch.equal(momentum.image_queue, images)
