"""What the kernels must keep: a row for each exception and each requirement."""

from typing import NamedTuple, Tuple

# Kernels that may spill or have a stack frame: short name (a regular expression for all of it), reason.
EXCEPTIONS = {
    r"attention_forward<ForwardPlan<128, \w+>, false>": "rows that do not begin on 16 bytes: odd head sizes, which no model "
    "that we know of has",
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
