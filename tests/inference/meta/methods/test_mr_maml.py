"""MR-MAML on images: its network, steps and objective beside loops written out, and what tests see of its random weights."""

import copy

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from data.episodes import EpisodeSampler, TaskSpec
from data.errors import UserError
from guides.tasks.regularised import EncoderGuide
from inference.evaluation.predictive import predictive
from inference.meta import stages
from inference.meta.comparison import points_adapted, shared_rate
from inference.meta.family_options import MetaOptions
from inference.meta.learner import FittedLearner, build_objective
from inference.meta.methods import METHODS
from inference.meta.settings import GuideSettings, VariantSettings
from inference.meta.stages import fit, whole_network
from inference.runs.folder import RunFolder
from models.networks.feature_network import FeatureNetwork
from models.networks.functional import split_weights
from tests.conftest import marked_images

WAY, N, WIDTH = 3, 50, 4
DATA = marked_images(classes=6, images=10)


def trained_network():
    torch.manual_seed(2)
    network = FeatureNetwork(f"conv4-{WIDTH}", DATA.image_shape)
    network.standardize.fit(DATA.train.items)
    network.train()(DATA.train.items)  # its batch norms have seen images
    return network.eval()


def learner(method, beta=0.7):
    name, _, given = method.partition(":")
    variant = METHODS[name].variants(VariantSettings(beta=(beta,), given=given))[0]
    settings, network = GuideSettings(way=WAY, backbone=f"conv4-{WIDTH}", tasks=N), trained_network()
    made = whole_network(variant, settings, TaskSpec(WAY, 2, 3), DATA, network)
    made.objective.double()
    return made, network


def pixels(made, tasks=4):
    episode = EpisodeSampler(DATA.test, TaskSpec(WAY, 2, 3)).sample(tasks, seed=0)
    support, query = (made.features(x).double() for x in (episode.support_x, episode.query_x))
    return episode._replace(support_x=support, query_x=query)


def by_hand(made, network, theta, episode, *, layers, size, steps):
    """Logits of each task's queries by a loop over autograd, whose steps adapt ``layers`` of the backbone and the head; the
    other weights are ``theta``, by name."""
    steps_guide = made.model.scorer.guide
    start, found = split_weights(steps_guide.start.loc[0].detach(), steps_guide.predictor.network.shapes), []
    for task in range(len(episode.query_x)):
        whole = torch.nn.Sequential(copy.deepcopy(network.backbone), torch.nn.Linear(network.num_features, WAY)).double().eval()
        whole.load_state_dict({**start, **{f"0.{name}": value for name, value in theta.items()}}, strict=False)
        adapted = [p for name, p in whole.named_parameters() if name.startswith(("1.", *layers))]
        for _ in range(steps):
            logits = whole(episode.support_x[task].unflatten(-1, DATA.image_shape))
            loss = torch.nn.functional.cross_entropy(logits, episode.support_y[task])
            for parameter, gradient in zip(adapted, torch.autograd.grad(loss, adapted), strict=True):
                parameter.data -= size * gradient
        found.append(whole(episode.query_x[task].unflatten(-1, DATA.image_shape)).detach())
    return torch.stack(found)


def random_weights(made, theta):
    """A vector θ by the names that the backbone has."""
    parts = split_weights(theta, made.model.shapes)
    return {name.removeprefix("guide.predictor.encoder."): part for name, part in parts.items()}


