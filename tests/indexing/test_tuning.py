from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from indexing import tuning
from indexing.faiss_import import import_faiss
from indexing.tuning import stand_ins, tune
from tests.indexing.test_index_types import DIM, QUERIES, VECTORS
