"""What the losses have in common: arguments checked, precision, who belongs to whom."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from indexing.errors import TrainingError


def refuse(loss: object, others: dict[str, Tensor | None]) -> None:
    """Stops where a loss is given what it would have to pass over in silence.

    Raises:
        TrainingError: One of `others` is not None.
    """
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise TrainingError(
            f"{type(loss).__name__} has no use for {', '.join(given)}: "
            "leave it out or choose another loss"
        )


def product_ids(
    image_emb: Tensor, text_emb: Tensor, image_pid: Tensor | None, text_pid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """int64 [N_i] and [N_t]; numbered one to one where none are given.

    Raises:
        TrainingError: One without the other; another number than embeddings; none for
            pictures and titles that cannot be one to one; or an empty batch.
    """
    images, texts = len(image_emb), len(text_emb)
    if not images or not texts:
        raise TrainingError(f"{images} pictures and {texts} titles: a batch needs both")
    if image_pid is None and text_pid is None:
        if images != texts:
            raise TrainingError(
                f"{images} pictures and {texts} titles are not one to one: "
                "give image_pid and text_pid"
            )
        image_pid = text_pid = torch.arange(images, device=image_emb.device)
    if image_pid is None or text_pid is None:
        raise TrainingError("image_pid and text_pid mean nothing alone: give both or neither")
    _check("image_pid", image_pid, (images,))
    _check("text_pid", text_pid, (texts,))
    return image_pid, text_pid


def checked_weight(weight: Tensor, image_emb: Tensor) -> Tensor:
    """`weight` in the precision of the loss, [N_i].

    Raises:
        TrainingError: Another number than pictures, or one below 0 or not a number.
    """
    _check("weight", weight, (len(image_emb),))
    if not bool((weight >= 0).all()):
        raise TrainingError(f"weight {weight.min().item()}: must be at least 0")
    return upcast(weight.detach()).to(upcast(image_emb).dtype)


def check_ignore(ignore: Tensor, image_emb: Tensor, text_emb: Tensor) -> None:
    """Raises TrainingError unless `ignore` is bool [N_i, N_t]."""
    _check("ignore", ignore, (len(image_emb), len(text_emb)))
    if ignore.dtype != torch.bool:
        raise TrainingError(f"ignore is {ignore.dtype}: must be torch.bool")


def logits(image_emb: Tensor, text_emb: Tensor, logit_scale: Tensor) -> Tensor:
    """k s_ij [N_i, N_t], in float32 or, for float64 embeddings, in float64.

    At k = 100 a bfloat16 cosine would be off by a logit of .4; autocast is therefore off.
    """
    with torch.autocast(image_emb.device.type, enabled=False):
        image, text = upcast(image_emb), upcast(text_emb)
        return logit_scale.to(image.dtype) * image @ text.T


def upcast(values: Tensor) -> Tensor:
    """float64 as it is, everything else as float32."""
    return values if values.dtype == torch.float64 else values.float()


def _check(name: str, values: Tensor, shape: tuple[int, ...]) -> None:
    if values.shape != shape:
        raise TrainingError(f"{name} is {list(values.shape)}: must be {list(shape)}")


@dataclass(frozen=True)
class Scored:
    """A batch that fits together.

    Attributes:
        image, text: unit vectors [N_i, d] and [N_t, d], upcast.
        image_pid, text_pid: int64 [N_i] and [N_t].
        scores: k s_ij [N_i, N_t].
        positive: bool [N_i, N_t], of one product and not ignored.
        negative: bool [N_i, N_t], of two products and not ignored.
        quality: [N_i, N_t], the weight of each positive, and 0.
        scale: k.
        sample_idx, teacher_image, queue, step: as a loss is given them.
    """

    image: Tensor
    text: Tensor
    image_pid: Tensor
    text_pid: Tensor
    scores: Tensor
    positive: Tensor
    negative: Tensor
    quality: Tensor
    scale: Tensor
    sample_idx: Tensor | None = None
    teacher_image: Tensor | None = None
    queue: Tensor | None = None
    step: int | None = None

    def masked_scores(self) -> Tensor:
        """`scores` with ignored pairs so low that a softmax gives them nothing."""
        # Not -inf, which would make NaN of a row in which every pair is ignored.
        lowest = torch.finfo(self.scores.dtype).min
        return self.scores.masked_fill(~(self.positive | self.negative), lowest)

    def turned(self) -> Scored:
        """The batch with titles for pictures and pictures for titles."""
        return replace(
            self,
            image=self.text,
            text=self.image,
            image_pid=self.text_pid,
            text_pid=self.image_pid,
            scores=self.scores.T,
            positive=self.positive.T,
            negative=self.negative.T,
            quality=self.quality.T,
        )

    def among_pictures(self) -> tuple[Tensor, Tensor]:
        """Which pictures are of one product, and which of two that may be told apart.

        They may not where `ignore` links one of them to a title of the other's product.

        Returns:
            bool [N_i, N_i] twice; the first without the diagonal.
        """
        return _among(self.image_pid, self.text_pid, ~(self.positive | self.negative))

    def among_titles(self) -> tuple[Tensor, Tensor]:
        """The same of titles, bool [N_t, N_t]."""
        return self.turned().among_pictures()


def _among(own: Tensor, other: Tensor, ignored: Tensor) -> tuple[Tensor, Tensor]:
    same = own[:, None] == own[None, :]
    if not bool(ignored.any()):
        return same.fill_diagonal_(False), own[:, None] != own[None, :]
    belongs = (other[:, None] == own[None, :]).float()
    linked = ignored.float() @ belongs > 0
    linked = linked | linked.T
    return same.clone().fill_diagonal_(False), ~same & ~linked


def scored(
    image_emb: Tensor,
    text_emb: Tensor,
    logit_scale: Tensor,
    *,
    image_pid: Tensor | None,
    text_pid: Tensor | None,
    weight: Tensor | None = None,
    ignore: Tensor | None = None,
    sample_idx: Tensor | None = None,
    teacher_image: Tensor | None = None,
    queue: Tensor | None = None,
    step: int | None = None,
) -> Scored:
    """The arguments of a loss, checked.

    Raises:
        TrainingError: They do not fit each other, or the batch has no positive pair.
    """
    image_pid, text_pid = product_ids(image_emb, text_emb, image_pid, text_pid)
    scores = logits(image_emb, text_emb, logit_scale)
    positive = image_pid[:, None] == text_pid[None, :]
    negative = ~positive
    if ignore is not None:
        check_ignore(ignore, image_emb, text_emb)
        positive, negative = positive & ~ignore, negative & ~ignore
    if sample_idx is not None:
        _check("sample_idx", sample_idx, (len(image_emb),))
    if teacher_image is not None:
        _check("teacher_image", teacher_image, (len(image_emb), teacher_image.shape[-1]))
    if queue is not None:
        _check("queue", queue, (len(queue), image_emb.shape[1]))
    quality = positive.to(scores.dtype)
    if weight is not None:
        quality = quality * checked_weight(weight, image_emb)[:, None]
    if not bool(quality.any()):
        raise TrainingError(
            "no picture of the batch has its title in it: check image_pid, text_pid, "
            "weight and ignore"
        )
    return Scored(
        upcast(image_emb), upcast(text_emb), image_pid, text_pid,
        scores, positive, negative, quality, logit_scale.to(scores.dtype),
        sample_idx, teacher_image, queue, step,
    )  # fmt: skip
