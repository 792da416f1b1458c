"""A Gaussian over many weights that few items have told of: diagonal precision plus a curvature of low rank, all exact."""

from __future__ import annotations

import copy
import math
from typing import ClassVar

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import register_kl


class SupportGaussian(TorchDistribution):
    """N(loc, (diag(p) + Fᵀ F)⁻¹) over a matrix of weights, event_shape ``[rows, D]``; F has few rows, one or more per item.

    That is what n items make of independent Gaussian weights: the exact posterior of linear regression, and the Laplace
    approximation of any network, where Fᵀ F = Jᵀ Λ J with J the slopes of the outputs and Λ = R Rᵀ the likelihood's curvature,
    F = Rᵀ J. Everything is exact and takes a Cholesky factor of the smaller of F Fᵀ and Fᵀ F; a matrix over all weights is
    formed only where there are fewer weights than rows of F.

    Sources: Woodbury's identity and the determinant lemma; Daxberger et al. 2021, "Laplace redux", section 2.

    Args:
        loc: ``[..., rows, D]``.
        precision: p > 0, ``[..., rows, D]``, where rows or D may be 1.
        factor: F, ``[..., n, rows · D]``: all rows of weights depend on each other. With ``by_rows`` it is ``[..., n, D]``:
            rows are independent, and row c has the precision diag(p_c) + Fᵀ F.
        by_rows: see ``factor``.

    Raises:
        ValueError: a factor of another width.
    """

    arg_constraints: ClassVar = {}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(self, loc: Tensor, precision: Tensor, factor: Tensor, *, by_rows: bool = False) -> None:
        rows, features = loc.shape[-2:]
        width = features if by_rows else rows * features
        if factor.shape[-1] != width:
            raise ValueError(f"the factor has {factor.shape[-1]} columns, but there are {width} weights")
        self.loc, self.by_rows = loc, by_rows
        self.precision = precision.expand(*precision.shape[:-2], precision.shape[-2] if by_rows else rows, features)
        self.scales = self.as_blocks(self.precision).rsqrt()  # of the weights if F were not, [..., blocks or 1, V]
        self.white = WhitePrecision(factor.unsqueeze(-3) * self.scales.unsqueeze(-2))
        batch_shape = torch.broadcast_shapes(loc.shape[:-2], precision.shape[:-2], factor.shape[:-2])
        super().__init__(batch_shape, loc.shape[-2:], validate_args=False)

    def expand(self, batch_shape, _instance=None) -> SupportGaussian:
        new = self._get_checked_instance(SupportGaussian, _instance)
        for name in ("loc", "by_rows", "precision", "scales", "white"):  # one factor for all draws
            setattr(new, name, getattr(self, name))
        super(SupportGaussian, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        return new

    def as_blocks(self, matrix: Tensor) -> Tensor:
        """A ``matrix`` of weights ``[..., rows, D]`` as independent vectors, ``[..., blocks, V]``: its rows, or one of all."""
        return matrix if self.by_rows else matrix.flatten(-2).unsqueeze(-2)

    def as_matrix(self, blocks: Tensor) -> Tensor:
        """What :meth:`as_blocks` makes ``blocks`` of, ``[..., blocks, V] -> [..., rows, D]``."""
        return blocks if self.by_rows else blocks.squeeze(-2).unflatten(-1, self.event_shape)

    def total(self, blocks: Tensor) -> Tensor:
        """Sum over blocks, ``[..., blocks or 1] -> [...]``: what is said once of all blocks counts for each."""
        return blocks.expand(*blocks.shape[:-1], self.event_shape[0] if self.by_rows else 1).sum(-1)

    @property
    def mean(self) -> Tensor:
        return self.loc.expand(self.shape())

    @property
    def variance(self) -> Tensor:
        """The covariance's diagonal, ``[..., rows, D]``."""
        return self.as_matrix((1 - self.white.leverage()) * self.scales.square()).expand(self.shape())

    def log_det_precision(self) -> Tensor:
        """log |diag(p) + Fᵀ F|, batch_shape."""
        white = 2 * self.white.half_log_det() - 2 * self.scales.log().sum(-1)
        return self.total(white).expand(self.batch_shape)

    def entropy(self) -> Tensor:
        """Differential entropy, nats, batch_shape."""
        return 0.5 * (self.event_shape.numel() * (1 + math.log(2 * math.pi)) - self.log_det_precision())

    def told(self, residuals: Tensor) -> SupportGaussian:
        """The posterior of linear regression, where this has the prior's mean: loc moves by (diag(p) + Fᵀ F)⁻¹ Fᵀ r.

        Args:
            residuals: r, what the prior's mean leaves of the targets, over the noise, as F is: ``[..., n, rows]`` where rows
                are independent, else ``[..., n, 1]``.
        """
        if self.white.shared:
            blocks = self.white.shrink(residuals.unsqueeze(-3)).squeeze(-3).mT
        else:
            blocks = self.white.shrink(residuals.mT.unsqueeze(-1)).squeeze(-1)
        new = copy.copy(self)
        new.loc = self.loc + self.as_matrix(blocks * self.scales)
        super(SupportGaussian, new).__init__(
            torch.broadcast_shapes(self.batch_shape, new.loc.shape[:-2]), self.event_shape, validate_args=False
        )
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """``[..., rows, D] -> [...]``, nats."""
        distance = self.as_blocks(value - self.loc) / self.scales
        squares = (distance.square().sum(-1) + self.white.project(distance).square().sum(-1)).sum(-1)
        constant = self.event_shape.numel() * math.log(2 * math.pi)
        return 0.5 * (self.log_det_precision() - squares - constant)

    def rsample(self, sample_shape=()) -> Tensor:
        return self.from_noise(torch.randn(self.shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device))

    def from_noise(self, noise: Tensor) -> Tensor:
        """Draws made of standard normal ``noise`` of their shape, ``[..., rows, D]``."""
        return self.loc + self.as_matrix(self.white.colour(self.as_blocks(noise)) * self.scales)


class WhitePrecision:
    """M = I + Bᵀ B of vectors ``[..., V]``, by a Cholesky factor of M or of I + B Bᵀ, whichever is smaller.

    Args:
        factor: B, ``[..., blocks or 1, n, V]``: one for each block of vectors, or one for all.
        dual: whether by I + B Bᵀ; as it is smaller when not given.
    """

    def __init__(self, factor: Tensor, *, dual: bool | None = None) -> None:
        self.factor, (items, width) = factor, factor.shape[-2:]
        self.shared = factor.shape[-3] == 1
        self.dual = items <= width if dual is None else dual
        gram = factor @ factor.mT if self.dual else factor.mT @ factor
        self.identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        self.root = torch.linalg.cholesky_ex(self.identity + gram).L  # never singular; unlike cholesky it does not wait

    def half_log_det(self) -> Tensor:
        """½ log |M|, ``[..., blocks or 1]``."""
        return self.root.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def leverage(self) -> Tensor:
        """1 − diag(M⁻¹), what the items told of each weight, in [0, 1): ``[..., blocks or 1, V]``."""
        if self.dual:
            return torch.linalg.solve_triangular(self.root, self.factor, upper=False).square().sum(-2)
        return 1 - torch.linalg.solve_triangular(self.root, self.identity, upper=False).square().sum(-2)

    def shrink(self, targets: Tensor) -> Tensor:
        """M⁻¹ Bᵀ y for each column y of ``targets``, ``[..., n, k] -> [..., V, k]``: ridge regression."""
        if self.dual:
            return self.factor.mT @ torch.cholesky_solve(targets, self.root)
        return torch.cholesky_solve(self.factor.mT @ targets, self.root)

    def project(self, vectors: Tensor) -> Tensor:
        """B v, ``[..., blocks, V] -> [..., blocks, n]``."""
        leading = torch.broadcast_shapes(vectors.shape[:-2], self.factor.shape[:-3])
        vectors = vectors.expand(*leading, *vectors.shape[-2:])
        return self.as_vectors(self.factor @ self.as_columns(vectors), vectors)

    def colour(self, noise: Tensor) -> Tensor:
        """S ε with S Sᵀ = M⁻¹, ``[..., blocks, V]`` to the same shape: ``noise`` ε ~ N(0, I) becomes N(0, M⁻¹).

        With T Tᵀ = I + B Bᵀ, S = I − Bᵀ T⁻ᵀ (I + T)⁻¹ B. Source: Andrews 1968, "A square root formulation of the Kalman
        covariance equations".
        """
        columns = self.as_columns(noise)
        if not self.dual:
            return self.as_vectors(torch.linalg.solve_triangular(self.root.mT, columns, upper=True), noise)
        inner = torch.linalg.solve_triangular(self.identity + self.root, self.factor @ columns, upper=False)
        inner = torch.linalg.solve_triangular(self.root.mT, inner, upper=True)
        return self.as_vectors(columns - self.factor.mT @ inner, noise)

    def as_columns(self, vectors: Tensor) -> Tensor:
        """Vectors ``[..., blocks, V]`` as columns of products with B, ``[..., blocks or 1, V, k]``: what shares one B, such as
        draws, lies side by side, so that B is not copied for each."""
        if self.shared:
            vectors = vectors.movedim(-2, 0).unsqueeze(-2)
        extra = vectors.dim() + 1 - self.factor.dim()
        return vectors.flatten(0, extra - 1).movedim(0, -1) if extra else vectors.unsqueeze(-1)

    def as_vectors(self, columns: Tensor, like: Tensor) -> Tensor:
        """What :meth:`as_columns` makes ``columns`` of, vectors of any width with the leading shape of ``like``."""
        extra = like.dim() + 1 - self.factor.dim()
        if not self.shared:
            return columns.movedim(-1, 0).unflatten(0, like.shape[:extra]) if extra else columns.squeeze(-1)
        vectors = columns.movedim(-1, 0).unflatten(0, (like.shape[-2], *like.shape[:extra]))
        return vectors.squeeze(-2).movedim(0, -2)


@register_kl(SupportGaussian, torch.distributions.Independent)
def _kl_support_independent(q: SupportGaussian, p: torch.distributions.Independent) -> Tensor:
    """KL to independent Gaussians, closed form. With both variances in ratio r = 1 / (p s²) and h the leverage,

        ½ [Σ_j (r_j − 1 − log r_j − r_j h_j + (μ_j − m_j)² / s_j²) + log |I + B Bᵀ|],

    in which the many weights that no item tells of give no large terms to cancel.
    """
    if not isinstance(p.base_dist, torch.distributions.Normal) or p.reinterpreted_batch_ndims != 2:
        raise NotImplementedError(f"KL(SupportGaussian || {p}): only Normal(...).to_event(2) is supported")
    scale = q.as_blocks(p.base_dist.scale.expand(*p.base_dist.scale.shape[:-2], *q.event_shape))
    log_ratio = 2 * (q.scales.log() - scale.log())
    told = torch.expm1(log_ratio) - log_ratio - log_ratio.exp() * q.white.leverage()
    shift = ((q.loc - p.base_dist.loc) / p.base_dist.scale).square().sum((-2, -1))
    rate = q.total(told.sum(-1)) + q.total(2 * q.white.half_log_det()) + shift
    return (0.5 * rate).expand(torch.broadcast_shapes(q.batch_shape, p.batch_shape))
