"""PyTorch Connectomics' optimization and monitor settings as [train]."""

from typing import Any

from emcore.systems.pytc.tree import Tree, pair

Table = dict[str, Any]


def train(tree: Tree, notes: list[str]) -> Table:
    """[train]; epochs become steps."""
    part = tree.part("optimization")
    epoch = part.take(int, "n_steps_per_epoch") or tree.take(int, "data.iter_num_per_epoch") or 1000
    epochs, steps = part.take(int, "max_epochs"), part.take(int, "max_steps")
    steps = steps or (epochs or 100) * epoch
    batch = tree.take(int, "data.dataloader.batch_size", "system.training.batch_size", default=4)
    if tree.take(int, "system.num_gpus", "system.training.num_gpus") not in (None, 1):
        notes.append(f"train.batch = {batch} is of all GPUs together; there it was of each: multiply it, and start "
                     "train.py under torchrun")
    precision = part.take(str, "precision", default="16-mixed")
    out: Table = {"steps": steps, "batch": batch, "accumulate": part.take(int, "accumulate_grad_batches", default=1),
                  "precision": {"bf16-mixed": "bf16", "16-mixed": "fp16"}.get(precision, "fp32"),
                  "deterministic": part.take(bool, "deterministic", default=False),
                  "optimizer": _optimizer(part), "schedule": _schedule(part, steps, epoch, notes),
                  "validate": {"steps": epoch}}
    part.same({"benchmark": True})
    ema = part.part("ema")
    if ema.take(bool, "enabled"):
        out["ema"] = {"decay": ema.take(float, "decay", default=0.999),
                      "warmup": ema.take(int, "warmup_steps", default=0)}
        ema.same({"validate_with_ema": True, "copy_buffers": True})
    else:
        ema.done()
    monitor = tree.part("monitor")
    out["log_steps"] = monitor.take(int, "logging.scalar.loss_every_n_steps", default=10)
    every = monitor.take(int, "logging.images.log_every_n_epochs")
    if every is not None:
        out["preview_steps"] = every * epoch
    watched = monitor.take(str, "checkpoint.monitor", default="train_loss_total_epoch")
    out["save"] = {"monitor": "loss/val" if watched.startswith("val") else "loss/train", "minutes": 0.0,
                   "steps": (monitor.take(int, "checkpoint.save_every_n_epochs") or 1) * epoch, "last": 1,
                   "window": epoch, "best": max(0, monitor.take(int, "checkpoint.save_top_k", default=1))}
    monitor.same({"checkpoint.mode": "min", "checkpoint.save_last": True, "early_stopping.enabled": False,
                  "logging.scalar.val_check_interval": 1.0, "detect_anomaly": False})
    return out


def _optimizer(part: Tree) -> Table:
    kind = part.take(str, "optimizer.name", default="AdamW").lower()
    out: Table = {"kind": kind, "lr": part.take(float, "optimizer.lr", default=1e-3),
                  "weight_decay": part.take(float, "optimizer.weight_decay", default=0.01),
                  "clip": part.take(float, "gradient_clip_val", default=1.0)}
    if betas := part.take(list, "optimizer.betas"):
        out["betas"] = pair(betas, part.path("optimizer.betas"))
    if momentum := part.take(float, "optimizer.momentum"):
        out["momentum"] = momentum
    part.same({"optimizer.eps": 1e-8})
    return out


def _schedule(part: Tree, steps: int, epoch: int, notes: list[str]) -> Table:
    scheduler = part.part("scheduler")
    name = str(scheduler.values.get("name"))
    every = 1 if scheduler.take(str, "interval", default="epoch") == "step" else epoch
    scheduler.same({"frequency": 1})
    least = scheduler.take(float, "min_lr", "params.min_lr", default=0.0)
    if name == "CosineAnnealingLR":
        length = scheduler.take(int, "params.t_max", "t_max", default=steps // every)
        if length * every != steps:
            notes.append(f"the cosine ends after {length * every} steps there, here with the run after {steps}")
        out: Table = {"kind": "cosine", "least": least, "every": every}
    elif name == "WarmupCosineLR":
        warmup = scheduler.take(int, "warmup_epochs", "params.warmup_epochs", default=0) * every
        factor = scheduler.take(float, "warmup_start_lr", "params.warmup_start_lr", default=1e-5)
        out = {"kind": "warmup_cosine", "least": least, "every": every, "warmup": warmup, "warmup_factor": factor}
    elif name == "ReduceLROnPlateau":
        out = {"kind": "plateau", "least": least, "window": every,
               "factor": scheduler.take(float, "factor", "params.factor", default=0.2),
               "patience": scheduler.take(int, "patience", "params.patience", default=10)}
    else:
        if name != "None":
            notes.append(f"the schedule {name} is not here; the learning rate stays constant")
        return {"kind": "constant"}
    scheduler.take(str, "name")
    return out
