"""Several processes on one run: `accelerate launch -m llm.align …`, one process a GPU, over accelerate's engine.

Every process runs the same program. They meet in `exchange`, and whoever fails says so in the exchange that the others
are at or come to next: so all of them end, with one message. Without a launcher there is one process, and everything
here does nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import chain
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from llm.console import MORE_ROOM, memory_errors
from llm.errors import UserError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

TIMEOUT = timedelta(hours=2)
"""How long one process waits for another, which may be at a download or whose machine went away without a word."""
GO_ON = "The run ends here; go on with --resume and its folder, with any number of processes."
CUTS_MODEL = "ACCELERATE_USE_FSDP"
"""The variable by which accelerate's launcher asks for the base to be cut up."""
REFUSED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}
"""Other ways of cutting a model up that it may ask for."""
FSDP_SETTINGS = {
    "FSDP_OFFLOAD_PARAMS": ("false",),
    "FSDP_ACTIVATION_CHECKPOINTING": ("false",),
    "FSDP_SHARDING_STRATEGY": ("full_shard", "1"),
    "FSDP_RESHARD_AFTER_FORWARD": ("true", "full_shard"),
}
"""The launcher's settings of FSDP that would change what a run needs or does, and what they must say, if anything."""


@dataclass(frozen=True)
class _Failure:
    """Why a process ends: what rank 0 says, and the exit status."""

    message: str
    status: int


@dataclass
class _Team:
    """The processes of a run as one of them sees them.

    Attributes:
        rank: This process, 0 to count − 1.
        count: How many there are.
        places: (host, process id) of each.
        ends: Set once this process ends by itself.
        told: Set once this process was told to stop.
        serve: Called before each exchange, with whether this process failed: returns once no process needs this one for
            a pass through a cut-up model.
    """

    rank: int = 0
    count: int = 1
    places: list[tuple[str, int]] = field(default_factory=list)
    ends: threading.Event = field(default_factory=threading.Event)
    told: threading.Event = field(default_factory=threading.Event)
    serve: Callable[[bool], None] = lambda failed: None


_team = _Team()


class EndedElsewhereError(UserError):
    """Another process failed, and this is its message."""

    def __init__(self, rank: int, failure: _Failure) -> None:
        super().__init__(f"{failure.message} (Process {rank} says so.)" if rank else failure.message)
        self.status = failure.status


class LostProcessError(UserError):
    """Another process is gone."""


def rank() -> int:
    """Return this process's number, from 0."""
    return _team.rank


def count() -> int:
    """Return the number of processes that work on the run."""
    return _team.count


def is_first() -> bool:
    """Whether this is the process that writes the run folder's files and speaks."""
    return _team.rank == 0


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Within this context (or decorated function) the processes of one launch are one run; only the first one speaks.

    Raises:
        UserError: The launch cannot work, or, in the first process, any process raised it.
        SystemExit: In another process, where any process ended early.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _team.count > 1:
        _check_launch()
        yield
        return
    _join()
    with contextlib.ExitStack() as silence:
        if not is_first():
            nowhere = silence.enter_context(open(os.devnull, "w"))
            silence.enter_context(contextlib.redirect_stdout(nowhere))
            silence.enter_context(contextlib.redirect_stderr(nowhere))
        with _told_to_others(), memory_errors("loading, sampling or scoring", MORE_ROOM):
            yield
            part()


def part() -> bool:
    """Let every process but the first go; that one works on alone.

    Returns:
        Whether this is the first.
    """
    first = is_first()
    if count() > 1:
        exchange(None)
        _leave()
    return first


def exchange(value: T) -> list[T]:
    """Return the values of all processes, in their order, once all are here.

    Raises:
        UserError: A process failed on its way here, or is gone.
    """
    if count() == 1:
        return [value]
    outcomes = _gathered(value)
    for place, outcome in enumerate(outcomes):
        if isinstance(outcome, _Failure):
            raise EndedElsewhereError(place, outcome)
    return outcomes


def from_first(make: Callable[[], T]) -> T:
    """Return in every process what `make` returns in the first, where alone it is called."""
    made = [make() if is_first() else None]
    if count() > 1:
        from accelerate.utils import broadcast_object_list

        exchange(None)
        with _answered():
            broadcast_object_list(made)
    return made[0]  # type: ignore[return-value]


def check_same(what: str, value: Callable[[], object]) -> None:
    """Check that every process has the same value.

    Args:
        what: What it is, for the message.
        value: Called for it, where there are several processes.

    Raises:
        UserError: One has another.
    """
    if count() == 1:
        return
    values = exchange(value())
    others = [place for place, other in enumerate(values) if other != values[0]]
    if others:
        raise UserError(
            f"Process {others[0]} has another {what} than process 0. All must read the same files and compute on the "
            "same kind of device with the same libraries; what was written before is right, and a run goes on from "
            "there with --resume."
        )


def highest(value: int) -> int:
    """Return the highest of all processes' values, once all are here, without looking whether one failed."""
    import torch

    found = torch.tensor(value)
    with _answered():
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return int(found)


