"""The episode sampler: right shapes, no leaks, seeded, balanced or not."""

import numpy as np
import pytest
import torch

from data import episodes
from data.episodes import Episode, EpisodeSampler, TaskSpec, rows_of
from data.errors import UserError
from data.items import LabelledItems


def numbered(counts=(30, 30, 25, 40, 31)):
    """Items whose value tells their class and number: class · 1000 + number, in shuffled order."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    items = labels * 1000 + torch.cat([torch.arange(n) for n in counts])
    order = torch.randperm(len(items))
    return LabelledItems(items[order, None].float(), labels[order], tuple("abcde"[: len(counts)]))


@pytest.mark.parametrize("imbalance", [None, 2.0, 0.3])
@pytest.mark.parametrize(("way", "shot", "queries"), [(2, 1, 3), (5, 5, 15), (3, 2, 10)])
def test_tasks_are_what_they_claim(way, shot, queries, imbalance):
    sampler = EpisodeSampler(numbered((81, 90, 80, 100, 85)), TaskSpec(way, shot, queries, imbalance))
    episode = sampler.sample(50, seed=3)
    assert episode.support_x.shape == (50, way * shot, 1)
    assert episode.query_x.shape == (50, way * queries, 1)
    for t in range(50):
        support, query = episode.support_x[t, :, 0], episode.query_x[t, :, 0]
        values = torch.cat([support, query])
        assert len(values.unique()) == len(values), "an item appears twice in a task"
        class_of = {int(y): int(x) // 1000 for x, y in zip(support, episode.support_y[t], strict=True)}
        assert len(set(class_of.values())) == way
        assert all(int(x) // 1000 == class_of[int(y)] for x, y in zip(query, episode.query_y[t], strict=True))
    counts = torch.stack([torch.bincount(y, minlength=way) for y in episode.query_y])
    if imbalance is None:
        assert (counts == queries).all()
    else:
        assert (counts.sum(-1) == way * queries).all()
        assert counts.float().std() > 0


def even_bank(images):
    """Five classes of as many images each."""
    items = torch.arange(5.0 * images)[:, None]
    return LabelledItems(items, torch.arange(5).repeat_interleave(images), tuple("abcde"))


def query_shares(sampler, tasks):
    """``[tasks, way]`` shares of the queries, one call of 5000 tasks at a time."""
    parts = [sampler.sample_indices(5000, seed=seed)[2] for seed in range(tasks // 5000)]
    return torch.stack([torch.bincount(y, minlength=5) for y in torch.cat(parts)]) / parts[0].shape[1]


def reference_shares(capacity, queries=75, draws=200_000):
    """Dirichlet(2) proportions of five classes, rounded by largest remainders, where no class gets more than its capacity."""
    quota = queries * np.random.default_rng(0).dirichlet(np.full(5, 2.0), size=draws)
    counts = np.floor(quota)
    order = np.argsort(counts - quota, axis=1)
    np.put_along_axis(
        counts, order, np.take_along_axis(counts, order, 1) + (np.arange(5) < queries - counts.sum(1)[:, None]), 1
    )
    return torch.from_numpy(counts[counts.max(1) <= capacity] / queries)


def moment_error(shares):
    """Standard errors of the mean share and of its variance, over all classes alike."""
    centred = (shares - shares.mean()).double()
    return float(centred.std() / len(shares) ** 0.5), float(centred.square().std() / len(shares) ** 0.5)


@pytest.mark.parametrize("images", [60, 76])
def test_imbalanced_proportions_are_dirichlet(images):
    """As many images as the drawn test letters have, and as many as serve every draw: the variance is the Dirichlet's."""
    sampler = EpisodeSampler(even_bank(images), TaskSpec(5, 1, 15, imbalance=2.0))
    assert sampler.acceptance > 0.999
    share = query_shares(sampler, 20_000)
    exact = float(torch.distributions.Dirichlet(torch.full((5,), 2.0)).variance[0])  # 0.01455
    mean_error, variance_error = moment_error(share)
    torch.testing.assert_close(share.mean(0), torch.full((5,), 0.2), atol=4 * mean_error, rtol=0)
    # rounding to whole queries adds at most the variance of a uniform number of width one
    rounding = 1 / 12 / 75**2
    assert exact - 3 * variance_error < float(share.var(0).mean()) < exact + rounding + 3 * variance_error
    torch.testing.assert_close(share.var(0).double(), reference_shares(76).var(0), atol=4 * variance_error, rtol=0)


