"""MAML on images: its start is the pre-trained network, and K = 0 is that network with its head."""

import copy

import pytest
import torch

from data.episodes import EpisodeSampler, TaskSpec
from data.errors import UserError
from inference.evaluation.predictive import predictive
from inference.meta.family_options import MetaOptions
from inference.meta.learner import FittedLearner, build_objective
from inference.meta.methods import METHODS
from inference.meta.settings import NETWORK, GuideSettings, VariantSettings
from inference.meta.stages import check_training, whole_network
from models.networks.feature_network import FeatureNetwork
from models.networks.functional import split_weights
from tests.conftest import marked_images

WAY = 3


def learner(given="steps=1"):
    data = marked_images(classes=6, images=10)
    network = FeatureNetwork("conv4-4", data.image_shape)
    network.standardize.fit(data.train.items)
    network.train()(data.train.items)  # its batch norms have seen images
    network.eval()
    variant = METHODS["maml"].variants(VariantSettings(given=given))[0]
    return whole_network(variant, GuideSettings(way=WAY, backbone="conv4-4"), TaskSpec(WAY, 2, 3), data, network), data, network


def logits_of(made, episode, steps):
    return predictive(made.model, made.guide.after(steps), episode).labels.logits[0]


def drawn(made, data):
    episode = EpisodeSampler(data.test, TaskSpec(WAY, 2, 3)).sample(4, seed=0)
    mapped = (made.features(x) for x in (episode.support_x, episode.query_x))
    support, query = mapped
    return episode, episode._replace(support_x=support, query_x=query)


def test_without_steps_it_is_the_pre_trained_network_and_a_linear_head():
    made, data, network = learner()
    episode, pixels = drawn(made, data)
    assert pixels.query_x.shape[-1] == data.train.items[0].numel()
    maps = network.standardize(episode.query_x.flatten(0, 1))
    head = split_weights(made.guide.start.loc[0], made.guide.predictor.network.shapes)
    expected = torch.nn.functional.linear(network.backbone(maps), head["1.weight"], head["1.bias"]).unflatten(0, (4, -1))
    torch.testing.assert_close(logits_of(made, pixels, 0), expected.log_softmax(-1), rtol=1e-4, atol=1e-5)


def test_a_step_is_one_of_gradient_descent_on_the_mean_loss_of_the_support():
    made, data, trained = learner("size=0.3:steps=1")
    _, pixels = drawn(made, data)
    start = split_weights(made.guide.start.loc[0].detach(), made.guide.predictor.network.shapes)
    for task in range(2):
        network = torch.nn.Sequential(copy.deepcopy(trained.backbone), torch.nn.Linear(trained.num_features, WAY)).eval()
        network[1].load_state_dict({name: start[f"1.{name}"] for name in ("weight", "bias")})
        images = pixels.support_x[task].unflatten(-1, data.image_shape)
        loss = torch.nn.functional.cross_entropy(network(images), pixels.support_y[task])
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                parameter -= 0.3 * gradient
        expected = network(pixels.query_x[task].unflatten(-1, data.image_shape))
        torch.testing.assert_close(logits_of(made, pixels, 1)[task], expected.log_softmax(-1), rtol=1e-3, atol=1e-4)


def test_step_sizes_of_each_weight_that_are_equal_are_maml():
    (one, data, _), (each, _, _) = learner("size=0.3:steps=2"), learner("size=0.3:steps=2:per_feature")
    _, pixels = drawn(one, data)
    pixels = pixels.to(dtype=torch.float64)
    state = one.objective.double().state_dict()
    sizes = state.pop("guide.rule.log_size")[:, None].expand(2, each.guide.predictor.network.num_weights)
    each.objective.double().load_state_dict({**state, "guide.rule.log_size": sizes})
    torch.testing.assert_close(logits_of(each, pixels, 2), logits_of(one, pixels, 2), rtol=1e-10, atol=1e-10)


