"""Everything shoplens raises on purpose, and nothing else.

    ShoplensError
    ├── CatalogError            a catalog file that cannot be read as a whole
    │   └── DuplicateIdError    two rows claim one product id
    ├── ImageError              a picture that cannot be used, with the reason
    │   └── FetchError          a URL that is refused or fails
    ├── ModelError              an encoder that cannot be loaded
    ├── IndexFolderError        an index folder that cannot be written or opened
    │   ├── IndexCorruptError   a file that is missing or does not match its checksum
    │   ├── IndexMismatchError  an index of another model or another schema version
    │   └── IndexPlanError      an index that the wishes for recall and memory do not allow
    ├── QueryError              a query that cannot be answered
    │   └── WhereError          a filter expression that cannot be parsed or applied
    ├── TrainingError           a training run that cannot start or go on
    ├── BenchmarkError          a benchmark that cannot be built or run
    ├── OverloadedError         a server with as many queries as it may hold
    ├── ServerError             a server that cannot start, or that answers with an error
    └── MissingDependencyError  an optional library that is not installed

Each message is one line that names the bad value and the way out; the command
line prints it as it is and exits with 2.
"""

from __future__ import annotations


class ShoplensError(Exception):
    """Base of all errors raised on purpose; `str(error)` is fit to show a user."""


class CatalogError(ShoplensError):
    """A catalog that cannot be read as a whole (one bad row never raises this)."""


class DuplicateIdError(CatalogError):
    """Two rows of a catalog carry the same product id."""


class ImageError(ShoplensError):
    """A picture that cannot be used."""


class FetchError(ImageError):
    """A picture URL that is refused or cannot be fetched."""


class ModelError(ShoplensError):
    """An encoder name that is unknown, or weights that cannot be loaded."""


class IndexFolderError(ShoplensError):
    """An index folder that cannot be written or opened."""


class IndexCorruptError(IndexFolderError):
    """A file of an index is missing or does not match its SHA-256."""


class IndexMismatchError(IndexFolderError):
    """An index made by another encoder or another schema version."""


class IndexPlanError(IndexFolderError):
    """No index is as small and as good as was asked for, or its type is unknown."""


class QueryError(ShoplensError):
    """A query that cannot be answered."""


class WhereError(QueryError):
    """A `where` expression that cannot be parsed or applied."""


class TrainingError(ShoplensError):
    """A training run that cannot start or go on."""


class BenchmarkError(ShoplensError):
    """A benchmark that cannot be built or run."""


class OverloadedError(ShoplensError):
    """As many queries are waiting as may; one more is refused at once."""


class ServerError(ShoplensError):
    """A server that cannot start; to a client, one that answers with an error or not at all.

    Attributes:
        status: HTTP status; None where there was no answer.
        code: As in the server's JSON, such as "bad_where"; empty where there is none.
        request_id: What the server's log knows the request by.
    """

    def __init__(
        self, message: str, *, status: int | None = None, code: str = "", request_id: str = ""
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.request_id = request_id


class MissingDependencyError(ShoplensError):
    """An optional library is not installed; the message names the extra."""
