"""Learning with a memory: whole segments, from the states and with the resets of acting."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastrl.config import A2CConfig, PPOConfig
from fastrl.errors import ConfigError, FastrlError
from fastrl.learning import build_learner, losses
from fastrl.learning.a2c import A2C
from fastrl.learning.algorithm import Minibatch, Transfer
from fastrl.learning.gradients import AutogradEngine
from fastrl.learning.mlp_gradients import why_not
from fastrl.learning.ppo import PPO
from fastrl.learning.returns import gae, next_values
from fastrl.learning.sequence_gradients import SequenceGradientEngine
from fastrl.learning.shared_gradients import ShardedEngine, why_not_sharded
from fastrl.models.inference.lanes import LANES
from tests.learning.synthetic import (
    CONTINUOUS,
    DISCRETE,
    NESTED,
    config_of,
    random_rollout,
    remembered_rollout,
)
from tests.learning.test_gradients import scheduled

KINDS = pytest.mark.parametrize("kind", ["gru", "lstm"])
SMALL = {"hidden_sizes": (8,), "recurrent_size": 16}


def learner_of(algorithm, spec=DISCRETE, kind="gru", seed=0, **model):
    # What counts is how many states a rollout has.
    algorithm = algorithm.model_copy(update={"sequence_length": 1})
    config = config_of(algorithm, recurrent=kind, **{**SMALL, "shared_body": False, **model})
    learner = build_learner(config.model_copy(update={"seed": seed}), spec)
    random = torch.Generator().manual_seed(seed)
    for parameter in learner.model.parameters():
        # Heads start near 0, where many mistakes would not show.
        moved = 0.2 * torch.randn(parameter.shape, generator=random)
        parameter.data += moved.to(parameter.device)
    return learner


def batch_of(learner, rollout):
    experience = learner._experience(rollout)
    prepared = PPO(PPOConfig()).prepare(experience, learner.model).fields
    return experience.batch(Transfer(torch.device("cpu")), prepared)


def vector_of(learner) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in learner.model.parameters()])


@given(
    kind=st.sampled_from(["gru", "lstm"]),
    spec=st.sampled_from([DISCRETE, CONTINUOUS, NESTED]),
    length=st.integers(1, 6),
    segments=st.integers(1, 4),
    slots=st.integers(1, 5),
    ends=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    shared=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_log_probs_and_values_of_learning_are_those_of_acting(
    kind, spec, length, segments, slots, ends, shared, seed
):
    learner = learner_of(PPOConfig(), spec, kind, seed, shared_body=shared)
    steps = length * segments
    rollout = remembered_rollout(spec, learner.model, length, steps, slots, seed, ends)
    batch = batch_of(learner, rollout)
    assert (batch.sequence_length, len(batch)) == (length, steps * slots)
    generator = torch.Generator().manual_seed(seed)
    size = length * int(torch.randint(1, 4, (), generator=generator))
    seen = []
    for index in batch.shuffled(size, generator):
        minibatch = Minibatch(batch, index, {})
        log_prob, _, value = minibatch.evaluate(learner.model)
        torch.testing.assert_close(log_prob, minibatch["log_prob"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(value, minibatch["value"], rtol=1e-5, atol=1e-5)
        seen += index.tolist()
    assert sorted(seen) == list(range(steps * slots))


@KINDS
def test_whole_rollouts_without_ends_equal_their_segments(kind):
    """Even with truncated gradients values are equal, as segments begin where others stopped."""
    learner = learner_of(PPOConfig(), kind=kind)
    found = []
    for length in (12, 4, 1):
        rollout = remembered_rollout(DISCRETE, learner.model, length, 12, 3, ends=0.0)
        batch = batch_of(learner, rollout)
        rows = batch.all_rows()
        log_prob, _, value = Minibatch(batch, rows, {}).evaluate(learner.model)
        order = rows.argsort()
        found.append(torch.stack([log_prob[order], value[order]]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-5)


def slowly(model, rollout, columns, start, length):
    """Log-probs, entropies and values ``[L, b]`` by PyTorch's cells, one step after the other."""
    cells = [core.layers for core in (model.actor_core, model.critic_core)]
    state = rollout.policy_state[start // length, columns]
    ended = rollout.terminated | rollout.truncated
    results = []
    for time in range(start, start + length):
        if time > start:
            state = state * ~ended[time - 1, columns][:, None]
        parts = list(state.split(state.shape[1] // 2, 1))
        x = rollout.observation[time, columns]
        features = [model.actor_body([x]), model.critic_body([x])]
        for i, cell in enumerate(cells):
            weights = (cell.weight_ih_l0, cell.weight_hh_l0, cell.bias_ih_l0, cell.bias_hh_l0)
            if isinstance(cell, torch.nn.GRU):
                features[i] = parts[i] = torch.gru_cell(features[i], parts[i], *weights)
            else:
                h, c = torch.lstm_cell(features[i], parts[i].chunk(2, 1), *weights)
                features[i], parts[i] = h, torch.cat([h, c], 1)
        state = torch.cat(parts, 1)
        logits = torch.log_softmax(model.actor_head(features[0]), -1)
        log_prob = logits.gather(1, rollout.action[time, columns][:, None])[:, 0]
        entropy = -(logits.exp() * logits).sum(-1)
        results.append((log_prob, entropy, model.critic_head(features[1])[:, 0]))
    return [torch.stack(each) for each in zip(*results, strict=True)]


def advantages(rollout, section):
    following = next_values(
        rollout.value, rollout.final_value, rollout.terminated, rollout.truncated
    )
    ended = rollout.terminated | rollout.truncated
    value = rollout.value[:-1]
    advantage = gae(rollout.reward, value, following, ended, section.gamma, section.gae_lambda)
    return advantage, advantage + value


@KINDS
@pytest.mark.parametrize("name", ["ppo", "a2c"])
def test_an_update_equals_one_written_out_step_by_step(kind, name):
    length, steps, slots = 4, 12, 3
    shared = {"learning_rate": 0.01, "entropy_coef": 0.02, "optimizer": "adam"}
    if name == "ppo":
        section = PPOConfig(**shared, epochs=2, minibatch_size=8, max_grad_norm=None)
    else:
        section = A2CConfig(**shared, max_grad_norm=None)
    learner, other = (learner_of(section, kind=kind) for _ in range(2))
    rollout = remembered_rollout(DISCRETE, learner.model, length, steps, slots, ends=0.3)
    generator = torch.Generator().manual_seed(0)
    learner.update(rollout)

    model = other.model
    optimizer = torch.optim.Adam(model.parameters(), 0.01, eps=section.optimizer_eps)
    advantage, target = advantages(rollout, section)
    num_segments = steps // length * slots
    for _ in range(2 if name == "ppo" else 1):
        orders = torch.arange(num_segments).split(num_segments)
        if name == "ppo":
            orders = torch.randperm(num_segments, generator=generator).split(8 // length)
        for order in orders:
            terms = []
            for segment in order.tolist():
                start, slot = segment // slots * length, segment % slots
                outputs = slowly(model, rollout, [slot], start, length)
                here = slice(start, start + length), [slot]
                old, value = rollout.log_prob[here], advantage[here]
                terms.append((*outputs, old, value, target[here]))
            log_prob, entropy, value, old, weight, wanted = (
                torch.cat(each) for each in zip(*terms, strict=True)
            )
            if name == "ppo":
                weight = (weight - weight.mean()) / (weight.std() + 1e-8)
                policy_loss = losses.ppo_loss(log_prob, old, weight, 0.2)
            else:
                policy_loss = -(log_prob * weight).mean()
            loss = policy_loss + 0.5 * (value - wanted).square().mean() - 0.02 * entropy.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    moved = (vector_of(learner) - vector_of(learner_of(section, kind=kind))).abs().max()
    assert moved > 0.005
    torch.testing.assert_close(vector_of(learner), vector_of(other), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("num_threads", [2, 3, 100])
def test_shares_of_threads_are_whole_segments(num_threads):
    learner = learner_of(PPOConfig(), shared_body=True)
    algorithm, model = PPO(PPOConfig(entropy_coef=0.01)), learner.model
    batch = batch_of(learner, remembered_rollout(DISCRETE, model, 4))
    assert why_not_sharded(algorithm, model) is None
    results = []
    for engine in (
        AutogradEngine(algorithm, model, learner._parameters, compiled=False, bf16=False),
        ShardedEngine(algorithm, model, learner._parameters, num_threads, bf16=False),
    ):
        engine.load(batch, scheduled(algorithm))
        for index in batch.shuffled(20, torch.Generator().manual_seed(0)):
            metrics = engine.forward(index)
            engine.backward()
            results.append(torch.cat([metrics, learner._parameters.gradient]))
    half = len(results) // 2
    for one, shared in zip(results[:half], results[half:], strict=True):
        torch.testing.assert_close(shared, one, rtol=1e-4, atol=1e-5)


ENGINES = {
    "discrete": (DISCRETE, {}),
    "two layers": (CONTINUOUS, {"recurrent_layers": 2}),
    "shared body": (CONTINUOUS, {"shared_body": True, "recurrent_layers": 2}),
    "no hidden layer": (DISCRETE, {"hidden_sizes": (), "normalize_observations": True}),
    "other critic": (DISCRETE, {"critic_hidden_sizes": (4, 3), "recurrent_size": 48}),
}


@KINDS
@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("ends", [0.0, 0.2])
def test_compiled_gradients_equal_those_of_autograd(kind, name, ends):
    spec, config = ENGINES[name]
    algorithm = PPO(PPOConfig(entropy_coef=0.01, clip_value_range=0.3))
    learner = learner_of(algorithm.section, spec, kind, **config)
    model = learner.model
    assert why_not(algorithm, model) is None
    batch = batch_of(learner, remembered_rollout(spec, model, 4, slots=5, ends=ends))
    noise = torch.randn(2, len(batch), generator=torch.Generator().manual_seed(0))
    batch.fields["log_prob"].add_(0.3 * noise[0])
    batch.fields["value"].add_(0.3 * noise[1])
    compiled = SequenceGradientEngine(algorithm, model)
    autograd = AutogradEngine(algorithm, model, learner._parameters, compiled=False, bf16=False)
    for size in (20, 32, 80):
        for index in batch.shuffled(size, torch.Generator().manual_seed(1)):
            results = []
            for engine in (compiled, autograd):
                engine.load(batch, scheduled(algorithm))
                learner._parameters.gradient.fill_(7.0)
                metrics = engine.forward(index)
                engine.backward()
                engine.release()
                results.append((metrics.float(), learner._parameters.gradient.clone()))
            (metrics, gradient), (expected_metrics, expected) = results
            torch.testing.assert_close(metrics, expected_metrics, rtol=1e-4, atol=1e-5)
            assert (gradient - expected).norm() <= 1e-5 * expected.norm()


def test_other_memories_are_learnt_by_autograd():
    odd = learner_of(PPOConfig(), recurrent_size=5).model
    assert why_not(PPO(PPOConfig()), odd) == f"model.recurrent_size is not a multiple of {LANES}"


@KINDS
@pytest.mark.parametrize("model", [{"normalize_observations": True}, {"recurrent_layers": 2}])
def test_an_unchanged_policy_has_a_ratio_of_1(kind, model):
    section = PPOConfig(epochs=1, minibatch_size=1024, learning_rate=1e-3)
    learner = learner_of(section, CONTINUOUS, kind, **model)
    for seed in range(3):
        rollout = remembered_rollout(CONTINUOUS, learner.model, 8, seed=seed)
        assert learner.update(rollout)["approx_kl"] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_states_are_computed_again_with_the_current_parameters(seed):
    """Then a later epoch sees the states that the policy would have reached by now."""
    section = PPOConfig(epochs=1, minibatch_size=1024, recompute_states_each_epoch=True)
    learner = learner_of(section)
    old = remembered_rollout(DISCRETE, learner.model, 4, seed=seed)
    batch = batch_of(learner, old)
    again = batch.sequences.recomputed(batch.observation, learner.model)
    torch.testing.assert_close(again.state, batch.sequences.state, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        for parameter in learner.model.actor_core.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    again = batch.sequences.recomputed(batch.observation, learner.model)
    assert torch.equal(again.state[0], old.policy_state[0])
    assert torch.equal(again.state[-1], old.policy_state[-1])
    assert not torch.allclose(again.state, old.policy_state, atol=1e-3)
    whole = replace(old, policy_state=old.policy_state[[0, -1]])
    expected = Minibatch(batch_of(learner, whole), torch.arange(48), {}).evaluate(learner.model)
    batch = replace(batch, sequences=again)
    rows = batch.all_rows()
    found = Minibatch(batch, rows, {}).evaluate(learner.model)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one[rows.argsort()], other, rtol=1e-5, atol=1e-5)


def test_recomputed_states_change_what_later_epochs_learn():
    results = []
    for epochs, again in ((1, False), (1, True), (3, False), (3, True)):
        section = PPOConfig(
            epochs=epochs, minibatch_size=16, learning_rate=0.01, recompute_states_each_epoch=again
        )
        learner = learner_of(section)
        learner.update(remembered_rollout(DISCRETE, learner.model, 4))
        results.append(vector_of(learner))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[2], results[3])


@KINDS
def test_vtrace_changes_nothing_on_policy(kind):
    results = []
    for vtrace in (True, False):
        learner = learner_of(A2CConfig(vtrace=vtrace), kind=kind)
        learner.update(remembered_rollout(DISCRETE, learner.model, 4))
        results.append(vector_of(learner))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


def test_learning_in_bfloat16_is_close():
    results = []
    for bf16 in (False, True):
        learner = learner_of(A2CConfig(bf16=bf16, learning_rate=1e-3), kind="lstm")
        before = vector_of(learner)
        metrics = learner.update(remembered_rollout(DISCRETE, learner.model, 4))
        results.append((vector_of(learner) - before, metrics["loss"]))
    assert results[1][1] == pytest.approx(results[0][1], rel=0.05)
    cosine = torch.cosine_similarity(results[0][0], results[1][0], dim=0)
    assert not torch.equal(results[0][0], results[1][0])
    assert cosine > 0.9


# torch's compiler imports a module of torch that torch has deprecated, and looks at gradients of
# tensors between two parts of the program.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.slow
@KINDS
def test_a_compiled_loss_learns_the_same(kind, monkeypatch):
    monkeypatch.setattr(A2C, "known_objective", lambda self: None)
    results = []
    for compiled in (False, True):
        learner = learner_of(A2CConfig(compile=compiled), kind=kind)
        learner.update(remembered_rollout(DISCRETE, learner.model, 4))
        results.append(vector_of(learner))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("ends", [0.0, 0.3])
@KINDS
def test_a_gpu_learns_what_the_cpu_learns(kind, ends):
    """Without ends by cuDNN, with them step by step."""
    results = []
    for device in ("cpu", "cuda"):
        learner = learner_of(A2CConfig(), kind=kind, recurrent_layers=2)
        rollout = remembered_rollout(DISCRETE, learner.model, 8, ends=ends)
        learner = learner_of(A2CConfig(device=device), kind=kind, recurrent_layers=2)
        learner.update(rollout)
        results.append(vector_of(learner).cpu())
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-5)


# Mistakes that others have published; each would change what is learnt here.


def test_sequences_are_not_reshaped_across_slots():
    """Rows ``[L, b]`` that were read as ``[b, L]`` would mix environments."""
    learner = learner_of(PPOConfig())
    rollout = remembered_rollout(DISCRETE, learner.model, 4, slots=5, ends=0.0)
    batch = batch_of(learner, rollout)
    changed = replace(
        batch, observation={"": batch.observation[""].view(16, 5, -1).clone().flatten(0, 1)}
    )
    changed.observation[""].view(16, 5, -1)[:, 1] += 1
    rows = batch.all_rows()
    before, after = (
        torch.stack(Minibatch(each, rows, {}).evaluate(learner.model)) for each in (batch, changed)
    )
    differs = (before != after).any(0)
    assert torch.equal(differs, rows % 5 == 1)


@KINDS
def test_segments_begin_with_their_stored_states(kind):
    """Not with zeros, nor with the first state of the rollout, nor with that of another slot."""
    learner = learner_of(PPOConfig(), kind=kind)
    rollout = remembered_rollout(DISCRETE, learner.model, 4, ends=0.0)
    batch = batch_of(learner, rollout)
    rows = batch.all_rows()
    states, keep = batch.sequences.of(rows)
    assert torch.equal(states, rollout.policy_state[:-1].flatten(0, 1))
    assert keep.all()
    for segment in range(12):
        changed = rollout.policy_state.clone()
        changed[segment // 3, segment % 3] += 1
        other = batch_of(learner, replace(rollout, policy_state=changed))
        before, after = (
            Minibatch(each, rows, {}).evaluate(learner.model)[2].view(4, 12)
            for each in (batch, other)
        )
        differs = (before != after).any(0)
        assert differs.tolist() == [number == segment for number in range(12)]


@KINDS
@pytest.mark.parametrize("flag", ["terminated", "truncated"])
def test_the_step_after_an_end_begins_anew_and_no_other(kind, flag):
    learner = learner_of(PPOConfig(), kind=kind)
    rollout = remembered_rollout(DISCRETE, learner.model, 8, 8, 4, ends=0.0)
    ended = getattr(rollout, flag).clone()
    ended[2, 1] = ended[5, 3] = ended[7, 0] = True
    batches = [batch_of(learner, each) for each in (rollout, replace(rollout, **{flag: ended}))]
    rows = batches[0].all_rows()
    before, after = (
        Minibatch(each, rows, {}).evaluate(learner.model)[2].view(8, 4) for each in batches
    )
    expected = torch.zeros(8, 4, dtype=torch.bool)
    expected[3:, 1] = expected[6:, 3] = True
    assert torch.equal(before != after, expected)
    fresh = learner.model.value(
        {"": rollout.observation[3, 1:2]}, state=learner.model.initial_state(1)
    )
    torch.testing.assert_close(after[3, 1:2], fresh, rtol=1e-5, atol=1e-6)


def test_no_gradient_passes_the_end_of_an_episode():
    learner = learner_of(PPOConfig())
    model = learner.model
    rollout = remembered_rollout(DISCRETE, model, 8, 8, 2, ends=0.0)
    observation = rollout.observation[:-1].clone().requires_grad_()
    keep = torch.ones(8, 2, dtype=torch.bool)
    keep[4, 0] = False
    state = rollout.policy_state[0].clone().requires_grad_()
    value = model.evaluate({"": observation}, {"": rollout.action}, state, keep)[2]
    by_observation, by_state = torch.autograd.grad(value[7].sum(), [observation, state])
    assert by_observation.abs().sum(-1).bool().tolist() == [[False, True]] * 4 + [[True, True]] * 4
    assert by_state.abs().sum(-1).bool().tolist() == [False, True]


# Errors are one line each.


def test_a_rollout_without_states_is_reported():
    learner = learner_of(PPOConfig())
    rollout = remembered_rollout(DISCRETE, learner.model, 4)
    fields = {k: v for k, v in rollout.fields.items() if k != "policy_state"}
    with pytest.raises(FastrlError, match="the rollout has no field 'policy_state', from which"):
        learner.update(replace(rollout, fields=fields))


def test_a_loss_that_forgets_the_state_is_reported():
    class Forgetful(PPO):
        def loss(self, minibatch, policy):
            return policy.evaluate(minibatch.observation, minibatch.action)

    config = config_of(PPOConfig(minibatch_size=128), recurrent="gru", **SMALL)
    learner = build_learner(config, DISCRETE, algorithm=Forgetful(PPOConfig(minibatch_size=16)))
    with pytest.raises(
        FastrlError, match=r"memory and needs the state of .*step; .*minibatch\.evaluate"
    ):
        learner.update(remembered_rollout(DISCRETE, learner.model, 4))


def test_minibatches_that_are_no_segments_are_reported():
    class Shuffled(PPO):
        def minibatches(self, batch, generator):
            yield torch.randperm(len(batch))

    config = config_of(PPOConfig(minibatch_size=128), recurrent="gru", **SMALL)
    learner = build_learner(config, DISCRETE, algorithm=Shuffled(PPOConfig()))
    rollout = remembered_rollout(DISCRETE, learner.model, 4)
    with pytest.raises(ConfigError, match=r"^Shuffled\.minibatches must yield whole segments of 4"):
        learner.update(rollout)


def test_a_minibatch_of_broken_segments_is_reported():
    learner = learner_of(PPOConfig(minibatch_size=18))
    rollout = remembered_rollout(DISCRETE, learner.model, 4)
    with pytest.raises(
        ConfigError, match=r"must be a multiple of the sequences' length \(4\), got"
    ):
        learner.update(rollout)


def test_a_policy_without_a_memory_learns_from_rows():
    learner = build_learner(config_of(PPOConfig()), DISCRETE)
    batch = batch_of(learner, random_rollout(DISCRETE, learner.model))
    minibatch = Minibatch(batch, torch.tensor([5, 2]), {})
    assert (batch.sequences, minibatch.sequence_length) == (None, 1)
    assert torch.equal(batch.all_rows(), torch.arange(48))
