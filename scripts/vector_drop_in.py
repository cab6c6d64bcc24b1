"""Two training programs in which one line decides who steps the environments, timed end to end.

    python scripts/vector_drop_in.py --env HalfCheetah-v5 --num-envs 16
    python scripts/vector_drop_in.py --program sb3 --envs subproc,fastrl

``loop`` is PPO in one file, as those write it who keep their own loop; ``sb3`` is
Stable-Baselines3's PPO as it is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch
from command_line import Parser, count, output
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from torch import nn

import fastrl
from fastrl.machine import circumstances

STEPS, EPOCHS, MINIBATCHES, GAMMA, LAMBDA, CLIP = 128, 4, 4, 0.99, 0.95, 0.2


class Agent(nn.Module):
    """Policy and value for flat observations and continuous actions."""

    def __init__(self, num_inputs: int, num_actions: int) -> None:
        super().__init__()

        def mlp(outputs: int) -> nn.Sequential:
            layers = (nn.Linear(num_inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
            return nn.Sequential(*layers, nn.Linear(64, outputs))

        self.critic, self.actor = mlp(1), mlp(num_actions)
        self.log_std = nn.Parameter(torch.zeros(num_actions))

    def forward(self, observation: Any, action: Any = None) -> Any:  # noqa: ANN401
        """Return action, its log-probability, the entropy and the value."""
        normal = torch.distributions.Normal(self.actor(observation), self.log_std.exp())
        action = normal.sample() if action is None else action
        log_prob, entropy = normal.log_prob(action).sum(-1), normal.entropy().sum(-1)
        return action, log_prob, entropy, self.critic(observation).squeeze(-1)


def own_loop(make_envs: Callable[[], Any], updates: int) -> float:
    """Train with PPO in one function; return environment steps per second."""
    envs = make_envs()  # the one line
    torch.manual_seed(0)
    n = envs.num_envs
    observation_size = envs.single_observation_space.shape[0]
    agent = Agent(observation_size, envs.single_action_space.shape[0])
    optimizer = torch.optim.Adam(agent.parameters(), lr=3e-4, eps=1e-5)
    seen, _ = envs.reset(seed=0)
    start = time.perf_counter()
    for _ in range(updates):
        rows: list[tuple[Any, ...]] = []
        for _ in range(STEPS):
            observation = torch.as_tensor(seen, dtype=torch.float32)
            with torch.no_grad():
                action, log_prob, _, value = agent(observation)
            low, high = envs.single_action_space.low, envs.single_action_space.high
            seen, reward, terminated, truncated, _ = envs.step(np.clip(action.numpy(), low, high))
            over = torch.as_tensor(terminated | truncated, dtype=torch.float32)
            gain = torch.as_tensor(reward, dtype=torch.float32)
            rows.append((observation, action, log_prob, value, gain, over))
        parts = [torch.stack(column) for column in zip(*rows, strict=True)]
        with torch.no_grad():
            last = agent(torch.as_tensor(seen, dtype=torch.float32))[3]
        learn(agent, optimizer, parts, last)
    rate = updates * STEPS * n / (time.perf_counter() - start)
    envs.close()
    return rate


def learn(agent: Agent, optimizer: Any, parts: list[Any], last: Any) -> None:  # noqa: ANN401
    """Update the agent with one rollout; parts are ``[T, B, …]``."""
    observation, action, log_prob, value, reward, over = parts
    advantage, running = torch.zeros_like(reward), torch.zeros_like(last)
    for t in reversed(range(STEPS)):
        following = last if t == STEPS - 1 else value[t + 1]
        delta = reward[t] + GAMMA * following * (1 - over[t]) - value[t]
        running = delta + GAMMA * LAMBDA * (1 - over[t]) * running
        advantage[t] = running
    target = advantage + value
    flat = [each.flatten(0, 1) for each in (observation, action, log_prob, advantage, target)]
    size = len(flat[0])
    for _ in range(EPOCHS):
        for index in torch.randperm(size).split(size // MINIBATCHES):
            obs, act, old, adv, ret = (each[index] for each in flat)
            adv = (adv - adv.mean()) / (adv.std() + 1e-8)
            _, new, _, predicted = agent(obs, act)
            ratio = (new - old).exp()
            gain = torch.min(ratio * adv, ratio.clamp(1 - CLIP, 1 + CLIP) * adv)
            loss = -gain.mean() + 0.5 * 0.5 * (predicted - ret).square().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimizer.step()


def sb3(make_envs: Callable[[], Any], updates: int) -> float:
    """Train with Stable-Baselines3's PPO; return environment steps per second."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.logger import Logger

    envs = make_envs()  # the one line
    batch = STEPS * envs.num_envs // MINIBATCHES
    model = PPO("MlpPolicy", envs, n_steps=STEPS, batch_size=batch, n_epochs=EPOCHS, device="cpu")
    model.set_logger(Logger(None, []))  # the usual one leaves a directory behind
    start = time.perf_counter()
    model.learn(updates * STEPS * envs.num_envs)
    rate = updates * STEPS * envs.num_envs / (time.perf_counter() - start)
    envs.close()
    return rate


