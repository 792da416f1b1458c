"""Pyro is the host: its own SVI, Predictive, AutoNormal and NUTS run each system, and importing ours changes nothing of it.

Nothing of ``inference`` is imported on top, so that :func:`in_order` decides what comes first.
"""

import os
import subprocess
import sys
import warnings

import pyro
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.infer.mcmc import MCMC, NUTS
from torch import nn

from data.base_and_new import BaseAndNewEpisode
from data.episodes import Episode
from guides.empty import EmptyGuide
from guides.mean_field import MeanFieldGuide, PointGuide
from guides.tasks.base_and_new import BaseAndNewGuide
from guides.tasks.gradient_networks import EquivariantGradient
from guides.tasks.rules import GradientStep
from guides.tasks.starts import SupportMeans
from guides.tasks.synthetic import SyntheticGradientGuide
from models.bayesian.network import BayesianNetwork
from models.distillation.model import DistillationModel, Pair
from models.likelihoods import GaussianLikelihood
from models.networks.layers import features
from models.tasks.base_and_new import BaseAndNewModel, NewOffset
from models.tasks.model import EmpiricalBayesModel
from models.tasks.predictors import DistancePredictor
from models.tasks.priors import GaussianPrior, MixturePrior
from tests.conftest import ROOT

SYSTEMS = ("sib", "bnn", "points", "vid")
IMPORT_ALL = """
import importlib, pathlib, random, sys, warnings
import matplotlib, numpy, pyro, torch
import arviz, lightning, torchmetrics  # what others do on import is theirs
def state():
    return {
        "settings": pyro.settings.get(), "store": len(pyro.get_param_store()), "dtype": torch.get_default_dtype(),
        "torch": torch.get_rng_state().tolist(), "numpy": str(numpy.random.get_state()), "python": random.getstate(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()), "grad": torch.is_grad_enabled(),
        "matmul": torch.get_float32_matmul_precision(), "determinism": torch.are_deterministic_algorithms_enabled(),
        "warnings": list(warnings.filters), "backend": matplotlib.get_backend(auto_select=False),
        "style": dict(matplotlib.rcParams), "path": list(sys.path),
    }
before = state()
for folder in ("data", "models", "guides", "inference", "sibyl"):
    for file in sorted(pathlib.Path(folder).rglob("*.py")):
        importlib.import_module(".".join(file.with_suffix("").parts).removesuffix(".__init__"))
after = state()
print([name for name in before if before[name] != after[name]])
"""


def mlp(*sizes: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(sizes[0], sizes[1]), nn.Tanh(), nn.Linear(*sizes[1:]))


def build(name: str, way: int = 3, dim: int = 4):
    """Model, guide, all arguments, and those of a prediction."""
    x, y = torch.randn(6, dim), torch.randint(2, (6,))
    if name == "vid":
        teacher = mlp(dim, 5, 2)
        model = DistillationModel(mlp(dim, 3, 2), teacher, [Pair("0", "0")], x, num_data=60)
        return model, EmptyGuide(), (x, y, features(teacher, x, ["0"])), (x,)
    if name in ("bnn", "points"):
        model = BayesianNetwork(mlp(dim, 3, 2), num_data=60)
        guide = (MeanFieldGuide if name == "bnn" else PointGuide)(model.initial_weights(1))
        return model, guide, (x, y), (x,)
    support_x, query_x = torch.randn(2, 2 * way, dim), torch.randn(2, 6, dim)
    support_y, query_y = torch.arange(way).repeat(2).expand(2, 2 * way), torch.randint(way, (2, 6))
    prior, predictor = GaussianPrior(torch.zeros(dim), torch.ones(dim)), DistancePredictor()
    guide = SyntheticGradientGuide(prior, predictor, SupportMeans(dim), EquivariantGradient(), GradientStep(3, dim))
    episode = Episode(support_x, support_y, query_x, query_y, way)
    return EmpiricalBayesModel(prior, predictor), guide, episode, episode.unlabelled()


def by_pyro(model, guide, arguments, elbo=Trace_ELBO, steps=2):
    """Two steps of Pyro's SVI."""
    pyro.clear_param_store()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo())
    return [svi.step(*arguments) for _ in range(steps)]


def by_us(model, guide, arguments, steps=2):
    """Two steps of our objective by plain PyTorch."""
    from inference.elbo import RateDistortionELBO

    pyro.set_rng_seed(3)
    objective = RateDistortionELBO()(model, guide)
    optimizer = torch.optim.Adam(objective.parameters(), 0.01)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = objective(*arguments)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def trainable(model, guide):
    return [p for module in (model, guide) for p in module.parameters() if p.requires_grad]


