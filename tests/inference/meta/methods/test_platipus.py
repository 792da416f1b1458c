"""PLATIPUS on images: which variants there are, a whole network, and what the command refuses."""

import pytest
import torch

from data.episodes import EpisodeSampler, TaskSpec
from data.errors import UserError
from inference.evaluation.predictive import predictive
from inference.meta.family_options import MetaOptions
from inference.meta.learner import FittedLearner, build_objective
from inference.meta.methods import METHODS
from inference.meta.settings import NETWORK, GuideSettings, VariantSettings
from inference.meta.stages import whole_network
from models.networks.feature_network import FeatureNetwork
from models.networks.functional import split_weights
from tests.conftest import marked_images

WAY = 3
SMALL = "whole:steps=1:scale=1e-12:prior_size=1e-12"


def variants(given="", beta=(0.0, 0.3, 2.0)):
    return METHODS["platipus"].variants(VariantSettings(beta=beta, given=given))


def whole(given, method="platipus"):
    torch.manual_seed(1)
    data = marked_images(classes=6, images=10)
    network = FeatureNetwork("conv4-4", data.image_shape)
    network.standardize.fit(data.train.items)
    variant = METHODS[method].variants(VariantSettings(beta=(0.3,), given=given))[0]
    made = whole_network(variant, GuideSettings(way=WAY, backbone="conv4-4"), TaskSpec(WAY, 2, 3), data, network.eval())
    episode = EpisodeSampler(data.test, TaskSpec(WAY, 2, 3)).sample(2, seed=0)
    pixels = episode._replace(support_x=made.features(episode.support_x), query_x=made.features(episode.query_x))
    return made, pixels, network


def test_it_has_a_variant_for_each_positive_beta_and_with_noise_alone_one():
    assert [variant.beta for variant in variants()] == [0.3, 2.0]
    (noise,) = variants("noise_only")
    assert noise.beta is None
    names = {variant.name for given in ("", "noise_only", "whole") for variant in variants(given)}
    assert len(names) == 5
    assert [variant.predictor for given in ("", "whole") for variant in variants(given, (1.0,))] == ["linear", NETWORK]


def test_a_head_starts_with_all_classes_alike_and_learns_its_own_scales():
    objective = build_objective(GuideSettings(way=WAY), variants("scale=0.2")[0], torch.zeros(9, 6))
    assert objective.elbo.beta == 0.3
    guide = objective.guide
    torch.testing.assert_close(guide.prior.scale, torch.full((6,), 0.2), rtol=1e-3, atol=0)
    assert guide.start.loc.shape == (6,)
    learned = {name.rpartition(".")[2] for name, p in objective.named_parameters() if p.requires_grad}
    assert learned == {"loc", "log_scale", "log_size"}
    assert build_objective(GuideSettings(way=WAY), variants("noise_only")[0], torch.zeros(9, 6)).elbo.beta == 0


def test_a_whole_network_without_noise_is_maml_from_the_same_network():
    found = []
    for given, method in ((SMALL, "platipus"), ("steps=1", "maml")):
        made, pixels, network = whole(given, method)
        head = split_weights(made.guide.start.loc[0].detach(), made.guide.predictor.network.shapes)
        assert all(torch.equal(head[f"0.{name}"], p) for name, p in network.backbone.named_parameters())
        with torch.no_grad():  # heads start at random: the same one for both
            torch.manual_seed(3)
            made.guide.start.loc[0, -head["1.bias"].numel() - head["1.weight"].numel() :].normal_()
        if method == "platipus":
            made.guide.prior.floor = 0.0
        found.append(predictive(made.model, made.guide, pixels, num_samples=2).probabilities())
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


def test_it_is_saved_and_read_back(tmp_path):
    made, pixels, _ = whole("whole:steps=1")
    with torch.no_grad():
        made.guide.prior.log_scale.add_(0.1)
    again = FittedLearner.load(made.save(tmp_path / "platipus.safetensors"))
    assert again.fixed_way == WAY
    found = [predictive(one.model, one.guide, pixels, num_samples=3, seed=1).labels.logits for one in (made, again)]
    torch.testing.assert_close(*found)
    assert len(found[0]) == 3


def test_features_and_other_ways_are_refused_where_a_whole_network_is_adapted():
    with pytest.raises(UserError, match="platipus adapts a network for images"):
        build_objective(GuideSettings(), variants("whole")[0], torch.zeros(3, 4))
    with pytest.raises(UserError, match="platipus adapts a network for images, and a feature file has none"):
        MetaOptions(methods="platipus:whole", features="some.safetensors", train_features="none")
    with pytest.raises(UserError, match="platipus takes tasks of one number of classes"):
        MetaOptions(methods="platipus:whole", test_way="5,10")
    MetaOptions(methods="platipus", test_way="5,10")
    with pytest.raises(UserError, match="platipus has no posterior at β = 0"):
        MetaOptions(methods="platipus", beta="0")
