#!/usr/bin/python3
"""Writes tests/golden/optim.h: weights after three optimizer steps, computed by PyTorch in fp64.

    /usr/bin/python3 tests/golden/make_optim.py > tests/golden/optim.h

AdamW is torch.optim.AdamW itself. Muon is written down twice, as its two families do it: KellerJordan/Muon (momentum
as a running average) and Moonlight (momentum as a sum). Made with Debian's python3-torch 1.13; the tests read the
header and need no Python.
"""
import torch

STEPS = 3
torch.set_default_dtype(torch.float64)
generator = torch.Generator().manual_seed(20240229)


def draw(*shape):
    """Uniform in [-1, 1) and exact in fp32, so that both sides start from the same numbers."""
    return (2 * torch.rand(*shape, generator=generator) - 1).float().double()


def newton_schulz(G, steps=5):
    a, b, c = 3.4445, -4.7750, 2.0315
    X = G.mT if G.size(-2) > G.size(-1) else G
    X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        A = X @ X.mT
        B = b * A + c * A @ A
        X = a * X + B @ X
    return X.mT if G.size(-2) > G.size(-1) else X


def original(update):
    return max(1, update.size(-2) / update.size(-1)) ** 0.5


def rms(update):
    return 0.2 * max(update.size(-2), update.size(-1)) ** 0.5


def keller_jordan(p, grads, scale, nesterov, lr, weight_decay, beta=0.95):
    momentum = torch.zeros_like(p)
    for grad in grads.clone():
        momentum.lerp_(grad, 1 - beta)
        update = grad.lerp_(momentum, beta) if nesterov else momentum
        update = newton_schulz(update)
        p.mul_(1 - lr * weight_decay)
        p.add_(update, alpha=-lr * scale(update))
    return p


def moonlight(p, grads, scale, nesterov, lr, weight_decay, momentum=0.95):
    buffer = torch.zeros_like(p)
    for g in grads:
        buffer.mul_(momentum).add_(g)
        update = newton_schulz(g.add(buffer, alpha=momentum) if nesterov else buffer)
        p.mul_(1 - lr * weight_decay)
        p.add_(update, alpha=-lr * scale(update))
    return p


def adamw(p, grads, lr, weight_decay):
    p = torch.nn.Parameter(p)
    optimizer = torch.optim.AdamW([p], lr=lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=weight_decay)
    for g in grads:
        p.grad = g.clone()
        optimizer.step()
    return p.detach()


def define(name, values):
    numbers = [f"{v:.9g}" for v in values.flatten().tolist()]
    rows = [", ".join(numbers[i : i + 8]) for i in range(0, len(numbers), 8)]
    print(f"static const double {name}[] = {{\n    " + ",\n    ".join(rows) + "};")


def main():
    print("/* Weights after three optimizer steps, by PyTorch. Written by tests/golden/make_optim.py; do not edit. */")
    print("/* clang-format off */\n#pragma once\n\n#include <stdbool.h>\n\n#include \"core/config.h\"\n")
    print(f"enum {{ GOLDEN_STEPS = {STEPS} }};")
    print("static const double golden_lr = 0.02, golden_weight_decay = 0.1;\n")
    print("typedef struct {\n    int rows, columns;\n    OptimizerKind optimizer;\n    MuonMomentumForm form;")
    print("    bool nesterov;\n    UpdateScale scale;\n    const double *start, *gradients, *expected;\n} GoldenCase;\n")

    cases = []
    families = [("EMA", keller_jordan), ("SUM", moonlight)]
    for rows, columns in [(7, 3), (3, 8), (5, 5)]:
        size = f"{rows}x{columns}"
        start, gradients = draw(rows, columns), draw(STEPS, rows, columns)
        define(f"start_{size}", start)
        define(f"gradients_{size}", gradients)

        define(f"adamw_{size}", adamw(start.clone(), gradients, 0.02, 0.1))
        cases.append(f"{rows}, {columns}, OPTIMIZER_ADAMW, MUON_MOMENTUM_SUM, false, SCALE_NONE, "
                     f"start_{size}, gradients_{size}, adamw_{size}")
        for form, step in families:
            for nesterov in (False, True):
                for scale in (original, rms):
                    name = f"{form}_{scale.__name__}{'_nesterov' if nesterov else ''}_{size}".lower()
                    define(name, step(start.clone(), gradients, scale, nesterov, 0.02, 0.1))
                    cases.append(f"{rows}, {columns}, OPTIMIZER_MUON, MUON_MOMENTUM_{form}, {str(nesterov).lower()}, "
                                 f"SCALE_{scale.__name__.upper()}, start_{size}, gradients_{size}, {name}")

    print("\nstatic const GoldenCase golden_cases[] = {")
    for case in cases:
        print(f"    {{{case}}},")
    print("};\nenum { GOLDEN_CASES = sizeof golden_cases / sizeof golden_cases[0] };")


main()
