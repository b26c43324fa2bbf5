"""Reads a cubin: the tensor-core, copy and barrier instructions of its kernels. And the short names of kernels."""

import collections
import re
import struct
import subprocess

# By the low 12 bits of a 128-bit instruction. Neither cuobjdump nor nvdisasm comes with every toolkit.
OPCODES = {
    0x23C: "HMMA",  # tensor-core product of bf16
    0x83B: "LDSM",  # ldmatrix
    0xFAE: "LDGSTS",  # cp.async
    0xB1D: "BAR",  # barrier of the block
}

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
