"""PPO with a KL penalty in place of clipping (Schulman et al. 2017, equation 8)."""

from pydantic import Field

from fastrl.config import PPOConfig
from fastrl.config.fields import Fraction
from fastrl.learning import Loss
from fastrl.learning.ppo import PPO


class PenaltyConfig(PPOConfig):
    """The section ``algorithm``: that of PPO and one key more."""

    kl_coef: Fraction = Field(default=1.0, description="Weight of KL(old, new) in the loss.")


class Penalty(PPO):
    """Advantages, epochs and minibatches are PPO's; the loss is its own."""

    section_type = PenaltyConfig

    def loss(self, minibatch, policy):
        logits, value = policy.forward(minibatch.observation)
        log_prob = policy.distribution.log_prob(logits, minibatch.action)
        ratio = (log_prob - minibatch["log_prob"]).exp()
        old, new = minibatch["logits"].log_softmax(-1), logits.log_softmax(-1)
        kl = (old.exp() * (old - new)).sum(-1).mean()
        policy_loss = -(ratio * minibatch["advantage"]).mean()
        value_loss = (value - minibatch["target"]).square().mean()
        total = policy_loss + self.section.kl_coef * kl + self.section.value_coef * value_loss
        return Loss(total, {"policy_loss": policy_loss, "value_loss": value_loss, "approx_kl": kl})
