"""Ranks: the processes that train one run together, connected by torch.distributed."""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from signal import SIGTERM
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from fastrl.arguments import instance, whole
from fastrl.envs.state import State, pack, unpack
from fastrl.errors import ConfigError, WorkerError, one_line

DEADLINE_S = 30.0
"""A rank without a sign of life for so long counts as dead."""
START_S = 120.0
"""Deadline for all ranks to join."""
_BEAT_S = 0.2
"""Interval of a rank's signs of life."""
_POLL_S = 0.5
"""Interval at which a waiting rank checks for lost ranks."""
_SILENT_S = 3.0
"""Deadline after a connection has broken, and for peers to read why a rank ends."""
_LONGEST = 2000
"""Characters of the reason for which a rank ends."""
_LAST_PORT = 65_535
_stores: dict[tuple[str, int], Store] = {}
"""Stores of `ranks_of_environment` by address, which all runs of this process use."""
_runs = itertools.count()
"""Numbers these runs, in the same order on all ranks."""
_FOREVER = timedelta(days=365)
"""Timeout of the process group, which must not end it: `Ranks` has its own deadlines."""


class Requests(Protocol):
    """Asks this process to end; see `fastrl.training.interrupts.Interrupts`."""

    requested: Any

    def request(self, number: int) -> None:
        """End as if a signal had come; called from another thread."""