def while_waiting(serve: Callable[[bool], None]) -> None:
    """Call this before each exchange from now on, in all processes.

    Args:
        serve: Takes whether this process failed. Must return in all processes at the same time, and not exchange
            anything.
    """
    _team.serve = serve


@contextlib.contextmanager
def in_turn() -> Iterator[None]:
    """Within this context the processes of one machine work one after another."""
    turn, turns = int(os.environ["LOCAL_RANK"]), max(exchange(int(os.environ["LOCAL_WORLD_SIZE"])))
    for _ in range(turn):
        exchange(None)
    yield
    for _ in range(turns - turn):
        exchange(None)


def cuts_model() -> bool:
    """Whether the processes are to hold one base model between them (accelerate launch --use_fsdp)."""
    return count() > 1 and _is_on(CUTS_MODEL)


def on_cpu() -> bool:
    """Whether there is no GPU, or the launcher was told to leave it alone (accelerate launch --cpu)."""
    import torch

    return not torch.cuda.is_available() or _is_on("ACCELERATE_USE_CPU")


def check_device(device: str) -> None:
    """Refuse one device for all processes.

    Raises:
        UserError: There are several processes, and `--device` names one GPU, or GPUs where the launch is for the CPU.
    """
    if count() > 1 and (":" in device or (device == "cuda" and on_cpu())):
        raise UserError(
            f"--device {device}: {count()} processes would share it. Use auto: what the launch has for each."
        )


def dealt(items: Sequence[T], size: int, work: Callable[[Sequence[T]], Sequence[Any]]) -> list[Any]:
    """Deal blocks of items to the processes, round robin, and return all results, in order, in every process.

    Which items are in a block depends on the items alone, so results are the same for any number of processes.

    Args:
        items: What is to be worked on.
        size: Items in a block.
        work: Returns a result for each item of a block; must not exchange anything itself.
    """
    blocks = [items[start : start + size] for start in range(0, len(items), size)]
    own = [(index, work(blocks[index])) for index in range(rank(), len(blocks), count())]
    parts = sorted(chain.from_iterable(exchange(own)), key=lambda part: part[0])
    return [result for _, part in parts for result in part]


def sum_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Replace every gradient by its sum over the processes: one reduction of one flat tensor.

    A parameter without gradient counts as 0; where no process has one, it stays without. The flat tensor is made before
    the processes meet, so that one without memory for it can still say so.
    """
    if count() == 1:
        return
    import torch

    total = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    has_gradient = [any(flags) for flags in zip(*exchange([p.grad is not None for p in parameters]), strict=True)]
    with _answered():
        torch.distributed.all_reduce(total)
    for parameter, part, has in zip(
        parameters, total.split([p.numel() for p in parameters]), has_gradient, strict=True
    ):
        parameter.grad = part.view_as(parameter) if has else None


def comes_true(claim: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Return whether a claim about a shared file system holds, waiting a while for other machines' files to be seen."""
    end = time.monotonic() + seconds
    while not claim():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def _is_on(variable: str) -> bool:
    """Whether the launcher set a variable to true."""
    return os.environ.get(variable, "false").lower() in ("true", "1")


def _check_launch() -> None:
    """Refuse a launch that asks for a way of cutting the model up, or of FSDP, that is not supported."""
    for variable, name in REFUSED.items():
        if _is_on(variable):
            raise UserError(
                f"accelerate launch with {name}: not supported. To cut the base model up over the GPUs launch with "
                "--use_fsdp; where one GPU holds it (--quantization nf4 makes it smaller), with --multi_gpu."
            )
    for variable, accepted in FSDP_SETTINGS.items():
        value = os.environ.get(variable, accepted[0])
        if _is_on(CUTS_MODEL) and value.lower() not in accepted:
            raise UserError(
                f"{variable} is {value}, and only {accepted[0]} is supported: the layers' weights are cut up over all "
                "GPUs. For activation checkpointing use --activation-checkpointing."
            )


def _join() -> None:
    """Meet the other processes of this launch."""
    _check_launch()
    import torch
    from accelerate import PartialState

    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"  # or transformers expects weights from the first process
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not on_cpu() and here > torch.cuda.device_count():
        raise UserError(
            f"{here} processes on this machine share {torch.cuda.device_count()} GPUs; start one process a GPU."
        )
    if "LOCAL_RANK" not in os.environ:
        raise UserError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but LOCAL_RANK is not set, by which the processes find each "
            "other. Start them with accelerate launch or torchrun."
        )
    try:
        # What is not a tensor on a GPU goes over gloo: it needs no memory there, and tells at once of a lost process.
        options = {} if on_cpu() else {"backend": "cuda:nccl,cpu:gloo"}
        state = PartialState(cpu=on_cpu(), timeout=TIMEOUT, **options)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"The processes of this launch cannot reach each other ({' '.join(str(error).split())[:300]}). Check the "
            "main process's address and port, and the number of processes and machines."
        ) from error
    _team.rank, _team.count = state.process_index, state.num_processes
    _team.places = exchange((socket.gethostname(), os.getpid()))
    _team.ends.clear()
    _team.told.clear()
    _watch_for_sigterm()


