"""A PPO loop in the shape of CleanRL's two: one function without fastrl, for any actions."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium.spaces import Discrete
from torch import nn


def layer(inputs, outputs, gain=2**0.5):
    linear = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(linear.weight, gain)
    nn.init.zeros_(linear.bias)
    return linear


def train(envs, updates=2, steps=64, epochs=2, minibatches=2, gamma=0.99, lam=0.95, clip=0.2):
    """Train on a vector environment; return weights, episodic returns and lengths, and resets."""
    torch.manual_seed(1)
    size, count, space = envs.single_observation_space.shape[0], 16, envs.single_action_space
    is_discrete = isinstance(space, Discrete)
    outputs = space.n if is_discrete else space.shape[0]
    actor = nn.Sequential(layer(size, count), nn.Tanh(), layer(count, outputs, 0.01))
    critic = nn.Sequential(layer(size, count), nn.Tanh(), layer(count, 1, 1.0))
    log_std = nn.Parameter(torch.zeros(outputs))
    weights = [*actor.parameters(), *critic.parameters(), *([] if is_discrete else [log_std])]

    def policy_at(seen):
        if is_discrete:
            return torch.distributions.Categorical(logits=actor(seen))
        spread = torch.distributions.Normal(actor(seen), log_std.exp())
        return torch.distributions.Independent(spread, 1)

    adam, n = torch.optim.Adam(weights, lr=2.5e-4, eps=1e-5), envs.num_envs
    obs, actions = torch.zeros(steps, n, size), torch.zeros(steps, n, *space.shape)
    logprobs, rewards, dones, values = torch.zeros(4, steps, n)
    returns, lengths, resets = [], [], 0
    next_obs, next_done = torch.Tensor(envs.reset(seed=1)[0]), torch.zeros(n)
    for _ in range(updates):
        for t in range(steps):
            obs[t], dones[t] = next_obs, next_done
            with torch.no_grad():
                policy = policy_at(next_obs)
                actions[t] = action = policy.sample()
                logprobs[t], values[t] = policy.log_prob(action), critic(next_obs).flatten()
            found, reward, terminated, truncated, infos = envs.step(action.numpy())
            next_obs, next_done = torch.Tensor(found), torch.Tensor(terminated | truncated)
            rewards[t] = torch.Tensor(reward)
            resets += int((reward == 0).sum())
            if "final_info" in infos:  # as before gymnasium 1.0
                finals = (info for info in infos["final_info"] if info and "episode" in info)
                returns += [info["episode"]["r"] for info in finals]
            if "episode" in infos:
                ended = infos["_episode"]
                returns += infos["episode"]["r"][ended].tolist()
                lengths += infos["episode"]["l"][ended].tolist()
        with torch.no_grad():
            following, last, advantages = critic(next_obs).flatten(), 0.0, torch.zeros(steps, n)
            for t in reversed(range(steps)):
                going_on = 1.0 - (next_done if t == steps - 1 else dones[t + 1])
                value = following if t == steps - 1 else values[t + 1]
                delta = rewards[t] + gamma * value * going_on - values[t]
                advantages[t] = last = delta + gamma * lam * going_on * last
        kept = (dones == 0).flatten().nonzero().flatten()  # the other steps are resets
        rows = [each.flatten(0, 1) for each in (obs, actions, logprobs, advantages, values)]
        for _ in range(epochs):
            for chosen in kept[torch.randperm(len(kept))].chunk(minibatches):
                o, a, old, gain, value = (each[chosen] for each in rows)
                policy = policy_at(o)
                ratio = (policy.log_prob(a) - old).exp()
                normal = (gain - gain.mean()) / (gain.std() + 1e-8)
                surrogate = torch.min(ratio * normal, ratio.clamp(1 - clip, 1 + clip) * normal)
                misfit = (critic(o).flatten() - gain - value).square().mean()
                loss = 0.5 * 0.5 * misfit - surrogate.mean() - 0.01 * policy.entropy().mean()
                adam.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(weights, 0.5)
                adam.step()
    envs.close()
    flat = np.concatenate([each.detach().numpy().ravel() for each in weights])
    return flat, returns, lengths, resets
