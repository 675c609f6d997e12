"""What a folder of an optimised model holds, and how it is checked.

config.json            an `OptimizedConfig`, with the hashes of the other files and its own
picture.*, text.*      the graphs, in the runtime's format
tokenizer.json or vocab.txt   the parent's, where it has a file
clip-tokenizer.json    CLIP's tokens, where it has none
README.md              the model card
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from indexing.durable import replace_bytes, sha256_of
from indexing.errors import ModelError
from indexing.messages import reason
from indexing.models.config_file import CONFIG, invalid
from indexing.models.optimized.runtimes import Precision

FORMAT = "optimized"
CARD = "README.md"
VOCABULARY = "vocab.txt"  # of ALBEF; a CLIP model has tokenizer.json

# How the last token of a text is found: it has the highest id, it is this id, it stands before
# the padding; or the tower takes texts whole.
Ends = Literal["argmax", "padding", "whole"] | int
Share = Annotated[float, Field(ge=-1, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Change(_Strict):
    """A mean and its 95% interval."""

    mean: Share
    low: Share
    high: Share


class Recall(_Strict):
    """A measure of one task by the parent and by the optimised model.

    Attributes:
        task: in words.
        against: whose vectors of the gallery the optimised model's queries were compared with.
        cutoff: K of Recall@K.
        change: optimised - parent, paired over queries.
    """

    task: str
    against: Literal["parent", "own"]
    queries: int
    cutoff: Literal[1, 5, 10]
    before: Share
    after: Share
    change: Change


class Gate(_Strict):
    """What the optimised model was measured to lose.

    Attributes:
        passed: no Recall@1 may have lost more than `margin`, by its 95% interval; with it an
            index of the parent takes this model's queries.
        cosines: of "pictures" and "titles" with the parent's vectors: mean and least.
    """

    passed: bool
    margin: Share
    catalog: str
    cosines: dict[str, tuple[float, float]]
    recalls: tuple[Recall, ...]


class ParentRecord(_Strict):
    """The encoder that the graphs were drawn of."""

    name: str
    fingerprint: str
    dim: int


class OptimizedConfig(_Strict):
    """config.json.

    Attributes:
        format: tells these folders from others.
        versions: of the libraries that made the graphs.
        floats: the type of what is not int8; bfloat16 only where the processor has it.
        kept: nodes of each graph that stay in floats.
        calibration: examples of each graph that ranges were taken from.
        ends: how the last token of a text is found.
        model: config.json of the parent, for its pictures and tokens.
        gate: None where nothing was measured.
        files: SHA-256 of the other files.
    """

    format: Literal["optimized"] = "optimized"
    runtime: Literal["openvino", "onnx"]
    precision: Precision
    versions: dict[str, str]
    floats: Literal["float32", "bfloat16"] = "float32"
    kept: dict[str, tuple[str, ...]] = {}
    calibration: dict[str, int] = {}
    ends: Ends
    parent: ParentRecord
    model: dict[str, Any]
    gate: Gate | None = None
    files: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 over all that the folder says and holds."""
        content = self.model_dump(mode="json")
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def is_optimized_folder(folder: Path) -> bool:
    """Whether a folder's config.json is that of an optimised model."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("format") == FORMAT


def write_config(folder: Path, config: OptimizedConfig) -> None:
    """Writes config.json, which makes the files beside it a model."""
    content = {**config.model_dump(mode="json"), "sha256": config.fingerprint}
    replace_bytes(folder / CONFIG, (json.dumps(content, indent=2) + "\n").encode())


def read_config(folder: Path) -> OptimizedConfig:
    """The checked config.json of a folder whose files are as it says.

    Raises:
        ModelError: It cannot be read, was changed, or a file is missing or differs.
    """
    again = "make it again with `shoplens optimize`"
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        signed = content.pop("sha256", None)
        config = OptimizedConfig.model_validate(content)
    except ValidationError as error:
        raise ModelError(f"{folder / CONFIG} has {invalid(error)}: {again}") from error
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{folder / CONFIG} cannot be read: {reason(error)}") from error
    if signed != config.fingerprint:
        raise ModelError(f"{folder / CONFIG} was changed since it was written: {again}")
    for name, expected in config.files.items():
        try:
            found = sha256_of(folder / name)
        except OSError as error:
            raise ModelError(f"{folder / name} cannot be read: {reason(error)}") from error
        if found != expected:
            raise ModelError(f"{folder / name} is damaged: {again}")
    return config
