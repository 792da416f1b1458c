"""Networks of other libraries by name, and what their weights expect: torchvision's, and timm's where it is installed."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
import torchvision.models
from torch import nn
from torchvision.models import get_model, get_model_weights, list_models

from data.errors import closest

TIMM = "timm:"
"""Before a name: timm's model, also where torchvision has one of that name."""
DEFAULT = "DEFAULT"
"""The name of a model's best weights, in torchvision and here in timm too."""


class ImageInput(NamedTuple):
    """The images that weights were trained on.

    Attributes:
        size: height and width, pixels.
        mean, std: of each channel, for pixels in [0, 1].
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Library(ABC):
    """Classification networks by name, and their weights by name."""

    title: ClassVar[str]

    @abstractmethod
    def features(self, name: str) -> nn.Module:
        """An untrained network without its last layer: colour images to features ``[n, D]``.

        Raises:
            ValueError: it ends in no linear layer.
        """

    @abstractmethod
    def classifier(self, name: str, classes: int | None = None, *, weights: str | None = None) -> nn.Module:
        """The whole network: untrained, or with weights by name, which the library downloads where they are not in its cache.

        Args:
            name: of the network.
            classes: outputs of its last layer; the library's own number when not given.
            weights: one of :meth:`weights`, or :data:`DEFAULT`.

        Raises:
            OSError: they cannot be downloaded.
        """

    @abstractmethod
    def head(self, name: str) -> str:
        """The last layer's name.

        Raises:
            ValueError: it ends in no linear layer.
        """

    @abstractmethod
    def weights(self, name: str) -> list[str]:
        """Names of the weights that there are for a network, :data:`DEFAULT` left out."""

    @abstractmethod
    def images(self, name: str, weights: str | None = None) -> ImageInput | None:
        """What the weights of this name, or the default ones, expect; ``None`` where there are no weights."""

    def url(self, name: str, weights: str) -> str | None:
        """Where the weights are downloaded from, as far as the library says."""
        return None


class Torchvision(Library):
    """Classification models of ``torchvision.models``."""

    title = "torchvision"

    def features(self, name: str) -> nn.Module:
        network, path = self.classifier(name), self.head(name)
        network.set_submodule(path, nn.Identity())
        return network

    def classifier(self, name: str, classes: int | None = None, *, weights: str | None = None) -> nn.Module:
        options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
        if name in ("googlenet", "inception_v3"):  # torchvision's weights want their input transformed; no heads on the way
            options |= {"aux_logits": False, "transform_input": True, "init_weights": False}
        return get_model(name, weights=weights, **options)

    def head(self, name: str) -> str:
        with torch.device("meta"):  # nothing but names
            network = self.classifier(name)
        linear = [path for path, module in network.named_modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise ValueError(f"{name} ends in no linear layer that could be removed: choose another network")
        return linear[-1]

    def weights(self, name: str) -> list[str]:
        return [entry.name for entry in get_model_weights(name)]

    def images(self, name: str, weights: str | None = None) -> ImageInput | None:
        if not self.weights(name):
            return None
        preset = get_model_weights(name)[weights or DEFAULT].transforms()
        return ImageInput(preset.crop_size[0], tuple(preset.mean), tuple(preset.std))

    def url(self, name: str, weights: str) -> str | None:
        return get_model_weights(name)[weights].url


class Timm(Library):
    """Models of timm; a name may say its weights too, as in ``resnet18.a1_in1k``."""

    title = "timm"

    def features(self, name: str) -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False, num_classes=0)

    def classifier(self, name: str, classes: int | None = None, *, weights: str | None = None) -> nn.Module:
        import timm

        options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
        return timm.create_model(tagged(name, weights), pretrained=weights is not None, **options)

    def head(self, name: str) -> str:
        head = self.settings(name).classifier
        if not isinstance(head, str):
            raise ValueError(f"{name} ends in several layers side by side: choose another network")
        return head

    def weights(self, name: str) -> list[str]:
        import timm

        return [known.partition(".")[2] for known in timm.list_pretrained(f"{name.partition('.')[0]}.*")]

    def images(self, name: str, weights: str | None = None) -> ImageInput | None:
        from timm.data import resolve_data_config

        found = resolve_data_config(pretrained_cfg=self.settings(tagged(name, weights)).to_dict())
        return ImageInput(found["input_size"][-1], tuple(found["mean"]), tuple(found["std"]))

    def url(self, name: str, weights: str) -> str | None:
        found = self.settings(tagged(name, weights))
        return f"huggingface.co/{found.hf_hub_id}" if found.hf_hub_id else found.url

    def settings(self, name: str) -> Any:
        """timm's ``PretrainedCfg`` of a name."""
        import timm

        return timm.get_pretrained_cfg(name)


def tagged(name: str, weights: str | None) -> str:
    """timm's name of a model with its weights; the default ones have no name."""
    return name if weights in (None, DEFAULT) else f"{name.partition('.')[0]}.{weights}"


def has_timm() -> bool:
    """Whether timm is installed."""
    return importlib.util.find_spec("timm") is not None


def torchvision_names() -> list[str]:
    """The classification models of torchvision."""
    return list_models(module=torchvision.models)


def find_library(name: str) -> tuple[Library, str] | None:
    """The library that has a network of this name, and the name in it; ``None`` where none has.

    torchvision comes first, and :data:`TIMM` before the name asks for timm's.

    Raises:
        ValueError: timm is asked for and not installed, or does not know the name.
    """
    if not name.startswith(TIMM) and name in torchvision_names():
        return Torchvision(), name
    bare = name.removeprefix(TIMM)
    if not has_timm():
        if name != bare:
            raise ValueError(f"{name} needs timm, which is not installed: pip install 'sibyl-vib[timm]'")
        return None
    import timm

    if timm.is_model(bare):
        return Timm(), bare
    if name != bare:
        raise ValueError(f"timm has no model {bare!r}" + did_you_mean(bare, timm.list_models()))
    return None


def did_you_mean(given: str, known: list[str]) -> str:
    """The end of a message about an unknown name ``given``: which of the ``known`` may have been meant, if one is close."""
    meant = closest(given, known)
    return f": did you mean {meant}?" if meant else ""