class Ranks:
    """The processes that train one run together, seen from one of them.

    All ranks call `sum`, `stack`, `gather`, `broadcast` and `close` in the same order. Threads
    exchange signs of life through a key-value store; if a rank dies, freezes or fails, the wait of
    the others ends with an error. With size 1 nothing is started, and the methods return their
    arguments.

    Attributes:
        rank: Number of this process. Rank 0 leads: it alone writes the run directory.
        size: Number of ranks.
        died: A rank that was lost without giving a reason, such as a killed one, or None.

    Args:
        rank: See the attribute.
        size: See the attribute.
        store: The key-value store of all ranks; None if the size is 1.
        local_rank: Number of this process on its machine, and of its GPU.
        host: Owner of the store, for errors: ``rank 0`` or a launcher.
        deadline_s: See `DEADLINE_S`.

    Raises:
        WorkerError: The other ranks have not joined within `START_S`.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        store: Store | None = None,
        *,
        local_rank: int = 0,
        host: str = "rank 0",
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self.rank, self.size = rank, size
        self._local_rank, self._host, self._deadline_s = local_rank, host, deadline_s
        self.died: int | None = None
        self._lost: WorkerError | None = None
        self._said, self._is_broken = "", False
        self._requests: Requests | None = None
        self._ended, self._told = threading.Event(), threading.Event()
        self._group: Any = None
        if store is not None:
            self._join(store)

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @property
    def lost(self) -> WorkerError | None:
        """The error that ended the group, such as the death of a rank; None without one."""
        return self._lost

    def device(self, name: str) -> str:
        """Return the device of this rank if the configuration says ``cuda``."""
        return f"cuda:{self._local_rank}" if name == "cuda" and self.size > 1 else name

    def follow(self, requests: Requests | None) -> None:
        """Forward requests to end to all ranks, and theirs to this process; None stops that."""
        self._requests = requests

    def sum(self, tensor: Tensor) -> Tensor:
        """Add the tensors of all ranks in place; return the sum, equal bit for bit on all ranks.

        Raises:
            WorkerError: A rank is lost.
        """
        if self.size > 1:
            self._wait(lambda: dist.all_reduce(tensor, async_op=True), tensor)
        return tensor

    def stack(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all ranks, which have equal shapes, as ``[size, *shape]``.

        Raises:
            WorkerError: A rank is lost.
        """
        if self.size == 1:
            return tensor[None]
        # NCCL and gloo move bytes of any kind, but not bool.
        plain = tensor.contiguous()
        plain = plain.view(torch.uint8) if plain.dtype == torch.bool else plain
        rows = [torch.empty_like(plain) for _ in range(self.size)]
        self._wait(lambda: dist.all_gather(rows, plain, async_op=True), plain)
        return torch.stack(rows).view(tensor.dtype)

    def gather(self, item: State) -> list[State]:
        """Return the items of all ranks, by rank: plain data (see `fastrl.envs.state`).

        Raises:
            WorkerError: A rank is lost.
        """
        if self.size == 1:
            return [item]
        content = torch.frombuffer(bytearray(pack(item)), dtype=torch.uint8)
        sizes = self.stack(torch.tensor([len(content)])).flatten().tolist()
        padded = torch.zeros(max(sizes), dtype=torch.uint8)
        padded[: len(content)] = content
        rows = self.stack(padded)
        return [unpack(row[:size].numpy().tobytes()) for row, size in zip(rows, sizes, strict=True)]

    def broadcast(self, item: State) -> State:
        """Return the item of rank 0; those of the others are ignored.

        Raises:
            WorkerError: A rank is lost.
        """
        return item if self.size == 1 else self.gather(item if self.leads else None)[0]

    def fail(self, why: str) -> None:
        """Report to the other ranks why this one ends, in one line; the first reason is kept."""
        if self.size > 1 and self._lost is None:
            self._lose(self.rank, f"rank {self.rank} failed: {one_line(why, _LONGEST)}")

    def close(self) -> None:
        """Leave: together with the others, or alone if one is lost; safe to call twice."""
        if self._group is None:
            return
        group, self._group = self._group, None
        self.follow(None)
        if self._lost is None:
            with suppress(WorkerError):
                self.gather(None)
        else:
            self._told.wait(_SILENT_S)
            if self._hosts_store:
                # The others read the reason to end from this process.
                self._ended.wait(_SILENT_S)
        self._ended.set()
        self._thread.join(_SILENT_S)
        if self._lost is not None:
            _abandon(group)
        dist.destroy_process_group()

    def _join(self, store: Store) -> None:
        self._store: Any = store
        self._hosts_store = self.leads and self._host == "rank 0"
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            store.set(self._key(self.rank), "0 0 ")
            store.wait([self._key(peer) for peer in range(self.size)], timedelta(seconds=START_S))
            dist.init_process_group(
                backend,
                store=PrefixStore("group", store),
                rank=self.rank,
                world_size=self.size,
                timeout=_FOREVER,
            )
        except (RuntimeError, ValueError) as error:
            raise WorkerError(
                f"rank-{self.rank}",
                f"rank {self.rank} of {self.size} cannot reach the others within {START_S:g} s: "
                f"{one_line(error, 200)}",
            ) from None
        self._group = dist.group.WORLD
        self._thread = threading.Thread(target=self._beat, name="ranks", daemon=True)
        self._thread.start()

    @staticmethod
    def _key(rank: int) -> str:
        return f"rank{rank}"

    def _wait(self, start: Any, tensor: Tensor) -> None:
        """Wait for a collective operation; stop if a rank is lost.

        Raises:
            WorkerError: A rank is lost.
        """
        self._check()
        try:
            work = start()
            while not self._is_done(work, tensor):
                self._check()
        except RuntimeError as error:
            self._explain(error)
            self._check()

    def _is_done(self, work: Any, tensor: Tensor) -> bool:
        if tensor.is_cuda:
            # With a timeout, NCCL's own wait would abort the group.
            if not work.is_completed():
                time.sleep(20e-6)
                return False
            work.wait()
            return True
        try:
            return bool(work.wait(timedelta(seconds=_POLL_S)))
        except RuntimeError:
            if work.is_completed():
                raise
            return False

    def _check(self) -> None:
        if self._lost is not None:
            raise self._lost

    def _explain(self, error: RuntimeError) -> None:
        """Wait until it is known which rank broke a connection."""
        self._is_broken = True
        ends_s = time.monotonic() + 2 * _SILENT_S
        while self._lost is None and time.monotonic() < ends_s:
            time.sleep(_BEAT_S)
        if self._lost is None:
            self._lose(self.rank, f"rank {self.rank} lost a connection: {one_line(error, 200)}")

    def _lose(self, rank: int, why: str) -> None:
        if self._lost is None:
            self._lost, self._said = WorkerError(f"rank-{rank}", why), why
            if self._requests is not None and rank != self.rank:
                self._requests.request(SIGTERM)

    def _beat(self) -> None:
        """Exchange signs of life, requests and reasons to end, until `close`."""
        others = [peer for peer in range(self.size) if peer != self.rank]
        now_s = time.monotonic()
        heard = {peer: ("", now_s) for peer in others}
        count = 0
        try:
            store = self._store.clone()
            while not self._ended.wait(_BEAT_S):
                said, count = self._said, count + 1
                asked = int(getattr(self._requests, "requested", None) or 0)
                store.set(self._key(self.rank), f"{count} {asked} {said}")
                if said:
                    self._told.set()
                rows = store.multi_get([self._key(peer) for peer in others])
                now_s = time.monotonic()
                for peer, row in zip(others, rows, strict=True):
                    text = row.decode()
                    if text != heard[peer][0]:
                        heard[peer] = text, now_s
                    self._hear(peer, text, now_s - heard[peer][1])
        except RuntimeError:
            if not self._ended.is_set():
                self.died = None if self.leads else 0
                self._lose(0, f"{self._host}, which the ranks communicate through, has died")
        finally:
            self._told.set()

    def _hear(self, peer: int, text: str, silent_s: float) -> None:
        _, asked, said = text.split(" ", 2)
        requests = self._requests
        if said:
            self._lose(peer, said)
        elif silent_s > (_SILENT_S if self._is_broken else self._deadline_s):
            self.died = peer
            self._lose(peer, f"rank {peer} has died: no sign of life for {silent_s:.0f} s")
        elif asked != "0" and requests is not None and requests.requested is None:
            requests.request(int(asked))


