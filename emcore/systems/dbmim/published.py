"""dbMiM's published checkpoints (pretrained_latest.pt, finetuned_latest.pt): their configs as tables of ours."""

from collections.abc import Mapping
from typing import Any

NETS = {
    "unetr": ("unetr_aniso_em", "unetr_em", "em_unetr", "unetr_dtrans_em"),
    "unetr plain": ("unetr_aniso", "unetr_anisotropic", "paper_unetr", "unetr_dtrans"),
    "unetr_light": ("unetr", "unetr_affinity", "unetr_affinity_net"),
    "linear_head": ("linear_head", "transpose_head", "mae_head", "mae_backbone"),
}
# our key -> (its name there, what it is where the config leaves it out)
SIZES = {"patch": ("patch_size", (4, 16, 16)), "width": ("embed_dim", 192), "depth": ("depth", 6),
         "heads": ("num_heads", 6), "dropout": ("dropout", 0.05), "features": ("feature_size", 32),
         "head_depth": ("em_refine_depth", 2), "head_bias": ("channel_bias_init", (-0.2, 0.0, 0.0)),
         "taps": ("skip_indices", ())}


def translated(content: Mapping[str, Any]) -> dict[str, Any]:
    """What was read from a checkpoint, with our config and step if dbMiM wrote it; other nets were pretrained."""
    config = content.get("config")
    if not is_published(config):
        return dict(content)
    model, data = config["model"], config.get("data")
    name = str(model.get("architecture") or model.get("name") or "mae_head")
    found = next((ours for ours, theirs in NETS.items() if name in theirs), None)
    sizes = {ours: model.get(theirs) if model.get(theirs) is not None else default
             for ours, (theirs, default) in SIZES.items()}
    sizes["head"] = "plain" if found and found.endswith("plain") else "em"
    table = {"name": found.split()[0] if found else "masked_autoencoder", "in_channels": model.get("in_channels", 1),
             "out_channels": model.get("out_channels", 3), "transformer": sizes}
    patch = model.get("volume_size") or (data.get("volume_size") if isinstance(data, Mapping) else None)
    ours = {"model": table, "data": {"patch": patch or (16, 64, 64)}}
    return {"step": content.get("global_step", 0), **content, "config": ours}


def is_published(config: Any) -> bool:
    model = config.get("model") if isinstance(config, Mapping) else None
    return isinstance(model, Mapping) and ("volume_size" in model or "architecture" in model)
