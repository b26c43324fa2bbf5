"""How kernels are launched, and how many blocks a multiprocessor then holds."""

import collections
import subprocess
from typing import NamedTuple

from cubin import short_names


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
    """Short name -> the launch that counts: the largest in the first file that has any."""
    chosen = {}
    for file in files:
        for name, launches in read_launches(file.read_text()).items():
            chosen.setdefault(name, max(launches))
    return chosen


# ---- occupancy -------------------------------------------------------------------------------------------------------


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
