#!/usr/bin/python3
"""Writes tests/golden/model.h: loss, MaxLogit, gradients and 10-step loss curves of tiny models, by PyTorch in fp64.

    /usr/bin/python3 tests/golden/make_model.py > tests/golden/model.h

The models are written down here from their papers with PyTorch's own layers and autograd, not from the C code. Weights are a
formula of (parameter, layer, element) that the test repeats, so the header holds results only. Made with Debian's
python3-torch 1.13; the tests read the header and need no Python.
"""
import math

import torch
import torch.nn.functional as F

torch.set_default_dtype(torch.float64)

# By the streams of model/weights.c and the attention variants.
PARAMS = ["wte", "wpe", "norm1", "norm1_bias", "qkv", "qkv_bias", "q_norm", "k_norm", "out", "out_bias", "norm2",
          "norm2_bias", "up", "up_bias", "down", "down_bias", "normf", "normf_bias", "head", "latent", "q_latent_norm",
          "q_up", "kv_latent_norm", "kv_up"]
NORMS = {"norm1", "norm2", "normf", "q_norm", "k_norm", "q_latent_norm", "kv_latent_norm"}
STEPS = 10


class Model:
    def __init__(self, L, H, K, C, T, mlp_width, V, gpt2, bias, tied, qk_norm=False, softcap=0.0, matrices="adamw"):
        self.L, self.H, self.K, self.C, self.T, self.F, self.V = L, H, K, C, T, mlp_width, V
        self.gpt2, self.bias, self.tied, self.qk_norm, self.softcap = gpt2, bias, tied, qk_norm, softcap
        self.matrices, self.D, self.B, self.kv_rank = matrices, C // H, 2, 0
        self.w = {}
        q, kv, up = H * self.D, K * self.D, mlp_width if gpt2 else 2 * mlp_width
        self.add("wte", 1, V, C)
        if gpt2: self.add("wpe", 1, T, C)
        self.add("norm1", L, C)
        self.add("qkv", L, q + 2 * kv, C)
        self.add("out", L, C, q)
        self.add("norm2", L, C)
        self.add("up", L, up, C)
        self.add("down", L, C, mlp_width)
        self.add("normf", 1, C)
        if qk_norm: self.add("q_norm", L, self.D), self.add("k_norm", L, self.D)
        if bias:
            self.add("qkv_bias", L, q + 2 * kv), self.add("out_bias", L, C)
            self.add("up_bias", L, up), self.add("down_bias", L, C)
            if gpt2: self.add("norm1_bias", L, C), self.add("norm2_bias", L, C), self.add("normf_bias", 1, C)
        if not tied: self.add("head", 1, V, C)

    @classmethod
    def latent(cls, q_rank, kv_rank, nope, rope, value, **options):
        """Multi-head latent attention instead of the multi-head kind."""
        m = cls(gpt2=False, bias=False, matrices="muon", **options)
        m.q_rank, m.kv_rank, m.nope, m.rotary, m.value = q_rank, kv_rank, nope, rope, value
        for l in range(m.L): del m.w["qkv", l], m.w["out", l]
        m.add("latent", m.L, q_rank + kv_rank + rope, m.C)
        if q_rank: m.add("q_latent_norm", m.L, q_rank)
        m.add("q_up", m.L, m.H * (nope + rope), q_rank or m.C)
        m.add("kv_latent_norm", m.L, kv_rank)
        m.add("kv_up", m.L, m.H * (nope + value), kv_rank)
        m.add("out", m.L, m.C, m.H * value)
        return m

    def add(self, name, layers, *shape):
        p = PARAMS.index(name)
        n = math.prod(shape)
        for l in range(layers):
            wave = torch.sin(1.0 + 0.7 * torch.arange(n) + 13.0 * p + 5.0 * l)
            value = 1 + 0.1 * wave if name in NORMS else 0.1 * wave if len(shape) == 1 else 0.25 * wave
            self.w[name, l] = value.reshape(shape).float().double().requires_grad_()

    def batch(self, step):
        b, t = torch.arange(self.B)[:, None], torch.arange(self.T + 1)[None]
        stream = (7 * b + 3 * t * t + 5 * t + 11 * step * t) % self.V
        return stream[:, :-1], stream[:, 1:]

    def norm(self, x, name, l):
        if self.gpt2: return F.layer_norm(x, (self.C,), self.w[name, l], self.w.get((name + "_bias", l)), 1e-5)
        return self.rms(x, self.w[name, l])

    @staticmethod
    def rms(x, w, eps=1e-5):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * w

    def rope(self, x):  # complex rotation of (first half, second half) pairs
        half = x.size(-1) // 2
        angle = torch.outer(torch.arange(self.T).double(), 10000.0 ** (-torch.arange(half) / half))
        z = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)[None, :, None]
        return torch.cat([z.real, z.imag], -1)

    def latent_heads(self, x, l):
        """q, k, v of DeepSeek-V2's section 2.1; the norms of the latent vectors have DeepSeek's epsilon."""
        B, T, H = self.B, self.T, self.H
        WDQ, WDKV, WKR = self.w["latent", l].split([self.q_rank, self.kv_rank, self.rotary])
        WUQ, WQR = self.w["q_up", l].split([H * self.nope, H * self.rotary])
        WUK, WUV = self.w["kv_up", l].split([H * self.nope, H * self.value])
        cq = self.rms(F.linear(x, WDQ), self.w["q_latent_norm", l], 1e-6) if self.q_rank else x
        ckv = self.rms(F.linear(x, WDKV), self.w["kv_latent_norm", l], 1e-6)
        qc, qr = F.linear(cq, WUQ).view(B, T, H, -1), self.rope(F.linear(cq, WQR).view(B, T, H, -1))
        kc, kr = F.linear(ckv, WUK).view(B, T, H, -1), self.rope(F.linear(x, WKR).view(B, T, 1, -1))
        q, k = torch.cat([qc, qr], -1), torch.cat([kc, kr.expand(-1, -1, H, -1)], -1)
        return q, k, F.linear(ckv, WUV).view(B, T, H, -1)

    def heads(self, x, l):
        B, T, H, K, D = self.B, self.T, self.H, self.K, self.D
        qkv = F.linear(x, self.w["qkv", l], self.w.get(("qkv_bias", l)))
        q, k, v = [part.view(B, T, -1, D) for part in qkv.split([H * D, K * D, K * D], -1)]
        if self.qk_norm: q, k = self.rms(q, self.w["q_norm", l]), self.rms(k, self.w["k_norm", l])
        if not self.gpt2: q, k = self.rope(q), self.rope(k)
        return q, k.repeat_interleave(H // K, 2), v.repeat_interleave(H // K, 2)

    def attention(self, x, l):
        T = self.T
        q, k, v = self.latent_heads(x, l) if self.kv_rank else self.heads(x, l)
        scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(q.size(-1))
        causal = torch.ones(T, T, dtype=torch.bool).tril()
        self.max_logit.append(scores.detach().masked_fill(~causal, -math.inf).amax((0, 2, 3)))
        self.max_abs.append(scores.detach().abs().masked_fill(~causal, -math.inf).amax((0, 2, 3)))
        if self.softcap: scores = self.softcap * torch.tanh(scores / self.softcap)
        p = scores.masked_fill(~causal, -math.inf).softmax(-1)
        return F.linear(torch.einsum("bhij,bjhd->bihd", p, v).flatten(2), self.w["out", l],
                        self.w.get(("out_bias", l)))

    def mlp(self, x, l):
        up = F.linear(x, self.w["up", l], self.w.get(("up_bias", l)))
        if self.gpt2:
            act = 0.5 * up * (1 + torch.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))
        else:
            gate, up = up.chunk(2, -1)
            act = F.silu(gate) * up
        return F.linear(act, self.w["down", l], self.w.get(("down_bias", l)))

    def loss(self, step):
        tokens, targets = self.batch(step)
        self.max_logit, self.max_abs = [], []
        x = F.embedding(tokens, self.w["wte", 0])
        if self.gpt2: x = x + self.w["wpe", 0]
        for l in range(self.L):
            x = x + self.attention(self.norm(x, "norm1", l), l)
            x = x + self.mlp(self.norm(x, "norm2", l), l)
        head = self.w["wte" if self.tied else "head", 0]
        return F.cross_entropy(F.linear(self.norm(x, "normf", 0), head).reshape(-1, self.V), targets.reshape(-1))

    # ---- training: lr 0.01, decay 0.1, global-norm clipping at 1 ----

    def blocks(self, name, w):
        """The matrices that Muon orthogonalizes each by itself."""
        q, kv = self.H * self.D, self.K * self.D
        if name == "qkv": return w.split([q, kv, kv])
        if name == "latent": return [part for part in w.split([self.q_rank, self.kv_rank, self.rotary]) if len(part)]
        if name == "q_up": return w.split([self.H * self.nope, self.H * self.rotary])
        if name == "kv_up": return w.split([self.H * self.nope, self.H * self.value])
        return w.chunk(2) if name == "up" and not self.gpt2 else [w]

    def muon(self, name, w, state, lr, decay):
        g = w.grad
        buffer = state.setdefault((name, id(w)), torch.zeros_like(g))
        buffer.mul_(0.95).add_(g)
        u = g + 0.95 * buffer
        w.mul_(1 - lr * decay)
        for target, update in zip(self.blocks(name, w), self.blocks(name, u)):
            X = update.T if update.size(0) > update.size(1) else update
            X = X / (X.norm() + 1e-7)
            for _ in range(5):
                A = X @ X.T
                X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
            O = X.T if update.size(0) > update.size(1) else X
            target.sub_(lr * 0.2 * math.sqrt(max(O.shape)) * O)

    def train(self, lr=0.01, decay=0.1):
        hidden = {"qkv", "latent", "q_up", "kv_up", "out", "up", "down"} if self.matrices == "muon" else set()
        groups = {True: [], False: []}
        for (name, _), w in self.w.items():
            if name not in hidden: groups[w.dim() == 2].append(w)
        adamw = torch.optim.AdamW([{"params": groups[True], "weight_decay": decay},
                                   {"params": groups[False], "weight_decay": 0.0}], lr=lr, betas=(0.9, 0.95), eps=1e-8)
        curve, state = [], {}
        for step in range(STEPS):
            loss = self.loss(step)
            curve.append(loss.item())
            for w in self.w.values(): w.grad = None
            loss.backward()
            torch.nn.utils.clip_grad_norm_(list(self.w.values()), 1.0)
            adamw.step()
            with torch.no_grad():
                for (name, _), w in self.w.items():
                    if name in hidden: self.muon(name, w, state, lr, decay)
        return curve


