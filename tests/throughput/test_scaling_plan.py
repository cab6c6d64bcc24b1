from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrl import cli
from fastrl.config import load_config
from fastrl.errors import ConfigError
from fastrl.sampling import make_plan
from fastrl.shared.table import NUM_BANKS, Table
from fastrl.throughput import Network, ScalingPlan, Workload
from fastrl.throughput.scaling_plan import MODES, rollout_bytes, update_of

FAST = Network(1e30, 0.0)
works = st.builds(
    Workload,
    steps_per_s=st.floats(10, 1e6),
    rollout_steps=st.integers(1, 1_000_000),
    bytes_per_step=st.floats(1, 1e6),
    learn_s_per_step=st.floats(1e-8, 1e-2),
    parameter_bytes=st.integers(4, 10**9),
    epochs=st.integers(1, 20),
    minibatch_size=st.none() | st.integers(1, 100_000),
    overlaps=st.booleans(),
)
networks = st.builds(Network, st.floats(1e6, 1e12), st.floats(0, 1e-2))


@given(works, networks)
def test_one_node_needs_no_network(work, network):
    for mode in MODES:
        found = update_of(work, network, 1, mode)
        t_sample, t_learn = 1 / work.steps_per_s, work.learn_s_per_step
        step_s = max(t_sample, t_learn) if work.overlaps else t_sample + t_learn
        assert found.steps_per_s == pytest.approx(1 / step_s)


@given(works, networks, st.integers(2, 1000))
def test_one_learner_is_no_faster_than_its_updates_and_its_link(work, network, nodes):
    found = update_of(work, network, nodes, "rollouts")
    link = network.bytes_per_s / work.bytes_per_step * nodes / (nodes - 1)
    most = min(nodes * work.steps_per_s, 1 / work.learn_s_per_step, link)
    assert found.steps_per_s <= most * 1.000001
    if not work.overlaps:
        assert found.seconds == pytest.approx(sum(found.parts.values()))


@given(works)
def test_many_nodes_come_close_to_what_limits_one_learner(work):
    work = dataclasses.replace(work, parameter_bytes=1)
    network = Network(1e9)
    found = update_of(work, network, 10**12, "rollouts")
    link_s, learn_s = work.bytes_per_step / network.bytes_per_s, work.learn_s_per_step
    step_s = max(link_s, learn_s) if work.overlaps else link_s + learn_s
    assert found.steps_per_s == pytest.approx(1 / step_s, rel=1e-3)


@given(works, st.integers(1, 1000))
def test_gradients_scale_linearly_where_sums_cost_nothing(work, nodes):
    one = update_of(work, FAST, 1, "gradients").steps_per_s
    assert update_of(work, FAST, nodes, "gradients").steps_per_s == pytest.approx(nodes * one)


@given(works, networks, st.integers(1, 1000))
def test_a_faster_network_and_an_overlap_never_slow_it_down(work, network, nodes):
    faster = dataclasses.replace(network, bytes_per_s=2 * network.bytes_per_s)
    overlapped = dataclasses.replace(work, overlaps=True)
    for mode in MODES:
        found = update_of(work, network, nodes, mode).steps_per_s
        assert update_of(work, faster, nodes, mode).steps_per_s >= found
        assert update_of(overlapped, network, nodes, mode).steps_per_s >= found * 0.999999


def test_minibatches_have_a_step_of_each_node():
    small = Workload(1000, 800, 10, 1e-5, 1000, minibatch_size=2)
    large = dataclasses.replace(small, minibatch_size=8)
    network = Network(1e9)
    assert update_of(small, network, 8, "gradients") == update_of(large, network, 8, "gradients")
    assert update_of(small, network, 4, "gradients") != update_of(large, network, 4, "gradients")


def test_pictures_of_seven_nodes_fill_ten_gigabits():
    crafter = Workload(15_000, 15_000, 12_300, 1e-6, 4_000_000, minibatch_size=5_000, overlaps=True)
    network = Network.parse("10Gb")
    assert update_of(crafter, network, 7, "rollouts").limit == "sampling"
    assert update_of(crafter, network, 8, "rollouts").limit == "network"
    plan = ScalingPlan("Crafter", crafter, network, [1, 7, 8, 50])
    assert [plan.faster(nodes) for nodes in plan.nodes] == ["rollouts"] * 2 + ["gradients"] * 2
    first, *others = plan.verdict()
    assert first.startswith("cluster.mode: gradients is faster on 50 nodes")
    assert "whose limit is network" in first
    assert "rollouts: from 8 nodes on the network takes longer than sampling" in others


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [("10Gb", 1.25e9), ("1.2GB", 1.2e9), ("800Mb/s", 1e8), ("1Gbps", 1.25e8)],
)
def test_speeds_are_bits_or_bytes(text, bytes_per_s):
    assert Network.parse(text).bytes_per_s == pytest.approx(bytes_per_s)


@pytest.mark.parametrize("text", ["10", "fast", "0Gb", "-1Gb", "10Tb"])
def test_other_speeds_are_rejected(text):
    with pytest.raises(ConfigError, match="--network must be a speed such as 10Gb"):
        Network.parse(text)


def test_size_of_a_rollout_is_that_of_its_memory():
    plan = make_plan(load_config("configs/cartpole_ppo.yaml"))
    table = Table(plan.schema, plan.rollout_length, plan.topology.num_envs)
    alignment = 128 * (NUM_BANKS * plan.schema.num_tensors + 2)
    assert 0 <= table.num_bytes - NUM_BANKS * rollout_bytes(plan) <= alignment + 1024


def test_command_plans_from_what_it_measures(tmp_path, capsys):
    options = ["--seconds", "0.2", "--repeats", "1", "--warm-up", "0"]
    sizes = ["sampler.num_env_workers=1", "sampler.rollout_length=8", "sampler.num_envs=8"]
    file = tmp_path / "found.json"
    command = ["throughput", "--env", "fastrl/CartPole-v1", *sizes, *options]
    assert cli.main([*command, "--plan-nodes", "4", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    work = found["scaling"]["work"]
    assert work["steps_per_s"] == found["fps_median"]
    assert work["rollout_steps"] == 64
    assert not work["overlaps"]
    assert [row["nodes"] for row in found["scaling"]["nodes"]] == [1, 2, 3, 4]
    assert "cluster.mode: " in capsys.readouterr().out


def test_plan_is_one_of_training(capsys):
    assert cli.main(["throughput", "--env", "CartPole-v1", "--no-policy", "--plan-nodes", "4"]) == 2
    assert "--plan-nodes plans training: leave out --no-policy" in capsys.readouterr().err
