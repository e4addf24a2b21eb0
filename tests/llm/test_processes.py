"""Several processes on one run are one run."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from child_runs import (
    FailAt,
    InDouble,
    KillAt,
    OnlyIn,
    RunOutOfMemory,
    StopAll,
    come_apart,
    crash,
    elsewhere,
    fill_disk,
    run_apart,
    run_together,
    see_nothing,
    work_together,
)
from letter_world import letter_config
from llm import processes
from llm.config import AlignConfig, dump_config
from llm.errors import UserError
from llm.models import resolve_device
from llm.store import ShardFolder, read_events

REPOSITORY = Path(__file__).parents[2]
FSDP = {processes.CUTS_MODEL: "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
"""What accelerate launch --use_fsdp sets, among others."""
LAUNCHES = {"whole": {}, "cut up": FSDP}


def settings(out: Path, **changes: object) -> AlignConfig:
    """Three phases of five blocks, a step of several passes, and checkpoints that are not at the phases' ends."""
    return letter_config(out, **({"e": 3, "m": 5, "sample_rows": 4, "train_rows": 4, "checkpoint_every": 3} | changes))


@pytest.fixture(scope="module")
def alone(letters: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process in float64."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert run_apart(settings(folder), letters, sabotage=InDouble()) == 0
    return folder


@pytest.fixture(scope="module", params=LAUNCHES)
def together(request: pytest.FixtureRequest, letters: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run of two processes, each with the whole base or with half of it."""
    folder = tmp_path_factory.mktemp("together") / "run"
    statuses, said = run_together(settings(folder), letters, sabotage=InDouble(), launch=LAUNCHES[request.param])
    assert statuses == [0, 0], said
    assert said[1] == ""
    return folder


def adapter(run: Path) -> torch.Tensor:
    """The published adapter as one vector."""
    tensors = safetensors.torch.load_file(run / "adapter" / "adapter_model.safetensors")
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


def distance(run: Path, other: Path) -> float:
    """The relative L2 distance of two runs' adapters."""
    return float((adapter(run) - adapter(other)).norm() / adapter(other).norm())


def tokens(run: Path) -> list[tuple[str, int, tuple[int, ...]]]:
    """Every completion of every phase."""
    rows = []
    for phase in sorted((run / "rollouts").iterdir()):
        shards = ShardFolder(phase)
        rows += [row for path in sorted(phase.glob("*.parquet")) for row in shards.read(path.stem)]
    return [(row["prompt_id"], row["sample_id"], tuple(row["token_ids"])) for row in rows]


def test_two_processes_sample_and_learn_what_one_does(alone: Path, together: Path) -> None:
    assert len(tokens(together)) == 3 * 5 * 4
    assert tokens(together) == tokens(alone)
    assert 0 < distance(together, alone) < 1e-6


def test_both_processes_sampled(together: Path) -> None:
    manifests = sorted((together / "rollouts" / "phase-0000").glob("manifest*.json"))
    assert [path.name for path in manifests] == ["manifest-1.json", "manifest.json"]


def test_one_process_logs_what_the_whole_batch_and_all_prompts_gave(alone: Path, together: Path) -> None:
    events, expected = (read_events(run / "metrics.jsonl") for run in (together, alone))
    assert len(events) == len(expected)
    for event, other in zip(events, expected, strict=True):
        assert (event["event"], event.keys()) == (other["event"], other.keys())
        for name in event.keys() - {"event", "when", "seconds", "name", "text"}:
            assert event[name] == pytest.approx(other[name], rel=1e-6, abs=1e-6), name


def test_in_single_precision_the_first_phase_has_the_same_completions(letters: Path, tmp_path: Path) -> None:
    short = {"e": 1, "k": 1}
    assert run_apart(settings(tmp_path / "one", **short), letters) == 0
    tracked = settings(tmp_path / "two", tracker="tensorboard", **short)  # whose end must not wait for anybody
    assert run_together(tracked, letters)[0] == [0, 0]
    assert any((tmp_path / "two" / "tracker").iterdir())
    assert tokens(tmp_path / "two") == tokens(tmp_path / "one")


def test_a_launch_in_which_processes_would_not_find_each_other_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without LOCAL_RANK accelerate takes each process on a GPU for the only one."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="WORLD_SIZE is 2, but LOCAL_RANK is not set"), processes.joined():
        pass
    assert processes.count() == 1


KILLS = {
    "a phase, not the first": OnlyIn(1, KillAt("llm.groups", "sample_groups", 4)),
    "training": OnlyIn(1, KillAt("llm.train", "accumulate_gradient", 8)),
}


@pytest.mark.parametrize(("moment", "launch"), [*((moment, "whole") for moment in KILLS), ("training", "cut up")])
def test_a_killed_process_ends_the_others_and_one_process_goes_on(
    moment: str, launch: str, alone: Path, letters: Path, tmp_path: Path
) -> None:
    config = settings(tmp_path / "run")
    statuses, said = run_together(config, letters, sabotage=InDouble(KILLS[moment]), launch=LAUNCHES[launch])
    assert statuses == [2, -signal.SIGKILL]
    (error,) = [line for line in said[0].splitlines() if line.startswith("error: ")]
    assert re.match(r"error: Process 1 \(pid \d+\) stopped. The run ends here; go on with --resume", error)
    assert run_apart(config, letters, sabotage=InDouble()) == 0
    assert tokens(tmp_path / "run") == tokens(alone)
    assert distance(tmp_path / "run", alone) < 1e-6


def test_two_processes_go_on_where_one_was_killed(alone: Path, letters: Path, tmp_path: Path) -> None:
    config = settings(tmp_path / "run")
    assert run_apart(config, letters, sabotage=InDouble(KillAt("llm.groups", "sample_groups", 8))) == -9
    statuses, said = run_together(config, letters, sabotage=InDouble())
    assert statuses == [0, 0], said
    assert tokens(tmp_path / "run") == tokens(alone)
    assert distance(tmp_path / "run", alone) < 1e-6


def test_an_error_in_any_process_ends_all_with_one_message(letters: Path, tmp_path: Path) -> None:
    for rank in (0, 1):
        config = settings(tmp_path / f"run-{rank}", e=1)
        statuses, said = run_together(config, letters, sabotage=OnlyIn(rank, fill_disk))
        assert statuses == [2, 2]
        assert said[1] == ""
        assert said[0].count("error: ") == 1
        assert "block" in said[0]
        assert "Make room" in said[0]


def test_a_crash_in_one_process_ends_the_other_and_shows_its_traceback(letters: Path, tmp_path: Path) -> None:
    statuses, said = run_together(settings(tmp_path / "run", e=1), letters, sabotage=OnlyIn(1, crash))
    assert statuses == [2, 1]
    assert "error: ZeroDivisionError: division by zero" in said[0]
    assert "(Process 1 says so.)" in said[0]
    assert "Traceback" not in said[0]
    assert "ZeroDivisionError" in said[1]


@pytest.mark.parametrize("when", ["forward", "backward"])
def test_memory_that_runs_out_in_one_process_within_a_pass_through_a_cut_up_base_ends_all(
    when: str, letters: Path, tmp_path: Path
) -> None:
    """The others wait for layers of this process; it hands out the rest of them before it says why it ends."""
    config = settings(tmp_path / "run", e=1)
    statuses, said = run_together(config, letters, sabotage=OnlyIn(1, RunOutOfMemory(when)), launch=FSDP)
    assert statuses == [2, 2]
    (error,) = [line for line in said[0].splitlines() if line.startswith("error: ")]
    assert "Out of memory while training" in error
    assert "Lower --train-rows 4" in error
    assert "(Process 1 says so.)" in error


def test_where_the_base_is_cut_up_an_error_ends_the_others_at_their_next_pass(letters: Path, tmp_path: Path) -> None:
    """The first process would have gone on to block 4; it ends within block 2, while the other fails at block 3."""
    sabotage = OnlyIn(1, FailAt("llm.groups", "sample_groups", 2))
    statuses, said = run_together(settings(tmp_path / "run", e=1), letters, sabotage=sabotage, launch=FSDP)
    assert statuses == [2, 2]
    assert said[0].count("error: Out of memory") == 1
    assert said[1] == ""
    blocks = sorted(path.stem for path in (tmp_path / "run" / "rollouts" / "phase-0000").glob("*.parquet"))
    assert blocks == ["block-00000", "block-00001"]


def test_processes_that_were_all_told_to_stop_say_so(tmp_path: Path) -> None:
    statuses, said = work_together(StopAll(), tmp_path, count=3)
    assert statuses == [128 + signal.SIGTERM] * 3
    assert said[0].startswith("error: The processes were told to stop. The run ends here")
    assert said[1:] == ["", ""]


def test_processes_whose_adapters_came_apart_are_found_out(letters: Path, tmp_path: Path) -> None:
    statuses, said = run_together(settings(tmp_path / "run", e=1), letters, sabotage=OnlyIn(1, come_apart))
    assert statuses == [2, 2]
    assert "error: Process 1 has another adapter than process 0" in said[0]


def test_several_processes_need_a_folder_that_all_see(letters: Path, tmp_path: Path) -> None:
    statuses, said = run_together(settings(tmp_path / "run", e=1), letters, sabotage=OnlyIn(1, see_nothing))
    assert statuses == [2, 2]
    assert "process 1 does not see this folder" in said[0]


def test_several_processes_do_not_share_a_gpu(letters: Path, tmp_path: Path) -> None:
    statuses, said = run_together(settings(tmp_path / "run", device="cuda:0"), letters)
    assert statuses == [2, 2]
    assert "--device cuda:0: 2 processes would share it" in said[0]


@pytest.mark.parametrize("variable", processes.REFUSED)
def test_other_ways_of_cutting_the_model_up_are_refused(
    variable: str, in_letters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm.align import run

    monkeypatch.setenv(variable, "true")
    with pytest.raises(UserError, match=f"{processes.REFUSED[variable]}: not supported.*--use_fsdp"):
        run(settings(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("variable", processes.FSDP_SETTINGS)
def test_settings_of_fsdp_that_a_run_does_not_heed_are_refused(
    variable: str, in_letters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm.align import run

    monkeypatch.setenv(processes.CUTS_MODEL, "true")
    monkeypatch.setenv(variable, "HYBRID_SHARD")
    with pytest.raises(UserError, match=f"{variable} is HYBRID_SHARD"):
        run(settings(tmp_path / "run"))


def test_a_quantised_base_is_not_cut_up(letters: Path, tmp_path: Path) -> None:
    config = settings(tmp_path / "run", quantization="nf4")
    statuses, said = run_together(config, letters, launch=FSDP)
    assert statuses == [2, 2]
    assert "error: --quantization nf4 with FSDP: not supported" in said[0]


def test_a_launch_for_the_cpu_computes_there_whatever_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert resolve_device("auto") == "cuda"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert resolve_device("auto") == "cpu"


def test_one_process_deals_everything_to_itself_in_order() -> None:
    calls: list[list[int]] = []
    squares = processes.dealt(range(7), 3, lambda block: calls.append(list(block)) or [x * x for x in block])
    assert squares == [0, 1, 4, 9, 16, 25, 36]
    assert calls == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "--multi_gpu", "--use_fsdp"])
def test_the_launchers_start_a_run(launcher: str, letters: Path, tmp_path: Path) -> None:
    """As a user starts it; the same adapter as one process's, to single precision."""
    config = settings(tmp_path / "one", k=1)
    assert run_apart(config, letters) == 0
    start = {
        "torchrun": ["torch.distributed.run", "--nproc-per-node=2", "--standalone"],
    }.get(launcher, ["accelerate.commands.launch", launcher, "--num_processes=2", "--main_process_port=0"])
    if launcher != "torchrun":
        start += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    (tmp_path / "settings.yaml").write_text(dump_config(elsewhere(config, tmp_path / "two")))
    done = subprocess.run(
        [sys.executable, "-m", *start, "-m", "llm.align", "--config", str(tmp_path / "settings.yaml")],
        cwd=letters,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("over the reference, reward") == 1
    assert tokens(tmp_path / "two")[:20] == tokens(tmp_path / "one")[:20]
    assert distance(tmp_path / "two", tmp_path / "one") < 1e-3


SPEAKS_UP = """
import sys
from llm import processes
from llm.console import entry_point
from llm.errors import UserError

@processes.joined()
def main(arguments):
    raise UserError("boom")

sys.exit(entry_point(main))
"""


@pytest.mark.slow
def test_processes_that_end_in_an_error_end_with_status_2_every_time() -> None:
    """Twelve pairs: with connections left open, one in seven aborted (SIGABRT) at the interpreter's end."""
    for repeat in range(12):
        shared = os.environ | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            shared |= {"MASTER_PORT": str(probe.getsockname()[1]), "OMP_NUM_THREADS": "1"}
        pair = [
            subprocess.Popen([sys.executable, "-c", SPEAKS_UP], env=shared | {"RANK": rank, "LOCAL_RANK": rank})
            for rank in "01"
        ]
        assert [process.wait(120) for process in pair] == [2, 2], repeat
