#!/usr/bin/env python3
"""Checks what nvcc makes of cuda/*.cu, for machines without a GPU.

    make cuda-gate                           a table of the kernels, a line for each violation; exit 1 if there is one
    python3 scripts/cuda_gate --self-test

Every source is compiled for every architecture with warnings as errors, into a cubin and the report of `ptxas -v`.

    compiling.py   nvcc -cubin   ->  exit status       compiles without a warning
                   ptxas -v      ->  registers,...     no kernel spills registers or has a stack frame, but for EXCEPTIONS
    cubin.py       the cubin     ->  instructions      tensor-core kernels have their REQUIREMENTS
    launches.py    launches      ->  block, dynamic    every kernel is launched by some test; with the registers this
                                     shared memory     gives the occupancy

EXCEPTIONS and REQUIREMENTS are in rules.py, the checks in checks.py. Block sizes and dynamic shared memory are known to
host code alone, so the emulated backend lists what it launches (tests/cuda_on_cpu/launches.cc). Kernels go by short
names, `attention_forward<64>`, which both compilers agree on.
"""

import argparse
import pathlib
import shlex
import sys

import self_test
from checks import Violation, check_launches, check_opcodes, check_registers, read_kernels
from compiling import compile_source, plan_compilation
from launches import DEVICES, choose_launches, occupancy

# ---- the table -------------------------------------------------------------------------------------------------------


def per_architecture(values):
    """One figure if they are equal."""
    values = list(map(str, values))
    return values[0] if len(set(values)) == 1 else "/".join(values)


def kernel_row(kernel, launch):
    """Registers of a thread; bytes of shared memory, static and as launched; threads and resident blocks."""
    taken = kernel.resources
    row = [per_architecture(one.registers for one in taken.values())]
    row.append(per_architecture(one.static_shared for one in taken.values()))
    if not launch:
        return [*row, "", "", ""]
    blocks = per_architecture(occupancy(DEVICES[name], launch, one).blocks for name, one in taken.items())
    return [*row, launch.dynamic_shared, launch.threads, blocks]


def print_table(kernels, launches):
    """Two figures in one cell are of the two architectures. Of several launches of a kernel the largest counts."""
    line = "{:>9} {:>7} {:>8} {:>8} {:>9}  {}"
    print(line.format("registers", "static", "dynamic", "threads", "blocks/SM", "kernel"))
    for kernel in kernels:
        if kernel.is_kernel:
            print(line.format(*kernel_row(kernel, launches.get(kernel.name)), f"{kernel.source}: {kernel.name}"))


# ---- command line ----------------------------------------------------------------------------------------------------


def parse_arguments():
    parser = argparse.ArgumentParser(description="Checks what nvcc makes of cuda/*.cu; see the head of scripts/cuda_gate/__main__.py.")
    parser.add_argument("--sources", nargs="*", type=pathlib.Path, help="cuda/*.cu")
    parser.add_argument("--nvcc", default="nvcc", help="the compiler")
    parser.add_argument("--flags", default="", help="its flags, as one argument")
    parser.add_argument("--build", type=pathlib.Path, default="build/cuda-gate", help="folder for cubins and reports")
    parser.add_argument("--launches", nargs="*", type=pathlib.Path, default=[], help="lists of launches, best first")
    parser.add_argument("--self-test", action="store_true", help="check this script")
    return parser.parse_args()


def compile_all(options):
    """The kernels of all sources, and what nvcc says against some."""
    options.build.mkdir(parents=True, exist_ok=True)
    kernels, problems = [], []
    for source in options.sources:
        flags = shlex.split(options.flags)
        jobs = [plan_compilation(source, name, options.nvcc, flags, options.build) for name in DEVICES]
        found = compile_source(jobs)
        problems += found
        if not found:
            kernels += read_kernels(jobs)
    return kernels, problems


def gate(options):
    """The violations."""
    kernels, problems = compile_all(options)
    if problems:
        return problems
    launches = choose_launches(options.launches)
    print_table(kernels, launches)
    print(f"cuda-gate: {len(kernels)} kernels of {len(options.sources)} sources for {', '.join(DEVICES)}")
    checks = [check_registers(kernels), check_opcodes(kernels), check_launches(kernels, launches)]
    return [line for check in checks for line in check]


def main():
    options = parse_arguments()
    if options.self_test:
        return self_test.run()
    try:
        violations = gate(options)
    except Violation as violation:
        violations = [str(violation)]
    for line in violations:
        print(f"cuda-gate: {line}")
    print(f"cuda-gate: {len(violations) or 'no'} violation{'s' * (len(violations) != 1)}")
    sys.exit(bool(violations))


if __name__ == "__main__":
    main()
