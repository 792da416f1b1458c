"""Any ``nn.Module`` as a Bayesian model: w ~ m(w), y_i ~ p(y given f(x_i, w))."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from models.bayesian.draws import Estimator, call
from models.bayesian.weight_priors import GaussianWeightPrior, WeightPrior
from models.distributions.diagonal import GaussianWeights
from models.likelihoods import CategoricalLikelihood, Likelihood
from models.networks.functional import flat_weights, split_weights
from models.plates import data_plate
from models.sites import Site

Weights = Tensor | GaussianWeights


class BayesianNetwork(PyroModule):
    """A network whose weights are one latent vector, in K independent copies.

    Sites: ``weights`` (event ``[P]``) in the plate ``posteriors`` (size K), ``labels`` in ``posteriors`` × ``data``. A
    minibatch is scaled up to ``num_data``, so that distortion and rate are those of the whole data set. Without ``y`` the
    program samples labels.

    Source: "On regularizing deep learning using mutual information", slides "Vanilla BNNs" and "Rate-distortion perspective
    on supervised learning".

    Args:
        network: copied, not changed; its weights are where initialisation starts.
        prior: m(w); N(0, I) when not given.
        likelihood: p(y given ŷ); categorical when not given. With K > 1 the model has a copy of it, whose learned numbers (a
            noise) are one per posterior.
        num_data: n of the data set that minibatches come from; ``None``: the batch is the data set.
        posteriors: K, how many posteriors share one program; each has its own data.
        random: which parameters are random, by name; all when not given. The others stay ordinary parameters.
        linear: estimator of linear layers.
        convolution: estimator of layers that use one weight at several positions.

    Raises:
        ValueError: K < 1, no parameter is random, or K > 1 posteriors of a network with batch norm.
    """

    def __init__(
        self,
        network: nn.Module,
        prior: WeightPrior | None = None,
        likelihood: Likelihood | None = None,
        *,
        num_data: int | None = None,
        posteriors: int = 1,
        random: Callable[[str], bool] | None = None,
        linear: Estimator | str = Estimator.LOCAL,
        convolution: Estimator | str = Estimator.FLIPOUT,
    ) -> None:
        super().__init__()
        if posteriors < 1:
            raise ValueError(f"posteriors = {posteriors}: at least one is needed")
        if posteriors > 1 and any(getattr(module, "track_running_stats", False) for module in network.modules()):
            raise ValueError(
                f"batch norm's running statistics cannot be shared by {posteriors} posteriors: train one, or use GroupNorm"
            )
        self.network = copy.deepcopy(network)
        self.prior = prior if prior is not None else GaussianWeightPrior()
        self.likelihood = (likelihood if likelihood is not None else CategoricalLikelihood()).copies(posteriors)
        self.num_data, self.posteriors = num_data, posteriors
        self.linear, self.convolution = Estimator(linear), Estimator(convolution)
        chosen = {name: p for name, p in self.network.named_parameters() if random is None or random(name)}
        if not chosen:
            raise ValueError("no parameter of the network is random")
        self.shapes = {name: parameter.shape for name, parameter in chosen.items()}
        self.num_weights = sum(shape.numel() for shape in self.shapes.values())
        for parameter in chosen.values():
            parameter.requires_grad_(False)  # only a starting point: the guide has the weights

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Run the generative program.

        Args:
            x: ``[batch, *item]``, or ``[K, batch, *item]`` with K > 1 posteriors.
            y: ``[batch]`` or ``[K, batch]``, or ``None``.

        Returns:
            The labels, observed or sampled, ``[..., K, batch]``.
        """
        batch = x.shape[0 if self.posteriors == 1 else 1]
        with pyro.plate("posteriors", self.posteriors, dim=-2):
            weights = pyro.sample("weights", self.prior(self.num_weights))  # [..., K, 1, P]
            outputs = self.outputs(x, squeeze_data_plate(weights))
            with data_plate(self.num_data, batch, x.device):
                observed = None if y is None else self.likelihood.cast(y, outputs)
                return pyro.sample("labels", self.likelihood(outputs), obs=observed)

    def says_sites(self, x: Tensor, y: Tensor | None = None) -> bool:
        """Whether :meth:`sites` says all of a call: not where it has no labels to score, or parameters of the network to
        declare to Pyro."""
        return y is not None and not any(p.requires_grad for p in self.network.parameters())

    def sites(self, drawn: Mapping[str, Weights], x: Tensor, y: Tensor) -> dict[str, Site]:
        """What a call samples, by name, at the guide's weights, ``drawn``; arguments as of the call."""
        outputs = self.outputs(x, squeeze_data_plate(drawn["weights"]))
        batch = outputs.shape[-2]
        labels, observed = self.likelihood(outputs), self.likelihood.cast(y, outputs)
        return {
            "weights": Site(self.prior(self.num_weights)),
            "labels": Site(
                labels,
                observed[None] if self.posteriors == 1 else observed,
                scale=1.0 if self.num_data is None else self.num_data / batch,
                plates=(self.posteriors, batch),
            ),
        }

    def outputs(self, x: Tensor, weights: Weights) -> Tensor:
        """Network outputs under many weights at once.

        Args:
            x: ``[batch, *item]``, shared by all weights; or, where the model has K > 1 posteriors and ``weights`` is
                ``[..., K, P]``, ``[K, batch, *item]`` as in :meth:`forward`.
            weights: ``[..., K, P]``.

        Returns:
            ``[..., K, batch, outputs]``.
        """
        loc = weights.loc if isinstance(weights, GaussianWeights) else weights
        leading = loc.shape[:-1]
        if self.posteriors > 1:
            x = x.expand(*leading, *x.shape[1:]).flatten(0, len(leading) - 1)
        outputs = self.map_weights(x, weights, shared=self.posteriors == 1).unflatten(0, leading)
        return outputs.to(loc.dtype)  # under autocast densities stay in full precision

    def map_weights(self, x: Tensor, weights: Weights, *, shared: bool = True) -> Tensor:
        """S weights ``[..., P]`` and inputs ``[batch, *item]`` (``shared``) or ``[S, batch, *item]`` to
        ``[S, batch, outputs]``."""
        parts = self.split(weights)
        if (weights.loc if isinstance(weights, GaussianWeights) else weights).shape[:-1].numel() == 1:
            return self.call(parts, x if shared else x[0])[None]
        return torch.func.vmap(self.call, in_dims=(0, None if shared else 0), randomness="different")(parts, x)

    def call(self, parts: Mapping[str, Weights], x: Tensor) -> Tensor:
        """The network with these ``parts`` in place of its parameters: ``[batch, *item] -> [batch, outputs]``."""
        network: nn.Module = self.__dict__["_modules"]["network"]
        if any(p.requires_grad for p in network.parameters()):
            network = self.network  # declares the parameters to Pyro, which warns of each one that is only a starting point
        return call(network, parts, x, linear=self.linear, convolution=self.convolution)

    def split(self, weights: Weights) -> dict[str, Weights]:
        """S weights ``[..., P]`` as the network's parameters: name -> ``[S, *shape]``, or ``[*shape]`` where S = 1."""
        if isinstance(weights, GaussianWeights):
            loc, variance = (self.split(part) for part in weights)
            return {name: GaussianWeights(loc[name], variance[name]) for name in self.shapes}  # type: ignore[arg-type]
        rows = weights.reshape(-1, weights.shape[-1]).squeeze(0)
        return dict(split_weights(rows, self.shapes))

    def initial_weights(self, copies: int) -> Tensor:
        """``[copies, P]``: the network's own weights, then freshly initialised ones (torch's random state decides) of all
        layers but those that :func:`~models.networks.frozen.keep_start` has marked."""
        network, rows = copy.deepcopy(self.network), []
        for _ in range(copies):
            rows.append(flat_weights(network, self.shapes))
            for module in network.modules():
                reset = getattr(module, "reset_parameters", None)
                if callable(reset) and not getattr(module, "keeps_start", False):
                    reset()
        return torch.stack(rows)


def squeeze_data_plate(weights: Weights) -> Weights:
    """``[..., K, 1, P]`` to ``[..., K, P]``."""
    if isinstance(weights, GaussianWeights):
        return GaussianWeights(*(part.squeeze(-2) for part in weights))
    return weights.squeeze(-2)
