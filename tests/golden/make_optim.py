#!/usr/bin/python3
"""Writes tests/golden/optim.h: weights after three steps of each optimizer and option, computed by PyTorch in fp64.

    /usr/bin/python3 tests/golden/make_optim.py > tests/golden/optim.h

AdamW and SGD are torch.optim's own. Muon is written down twice, as its two families do it: KellerJordan/Muon (momentum
as a running average) and Moonlight (momentum as a sum). The others are written from their papers, step by step as
printed there, and not in the form that the C code has. Made with Debian's python3-torch 1.13; the tests read the header
and need no Python.
"""
import math

import torch

STEPS, LR, DECAY = 3, 0.02, 0.1
torch.set_default_dtype(torch.float64)
generator = torch.Generator().manual_seed(20240229)


def draw(*shape):
    """Uniform in [-1, 1) and exact in fp32, so that both sides start from the same numbers."""
    return (2 * torch.rand(*shape, generator=generator) - 1).float().double()


# ---- orthogonalizers ------------------------------------------------------------------------------------------------


def newton_schulz(G, steps=5):
    a, b, c = 3.4445, -4.7750, 2.0315
    X = G.mT if G.size(-2) > G.size(-1) else G
    X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        A = X @ X.mT
        B = b * A + c * A @ A
        X = a * X + B @ X
    return X.mT if G.size(-2) > G.size(-1) else X


def polar(G):
    U, _, Vh = torch.linalg.svd(G, full_matrices=False)
    return U @ Vh


def schatten(p):
    """argmax <G, O> over |O|_p <= k^(1/p), by Hölder's inequality: s^(q-1), scaled onto the surface of the ball."""

    def solve(G):
        U, s, Vh = torch.linalg.svd(G, full_matrices=False)
        t = s ** (1 / (p - 1))
        t = t * (len(s) ** (1 / p) / (t**p).sum() ** (1 / p))
        return U @ torch.diag(t) @ Vh

    return solve


# ---- scales and decay -----------------------------------------------------------------------------------------------


def original(update):
    return max(1, update.size(-2) / update.size(-1)) ** 0.5


def rms(update):
    return 0.2 * max(update.size(-2), update.size(-1)) ** 0.5


def spectral(update):
    return (update.size(-2) / update.size(-1)) ** 0.5


def none(update):
    return 1


def decay_all(w, update, rate):
    return w * (1 - rate)


def decay_cautious(w, update, rate):
    return w - rate * w * (update * w >= 0)


# ---- Muon, as its two families write it -----------------------------------------------------------------------------


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


# ---- the rest, with options -----------------------------------------------------------------------------------------


class Momentum:
    """The input of the orthogonalizer. `at` is mu by step, from 1."""

    def __init__(self, form="sum", nesterov=True, at=lambda step: 0.95):
        self.form, self.nesterov, self.at, self.step, self.buffer = form, nesterov, at, 0, 0.0

    def __call__(self, g):
        self.step += 1
        mu = self.at(self.step)
        fresh = (1 - mu) * g if self.form == "ema" else g
        self.buffer = mu * self.buffer + fresh
        return fresh + mu * self.buffer if self.nesterov else self.buffer


def muon(momentum, orthogonalize=newton_schulz, scale=rms):
    def update(g):
        O = orthogonalize(momentum(g))
        return scale(O) * O

    return update


def normuon(momentum, beta2=0.95, eps=1e-10):
    v = [0.0]

    def update(g):
        O = newton_schulz(momentum(g))
        v[0] = beta2 * v[0] + (1 - beta2) * O.square().mean(dim=1)
        scaled = O / (v[0].sqrt() + eps).unsqueeze(1)
        return 0.2 * math.sqrt(scaled.numel()) / scaled.norm() * scaled

    return update


def adamuon(momentum, beta2=0.95, eps=1e-8):
    V = [0.0]

    def update(g):
        O = newton_schulz(torch.sign(momentum(g)))
        V[0] = beta2 * V[0] + (1 - beta2) * O * O
        scaled = O / (V[0].sqrt() + eps)
        return 0.2 * math.sqrt(scaled.numel()) / scaled.norm() * scaled

    return update


def lion(beta1=0.9, beta2=0.99):
    m = [0.0]

    def update(g):
        c = beta1 * m[0] + (1 - beta1) * g
        m[0] = beta2 * m[0] + (1 - beta2) * g
        return torch.sign(c)

    return update


def adam(beta1=0.9, beta2=0.95, eps=1e-8):
    state = {"m": 0.0, "v": 0.0, "t": 0}

    def update(g):
        state["t"] += 1
        state["m"] = beta1 * state["m"] + (1 - beta1) * g
        state["v"] = beta2 * state["v"] + (1 - beta2) * g * g
        m, v = state["m"] / (1 - beta1 ** state["t"]), state["v"] / (1 - beta2 ** state["t"])
        return m / (v.sqrt() + eps)

    return update


