"""The Lightning module that fits any recipe: AdamW, one cycle, a running average of the weights."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from usvol.errors import ConfigError
from usvol.training.recipe import FitSettings, Recipe


class Fit(lightning.LightningModule):
    """Fit ``recipe.network`` with ``recipe.loss``; ``averaged`` holds the weights to keep.

    No validation loop: the number of epochs is fixed beforehand, so that no choice is made on held-out
    patients. The average is exponential over steps (Polyak & Juditsky 1992), batch statistics included.
    """

    def __init__(self, recipe: Recipe, settings: FitSettings, *, steps: int) -> None:
        super().__init__()
        self.recipe = recipe
        self.settings = settings
        self.steps = steps
        self.network: nn.Module = recipe.network(settings)
        self.averaged = AveragedModel(
            self.network, multi_avg_fn=get_ema_multi_avg_fn(settings.average), use_buffers=True
        )

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss of one batch."""
        loss = self.recipe.loss(self.network, batch, settings=self.settings)
        self.log("loss", loss, prog_bar=True, on_step=False, on_epoch=True)
        return loss

    def on_train_epoch_end(self) -> None:
        """Stop a training that diverged.

        Raises:
            ConfigError: a weight is no number any more.
        """
        if not all(bool(torch.isfinite(value).all()) for value in self.network.state_dict().values()):
            raise ConfigError(
                f"The training diverged in epoch {self.current_epoch}: weights are no numbers. Set a lower "
                f"learning_rate than {self.settings.learning_rate:g}."
            )

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move the average a little towards the weights of now."""
        del outputs, batch, batch_idx
        self.averaged.update_parameters(self.network)

    def configure_optimizers(self) -> Any:
        """AdamW on a one-cycle schedule (Smith & Topin 2018) over all steps."""
        optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=self.settings.learning_rate, weight_decay=self.settings.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, self.settings.learning_rate, total_steps=max(self.steps, 20), pct_start=0.2
        )
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def kept(self) -> dict[str, Tensor]:
        """Return the averaged weights, by the network's own names."""
        inner = self.averaged.module
        if not isinstance(inner, nn.Module):
            raise TypeError("the average holds no network")
        return {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, value in inner.state_dict().items()
        }
