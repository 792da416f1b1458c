"""Rules of other authors for few-shot tasks, as :mod:`benchmarks.few_shot_peers` runs them: their own classes, from a checkout
of easyfsl (github.com/sicara/easy-few-shot-learning), and what there is to choose for each.

Features are prepared here for all alike: square root (the power transform of PT-MAP) or not, L2 normalisation, and centring on
the mean of the base classes (SimpleShot), or on the task's own mean (transductive rules), with another normalisation after it.
easyfsl's classes work one task at a time. TIM and PT-MAP take so long for it that their settings are chosen by the same
formulas in batches, :func:`tim` and :func:`pt_map`, whose predictions must be those of the classes.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from data.episodes import Episode
from data.errors import UserError
from models.networks.feature_space import class_means

Setting = dict[str, Any]
"""Hyper-parameters by name."""
Classify = Callable[[Setting, Episode], Tensor]
"""From a setting and tasks, of prepared features, to the classes of their queries ``[tasks, query]``."""
SINKHORN_STEPS, SINKHORN_TOLERANCE, SINKHORN_LOOK = 1000, 1e-3, 5
"""At most so many steps; to this accuracy; which is looked at after so many, for looking takes as long as stepping."""


@dataclass(frozen=True)
class Rule:
    """A rule and its hyper-parameters.

    Attributes:
        name: in the table.
        values: hyper-parameter -> what to choose from, the published value first. ``root`` and ``centre`` are how features
            are prepared; a rule without them takes them as they are.
        classify: the authors' code.
        quick: the same in batches; ``None`` where ``classify`` is quick enough.
        any_way: whether one setting serves every number of classes; else a column whose way the validation classes do not
            have takes the setting of all columns.
    """

    name: str
    values: Mapping[str, Sequence[Any]]
    classify: Classify
    quick: Classify | None = None
    any_way: bool = True

    def published(self) -> Setting:
        """The setting that the authors give."""
        return {name: values[0] for name, values in self.values.items()}


class Preparation:
    """Features as a setting wants them.

    Args:
        base: features of the base classes ``[n, D]``.
    """

    def __init__(self, base: Tensor) -> None:
        self.means = {root: normalised(base, root).mean(0) for root in (False, True)}

    def __call__(self, setting: Setting, episode: Episode) -> Episode:
        """The same tasks with prepared features; the ones given where the setting says nothing of it."""
        if "root" not in setting:
            return episode
        support, query = (normalised(items, setting["root"]) for items in (episode.support_x, episode.query_x))
        if setting["centre"] != "none":
            own = torch.cat([support, query], dim=1).mean(1, keepdim=True)
            mean = own if setting["centre"] == "task" else self.means[setting["root"]]
            support, query = F.normalize(support - mean, dim=-1), F.normalize(query - mean, dim=-1)
        return episode._replace(support_x=support, query_x=query)


def normalised(features: Tensor, root: bool) -> Tensor:
    """Unit features ``[..., D]``, of their square roots where ``root``."""
    return F.normalize((features.relu() + 1e-6).sqrt() if root else features, dim=-1)


def easyfsl_rules(checkout: str) -> list[Rule]:
    """The rules of a checkout of easyfsl.

    Raises:
        UserError: it is none.
    """
    sys.path.insert(0, checkout)
    try:
        peers = importlib.import_module("easyfsl.methods")
    except ImportError as error:
        raise UserError(f"`easyfsl={checkout}` is no checkout of easyfsl that can be imported: {error}") from error
    finally:
        sys.path.remove(checkout)
    return rules_of(peers)


def rules_of(peers: Any) -> list[Rule]:
    """The rules, by the classes of the module ``easyfsl.methods``."""
    transductive = {"root": (False, True), "centre": ("none", "base", "task")}
    return [
        Rule(
            "nearest mean",
            {"distance": ("SimpleShot", "PrototypicalNetworks"), "root": (False, True), "centre": ("none", "base")},
            one_by_one(lambda s: getattr(peers, s["distance"])()),
        ),
        Rule(
            "BD-CSPN",
            {"sharpness": (10.0, 1.0, 5.0, 20.0), **transductive},
            one_by_one(lambda s: sharpened(peers.BDCSPN, s["sharpness"])()),
        ),
        Rule(
            "LaplacianShot",
            {"lambda": (0.7, 0.1, 0.3, 1.0), "knn": (3, 5, 8), "sharpness": (10.0, 1.0), **transductive},
            one_by_one(
                lambda s: sharpened(peers.LaplacianShot, s["sharpness"])(knn=s["knn"], lambda_regularization=s["lambda"])
            ),
        ),
        Rule(
            "TIM",
            {
                "learning rate": (1e-3, 3e-4, 3e-3),
                "temperature": (10.0, 5.0, 15.0),
                "marginal": (1.0, 0.3, 0.1),
                "conditional": (0.5, 0.1, 1.0),
                "steps": (50,),
                **transductive,
            },
            one_by_one(lambda s: peers.TIM(**tim_options(s))),
            tim,
        ),
        Rule(
            "PT-MAP",
            {
                "lambda": (10.0, 5.0, 20.0),
                "step size": (0.2, 0.4),
                "steps": (20, 10),
                "root": (True, False),
                "centre": ("task", "none", "base"),
            },
            one_by_one(lambda s: prepared_already(peers.PTMAP, peers.FewShotClassifier)(**pt_map_options(s))),
            pt_map,
        ),
    ]


def one_by_one(build: Callable[[Setting], Any]) -> Classify:
    """A classifier of easyfsl, as ``build`` makes it from a setting, on one task after the other."""

    @torch.no_grad()
    def classify(setting: Setting, episode: Episode) -> Tensor:
        classifier, found = build(setting).eval(), []
        for support_x, support_y, query_x in zip(*episode[:3], strict=True):
            classifier.process_support_set(support_x, support_y)
            found.append(classifier(query_x).argmax(-1))
        return torch.stack(found)

    return classify


def sharpened(kind: type, sharpness: float) -> type:
    """BD-CSPN weighs items by exp(ε cos), with ε = 10 in the paper (equation 6); easyfsl's class has ε = 1."""

    class Sharpened(kind):  # type: ignore[misc]
        def cosine_distance_to_prototypes(self, samples: Tensor) -> Tensor:
            return sharpness * super().cosine_distance_to_prototypes(samples)

    return Sharpened


