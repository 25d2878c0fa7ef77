"""The command line in real processes: exit codes, what is printed where, and how quickly."""

from __future__ import annotations

import json
import logging
import os
import pty
import re
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import numpy as np
import pytest

from kdedge.cli.main import cli, run

Run = Callable[..., Any]

ROOT = Path(__file__).parents[2]


def python(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "check": False}
    options = {"env": {**os.environ, "PYTHONPATH": str(ROOT)}, **pipes, **options}
    return subprocess.run([sys.executable, *arguments], **options)


def kdedge(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return python("-m", "kdedge", *arguments, **options)


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return python("-c", textwrap.dedent(code))


# Adds a command that raises the given error to the real group, and runs it by the real entry point.
RAISE = """
    import errno, sys, click
    from kdedge import errors
    from kdedge.cli import main as entry

    @click.command("fail")
    def fail():
        {raises}

    entry.cli.add_command(fail)
    sys.argv = ["kdedge", "fail"]
    entry.main()
"""


@pytest.fixture
def fail(_forking, tmp_path):
    """Runs a command that raises; gives its exit code, and what it said on stderr alone."""

    def run_script(raises: str) -> tuple[int, str]:
        script = tmp_path / "script.py"
        script.write_text(textwrap.dedent(RAISE.format(raises=raises)))
        process = _forking.start(cwd=tmp_path, script=script)
        code = process.wait()
        assert process.stdout == ""
        return code, process.stderr

    return run_script


def test_help_loads_neither_torch_nor_a_command_nor_the_recipe_schema():
    done = run_python("""
        import sys
        from kdedge.cli.main import run
        code = run(["--help"])
        heavy = {"torch", "numpy", "PIL", "pydantic", "ruamel", "open_clip", "rich"}
        loaded = {name for name in sys.modules if name.startswith("kdedge.cli.")}
        loaded -= {"kdedge.cli.lazy_group", "kdedge.cli.output"}
        print(sorted(heavy & set(sys.modules)), sorted(loaded), code, file=sys.stderr)
    """)
    assert done.stderr.strip() == "[] ['kdedge.cli.main'] 0"


def test_every_command_has_one_line_in_the_help_and_a_help_of_its_own_without_torch():
    done = run_python("""
        import contextlib, io, sys
        from pathlib import Path
        import click
        from kdedge.cli.main import cli, run
        from kdedge.cli.output import summary_of_module
        for name in cli.list_commands(click.Context(cli)):
            with contextlib.redirect_stdout(io.StringIO()) as out:
                code = run([name, "-h"])
            heavy = {"torch", "torchvision", "open_clip", "onnx", "onnxruntime"} & set(sys.modules)
            callback = cli.get_command(click.Context(cli), name).callback
            module = sys.modules[callback.__module__]
            short = summary_of_module(Path(module.__file__))
            is_own = out.getvalue().startswith(f"Usage: kdedge {name}") and short.endswith(".")
            print(name, code, sorted(heavy), is_own)
    """)
    lines = done.stdout.splitlines()
    assert len(lines) >= 20
    assert [line.partition(" ")[2] for line in lines] == ["0 [] True"] * len(lines), done.stderr
    listed = kdedge("--help-all").stdout
    assert all(f"\n  {line.partition(' ')[0]} " in listed for line in lines)


def test_doctor_examines_a_machine_whose_numpy_is_broken():
    done = run_python("""
        import sys
        sys.modules["numpy"] = None
        from kdedge.cli.main import run
        sys.exit(run(["doctor"]))
    """)
    assert done.returncode == 0
    assert done.stdout.startswith("kdedge ")


def test_importing_kdedge_loads_no_other_package_and_no_module_of_its_own():
    done = run_python("""
        import sys
        before = set(sys.modules)
        import kdedge
        print(sorted(set(sys.modules) - before - sys.stdlib_module_names))
    """)
    assert done.stdout.strip() == "['kdedge']"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("doctr",), 'No such command "doctr". Did you mean doctor?'),
        (("doctor", "--jsno"), "--json"),
        ((), "Commands:"),
    ],
)
def test_a_usage_error_says_what_there_is(arguments, said):
    done = kdedge(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_the_help_has_the_commands_of_the_path_and_says_where_the_others_are():
    lines = kdedge("--help").stdout.partition("Commands:")[2].splitlines()
    path = "demo init check distill eval export bench report predict serve"
    names = [line.split()[0] for line in lines if re.match("  [a-z]", line)]
    assert names == path.split()
    n_others = len(cli.list_commands(click.Context(cli))) - 10
    assert f"kdedge --help-all lists {n_others} more." in lines[-1]


def test_the_help_of_export_is_short_and_has_a_long_form():
    short, long = (kdedge("export", option).stdout for option in ("--help", "--help-all"))
    assert "--int8 " in short
    assert "--open-classes" not in short
    assert "--open-classes" in long


def test_the_version_is_printed():
    assert kdedge("--version").stdout == "kdedge 0.2.0\n"


@pytest.mark.parametrize(
    ("raises", "code", "message"),
    [
        ("raise errors.RecipeError('a')", 2, "kdedge: a\n"),
        ("raise errors.DataError('a')", 3, "kdedge: a\n"),
        ("raise errors.SetupError('a')", 4, "kdedge: a\n"),
        ("raise errors.DivergedError('a')", 5, "kdedge: a\n"),
        ("raise errors.GateError('a')", 6, "kdedge: a\n"),
        ("raise errors.ResourceError('a')", 7, "kdedge: a\n"),
        ("raise errors.InUseError('a')", 8, "kdedge: a\n"),
        ("raise errors.Interrupted('a', signum=15)", 143, "kdedge: a\n"),
        ("error = errors.SetupError('a'); raise error from error", 4, "kdedge: a\n"),
        ("raise PermissionError(errno.EACCES, 'No', 'x')", 3, "kdedge: x cannot be used: no.\n"),
        ("raise KeyboardInterrupt", 130, "kdedge: interrupted.\n"),
        ("sys.exit(9)", 9, ""),
    ],
)
def test_an_error_is_its_message_and_its_exit_code(fail, raises, code, message):
    assert fail(raises) == (code, message)


SIGNAL = """import signal

        try:
            signal.raise_signal(signal.{})
        except KeyboardInterrupt:
            pass
        {}"""
JSON = """import signal
        from pathlib import Path
        from pydantic import RootModel

        class Interrupted(type(Path())):
            def __str__(self):
                signal.raise_signal(signal.SIGINT)

        RootModel[Path].model_construct(Interrupted()).model_dump_json()"""


@pytest.mark.parametrize(
    ("raises", "code"),
    [
        # A package may lose the exception: pybind11 makes ImportError of it, for example
        (SIGNAL.format("SIGINT", "raise ImportError('initialization failed')"), 130),
        (SIGNAL.format("SIGTERM", "raise errors.DataError('a') from RuntimeError()"), 143),
        # A terminal that was closed
        (SIGNAL.format("SIGHUP", "raise errors.DataError('a') from RuntimeError()"), 143),
        (JSON, 130),  # pydantic, while it writes
    ],
)
def test_a_signal_is_seen_in_the_error_that_a_package_makes_of_it(fail, raises, code):
    assert fail(raises) == (code, "kdedge: interrupted.\n")


@pytest.mark.parametrize("error", ["GateError('a')", "Interrupted('a', signum=2)"])
def test_a_signal_that_a_command_handled_does_not_hide_its_error(fail, error):
    _, said = fail(SIGNAL.format("SIGINT", f"raise errors.{error}"))
    assert said == "kdedge: a\n"


@pytest.mark.parametrize(
    "raises",
    [
        "raise MemoryError",
        "raise type('OutOfMemoryError', (RuntimeError,), {})('CUDA out of memory. Tried')",
        "raise RuntimeError('DefaultCPUAllocator: not enough memory: you tried')",
        "raise RuntimeError('CUDA error: out of memory')",
        "raise ImportError('libtorch_cpu.so: failed to map segment from shared object')",
        "raise OSError(errno.ENOMEM, 'Cannot allocate memory')",
        'raise RuntimeError("can\'t start new thread")',
        "raise RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate')",
        "raise RuntimeError('cuDNN error: CUDNN_STATUS_ALLOC_FAILED')",
    ],
)
def test_running_out_of_memory_is_no_bug_and_has_a_remedy(fail, raises):
    code, said = fail(raises)
    assert code == 7
    assert said.startswith("kdedge: memory ran out: ")
    assert "(--set optim.batch_size=4; predict: --batch 1)" in said
    assert "Traceback" not in said


def test_a_full_disk_is_no_bug(fail):
    code, said = fail("raise OSError(errno.ENOSPC, 'No space', 'x.bin')")
    assert code == 7
    assert said.startswith("kdedge: the disk is full while writing x.bin.\n")


@pytest.mark.parametrize("command", ["bench", "export", "report"])
def test_a_name_that_the_system_refuses_is_no_bug(command, capfd):
    pytest.importorskip("torch")
    assert run((command, "x" * 300)) == 3
    message = capfd.readouterr().err
    assert message.startswith("kdedge: xxx")
    assert message.endswith(" cannot be used: file name too long.\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_result_that_does_not_fit_on_the_disk_is_an_error():
    with Path("/dev/full").open("w") as full:
        done = kdedge("data", "list", stdout=full)
    assert done.returncode == 7
    assert done.stderr.startswith("kdedge: the disk is full.")
    assert "Traceback" not in done.stderr


def test_a_bug_is_one_line_and_a_traceback_in_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = run_python(RAISE.format(raises="raise ValueError('two\\nlines')"))
    logs = list(tmp_path.glob("kdedge-crash-*.log"))
    assert done.returncode == 1
    assert done.stderr == (
        f"kdedge: this is a bug in kdedge: ValueError: two lines. The traceback is in {logs[0]}\n"
    )
    assert "Traceback (most recent call last)" in logs[0].read_text()


def test_the_file_and_the_log_take_names_that_are_not_utf_8(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = run_python(RAISE.format(raises="raise ValueError('b\\udcff')"))
    assert done.returncode == 1
    (crash,) = tmp_path.glob("kdedge-crash-*.log")
    assert "ValueError: b\\udcff" in crash.read_text()
    done = run_python(f"""
        import logging; from pathlib import Path; from kdedge.runs.folder import logged_to
        with logged_to(Path({str(tmp_path)!r}) / "log.txt"):
            logging.getLogger("kdedge").warning("b\\udcff cannot be read")
    """)
    assert "Traceback" not in done.stderr
    assert "b\\udcff cannot be read" in (tmp_path / "log.txt").read_text()


def test_a_bug_during_a_run_is_told_in_the_runs_log(tmp_path):
    log = tmp_path / "log.txt"
    raises = (
        "from pathlib import Path; from kdedge.runs.folder import logged_to\n"
        f"        with logged_to(Path({str(tmp_path)!r}) / 'log.txt'):\n"
        "            raise ValueError('x')"
    )
    done = run_python(RAISE.format(raises=raises))
    assert done.stderr.endswith(f"The traceback is in {log}\n")
    assert "ValueError: x" in log.read_text()


def test_a_closed_pipe_ends_quietly():
    process = subprocess.Popen(
        [sys.executable, "-m", "kdedge", "data", "list"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141
    process.stderr.close()


def test_control_c_gives_130_without_a_traceback():
    wait = "print('on', flush=True); __import__('time').sleep(60)"
    code = textwrap.dedent(RAISE.format(raises=wait))
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "on\n"
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        assert process.stderr.read() == "kdedge: interrupted.\n"


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_between_a_commands_end_and_the_exit_is_an_exit_code(name, code):
    done = run_python(
        f"""
        import os, signal, sys
        from kdedge.cli import main as entry

        def trace(frame, event, result):
            if event == "return" and frame.f_code is entry.run.__code__:
                os.kill(os.getpid(), signal.{name})

        sys.setprofile(trace)
        sys.argv = ["kdedge", "--version"]
        entry.main()
        """
    )
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout.startswith("kdedge ")


def test_a_warning_is_told_once_a_command_and_a_message_each_time(capsys):
    logger = logging.getLogger("kdedge.data")
    for _ in range(2):
        assert run(["methods"]) == 0
        for _ in range(2):
            logger.warning("%s is not there.", "classnames.txt")
            logger.info("working")
    warning = "kdedge: warning: classnames.txt is not there.\n"
    assert capsys.readouterr().err == (warning + "working\n" + "working\n") * 2


# What a terminal of 80 columns shows, and what a pipe gets instead


def run_shown(*arguments: str, on_terminal: bool, **environment: str) -> str:
    """All that a command writes, in a process whose output is a terminal or a pipe."""
    clean = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    env = {**clean, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "80", **environment}
    if not on_terminal:
        return kdedge(*arguments, env=env, stderr=subprocess.STDOUT).stdout
    command = [sys.executable, "-m", "kdedge", *arguments]
    parent, child = pty.openpty()
    process = subprocess.Popen(command, stdout=child, stderr=child, env=env)
    os.close(child)
    shown = b""
    try:
        while block := os.read(parent, 4096):
            shown += block
    except OSError:
        pass  # how a terminal says that its other end is closed
    process.wait()
    os.close(parent)
    return shown.decode().replace("\r\n", "\n")


def test_a_wide_table_is_wrapped_between_words_on_a_terminal_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = run_shown("methods", on_terminal=True)
    assert run(["methods"]) == 0
    piped = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert max(map(len, piped.splitlines())) > 80
    assert sorted(shown.split()) == sorted(piped.split())


def test_on_a_terminal_the_columns_are_aligned(
    device: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    device.write_artifact(Path("art"))
    colors = {"a.jpg": (250, 10, 10), "sub/b.png": (0, 230, 0), "z.jpg": (3, 0, 0)}
    for name, color in colors.items():
        device.write_image(Path("pics", name), color)
    lines = run_shown("predict", "art", "pics", on_terminal=True).splitlines()
    good = [line for line in lines if line.endswith("%")]
    assert len({len(line) for line in good}) == 1
    classes = ("red", "green", "dark")
    places = {line.index(name) for line, name in zip(good, classes, strict=True)}
    assert places == {len("pics/sub/b.png  ")}


@pytest.mark.parametrize(
    ("on_terminal", "environment", "color"),
    [
        (True, {}, "\x1b[31m"),
        (True, {"NO_COLOR": "1"}, ""),
        (True, {"TERM": "dumb"}, ""),
        (False, {}, ""),
        (False, {"FORCE_COLOR": "1"}, ""),
    ],
)
def test_errors_have_a_color_where_it_is_shown(
    on_terminal: bool, environment: dict[str, str], color: str
) -> None:
    said = run_shown("predict", "artifact", "nowhere.jpg", on_terminal=on_terminal, **environment)
    end = "\x1b[0m" if color else ""
    assert said.startswith(f"{color}kdedge:{end} artifact does not exist, and no run in ")


def test_a_command_that_loads_pytorch_says_so_first(tmp_path: Path) -> None:
    command = ("distill", "demo", "--runs", str(tmp_path), "--device", "nope")
    assert run_shown(*command, on_terminal=False) == (
        "Loading PyTorch.\nkdedge: --device nope is not a device.\n  Use cpu, cuda or cuda:0.\n"
    )


# Threads, and what commands do before torch is loaded


COMPUTING = (
    *("teach", "train", "distill", "eval", "export", "bench", "predict", "pseudo-label", "suite"),
    *("demo", "check", "import"),
)


def run_in(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code in a process in whose environment the user has chosen nothing else."""
    names = {"OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS"}
    environment = {name: value for name, value in os.environ.items() if name not in names}
    return python("-W", "error", "-c", code, env={**environment, **variables}, check=True)


@pytest.fixture
def busy() -> Iterator[None]:
    """Processes that keep every core busy."""
    code = "print(flush=True)\nwhile True: pass"
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        for _ in range(os.cpu_count() or 1)
    ]
    for process in processes:
        process.stdout.readline()
    yield
    for process in processes:
        process.kill()
        process.communicate()


def test_what_computes_takes_a_number_of_threads() -> None:
    for name in COMPUTING:
        command = cli.get_command(click.Context(cli), name)
        assert [one.type.min for one in command.params if one.name == "threads"] == [1], name


def test_threads_are_chosen_before_torch_is_loaded() -> None:
    code = """if True:
        import os, sys
        from kdedge.cli.main import cli, run
        for name in cli.list_commands(None):
            cli.get_command(None, name)
        assert run(["train", "missing.yaml", *sys.argv[1:]]) == 2
        assert "torch" not in sys.modules
        names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
        print(*(os.environ.get(name, "-") for name in names))
        """
    number, policy, spin = run_in(code).stdout.split()
    assert int(number) >= 1
    assert (policy, spin) in {("PASSIVE", "-"), ("-", "10000")}
    given = run_in(code, OMP_NUM_THREADS="3", OMP_WAIT_POLICY="active")
    assert given.stdout.split() == ["3", "active", "-"]


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="this system does not count")
@pytest.mark.usefixtures("busy")
def test_a_busy_machine_is_said_once_with_what_to_do() -> None:
    """When the work begins, and not above the message of a wrong option."""
    call = (
        "from kdedge.cli.main import run\nrun({!r})\n"
        "print('work', file=__import__('sys').stderr, flush=True)\n"
        "from kdedge.api.arguments import need_training_packages as need\nneed('Training')"
    )
    said = run_in(call.format(["train", "missing.yaml"]), OMP_NUM_THREADS="2").stderr
    before, _, begun = said.partition("work\n")
    assert "Other processes" not in before
    assert begun.count("kdedge: warning: Other processes keep") == 1
    assert "Other processes" not in run_in(call.format(["train", "m", "--threads", "1"])).stderr


def test_a_run_tells_with_how_many_threads_it_was_trained(
    trained: Path, kdedge: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # restored afterwards
    before = torch.get_num_threads()
    command = ("train", "r.yaml", "--method", "coop", "--epochs", "1", "--runs", "runs")
    done = kdedge(*command, "--threads", "2")
    torch.set_num_threads(before)
    assert done.code == 0, done.err
    records = [json.loads(Path(f"runs/tiny/{n}/provenance.json").read_text()) for n in ("01", "03")]
    assert [record["threads"] for record in records] == [1, 2]
    again = kdedge(*command, "--resume")
    assert "runs/tiny/03 is already finished" in again.err  # the same run, whatever the threads


def test_a_distillation_leaves_threads_and_heap_as_they_were(
    trained: Path, kdedge: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setenv("KDEDGE_CHOSEN", "OMP_NUM_THREADS")
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    before = torch.get_num_threads()
    short = ("--set", "student.optim.epochs=1", "--set", "student.optim.n_workers=1")
    kdedge("distill", "r.yaml", *short, "--runs", "runs").succeeds()
    assert json.loads(Path("runs/tiny/03/provenance.json").read_text())["threads"] == 7
    assert torch.get_num_threads() == before
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        np.ones(1 << 24)  # 128 MiB, which the kernel clears each time
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults > 200  # huge pages
