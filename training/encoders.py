"""What can be trained: the encoders that training knows, by their common members."""

from __future__ import annotations

from indexing.models.albef.encoder import AlbefEncoder
from indexing.models.clip import ClipEncoder

TrainedEncoder = ClipEncoder | AlbefEncoder