def prepared_already(kind: type, base: Any) -> type:
    """PT-MAP on features that have the paper's preparation; easyfsl's class leaves out the normalisation after the root, and
    would cut what is centred at zero."""
    return type(kind.__name__, (kind,), {"compute_features": base.compute_features})


def tim_options(setting: Setting) -> dict[str, Any]:
    """A setting in easyfsl's words."""
    return {
        "fine_tuning_steps": setting["steps"],
        "fine_tuning_lr": setting["learning rate"],
        "marginal_entropy_weight": setting["marginal"],
        "conditional_entropy_weight": setting["conditional"],
        "temperature": setting["temperature"],
    }


def pt_map_options(setting: Setting) -> dict[str, Any]:
    """A setting in easyfsl's words."""
    return {
        "fine_tuning_steps": setting["steps"],
        "fine_tuning_lr": setting["step size"],
        "lambda_regularization": setting["lambda"],
    }


def tim(setting: Setting, episode: Episode) -> Tensor:
    """Boudiaf et al. 2020, by gradient steps on class means: cross-entropy of the support − marginal entropy of the queries'
    classes + their conditional entropy, each with its weight; classes ``[tasks, query]``."""
    means = class_means(episode.support_x, episode.support_y, episode.way).requires_grad_()
    optimizer = torch.optim.Adam([means], setting["learning rate"])  # of one number at a time: tasks do not mix
    labels, shots = F.one_hot(episode.support_y, means.shape[1]), episode.support_y.shape[1]
    items = setting["temperature"] * F.normalize(torch.cat([episode.support_x, episode.query_x], dim=1), dim=-1)

    def log_probabilities() -> tuple[Tensor, ...]:
        scores = (items @ F.normalize(means, dim=-1).mT).log_softmax(-1)
        return scores[:, :shots], scores[:, shots:]

    for _ in range(setting["steps"]):
        support, query = log_probabilities()
        marginal = query.exp().mean(1)
        loss = -(labels * support).sum(-1).mean(-1)
        loss = loss + setting["marginal"] * (marginal * marginal.log()).sum(-1)
        loss = loss - setting["conditional"] * (query.exp() * query).sum(-1).mean(-1)
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    return log_probabilities()[1].argmax(-1)


@torch.no_grad()
def pt_map(setting: Setting, episode: Episode) -> Tensor:
    """Hu et al. 2021, Algorithm 1 on prepared features: class means move towards those of the optimal transport of the queries
    to them, which gives every class equally many; classes ``[tasks, query]``."""
    means = class_means(episode.support_x, episode.support_y, episode.way)
    labels = F.one_hot(episode.support_y, means.shape[1]).to(means)
    items = torch.cat([episode.support_x, episode.query_x], dim=1)
    for _ in range(setting["steps"]):
        assigned = torch.cat([labels, transport(episode.query_x, means, setting["lambda"])], dim=1)
        wanted = assigned.mT @ items / assigned.sum(1)[..., None]
        means = means + setting["step size"] * (wanted - means)
    return transport(episode.query_x, means, setting["lambda"]).argmax(-1)


def transport(queries: Tensor, means: Tensor, sharpness: float) -> Tensor:
    """Sinkhorn's plan ``[tasks, query, way]`` for squared distances times ``sharpness``: rows sum to 1, columns to query / way
    up to ``SINKHORN_TOLERANCE`` of it."""
    plan = (-sharpness * torch.cdist(queries, means).square()).softmax(-1)
    share, columns = queries.shape[1] // means.shape[1], torch.ones_like(means[..., :1])
    for step in range(1, SINKHORN_STEPS + 1):
        rows = 1 / (plan @ columns)
        if step % SINKHORN_LOOK == 0 and bool(((columns * (plan.mT @ rows) - share).abs() < share * SINKHORN_TOLERANCE).all()):
            break
        columns = share / (plan.mT @ rows)
    return rows * plan * columns.mT
