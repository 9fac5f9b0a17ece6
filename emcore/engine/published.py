"""The configs inside dbMiM's published checkpoints (pretrained_latest.pt, finetuned_latest.pt) as tables of ours."""

from collections.abc import Mapping
from typing import Any

from emcore.errors import InputError

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


def is_published(config: Mapping[str, Any]) -> bool:
    """Whether the config of a checkpoint is one of dbMiM's."""
    model = config.get("model") or {}
    return "volume_size" in model or "architecture" in model


def grid_of(config: Any) -> tuple[int, int, int] | None:
    """Tokens along z, y, x that the positions of a checkpoint belong to, ours or dbMiM's; None if it does not say."""
    tables = [config.get(name) if isinstance(config, Mapping) else None for name in ("model", "data")]
    model, data = (table if isinstance(table, Mapping) else {} for table in tables)
    size = data.get("patch") or model.get("volume_size") or data.get("volume_size")
    token = (model.get("transformer") or {}).get("patch") or model.get("patch_size")
    return tuple(int(s) // int(t) for s, t in zip(size, token)) if size and token and all(token) else None


def published_tables(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[int]]:
    """[model] and the patch of a finetuned checkpoint."""
    model = config["model"]
    name = str(model.get("architecture") or model.get("name") or "mae_head")
    found = next((ours for ours, theirs in NETS.items() if name in theirs), None)
    if found is None:
        raise InputError(f"the architecture {name!r} of the checkpoint is not a net for prediction; a pretrained "
                         "encoder is taken by train.start_from")
    sizes = {ours: model.get(theirs) if model.get(theirs) is not None else default
             for ours, (theirs, default) in SIZES.items()}
    sizes["head"] = "plain" if found.endswith("plain") else "em"
    patch = model.get("volume_size") or (config.get("data") or {}).get("volume_size") or (16, 64, 64)
    return {"name": found.split()[0], "in_channels": model.get("in_channels", 1),
            "out_channels": model.get("out_channels", 3), "transformer": sizes}, list(patch)
