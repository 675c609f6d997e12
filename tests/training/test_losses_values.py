"""The further losses against plain loops over views and pairs, and their memories step by step."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pytorch_metric_learning.losses import NTXentLoss, SupConLoss
from torch import Tensor
from torch.nn import functional

from indexing.errors import TrainingError
from training.losses import PairLoss
from training.losses.auc import AUC, MOST_PAIRS
from training.losses.contrastive_gap import ContrastiveGap
from training.losses.cwcl import CWCL
from training.losses.global_contrast import ISogCLR, SogCLR
from training.losses.infonce import InfoNCE
from training.losses.mixing import MoCHi, mixed_scores
from training.losses.multi_similarity import MultiSimilarity
from training.losses.multi_view import MVDHEL, MVInfoNCE

Doubles = NDArray[np.float64]
K = 5.0
PIDS = torch.tensor([0, 1, 1, 2, 3, 3])
TITLES = torch.tensor([3, 0, 1, 1])
IGNORE = torch.zeros(6, 4, dtype=torch.bool)
IGNORE[0, 2] = True
# So picture 0 is not told from the pictures that title 2 belongs to, nor title 2 from those of
# picture 0.
LINKED = {"picture": {(0, 1), (1, 0), (0, 2), (2, 0)}, "title": {(2, 1), (1, 2)}}
BATCH = {"image_pid": PIDS, "text_pid": TITLES, "ignore": IGNORE}


def unit(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(
        torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1
    )


IMAGES, TEXTS = unit(6, 5), unit(4, 5, seed=1)


def value(loss: PairLoss, images: Tensor = IMAGES, texts: Tensor = TEXTS, **rest: Any) -> float:
    return float(loss(images, texts, torch.tensor(K, dtype=torch.float64), **rest)["loss"])


def plain_clip() -> float:
    return value(InfoNCE(), **BATCH)


def other(kind: str, a: int, b: int) -> bool:
    """Whether these two pictures or titles are of two products that may be told apart."""
    pids = PIDS if kind == "picture" else TITLES
    return bool(pids[a] != pids[b]) and (a, b) not in LINKED[kind]


@pytest.mark.parametrize("across", [False, True])
def test_cua_is_clip_with_alignment_and_uniformity(across: bool) -> None:
    x, y, px, py = IMAGES.numpy(), TEXTS.numpy(), PIDS.tolist(), TITLES.tolist()

    def spread(a: Doubles, b: Doubles, counted: list[tuple[int, int]]) -> float:
        terms = [math.exp(-2 * float(((a[i] - b[j]) ** 2).sum())) for i, j in counted]
        return math.log(sum(terms) / len(terms))

    own = [(i, j) for i, j in product(range(6), range(4)) if px[i] == py[j]]
    aligned = sum(float(((x[i] - y[j]) ** 2).sum()) for i, j in own) / len(own)
    among_x = [(i, j) for i, j in product(range(6), range(6)) if other("picture", i, j)]
    among_y = [(i, j) for i, j in product(range(4), range(4)) if other("title", i, j)]
    expected = plain_clip() + 0.7 * aligned
    expected += 0.3 * (spread(x, x, among_x) + spread(y, y, among_y)) / 2
    if across:
        pairs = product(range(6), range(4))
        apart = [(i, j) for i, j in pairs if px[i] != py[j] and not IGNORE[i, j]]
        expected += 0.3 * spread(x, y, apart)
    loss = ContrastiveGap(across=across, align=0.7, uniform=0.3)
    assert value(loss, **BATCH) == pytest.approx(expected, rel=1e-12)


def test_cua_of_one_product_has_nothing_to_spread() -> None:
    one = torch.zeros(3, dtype=torch.int64)
    images = unit(3, 5)
    cosines = images @ images.T
    assert value(
        ContrastiveGap(), images, images, image_pid=one, text_pid=one
    ) == pytest.approx(value(InfoNCE(), images, images, image_pid=one, text_pid=one)
                       + float((2 - 2 * cosines).mean()))  # fmt: skip


def views() -> list[tuple[str, int, int, Doubles]]:
    """Every view: its kind, its row, its product and its vector."""
    pictures = [("picture", i, p, IMAGES[i].numpy()) for i, p in enumerate(PIDS.tolist())]
    return [*pictures, *(("title", j, p, TEXTS[j].numpy()) for j, p in enumerate(TITLES.tolist()))]


def share(view: tuple[str, int, int, Doubles]) -> float:
    """All titles of a product together are one view."""
    return 1.0 if view[0] == "picture" else 1 / TITLES.tolist().count(view[2])


def may_meet(a: tuple[str, int, int, Doubles], b: tuple[str, int, int, Doubles]) -> bool:
    """Whether two views are a positive or a negative pair."""
    if a[:2] == b[:2]:
        return False
    if a[0] != b[0]:
        picture, title = (a, b) if a[0] == "picture" else (b, a)
        return not IGNORE[picture[1], title[1]]
    if a[2] == b[2]:
        return a[0] == "picture"
    return other(a[0], a[1], b[1])


def test_mv_infonce_is_the_share_of_own_views() -> None:
    terms = []
    for number in range(4):
        own = all_ = 0.0
        for a in views():
            for b in views():
                if a[2] == number and may_meet(a, b):
                    term = share(a) * share(b) * math.exp(K * float(a[3] @ b[3]))
                    all_ += term
                    own += term if b[2] == number else 0.0
        if own:  # product 2 has one view
            terms.append(-math.log(own / all_))
    assert len(terms) == 3
    assert value(MVInfoNCE(), **BATCH) == pytest.approx(float(np.mean(terms)), rel=1e-12)


def test_mv_dhel_attracts_views_and_repels_within_a_kind() -> None:
    terms = []
    for number in range(4):
        own = [view for view in views() if view[2] == number]
        attracted = sum(
            share(a) * share(b) * math.exp(K * float(a[3] @ b[3]))
            for n, a in enumerate(own)
            for b in own[n + 1 :]
            if may_meet(a, b)
        )
        if not attracted:
            continue
        repelled = 0.0
        for a in own:
            against = [b for b in views() if b[0] == a[0] and b[2] != number and may_meet(a, b)]
            energy = sum(share(b) * math.exp(K * float(a[3] @ b[3])) for b in against)
            repelled += share(a) * math.log(energy)
        terms.append(repelled - math.log(attracted))
    assert value(MVDHEL(), **BATCH) == pytest.approx(float(np.mean(terms)), rel=1e-12)


@pytest.mark.parametrize("kind", [MVInfoNCE, MVDHEL])
def test_a_title_beside_each_picture_of_its_product_counts_once(kind: type[PairLoss]) -> None:
    """As training gives them: two and three pictures of a product, each with the title."""
    images, titles, pids = unit(6, 5), unit(3, 5, seed=1), torch.tensor([0, 0, 1, 1, 1, 2])
    found, gradients = [], []
    for rows in (torch.arange(3), pids):
        pictures, once = images.clone().requires_grad_(), titles.clone().requires_grad_()
        loss = kind()(
            pictures, once[rows], torch.tensor(20.0), image_pid=pids, text_pid=torch.arange(3)[rows]
        )["loss"]
        loss.backward()
        assert pictures.grad is not None
        assert once.grad is not None
        found.append(loss.item())
        gradients.append(torch.cat([pictures.grad, once.grad]))
    assert found[1] == pytest.approx(found[0], rel=1e-12)
    torch.testing.assert_close(gradients[1], gradients[0])


def test_mv_losses_do_not_overflow() -> None:
    images = unit(40, 8).float()
    for loss in (MVDHEL(), MVInfoNCE()):
        found = loss(images, images, torch.tensor(5000.0))["loss"]
        assert found.isfinite()


def test_with_one_picture_each_mv_infonce_bounds_nt_xent_of_the_public_library() -> None:
    images, texts = unit(7, 6), unit(7, 6, seed=1)
    labels = torch.arange(7).repeat(2)
    expected = NTXentLoss(temperature=1 / K)(torch.cat([images, texts]), labels)
    terms = []
    stacked = torch.cat([images, texts])
    scores = (K * stacked @ stacked.T).exp().fill_diagonal_(0)
    for i in range(7):
        terms.append(-math.log(2 * scores[i, 7 + i] / (scores[i] + scores[7 + i]).sum()))
    assert value(MVInfoNCE(), images, texts) == pytest.approx(np.mean(terms), rel=1e-12)
    # It sums up the denominators of both views, and NT-Xent their logarithms.
    assert value(MVInfoNCE(), images, texts) >= float(expected)


def test_multi_positive_infonce_is_supcon_of_the_public_library_where_it_compares_alike() -> None:
    """A catalog of pictures against titles of the same products, as references."""
    images, texts = unit(6, 5), unit(6, 5, seed=1)
    labels = PIDS.clone()  # the library takes the same tensor for the same views
    rows = SupConLoss(temperature=1 / K)(images, PIDS, ref_emb=texts, ref_labels=labels)
    back = SupConLoss(temperature=1 / K)(texts, PIDS, ref_emb=images, ref_labels=labels)
    found = value(InfoNCE(), images, texts, image_pid=PIDS, text_pid=PIDS)
    assert found == pytest.approx(float(rows + back) / 2, rel=1e-9)


def sogclr_by_hand(
    batches: list[tuple[Doubles, Doubles, list[int]]], gamma: float
) -> tuple[list[float], dict[tuple[int, int], float]]:
    """Values and, by way and row, u without any shift; one-to-one pairs, loop by loop."""
    memory: dict[tuple[int, int], float] = {}
    found = []
    for x, y, rows in batches:
        total = 0.0
        for way, (a, b) in enumerate(((x, y), (y, x))):
            per_row = []
            for i, row in enumerate(rows):
                gaps = [float(a[i] @ b[j] - a[i] @ b[i]) for j in range(len(rows)) if j != i]
                now = float(np.mean([math.exp(K * gap) for gap in gaps]))
                before = memory.get((way, row))
                u = now if before is None else (1 - gamma) * before + gamma * now
                memory[way, row] = u
                per_row.append(np.mean([math.exp(K * gap) / u * gap for gap in gaps]))
            total += float(np.mean(per_row))
        found.append(total)
    return found, memory


def sog_batches() -> list[tuple[Tensor, Tensor, Tensor]]:
    rows = [[0, 3, 5, 7], [3, 1, 7, 2], [7, 3, 0, 6]]
    return [
        (unit(4, 5, seed=2 * n), unit(4, 5, seed=2 * n + 1), torch.tensor(numbers))
        for n, numbers in enumerate(rows)
    ]


def test_sogclr_remembers_what_earlier_batches_said_of_a_pair() -> None:
    loss, found = SogCLR(9, gamma=0.3), []
    for x, y, rows in sog_batches():
        found.append(value(loss, x, y, sample_idx=rows))
    plain = [(x.numpy(), y.numpy(), rows.tolist()) for x, y, rows in sog_batches()]
    expected, memory = sogclr_by_hand(plain, 0.3)
    assert found == pytest.approx(expected, rel=1e-5)  # the memory is float32
    for (way, row), u in memory.items():
        assert float(loss.log_u[way, row]) == pytest.approx(math.log(u), abs=1e-5)
    assert (loss.log_u[:, 4] == -torch.inf).all()  # never seen


def test_sogclr_without_a_memory_has_the_gradient_of_the_log_of_the_mean() -> None:
    images, texts = unit(5, 6).requires_grad_(), unit(5, 6, seed=1).requires_grad_()
    SogCLR(5)(images, texts, torch.tensor(K, dtype=torch.float64))["loss"].backward()
    found = [images.grad, texts.grad]
    images.grad = texts.grad = None
    cosines = images @ texts.T
    gaps = cosines - cosines.diagonal()[:, None]
    back = cosines.T - cosines.diagonal()[:, None]
    off = ~torch.eye(5, dtype=torch.bool)
    whole = sum((K * way[off].view(5, 4)).exp().mean(1).log().div(K).mean() for way in (gaps, back))
    assert isinstance(whole, Tensor)
    whole.backward()
    for mine, expected in zip(found, [images.grad, texts.grad], strict=True):
        torch.testing.assert_close(mine, expected)


def test_sogclr_survives_exponents_that_overflow() -> None:
    loss = SogCLR(4)
    for seed in range(3):
        images, texts = unit(4, 5, seed=seed).float(), unit(4, 5, seed=seed + 9).float()
        out = loss(images, texts, torch.tensor(2000.0), sample_idx=torch.arange(4))["loss"]
        assert out.isfinite()
    assert loss.log_u.isfinite().all()


def test_sogclr_hears_a_pair_again_that_was_hard_once() -> None:
    """At t = .01: two pairs the wrong way round, then right for long."""
    loss, right = SogCLR(2, gamma=0.8), torch.eye(2, 3)
    rows, scale = torch.arange(2), torch.tensor(100.0)
    loss(right, right.flip(0), scale, sample_idx=rows)
    for visit in range(1, 151):
        images = right.clone().requires_grad_()
        loss(images, right, scale, sample_idx=rows)["loss"].backward()
        # u of either: exp(100) that fades, and exp(-100) of every visit since.
        faded = visit * math.log(0.2) + 100
        since = math.log1p(-(0.2**visit)) - 100
        assert loss.log_u.flatten().tolist() == pytest.approx(
            [np.logaddexp(faded, since)] * 4, abs=1e-3
        )
    assert images.grad is not None
    # As far as they can fall u is the batch's own, and its only negative has weight 1.
    assert float(images.grad[0, 1]) == pytest.approx(1 / 2 + 1 / 2, rel=1e-3)


def test_isogclr_moves_each_temperature_by_its_own_slack() -> None:
    loss = ISogCLR(9, gamma=1.0, rho=0.5, rate=0.02, momentum=0.4)
    [x, y, rows], *_ = sog_batches()
    value(loss, x, y, sample_idx=rows)
    for way, (a, b) in enumerate(((x.numpy(), y.numpy()), (y.numpy(), x.numpy()))):
        for i, row in enumerate(rows.tolist()):
            gaps = np.array([a[i] @ b[j] - a[i] @ b[i] for j in range(4) if j != i])
            u = np.exp(K * gaps).mean()
            slack = math.log(u) + 0.5 - (np.exp(K * gaps) / u * gaps * K).mean()
            expected = min(1.0, max(0.005, 1 / K - 0.02 * 0.4 * slack))
            assert float(loss.t[way, row]) == pytest.approx(expected, rel=1e-5)
    assert not loss.t[:, 1].any()
    # The next batch is scored by these temperatures.
    t = loss.t[0, rows].double()
    fresh = ISogCLR(9, gamma=1.0)
    fresh.t[:, :] = loss.t
    found = value(fresh, x, y, sample_idx=rows)
    total = 0.0
    for way, (a, b) in enumerate(((x, y), (y, x))):
        scale = (1 / (t if way == 0 else loss.t[1, rows].double()))[:, None]
        gaps = (a @ b.T - (a * b).sum(1, keepdim=True))[~torch.eye(4, dtype=torch.bool)].view(4, 3)
        total += float(((gaps * scale).softmax(1) * gaps).sum(1).mean())
    assert found == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("kind", [SogCLR, ISogCLR])
def test_a_memory_that_was_saved_goes_on_the_same(kind: type[SogCLR]) -> None:
    whole, first = kind(9), kind(9)
    expected = [value(whole, x, y, sample_idx=rows) for x, y, rows in sog_batches()]
    x, y, rows = sog_batches()[0]
    assert value(first, x, y, sample_idx=rows) == expected[0]
    resumed = kind(9)
    resumed.load_state_dict(first.state_dict())
    later = [value(resumed, x, y, sample_idx=rows) for x, y, rows in sog_batches()[1:]]
    assert later == expected[1:]


def test_a_memory_wants_pairs() -> None:
    with pytest.raises(TrainingError, match=r"6 pictures and 4 titles: .* one to one"):
        value(SogCLR(9), sample_idx=torch.arange(6), image_pid=PIDS, text_pid=TITLES)


def test_cwcl_counts_negatives_as_far_as_their_pictures_are_alike() -> None:
    teacher = unit(6, 3, seed=7)
    scores = (K * IMAGES @ TEXTS.T).masked_fill(IGNORE, -torch.inf)
    log_p = scores.log_softmax(1)
    rows = []
    for i, pid in enumerate(PIDS.tolist()):
        weights = []
        for j, title in enumerate(TITLES.tolist()):
            pictures = teacher[title == PIDS]
            if IGNORE[i, j]:
                weights.append(0.0)
            elif pid == title:
                weights.append(1.0)
            elif len(pictures) == 0:
                weights.append(0.0)
            else:
                weights.append(math.exp((float((pictures @ teacher[i]).mean()) - 1) / 0.2))
        if pid in TITLES.tolist():
            logs = [0.0 if w == 0 else w * float(log_p[i, j]) for j, w in enumerate(weights)]
            rows.append(-sum(logs) / sum(weights))
    back = scores.log_softmax(0)
    columns = []
    for j, title in enumerate(TITLES.tolist()):
        own = [i for i, pid in enumerate(PIDS.tolist()) if pid == title]
        columns.append(-float(np.mean([float(back[i, j]) for i in own])))
    expected = (np.mean(rows) + np.mean(columns)) / 2
    found = value(CWCL(sharpness=0.2), teacher_image=teacher, **BATCH)
    assert found == pytest.approx(float(expected), rel=1e-12)


def test_cwcl_of_a_sharp_teacher_is_clip_and_without_one_is_refused() -> None:
    teacher = unit(6, 3, seed=7)
    found = value(CWCL(sharpness=1e-3), teacher_image=teacher, **BATCH)
    assert found == pytest.approx(plain_clip(), rel=1e-9)
    with pytest.raises(TrainingError, match="CWCL needs teacher_image"):
        value(CWCL(), **BATCH)
    with pytest.raises(TrainingError, match=r"teacher_image is \[4, 3\]: must be \[6, 3\]"):
        value(CWCL(), teacher_image=teacher[:4], **BATCH)


def test_mixtures_lie_between_the_hardest_negatives_and_the_query() -> None:
    queries, keys = unit(3, 4), unit(8, 4, seed=1)
    negative = torch.ones(3, 8, dtype=torch.bool)
    negative[0, :5] = False
    negative[1] = False
    scores = mixed_scores(queries, keys, negative, (2, 50, 50), torch.Generator().manual_seed(0))
    assert scores.shape == (3, 100)
    assert (scores[1] < -1e100).all()  # nothing to mix
    for row in (0, 2):
        cosines = (keys @ queries[row])[negative[row]].sort(descending=True).values
        # On the arc between the two hardest, or nearer to the query than the second of them.
        pair = keys[negative[row]][(keys[negative[row]] @ queries[row]).topk(2).indices]
        shares = torch.linspace(0, 1, 4001, dtype=torch.float64)[:, None]
        arc = functional.normalize(shares * pair[0] + (1 - shares) * pair[1], dim=1) @ queries[row]
        assert (scores[row, :50] >= arc.min() - 1e-6).all()
        assert (scores[row, :50] <= arc.max() + 1e-6).all()
        assert (scores[row, 50:] >= cosines[1] - 1e-9).all()
        assert scores[row, 50:].max() > cosines[0]


def test_mochi_is_infonce_with_the_mixtures_in_its_denominators() -> None:
    sizes = (3, 4, 5)
    total = 0.0
    for turned, (a, b) in enumerate(((IMAGES, TEXTS), (TEXTS, IMAGES))):
        positive = PIDS[:, None] == TITLES
        ignored = IGNORE
        if turned:
            positive, ignored = positive.T, ignored.T
        positive, negative = positive & ~ignored, ~positive & ~ignored
        generator = torch.Generator().manual_seed(11 + turned * (1 << 40))
        mixed = K * mixed_scores(a, b, negative, sizes, generator)
        rows = []
        for i in range(len(a)):
            own = [j for j in range(len(b)) if positive[i, j]]
            if not own:
                continue
            scores = [K * float(a[i] @ b[j]) for j in range(len(b)) if not ignored[i, j]]
            whole = math.log(sum(map(math.exp, [*scores, *mixed[i].tolist()])))
            rows.append(np.mean([whole - K * float(a[i] @ b[j]) for j in own]))
        total += float(np.mean(rows)) / 2
    assert value(MoCHi(sizes), step=11, **BATCH) == pytest.approx(total, rel=1e-12)
    assert value(MoCHi(sizes), step=11, **BATCH) != value(MoCHi(sizes), step=12, **BATCH)
    assert value(MoCHi((3, 0, 0)), **BATCH) == pytest.approx(plain_clip(), rel=1e-12)


def test_mochi_takes_negatives_from_a_queue() -> None:
    images, texts, queue = unit(3, 5), unit(3, 5, seed=1), unit(7, 5, seed=2)
    total = 0.0
    for a, b in ((images, texts), (texts, images)):
        scores = K * a @ torch.cat([b, queue]).T
        total += float((scores.logsumexp(1) - scores.diagonal()).mean()) / 2
    assert value(MoCHi((3, 0, 0)), images, texts, queue=queue) == pytest.approx(total, rel=1e-12)


def test_multi_similarity_adds_a_term_between_pictures() -> None:
    share, x = 0.25, IMAGES.numpy()
    cosines = x @ x.T
    terms = []
    for i, pid in enumerate(PIDS.tolist()):
        own = [j for j, p in enumerate(PIDS.tolist()) if p == pid and j != i]
        far = [j for j, p in enumerate(PIDS.tolist()) if p != pid]
        hard_own = [j for j in own if cosines[i, j] - 0.1 < max(cosines[i, f] for f in far)]
        near = [j for j in far if own and cosines[i, j] + 0.1 > min(cosines[i, o] for o in own)]
        near = [j for j in near if other("picture", i, j)]
        pull = math.log(1 + sum(math.exp(-2 * (cosines[i, j] - 0.5)) for j in hard_own)) / 2
        push = math.log(1 + sum(math.exp(40 * (cosines[i, j] - 0.5)) for j in near)) / 40
        terms.append(pull + push)
    # Pictures of products that have no other picture still push.
    expected = plain_clip() + share * float(np.mean(terms))
    assert value(MultiSimilarity(share), **BATCH) == pytest.approx(expected, rel=1e-6)


def test_multi_similarity_of_single_pictures_is_infonce() -> None:
    images, texts = unit(5, 6), unit(5, 6, seed=1)
    assert value(MultiSimilarity(), images, texts) == value(InfoNCE(), images, texts)


def test_auc_compares_positives_with_the_negatives_of_all_queries() -> None:
    cosines = (IMAGES @ TEXTS.T).numpy()
    weight = torch.tensor([1.0, 0.5, 2.0, 0.3, 0.7, 0.2])
    positive = (PIDS[:, None] == TITLES).numpy()
    wrong = [float(s) for s in cosines[~positive & ~IGNORE.numpy()]]
    total = divisor = 0.0
    for i, j in zip(*np.nonzero(positive & ~IGNORE.numpy()), strict=True):
        for s in wrong:
            total += float(weight[i]) * math.log1p(math.exp((s - cosines[i, j]) / 0.2))
            divisor += float(weight[i])
    expected = value(InfoNCE(), weight=weight, **BATCH) + 0.4 * total / divisor
    found = value(AUC(0.4, 0.2), weight=weight, **BATCH)
    assert found == pytest.approx(expected, rel=1e-12)


def test_auc_of_many_pairs_is_drawn_and_near_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    images = functional.normalize(torch.randn(400, 16, generator=generator), dim=1)
    texts = functional.normalize(images + 0.3 * torch.randn(400, 16, generator=generator), dim=1)
    cosines = images @ texts.T
    off = ~torch.eye(400, dtype=torch.bool)
    gaps = cosines[off][None, :] - cosines.diagonal()[:, None]
    assert gaps.numel() > MOST_PAIRS
    whole = float(functional.softplus(gaps / 0.1).mean())
    drawn = value(AUC(1.0), images, texts, step=1) - value(InfoNCE(), images, texts)
    assert drawn == pytest.approx(whole, rel=0.02)
    assert value(AUC(1.0), images, texts, step=1) == value(AUC(1.0), images, texts, step=1)
    assert value(AUC(1.0), images, texts, step=1) != value(AUC(1.0), images, texts, step=2)
