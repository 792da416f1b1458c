"""The training step of the mean-field MLP 784-400-400-10 beside other libraries' and the deterministic network's."""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from pyro.nn.module import to_pyro_module_
from torch import Tensor, nn

from benchmarks.speed.timing import IN_A_ROW, Row, interleave
from data.errors import UserError
from guides.mean_field import MeanFieldGuide
from inference.elbo import RateDistortionELBO
from inference.runs.compiling import JointProgram
from inference.runs.graphs import CapturedTerms
from inference.runs.training import spare_steps
from models.bayesian.network import BayesianNetwork
from models.networks.classifiers import mlp

N, SCALE = 60_000, 0.02
BATCHES = (128, 512)
SIZES = (784, 400, 400, 10)


@dataclass(frozen=True)
class Objective:
    """What a library minimises on a batch.

    Attributes:
        loss: of one evaluation, a scalar.
        parameters: all of them.
        means: of the weights, layer by layer, where they are at hand.
        items: of which ``loss`` is the sum, where it is not the mean.
    """

    loss: Callable[[], Tensor]
    parameters: Iterable[nn.Parameter]
    means: Sequence[Tensor] = ()
    items: int = 1

    def step(self) -> Callable[[], None]:
        """A training step."""
        optimizer = torch.optim.Adam(self.parameters, 1e-3, fused=True)

        def step() -> None:
            optimizer.zero_grad()
            self.loss().backward()
            optimizer.step()

        return step

    def variance(self, draws: int) -> float:
        """Of the gradient with respect to the means, summed over the weights, of a loss per item."""
        total = squares = 0.0
        for _ in range(draws):
            gradient = torch.cat([g.flatten() for g in torch.autograd.grad(self.loss(), self.means)]).double() / self.items
            total, squares = total + gradient, squares + gradient.square()
        return float((squares - total**2 / draws).sum() / (draws - 1))


def network() -> nn.Sequential:
    """The network itself, the same for all."""
    torch.manual_seed(0)
    return nn.Sequential(*mlp(SIZES[0], SIZES[1:-1], SIZES[-1]))


def place(means: Iterable[Tensor]) -> None:
    """Put the network's weights into ``means``, layer by layer."""
    for mean, weight in zip(means, network().parameters(), strict=True):
        mean.data.copy_(weight)


class Loss(nn.Module):
    """The mean loss of a network and what else it costs, ``rate``, as a tuple of one number."""

    def __init__(self, net: nn.Module, rate: Callable[[nn.Module], Tensor] | None = None) -> None:
        super().__init__()
        self.net, self.rate = net, rate

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor]:
        loss = F.cross_entropy(self.net(x), y)
        return (loss if self.rate is None else loss + self.rate(self.net) / N,)


def compiled(loss: Loss, x: Tensor, y: Tensor) -> Objective:
    """Another library's loss, compiled as ours is."""
    program = JointProgram(loss, (x, y), 1)
    program.prove((x, y), [1.0])
    return Objective(lambda: program((x, y), [1.0])[0], loss.parameters())


def deterministic(x: Tensor, y: Tensor, *, graph: bool = False) -> Objective:
    """Maximum likelihood; on a GPU, where asked for, by a graph of the network's passes."""
    net = network()
    if graph:
        torch.cuda.make_graphed_callables(net, (x,))
    return Objective(lambda: F.cross_entropy(net(x), y), net.parameters())


def ours(x: Tensor, y: Tensor, posteriors: int, *, graphs: bool = True, compiled: bool = False) -> Objective:
    """Local reparameterization: a draw for each example; ``compiled`` as with ``compile`` in training, and on a GPU, as there,
    with ``graphs``."""
    model = BayesianNetwork(network(), num_data=N, posteriors=posteriors)
    guide = MeanFieldGuide(model.initial_weights(posteriors), SCALE)
    objective, captured = RateDistortionELBO(beta=1.0)(model, guide), CapturedTerms(compiles=compiled)
    captured.worth = captured.worth_compiling = 1  # in the rounds that are not counted
    if posteriors > 1:
        x, y = x.expand(posteriors, *x.shape).clone(), y.expand(posteriors, -1)
    means = dict(guide.named_parameters())["standard_loc"]
    return Objective(lambda: captured(objective, x, y).loss if graphs else objective(x, y), guide.parameters(), [means], N)


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


def plain_pyro(x: Tensor, y: Tensor) -> Objective:
    """One draw of the weights for the batch, by Pyro alone."""
    model = PlainPyro()
    guide = AutoNormal(model, init_scale=SCALE)
    objective = Trace_ELBO()(model, guide)
    objective(x, y)
    return Objective(lambda: objective(x, y), guide.parameters())


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


