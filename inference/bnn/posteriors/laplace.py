"""Laplace's approximation around trained networks, with linearised predictions, by the library laplace-torch."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from torch.nn.utils import vector_to_parameters
from torch.utils.data import DataLoader, TensorDataset

from data.errors import UserError
from data.items import LabelledItems
from data.seeding import mix_seed
from inference.bnn.posterior import TrainedPosterior, WeightPosterior
from models.bayesian.network import BayesianNetwork
from models.bayesian.weight_priors import WeightPrior
from models.distributions.scaled import Scaled
from models.likelihoods import CategoricalLikelihood, GaussianLikelihood, Likelihood

FULL_AT_MOST = 2000  # weights whose Hessian is kept whole when not asked otherwise
ITEMS_AT_ONCE = 500


@dataclass(frozen=True)
class LaplacePosterior(TrainedPosterior):
    """q(w) = 1/K Σ_k N(loc_k, (H_k + prior precision)⁻¹), H_k the generalised Gauss–Newton matrix at the trained loc_k.

    Predictions are those of the linearised network, f(x, loc_k) + ∂f/∂w (w − loc_k), the model to which this posterior
    belongs: under the network itself its draws far from loc_k predict nonsense.

    Attributes:
        scales: (H_k + prior precision)^(−½) of each of the K, as :func:`draw_from` reads it: nothing of the library is needed
            to predict.
        evidences: Laplace's estimate of log p(y given x) of each, nats: ``[K]``.
        noise: type of the noise that draws are made of, whatever the posterior is in.

    Source: MacKay 1992; Immer et al. 2021, equation 4; K networks: Eschenhagen et al. 2021.
    """

    scales: tuple[tuple[Block, ...], ...]
    evidences: Tensor
    noise: torch.dtype

    @torch.no_grad()
    def sample(self, num_samples: int, *, seed: int = 0) -> Tensor:
        """Weight vectors ``[num_samples, P]``, of the K networks in turn; weights that are points are repeated."""
        drawn = self.loc[self.components(num_samples)].clone()
        for k, blocks in enumerate(self.scales):
            rows, random = drawn[k :: self.size], sum(map(block_size, blocks))
            generator = torch.Generator().manual_seed(mix_seed(seed, k))
            noise = torch.randn(len(rows), random, generator=generator, dtype=self.noise).to(blocks[0][0])
            rows[:, rows.shape[-1] - random :] += draw_from(blocks, noise).to(drawn)
        return drawn

    @torch.no_grad()
    def functions(self, x: Tensor, weights: Tensor, components: Tensor) -> Tensor:
        """Those of the linearised network: see :meth:`~inference.bnn.posterior.NetworkPosterior.functions`."""

        def line(loc: Tensor, shift: Tensor) -> Tensor:
            both = torch.func.jvp(lambda w: self.model.call(self.model.split(w), x), (loc,), (shift,))
            return both[0] + both[1]

        centres = self.loc[components]
        return torch.func.vmap(line)(centres, weights - centres)

    def evidence(self) -> float:
        """Laplace's estimate of log p(y given x) under the prior in use, mean over the K, nats."""
        return float(self.evidences.mean())


Block = tuple[Tensor, ...]
"""Square root S of the covariance of p weights in a row: its diagonal ``[p]``; S itself ``[p, p]``; or by eigenvectors, S = Q s
Qᵀ with s ``[p]``, or S = (Q₁ ⊗ Q₂) s (Q₁ ⊗ Q₂)ᵀ with s ``[p₁, p₂]``: eigenvectors first."""


def block_size(block: Block) -> int:
    """How many weights a block is of."""
    return len(block[0]) if len(block) == 1 else block[-1].numel()


def draw_from(blocks: Sequence[Block], noise: Tensor) -> Tensor:
    """Standard normal noise ``[S, p]`` to draws of N(0, covariance)."""
    parts = []
    for block, part in zip(blocks, noise.split([block_size(block) for block in blocks], -1), strict=True):
        if len(block) == 1:
            parts.append(part * block[0] if block[0].dim() == 1 else part @ block[0].mT)
        elif len(block) == 2:
            vectors, scale = block
            parts.append(part @ vectors * scale @ vectors.mT)
        else:
            left, right, scale = block
            rotated = left.mT @ part.unflatten(-1, scale.shape) @ right * scale
            parts.append((left @ rotated @ right.mT).flatten(1))
    return torch.cat(parts, -1)


