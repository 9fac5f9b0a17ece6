"""The masking policy of masked pretraining: an actor-critic that decides which patches, or how many, are hidden.

"patch" decides every patch on its own; "adaptive" picks a mask ratio and a share of edge patches from short lists.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn import functional

from emcore.models.mae import choose_mask
from emcore.settings.train import AdaptivePolicy, PatchPolicy


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


def _bounded(logits: Tensor) -> Tensor:
    return torch.nan_to_num(logits, nan=0.0, posinf=20.0, neginf=-20.0).clamp(-20, 20)


class DecisionModule(nn.Module):
    """Actor and critics over the embedded patches (without positions).

    A policy of either kind has the weights of both, as the published ones do.
    """

    def __init__(self, policy: PatchPolicy | AdaptivePolicy, width: int, target_ratio: float):
        super().__init__()
        self.target_ratio, self.policy = target_ratio, policy
        lists, hidden = policy if isinstance(policy, AdaptivePolicy) else AdaptivePolicy(), policy.hidden
        ratios, edge_fractions = lists.ratios, lists.edge_fractions
        self.feature = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU())
        self.context = nn.Sequential(nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.actor = nn.Linear(hidden, 2)
        self.critic = nn.Linear(hidden, 1)
        self.adaptive_ratio_actor = nn.Linear(hidden + 4, len(ratios))
        self.adaptive_edge_actor = nn.Linear(hidden + 4, len(edge_fractions))
        self.adaptive_critic = nn.Linear(hidden + 4, 1)
        margin = lists.initial_margin if lists.prior_margin is None else lists.prior_margin
        for name, bins, start, actor in (
                ("ratio", ratios, lists.initial_ratio, self.adaptive_ratio_actor),
                ("edge", edge_fractions, lists.initial_edge_fraction, self.adaptive_edge_actor)):
            values = torch.tensor(list(bins), dtype=torch.float32)
            nearest = functional.one_hot((values - start).abs().argmin(), len(values)).float()
            self.register_buffer(f"{name}_bins", values, persistent=False)
            self.register_buffer(f"{name}_prior", (nearest * margin).softmax(0), persistent=False)
            with torch.no_grad():
                actor.bias.copy_(nearest * lists.initial_margin)

    def _hidden(self, tokens: Tensor) -> Tensor:
        tokens = torch.nan_to_num(tokens.detach().float(), nan=0.0, posinf=20.0, neginf=-20.0)
        hidden = self.feature(tokens)
        hidden = hidden + self.context(hidden.mean(1, keepdim=True))
        return torch.nan_to_num(hidden, nan=0.0, posinf=20.0, neginf=-20.0)

    def decide(self, tokens: Tensor, edges: Tensor, deterministic: bool = False) -> Decision:
        decide = self.decide_patches if isinstance(self.policy, PatchPolicy) else self.decide_mixture
        return decide(tokens, edges, deterministic)

    def decide_patches(self, tokens: Tensor, edges: Tensor, deterministic: bool = False) -> Decision:
        """Every patch on its own; the number hidden is repaired into [least, most] by the surest or the least sure."""
        hidden = self._hidden(tokens)
        choice = Categorical(logits=_bounded(self.actor(hidden)))
        actions = choice.logits.argmax(2) if deterministic else choice.sample()
        sure, patches = choice.probs[..., 1].detach(), edges.shape[1]
        least = round(self.policy.least_ratio * patches)
        most = min(patches - 1, round(self.policy.most_ratio * patches))
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


def policy_loss(decision: Decision, reconstruction: Tensor, policy: PatchPolicy | AdaptivePolicy) -> Tensor:
    """The actor-critic loss; reconstruction is the squared error of the whole predicted volume, one value a sample.

    A reward of what is hard counts the error, others count it as a cost; those of edges add what lies on edges.
    """
    adaptive = isinstance(policy, AdaptivePolicy)
    gained = reconstruction.detach() * (1 if policy.reward.startswith("hard") else -1)
    if "edge" in policy.reward:
        gained = gained + policy.edge_coefficient * decision.coverage_gain
        if adaptive:
            off = (decision.edge_fraction - policy.edge_fraction_target).abs()
            gained = gained - policy.edge_fraction_coefficient * off
    gained = gained - policy.ratio_coefficient * decision.ratio_penalty
    if policy.reward_clip > 0:
        gained = gained.clamp(-policy.reward_clip, policy.reward_clip)
    advantage = (gained - decision.value).detach()
    if policy.normalise_advantage and len(advantage) > 1:
        advantage = (advantage - advantage.mean()) / advantage.std(unbiased=False).clamp_min(1e-6)
    loss = (-(decision.log_probability * advantage).mean()
            + policy.value_coefficient * functional.mse_loss(decision.value, gained)
            - policy.entropy_coefficient * decision.entropy.mean())
    return loss + policy.prior_coefficient * decision.divergence.mean() if adaptive else loss
