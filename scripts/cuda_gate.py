#!/usr/bin/env python3
"""Checks what nvcc makes of cuda/*.cu, for machines without a GPU, and keeps docs/cuda-kernels.md.

    make cuda-gate               a line for each violation; exit 1 if there is one
    make cuda-gate WRITE=1       write the page anew
    scripts/cuda_gate.py --self-test

Every source is compiled for every architecture with warnings as errors, into a cubin and the report of `ptxas -v`.

    nvcc -cubin  ->  exit status       compiles without a warning
    ptxas -v     ->  registers,...     no kernel spills registers or has a stack frame, but for EXCEPTIONS
    the cubin    ->  instructions      tensor-core kernels have their REQUIREMENTS
    launches     ->  block, dynamic    every kernel is launched by some test; with the registers this gives the
                     shared memory     occupancy
    all of it    ->  the page          it is the one in docs/

Block sizes and dynamic shared memory are known to host code alone, so the emulated backend lists what it launches
(tests/cuda_on_cpu/launches.cc). Kernels go by short names, `attention_forward<64>`, which both compilers agree on.

Order below: the rules; compiling; ptxas' report; the cubin; names; launches; occupancy; checks; the page; self-test.
"""

import argparse
import collections
import pathlib
import re
import shlex
import struct
import subprocess
import sys
import tempfile
from typing import Dict, List, NamedTuple, Tuple

# ---- the rules -------------------------------------------------------------------------------------------------------


class Device(NamedTuple):
    """What a multiprocessor has (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability")."""

    gpu: str
    warps: int
    blocks: int
    registers: int
    shared_bytes: int


DEVICES = {
    "sm_80": Device("A100", warps=64, blocks=32, registers=65536, shared_bytes=164 * 1024),
    "sm_90": Device("H100, H200", warps=64, blocks=32, registers=65536, shared_bytes=228 * 1024),
}

WARNINGS_ARE_ERRORS = ["-Werror", "all-warnings"]

# Kernels that may spill or have a stack frame: short name (a regular expression for all of it), reason.
EXCEPTIONS = {
    r"attention_forward<ForwardPlan<128, \w+>, false>": "rows that do not begin on 16 bytes: odd head sizes, which no model "
    "that we know of has",
}

# By the low 12 bits of a 128-bit instruction. Neither cuobjdump nor nvdisasm comes with every toolkit.
OPCODES = {
    0x23C: "HMMA",  # tensor-core product of bf16
    0x83B: "LDSM",  # ldmatrix
    0xFAE: "LDGSTS",  # cp.async
    0xB1D: "BAR",  # barrier of the block
}


class Requirement(NamedTuple):
    """Instructions that some kernels of a source must have."""

    source: str
    names: str  # regular expression for a whole short name
    opcodes: Tuple[str, ...]


PRODUCTS = ("HMMA", "LDSM", "BAR")
COPIES = ("LDGSTS",)  # where rows are aligned to 16 bytes

REQUIREMENTS = [
    Requirement("attention_forward.cu", r"attention_forward<.*>", PRODUCTS),
    Requirement("attention_forward.cu", r"attention_forward<\w+<.*?>, true>", COPIES),
    Requirement("attention_backward.cu", r"attention_backward_(keys|queries)<.*>", PRODUCTS),
    Requirement("attention_backward.cu", r"attention_backward_(keys|queries)<\w+<.*?>, true\b.*>", COPIES),
    Requirement("symmetric.cu", r"matmul_symmetric_kernel<.*>", PRODUCTS),
    Requirement("symmetric.cu", r"matmul_symmetric_kernel<\d+, \w+, true, \w+>", COPIES),
]

PAGE = pathlib.Path("docs/cuda-kernels.md")


class Violation(Exception):
    """Something that makes going on pointless, in one line."""


# ---- compiling -------------------------------------------------------------------------------------------------------


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


# ---- the cubin -------------------------------------------------------------------------------------------------------

# ELF64, little-endian: the fields of the header and of a section's entry that are used here.
ELF_HEADER = struct.Struct("<40x Q 10x HHH")  # offset, entry size, number of section entries; which one holds names
ELF_SECTION = struct.Struct("<I 20x QQ 24x")  # name, offset, size
INSTRUCTION = struct.Struct("<Q 8x")


def read_sections(elf):
    """Name -> content."""
    table, entry_size, count, names = ELF_HEADER.unpack_from(elf)
    entries = [ELF_SECTION.unpack_from(elf, table + i * entry_size) for i in range(count)]
    name_table = entries[names][1]
    sections = {}
    for name, offset, size in entries:
        end = elf.index(b"\0", name_table + name)
        sections[elf[name_table + name : end].decode()] = elf[offset : offset + size]
    return sections


