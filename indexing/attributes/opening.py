"""Opening what reads attributes: classifiers of products, and categorisers of titles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from indexing.attributes.record import AttributesRecord
from indexing.attributes.vocabulary import KINDS, AttributeClassifier, Kind
from indexing.errors import ModelError, TrainingError


def load_classifier(kind: Kind, folder: str | Path) -> AttributeClassifier:
    """What `shoplens train attributes` or `shoplens train categories` wrote. Raises ModelError."""
    if kind == "attributes":
        from indexing.models.cma_clip import load_attributes

        return load_attributes(folder)
    from indexing.attributes.categories import CategoryReader
    from indexing.attributes.labels import read_labels
    from indexing.models.categorizer import load_categorizer
    from indexing.models.cma_clip.classifier import LABELS

    categorizer = load_categorizer(folder)
    try:
        return CategoryReader(categorizer, read_labels(Path(folder) / LABELS))
    except TrainingError as error:
        raise ModelError(str(error)) from error


def load_classifiers(
    places: Mapping[Kind, Path | None], record: AttributesRecord | None = None
) -> list[AttributeClassifier]:
    """Those that are in these folders, and of the other kinds those of an index.

    Raises ModelError where one cannot be opened, and as `check_apart` does.
    """
    known = {} if record is None else {source.kind: source.name for source in record.sources}
    found: list[AttributeClassifier] = []
    for kind in KINDS:
        place = places.get(kind)
        if place is not None:
            found.append(load_classifier(kind, place))
        elif kind in known:
            try:
                found.append(load_classifier(kind, known[kind]))
            except ModelError as error:
                raise ModelError(
                    f"{error}; it fills in the attributes of the index: say with --{kind} where "
                    "it is"
                ) from error
    check_apart(found)
    return found


def check_apart(classifiers: Sequence[AttributeClassifier]) -> None:
    """Raises ModelError where two of them read an attribute of one name."""
    first: dict[str, AttributeClassifier] = {}
    for classifier in classifiers:
        for attribute in classifier.attributes:
            other = first.setdefault(attribute.name, classifier)
            if other is not classifier:
                raise ModelError(
                    f"{other.name} and {classifier.name} both read {attribute.name!r}: leave one "
                    f"of them out, or train --{other.kind} without it"
                )
