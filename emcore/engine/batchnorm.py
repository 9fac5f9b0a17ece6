"""Batch normalisation over the patches of all ranks."""

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class GlobalBatchNorm(nn.BatchNorm3d):
    """Statistics of the whole batch on any device: torch's own SyncBatchNorm works on GPUs alone."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        values = x.float()
        axes = (0, 2, 3, 4)
        sums = torch.cat([values.sum(axes), values.new_full((1,), values.numel() / values.shape[1])])
        sums = all_reduce(sums)
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = values - mean.view(1, -1, 1, 1, 1)  # a second exchange, but no difference of large squares
        variance = all_reduce(centred.square().sum(axes)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1).clamp_min(1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale.view(1, -1, 1, 1, 1) + self.bias.view(1, -1, 1, 1, 1)).to(x.dtype)


def share_batch_statistics(task: nn.Module, device: torch.device) -> nn.Module:
    """The same module with every batch norm over all ranks; names of weights stay."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(task)
    for module in task.modules():
        if type(module) is nn.BatchNorm3d:
            module.__class__ = GlobalBatchNorm
    return task