def count_opcodes(code):
    """How often each of OPCODES occurs."""
    counts = collections.Counter(word & 0xFFF for (word,) in INSTRUCTION.iter_unpack(code))
    return {name: counts[opcode] for opcode, name in OPCODES.items()}


def read_cubin(elf):
    """Symbol of a kernel -> its opcodes."""
    prefix = ".text."
    sections = read_sections(elf)
    return {name[len(prefix) :]: count_opcodes(code) for name, code in sections.items() if name.startswith(prefix)}


# ---- names -----------------------------------------------------------------------------------------------------------


def shorten(name):
    """A demangled name without what a reader knows."""
    for pattern, replacement in [
        (r"\(anonymous namespace\)::", ""),
        (r"\((?:\w|::)+\)(?=\d)", ""),  # of enums: (Access)1
        (r"__nv_bfloat16", "bf16"),
        (r"(?<=>) (?=>)", ""),
    ]:
        name = re.sub(pattern, replacement, name)
    return name


def short_names(symbols):
    """Symbol -> short name."""
    symbols = list(symbols)
    lines = subprocess.run(
        ["c++filt", "--no-params"], input="\n".join(symbols), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return dict(zip(symbols, map(shorten, lines)))


# ---- launches --------------------------------------------------------------------------------------------------------


class Launch(NamedTuple):
    dynamic_shared: int
    threads: int


def read_symbols(program):
    """Address -> symbol."""
    lines = subprocess.run(["nm", program], capture_output=True, text=True, check=True).stdout.splitlines()
    return {int(fields[0], 16): fields[2] for fields in map(str.split, lines) if len(fields) == 3}


def read_launches(text):
    """Short name of a kernel -> its launches. `text` is what tests/cuda_on_cpu/launches.cc wrote."""
    lines = [line.split() for line in text.splitlines()]
    symbols = {program: read_symbols(program) for program in {line[0] for line in lines}}
    launches = collections.defaultdict(set)
    for program, address, threads, dynamic_shared in lines:
        launches[symbols[program][int(address, 16)]].add(Launch(int(dynamic_shared), int(threads)))
    names = short_names(launches)
    return {names[symbol]: found for symbol, found in launches.items()}


def choose_launches(files):
    """Short name -> the launch that the page shows: the largest in the first file that has any."""
    chosen = {}
    for file in files:
        for name, launches in read_launches(file.read_text()).items():
            chosen.setdefault(name, max(launches))
    return chosen


# ---- occupancy -------------------------------------------------------------------------------------------------------


def round_up(value, unit):
    return -(-value // unit) * unit


class Occupancy(NamedTuple):
    blocks: int  # resident on a multiprocessor at once
    warps: int
    limit: str  # what keeps further ones away


def occupancy(device, launch, resources):
    """As cuda_occupancy.h of the toolkit reckons for these devices. Registers are given out to warps, 256 at a time,
    from four files of equal size; shared memory in pieces of 128 bytes, 1 KiB of each block for the system."""
    warps = round_up(launch.threads, 32) // 32
    warp_registers = round_up(resources.registers * 32, 256)
    shared = round_up(resources.static_shared + launch.dynamic_shared + 1024, 128)
    limits = {
        "blocks": device.blocks,
        "warps": device.warps // warps,
        "registers": 4 * (device.registers // 4 // warp_registers) // warps if warp_registers else device.blocks,
        "shared memory": device.shared_bytes // shared,
    }
    blocks = min(limits.values())
    return Occupancy(blocks, blocks * warps, ", ".join(name for name in limits if limits[name] == blocks))


# ---- checks ----------------------------------------------------------------------------------------------------------


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


def check_page(page, text):
    """The page is compared only with what the same nvcc makes: another one allots registers differently."""
    try:
        old = page.read_text()
    except FileNotFoundError:
        old = ""
    if old == text:
        return
    if compiler_line(old) and compiler_line(old) != compiler_line(text):
        print(f"cuda-gate: {page} is not compared: it was made with another nvcc")
        return
    lines = zip(old.splitlines() + [None], text.splitlines() + [None])
    number = next((n for n, (was, now) in enumerate(lines, start=1) if was != now), 1)
    yield f"{page}:{number}: out of date: `make cuda-gate WRITE=1` writes it anew"


def compiler_line(text):
    return next((line for line in text.splitlines() if line.startswith("Compiler: ")), "")


# ---- the page --------------------------------------------------------------------------------------------------------

INTRODUCTION = """\
# CUDA kernels

What nvcc makes of each kernel of `cuda/*.cu`. Generated: `make cuda-gate WRITE=1` writes this page, `make cuda-gate`
checks it, and that no kernel spills registers or has a stack frame.

Compiler: {compiler}

* **threads, dynamic**: of a block, and bytes of its shared memory that the launch asks for, as launched by the emulated
  backend: in a training step of GPT-2's width and context where that launches the kernel, otherwise in the tests of the
  ops. Of several launches the largest.
* **registers** of a thread, **static** bytes of shared memory: from `ptxas -v`.
* **occupancy**: blocks that a multiprocessor holds at once, their share of its {warps} warps, and what keeps further
  blocks away. A theoretical figure: none of this has been measured.
* Two figures in one cell are of {architectures}.
"""


def render_page(kernels, launches, compiler):
    architectures = " and ".join(f"{name} ({device.gpu})" for name, device in DEVICES.items())
    warps = DEVICES["sm_80"].warps
    parts = [INTRODUCTION.format(compiler=compiler, warps=warps, architectures=architectures)]
    for source in sorted({kernel.source for kernel in kernels}):
        parts.append(f"## {source}\n\n" + render_source([k for k in kernels if k.source == source], launches))
    parts.append(render_opcodes(kernels))
    if EXCEPTIONS:
        parts.append(render_exceptions(kernels))
    return "\n".join(parts)


def render_table(columns, rows):
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows]) + "\n"


def per_architecture(values):
    """One figure if they are equal."""
    values = list(map(str, values))
    return values[0] if len(set(values)) == 1 else " / ".join(values)


def render_source(kernels, launches):
    columns = ["kernel", "threads", "dynamic", "static", "registers", *(f"occupancy {name}" for name in DEVICES)]
    return render_table(columns, [kernel_row(k, launches.get(k.name)) for k in kernels if k.is_kernel])


def kernel_row(kernel, launch):
    taken = kernel.resources.values()
    row = [f"`{kernel.name}`", launch.threads if launch else "", launch.dynamic_shared if launch else ""]
    row.append(per_architecture(one.static_shared for one in taken))
    row.append(per_architecture(one.registers for one in taken))
    return row + [occupancy_cell(DEVICES[name], launch, one) for name, one in kernel.resources.items()]


def occupancy_cell(device, launch, resources):
    if not launch:
        return ""
    found = occupancy(device, launch, resources)
    return f"{found.blocks} blocks, {100 * found.warps / device.warps:.0f} %, {found.limit}"


def render_opcodes(kernels):
    columns = ["kernel", "HMMA (tensor core)", "LDSM (ldmatrix)", "LDGSTS (cp.async)", "BAR (barrier)"]
    rows = []
    for kernel in [k for r in REQUIREMENTS if r.opcodes == PRODUCTS for k in kernels_under(r, kernels)]:
        counts = kernel.opcodes.values()
        rows.append([f"`{kernel.name}`", *(per_architecture(one[name] for one in counts) for name in OPCODES.values())])
    return "## Instructions of the tensor-core kernels\n\nCounted in the cubin, not as executed.\n\n" + render_table(
        columns, rows
    )


def render_exceptions(kernels):
    rows = []
    for kernel in filter(exception_for, kernels):
        taken = kernel.resources.values()
        sizes = [per_architecture(one.stack for one in taken), per_architecture(one.spilled for one in taken)]
        rows.append([f"`{kernel.name}`", *sizes, EXCEPTIONS[exception_for(kernel)]])
    return "## Exceptions\n\n" + render_table(["kernel", "stack frame", "spilled bytes", "why"], rows)


# ---- self-test -------------------------------------------------------------------------------------------------------

EXAMPLE_REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z1kPf' for 'sm_80'
ptxas info    : Function properties for _Z1kPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 1 barriers, 32 bytes smem, 372 bytes cmem[0]
ptxas info    : Compile time = 3.302 ms
ptxas info    : Compiling entry function '_Z5largePf' for 'sm_80'
ptxas info    : Function properties for _Z5largePf
    160 bytes stack frame, 16 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers, 160 bytes cumulative stack size
ptxas info    : Function properties for _Z6calledPf
    8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
"""



def example_cubin(sections):
    """An ELF file as far as read_sections looks."""
    sections = {**sections, ".shstrtab": b"".join(name.encode() + b"\0" for name in [*sections, ".shstrtab"])}
    contents, entries = b"", b""
    for name, content in sections.items():
        place = sections[".shstrtab"].index(name.encode() + b"\0")
        entries += ELF_SECTION.pack(place, ELF_HEADER.size + len(contents), len(content))
        contents += content
    table = ELF_HEADER.size + len(contents)
    return ELF_HEADER.pack(table, ELF_SECTION.size, len(sections), len(sections) - 1) + contents + entries


def example_code(*opcodes):
    """Instructions whose other bits are all set."""
    return b"".join(INSTRUCTION.pack(~0xFFF & 0xFFFFFFFFFFFFFFFF | opcode) for opcode in opcodes)


def example_kernel(source="symmetric.cu", name="matmul_symmetric_kernel<64>", stack=0, spilled=0, missing=()):
    resources = Resources("_Z", registers=100, static_shared=0, stack=stack, spilled=spilled)
    opcodes = {opcode: int(opcode not in missing) for opcode in OPCODES.values()}
    both = DEVICES.keys()
    return Kernel(pathlib.Path(source), name, dict.fromkeys(both, resources), dict.fromkeys(both, opcodes))


def expect(got, wanted):
    if got != wanted:
        raise AssertionError(f"got {got!r}, wanted {wanted!r}")


def test_ptxas_report():
    expect(
        read_ptxas_report(EXAMPLE_REPORT),
        [
            Resources("_Z1kPf", registers=12, static_shared=32, stack=0, spilled=0),
            Resources("_Z5largePf", registers=255, static_shared=0, stack=160, spilled=40),
            Resources("_Z6calledPf", registers=0, static_shared=0, stack=8, spilled=0),
        ],
    )


def test_cubin():
    code = example_code(0x23C, 0x83B, 0x23C, 0x918)
    cubin = example_cubin({".text.a": code, ".nv.info.a": b"\x3c\x02", ".text.b": example_code(0xB1D)})
    expect(
        read_cubin(cubin),
        {
            "a": {"HMMA": 2, "LDSM": 1, "LDGSTS": 0, "BAR": 0},
            "b": {"HMMA": 0, "LDSM": 0, "LDGSTS": 0, "BAR": 1},
        },
    )


def test_names():
    kernel = "23matmul_symmetric_kernelILi128ELb0EfEEvNS_9SymmetricE"
    symbols = {
        "_ZN45_GLOBAL__N__cf054b62_12_symmetric_cu_2d394d24" + kernel: "matmul_symmetric_kernel<128, false, float>",
        "_ZN12_GLOBAL__N_1" + kernel: "matmul_symmetric_kernel<128, false, float>",  # as g++ has it
        "_Z5sweepILi8EJ4ViewI13__nv_bfloat16L6Access1EEEEvDpT0_": "sweep<8, View<bf16, 1>>",
        "_Z1kPf": "k",
    }
    expect(short_names(symbols), symbols)
    expect(sorted(["f<128>", "f<64>", "e"], key=in_order), ["e", "f<64>", "f<128>"])


def test_occupancy():
    """Against cudaOccMaxActiveBlocksPerMultiprocessor of CUDA 13.0's cuda_occupancy.h."""
    for name, threads, registers, static, dynamic, wanted in [
        ("sm_80", 128, 123, 0, 23040, Occupancy(4, 16, "registers")),
        ("sm_80", 256, 32, 1024, 0, Occupancy(8, 64, "warps, registers")),
        ("sm_80", 128, 240, 0, 65536, Occupancy(2, 8, "registers, shared memory")),
        ("sm_90", 128, 240, 0, 65536, Occupancy(2, 8, "registers")),
        ("sm_80", 96, 40, 0, 0, Occupancy(16, 48, "registers")),
        ("sm_90", 32, 24, 16, 0, Occupancy(32, 32, "blocks")),
        ("sm_80", 128, 65, 0, 49152, Occupancy(3, 12, "shared memory")),
        ("sm_90", 128, 65, 0, 49152, Occupancy(4, 16, "shared memory")),
        ("sm_90", 160, 100, 0, 0, Occupancy(3, 15, "registers")),
    ]:
        resources = Resources("", registers, static, stack=0, spilled=0)
        expect(occupancy(DEVICES[name], Launch(dynamic, threads), resources), wanted)


def test_complaints():
    said = """\
cuda/loss.cu(12): error #177-D: variable "unused" was declared but never referenced
      int unused;
          ^

Remark: The warnings can be suppressed with "-diag-suppress <warning-number>"

cuda/loss.cu(40): error: identifier "lane" is undefined
ptxas fatal   : Unresolved extern function
2 errors detected in the compilation of "cuda/loss.cu".
"""
    lines = said.splitlines()
    expect(complaints(pathlib.Path("cuda/loss.cu"), said), [lines[0], lines[6], "cuda/loss.cu: " + lines[7]])


def test_registers():
    expect(list(check_registers([example_kernel()])), [])
    expect(len(list(check_registers([example_kernel(spilled=4)]))), 1)
    expect(len(list(check_registers([example_kernel(stack=4)]))), 1)


def test_exceptions():
    EXCEPTIONS["matmul_.*"] = "for the test"
    try:
        expect(list(check_registers([example_kernel(spilled=4)])), [])
        expect(len(list(check_registers([example_kernel()]))), 1)
    finally:
        del EXCEPTIONS["matmul_.*"]


def test_opcodes():
    names = {
        "attention_forward.cu": ["attention_forward<ForwardPlan<64, false>, true>"],
        "attention_backward.cu": [
            "attention_backward_keys<BackwardPlan<64, 2>, true, 3>",
            "attention_backward_queries<BackwardPlan<64, 2>, true>",
        ],
        "symmetric.cu": ["matmul_symmetric_kernel<64, false, true, bf16>"],
    }
    good = [example_kernel(source, name) for source in names for name in names[source]]
    unaligned = example_kernel("symmetric.cu", "matmul_symmetric_kernel<64, true, false, float>", missing=COPIES)
    expect(list(check_opcodes([*good, unaligned])), [])
    expect(len(list(check_opcodes(good[1:]))), 2)
    for kernel in good:
        for opcode in OPCODES.values():
            bad = example_kernel(kernel.source.name, kernel.name, missing=[opcode])
            expect(len(list(check_opcodes([*good, bad]))), 1)


def test_page():
    with tempfile.TemporaryDirectory() as folder:
        page, text = pathlib.Path(folder, "page.md"), "Compiler: nvcc 13\n| `k` | 36 |\n"
        expect(len(list(check_page(page, text))), 1)
        page.write_text(text)
        expect(list(check_page(page, text)), [])
        page.write_text(text.replace("36", "35"))
        expect([line.split(":")[1] for line in check_page(page, text)], ["2"])


def test_launches():
    kernel = example_kernel()
    expect(list(check_launches([kernel], {kernel.name: Launch(0, 128)})), [])
    expect(len(list(check_launches([kernel], {}))), 1)
    expect(len(list(check_launches([kernel], {kernel.name: Launch(0, 128), "other": Launch(0, 32)}))), 1)
    expect(len(list(check_launches([kernel], {kernel.name: Launch(200 * 1024, 128)}))), 1)


def self_test():
    tests = [test for name, test in globals().items() if name.startswith("test_")]
    EXCEPTIONS.clear()  # the tests' kernels are none of ours
    for test in tests:
        test()
    print(f"cuda-gate: {len(tests)} self-tests passed")


# ---- command line ----------------------------------------------------------------------------------------------------


def parse_arguments():
    parser = argparse.ArgumentParser(description="Checks what nvcc makes of cuda/*.cu; see the head of this file.")
    parser.add_argument("--sources", nargs="*", type=pathlib.Path, help="cuda/*.cu")
    parser.add_argument("--nvcc", default="nvcc", help="the compiler")
    parser.add_argument("--flags", default="", help="its flags, as one argument")
    parser.add_argument("--build", type=pathlib.Path, default="build/cuda-gate", help="folder for cubins and reports")
    parser.add_argument("--launches", nargs="*", type=pathlib.Path, default=[], help="lists of launches, best first")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE}")
    parser.add_argument("--self-test", action="store_true", help="check this script")
    return parser.parse_args()


def compiler_version(nvcc):
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return "nvcc " + re.search(r"release .*", said)[0]


def compile_all(options):
    """The kernels of all sources, and what nvcc had against some."""
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
    page = render_page(kernels, launches, compiler_version(options.nvcc))
    if options.write:
        PAGE.write_text(page)
    checks = [
        check_registers(kernels),
        check_opcodes(kernels),
        check_launches(kernels, launches),
        check_page(PAGE, page),
    ]
    print(f"cuda-gate: {len(kernels)} kernels of {len(options.sources)} sources for {', '.join(DEVICES)}")
    return [line for check in checks for line in check]


def main():
    options = parse_arguments()
    if options.self_test:
        return self_test()
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