def _abandon(group: Any) -> None:
    """Keep a process group forever, because its destructor would wait for a dead rank."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))
    if torch.cuda.is_available():
        nccl = group._get_backend(torch.device("cuda"))
        aborting = threading.Thread(target=nccl.abort, daemon=True)
        aborting.start()
        aborting.join(_SILENT_S)


def ranks_at(
    rank: int,
    size: int,
    master_address: str,
    master_port: int,
    *,
    local_rank: int = 0,
    deadline_s: float = DEADLINE_S,
) -> Ranks:
    """Join the ranks of a run; rank 0 listens at the address.

    Args:
        rank: 0 to size - 1.
        size: Number of ranks.
        master_address: Name or address of rank 0's machine.
        master_port: A free port there.
        local_rank: Number of this process on its machine, and of its GPU.
        deadline_s: After so many seconds without a sign of life a rank counts as dead.

    Raises:
        ArgumentError: A number is out of range.
        WorkerError: The other ranks have not joined within `START_S`.
    """
    whole("size", size)
    whole("rank", rank, at_least=0)
    whole("master_port", master_port, at_most=_LAST_PORT)
    instance("master_address", master_address, str)
    if rank >= size:
        raise ConfigError(f"rank must be less than the number of ranks ({size}), got {rank}")
    if size == 1:
        return Ranks(local_rank=local_rank)
    store = _store(master_address, master_port, is_master=rank == 0, deadline_s=deadline_s)
    return Ranks(rank, size, store, local_rank=local_rank, deadline_s=deadline_s)


def leading_ranks(size: int, address: str, start: Callable[[int], None]) -> Ranks:
    """Join the ranks of a run as rank 0, which starts the others.

    Args:
        size: Number of ranks, at least 2.
        address: Address of this machine, as the others reach it.
        start: Starts the other ranks; called with this process's port.

    Raises:
        WorkerError: The other ranks have not joined within `START_S`.
    """
    store = _store(address, 0, is_master=True)
    start(store.port)
    return Ranks(0, size, store)


def ranks_of_environment(environment: Mapping[str, str] = os.environ) -> Ranks:
    """Join the ranks that ``torchrun`` has started, by environment variables.

    A program may call this for several runs, one after the other; all ranks then do so.

    Raises:
        ConfigError: Variables are missing or wrong.
        WorkerError: The other ranks have not joined within `START_S`.
    """
    size = _number(environment, "WORLD_SIZE", 1)
    if size == 1:
        return Ranks()
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        if not environment.get(name):
            raise ConfigError(f"WORLD_SIZE={size} without {name}: start the ranks with torchrun")
    rank, port = _number(environment, "RANK", 0), _number(environment, "MASTER_PORT", 0)
    if not 0 <= rank < size:
        raise ConfigError(f"RANK must be at least 0 and less than WORLD_SIZE ({size}), got {rank}")
    if not 0 < port <= _LAST_PORT:
        raise ConfigError(f"MASTER_PORT must be at least 1 and at most {_LAST_PORT}, got {port}")
    by_launcher = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    place = environment["MASTER_ADDR"], port
    if place not in _stores:
        _stores[place] = _store(*place, is_master=rank == 0 and not by_launcher)
    # The store holds the keys of earlier runs of this program, and of ranks before a restart.
    keys = f"{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}/{next(_runs)}"
    store, host = PrefixStore(keys, _stores[place]), "torchrun" if by_launcher else "rank 0"
    local_rank = _number(environment, "LOCAL_RANK", 0)
    return Ranks(rank, size, store, local_rank=local_rank, host=host)


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, str(default))
    if not text.isdecimal():
        raise ConfigError(f"{name} must be a whole number, got '{one_line(text)}'")
    return int(text)


def _store(address: str, port: int, *, is_master: bool, deadline_s: float = DEADLINE_S) -> TCPStore:
    """Return a client of the key-value store, and its server on the master.

    Raises:
        WorkerError: The server cannot listen at the address, or the client finds no server there.
    """
    try:
        store = TCPStore(
            address,
            port,
            is_master=is_master,
            timeout=timedelta(seconds=START_S),
            wait_for_workers=False,
        )
    except (RuntimeError, ValueError) as error:
        what = "rank 0 cannot listen" if is_master else "nothing listens"
        raise WorkerError("rank-0", f"{what} at {address}:{port}: {one_line(error, 200)}") from None
    store.set_timeout(timedelta(seconds=deadline_s))
    return store