@pytest.mark.filterwarnings("ignore:.*drawn again")
def test_few_images_truncate_the_dirichlet_and_clip_nothing():
    """30 images serve 29 of 75 queries: the law is the Dirichlet given that no class asks for more (variance 0.0089; clipping
    at 29 would give 0.0106)."""
    sampler = EpisodeSampler(even_bank(30), TaskSpec(5, 1, 15, imbalance=2.0))
    share, reference = query_shares(sampler, 20_000), reference_shares(29)
    _, variance_error = moment_error(share)
    torch.testing.assert_close(share.var(0).double(), reference.var(0), atol=4 * variance_error, rtol=0)
    for largest in (20, 25, 29):  # the whole law of the largest count, which clipping heaps up at 29
        expected = float((reference.max(1).values * 75 >= largest - 0.5).double().mean())
        assert float((share.max(1).values * 75 >= largest - 0.5).double().mean()) == pytest.approx(expected, abs=0.015)
    assert sampler.acceptance == pytest.approx(len(reference) / 200_000, abs=0.03)


def test_few_images_are_told():
    with pytest.warns(
        UserWarning, match=r"^test: class 'a' has 30 images, and imbalanced tasks of 75 queries .* 3.% of the draws"
    ):
        EpisodeSampler(even_bank(30), TaskSpec(5, 1, 15, imbalance=2.0), split="test")
    with pytest.raises(UserError, match="lower queries"):
        EpisodeSampler(even_bank(17), TaskSpec(5, 1, 15, imbalance=2.0))
    assert EpisodeSampler(even_bank(17), TaskSpec(5, 1, 15)).acceptance == 1


@pytest.mark.filterwarnings("ignore:.*drawn again")
def test_the_smallest_classes_say_what_can_be_served():
    sizes = (30, 30, 30, 30, 30, *[200] * 20)
    uneven = EpisodeSampler(numbered(sizes), TaskSpec(5, 1, 15, imbalance=2.0))
    assert uneven.acceptance == EpisodeSampler(even_bank(30), TaskSpec(5, 1, 15, imbalance=2.0)).acceptance


def test_classes_that_can_serve_all_queries_serve_every_draw():
    """Nobody has to try it; with one item less, classes that all queries are of, as here in 3 of 10 draws, cannot."""
    spec = TaskSpec(3, 1, 2, imbalance=0.3)
    assert EpisodeSampler(numbered((7, 7, 7)), spec).acceptance == 1
    with pytest.warns(UserWarning, match="drawn again"):
        assert EpisodeSampler(numbered((6, 6, 6)), spec).acceptance == pytest.approx(0.7, abs=0.03)
    assert EpisodeSampler(numbered((6, 7, 7)), spec).acceptance == pytest.approx(0.9, abs=0.02), "it is one of three"


def test_every_item_and_class_is_equally_likely():
    sampler = EpisodeSampler(numbered((20, 20, 20)), TaskSpec(2, 1, 3))
    support, query, _, classes = sampler.sample_indices(20_000, seed=0)
    for index in (support, query):
        frequency = torch.bincount(index.flatten(), minlength=60) / index.numel()
        torch.testing.assert_close(frequency, torch.full((60,), 1 / 60), atol=0.002, rtol=0)
    assert (torch.bincount(classes.flatten()) / classes.numel() - 1 / 3).abs().max() < 0.01


