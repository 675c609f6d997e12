"""What the losses have in common: arguments checked, precision, who belongs to whom."""

from __future__ import annotations

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