@pytest.mark.parametrize("name", SYSTEMS)
class TestPyrosTools:
    """All in training mode."""

    @pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
    def test_svi_trains_every_parameter(self, name, elbo):
        model, guide, arguments, _ = build(name)
        by_pyro(model, guide, arguments, elbo, steps=1)  # the gradient network starts at zero, and passes no gradient on
        before = [p.detach().clone() for p in trainable(model, guide)]
        by_pyro(model, guide, arguments, elbo)
        assert all(not torch.equal(old, new) for old, new in zip(before, trainable(model, guide), strict=True))

    def test_auto_normal(self, name):
        model, _, arguments, _ = build(name)
        guide = AutoNormal(model)
        by_pyro(model, guide, arguments)
        latent = {"sib": (2, 1, 3, 4), "vid": None}.get(name, (1, 1, 23))
        assert latent is None or guide(*arguments)["weights"].shape == latent

    @pytest.mark.parametrize("parallel", [False, True])
    def test_predictive(self, name, parallel):
        model, guide, _, seen = build(name)
        drawn = Predictive(model, guide=guide, num_samples=5, parallel=parallel)(*seen)["labels"]
        assert drawn.shape == (5, *{"sib": (2, 6), "vid": (6,)}.get(name, (1, 6)))
        assert set(drawn.unique().tolist()) <= set(range(3))

    def test_nuts(self, name):
        model, _, arguments, _ = build(name)
        mcmc = MCMC(NUTS(model, max_tree_depth=2), num_samples=3, warmup_steps=2, disable_progbar=True)
        mcmc.run(*arguments)
        assert set(mcmc.get_samples()) == ({"weights"} if name != "vid" else set())

    def test_our_objective_under_svi(self, name):
        from inference.elbo import RateDistortionELBO

        model, guide, arguments, _ = build(name)
        before = [p.detach().clone() for p in trainable(model, guide)]
        by_pyro(model, guide, arguments, RateDistortionELBO, steps=3)
        assert any(not torch.equal(old, new) for old, new in zip(before, trainable(model, guide), strict=True))


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_base_and_new_classes_under_svi_and_predictive(elbo):
    """Learning without forgetting: five known classes, of which each task has three, and two new ones."""
    prior, predictor = MixturePrior(torch.randn(5, 4), torch.ones(5, 4)), DistancePredictor()
    start, offset = SupportMeans(4), NewOffset()
    guide = BaseAndNewGuide(prior, predictor, start, EquivariantGradient(), GradientStep(2, 4), offset, steps=2)
    model, known = BaseAndNewModel(prior, predictor, offset), torch.stack([torch.randperm(5)[:3] for _ in range(6)])
    support, queries = torch.arange(2).repeat(2).expand(6, 4), torch.randint(5, (6, 8))
    episode = BaseAndNewEpisode(torch.randn(6, 4, 4), support, torch.randn(6, 8, 4), queries, 2, known)
    before = [p.detach().clone() for p in trainable(model, guide)]
    by_pyro(model, guide, episode, elbo, steps=4)
    assert all(not torch.equal(old, new) for old, new in zip(before, trainable(model, guide), strict=True))
    for parallel in (False, True):
        drawn = Predictive(model, guide=guide, num_samples=4, parallel=parallel)(*episode.unlabelled())
        assert drawn["labels"].shape == (4, 6, 8)
        assert set(drawn["labels"].unique().tolist()) <= set(range(5))


@pytest.mark.parametrize("name", SYSTEMS)
def test_our_objective_leaves_pyros_store_alone(name):
    """Two models with the same names, trained in turn, end as each would alone; the store stays as its owner left it."""
    torch.manual_seed(1)
    pyro.param("loc", torch.tensor(7.0))
    pairs = [build(name), build(name)]
    alone = []
    for model, guide, arguments, _ in pairs:
        state = [module.state_dict() for module in (model, guide)]
        saved = [{k: v.clone() for k, v in s.items()} for s in state]
        alone.append(by_us(model, guide, arguments, steps=4))
        for module, values in zip((model, guide), saved, strict=True):
            module.load_state_dict(values)
    from inference.elbo import RateDistortionELBO

    objectives = [RateDistortionELBO()(model, guide) for model, guide, *_ in pairs]
    optimizers = [torch.optim.Adam(o.parameters(), 0.01) for o in objectives]
    losses: list[list[float]] = [[], []]
    randoms = [torch.Generator().manual_seed(3).get_state()] * 2
    for _ in range(4):
        for i, (objective, optimizer, (_, _, arguments, _)) in enumerate(zip(objectives, optimizers, pairs, strict=True)):
            torch.set_rng_state(randoms[i])
            optimizer.zero_grad()
            loss = objective(*arguments)
            loss.backward()
            optimizer.step()
            randoms[i] = torch.get_rng_state()
            losses[i].append(loss.item())
    assert losses == alone
    assert dict(pyro.get_param_store().items()) == {"loc": torch.tensor(7.0)}
    assert pyro.settings.get("module_local_params") is False


def test_constrained_parameters_of_two_autoguides_are_their_own():
    """In Pyro's global store the second AutoNormal would take over the scales of the first."""
    from inference.elbo import RateDistortionELBO

    guides = []
    for scale in (0.1, 0.5):
        model, _, arguments, _ = build("bnn")
        guide = AutoNormal(model, init_scale=scale)
        RateDistortionELBO()(model, guide)(*arguments)
        guides.append(guide)
    torch.testing.assert_close([g.scales.weights.mean().item() for g in guides], [0.1, 0.5])


