"""What a student writes: its weights as points, and what is stochastic, predictions of labels and of the teacher's layers."""

import pytest
import torch
from torch.nn.functional import one_hot

from inference.evaluation.arviz import LOO
from models.networks.layers import features
from tests.inference.vid.conftest import FIVE, images


@pytest.fixture
def students(study):
    """A student with decoders, and one without."""
    built = study("vid", "student")
    return {name: built.fit(name, FIVE, 1.0)[0] for name in ("vid", "student")}


def drawn(variable) -> torch.Tensor:
    """All draws of a variable, chains one behind the other."""
    return torch.tensor(variable.values).flatten(0, 1)


def test_predictions_follow_student_and_decoders(students):
    vid, data = students["vid"], images(4, seed=3)
    saved = vid.to_arviz(data.items, data.labels, train=images(5), num_samples=800)
    shares = one_hot(drawn(saved.predictions["labels"]), 3).float().mean(0)
    torch.testing.assert_close(shares, vid.probabilities(data.items), atol=0.08, rtol=0)
    density = torch.tensor(saved.predictions_constant_data["log_predictive_density"].values)
    torch.testing.assert_close(density, vid.probabilities(data.items).log().gather(-1, data.labels[:, None])[:, 0])
    layer, decoder = next(iter(vid.model.decoders.items()))
    teacher = saved.predictions[f"teacher.{layer}"]
    kept = [torch.tensor(teacher[dim].values) for dim in teacher.dims[3:]]
    (s, t) = next(vid.decoded(data.items))[layer]
    with torch.no_grad():
        q = decoder(s)
    mean, found = (part[:, kept[0]][:, :, kept[1]][..., kept[2]] for part in (q.mean, t))
    scale = q.variance.sqrt()[:, kept[0]][:, :, kept[1]][..., kept[2]]
    error = (drawn(teacher).mean(0) - mean) / (scale / 800**0.5)
    assert float(error.abs().max()) < 5
    torch.testing.assert_close(drawn(teacher).std(0), scale, rtol=0.2, atol=0)
    torch.testing.assert_close(torch.tensor(saved.predictions_constant_data[f"teacher.{layer}"].values), found)


def test_training_items_are_observed_with_the_teachers_layers(students):
    vid, train = students["vid"], images(50)
    saved = vid.to_arviz(train=train, num_samples=16)
    index = torch.tensor(saved.observed_data["item"].values)
    assert len(index) == 100
    torch.testing.assert_close(torch.tensor(saved.observed_data["labels"].values), train.labels[index])
    density = vid.probabilities(train.items[index]).log().gather(-1, train.labels[index][:, None])[:, 0]
    torch.testing.assert_close(drawn(saved.log_likelihood["labels"]), density.expand(16, -1))
    assert set(saved.log_likelihood.data_vars) == {"labels"}, "so that arviz.loo needs no name"
    layer = next(iter(vid.model.decoders))
    taught = features(vid.teacher, train.items[index], [layer])[layer]
    observed = saved.observed_data[f"teacher.{layer}"]
    unit, row, column = (int(observed[dim].values[-1]) for dim in observed.dims[1:])
    torch.testing.assert_close(torch.tensor(observed.values[:, -1, -1, -1]), taught[:, unit, row, column])
    assert not {"predictions", "prior"} & set(saved.groups())


def test_weights_are_points_and_said_to_be(students):
    for name, vid in students.items():
        saved = vid.to_arviz(images(2).items, num_samples=16)
        weights = drawn(saved.posterior["student.1.0.weight"])
        assert bool((weights == weights[0]).all())
        kept = [torch.tensor(saved.posterior[dim].values) for dim in saved.posterior["student.1.0.weight"].dims[2:]]
        whole = dict(vid.student.named_parameters())["1.0.weight"].detach()
        torch.testing.assert_close(weights[0], whole[kept[0]][:, kept[1]][:, :, kept[2]][..., kept[3]])
        scales = {str(key) for key in saved.posterior.data_vars if str(key).startswith("scale.")}
        assert scales == {f"scale.{layer}" for layer in vid.model.decoders}, name
        assert saved.attrs["loo"] == LOO["point"]
        assert "point" in saved.attrs["draws"]
    assert ("of each teacher layer" in saved.attrs["thinned"]) == bool(vid.model.decoders)


def test_scales_are_the_decoders_standard_deviations(students):
    vid = students["vid"]
    saved = vid.to_arviz(images(2).items, num_samples=16)
    for layer, decoder in vid.model.decoders.items():
        with torch.no_grad():
            expected = decoder(next(vid.decoded(images(2).items))[layer][0]).variance[0].flatten(1)[:, 0].sqrt()
        torch.testing.assert_close(drawn(saved.posterior[f"scale.{layer}"])[0], expected)
