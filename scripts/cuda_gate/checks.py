"""The kernels of all sources, and what is wrong with them."""

import collections
import pathlib
import re
from typing import Dict, NamedTuple

from compiling import Resources, read_ptxas_report
from cubin import read_cubin, short_names
from launches import DEVICES, occupancy
from rules import EXCEPTIONS, REQUIREMENTS


class Violation(Exception):
    """Something that makes going on pointless, in one line."""


class Kernel(NamedTuple):
    """A kernel, or a device function that was not inlined; by architecture what it takes and has."""

    source: pathlib.Path
    name: str
    resources: Dict[str, Resources]
    opcodes: Dict[str, Dict[str, int]]

    @property
    def is_kernel(self):
        return all(self.opcodes.values())


def read_kernels(jobs):
    """The kernels of a source, in its compiler's order."""
    resources, opcodes = collections.defaultdict(dict), collections.defaultdict(dict)
    for job in jobs:
        functions = read_ptxas_report(job.report.read_text())
        code = read_cubin(job.cubin.read_bytes())
        names = short_names(function.symbol for function in functions)
        for function in functions:
            name = names[function.symbol]
            if job.architecture in resources[name]:
                raise Violation(f"{job.source}: two kernels have the short name {name}: rename one")
            resources[name][job.architecture] = function
            opcodes[name][job.architecture] = code.get(function.symbol, {})
    return [Kernel(jobs[0].source, name, resources[name], opcodes[name]) for name in sorted(resources, key=in_order)]


def in_order(name):
    """Sorts numbers in names as numbers."""
    return [(not part.isdigit(), int(part) if part.isdigit() else part) for part in re.split(r"(\d+)", name) if part]


def exception_for(kernel):
    return next((pattern for pattern in EXCEPTIONS if re.fullmatch(pattern, kernel.name)), None)


def overflow_of(resources):
    """What a function keeps in memory for want of registers, in words; nothing if all is well."""
    spilled = [f"spills {resources.spilled} bytes"] * bool(resources.spilled)
    stack = [f"has a stack frame of {resources.stack}"] * bool(resources.stack)
    return " and ".join(spilled + stack)


def check_registers(kernels):
    needed = set()
    for kernel in kernels:
        found = [f"{name} {overflow_of(taken)}" for name, taken in kernel.resources.items() if overflow_of(taken)]
        if found and exception_for(kernel):
            needed.add(exception_for(kernel))
        elif found:
            yield f"{kernel.source}: {kernel.name}: {'; '.join(found)}"
    for pattern in EXCEPTIONS:
        if pattern not in needed:
            yield f"EXCEPTIONS: nothing that matches {pattern} spills or has a stack frame any more: take it out"


def kernels_under(requirement, kernels):
    return [k for k in kernels if k.source.name == requirement.source and re.fullmatch(requirement.names, k.name)]


def check_opcodes(kernels):
    for requirement in REQUIREMENTS:
        matching = kernels_under(requirement, kernels)
        if not matching:
            yield f"REQUIREMENTS: no kernel of {requirement.source} is called {requirement.names}"
        for kernel in matching:
            counts = kernel.opcodes.items()
            missing = [f"{code} on {name}" for name, has in counts for code in requirement.opcodes if not has[code]]
            if missing:
                yield f"{kernel.source}: {kernel.name}: has no {', '.join(missing)}"


def check_launches(kernels, launches):
    compiled = {kernel.name for kernel in kernels}
    for kernel in kernels:
        if kernel.is_kernel and kernel.name not in launches:
            yield f"{kernel.source}: {kernel.name}: no test launches it"
    for name in launches:
        if name not in compiled:
            yield f"{name}: launched on the CPU, but nvcc made no such kernel"
    for kernel in kernels:
        for architecture, taken in kernel.resources.items():
            launch = launches.get(kernel.name)
            if launch and not occupancy(DEVICES[architecture], launch, taken).blocks:
                yield (
                    f"{kernel.source}: {kernel.name}, {architecture}: a block of {launch.threads} threads and "
                    f"{launch.dynamic_shared} bytes of dynamic shared memory fits no multiprocessor"
                )
