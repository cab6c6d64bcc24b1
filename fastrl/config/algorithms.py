"""The sections of the learning algorithms; ``algorithm.name`` chooses one."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from fastrl.config.fields import Bool, Device, Few, Float, Fraction, Schedule, Section, Size


class LearnerConfig(Section):
    """What A2C and PPO have in common.

    Attributes:
        wanted_fields: Fields of a rollout that only exist where an algorithm asks for them:
            ``final_observation``.
    """

    wanted_fields: ClassVar[tuple[str, ...]] = ()

    name: Literal["ppo", "a2c"] = Field(description="Name of the algorithm.")
    learning_rate: Annotated[Float, Field(gt=0, le=10)] = Field(
        default=3e-4, description="Step size of the optimizer."
    )
    learning_rate_schedule: Schedule = Field(
        default="constant", description="Constant, or linear down to 0 at total_steps."
    )
    gamma: Fraction = Field(default=0.99, description="Discount factor per step.")
    gae_lambda: Fraction = Field(
        default=0.95,
        description="Lambda of generalised advantage estimation; 1 is the n-step return.",
    )
    entropy_coef: Annotated[Float, Field(ge=0)] = Field(
        default=0.0, description="Weight of the entropy bonus in the loss."
    )
    entropy_schedule: Schedule = Field(
        default="constant", description="Constant, or linear down to 0 at total_steps."
    )
    value_coef: Annotated[Float, Field(ge=0)] = Field(
        default=0.5, description="Weight of the value loss in the loss."
    )
    max_grad_norm: Annotated[Float, Field(gt=0)] | None = Field(
        default=0.5, description="Norm to which gradients are clipped; null to leave them."
    )
    optimizer: Literal["adam", "rmsprop"] = Field(
        default="adam",
        description="Adam or RMSprop.",
    )
    optimizer_eps: Annotated[Float, Field(gt=0, le=1)] = Field(
        default=1e-5, description="Epsilon of the optimizer."
    )
    reward_scale: Annotated[Float, Field(gt=0)] = Field(
        default=1.0, description="Factor on every reward before anything is learnt from it."
    )
    normalize_rewards: Bool = Field(
        default=False,
        description="Divide rewards by the running deviation of the discounted return.",
    )
    device: Device = Field(default="cpu", description="Where gradients are computed.")
    torch_threads: Few | Literal["auto"] = Field(
        default="auto",
        description="Threads of torch that learn on the CPU; auto is one per usable core where "
        "there are images, else a single one.",
    )
    compile: Bool = Field(
        default=False,
        description="Compile the loss with torch.compile: pays for large networks and long runs.",
    )
    bf16: Bool = Field(
        default=False, description="Compute the network in bfloat16 while learning (autocast)."
    )


class PPOConfig(LearnerConfig):
    """Proximal policy optimisation with the clipped objective (Schulman et al., 2017)."""

    name: Literal["ppo"] = Field(default="ppo", description="Proximal policy optimisation.")
    epochs: Size = Field(default=10, description="Passes over each rollout.")
    minibatch_size: Size = Field(default=64, description="Transitions in each gradient step.")
    clip_range: Annotated[Float, Field(gt=0, le=10)] = Field(
        default=0.2, description="How far the probability ratio may move from 1."
    )
    clip_schedule: Schedule = Field(
        default="constant", description="Constant, or linear down to 0 at total_steps."
    )
    clip_value_range: Annotated[Float, Field(gt=0)] | None = Field(
        default=None, description="How far a value may move from the old one; null for no clipping."
    )
    normalize_advantage: Bool = Field(
        default=True, description="Standardise the advantages of each minibatch."
    )
    target_kl: Annotated[Float, Field(gt=0)] | None = Field(
        default=None,
        description="An update stops before the first minibatch whose mean KL divergence is above "
        "1.5 times this; null for never.",
    )


class A2CConfig(LearnerConfig):
    """Synchronous advantage actor-critic: one gradient step per rollout (Mnih et al., 2016)."""

    name: Literal["a2c"] = Field(default="a2c", description="Advantage actor-critic.")
    learning_rate: Annotated[Float, Field(gt=0, le=10)] = Field(
        default=7e-4, description="Step size of the optimizer."
    )
    gae_lambda: Fraction = Field(
        default=1.0,
        description="Lambda of generalised advantage estimation; 1 is the n-step return.",
    )
    optimizer: Literal["adam", "rmsprop"] = Field(
        default="rmsprop",
        description="Adam or RMSprop.",
    )
    normalize_advantage: Bool = Field(
        default=False, description="Standardise the advantages of each rollout."
    )
    vtrace: Bool = Field(
        default=False,
        description="Correct by V-trace what an older policy sampled; for sampler.mode async.",
    )


AlgorithmConfig = Annotated[PPOConfig | A2CConfig, Field(discriminator="name")]
"""The algorithm's section; which keys it has depends on ``algorithm.name``."""