def test_each_weight_takes_steps_of_its_own_size():
    made, data, trained = learner("size=0.3:steps=2:per_feature")
    _, pixels = drawn(made, data)
    pixels = pixels.to(dtype=torch.float64)
    made.objective.double()
    rule, shapes = made.guide.rule, made.guide.predictor.network.shapes
    with torch.no_grad():
        rule.log_size.add_(torch.randn(rule.log_size.shape, generator=torch.Generator().manual_seed(0)))
    start = split_weights(made.guide.start.loc[0].detach(), shapes)
    sizes = [split_weights(step, shapes) for step in rule.log_size.detach().exp()]
    network = torch.nn.Sequential(copy.deepcopy(trained.backbone), torch.nn.Linear(trained.num_features, WAY)).double().eval()
    for task in range(2):
        network.load_state_dict(start, strict=False)
        for step in sizes:
            images = pixels.support_x[task].unflatten(-1, data.image_shape)
            loss = torch.nn.functional.cross_entropy(network(images), pixels.support_y[task])
            gradients = torch.autograd.grad(loss, list(network.parameters()))
            with torch.no_grad():
                for (name, parameter), gradient in zip(network.named_parameters(), gradients, strict=True):
                    parameter -= step[name] * gradient
        expected = network(pixels.query_x[task].unflatten(-1, data.image_shape)).log_softmax(-1)
        torch.testing.assert_close(logits_of(made, pixels, 2)[task], expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("norm", "transductive"), [("running", False), ("task", True), ("group", False)])
def test_norms_say_whether_other_queries_count(norm, transductive):
    made, data, _ = learner(f"norm={norm}")
    _, pixels = drawn(made, data)
    before = logits_of(made, pixels, 1)
    changed = pixels._replace(query_x=pixels.query_x.clone())
    changed.query_x[:, 0] += 1.0
    same = torch.allclose(logits_of(made, changed, 1)[:, 1:], before[:, 1:], rtol=1e-4, atol=1e-5)
    assert same is not transductive


@pytest.mark.parametrize(
    ("given", "more"), [("", set()), ("learned", {"guide.rule.log_size"}), ("per_feature", {"guide.rule.log_size"})]
)
def test_all_weights_are_learned_as_the_start_and_nothing_else_but_step_sizes_is(given, more):
    made, data, _ = learner(given)
    _, pixels = drawn(made, data)
    made.objective(*pixels._replace(query_y=drawn(made, data)[0].query_y)).backward()
    learned = {name: p for name, p in made.objective.named_parameters() if p.requires_grad}
    assert learned.keys() == {"guide.start.loc"} | more
    assert all(bool(p.grad.ne(0).any()) for p in learned.values())


def test_it_is_saved_and_read_back_with_its_pixels(tmp_path):
    made, data, _ = learner()
    episode, pixels = drawn(made, data)
    again = FittedLearner.load(made.save(tmp_path / "maml.safetensors"))
    assert again.own_network
    assert again.fixed_way == WAY
    assert again.variant.predictor == NETWORK
    torch.testing.assert_close(again.features(episode.query_x), pixels.query_x)
    torch.testing.assert_close(logits_of(again, pixels, 1), logits_of(made, pixels, 1))


def test_features_have_no_images_to_adapt_to():
    with pytest.raises(UserError, match="start from images, not from features"):
        build_objective(GuideSettings(), METHODS["maml"].variants(VariantSettings())[0], torch.zeros(3, 4))


def test_weights_for_more_channels_than_the_images_have_are_refused_before_any_training():
    data = marked_images(classes=6, images=30)
    assert data.image_shape[0] == 1
    network = FeatureNetwork("conv4-4", data.image_shape, normalisation=((0.5,) * 3, (0.2,) * 3))
    options = MetaOptions(methods="maml", way=WAY, queries=3, epochs=0, backbone="conv4-4")
    with pytest.raises(UserError, match="maml adapts a network for images of 1 channels, and the weights are for 3"):
        check_training(options, data, network=network)