def bayesian_torch(x: Tensor, y: Tensor, kind: str, *, compiling: bool = False) -> Objective:
    """bayesian-torch, ``Reparameterization`` (one draw of the weights for the batch) or ``Flipout``; as it is or compiled."""
    from bayesian_torch.models.dnn_to_bnn import dnn_to_bnn, get_kl_loss

    net = network()
    options = {"prior_mu": 0.0, "prior_sigma": 1.0, "posterior_mu_init": 0.0, "moped_enable": False, "moped_delta": 0.5}
    dnn_to_bnn(net, options | {"posterior_rho_init": math.log(math.expm1(SCALE)), "type": kind})
    net.to(x.device)  # some of its buffers are made elsewhere
    means = [parameter for name, parameter in net.named_parameters() if ".mu_" in name]
    place(means)
    loss = Loss(net, get_kl_loss)
    return compiled(loss, x, y) if compiling else Objective(lambda: loss(x, y)[0], net.parameters(), means)


def blitz(x: Tensor, y: Tensor) -> Objective:
    """blitz: one draw of the weights for the batch."""
    from blitz.modules import BayesianLinear
    from blitz.utils import variational_estimator

    @variational_estimator
    class Net(nn.Sequential):
        """The network of blitz's layers."""

    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(SIZES):
        layers += [BayesianLinear(inputs, outputs, posterior_rho_init=math.log(math.expm1(SCALE))), nn.ReLU()]
    net, options = Net(*layers[:-1]), {"sample_nbr": 1, "complexity_cost_weight": 1 / N}
    means = [parameter for name, parameter in net.named_parameters() if name.endswith("sampler.mu")]
    place(means)
    loss = lambda: net.sample_elbo(inputs=x, labels=y, criterion=nn.CrossEntropyLoss(), **options)  # noqa: E731
    return Objective(loss, net.parameters(), means)


def objectives(x: Tensor, y: Tensor, compiling: bool = False) -> Iterator[tuple[str, Objective]]:
    """Ours, and those of the libraries that are there: see the extra ``peers``; with ``compiling``, what can be, compiled
    too."""
    yield "deterministic", deterministic(x, y)
    if x.is_cuda:
        yield "deterministic, as a graph", deterministic(x, y, graph=True)
    yield "ours, a draw an example", ours(x, y, 1)
    yield "ours, five posteriors", ours(x, y, 5)
    if compiling:
        yield "deterministic, compiled", compiled(Loss(network()), x, y)
        yield "ours, compiled", ours(x, y, 1, compiled=True)
        yield "ours, five posteriors, compiled", ours(x, y, 5, compiled=True)
    yield "PyroSample + AutoNormal, a draw a batch", plain_pyro(x, y)
    if importlib.util.find_spec("bayesian_torch"):
        yield "bayesian-torch, a draw a batch", bayesian_torch(x, y, "Reparameterization")
        yield "bayesian-torch, Flipout", bayesian_torch(x, y, "Flipout")
        if compiling:
            yield "bayesian-torch, a draw a batch, compiled", bayesian_torch(x, y, "Reparameterization", compiling=True)
            yield "bayesian-torch, Flipout, compiled", bayesian_torch(x, y, "Flipout", compiling=True)
    if importlib.util.find_spec("blitz") and not x.is_cuda:  # its prior stays on the CPU
        yield "blitz, a draw a batch", blitz(x, y)


def steps(options: argparse.Namespace) -> list[Row]:
    """``bnn-step``: beside the deterministic network, whose ratio to each row's time the table has, and how noisy the gradient
    of one network's means is, as a multiple of ours."""
    spare_steps()  # for all of them
    rows = []
    for batch in options.batch or BATCHES:
        torch.manual_seed(0)
        with torch.device(options.device):  # where networks and guides are made
            x, y = torch.randn(batch, SIZES[0]), torch.randint(SIZES[-1], (batch,))
            made = dict(objectives(x, y, options.compile))
            single = {name: one for name, one in made.items() if one.means and "five" not in name}
            noise = {name: one.variance(options.rounds) for name, one in single.items()}
            programs = {name: one.step() for name, one in made.items()}
            if options.tyxe:
                programs["TyXe, a draw an example"] = tyxe_step(x, y, options.tyxe)
        how = {"rounds": options.rounds, "in_a_row": IN_A_ROW, "clock": options.clock}
        for row in interleave("bnn-step", f"batch {batch}", programs, **how):
            extra = {"× deterministic": 1 / row.ratio}
            if row.name in noise:
                extra["gradient's variance × ours"] = noise[row.name] / noise["ours, a draw an example"]
            rows.append(replace(row, extra=extra))
    return rows
