"""The command line in real processes: exit codes, what is printed where, and how quickly."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import click
import pytest

from kdedge.cli import main as entry
from kdedge.cli.main import cli, run

ROOT = Path(__file__).parents[2]


def kdedge(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kdedge", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def run_python(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


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


def test_help_takes_less_than_half_a_second():
    fastest = min(_seconds("--help") for _ in range(3))
    assert fastest < 0.5


def _seconds(*arguments: str) -> float:
    """Time on a CPU, which other processes do not lengthen."""
    before = os.times()
    assert kdedge(*arguments).returncode == 0
    after = os.times()
    user, system = (after[i] - before[i] for i in (2, 3))  # of child processes
    return user + system


def test_help_loads_neither_torch_nor_a_command_nor_the_recipe_schema():
    done = run_python("""
        import sys
        from kdedge.cli.main import run
        code = run(["--help"])
        heavy = {"torch", "numpy", "PIL", "pydantic", "ruamel", "open_clip", "rich"}
        loaded = {name for name in sys.modules if name.startswith("kdedge.cli.")}
        loaded = {name for name in loaded if not name.startswith("kdedge.cli._")}
        print(sorted(heavy & set(sys.modules)), sorted(loaded), code, file=sys.stderr)
    """)
    assert done.stderr.strip() == "[] ['kdedge.cli.main'] 0"


def test_no_commands_help_loads_torch():
    done = run_python("""
        import contextlib, io, sys
        import click
        from kdedge.cli.main import cli, run
        for name in cli.list_commands(click.Context(cli)):
            with contextlib.redirect_stdout(io.StringIO()) as out:
                code = run([name, "--help"])
            heavy = {"torch", "torchvision", "open_clip", "onnx", "onnxruntime"} & set(sys.modules)
            print(name, code, sorted(heavy), bool(out.getvalue()))
    """)
    lines = done.stdout.splitlines()
    assert len(lines) >= 20
    assert [line.partition(" ")[2] for line in lines] == ["0 [] True"] * len(lines), done.stderr


def test_doctor_examines_a_machine_whose_numpy_is_broken():
    done = run_python("""
        import sys
        sys.modules["numpy"] = None
        from kdedge.cli.main import run
        sys.exit(run(["doctor"]))
    """)
    assert done.returncode == 0
    assert done.stdout.startswith("kdedge ")


def test_importing_kdedge_loads_nothing_but_itself():
    done = run_python("""
        import sys
        before = set(sys.modules)
        import kdedge
        print(sorted(set(sys.modules) - before))
    """)
    assert done.stdout.strip() == "['kdedge']"


@pytest.mark.parametrize("name", cli.list_commands(click.Context(cli)))
def test_every_command_has_one_line_in_the_help_and_a_help_of_its_own(name):
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    short = entry.first_line(Path(sys.modules[f"kdedge.cli.{name.replace('-', '_')}"].__file__))
    assert short.endswith(".")
    assert f"  {name}" in kdedge("--help-all").stdout
    done = kdedge(name, "-h")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: kdedge {name}")


def test_an_unknown_command_is_a_usage_error_with_the_nearest_name():
    done = kdedge("doctr")
    assert (done.returncode, done.stdout) == (2, "")
    assert 'No such command "doctr". Did you mean doctor?' in done.stderr


def test_an_unknown_option_is_a_usage_error_with_the_nearest_name():
    done = kdedge("doctor", "--jsno")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--json" in done.stderr.splitlines()[-1]


def test_no_command_at_all_is_a_usage_error_that_shows_the_help():
    done = kdedge()
    assert (done.returncode, done.stdout) == (2, "")
    assert "Commands:" in done.stderr


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
        ("raise KeyboardInterrupt", 130, "kdedge: interrupted.\n"),
        ("raise click.Abort", 130, "kdedge: interrupted.\n"),
        ("sys.exit(9)", 9, ""),
    ],
)
def test_an_error_is_its_message_and_its_exit_code(raises, code, message):
    done = run_python(RAISE.format(raises=raises))
    assert (done.returncode, done.stdout, done.stderr) == (code, "", message)


@pytest.mark.parametrize(
    ("signal", "code"), [("KeyboardInterrupt()", 130), ("errors.Terminated()", 143)]
)
def test_a_signal_in_the_import_of_an_extension_is_no_missing_package(signal, code):
    # What pybind11 raises from an exception, any exception, in a module's initialization
    raises = f"""failed = ImportError("initialization failed")
        failed.__cause__ = {signal}
        raise errors.MissingPackage("matplotlib", extra="report", purpose="A report") from failed"""
    done = run_python(RAISE.format(raises=raises))
    assert (done.returncode, done.stderr) == (code, "kdedge: interrupted.\n")


def test_a_signal_while_pydantic_writes_json_is_no_bug():
    raises = """from pathlib import Path
        from pydantic import RootModel

        class Interrupted(type(Path())):
            def __str__(self):
                raise KeyboardInterrupt

        RootModel[Path].model_construct(Interrupted()).model_dump_json()"""
    done = run_python(RAISE.format(raises=raises))
    assert (done.returncode, done.stderr) == (130, "kdedge: interrupted.\n")


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
    ],
)
def test_running_out_of_memory_is_no_bug_and_has_a_remedy(raises):
    done = run_python(RAISE.format(raises=raises))
    assert done.returncode == 7
    assert done.stderr.startswith("kdedge: memory ran out: ")
    assert "--set optim.batch_size" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_is_no_bug():
    done = run_python(RAISE.format(raises="raise OSError(errno.ENOSPC, 'No space', 'x.bin')"))
    assert done.returncode == 7
    assert done.stderr.startswith("kdedge: the disk is full while writing x.bin.\n")


@pytest.mark.parametrize(
    "arguments",
    [
        *((command, "x" * 300) for command in ("bench", "export", "report")),
        ("report", "--output", "x" * 300),
    ],
)
def test_a_name_that_the_system_refuses_is_no_bug(arguments, capfd):
    pytest.importorskip("torch")
    from kdedge.cli.main import run

    assert run(arguments) == 3
    message = capfd.readouterr().err
    assert message.startswith("kdedge: xxx")
    assert message.endswith(" cannot be used: file name too long.\n")


def test_a_path_that_may_not_be_read_is_no_bug():
    done = run_python(RAISE.format(raises="raise PermissionError(errno.EACCES, 'No', 'x.bin')"))
    assert (done.returncode, done.stderr) == (3, "kdedge: x.bin cannot be used: no.\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_result_that_does_not_fit_on_the_disk_is_an_error():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "kdedge", "methods"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
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
        "from pathlib import Path; from kdedge.runs.folder import RunFolder\n"
        f"        with RunFolder(Path({str(tmp_path)!r}), 'student').logging_to_file():\n"
        "            raise ValueError('x')"
    )
    done = run_python(RAISE.format(raises=raises))
    assert done.stderr.endswith(f"The traceback is in {log}\n")
    assert "ValueError: x" in log.read_text()


def test_a_closed_pipe_ends_quietly():
    process = subprocess.Popen(
        [sys.executable, "-m", "kdedge", "methods"],
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


def test_json_results_are_one_object_on_stdout():
    for name in ("doctor", "methods"):
        done = kdedge(name, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        assert isinstance(json.loads(done.stdout), dict)


def test_a_warning_is_told_once_a_command_and_a_message_each_time(capsys):
    logger = logging.getLogger("kdedge.data")
    for _ in range(2):
        assert run(["methods"]) == 0
        for _ in range(2):
            logger.warning("%s is not there.", "classnames.txt")
            logger.info("working")
    warning = "kdedge: warning: classnames.txt is not there.\n"
    assert capsys.readouterr().err == (warning + "working\n" + "working\n") * 2
