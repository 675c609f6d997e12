"""The command `shoplens train categories`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from indexing.cli import (
    ImagesRoot,
    Mapping,
    OnDuplicateChoice,
    Profile,
    bad_option,
    resumable,
    say_left_out,
)
from training.options import Catalogs, Device, Out, PrecisionChoice, Seed, open_catalogs

if TYPE_CHECKING:
    from indexing.models.categorizer.network import TitleEncoder
    from training.encoders import TrainedEncoder


def categories(
    catalogs: Catalogs,
    out: Out,
    label: Annotated[
        str, typer.Option(metavar="FIELD", help="The field or column that holds the category.")
    ] = "category",
    start: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="FOLDER",
            help="A BERT with config.json, model.safetensors and tokenizer.json; or small, a new "
            "one for these titles.",
        ),
    ] = "small",
    layers: Annotated[
        int | None, typer.Option(min=1, help="Keep so many layers of --from.", show_default="all")
    ] = None,
    ssl: Annotated[
        str,
        typer.Option(
            help="How titles are adapted to first, without categories: none, simcse (titles) or "
            "convirt (titles beside pictures)."
        ),
    ] = "convirt",
    pictures: Annotated[
        str,
        typer.Option(metavar="MODEL", help="Whose vectors stand for the pictures, for convirt."),
    ] = "builtin",
    clean: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="A model with token pruning: adapt to titles it has cleaned."
        ),
    ] = None,
    ssl_epochs: Annotated[int, typer.Option(help="Epochs of the adaptation.")] = 10,
    ssl_batch_size: Annotated[int, typer.Option()] = 128,
    ssl_learning_rate: Annotated[
        float | None,
        typer.Option(help="Peak; warm-up, then cosine.", show_default="5e-4; simcse: 5e-5"),
    ] = None,
    temperature: Annotated[float, typer.Option(help="Of the adaptation's loss.")] = 0.1,
    alpha: Annotated[
        float, typer.Option(help="Weight of title to picture against picture to title.")
    ] = 0.75,
    include_positive: Annotated[
        bool,
        typer.Option(
            "--include-positive/--no-include-positive",
            help="Whether denominators have the positive; the paper prints them without.",
        ),
    ] = True,
    neg_view: Annotated[
        str, typer.Option(help="Readings that are negatives of SimCSE: second or first.")
    ] = "second",
    epochs: Annotated[int, typer.Option(help="Epochs of the fine-tuning.")] = 30,
    batch_size: Annotated[int, typer.Option()] = 32,
    learning_rate: Annotated[float, typer.Option(help="Peak; warm-up, then cosine.")] = 5e-5,
    head_rate: Annotated[
        float, typer.Option(help="How many times faster the new classifier learns.")
    ] = 10.0,
    table: Annotated[
        Path | None,
        typer.Option(
            "--labels", metavar="FILE", help="An edited label table, instead of a new one."
        ),
    ] = None,
    least: Annotated[
        int, typer.Option(min=1, help="Categories of fewer products become `other`.")
    ] = 5,
    validation_share: Annotated[
        float, typer.Option(help="Share of the titles held out for epochs and confidence.")
    ] = 0.1,
    seed: Seed = 0,
    precision: PrecisionChoice = "auto",
    profile: Profile = "auto",
    images_root: ImagesRoot = None,
    mapping: Mapping = None,
    on_duplicate: OnDuplicateChoice = "error",
    device: Device = None,
) -> None:
    """Train a categoriser: it reads a title, and says what category the product is of.

    First the title encoder is adapted without categories, by telling which picture belongs to a
    title (Chen & Chou); products without a category help there. Then it learns the categories
    that the catalog has. In the end it needs titles only. A stopped run goes on where it was.

    Example:

        shoplens train categories catalog.csv --label category --out my-categories
    """
    from pydantic import ValidationError

    from indexing.errors import TrainingError
    from indexing.malloc import keep_freed_memory
    from indexing.models import load_encoder
    from training.categories.config import RATES, CategoriesConfig
    from training.categories.run import Sources, run_categories

    if ssl != "none" and ssl not in RATES:
        raise TrainingError(f"--ssl {ssl}: choose none, simcse or convirt")
    if clean is not None and ssl == "none":
        raise TrainingError("--clean is for the adaptation: give --ssl simcse or convirt")
    adapt: dict[str, object] = (
        {}
        if ssl == "none"
        else {
            "method": ssl,
            "epochs": ssl_epochs,
            "batch_size": ssl_batch_size,
            "learning_rate": RATES[ssl] if ssl_learning_rate is None else ssl_learning_rate,
            "temperature": temperature,
            "alpha": alpha,
            "include_positive": include_positive,
            "neg_view": neg_view,
        }
    )
    try:
        config = CategoriesConfig.model_validate(
            {
                "adapt": adapt or None,
                "tune": {
                    "epochs": epochs,
                    "batch_size": batch_size,
                    "learning_rate": learning_rate,
                    "head_rate": head_rate,
                },
                "validation_share": validation_share,
                "seed": seed,
                "precision": precision,
            }
        )
    except ValidationError as error:
        within, *_, name = map(str, error.errors()[0]["loc"])
        said = bad_option(error)
        if within == "adapt" and name in ("epochs", "batch_size", "learning_rate"):
            said = "--ssl-" + said.removeprefix("--")
        raise TrainingError(said) from error
    keep_freed_memory()
    with resumable():
        sources = Sources(
            _start(start, layers, seed, device),
            start,
            load_encoder(pictures, device=device) if ssl == "convirt" else None,
            None if clean is None else _cleaner(clean, device),
        )
        read = open_catalogs(catalogs, profile, images_root, mapping, on_duplicate)
        run_categories(sources, read, label, out, config, table=table, least=least)
    for source in read:
        say_left_out(source)


def _start(
    name: str, layers: int | None, seed: int, device: str | None
) -> Callable[[Sequence[str], Path], TitleEncoder]:
    """What makes the encoder that a run begins with."""
    from indexing.errors import TrainingError
    from indexing.models import usable_device
    from indexing.models.categorizer.bert import TOKENIZER, open_start
    from training.categories.new import SIZES, new_encoder

    place = usable_device(device)
    if name in SIZES and not Path(name).is_dir():
        if layers is not None:
            raise TrainingError(f"--layers is for the folder of a model, and --from is {name}")
        size: dict[str, Any] = SIZES[name]
        return lambda titles, folder: new_encoder(titles, size, folder / TOKENIZER, seed=seed).to(
            place
        )
    opened = open_start(Path(name), layers)
    return lambda titles, folder: opened.to(place)


def _cleaner(name: str, device: str | None) -> TrainedEncoder:
    from indexing.errors import TrainingError
    from indexing.models import load_encoder
    from indexing.models.albef.encoder import AlbefEncoder
    from indexing.models.clip import ClipEncoder

    encoder = load_encoder(name, device=device)
    if not isinstance(encoder, (ClipEncoder, AlbefEncoder)) or encoder.pruning is None:
        raise TrainingError(
            f"--clean {name} was trained without token pruning: train one with `shoplens train "
            "clip --preset calibrated`"
        )
    return encoder
