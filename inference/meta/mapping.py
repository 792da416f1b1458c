"""From backbone features to points of a feature space."""

from __future__ import annotations

import torch
from torch import nn

from data.gather import gather
from data.items import LabelledItems
from inference.meta.settings import GuideSettings
from inference.runs.tensors import AT_ONCE, Features
from models.networks.feature_space import FeatureSpace, normalised_means


def feature_space(chosen: GuideSettings, predictor: str, base: LabelledItems) -> tuple[FeatureSpace, torch.Tensor]:
    """The map of features for a predictor, found from base-class features, and the classes' mean mapped features."""
    num_features = base.items.shape[-1]
    rank = chosen.feature_rank(predictor, base.num_classes, num_features)
    space = chosen.space(num_features, rank, predictor).fit(base.items, base.labels)
    return space, normalised_means(map_items(space, base).items, base.labels, nn.Identity())


def map_items(space: FeatureSpace, part: LabelledItems) -> LabelledItems:
    """The same items in the feature space."""
    with torch.no_grad():
        place = space.directions
        items = gather(space(some.to(place)).to("cpu", some.dtype) for some in part.items.split(AT_ONCE))
        return LabelledItems(items, part.labels, part.class_names)


def map_parts(space: FeatureSpace, features: Features) -> dict[str, LabelledItems]:
    """Training and validation items in the feature space."""
    return {split: map_items(space, features[split]) for split in ("train", "val")}
