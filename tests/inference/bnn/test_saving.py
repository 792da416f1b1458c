"""Files of fitted networks: every algorithm, prior and likelihood comes back; others are refused in one line."""

import pyro.distributions as dist
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import inference.bnn.posteriors.chains
from data.errors import UserError
from inference.bnn.algorithms import Algorithm
from inference.bnn.bnn import BNN
from inference.runs.tensors import load_tensors, save_tensors
from models.bayesian.weight_priors import GaussianWeightPrior, WeightPrior
from models.likelihoods import GaussianLikelihood, OwnLikelihood
from tests.inference.bnn.conftest import blobs

QUICK = {"epochs": 2, "rounds": 2, "posteriors": 2, "iterates": 2, "rank": 2, "chains": 2, "warmup": 4, "draws": 4}


def network(outputs=3, hidden=5):
    return nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


def same(one, other, x):
    first, second = one.predict(x, num_samples=6, seed=3), other.predict(x, num_samples=6, seed=3)
    for name in vars(first):
        if name != "class_names":
            torch.testing.assert_close(getattr(second, name), getattr(first, name), atol=0, rtol=0)
    torch.testing.assert_close(other.rates, one.rates, equal_nan=True, atol=0, rtol=0)
    torch.testing.assert_close(other.posterior.rate(), one.posterior.rate(), equal_nan=True)
    for name in ("algorithm", "beta", "seconds", "warning", "settings", "item_shape", "class_names", "rate_against"):
        assert getattr(other, name) == getattr(one, name), name


class TestAlgorithms:
    @pytest.mark.parametrize("algorithm", list(Algorithm))
    def test_every_one_comes_back_and_goes_elsewhere(self, algorithm, tmp_path, monkeypatch):
        monkeypatch.setattr(inference.bnn.posteriors.chains, "SEARCH", 20)
        if algorithm is Algorithm.LAPLACE:
            pytest.importorskip("laplace")
        x, y = blobs(30)
        beta = 0.1 if algorithm.betas((0.1,)) == (0.1,) else None
        bnn = BNN.fit(network(), x, y, algorithm=algorithm, beta=beta, **QUICK)
        path = bnn.save(tmp_path / "bnn.safetensors")
        again = BNN.load(path, network())
        same(bnn, again, x)
        there = again.to(torch.float64)
        assert {t.dtype for t in (*there.posterior.model.parameters(), there.rates)} == {torch.float64}
        assert again.posterior.sample(2).dtype == torch.float32, "the other stays as it was"
        torch.testing.assert_close(there.predict(x).probabilities, bnn.predict(x).probabilities.double(), atol=1e-6, rtol=0)

    @pytest.mark.parametrize("structure", ["kron", "diag"])
    def test_laplace_of_every_structure(self, structure, tmp_path):
        pytest.importorskip("laplace")
        x, y = blobs(30)
        bnn = BNN.fit(network(), x, y, algorithm="laplace", structure=structure, **QUICK)
        again = BNN.load(bnn.save(tmp_path / "bnn.safetensors"), network())
        same(bnn, again, x)
        assert again.posterior.evidence() == bnn.posterior.evidence()

    def test_points_beside_the_random_weights_and_statistics_come_too(self, tmp_path):
        make = lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))  # noqa: E731
        x, y = blobs(30)
        bnn = BNN.fit(make(), x, y, algorithm="last-layer", epochs=2)
        same(bnn, BNN.load(bnn.save(tmp_path / "bnn.safetensors"), make()), x)


