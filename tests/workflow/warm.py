"""Commands in processes that are forked from a warm one.

Importing PyTorch and Snakemake takes longer than planning a small study. Of the project itself
nothing is imported before: each command has the code of the copy that it is run in.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

IMPORTED = ["torch", "pandas", "pyarrow.parquet", "snakemake.cli", "snakemake.api"]
IMPORTED += ["snakemake_executor_plugin_slurm", "snakemake.report"]
# The last is what an optimizer imports when the first one is made.
IMPORTED += ["matplotlib.pyplot", "seaborn", "safetensors.torch", "torch._dynamo"]


def run(folder: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m module …` in a folder, with the code that is there; its output as text."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with tempfile.TemporaryDirectory() as temporary:
        files = [os.path.join(temporary, name) for name in ("output", "errors")]
        process = context.Process(target=_command, args=(str(folder), module, arguments, files))
        process.start()
        process.join(600)
        assert process.exitcode is not None, f"{module} {' '.join(arguments)} does not end"
        output, errors = (Path(file).read_text(encoding="utf-8") for file in files)
    return subprocess.CompletedProcess([module, *arguments], process.exitcode, output, errors)


def _command(folder: str, module: str, arguments: tuple[str, ...], files: list[str]) -> None:
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY), number)
    os.chdir(folder)
    os.environ |= {"PYTHONPATH": folder, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    # Snakemake's own listings of jobs, unless a test asks for the display.
    os.environ.setdefault("ETRM_TERMINAL", "snakemake")
    sys.path.insert(0, folder)
    sys.argv = [module, *arguments]
    from snakemake.script import PythonScript

    PythonScript.execute_script = _forked
    for name in [name for name in sys.modules if name.split(".")[0] == "etrm"]:
        del sys.modules[name]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _forked(self: object, name: str, edit: bool = False) -> None:
    """A script of a job in a process forked from Snakemake's, instead of a new interpreter."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            runpy.run_path(name, run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if code:
        raise subprocess.CalledProcessError(code, name)