def run(p, grads, update, decay=decay_all, decay_at=lambda step: 1.0, factor=1.0):
    """W <- W - lr wd W - lr U. `factor` is muP's, of the update."""
    for step, g in enumerate(grads, 1):
        U = factor * update(g)
        p = decay(p, U, LR * DECAY * decay_at(step)) - LR * U
    return p


def by_torch(optimizer_class, p, grads, **options):
    p = torch.nn.Parameter(p.clone())
    optimizer = optimizer_class([p], lr=LR, **options)
    for g in grads:
        p.grad = g.clone()
        optimizer.step()
    return p.detach()


def adamw(p, grads):
    return by_torch(torch.optim.AdamW, p, grads, betas=(0.9, 0.95), eps=1e-8, weight_decay=DECAY)


def sgd(p, grads, nesterov):
    """torch.optim.SGD adds its decay to the gradient; ours is decoupled, and so off here."""
    return by_torch(torch.optim.SGD, p, grads, momentum=0.95, nesterov=nesterov)


# ---- schedules, as the header describes them ------------------------------------------------------------------------

WARMUP_MU = {1: 0.85, 2: 0.90, 3: 0.95}  # momentum_warmup = 2
COOLDOWN_MU = {1: 0.95, 2: 0.90, 3: 0.85}  # momentum_cooldown = 2 of 3 steps: full until step 1
LINEAR_DECAY = {1: 1 - 0.8 / 3, 2: 1 - 0.8 * 2 / 3, 3: 0.2}  # decay_schedule linear, final .2


# ---- the header -----------------------------------------------------------------------------------------------------


def define(name, values):
    numbers = [f"{v:.9g}" for v in values.flatten().tolist()]
    rows = [", ".join(numbers[i : i + 8]) for i in range(0, len(numbers), 8)]
    print(f"static const double {name}[] = {{\n    " + ",\n    ".join(rows) + "};")


def families(start, gradients):
    """(name, members of GoldenCase, weights)"""
    yield "adamw", ".optimizer = OPTIMIZER_ADAMW", adamw(start, gradients)
    for form, step in [("EMA", keller_jordan), ("SUM", moonlight)]:
        for nesterov in (False, True):
            for scale in (original, rms):
                name = f"{form}_{scale.__name__}{'_nesterov' if nesterov else ''}".lower()
                members = f".form = MUON_MOMENTUM_{form}, .nesterov = {str(nesterov).lower()}, "
                members += f".scale = SCALE_{scale.__name__.upper()}"
                yield name, members, step(start.clone(), gradients, scale, nesterov, LR, DECAY)


def options(start, gradients):
    nesterov, linear = ".nesterov = true", lambda step: LINEAR_DECAY[step]
    rows, columns = start.shape
    r = 2 / columns  # mup_base_width 2: the columns are the width

    for scale in (spectral, none):
        yield scale.__name__, f"{nesterov}, .scale = SCALE_{scale.__name__.upper()}", run(
            start, gradients, muon(Momentum(), scale=scale))
    for flag in (False, True):
        yield f"sgd{'_nesterov' if flag else ''}", f".optimizer = OPTIMIZER_SGD, .nesterov = {str(flag).lower()}, .no_decay = true", sgd(
            start, gradients, flag)
    for name, optimizer, update in [
        ("muon", "MUON", lambda: muon(Momentum())),
        ("normuon", "NORMUON", lambda: normuon(Momentum())),
        ("adamuon", "ADAMUON", lambda: adamuon(Momentum())),
        ("lion", "LION", lion),
        ("adamw", "ADAMW", adam),
        ("sgd", "SGD", Momentum),
    ]:
        which = f".optimizer = OPTIMIZER_{optimizer}, {nesterov}"
        factor = {"muon": math.sqrt(r), "normuon": math.sqrt(r), "adamuon": math.sqrt(r), "sgd": 1}.get(name, r)
        if name in ("normuon", "adamuon", "lion"):
            yield f"{name}_plain", which, run(start, gradients, update())
        yield f"{name}_cautious", f"{which}, .cautious = true", run(start, gradients, update(), decay_cautious)
        yield f"{name}_decay_schedule", f"{which}, .decay_schedule = true", run(
            start, gradients, update(), decay_at=linear)
        yield f"{name}_mup", f"{which}, .mup_base_width = 2", run(start, gradients, update(), factor=factor)
    # with the usual betas the sign is the gradient's in so few steps
    yield "lion_slow", ".optimizer = OPTIMIZER_LION, .beta1 = .7, .beta2 = .4", run(start, gradients, lion(0.7, 0.4))
    for name, optimizer, update in [("normuon", "NORMUON", normuon), ("adamuon", "ADAMUON", adamuon)]:
        yield f"{name}_betas", f".optimizer = OPTIMIZER_{optimizer}, {nesterov}, .beta2 = .5, .eps = .1", run(
            start, gradients, update(Momentum(), 0.5, 0.1))
    yield "normuon_ema", ".optimizer = OPTIMIZER_NORMUON, .form = MUON_MOMENTUM_EMA", run(
        start, gradients, normuon(Momentum("ema", False)))
    yield "adamuon_ema", ".optimizer = OPTIMIZER_ADAMUON, .form = MUON_MOMENTUM_EMA", run(
        start, gradients, adamuon(Momentum("ema", False)))
    yield "sgd_ema", f".optimizer = OPTIMIZER_SGD, .form = MUON_MOMENTUM_EMA, {nesterov}", run(
        start, gradients, Momentum("ema", True))
    for form in ("sum", "ema"):
        for name, table in [("warmup", WARMUP_MU), ("cooldown", COOLDOWN_MU)]:
            yield f"mu_{name}_{form}", f".form = MUON_MOMENTUM_{form.upper()}, {nesterov}, .momentum_{name} = 2", run(
                start, gradients, muon(Momentum(form, at=lambda step: table[step])))
    yield "svd", f"{nesterov}, .orthogonalize = ORTHOGONALIZE_SVD", run(start, gradients, muon(Momentum(), polar))
    for p in (2, 4, 1000):
        yield f"schatten_{p}", f"{nesterov}, .orthogonalize = ORTHOGONALIZE_SCHATTEN, .schatten_p = {p}", run(
            start, gradients, muon(Momentum(), schatten(p)))
    yield "schatten_mup", f"{nesterov}, .orthogonalize = ORTHOGONALIZE_SCHATTEN, .schatten_p = 4, .mup_base_width = 2", run(
        start, gradients, muon(Momentum(), schatten(4)), factor=math.sqrt(r) * r**0.25)