def numbers(values):
    return ", ".join(f"{float(v):.9g}" for v in values)


def emit(label, m):
    loss = m.loss(0)
    loss.backward()
    order = [(n, l) for n in PARAMS for l in range(m.L) if (n, l) in m.w]
    print(f"static const GoldenModel golden_{label} = {{")
    print(f"    .loss = {loss.item():.12g},")
    print(f"    .max_logit = {{{numbers(torch.cat(m.max_logit))}}},")
    print(f"    .max_abs = {{{numbers(torch.cat(m.max_abs))}}},")
    print("    .gradients = {")
    for name, l in order:
        g = m.w[name, l].grad.reshape(-1)
        probe = torch.cos(0.3 * torch.arange(g.numel()))
        print(f"        {{{PARAMS.index(name)}, {l}, {g.norm().item():.9g}, {(g * probe).sum().item():.9g}}}, /* {name} */")
    print("    },")
    print(f"    .gradient_count = {len(order)},")
    print(f"    .curve = {{{numbers(m.train())}}},")
    print("};\n")


print("/* Made by tests/golden/make_model.py with PyTorch; see there. */\n#pragma once\n")
print('#include "tests/golden_model.h"\n')
emit("gpt2", Model(L=2, H=2, K=2, C=12, T=9, mlp_width=40, V=17, gpt2=True, bias=True, tied=True))
emit("llama", Model(L=2, H=4, K=2, C=24, T=7, mlp_width=20, V=19, gpt2=False, bias=False, tied=False, matrices="muon"))
emit("mixed", Model(L=2, H=3, K=1, C=18, T=8, mlp_width=11, V=23, gpt2=False, bias=True, tied=False, qk_norm=True,
                    softcap=1.5, matrices="muon"))
emit("mla", Model.latent(q_rank=10, kv_rank=7, nope=5, rope=4, value=6, L=2, H=3, K=3, C=20, T=8, mlp_width=13, V=19,
                         tied=False))
emit("mla_direct", Model.latent(q_rank=0, kv_rank=9, nope=4, rope=6, value=3, L=2, H=2, K=2, C=16, T=7, mlp_width=12,
                                V=17, tied=True, softcap=1.5))