def scale_of(fit: Any) -> tuple[Block, ...]:
    """What :func:`draw_from` needs of a fit of laplace-torch."""
    if hasattr(fit, "posterior_scale"):  # full or diagonal
        return ((fit.posterior_scale.detach().contiguous(),),)
    precision = fit.posterior_precision  # by Kronecker factors
    deltas = precision.deltas.expand(len(precision.eigenvalues))
    blocks = []
    for values, vectors, delta in zip(precision.eigenvalues, precision.eigenvectors, deltas, strict=True):
        eigen = values[0] if len(values) == 1 else torch.outer(*values)
        blocks.append((*(v.detach().contiguous() for v in vectors), (eigen + delta).detach() ** -0.5))
    return tuple(blocks)


def laplace_posterior(
    points: WeightPosterior, data: LabelledItems, *, structure: str | None = None, last: bool = False, tune: bool = False
) -> LaplacePosterior:
    """Laplace's approximation around trained weights.

    Args:
        points: trained at β = 1, so that each is a mode of the posterior.
        data: that they were trained on.
        structure: of the Hessian: full, kron (Kronecker factors) or diag; full up to 2000 weights, kron beyond, when not given.
        last: whether the last layer alone is random.
        tune: whether the prior's precision is that of the greatest evidence, instead of the model's.

    Raises:
        UserError: what :func:`check_laplace` finds.
    """
    model, kind = points.model, likelihood_kind(points.model.likelihood)
    structure = structure or ("full" if model.num_weights <= FULL_AT_MOST else "kron")
    precision = prior_precision(model.prior, [shape.numel() for shape in model.shapes.values()])
    fits = []
    for k in range(points.size):
        network, likelihood = trained_network(model, points.loc[k]), points.likelihood(torch.tensor([k]))
        double = structure == "full" and points.device.type != "mps"  # a Hessian's eigenvalues span many decades
        network = network.double() if double else network
        options: dict[str, Any] = {"prior_precision": precision.to(next(network.parameters())), "prior_mean": 0.0}
        items, constant = data, 0.0
        if isinstance(likelihood, GaussianLikelihood):
            noise = likelihood.log_noise.detach().exp().flatten()
            if bool((noise == noise[0]).all()):
                options["sigma_noise"] = float(noise[0])
            else:
                network, items, constant = whitened(network, data, noise)
        fit = fit_laplace(network, items, kind, structure, last=last, tune=tune, **options)
        fits.append((scale_of(fit), float(fit.log_marginal_likelihood().detach()) + constant))
    scales, evidences = tuple(scale for scale, _ in fits), torch.tensor([evidence for _, evidence in fits])
    loc, noise_type = points.loc.detach(), scales[0][0][0].dtype
    return LaplacePosterior(model, loc, scales, evidences.to(loc), noise_type, own_likelihood=points.own_likelihood)


class Whitened(nn.Module):
    """A network with each output in units of its noise: what the library knows as one noise for all."""

    def __init__(self, network: nn.Module, noise: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("noise", noise)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) / self.noise


def whitened(network: nn.Module, data: LabelledItems, noise: Tensor) -> tuple[Whitened, LabelledItems, float]:
    """Network and targets ``[n, d]`` in units of the outputs' noise ``[d]``, and what their log density lacks, nats."""
    other = Whitened(network, noise.to(next(network.parameters())))
    scaled = LabelledItems(data.items, data.labels / noise.to(data.labels), data.class_names)
    return other, scaled, -len(data) * float(noise.log().sum())


def check_laplace(model: BayesianNetwork, weights: Sequence[str]) -> None:
    """Fail where Laplace's approximation cannot be had.

    Raises:
        UserError: no laplace-torch; a likelihood or prior it has no part for; ``weights`` other than all or the last layer's.
    """
    if tuple(weights) not in (("all",), ("last",)):
        raise UserError("laplace is of all weights or those of the last layer: `weights=all` or `weights=last`")
    likelihood_kind(model.likelihood)
    if tuple(weights) == ("last",) and has_noise_of_each_output(model.likelihood):
        raise UserError("laplace of the last layer takes one known noise for all outputs: `noise=0.1`, or `weights=all`")
    prior_precision(model.prior, [shape.numel() for shape in model.shapes.values()])
    laplace_class()