class Wide(WeightPrior):
    """A prior of one's own with a number of its own."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, num_weights):
        return dist.Cauchy(torch.zeros_like(self.scale), self.scale).expand([num_weights]).to_event(1)


class TestParts:
    @pytest.mark.parametrize(
        "given",
        [
            {"prior": "laplace"},
            {"prior": "spike-and-slab", "prior_scale": 0.5},
            {"prior_scales": "input"},
            {"prior": dist.StudentT(3.0, 0.0, 0.3)},
            {"prior": dist.Normal(0.0, torch.linspace(0.5, 1, 43)).to_event(1)},
            {"prior": GaussianWeightPrior(torch.linspace(0.5, 1, 43))},
        ],
    )
    def test_priors_are_in_the_file(self, given, tmp_path):
        x, y = blobs(30)
        bnn = BNN.fit(network(), x, y, epochs=2, **given)
        again = BNN.load(bnn.save(tmp_path / "bnn.safetensors"), network())
        same(bnn, again, x)
        weights = torch.randn(43)
        expected = bnn.posterior.model.prior(43).log_prob(weights)
        torch.testing.assert_close(again.posterior.model.prior(43).log_prob(weights), expected)

    def test_a_prior_of_ones_own_is_given_again(self, tmp_path):
        x, y = blobs(30)
        bnn = BNN.fit(network(), x, y, epochs=2, prior=Wide(0.2))
        path = bnn.save(tmp_path / "bnn.safetensors")
        same(bnn, BNN.load(path, network(), prior=Wide(9.0)), x)
        with pytest.raises(UserError, match=r"fitted with a prior of your own \(Wide\): give `prior`"):
            BNN.load(path, network())
        with pytest.raises(UserError, match="belongs to another prior: its scale is \\(\\), `prior` has 3"):
            BNN.load(path, network(), prior=Wide([1.0, 1.0, 1.0]))

    @pytest.mark.parametrize(
        "given",
        [
            {"noise": 0.3},
            {},
            {"likelihood": GaussianLikelihood(0.5)},
            {"y": torch.randn(30, 3), "noise": [0.1, 0.2, 0.3]},
            {"y": torch.randn(30, 3), "posteriors": 2},
            {"y": torch.arange(30) % 2, "likelihood": "bernoulli"},
            {"y": torch.arange(30), "likelihood": "poisson"},
        ],
    )
    def test_likelihoods_are_in_the_file(self, given, tmp_path):
        x, y = torch.randn(30, 4), given.get("y", torch.randn(30))
        rest = {name: value for name, value in given.items() if name != "y"}
        outputs = 1 if y.dim() == 1 else 3
        bnn = BNN.fit(network(outputs), x, y, epochs=2, **rest)
        same(bnn, BNN.load(bnn.save(tmp_path / "bnn.safetensors"), network(outputs)), x)

    def test_a_function_is_given_again(self, tmp_path):
        x, robust = torch.randn(30, 4), lambda f: dist.StudentT(4.0, f[..., 0], 0.1)
        bnn = BNN.fit(network(1), x, x[:, 0], epochs=2, likelihood=robust)
        path = bnn.save(tmp_path / "bnn.safetensors")
        same(bnn, BNN.load(path, network(1), likelihood=robust), x)
        same(bnn, BNN.load(path, network(1), likelihood=OwnLikelihood(robust)), x)
        with pytest.raises(UserError, match=r"with a likelihood of your own \(OwnLikelihood\): give `likelihood`"):
            BNN.load(path, network(1))

    def test_a_module_learns_its_parameters_and_they_are_in_the_file(self, tmp_path):
        x, given = torch.randn(30, 4), Noise()
        bnn = BNN.fit(network(1), x, 0.01 * x[:, 0], epochs=5, batch=10, likelihood=given)
        learned = float(bnn.posterior.model.likelihood.function.log_noise.detach())
        assert learned < -0.1
        assert float(given.log_noise.detach()) == 0, "the given one is copied"
        again = BNN.load(bnn.save(tmp_path / "bnn.safetensors"), network(1), likelihood=given)
        same(bnn, again, x)
        assert float(again.posterior.model.likelihood.function.log_noise.detach()) == learned


class Noise(nn.Module):
    """A likelihood of one's own with a number to learn."""

    def __init__(self):
        super().__init__()
        self.log_noise = nn.Parameter(torch.zeros(()))

    def forward(self, outputs):
        return dist.Normal(outputs[..., 0], self.log_noise.exp())


class TestFiles:
    @pytest.fixture
    def path(self, tmp_path):
        return BNN.fit(network(), *blobs(30), epochs=1).save(tmp_path / "bnn.safetensors")

    def test_the_folder_of_a_fit_holds_one(self, tmp_path):
        x, y = blobs(30)
        bnn = BNN.fit(network(), x, y, epochs=1, out=tmp_path / "run")
        same(bnn, BNN.load(tmp_path / "run", network()), x)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (None, "was fitted to a network of your own: give `network`"),
            (network(hidden=6), "belongs to another network: its parameter 0.weight is 5×4, `network` has 6×4"),
            (nn.Linear(4, 3), "belongs to another network: its parameter 0.weight is 5×4, `network` has none"),
            (
                nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, affine=False), nn.Linear(5, 3)),
                "belongs to another network: its 1.num_batches_tracked is none",
            ),
        ],
    )
    def test_other_networks_are_refused(self, path, given, message):
        with pytest.raises(UserError, match=message) as error:
            BNN.load(path, given)
        assert "\n" not in str(error.value)

    def test_damaged_and_foreign_files_are_refused(self, path, tmp_path):
        foreign = tmp_path / "foreign.safetensors"
        save_file({"weight": torch.ones(2)}, str(foreign))
        half = tmp_path / "half.safetensors"
        half.write_bytes(path.read_bytes()[:500])
        tensors, described = load_tensors(path)
        (empty := tmp_path / "empty").mkdir()
        for broken, message in (
            (foreign, "holds no fitted BNN"),
            (half, "is missing, damaged or no safetensors file"),
            (tmp_path / "none.safetensors", "is missing, damaged"),
            (save_tensors(tmp_path / "a.safetensors", {}, described), "is damaged: it lacks 'loc'"),
            (save_tensors(tmp_path / "b.safetensors", tensors, {"format": described["format"]}), "is damaged: it lacks"),
            (save_tensors(tmp_path / "c.safetensors", without(tensors, "posterior.log_scale"), described), "lacks 'log_scale'"),
            (save_tensors(tmp_path / "d.safetensors", tensors, described | {"algorithm": "magic"}), "is damaged: 'magic'"),
            (empty, "is not a run folder"),
        ):
            with pytest.raises(UserError, match=message) as error:
                BNN.load(broken, network())
            assert "\n" not in str(error.value)

    def test_places_to_save_to(self, path, tmp_path):
        bnn = BNN.load(path, network())
        with pytest.raises(UserError, match=r"must end in .safetensors"):
            bnn.save(tmp_path / "bnn.pt")
        with pytest.raises(UserError, match="cannot write to"):
            bnn.save(path / "below.safetensors")

    @pytest.mark.parametrize("place", [("nowhere",), (torch.int64,), ("cuda:9",), (3.5,)])
    def test_places_that_are_not_there(self, path, place):
        with pytest.raises(UserError, match="cannot go to") as error:
            BNN.load(path, network()).to(*place)
        assert "\n" not in str(error.value)


def without(tensors, name):
    """All tensors but one."""
    return {key: value for key, value in tensors.items() if key != name}
