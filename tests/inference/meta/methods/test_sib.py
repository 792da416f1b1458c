"""How SIB's model and guide are built from settings."""

import pytest
import torch

from guides.tasks.gradient_networks import EquivariantGradient, ExactGradient, MLPGradient
from guides.tasks.rules import Pull
from guides.tasks.starts import LearnedStart, QueryMeans, SupportMeans
from inference.meta.learner import build_objective
from inference.meta.methods import METHODS, sib
from inference.meta.options import SibOptions
from inference.meta.settings import GuideSettings, VariantSettings, settings
from models.tasks.priors import GaussianPrior, HierarchicalGaussianPrior, MixturePrior

MEANS = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))


def built(**options):
    chosen = SibOptions(**{"beta": 0.3, **options})
    variant = sib.variants(settings(VariantSettings, chosen))[0]
    return build_objective(settings(GuideSettings, chosen), variant, MEANS)


@pytest.mark.parametrize("beta", [0.0, 0.3, 4.0])
def test_inner_steps_descend_with_the_objectives_beta(beta):
    objective = built(beta=beta)
    assert objective.elbo.beta == objective.guide.beta == beta


def test_settings_reach_the_guide():
    guide = built(inner_samples=3, units="weights", learn_inner_lr=False, steps=2).guide
    assert (guide.inner_samples, guide.steps, guide.rule.units) == (3, 2, "weights")
    assert not guide.rule.log_size.requires_grad
    torch.testing.assert_close(built().guide.start.log_scale.detach().exp(), 0.3 * MEANS.std(0))


def test_points_are_trained_without_a_rate():
    objective = built(posterior="delta")
    assert objective.elbo.beta == objective.guide.beta == 0.0
    assert objective.guide.family == "delta"
    assert built().guide.family == "gaussian"


def test_prior_starts_at_the_moments_of_the_base_classes():
    prior = built().model.prior
    torch.testing.assert_close(prior.loc.detach(), MEANS.mean(0))
    torch.testing.assert_close(prior.log_scale.detach().exp(), MEANS.std(0))


def test_model_and_guide_share_prior_and_predictor():
    objective = built()
    assert objective.guide.prior is objective.model.prior
    assert objective.guide.predictor is objective.model.predictor


@pytest.mark.parametrize(("name", "kind"), [("gaussian", GaussianPrior), ("mixture", MixturePrior)])
def test_only_a_hierarchical_prior_knows_the_number_of_tasks(name, kind):
    assert type(built(prior=name).model.prior) is kind
    assert built(prior=name).model.num_tasks is None
    objective = built(prior="hierarchical", tasks=123)
    assert type(objective.model.prior) is HierarchicalGaussianPrior
    assert objective.model.num_tasks == objective.guide.num_tasks == 123
    assert objective.guide.hyper is not None


@pytest.mark.parametrize(
    ("options", "part", "kind"),
    [
        ({"gradient": "equivariant"}, "gradient", EquivariantGradient),
        ({"gradient": "mlp"}, "gradient", MLPGradient),
        ({"gradient": "exact"}, "gradient", ExactGradient),
        ({"initialisation": "support"}, "start", SupportMeans),
        ({"initialisation": "learned"}, "start", LearnedStart),
        ({"initialisation": "queries"}, "start", QueryMeans),
    ],
)
def test_parts_by_name(options, part, kind):
    assert type(getattr(built(**options).guide, part)) is kind


def test_step_sizes_start_inside_their_bounds():
    for units in ("prior", "weights"):
        assert float(built(beta=0.1, units=units).guide.rule.log_size[0].detach().exp()) == pytest.approx(0.2)
    assert float(built(beta=10.0, units="prior").guide.rule.log_size[0].detach().exp()) == pytest.approx(0.025)


@pytest.mark.parametrize("beta", [0.0, 0.1, 10.0])
def test_in_either_unit_training_starts_with_the_same_step(beta):
    """The posterior's variance is what the gate leaves of the start's at first."""
    support_x, support_y = torch.randn(1, 3, MEANS.shape[-1]), torch.arange(3)[None]
    guides = [built(beta=beta, units=units).guide for units in ("posterior", "prior")]
    start = guides[0].unroll(support_x, support_y, support_x, way=3)[0]
    unit = [guide.rule.log_size[0].exp() * guide.rule.unit(start.log_scale, pull_of(guide)) for guide in guides]
    torch.testing.assert_close(unit[0], unit[1].expand_as(unit[0]))


def pull_of(guide):
    return Pull((None, None), None, guide.prior.variance(guide.prior.hyperparameters()), guide.beta)


def test_every_method_is_registered_under_its_own_name():
    swept = VariantSettings(("distance",), "gaussian", (0.1,), 3)
    for name, method in METHODS.items():
        assert {variant.method for variant in method.variants(swept)} == {name}
