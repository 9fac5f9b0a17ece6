"""The masking policy of masked pretraining: an actor-critic that decides which patches, or how many, are hidden.

"patch" decides every patch on its own; "adaptive" picks a mask ratio and a share of edge patches from short lists.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn import functional

from emcore.models.mae import choose_mask


@dataclass(frozen=True)
class Decision:
    """A mask and what the policy loss needs of it; per-sample vectors."""

    mask: Tensor  # (n, patches), true = hidden
    ratio: Tensor  # share of the patches that was chosen to be hidden
    log_probability: Tensor
    entropy: Tensor
    value: Tensor  # the critic's guess of the reward
    ratio_penalty: Tensor  # distance of the hidden share from the target
    coverage: Tensor  # mean normalised edge score of the hidden patches
    coverage_gain: Tensor  # coverage above the mean of all patches
    edge_fraction: Tensor  # share of hidden patches chosen by edge
    divergence: Tensor  # from the prior over the two lists


@dataclass(frozen=True)
class Reward:
    """How a decision is rewarded and how the policy loss is weighed."""

    mode: str = "reconstruction"  # or edge, hard, hard_edge: hard rewards what is difficult, edge what lies on edges
    edge_coefficient: float = 0.0  # per unit of coverage gain
    edge_fraction_target: float = 0.5
    edge_fraction_coefficient: float = 0.0
    ratio_coefficient: float = 0.25
    clip: float = 0.0  # of the reward, 0 = none
    entropy_coefficient: float = 0.01
    value_coefficient: float = 0.5
    prior_coefficient: float = 0.0
    normalise_advantage: bool = False


def _bounded(logits: Tensor) -> Tensor:
    return torch.nan_to_num(logits, nan=0.0, posinf=20.0, neginf=-20.0).clamp(-20, 20)


class DecisionModule(nn.Module):
    """Actor and critics over the embedded patches (without positions)."""

    def __init__(self, width: int = 192, hidden: int = 256, ratios: Sequence[float] = (0.5, 0.625, 0.75, 0.875),
                 edge_fractions: Sequence[float] = (0.25, 0.5, 0.75), initial_ratio: float = 0.75,
                 initial_edge_fraction: float = 0.5, initial_margin: float = 0.0, prior_margin: float | None = None,
                 target_ratio: float = 0.75, least_ratio: float = 0.35, most_ratio: float = 0.9):
        super().__init__()
        self.target_ratio, self.least_ratio, self.most_ratio = target_ratio, least_ratio, most_ratio
        self.feature = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU())
        self.context = nn.Sequential(nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.actor = nn.Linear(hidden, 2)
        self.critic = nn.Linear(hidden, 1)
        self.adaptive_ratio_actor = nn.Linear(hidden + 4, len(ratios))
        self.adaptive_edge_actor = nn.Linear(hidden + 4, len(edge_fractions))
        self.adaptive_critic = nn.Linear(hidden + 4, 1)
        margin = initial_margin if prior_margin is None else prior_margin
        for name, bins, start, actor in (("ratio", ratios, initial_ratio, self.adaptive_ratio_actor),
                                         ("edge", edge_fractions, initial_edge_fraction, self.adaptive_edge_actor)):
            values = torch.tensor(list(bins), dtype=torch.float32)
            nearest = functional.one_hot((values - start).abs().argmin(), len(values)).float()
            self.register_buffer(f"{name}_bins", values, persistent=False)
            self.register_buffer(f"{name}_prior", (nearest * margin).softmax(0), persistent=False)
            with torch.no_grad():
                actor.bias.copy_(nearest * initial_margin)

    def _hidden(self, tokens: Tensor) -> Tensor:
        tokens = torch.nan_to_num(tokens.detach().float(), nan=0.0, posinf=20.0, neginf=-20.0)
        hidden = self.feature(tokens)
        hidden = hidden + self.context(hidden.mean(1, keepdim=True))
        return torch.nan_to_num(hidden, nan=0.0, posinf=20.0, neginf=-20.0)

    def decide_patches(self, tokens: Tensor, edges: Tensor, deterministic: bool = False) -> Decision:
        """Every patch on its own; the number hidden is repaired into [least, most] by the surest or the least sure."""
        hidden = self._hidden(tokens)
        choice = Categorical(logits=_bounded(self.actor(hidden)))
        actions = choice.logits.argmax(2) if deterministic else choice.sample()
        sure, patches = choice.probs[..., 1].detach(), edges.shape[1]
        least = round(self.least_ratio * patches)
        most = min(patches - 1, round(self.most_ratio * patches))
        # one ranking serves both repairs: chosen patches first, then by probability
        order = (actions.float() * 2 + sure).argsort(1, descending=True)
        count = actions.sum(1).clamp(least, most)
        mask = torch.zeros_like(actions, dtype=torch.bool)
        mask.scatter_(1, order, torch.arange(patches, device=order.device).expand_as(order) < count[:, None])
        log_probability = choice.log_prob(mask.long()).sum(1)
        value = _bounded(self.critic(hidden)).mean((1, 2))
        return self._decision(mask, edges, mask.float().mean(1), log_probability, choice.entropy().mean(1), value,
                              torch.zeros_like(value), torch.zeros_like(value))

    def decide_mixture(self, tokens: Tensor, edges: Tensor, deterministic: bool = False) -> Decision:
        """A mask ratio and an edge share per sample; the strongest edges and a random rest are hidden."""
        hidden = self._hidden(tokens)
        scores = edges.clamp(-20, 20)
        statistics = torch.stack([scores.mean(1), scores.std(1, unbiased=False), scores.amax(1), scores.amin(1)], 1)
        context = torch.cat([hidden.mean(1), statistics], 1)
        choices = [Categorical(logits=_bounded(actor(context)))
                   for actor in (self.adaptive_ratio_actor, self.adaptive_edge_actor)]
        ratio, edge = (choice.logits.argmax(1) if deterministic else choice.sample() for choice in choices)
        ratios, fractions = self.ratio_bins[ratio], self.edge_bins[edge]
        mask = torch.cat([choose_mask(edges[i : i + 1], ratios[i].item(), fractions[i].item(), 1.0, 0.0)
                          for i in range(len(edges))])
        divergence = sum((choice.probs * (choice.logits - prior.log())).sum(1)
                         for choice, prior in zip(choices, (self.ratio_prior, self.edge_prior)))
        return self._decision(mask, edges, ratios, choices[0].log_prob(ratio) + choices[1].log_prob(edge),
                              choices[0].entropy() + choices[1].entropy(),
                              _bounded(self.adaptive_critic(context)).squeeze(1), fractions, divergence)

    def _decision(self, mask: Tensor, edges: Tensor, ratio: Tensor, log_probability: Tensor, entropy: Tensor,
                  value: Tensor, fractions: Tensor, divergence: Tensor) -> Decision:
        low, high = edges.amin(1, keepdim=True), edges.amax(1, keepdim=True)
        relative = (edges - low) / (high - low).clamp_min(1e-6)
        coverage = (relative * mask).sum(1) / mask.sum(1).clamp_min(1)
        penalty = (mask.float().mean(1) - self.target_ratio).abs()
        return Decision(mask, ratio, log_probability, entropy, value, penalty, coverage, coverage - relative.mean(1),
                        fractions, divergence)


def policy_loss(decision: Decision, reconstruction: Tensor, reward: Reward) -> Tensor:
    """The actor-critic loss; reconstruction is the squared error of the whole predicted volume, one value a sample."""
    gained = reconstruction.detach() * (1 if reward.mode.startswith("hard") else -1)
    if "edge" in reward.mode:
        gained = gained + reward.edge_coefficient * decision.coverage_gain
        off = (decision.edge_fraction - reward.edge_fraction_target).abs()
        gained = gained - reward.edge_fraction_coefficient * off
    gained = gained - reward.ratio_coefficient * decision.ratio_penalty
    if reward.clip > 0:
        gained = gained.clamp(-reward.clip, reward.clip)
    advantage = (gained - decision.value).detach()
    if reward.normalise_advantage and len(advantage) > 1:
        advantage = (advantage - advantage.mean()) / advantage.std(unbiased=False).clamp_min(1e-6)
    return (-(decision.log_probability * advantage).mean()
            + reward.value_coefficient * functional.mse_loss(decision.value, gained)
            - reward.entropy_coefficient * decision.entropy.mean()
            + reward.prior_coefficient * decision.divergence.mean())