def per_head(start, gradients):
    """Rows in pairs, and columns in pairs, each with a momentum and second moments of its own."""
    for name, optimizer, make in [("muon", "MUON", muon), ("normuon", "NORMUON", normuon), ("adamuon", "ADAMUON", adamuon)]:
        for axis, heads in [(0, "ROWS"), (1, "COLUMNS")]:
            parts = [run(w, g, make(Momentum())) for w, g in zip(start.chunk(2, axis), gradients.chunk(2, axis + 1))]
            members = f".optimizer = OPTIMIZER_{optimizer}, .nesterov = true, .per_head = true, .axis = HEADS_IN_{heads}"
            yield f"{name}_heads_{heads.lower()}", members, torch.cat(parts, axis)


def main():
    print("/* Weights after three optimizer steps, by PyTorch. Written by tests/golden/make_optim.py; do not edit. */")
    print("/* clang-format off */\n#pragma once\n\n#include <stdbool.h>\n\n#include \"base/config.h\"\n#include \"model/params.h\"\n")
    print(f"enum {{ GOLDEN_STEPS = {STEPS} }};")
    print(f"static const double golden_lr = {LR}, golden_weight_decay = {DECAY};\n")
    print("/* What is not named has the default of the member: muon, sum, no nesterov, scale rms, mu .95 (schedules from .85), usual betas. */")
    print("typedef struct {\n    const char *name;\n    int rows, columns;\n    const double *start, *gradients, *expected;")
    print("    OptimizerKind optimizer;\n    MuonMomentumForm form;\n    bool nesterov, cautious, no_decay, decay_schedule, per_head;")
    print("    HeadAxis axis;\n    UpdateScale scale;\n    OrthogonalizeKind orthogonalize;\n    double schatten_p, beta1, beta2, eps;")
    print("    int64_t momentum_warmup, momentum_cooldown, mup_base_width;\n} GoldenCase;\n")

    cases = []
    for rows, columns, kinds in [(7, 3, [families]), (3, 8, [families, options]), (5, 5, [families]), (7, 4, [options]), (6, 4, [per_head])]:
        size = f"{rows}x{columns}"
        start, gradients = draw(rows, columns), draw(STEPS, rows, columns)
        define(f"start_{size}", start)
        define(f"gradients_{size}", gradients)
        for kind in kinds:
            for name, members, weights in kind(start, gradients):
                define(f"{name}_{size}", weights)
                cases.append(f'"{name}", {rows}, {columns}, start_{size}, gradients_{size}, {name}_{size}, {members}')

    print("\nstatic const GoldenCase golden_cases[] = {")
    for case in cases:
        print(f"    {{{case}}},")
    print("};\nenum { GOLDEN_CASES = sizeof golden_cases / sizeof golden_cases[0] };")


main()
