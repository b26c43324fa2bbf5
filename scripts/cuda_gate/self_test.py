"""Checks of the gate itself, on examples."""

import pathlib

from checks import Kernel, check_launches, check_opcodes, check_registers, in_order
from compiling import Resources, complaints, read_ptxas_report
from cubin import ELF_HEADER, ELF_SECTION, INSTRUCTION, OPCODES, read_cubin, short_names
from launches import DEVICES, Launch, Occupancy, occupancy
from rules import COPIES, EXCEPTIONS

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


def expect(found, expected):
    if found != expected:
        raise AssertionError(f"expected {expected!r}, found {found!r}")


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
    for name, threads, registers, static, dynamic, expected in [
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
        expect(occupancy(DEVICES[name], Launch(dynamic, threads), resources), expected)


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


def test_launches():
    kernel = example_kernel()
    expect(list(check_launches([kernel], {kernel.name: Launch(0, 128)})), [])
    expect(len(list(check_launches([kernel], {}))), 1)
    expect(len(list(check_launches([kernel], {kernel.name: Launch(0, 128), "other": Launch(0, 32)}))), 1)
    expect(len(list(check_launches([kernel], {kernel.name: Launch(200 * 1024, 128)}))), 1)


def run():
    tests = [test for name, test in globals().items() if name.startswith("test_")]
    EXCEPTIONS.clear()  # the tests' kernels are none of ours
    for test in tests:
        test()
    print(f"cuda-gate: {len(tests)} self-tests passed")