def _leave() -> None:
    """Be one process again."""
    from accelerate import PartialState

    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    PartialState().destroy_process_group()
    PartialState._reset_state()
    _team.rank, _team.count, _team.serve = 0, 1, lambda failed: None


def _close() -> None:
    """End the connections of a process that is about to end: torch's threads would abort it now and then."""
    from accelerate import PartialState

    with contextlib.suppress(RuntimeError, ValueError):
        PartialState().destroy_process_group()


def _gathered(value: object) -> list[Any]:
    """The values of all processes, in their order, among them those that say that one failed."""
    from accelerate.utils import gather_object

    _team.serve(isinstance(value, _Failure))
    with _answered():
        return list(gather_object([value]))


@contextlib.contextmanager
def _told_to_others() -> Iterator[None]:
    """Let all processes end where one ends early, and only the first one say why."""
    try:
        yield
    except LostProcessError as error:
        _end_alone(error)
    except (Exception, SystemExit) as error:
        if count() == 1:
            raise
        if not isinstance(error, EndedElsewhereError):
            _free_memory(error)
            lost = _announce(_as_failure(error))
            if lost and isinstance(error, RuntimeError):  # a collective operation within a pass through a cut-up model
                _end_alone(lost)
        _wait_for_first()
        _close()
        status = error.status if isinstance(error, EndedElsewhereError) else 2
        if isinstance(error, UserError) and (status != 2 or not is_first()):
            raise SystemExit(status) from error
        raise
    except KeyboardInterrupt as error:
        if is_first():
            raise
        raise SystemExit(130) from error


def _as_failure(error: BaseException) -> _Failure:
    """What the other processes are told of an error."""
    if isinstance(error, UserError):
        return _Failure(str(error), 2)
    if isinstance(error, SystemExit):
        return _Failure("", error.code if isinstance(error.code, int) else 2 * bool(error.code))
    return _Failure(
        f"{type(error).__name__}: {error}. What was written before is intact; a run goes on by --resume.", 2
    )


def _end_alone(error: LostProcessError) -> NoReturn:
    """End where another process is gone, and say so if this one speaks for its machine."""
    if _team.told.is_set():  # so were the others, and `_end_at_sigterm` ends this one
        threading.Event().wait()
    _team.ends.set()
    if _speaks_for_machine():
        raise error
    raise SystemExit(2) from error


def _free_memory(error: BaseException | None) -> None:
    """Let go of what the functions held that an error ended: to end together takes memory too."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _announce(failure: _Failure) -> LostProcessError | None:
    """Take part in the exchange that the others are at, or come to; return what is wrong if none can be had."""
    try:
        _gathered(failure)
    except LostProcessError as error:
        return error
    return None


def _wait_for_first() -> None:
    """Let no process end, on which a launcher stops all others, before the first one is about to speak."""
    _team.ends.set()
    _announce(_Failure("", 2))


@contextlib.contextmanager
def _answered() -> Iterator[None]:
    """Tell in plain words where a collective operation fails because a process is gone."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        who = _gone_here() or "A process on another machine, or one that gave no answer any more,"
        raise LostProcessError(f"{who} stopped. {GO_ON}") from error


def _gone_here() -> str:
    """Name the processes of this machine that ended; nothing where all run."""
    comes_true(lambda: bool(_gone_by_now()), seconds=3.0)
    return _gone_by_now()


def _gone_by_now() -> str:
    """The same without waiting for it to be seen."""
    gone = sorted(set(_here()) - set(_alive_here()))
    return " and ".join(f"Process {place} (pid {_team.places[place][1]})" for place in gone)


def _here() -> list[int]:
    """The processes of this machine."""
    return [place for place, (host, _) in enumerate(_team.places) if host == socket.gethostname()]


def _alive_here() -> list[int]:
    """The processes of this machine that run."""
    import psutil

    def runs(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return [place for place in _here() if runs(_team.places[place][1])]


def _speaks_for_machine() -> bool:
    """Whether this is the lowest process that is left on its machine."""
    return _team.rank == min(_alive_here())


def _watch_for_sigterm() -> None:
    """On SIGTERM, by which a launcher stops the others where one process died, say so and end.

    A thread reads what the C handler writes: Python's own handlers would wait for a collective operation to end.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_end_at_sigterm, args=(reading, sys.stderr), daemon=True).start()


def _end_at_sigterm(reading: int, stderr: Any) -> None:
    """Wait for a SIGTERM; a process that ends already gets some seconds to do so."""
    while os.read(reading, 1) != bytes([signal.SIGTERM]):
        pass
    _team.told.set()
    who, speaks = _gone_by_now(), _speaks_for_machine()  # while all that are told the same are there
    if _team.ends.wait(0.5):
        time.sleep(20)
    elif not speaks:
        time.sleep(2)
    else:
        reason = f"{who} stopped, and the launcher stops the others" if who else "The processes were told to stop"
        print(f"error: {reason}. {GO_ON}", file=stderr, flush=True)
    os._exit(128 + signal.SIGTERM)