def test_modules_that_are_no_part_of_the_objective_may_be_older_too():
    """A conditioned model is a function that hides its modules."""
    from inference.elbo import RateDistortionELBO

    model, guide, (x, y), _ = build("bnn")
    hidden = pyro.poutine.condition(model, {"labels": y[None]})
    pyro.set_rng_seed(0)
    loss = RateDistortionELBO()(hidden, guide)(x)
    pyro.set_rng_seed(0)
    torch.testing.assert_close(loss, RateDistortionELBO()(model, guide)(x, y))


def test_settings_are_put_back_after_an_error_and_inside_another_objective():
    from inference.elbo import RateDistortionELBO

    model, guide, arguments, _ = build("bnn")
    objective = RateDistortionELBO()(model, guide)

    class Outer(pyro.nn.PyroModule):
        def forward(self):
            with pyro.poutine.block():
                objective(*arguments)
            return self.anything

    with pytest.raises(AttributeError, match="anything"):
        RateDistortionELBO()(Outer(), EmptyGuide())()
    assert pyro.settings.get("module_local_params") is False
    assert not hasattr(pyro.nn.module._Context, "param_state")
    assert by_pyro(model, guide, arguments)


@pytest.mark.parametrize("local", [True, False])
def test_our_objective_works_whatever_the_setting_was_when_a_model_was_built(local):
    losses = []
    for setting in (local, not local):
        with pyro.settings.context(module_local_params=setting):
            torch.manual_seed(0)
            built = build("bnn")
        with pyro.settings.context(module_local_params=local):
            losses.append(by_us(*built[:3]))
            assert pyro.settings.get("module_local_params") is local
    assert losses[0] == losses[1]


def test_fixed_numbers_stay_fixed_under_svi():
    """Pyro's store makes every parameter trainable that it is shown."""
    model = BayesianNetwork(mlp(4, 3, 1), likelihood=GaussianLikelihood(0.5, learned=False), num_data=60)
    guide = MeanFieldGuide(model.initial_weights(1))
    by_pyro(model, guide, (torch.randn(6, 4), torch.randn(6)))
    assert float(model.likelihood.log_noise.exp()) == pytest.approx(0.5)
    model, guide, episode, _ = build("sib")
    before = guide.rule.log_size.clone()
    by_pyro(model, guide, episode)
    assert torch.equal(guide.rule.log_size, before)
    assert not guide.rule.log_size.requires_grad


def test_using_a_likelihood_by_itself_touches_no_store():
    model = BayesianNetwork(mlp(4, 3, 1), likelihood=GaussianLikelihood())
    model.likelihood(torch.randn(6, 1))
    assert not len(pyro.get_param_store())


def test_only_our_objective_draws_late():
    """The same guide in the same mode: mean and variance under our objective, weights under Pyro's."""
    from inference.elbo import RateDistortionELBO
    from models.distributions.diagonal import GaussianWeights

    model, guide, arguments, _ = build("bnn")
    _, ours = RateDistortionELBO()._get_trace(model, guide, arguments, {})
    _, theirs = TraceMeanField_ELBO()._get_trace(model, guide, arguments, {})
    assert isinstance(ours.nodes["weights"]["value"], GaussianWeights)
    assert theirs.nodes["weights"]["value"].shape == (1, 1, 23)
    guide.eval()
    assert isinstance(RateDistortionELBO()._get_trace(model, guide, arguments, {})[1].nodes["weights"]["value"], torch.Tensor)


def in_order(order: str) -> None:
    """Both objectives on each system; ``late``: ours is imported when the models are built and have run under Pyro's."""
    if order == "early":
        import inference.elbo  # noqa: F401
    warnings.simplefilter("error")
    torch.manual_seed(0)
    built = [build(name) for name in SYSTEMS]
    if order == "late":
        pyros = [by_pyro(*b[:3], elbo) for b in built for elbo in (Trace_ELBO, TraceMeanField_ELBO)]
        assert not any(name.split(".")[0] in ("inference", "sibyl") for name in sys.modules)
    ours = [by_us(*b[:3]) for b in built]
    if order == "early":
        pyros = [by_pyro(*b[:3], elbo) for b in built for elbo in (Trace_ELBO, TraceMeanField_ELBO)]
    ours += [by_us(*b[:3]) for b in built]
    assert torch.tensor([*pyros, *ours]).isfinite().all()
    for model, guide, _, seen in built:
        assert len(Predictive(model, guide=guide, num_samples=2)(*seen)["labels"]) == 2


def python(code: str) -> str:
    """Output of a fresh interpreter."""
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "MPLBACKEND": "agg"})
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("order", ["early", "late"])
def test_both_orders(order):
    python(f"from tests.test_pyro_host import in_order; in_order({order!r})")


@pytest.mark.slow
def test_importing_ours_changes_nothing_global():
    assert python(IMPORT_ALL) == "[]"