def ways(program: str, env: str, num_envs: int) -> dict[str, Callable[[], Any]]:
    """Return the one line, by name."""
    factories = [partial(gymnasium.make, env) for _ in range(num_envs)]
    mode = AutoresetMode.SAME_STEP
    make = partial(fastrl.make_vec, env, num_envs, autoreset=mode)
    ours = {
        "fastrl": partial(make, backend="processes"),
        "fastrl auto": make,
        "fastrl native": partial(make, backend="native"),
    }
    if program == "loop":
        return {
            "sync": lambda: SyncVectorEnv(factories, autoreset_mode=mode),
            "async": lambda: AsyncVectorEnv(factories, autoreset_mode=mode),
            **ours,
        }
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

    from fastrl.vector import to_sb3

    return {
        "dummy": lambda: DummyVecEnv(factories),
        "subproc": lambda: SubprocVecEnv(factories, start_method="fork"),
        **{name: (lambda make=make: to_sb3(make())) for name, make in ours.items()},
    }


def main() -> None:
    """Time all ways in turn, and print and write how many steps per second they made."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default="loop", choices=("loop", "sb3"))
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--num-envs", type=count, default=16)
    parser.add_argument("--updates", type=count, default=3)
    parser.add_argument("--rounds", type=count, default=2)
    parser.add_argument("--torch-threads", type=count, help="torch's own choice by default")
    parser.add_argument("--envs", help="some of the ways, separated by commas")
    parser.add_argument("--json", type=output, help="add the figures to this file")
    options = parser.parse_args()
    if options.torch_threads is not None:
        torch.set_num_threads(options.torch_threads)
    known = ways(options.program, options.env, options.num_envs)
    chosen = options.envs.split(",") if options.envs else list(known)
    for name in chosen:
        if name not in known:
            parser.error(f"no way '{name}'; there are {', '.join(known)}")
    one = gymnasium.make(options.env)
    if options.program == "loop" and not isinstance(one.action_space, gymnasium.spaces.Box):
        parser.error(f"the loop's actions are continuous, those of {options.env} are not")
    one.close()
    rates: dict[str, list[float]] = {name: [] for name in chosen}
    train = own_loop if options.program == "loop" else sb3
    for _ in range(options.rounds):
        for name in chosen:
            rates[name].append(train(known[name], options.updates))
            told = f"{options.program} {options.env} {options.num_envs} {name}"
            print(f"{told}: {rates[name][-1]:,.0f} steps/s", flush=True)
    if options.json is not None:
        found = json.loads(options.json.read_text()) if options.json.exists() else []
        made = {key: getattr(options, key) for key in ("program", "env", "num_envs", "updates")}
        made["torch_threads"] = torch.get_num_threads()
        found.append({**made, "steps_per_s": rates, **circumstances("stable-baselines3")})
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    from one_line import run

    run(main)
