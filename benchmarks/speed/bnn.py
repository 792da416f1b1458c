"""The training step of the mean-field MLP 784-400-400-10 beside other libraries' and the deterministic network's."""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from pyro.nn.module import to_pyro_module_
from torch import Tensor, nn

from benchmarks.speed.timing import Row, interleave
from data.errors import UserError
from guides.mean_field import MeanFieldGuide
from inference.elbo import RateDistortionELBO
from inference.runs.training import keep_freed_memory
from models.bayesian.network import BayesianNetwork
from models.networks.classifiers import mlp

N, SCALE = 60_000, 0.02
BATCHES = (128, 512)
SIZES = (784, 400, 400, 10)


def network() -> nn.Sequential:
    """The network itself."""
    return nn.Sequential(*mlp(SIZES[0], SIZES[1:-1], SIZES[-1]))


def deterministic(x: Tensor, y: Tensor) -> Callable[[], None]:
    """Maximum likelihood."""
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()

    return step


def ours(x: Tensor, y: Tensor, posteriors: int) -> Callable[[], None]:
    """Local reparameterization: a draw for each example."""
    model = BayesianNetwork(network(), num_data=N, posteriors=posteriors)
    guide = MeanFieldGuide(model.initial_weights(posteriors), SCALE)
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
    """One draw of the weights for the batch, by Pyro alone."""
    model = PlainPyro()
    guide = AutoNormal(model, init_scale=SCALE)
    objective = Trace_ELBO()(model, guide)
    objective(x, y)
    optimizer = torch.optim.Adam(guide.parameters(), 1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        objective(x, y).backward()
        optimizer.step()

    return step


def tyxe_step(x: Tensor, y: Tensor, folder: str) -> Callable[[], None]:
    """TyXe with local reparameterization, of a checkout in ``folder``; while it runs its parameters are in Pyro's store."""
    sys.path.insert(0, folder)
    if not hasattr(pyro.util, "deep_getattr"):  # gone from newer Pyro
        pyro.util.deep_getattr = lambda thing, path: functools.reduce(getattr, path.split("."), thing)
    try:
        import tyxe
    except ImportError as error:
        raise UserError(f"`tyxe={folder}` is no checkout of TyXe that can be imported: {error}") from error

    with pyro.settings.context(module_local_params=False):
        prior = tyxe.priors.IIDPrior(dist.Normal(torch.zeros(()), torch.ones(())))
        likelihood = tyxe.likelihoods.Categorical(N)
        bnn = tyxe.VariationalBNN(network(), prior, likelihood, lambda m: tyxe.guides.AutoNormal(m, init_scale=SCALE))
        svi = SVI(bnn.model, bnn.guide, pyro.optim.Adam({"lr": 1e-3}), TraceMeanField_ELBO())

    def step() -> None:
        with pyro.settings.context(module_local_params=False), tyxe.poutine.local_reparameterization():
            svi.step(x, y)

    return step


def bayesian_torch_step(x: Tensor, y: Tensor, kind: str) -> Callable[[], None]:
    """bayesian-torch, ``Reparameterization`` (one draw of the weights for the batch) or ``Flipout``."""
    from bayesian_torch.models.dnn_to_bnn import dnn_to_bnn, get_kl_loss

    net = network()
    options = {"prior_mu": 0.0, "prior_sigma": 1.0, "posterior_mu_init": 0.0, "moped_enable": False, "moped_delta": 0.5}
    dnn_to_bnn(net, options | {"posterior_rho_init": math.log(math.expm1(SCALE)), "type": kind})
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        (F.cross_entropy(net(x), y) + get_kl_loss(net) / N).backward()
        optimizer.step()

    return step


def blitz_step(x: Tensor, y: Tensor) -> Callable[[], None]:
    """blitz: one draw of the weights for the batch."""
    from blitz.modules import BayesianLinear
    from blitz.utils import variational_estimator

    @variational_estimator
    class Net(nn.Sequential):
        """The network of blitz's layers."""

    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(SIZES):
        layers += [BayesianLinear(inputs, outputs, posterior_rho_init=math.log(math.expm1(SCALE))), nn.ReLU()]
    net = Net(*layers[:-1])
    optimizer, loss = torch.optim.Adam(net.parameters(), 1e-3, fused=True), nn.CrossEntropyLoss()

    def step() -> None:
        optimizer.zero_grad()
        net.sample_elbo(inputs=x, labels=y, criterion=loss, sample_nbr=1, complexity_cost_weight=1 / N).backward()
        optimizer.step()

    return step


def peers(x: Tensor, y: Tensor, tyxe: str | None) -> Iterator[tuple[str, Callable[[], None]]]:
    """Steps of the libraries that are there: see the extra ``peers``."""
    yield "PyroSample + AutoNormal, a draw a batch", plain_pyro(x, y)
    if importlib.util.find_spec("bayesian_torch"):
        yield "bayesian-torch, a draw a batch", bayesian_torch_step(x, y, "Reparameterization")
        yield "bayesian-torch, Flipout", bayesian_torch_step(x, y, "Flipout")
    if importlib.util.find_spec("blitz"):
        yield "blitz, a draw a batch", blitz_step(x, y)
    if tyxe:
        yield "TyXe, a draw an example", tyxe_step(x, y, tyxe)


def steps(options: argparse.Namespace) -> list[Row]:
    """``bnn-step``: beside the deterministic network, whose ratio to each row's time the table has; K = 5 is five posteriors
    side by side."""
    keep_freed_memory()  # for all of them
    rows = []
    for batch in options.batch or BATCHES:
        torch.manual_seed(0)
        x, y = torch.randn(batch, SIZES[0]), torch.randint(SIZES[-1], (batch,))
        programs = {"deterministic": deterministic(x, y), "ours, a draw an example": ours(x, y, 1)}
        programs |= {"ours, five posteriors": ours(x, y, 5)} | dict(peers(x, y, options.tyxe))
        group = f"batch {batch}"
        found = interleave("bnn-step", group, programs, rounds=options.rounds, clock=options.clock)
        rows += [replace(row, extra={"× deterministic": row.seconds / found[0].seconds}) for row in found]
    return rows