@pytest.mark.parametrize("counts", [(6, 9, 6, 20, 7), (6, 6, 7, 6, 6), (20, 6, 6, 6, 6), (9, 9, 9, 9, 9)])
def test_balanced_tasks_are_imbalanced_ones_whose_classes_happen_to_be_equal(counts, monkeypatch):
    """Their queries are found without counting; some classes have as few items as a task takes, others more."""
    source = numbered(counts)
    monkeypatch.setattr(episodes, "draw_counts", lambda spec, tasks, generator: torch.full((tasks, spec.way), spec.queries))
    counted = EpisodeSampler(source, TaskSpec(way=3, shot=2, queries=4, imbalance=2.0))
    expected = counted.sample_indices(40, seed=5)
    found = EpisodeSampler(source, TaskSpec(way=3, shot=2, queries=4)).sample_indices(40, seed=5)
    assert all(map(torch.equal, found, expected))
    assert torch.equal(source.labels[found[1]], found[3].gather(1, found[2])), "items of other classes"
    found[2][0] += 1
    assert torch.equal(found[2][1:], expected[2][1:]), "labels of one task are those of another"


@pytest.mark.filterwarnings("ignore:.*drawn again")
def test_a_small_class_is_asked_for_no_more_items_than_it_has():
    """Though other classes of its task are asked for more."""
    source = numbered((30, 30, 30, 30, 6))
    found = EpisodeSampler(source, TaskSpec(way=2, shot=1, queries=4, imbalance=0.5)).sample_indices(200, seed=0)
    assert torch.equal(source.labels[found[1]], found[3].gather(1, found[2]))


def test_seed_decides():
    sampler = EpisodeSampler(numbered(), TaskSpec(3, 1, 5))
    first, again, other = (sampler.sample(4, seed=s) for s in (1, 1, 2))
    assert torch.equal(first.query_x, again.query_x)
    assert not torch.equal(first.query_x, other.query_x)


def test_bad_tasks_are_named():
    with pytest.raises(UserError, match="too few for 6-way tasks: lower `way`"):
        EpisodeSampler(numbered(), TaskSpec(6), split="test split")
    with pytest.raises(UserError, match="'c' has 25 images"):
        EpisodeSampler(numbered(), TaskSpec(5, 11, 15))
    for bad in ({"way": 1}, {"shot": -1}, {"queries": 0}, {"imbalance": 0.0}):
        with pytest.raises(UserError):
            TaskSpec(**bad)


def test_without_a_support_classes_must_keep_their_numbers():
    with pytest.raises(UserError, match="shot = 0 leaves nothing to tell them by"):
        EpisodeSampler(numbered(), TaskSpec(3, 0, 5))
    with pytest.raises(UserError, match="`shot=-1` must be a whole number, 0 or more"):
        TaskSpec(3, -1, 5)


def lettered(sizes=(4, 6, 3), images=8):
    """Classes named by alphabet, in no order, whose items are the number of their alphabet."""
    names = [f"{'ABC'[a]}/letter{i}" for a, size in enumerate(sizes) for i in range(size)]
    order = torch.randperm(len(names)).tolist()
    names = [names[i] for i in order]
    numbers = torch.tensor([float("ABC".index(name[0])) for name in names])
    labels = torch.arange(len(names)).repeat_interleave(images)
    return LabelledItems(numbers[labels][:, None], labels, tuple(names))


def test_tasks_within_alphabets():
    sampler = EpisodeSampler(lettered(), TaskSpec(3, 1, 4, within_alphabet=True))
    task = sampler.sample(3000, seed=0)
    alphabets = torch.cat([task.support_x, task.query_x], dim=1)[..., 0]
    assert (alphabets == alphabets[:, :1]).all(), "a task has one alphabet"
    *_, classes = sampler.sample_indices(3000, seed=0)
    assert all(len(row.unique()) == 3 for row in classes)
    shares = torch.bincount(alphabets[:, 0].long(), minlength=3) / 3000
    assert (shares - 1 / 3).abs().max() < 4 * (2 / 9 / 3000) ** 0.5, "each alphabet is as likely"
    own = torch.bincount(classes.flatten(), minlength=13)[[name[0] == "B" for name in sampler.source.class_names]]
    assert (own / own.sum() - 1 / 6).abs().max() < 0.02, "and each of its classes"


