"""Two processes that train together do what one does alone, to rounding."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from indexing.models import load_encoder
from indexing.models.albef.encoder import AlbefEncoder
from indexing.models.clip import ClipEncoder, load_folder
from training.distributed import Ranks, joined

WORKER = Path(__file__).parent / "one_rank.py"
CASES = ["plain", "pruning", "masks", "siglip", "teacher", "memory", "unreadable"]
ALBEF_CASES = ["albef", "albef pruning", "albef unreadable"]


@dataclass
class Together:
    """What two processes left behind."""

    folder: Path
    codes: list[int]
    errors: list[str]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Together:
    folder = tmp_path_factory.mktemp("together")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ,
        **{"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        **{"OMP_NUM_THREADS": "1", "PYTHONPATH": str(WORKER.parents[2])},
    }
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(folder)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        # The last thing they do is that one of them fails: neither may wait for ever.
        errors = [worker.communicate(timeout=120)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    return Together(folder, [worker.returncode for worker in workers], errors)


@pytest.fixture(scope="module")
def worker() -> Any:
    """one_rank.py as a module of this process."""
    sys.path.insert(0, str(WORKER.parent))
    spec = importlib.util.spec_from_file_location("one_rank", WORKER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(WORKER.parent))
    return module


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one_does(
    together: Together, worker: Any, tiny: Any, case: str
) -> None:
    alone, encoder = worker.train(tiny, case, None)
    expected = worker.state(encoder)
    assert len(alone) == 3
    assert ("delta" in expected) == ("preset" in worker.CASES[case])
    first, second = (torch.load(together.folder / f"rank{n}" / f"{case}.pt") for n in (0, 1))
    losses = json.loads((together.folder / "rank0" / f"{case}.json").read_text())
    assert losses == pytest.approx(alone, abs=1e-5)
    assert json.loads((together.folder / "rank1" / f"{case}.json").read_text()) == []
    start = worker.state(tiny.encoder())
    assert expected.keys() == first.keys()
    for name, value in expected.items():
        assert torch.equal(first[name], second[name]), name  # and stay so for good
        torch.testing.assert_close(first[name], value, rtol=0, atol=1e-6)
    moved = [(expected[name] - start[name]).abs().max() for name in start if name != "logit_scale"]
    assert min(moved) > 1e-5


def albef_of(together: Together, case: str) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """What both processes have in the end, and the losses that the first tells of."""
    first, second = (torch.load(together.folder / f"rank{n}" / f"{case}.pt") for n in (0, 1))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert json.loads((together.folder / "rank1" / f"{case}.json").read_text()) == []
    return json.loads((together.folder / "rank0" / f"{case}.json").read_text()), first


@pytest.mark.parametrize("case", ALBEF_CASES)
def test_but_for_negatives_two_processes_train_albef_as_one_does(
    together: Together, worker: Any, tiny_albef: Any, case: str
) -> None:
    """Hidden words, slow copy and queue among it."""
    alone, expected = worker.train_albef_case(tiny_albef, case, None)
    losses, found = albef_of(together, case)
    assert len(losses) == len(alone) == 3
    for one, other in zip(losses, alone, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=2e-6, msg=name)
    assert ("delta" in expected) == (case != "albef")
    assert (expected["momentum pairs"] != -1).sum() >= 10
    start = tiny_albef.encoder().model.state_dict()
    moved = [name for name, value in start.items() if not torch.equal(value, expected[name])]
    assert len(moved) > 0.9 * len(start)


def test_each_process_looks_for_negatives_in_its_own_share(
    together: Together, worker: Any, tiny_albef: Any
) -> None:
    """Matching is not what it is in one process; the rest of the first step is, and both
    processes end with the same."""
    alone, _ = worker.train_albef_case(tiny_albef, "albef negatives", None)
    losses, _ = albef_of(together, "albef negatives")
    assert len(losses) == len(alone) == 3
    for name in ("itc", "mlm", "penalty"):
        assert losses[0][name] == pytest.approx(alone[0][name], abs=1e-5)
    assert losses[0]["itm"] != pytest.approx(alone[0]["itm"], abs=1e-5)


@pytest.mark.parametrize("case", ALBEF_CASES)
def test_the_first_process_writes_the_albef_model_that_both_have(
    together: Together, case: str
) -> None:
    written = load_encoder(str(together.folder / case / "last"), device="cpu")
    assert isinstance(written, AlbefEncoder)
    trained = torch.load(together.folder / "rank1" / f"{case}.pt")
    for name, value in written.model.state_dict().items():
        assert torch.equal(value, trained[name]), name


@pytest.mark.parametrize("case", CASES)
def test_the_first_process_writes_the_model_that_both_have(together: Together, case: str) -> None:
    written = load_folder(together.folder / case / "last")
    assert isinstance(written, ClipEncoder)
    trained = torch.load(together.folder / "rank1" / f"{case}.pt")
    for name, value in written.model.state_dict().items():
        assert torch.equal(value, trained[name]), name


def test_what_the_first_process_gives_out_all_have(together: Together) -> None:
    for rank in (0, 1):
        given = json.loads((together.folder / f"rank{rank}" / "given.json").read_text())
        assert given == [0, 1, 2]


def test_both_stop_at_the_same_step_where_one_is_asked_to_and_go_on(together: Together) -> None:
    stops = [
        json.loads((together.folder / f"rank{n}" / "stopped.json").read_text()) for n in (0, 1)
    ]
    whole = json.loads((together.folder / "rank0" / "pruning.json").read_text())
    assert stops[1] == [True, []]
    assert stops[0] == [True, whole[1:]]
    for rank in (0, 1):
        folder = together.folder / f"rank{rank}"
        expected, found = torch.load(folder / "pruning.pt"), torch.load(folder / "stopped.pt")
        for name, value in expected.items():
            assert torch.equal(found[name], value), name


def test_where_one_fails_the_other_does_not_wait_for_ever(together: Together) -> None:
    # Not 1 in each: at the exit of a process whose peer is gone gloo's threads may abort it.
    assert all(together.codes)
    assert "OSError: disk gone" in together.errors[1]
    assert "OSError: disk gone" not in together.errors[0]


@given(st.integers(1, 40), st.integers(1, 7))
def test_shares_in_rank_order_are_the_batch(count: int, size: int) -> None:
    shares = []
    for rank in range(size):
        ranks = Ranks("cpu")
        ranks.rank, ranks.size = rank, size
        shares.append(ranks.share(np.arange(count)))
    assert np.concatenate(shares).tolist() == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_alone_nothing_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with joined("cpu") as device:
        assert device == "cpu"
        ranks = Ranks("cpu")
        assert (ranks.rank, ranks.size, ranks.first) == (0, 1, True)
        parameter = torch.nn.Parameter(torch.ones(2))
        ranks.give_out([parameter])
        assert parameter.tolist() == [1, 1]
        with ranks.first_alone():
            assert ranks.agree(3, stop=True) == ([3], True)
