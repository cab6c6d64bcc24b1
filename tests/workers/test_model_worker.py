"""A model worker that always has something to do."""

import contextlib
import threading
import time

from fastrl.shared.table import Table
from fastrl.spec import Topology
from fastrl.workers.handoff import CounterBoard, Handoff, StopRequestedError
from fastrl.workers.model_worker import run_model_worker
from fastrl.workers.plan import WorkerContext
from tests.sampling.counting import make_plan


def test_rings_of_a_worker_that_never_waits_do_not_pile_up():
    plan = make_plan(Topology(2, 2, 1, 2), 3)
    handoff = Handoff(plan.topology)
    names = ("env-worker-0", "env-worker-1", "model-worker-0")
    table = Table(plan.schema, 3, plan.topology.num_envs)
    context = WorkerContext(plan, table, None, CounterBoard(names), handoff)
    requests, groups = 4000, range(4)
    for row in groups:
        handoff.requested[row] = requests
        for _ in range(requests):
            handoff.doorbells[0].post()

    def work():
        with contextlib.suppress(StopRequestedError):
            run_model_worker(context, 0)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        wait_until(lambda: handoff.answered[0] > 40)
        rang = handoff.doorbells[0].try_wait()
        done = handoff.answered[0]
        wait_until(lambda: all(handoff.answered[row] == requests for row in groups))
    finally:
        handoff.stop()
        worker.join()
    assert done < requests, "it was not looked at while it was busy"
    assert not rang


def wait_until(happened, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.001)
