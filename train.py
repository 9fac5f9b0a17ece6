"""Trains a net from a TOML config, on one process or many; the same command again resumes.

    python train.py --cfg configs/demo.toml
    torchrun --nproc-per-node=4 train.py --cfg configs/cremi/cremi_clefts.toml train.optimizer.lr=3e-4
    python train.py --cfg configs/cremi/cremi_clefts.toml --smoke    # training to scores in seconds, on invented files

Everything is written to outputs/<name>: config.toml, log.csv, checkpoints, previews. `touch outputs/<name>/STOP`,
SIGTERM or SIGUSR1 end the run with a checkpoint. With the table [pretrain] it is masked pretraining.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from emcore import config
from emcore.engine.arithmetic import verdict
from emcore.engine.start import check_start
from emcore.errors import death_of_worker, run_command
from emcore.locks import only_training
from emcore.settings import Settings
from emcore.system import end_quietly_without_readers, wait_asleep


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", required=True, help="TOML file with the settings of the run")
    parser.add_argument("--smoke", action="store_true", help="train, infer, evaluate: small, on synthetic files")
    parser.add_argument("overrides", nargs="*", help="settings to change, such as train.steps=1000")
    options, more = parser.parse_known_args(arguments)
    if options.smoke:
        from emcore.smoke import smoke

        return smoke(options.cfg, [*options.overrides, *more])
    settings = config.load(Settings, options.cfg, [*options.overrides, *more])
    wait_asleep()
    check_start(settings, Path(options.cfg))
    if os.environ.get("RANK", "0") != "0":  # the lead locks the run for all its ranks
        return start(settings)
    folder = Path(settings.outputs) / settings.name
    with only_training(folder):
        print(f"{folder}: training to step {settings.train.steps}", flush=True)  # torch takes a while to import
        return start(settings)


def start(settings: Settings) -> int:
    mode = verdict.agree(settings)  # before torch computes, which is why the rest is imported only now
    from emcore.engine import ranks

    here = ranks.start(mode.device)
    try:
        return run(settings, mode, here)
    except RuntimeError as error:
        raise death_of_worker(error) or error from None
    finally:
        ranks.stop()


def run(settings: Settings, mode, ranks) -> int:
    import torch
    from torch.nn.parallel import DistributedDataParallel

    from emcore.data.augment import augment_batch, check_augment, margin, on_device
    from emcore.data.sampler import Sampler, load, sample_numbers
    from emcore.data.skeletons import skeleton_folder
    from emcore.data.sources import check_vectors, open_sources
    from emcore.engine import checkpoint
    from emcore.engine.batchnorm import share_batch_statistics
    from emcore.engine.best import Best
    from emcore.engine.ema import MovingAverage
    from emcore.engine.log import Log, write_environment
    from emcore.engine.memory import keep_pages
    from emcore.engine.optimizer import build_optimizer, freeze, set_rate
    from emcore.engine.resume import check_same_run, keep, resume
    from emcore.engine.schedule import Plateau, learning_rate
    from emcore.engine.speed import Speed
    from emcore.engine.steps import Masked, Supervised
    from emcore.engine.stop import StopRequest, dump_bad_batch
    from emcore.files import write_text
    from emcore.prediction.validation import Validation
    from emcore.report.preview import preview
    from emcore.settings.train import NoPolicy, PlateauSchedule
    from emcore.systems.checkpoints import ours

    keep_pages(mode.device)
    train, data = settings.train, settings.data
    device, lead = ranks.device, ranks.leads
    folder = Path(settings.outputs) / settings.name
    if lead:
        print(f"{folder}: {mode.device} x {ranks.world}, {mode.reason or mode.precision}", flush=True)
    check_same_run(folder, settings)
    torch.manual_seed(settings.seed)
    torch.use_deterministic_algorithms(train.deterministic, warn_only=True)

    # data
    check_augment(settings.augment, data.patch)
    sources = open_sources(data, "train", skeleton_folder(settings))
    check_vectors(sources, settings.target, sources[0].resolution)
    sampler = Sampler(sources, data, settings.seed, margin(settings.augment, data.patch))

    # net, loss, optimizer
    task = (Masked if settings.pretrain else Supervised)(settings, mode, sources[0].resolution).to(device)
    if train.start_from:
        copied = checkpoint.start_from(task.net, ours(checkpoint.read(train.start_from)), train.start_from,
                                       train.start_include, train.start_exclude)
        if lead:
            print(f"{len(copied)} tensors taken from {train.start_from}", flush=True)
    freeze(task, train.freeze)
    if train.sync_batchnorm and ranks.world > 1:
        task = share_batch_statistics(task, device)
    task.prepare()
    optimizer = build_optimizer(task, train, settings.pretrain.policy if settings.pretrain else NoPolicy())
    scaler = torch.amp.GradScaler(mode.device, enabled=mode.precision == "fp16")
    average = MovingAverage(task.net, train.ema) if train.ema.decay > 0 else None
    plateau = Plateau(train.schedule, train.optimizer.lr) if isinstance(train.schedule, PlateauSchedule) else None

    # resume
    best = Best(train.save)
    parts = {"task": task, "optimizer": optimizer, "average": average, "plateau": plateau, "scaler": scaler,
             "best": best}
    drawn = ["draws"] if data.reject_below > 0 else []  # patches looked at for each that was kept
    columns = ["loss/train", *task.columns, *drawn]
    first, total = 0, dict.fromkeys(["steps", *columns], 0.0)  # sums since the last row of the log
    found = resume(folder, parts, ranks)
    if found is not None:
        path, first, total = found
        if lead:
            print(f"resuming from {path}, step {first} of {train.steps}", flush=True)
    validation = Validation(settings, ranks, task, average, folder)
    if lead:
        write_text(folder / "config.toml", config.to_toml(settings))
        verdict.keep(folder, mode)
        write_environment(folder, device)
        log = Log(folder, ["lr", *columns, *validation.columns], first)
    ranks.wait()

    # the loop
    module = task
    if ranks.world > 1:
        module = DistributedDataParallel(task, [device] if device.type == "cuda" else None)
    numbers = sample_numbers(first, train.steps, train.batch, train.accumulate, ranks.rank, ranks.world)
    batches = iter(load(sampler, numbers, data.workers, data.prefetch, device.type == "cuda"))
    speed = Speed(settings, ranks, folder)
    stop = StopRequest(folder)
    saved, row = time.monotonic(), {}
    for step in range(first, train.steps):
        task.train()
        rate = plateau.lr if plateau else learning_rate(train.schedule, train.optimizer.lr, step, train.steps)
        set_rate(optimizer, rate)
        torch.manual_seed(hash((settings.seed, step, ranks.rank)) % 2**63)  # dropout and masks, the same after a resume
        sums = torch.zeros(len(columns), device=device)
        for micro in range(train.accumulate):
            with speed.waiting():
                read = next(batches)
            batch = augment_batch(on_device(read, device), settings.augment, data, settings.seed)
            # gradients are exchanged once, with the last micro-batch
            module.require_backward_grad_sync = micro == train.accumulate - 1
            loss, terms = module(batch, step)
            scaler.scale(loss / train.accumulate).backward()
            draws = [sums.new_full((), float(read[name].float().mean())) for name in drawn]
            sums += torch.stack([loss.detach(), *terms.values(), *draws]) / train.accumulate
        if train.optimizer.clip > 0:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(task.parameters(), train.optimizer.clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if average is not None:
            average.update(task.net)

        # what the host is told: once a step, when all its work has been handed to the device
        late = train.save.minutes > 0 and time.monotonic() - saved > 60 * train.save.minutes
        asked = [sums.new_full((), float(wish)) for wish in (stop.asked(), late and lead)]
        decisions = ranks.largest(torch.stack([(~sums.isfinite().all()).float(), *asked]))
        wrong, wants_stop, late, *means = torch.cat([decisions, ranks.sum(sums) / ranks.world]).tolist()
        if wrong:
            dump_bad_batch(folder, step, read, batch, sources, ranks.rank, sums)
        total = {name: before + number for (name, before), number in zip(total.items(), [1.0, *means])}
        if plateau:
            plateau.update(means[0])
        best.learned(means[0])
        speed.step(means[0], step, rate)

        # what is written
        now, last = step + 1, step + 1 == train.steps
        row = {}
        if now % train.log_steps == 0 or last:
            row = {"lr": rate, **{name: number / total["steps"] for name, number in total.items() if name != "steps"}}
            total = dict.fromkeys(total, 0.0)
        validated = validation.possible and (now % train.validate.steps == 0 or last)
        if validated:
            row = {"lr": rate, **row, **validation.run()}
        if lead and row:
            log.write(now, row)
        if lead and train.preview_steps and now % train.preview_steps == 0:
            task.eval()
            shown = batch["image"][0], *task.preview(batch)[:2]
            log.picture(now, preview(*(part.float().cpu().numpy() for part in shown)))
        due = now % train.save.steps == 0 or now in train.save.at or last or bool(wants_stop)
        due = due or (validated and best.validates)
        if due or late:
            ranks.share_buffers(task.net)
            best.consider(now, row)
            if lead:
                keep(folder, now, settings, parts, total)
            saved = time.monotonic()
        if wants_stop:
            if lead:
                print(f"stopped at step {now} of {train.steps} as asked; the same command continues", flush=True)
            break
    ranks.wait()
    if lead:
        log.close()
        stop.clear()
        print(f"checkpoints in {folder / 'checkpoints'}", flush=True)
        for step, value in best.steps.items():
            print(f"best by {train.save.monitor}: {value:.6g} at step {step}", flush=True)
    return 0


if __name__ == "__main__":
    end_quietly_without_readers()
    sys.exit(run_command(main, sys.argv[1:]))
