"""Pre-training of the feature network: cosine classification of the base classes, watched by few-shot accuracy."""

from __future__ import annotations

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from data.augmentation import LETTERS, PHOTOGRAPHS
from data.episodes import EpisodeSampler, TaskSpec
from data.items import ImageSplits, LabelledItems
from data.seeding import mix_seed
from inference.runs.processes import our_part
from models.networks.backbones import CosineClassifier
from models.networks.feature_network import FeatureNetwork
from models.networks.feature_space import class_means
from models.networks.layers import embed


class Pretraining(lightning.LightningModule):
    """Cross-entropy of a cosine classifier over the base classes; ``val_accuracy`` is few-shot, on validation classes.

    Args:
        network: the feature network, trained in place.
        data: base classes to train on (``data.train``), validation classes (``data.val``).
        epochs, batch_size, learning_rate: AdamW under a one-cycle schedule.
        seed: order, augmentation and validation tasks.
    """

    def __init__(
        self,
        network: FeatureNetwork,
        data: ImageSplits,
        *,
        epochs: int,
        batch_size: int = 64,
        learning_rate: float = 0.003,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.classifier = CosineClassifier(network.num_features, data.train.num_classes)
        self.source, self.augmentation = data.train, PHOTOGRAPHS if data.mirror else LETTERS
        self.epochs, self.batch_size, self.learning_rate, self.seed = epochs, batch_size, learning_rate, seed
        spec = TaskSpec(way=min(5, data.val.num_classes), queries=min(15, int(data.val.counts.min()) - 1))
        self.validation = EpisodeSampler(data.val, spec, split="validation")

    def train_dataloader(self) -> DataLoader:
        """Batch numbers alone: images are taken in :meth:`training_step`, where a resumed run knows its epoch for certain."""
        steps = max(1, len(self.source) // self.batch_size)
        return DataLoader(torch.arange(steps), batch_size=None)  # type: ignore[arg-type]

    def on_train_epoch_start(self) -> None:
        generator = torch.Generator().manual_seed(mix_seed(self.seed, self.current_epoch))
        self.order = torch.randperm(len(self.source), generator=generator)

    def training_step(self, number: int, index: int) -> Tensor:
        chosen = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        images, labels = self.source.items[chosen].to(self.device), self.source.labels[chosen].to(self.device)
        images = self.augmentation(images, seed=mix_seed(self.seed, self.current_epoch, index, 0))
        with our_part(self, len(images)) as part:
            images, labels = part.of(images), part.of(labels)
            logits = self.classifier(self.network(images))
        loss = part.weight * F.cross_entropy(logits, labels)
        self.log("pretrain/loss", loss, prog_bar=True, batch_size=len(images), sync_dist=True)
        self.log(
            "pretrain/accuracy",
            (logits.argmax(-1) == labels).float().mean(),
            prog_bar=True,
            batch_size=len(images),
            sync_dist=True,
        )
        return loss

    def on_train_epoch_end(self) -> None:
        accuracy = nearest_mean_accuracy(self.network, self.validation, tasks=200, seed=self.seed)
        self.log("val_accuracy", accuracy, prog_bar=True, sync_dist=True)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), self.learning_rate, weight_decay=0.05)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, total_steps=max(steps, 2))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def nearest_mean_accuracy(network: FeatureNetwork, sampler: EpisodeSampler, *, tasks: int, seed: int) -> float:
    """Accuracy (fraction) of the nearest-class-mean cosine classifier: what the features are worth without learning."""
    source = sampler.source
    bank = LabelledItems(F.normalize(embed(network, source.items), dim=-1), source.labels, source.class_names)
    episode = EpisodeSampler(bank, sampler.spec).sample(tasks, seed=seed)
    means = F.normalize(class_means(episode.support_x, episode.support_y, sampler.spec.way), dim=-1)
    assert episode.query_y is not None
    correct = torch.eq((episode.query_x @ means.mT).argmax(-1), episode.query_y)
    return float(correct.float().mean())