def test_tasks_across_alphabets_are_drawn_as_ever():
    across = EpisodeSampler(lettered(), TaskSpec(3, 1, 4)).sample(50, seed=0).support_x[..., 0]
    assert not (across == across[:, :1]).all(-1).all()


def test_more_ways_than_an_alphabet_has_are_one_line():
    with pytest.raises(
        UserError, match=r"^test: the alphabet C has 3 classes, too few for 4-way tasks within alphabets: lower"
    ):
        EpisodeSampler(lettered(), TaskSpec(4, 1, 4, within_alphabet=True), split="test")
    with pytest.raises(UserError, match=r"^data: the class 'a' is of no alphabet: .* named alphabet/character"):
        EpisodeSampler(numbered(), TaskSpec(3, 1, 4, within_alphabet=True))


@pytest.mark.parametrize("imbalance", [None, 2.0])
def test_the_support_of_described_classes_is_their_first_item_which_is_no_query(imbalance):
    source = numbered((81, 90, 80, 100, 85))
    first = {label: source.items[source.labels == label][0] for label in range(5)}  # which is not number 0: items are shuffled
    task = EpisodeSampler(source, TaskSpec(4, 1, 10, imbalance, described=True)).sample(200, seed=0)
    classes = (task.support_x[..., 0] // 1000).long()
    assert torch.equal(task.support_x, torch.stack([torch.stack([first[c] for c in row]) for row in classes.tolist()]))
    assert torch.equal((task.query_x[..., 0] // 1000).long(), classes.gather(1, task.query_y))
    described = torch.stack(list(first.values()))[:, 0]
    assert not torch.isin(task.query_x[..., 0], described).any()
    assert len(task.query_x.unique()) == len(source) - 5, "all other items are queries, in one task or another"


def test_a_class_has_one_description():
    with pytest.raises(UserError, match="`shot=2`: classes have one description each: leave out `shot`"):
        TaskSpec(3, 2, described=True)


@pytest.mark.parametrize("place", [("cpu",), (torch.device("cpu"),), (torch.float64,), ("cpu", torch.float64)])
def test_tasks_move_as_tensors_do(place):
    episode = EpisodeSampler(numbered(), TaskSpec(way=3)).sample(2, seed=1)
    named = {"device" if isinstance(one, str | torch.device) else "dtype": one for one in place}
    for moved in (episode.to(*place), episode.to(**named)):
        assert moved.query_x.dtype == named.get("dtype", torch.float32)
        assert moved.support_y.dtype == torch.int64
        torch.testing.assert_close(moved.query_x, episode.query_x.to(*place), rtol=0, atol=0)


def test_what_is_waited_for_on_the_way():
    """Copies from the CPU to a GPU are not, in either case; indices that a CPU reads are."""
    seen = []

    class Watched(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            if func is torch.Tensor.to:
                seen.append((args[0].device.type, torch.device(args[1]).type, kwargs["non_blocking"]))
                return args[0]
            return super().__torch_function__(func, types, args, kwargs or {})

    tensor = torch.zeros(1, 2, 3).as_subclass(Watched)
    Episode(tensor, tensor, tensor, None, 2).to("cuda")
    Episode(tensor, tensor, tensor, None, 2).to("cpu")
    rows_of(torch.arange(4), torch.tensor([2, 1]).as_subclass(Watched))
    assert seen == [("cpu", "cuda", True)] * 3 + [("cpu", "cpu", False)] * 4
