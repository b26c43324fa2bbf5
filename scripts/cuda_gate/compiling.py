"""Runs nvcc: a cubin and the report of `ptxas -v` for every source and architecture."""

import pathlib
import re
import shlex
import subprocess
from typing import List, NamedTuple

WARNINGS_ARE_ERRORS = ["-Werror", "all-warnings"]


class Compilation(NamedTuple):
    """One source for one architecture: the files that nvcc makes, side by side in the build folder."""

    source: pathlib.Path
    architecture: str
    cubin: pathlib.Path
    command: List[str]

    @property
    def report(self):
        """The command, and below it what nvcc and ptxas said."""
        return self.cubin.with_suffix(".txt")

    @property
    def dependencies(self):
        return self.cubin.with_suffix(".d")


def plan_compilation(source, architecture, nvcc, flags, build):
    cubin = build / f"{source.stem}.{architecture}.cubin"
    files = ["-MD", "-MF", str(cubin.with_suffix(".d")), "-o", str(cubin), str(source)]
    command = [nvcc, "-cubin", f"-arch={architecture}", *flags, *WARNINGS_ARE_ERRORS, "-Xptxas", "-v", *files]
    return Compilation(source, architecture, cubin, command)


def is_up_to_date(job):
    if not (job.cubin.exists() and job.report.exists() and job.dependencies.exists()):
        return False
    if job.report.read_text().split("\n", 1)[0] != shlex.join(job.command):
        return False
    made = job.cubin.stat().st_mtime
    files = job.dependencies.read_text().replace("\\\n", " ").split(":", 1)[1].split()
    return all(pathlib.Path(file).exists() and pathlib.Path(file).stat().st_mtime <= made for file in files)


def compile_source(jobs):
    """All architectures of a source at once. Returns what is wrong with it, each line once."""
    running = []
    for job in jobs:
        if not is_up_to_date(job):
            job.cubin.unlink(missing_ok=True)
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            running.append((job, subprocess.Popen(job.command, **pipes)))
    problems = []
    for job, process in running:
        said = process.communicate()[0]
        job.report.write_text(shlex.join(job.command) + "\n" + said)
        if process.returncode:
            problems += complaints(job.source, said) or [f"{job.source}: nvcc ended with status {process.returncode}"]
    return list(dict.fromkeys(problems))


def complaints(source, said):
    """The lines of nvcc's output that say what is wrong, without the excerpts and instantiations around them."""
    lines = [line for line in said.splitlines() if re.search(r"\b(error|warning|fatal)\b( #\S+)?\s*:", line)]
    return [f"{source}: {line}" if line.startswith(("ptxas", "nvcc")) else line for line in lines]


# ---- ptxas' report ---------------------------------------------------------------------------------------------------


class Resources(NamedTuple):
    """What a function takes on one architecture. A device function that was not inlined has no registers of its own."""

    symbol: str
    registers: int
    static_shared: int
    stack: int
    spilled: int  # bytes, stores and loads


def read_ptxas_report(text):
    """
    ptxas info    : Compiling entry function '_Z1kPf' for 'sm_80'
    ptxas info    : Function properties for _Z1kPf
        0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
    ptxas info    : Used 12 registers, used 1 barriers, 32 bytes smem, 372 bytes cmem[0]
    ptxas info    : Function properties for _Z6calledPf
        ...
    """
    found, kernel, function = {}, None, None
    for line in text.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)'", line):
            kernel = match[1]
        elif match := re.search(r"Function properties for (\S+)", line):
            function = match[1]
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            stack, stores, loads = map(int, match.groups())
            found[function] = Resources(function, 0, 0, stack, stores + loads)
        elif match := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            found[kernel] = found[kernel]._replace(
                registers=int(match[1]), static_shared=int(shared[1]) if shared else 0
            )
    return list(found.values())
