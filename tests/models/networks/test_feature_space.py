"""The map of features: what it keeps of the base classes, and means of classes."""

import pytest
import torch

from models.networks.feature_space import FeatureSpace, class_means, signed_power
from tests.conftest import gaussian_bank


def test_keeps_the_directions_in_which_class_means_differ_most():
    """The mapped class means have the largest spread that any r orthogonal directions allow, by eigenvalues."""
    bank = gaussian_bank(classes=9, dim=7)
    space = FeatureSpace(7, 3).fit(bank.items, bank.labels)
    means = class_means(torch.nn.functional.normalize(bank.items, dim=-1), bank.labels)
    scatter = (means - means.mean(0)).T @ (means - means.mean(0))
    largest = torch.linalg.eigvalsh(scatter)[-3:].sum()
    mapped = class_means(space(bank.items), bank.labels)
    torch.testing.assert_close(mapped.square().sum(), largest)
    torch.testing.assert_close(space.directions.T @ space.directions, torch.eye(3))


def test_rank_zero_normalises_alone_and_full_rank_turns():
    bank = gaussian_bank(classes=9, dim=5)
    torch.testing.assert_close(FeatureSpace(5)(3 * bank.items), bank.items)
    turned = FeatureSpace(5, 5).fit(bank.items, bank.labels)
    torch.testing.assert_close(torch.cdist(turned(bank.items[:9]), turned(bank.items[:9])), torch.cdist(*2 * [bank.items[:9]]))
    assert not torch.allclose(turned(bank.items), bank.items)


@pytest.mark.parametrize("rank", [0, 3])
def test_a_learned_map_in_two_is_the_map_and_is_learned_as_one(rank):
    bank = gaussian_bank(classes=9, dim=7)
    space = FeatureSpace(7, rank, power=0.5, learned=True).fit(bank.items, bank.labels)
    first, last = space.in_two()
    kept = first(bank.items)
    for _ in range(2):
        torch.testing.assert_close(last(kept), space(bank.items), rtol=0, atol=0)
        last.change.data.normal_()
    last.double()
    assert all(tensor.dtype == torch.double for tensor in space.state_dict().values())
    assert first.state_dict().keys() == last.state_dict().keys() == space.state_dict().keys()


def test_a_map_that_is_not_learned_stays_whole():
    space = FeatureSpace(7, 3)
    assert space.in_two() == (space, None)


def test_too_few_classes_for_the_directions():
    bank = gaussian_bank(classes=3, dim=5)
    with pytest.raises(ValueError, match="3 base classes"):
        FeatureSpace(5, 3).fit(bank.items, bank.labels)


def test_class_means_of_batched_tasks():
    features, labels = torch.randn(2, 6, 4), torch.tensor([[0, 1, 1, 0, 0, 1], [1, 1, 1, 1, 1, 1]])
    means = class_means(features, labels, 3)
    torch.testing.assert_close(means[0, 1], features[0, [1, 2, 5]].mean(0))
    torch.testing.assert_close(means[1], torch.stack([torch.zeros(4), features[1].mean(0), torch.zeros(4)]))


def test_the_space_is_the_same_however_many_features_are_normalised_together(monkeypatch):
    bank = gaussian_bank(classes=6, images=9, dim=5)
    shuffled = torch.randperm(len(bank), generator=torch.Generator().manual_seed(0))
    features, labels = bank.items[shuffled], bank.labels[shuffled]
    whole = FeatureSpace(5, 3).fit(features, labels)
    monkeypatch.setattr("models.networks.feature_space.NUMBERS_AT_ONCE", 35)  # seven rows
    parts = FeatureSpace(5, 3).fit(features, labels)
    torch.testing.assert_close(parts.center, whole.center)
    torch.testing.assert_close(parts.directions.abs(), whole.directions.abs(), atol=1e-4, rtol=1e-4)


def test_a_learned_map_starts_as_the_one_that_is_found_and_is_one_parameter():
    bank = gaussian_bank(classes=9, dim=7)
    found, learned = (FeatureSpace(7, 3, power=0.5, learned=learned).fit(bank.items, bank.labels) for learned in (False, True))
    torch.testing.assert_close(learned(bank.items), found(bank.items))
    assert [name for name, _ in learned.named_parameters()] == ["change"]
    assert not list(found.parameters())
    learned.change.data.normal_()
    unit = torch.nn.functional.normalize(signed_power(bank.items, 0.5), dim=-1)
    torch.testing.assert_close(learned(bank.items), (unit - found.center) @ (found.directions + learned.change))


def test_square_roots_keep_signs_and_have_a_slope_everywhere():
    features = torch.tensor([-4.0, 0.0, 9.0], requires_grad=True)
    rooted = signed_power(features, 0.5)
    torch.testing.assert_close(rooted.detach(), torch.tensor([-2.0, 0.0, 3.0]), atol=0.02, rtol=0)
    rooted.sum().backward()
    assert bool(features.grad.isfinite().all())
    with pytest.raises(ValueError, match="power 0 must be positive"):
        FeatureSpace(3, power=0)