@pytest.mark.parametrize(("adapted", "layers"), [("head", ()), ("block", ("0.12.", "0.13."))])
def test_its_loss_is_that_of_all_tasks_under_one_draw_and_one_rate(adapted, layers):
    made, network = learner(f"mr-maml:steps=2:size=0.3:scale=0.2:adapted={adapted}")
    episode = pixels(made)
    made.objective.train()
    torch.manual_seed(3)
    terms = made.objective.terms(*episode)
    torch.manual_seed(3)
    theta = made.guide.distribution().rsample().detach()
    logits = by_hand(made, network, random_weights(made, theta), episode, layers=layers, size=0.3, steps=2)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), episode.query_y.flatten(), reduction="sum")
    rate = kl_divergence(Normal(made.guide.loc, made.guide.log_scale.exp()), Normal(0.0, 1.0)).sum()
    torch.testing.assert_close(terms.distortion.detach(), expected * N / 4, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(terms.rate, rate)
    torch.testing.assert_close(terms.loss, terms.distortion + 0.7 * rate)


def test_it_starts_as_the_pre_trained_network_and_what_is_random_is_not_adapted():
    for adapted, unadapted in (("head", range(16)), ("block", range(12))):
        made, network = learner(f"mr-maml:adapted={adapted}")
        known = dict(network.backbone.named_parameters())
        found = random_weights(made, made.guide.loc.detach())
        assert found.keys() == {name for name in known if int(name.partition(".")[0]) in unadapted}
        start = split_weights(made.model.scorer.guide.start.loc[0].detach(), made.model.scorer.guide.predictor.network.shapes)
        found |= {name.removeprefix("0."): value for name, value in start.items() if not name.startswith("1.")}
        assert found.keys() == known.keys()
        assert all(torch.equal(found[name], value.double()) for name, value in known.items())
        assert points_adapted(made.model) == sum(value.numel() for value in start.values())


@pytest.mark.parametrize("adapted", ["head", "block"])
@pytest.mark.parametrize("norm", ["running", "task", "group"])
def test_without_noise_it_predicts_as_maml_of_the_same_layers_does(adapted, norm):
    given = f"steps=2:size=0.3:adapted={adapted}:norm={norm}"
    random, _ = learner(f"mr-maml:{given}")
    plain, _ = learner(f"maml:{given}")
    with torch.no_grad():
        random.guide.log_scale.fill_(-40.0)
        plain.guide.start.loc.copy_(random.model.scorer.guide.start.loc)
    episode = pixels(random)
    found, expected = (predictive(one.model, one.guide, episode, num_samples=2).labels.logits for one in (random, plain))
    torch.testing.assert_close(found, expected.expand_as(found), rtol=1e-6, atol=1e-7)
    assert not torch.allclose(expected.exp(), torch.full_like(expected, 1 / WAY), atol=1e-3)


def test_maml_of_a_head_learns_the_layers_below_with_the_start():
    made, _ = learner("maml:adapted=head")
    episode = pixels(made)
    made.objective(*episode).backward()
    learned = {name: p for name, p in made.objective.named_parameters() if p.requires_grad}
    assert {name.rpartition("encoder.")[0] for name in learned if "encoder" in name} == {"model.predictor."}
    assert sum(p.numel() for p in learned.values()) == sum(p.numel() for p in made.model.predictor.encoder.parameters()) + (
        made.guide.start.loc.numel()
    )
    assert all(bool(p.grad.ne(0).any()) for p in learned.values())


def test_tests_see_draws_or_the_mean():
    drawn, _ = learner("mr-maml:steps=1:scale=0.3")
    mean, network = learner("mr-maml:steps=1:scale=0.3:tested=means")
    episode = pixels(mean)
    found = predictive(mean.model, mean.guide, episode, num_samples=6)
    theta = random_weights(mean, mean.guide.loc.detach())
    expected = by_hand(mean, network, theta, episode, layers=(), size=0.1, steps=1).log_softmax(-1)
    torch.testing.assert_close(found.labels.logits, expected[None], rtol=1e-6, atol=1e-7)
    several = predictive(drawn.model, drawn.guide, episode, num_samples=6)
    assert several.num_draws == 6
    assert several.rate is None
    assert len(several.labels.logits.flatten(1).unique(dim=0)) == 6


def test_its_rate_is_counted_once_whatever_tests_see_of_it():
    for tested in ("draws", "means"):
        made, _ = learner(f"mr-maml:tested={tested}")
        scale, loc = made.guide.log_scale.detach().exp(), made.guide.loc.detach()
        expected = 0.5 * (scale.square() + loc.square() - 1 - 2 * scale.log()).sum()
        assert shared_rate(made.model, made.guide, pixels(made)) == pytest.approx(float(expected), rel=1e-10)
    for method in ("mr-maml:penalty=decay", "maml"):
        made, _ = learner(method)
        assert shared_rate(made.model, made.guide, pixels(made)) is None


def test_decay_is_half_the_square_of_weights_that_are_a_point():
    made, _ = learner("mr-maml:penalty=decay")
    assert made.guide.log_scale is None
    terms = made.objective.terms(*pixels(made))
    constant = 0.5 * made.guide.loc.numel() * torch.tensor(2 * torch.pi, dtype=torch.float64).log()
    torch.testing.assert_close(terms.rate, 0.5 * made.guide.loc.square().sum() + constant)


@pytest.mark.parametrize("given", ["scale=0.5", "tested=means"])
def test_what_is_about_random_weights_is_refused_where_they_are_a_point(given):
    with pytest.raises(UserError, match=f"`{given}` is about random weights: choose `penalty=weights`, or leave it out$"):
        MetaOptions(methods=f"mr-maml:penalty=decay:{given}")
    assert len(MetaOptions(methods=f"mr-maml:penalty=weights:{given}").methods) == 1


def test_there_are_as_many_tasks_as_whole_networks_are_trained_on(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "meta_train", lambda *_, **__: None)
    monkeypatch.setattr(stages, "keep_none_where_it_is_better", lambda *_: [])
    given = {"methods": "mr-maml", "beta": "0.5,2", "way": WAY, "queries": 3, "epochs": 0, "backbone": "conv4-4"}
    options = MetaOptions(**given, tasks=64, network_tasks=24, progress=False)
    fitted = fit(options, DATA, RunFolder.create(tmp_path / "run", "meta", ""))
    assert [made.model.num_tasks for made in fitted.values()] == [24, 24]
    assert [made.objective.elbo.beta for made in fitted.values()] == [0.5, 2.0]


def test_it_is_saved_and_read_back(tmp_path):
    made, _ = learner("mr-maml:adapted=block:tested=means")
    made.objective.float()
    episode = EpisodeSampler(DATA.test, TaskSpec(WAY, 2, 3)).sample(2, seed=0)
    again = FittedLearner.load(made.save(tmp_path / "mr.safetensors"))
    assert again.fixed_way == WAY
    assert isinstance(again.guide, EncoderGuide)
    torch.testing.assert_close(again.predictive(episode).labels.logits, made.predictive(episode).labels.logits)
    with pytest.raises(UserError, match="built for 3 classes"):
        again.check_way(5)


def test_it_has_no_variant_without_a_weight_and_one_for_each():
    variants = METHODS["mr-maml"].variants(VariantSettings(beta=(0.0, 0.5, 2.0), given="steps=3"))
    assert [v.name for v in variants] == ["mr-maml-steps=3-network-beta0.5-k3", "mr-maml-steps=3-network-beta2-k3"]


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="mr-maml adapts a network for images"):
        build_objective(GuideSettings(), METHODS["mr-maml"].variants(VariantSettings())[0], torch.zeros(3, 4))
    for method in ("maml", "mr-maml"):
        with pytest.raises(UserError, match="`adapted=block` is about networks conv4-…, not `backbone=wrn-16-2`"):
            MetaOptions(methods=f"{method}:adapted=block", backbone="wrn-16-2", train_way="5")
    with pytest.raises(UserError, match="mr-maml has random weights below those it adapts, and `backbone=pixels` has none"):
        MetaOptions(methods="mr-maml", backbone="pixels")
    assert MetaOptions(methods="maml:adapted=head", backbone="wrn-16-2").variants()
    assert MetaOptions(methods="maml:adapted=head", backbone="pixels").variants()
