"""Cost of a training step of the mean-field MLP 784-400-400-10: deterministic, ours with K = 1 and 5, TyXe's way, plain Pyro.

``python benchmarks/bnn_speed.py [--batch 512] [--threads 2] [--tyxe FOLDER]``: medians of interleaved steps on random data.
``--tyxe`` names a checkout of TyXe, which then takes part with local reparameterization on.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from pyro.nn.module import to_pyro_module_
from torch import Tensor, nn

from guides.mean_field import MeanFieldGuide
from inference.elbo import RateDistortionELBO
from inference.runs.training import keep_freed_memory
from models.bayesian.network import BayesianNetwork
from models.networks.classifiers import mlp

N = 60_000


def network() -> nn.Sequential:
    return nn.Sequential(*mlp(784, (400, 400), 10))


def deterministic(x: Tensor, y: Tensor) -> Callable[[], None]:
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()

    return step


def ours(x: Tensor, y: Tensor, posteriors: int) -> Callable[[], None]:
    model = BayesianNetwork(network(), num_data=N, posteriors=posteriors)
    guide = MeanFieldGuide(model.initial_weights(posteriors), 0.02)
    objective = RateDistortionELBO(beta=1.0)(model, guide)
    optimizer = torch.optim.Adam(guide.parameters(), 1e-3, fused=True)
    if posteriors > 1:
        x, y = x.expand(posteriors, *x.shape).clone(), y.expand(posteriors, -1)

    def step() -> None:
        optimizer.zero_grad()
        objective(x, y).backward()
        optimizer.step()

    return step


class PlainPyro(PyroModule):
    """The same model by ``PyroSample``."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        to_pyro_module_(self.net)
        for module in self.net.modules():
            if isinstance(module, nn.Linear):
                for name, parameter in list(module.named_parameters(recurse=False)):
                    prior = dist.Normal(0.0, 1.0).expand(parameter.shape).to_event(parameter.dim())
                    setattr(module, name, PyroSample(prior))

    def forward(self, x: Tensor, y: Tensor) -> None:
        logits = self.net(x)
        with pyro.plate("data", N, subsample=torch.arange(len(x))):
            pyro.sample("labels", dist.Categorical(logits=logits), obs=y)


def plain_pyro(x: Tensor, y: Tensor) -> Callable[[], None]:
    model = PlainPyro()
    guide = AutoNormal(model, init_scale=0.02)
    objective = Trace_ELBO()(model, guide)
    objective(x, y)
    optimizer = torch.optim.Adam(guide.parameters(), 1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        objective(x, y).backward()
        optimizer.step()

    return step


def tyxe_step(x: Tensor, y: Tensor, folder: str) -> Callable[[], None]:
    pyro.settings.set(module_local_params=False)  # TyXe keeps its parameters in Pyro's store
    sys.path.insert(0, folder)
    if not hasattr(pyro.util, "deep_getattr"):  # gone from newer Pyro
        pyro.util.deep_getattr = lambda thing, path: functools.reduce(getattr, path.split("."), thing)
    import tyxe

    prior = tyxe.priors.IIDPrior(dist.Normal(torch.zeros(()), torch.ones(())))
    likelihood = tyxe.likelihoods.Categorical(N)
    bnn = tyxe.VariationalBNN(network(), prior, likelihood, lambda module: tyxe.guides.AutoNormal(module, init_scale=0.02))
    svi = SVI(bnn.model, bnn.guide, pyro.optim.Adam({"lr": 1e-3}), TraceMeanField_ELBO())

    def step() -> None:
        with tyxe.poutine.local_reparameterization():
            svi.step(x, y)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--tyxe", default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    keep_freed_memory()  # for all of them
    x, y = torch.randn(options.batch, 784), torch.randint(10, (options.batch,))
    steps = {
        "deterministic": deterministic(x, y),
        "mean field, K = 1": ours(x, y, 1),
        "mean field, K = 5": ours(x, y, 5),
        "PyroSample + AutoNormal": plain_pyro(x, y),
    }
    if options.tyxe:
        steps["TyXe, local reparameterization"] = tyxe_step(x, y, options.tyxe)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.steps):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: sorted(values)[len(values) // 2] for name, values in seconds.items()}
    for name, value in medians.items():
        print(f"{name:32s} {1e3 * value:8.2f} ms  {value / medians['deterministic']:6.2f} × deterministic")


if __name__ == "__main__":
    main()
