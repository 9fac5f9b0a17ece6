"""The loss on held-out patches, the same ones every time; every rank its share, averaged weights if there are any."""

from contextlib import nullcontext

import torch

from emcore.data.augment import augment_batch
from emcore.data.sampler import Sampler, load
from emcore.data.sources import open_sources
from emcore.settings import Settings
from emcore.settings.augment import Augment


class Validation:
    columns = ("loss/val",)

    def __init__(self, settings: Settings, ranks, task, average):
        self.settings, self.ranks, self.task, self.average = settings, ranks, task, average
        self.possible = bool(settings.data.validation) and settings.train.validate.steps > 0
        if self.possible:
            self.sampler = Sampler(open_sources(settings.data, "validation"), settings.data, settings.seed, stream=1)

    @torch.no_grad()
    def run(self) -> dict[str, float]:
        """Scores by name, the same on every rank; the bare module computes them, so no buffer changes."""
        ranks, task, device = self.ranks, self.task, self.ranks.device
        ranks.share_buffers(task.net)
        numbers = [[n] for n in range(ranks.rank, self.settings.train.validate.crops, ranks.world)]
        sums = torch.zeros(2, dtype=torch.float64, device=device)
        task.eval()
        random = torch.get_rng_state()
        torch.manual_seed(self.settings.seed)  # masks of pretraining: the same in every validation
        with self.average.swapped(task.net) if self.average else nullcontext():
            for read in load(self.sampler, numbers, 0):
                batch = augment_batch({name: tensor.to(device) for name, tensor in read.items()}, Augment(),
                                      self.settings.data, self.settings.seed)
                loss, _ = task(batch, 0)
                sums += torch.stack([loss.double(), torch.ones_like(loss).double()])
        torch.set_rng_state(random)
        task.train()
        sums = ranks.sum(sums)
        return {"loss/val": (sums[0] / sums[1]).item()}
