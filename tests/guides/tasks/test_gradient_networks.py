"""Gradient networks: the form of a gradient, norms, and what they refuse."""

import pytest
import torch
from torch import nn

from guides.tasks.gradient_networks import (
    EquivariantGradient,
    ExactGradient,
    LabelledGradient,
    MLPGradient,
    pair_features,
    task_features,
)
from models.likelihoods import CategoricalLikelihood
from models.networks.feature_space import class_means
from models.tasks.predictors import DistancePredictor

WAY = 4


def tilted(labels, *, apart: float, drawn: float | None = None) -> EquivariantGradient:
    """One that is certain of the ``labels``, with these weights of its terms before softplus."""
    network = EquivariantGradient(drawn=drawn is not None)
    tilt = 50 * torch.nn.functional.one_hot(labels, WAY).float()
    values = [tilt, torch.full_like(tilt, apart)] + ([] if drawn is None else [torch.full_like(tilt, drawn + 2)])
    network.perceptron = lambda log_p, p: torch.stack(values).mT  # [outputs, tasks, way, query], whatever it sees
    return network


def test_equivariant_gradient_is_prediction_less_label_where_the_label_is_predicted():
    """With a tilt that is certain of one class, it is a multiple of softmax(ŷ) − onehot: the exact gradient, sign included."""
    outputs, labels = torch.randn(2, 5, WAY), torch.randint(WAY, (2, 5))
    exact = ExactGradient(CategoricalLikelihood())(outputs, labels)
    found = tilted(labels, apart=1.0)(outputs)
    torch.testing.assert_close(found, torch.nn.functional.softplus(torch.tensor(1.0)) * exact)


def joint_gradient(outputs, labels, apart, drawn):
    """Of −a log p(y given x) − b log p(x, y), by autograd, where outputs are log p(x, y) up to what does not depend on w."""
    outputs = outputs.detach().requires_grad_()
    known = outputs.gather(-1, labels[..., None]).sum()
    (found,) = torch.autograd.grad(-apart * (known - outputs.logsumexp(-1).sum()) - drawn * known, outputs)
    return found


def test_its_second_term_is_the_gradient_of_the_joint_density():
    outputs, labels = torch.randn(2, 5, WAY), torch.randint(WAY, (2, 5))
    a, b = torch.nn.functional.softplus(torch.tensor([1.0, 0.5])).tolist()
    torch.testing.assert_close(tilted(labels, apart=1.0, drawn=0.5)(outputs), joint_gradient(outputs, labels, a, b))
    torch.testing.assert_close(
        joint_gradient(outputs, labels, -1.0, 1.0), -outputs.softmax(-1), msg="that of −log p(x), which no label enters"
    )


def test_that_of_known_labels_is_the_joint_densitys():
    outputs, labels = torch.randn(2, 5, WAY), torch.randint(WAY, (2, 5))
    network = LabelledGradient()
    a, b = torch.nn.functional.softplus(network.weights).tolist()
    torch.testing.assert_close(network(outputs, labels), joint_gradient(outputs, labels, a, b))
    with pytest.raises(ValueError, match="support"):
        network(outputs)


def test_class_means_are_where_known_labels_draw_nothing():
    """With distances and the second term alone: a start at the support's means is not moved by the support."""
    x, labels = torch.randn(1, 8, 3), torch.arange(8)[None] % WAY
    means, predictor, network = class_means(x, labels, WAY), DistancePredictor(), LabelledGradient()
    network.weights.data[0] = -torch.inf
    pull = lambda weights: predictor.pull_back(x, weights, network(predictor(x, weights), labels))  # noqa: E731
    torch.testing.assert_close(pull(means), torch.zeros_like(means), atol=1e-5, rtol=0)
    away = means + 0.1
    assert (pull(away) * (away - means)).sum() > 0, "descent leads back"


def test_its_first_term_sums_to_zero_over_classes():
    gradient = EquivariantGradient(drawn=False)(torch.randn(3, 7, WAY))
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(3, 7), atol=1e-6, rtol=0)
    assert gradient.abs().max() > 0


def with_gradients(network, found, outputs):
    """A value and its gradients, for a fixed cotangent."""
    return found, torch.autograd.grad((found * found.detach().cos()).sum(), [outputs, *network.parameters()], retain_graph=True)


@pytest.mark.parametrize("leading", [(3,), (2, 3)])
def test_in_columns_the_papers_network_is_its_layers(leading):
    network = MLPGradient(WAY).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    outputs = torch.randn(*leading, 12, WAY, dtype=torch.float64, requires_grad=True)
    layer_by_layer = network.layers(outputs.mT.flatten(0, -3)).mT.reshape(outputs.shape)
    torch.testing.assert_close(
        with_gradients(network, network(outputs), outputs),
        with_gradients(network, layer_by_layer, outputs),
        rtol=1e-10,
        atol=1e-10,
    )


@pytest.mark.parametrize("counted", [False, True])
def test_in_columns_the_equivariant_network_is_its_layers(counted):
    """Row by row, on the features of each pair and, where it sees them, those of the task."""
    network = EquivariantGradient(counted=counted).double()
    outputs = torch.randn(2, 3, 12, WAY, dtype=torch.float64, requires_grad=True)
    log_p = outputs.log_softmax(-1)
    rows = pair_features(log_p.mT, log_p.exp().mT).mT.movedim(0, -1)
    if counted:
        equal = torch.tensor(task_features(WAY, 12), dtype=torch.float64).expand(*outputs.shape, -1)
        rows = torch.cat([rows, equal], dim=-1)
    by_rows, in_columns = network.layers(rows), network.perceptron(log_p.mT, log_p.exp().mT).mT.movedim(0, -1)
    torch.testing.assert_close(
        with_gradients(network, in_columns, outputs), with_gradients(network, by_rows, outputs), rtol=1e-10, atol=1e-10
    )
    p = log_p.exp()
    torch.testing.assert_close(rows[..., 1], p)
    torch.testing.assert_close(rows[..., 4], WAY * p.mean(-2, keepdim=True).expand_as(p))


def test_exact_gradient_is_that_of_the_likelihood():
    outputs, labels = torch.randn(2, 5, WAY, requires_grad=True), torch.randint(WAY, (2, 5))
    loss = nn.functional.cross_entropy(outputs.flatten(0, 1), labels.flatten(), reduction="sum")
    expected = torch.autograd.grad(loss, outputs)[0]
    torch.testing.assert_close(ExactGradient(CategoricalLikelihood())(outputs, labels), expected)
    with pytest.raises(ValueError, match="labels"):
        ExactGradient(CategoricalLikelihood())(outputs)


def test_the_papers_network_says_what_it_cannot_take():
    with pytest.raises(ValueError, match="at least two"):
        MLPGradient(WAY)(torch.randn(3, 1, WAY))
    with pytest.raises(ValueError, match="equivariant"):
        MLPGradient(WAY)(torch.randn(3, 6, WAY + 1))


def test_the_papers_network_norms_both_hidden_layers():
    """Each hidden layer is normalised over the queries of a task, so the size of the weights before it says nothing."""
    network = MLPGradient(WAY).double()
    outputs = torch.randn(3, 12, WAY, dtype=torch.float64)
    convolutions = [layer for layer in network.layers if isinstance(layer, nn.Conv1d)][:2]

    def enlarge(layers):
        for layer in layers:
            for parameter in layer.parameters():
                parameter.data.mul_(1000)

    enlarge(convolutions)  # far above the norm's ε
    before = network(outputs)
    for layer in convolutions:
        enlarge([layer])
        torch.testing.assert_close(network(outputs), before, rtol=1e-3, atol=1e-3)