def laplace_class() -> Any:
    """``laplace.Laplace``.

    Raises:
        UserError: it is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its dependencies use torch.jit
        try:
            from laplace import Laplace
        except ImportError:
            raise UserError("laplace needs the library laplace-torch: pip install 'sibyl-vib[laplace]'") from None
    return Laplace


def fit_laplace(
    network: nn.Module, data: LabelledItems, kind: str, structure: str, *, last: bool, tune: bool, **options: Any
) -> Any:
    """One fit of laplace-torch: ``kind`` is its likelihood, ``structure`` that of the Hessian, ``last`` for the last layer
    alone, and ``tune`` has the prior's precision chosen by the evidence."""
    layers = {name.rpartition(".")[0] for name, _ in network.named_parameters()}
    part = "last_layer" if last and len(layers) > 1 else "all"
    parameter = next(network.parameters())
    with warnings.catch_warnings(), default_dtype(parameter.dtype):
        warnings.simplefilter("ignore")  # it calls the tuning of classifiers' priors experimental
        x = data.items.to(parameter.dtype) if data.items.is_floating_point() else data.items
        y = data.labels.to(parameter.dtype).reshape(len(data), -1) if kind == "regression" else data.labels
        fit = laplace_class()(network, kind, part, structure, **options)
        fit.fit(DataLoader(TensorDataset(x.to(parameter.device), y.to(parameter.device)), batch_size=ITEMS_AT_ONCE))
        if tune:
            fit.optimize_prior_precision(pred_type="glm", method="marglik", init_prior_prec=fit.prior_precision)
    return fit


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Tensors are made in ``dtype``: the library asks for the columns of a full Hessian by unit vectors in the default, and so
    rounds the Hessian of a network in double precision, or fails."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def trained_network(model: BayesianNetwork, weights: Tensor) -> nn.Module:
    """The plain network with these weights ``[P]``, its parameters in the order of the vector."""
    network = copy.deepcopy(model.network).eval().to(weights.device)
    parameters = dict(network.named_parameters())
    vector_to_parameters(weights.detach().clone(), [parameters[name] for name in model.shapes])
    return network.requires_grad_(True)


def prior_precision(prior: WeightPrior, sizes: Sequence[int]) -> Tensor:
    """1/scale² of a Gaussian prior centred at zero: a number; one per parameter ``[len(sizes)]``; or one per weight.

    Raises:
        UserError: another prior.
    """
    p, unit = prior(sum(sizes)), None
    if isinstance(p, Scaled):
        p, unit = p.base, p.log_scales().detach().exp()
    if not (isinstance(p, Independent) and isinstance(p.base_dist, Normal) and not bool(p.base_dist.loc.any())):
        raise UserError("laplace needs a Gaussian prior centred at zero: `prior=gaussian`")
    each = (p.base_dist.scale.detach().expand(sum(sizes)) * (1 if unit is None else unit)) ** -2
    groups = torch.stack([part[0] for part in each.split(list(sizes))])
    if bool((groups.repeat_interleave(torch.tensor(sizes, device=groups.device)) != each).any()):
        return each
    return groups if bool((groups != groups[0]).any()) else groups[0]


def has_noise_of_each_output(likelihood: Likelihood) -> bool:
    """Whether the outputs' noises differ, or will."""
    if not isinstance(likelihood, GaussianLikelihood) or likelihood.outputs == 1:
        return False
    return isinstance(likelihood.log_noise, nn.Parameter) or bool((likelihood.log_noise.diff() != 0).any())


def likelihood_kind(likelihood: Likelihood) -> str:
    """laplace-torch's word for it.

    Raises:
        UserError: it has none.
    """
    for known, word in ((CategoricalLikelihood, "classification"), (GaussianLikelihood, "regression")):
        if isinstance(likelihood, known):
            return word
    raise UserError("laplace is for categorical and Gaussian likelihoods: choose another algorithm")
