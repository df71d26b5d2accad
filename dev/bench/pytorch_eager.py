"""The models of bench_train in plain PyTorch eager mode, for comparison on the same machine.

Run it through bench_train, which alternates its samples with ours:
    apt install python3-torch        (or pip install torch in a virtual environment)
    OPENBLAS_CORETYPE=SkylakeX build/cpu/bench/bench_train --pytorch python3
Debian's torch uses OpenBLAS, which in some environments falls back to a kernel that is several times slower than the
machine's; OPENBLAS_CORETYPE names the right one (SkylakeX for AVX-512, Haswell for AVX2). Without it the
comparison is unfair.
"""
import argparse
import json
import os
import resource
import sys
import time

arguments = argparse.ArgumentParser()
arguments.add_argument("--worker", required=True)
arguments.add_argument("--batch", type=int, default=32)
arguments.add_argument("--threads", type=int, default=2)
args = arguments.parse_args()
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(args.threads)

import torch  # noqa: E402  after the number of threads is set
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402


TINY, MEDIUM = (128, 4, 4, 4096, 128), (512, 8, 8, 50257, 256)  # d_model, layers, heads, vocabulary, context


class Norm(nn.Module):
    """LayerNorm without bias."""

    def __init__(self, d):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight, None, 1e-5)


class Attention(nn.Module):
    def __init__(self, d, heads, context):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(d, 3 * d, bias=False)
        self.proj = nn.Linear(d, d, bias=False)
        self.register_buffer("future", torch.ones(context, context, dtype=torch.bool).triu(1))

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (y.view(B, T, self.heads, -1).transpose(1, 2) for y in self.qkv(x).split(C, -1))
        if hasattr(F, "scaled_dot_product_attention"):
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
            out = scores.masked_fill(self.future[:T, :T], float("-inf")).softmax(-1) @ v
        return self.proj(out.transpose(1, 2).reshape(B, T, C))


class FeedForward(nn.Module):
    def __init__(self, d, d_ff):
        super().__init__()
        self.up = nn.Linear(d, d_ff, bias=False)
        self.down = nn.Linear(d_ff, d, bias=False)

    def forward(self, x):
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class MixtureOfTokens(nn.Module):
    """Groups of g sequences at one position; bmm over groups for merge and emit, bmm over experts."""

    def __init__(self, d, d_ff, g, experts):
        super().__init__()
        self.g, self.experts = g, experts
        size = d_ff * g // experts
        self.controller = nn.Linear(d, experts, bias=False)
        self.up = nn.Parameter(torch.randn(experts, d, size) * d ** -0.5)
        self.down = nn.Parameter(torch.randn(experts, size, d) * size ** -0.5)

    def forward(self, x):
        B, T, C = x.shape
        x = x.transpose(0, 1).reshape(-1, self.g, C)                 # [R, g, C]
        weights = self.controller(x).softmax(1)                      # [R, g, E]
        mixed = torch.bmm(weights.transpose(1, 2), x)                # [R, E, C]
        hidden = torch.bmm(mixed.transpose(0, 1), self.up).relu()    # [E, R, F]
        out = torch.bmm(hidden, self.down).transpose(0, 1)           # [R, E, C]
        return torch.bmm(weights, out).view(T, B, C).transpose(0, 1)


class Model(nn.Module):
    def __init__(self, name):
        super().__init__()
        d, layers, heads, vocab, context = TINY if name.startswith("tiny") else MEDIUM
        self.context, self.vocab = context, vocab
        self.token = nn.Embedding(vocab, d)
        self.position = nn.Parameter(torch.randn(context, d) * 0.1)
        nn.init.normal_(self.token.weight, std=0.02)
        self.blocks = nn.ModuleList()
        for i in range(layers):
            mot = name.endswith("mot") and i >= layers // 2
            wide = MixtureOfTokens(d, 4 * d, 32, 32) if mot else FeedForward(d, 4 * d)
            self.blocks += [Attention(d, heads, context), wide]
        self.norms = nn.ModuleList(Norm(d) for _ in range(2 * layers))
        self.final_norm = Norm(d)

    def forward(self, tokens, targets):
        x = self.token(tokens) + self.position[: tokens.shape[1]]
        for norm, block in zip(self.norms, self.blocks):
            x = x + block(norm(x))
        logits = F.linear(self.final_norm(x), self.token.weight)
        return F.cross_entropy(logits.view(-1, self.vocab), targets.reshape(-1))


def main():
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    model = Model(args.worker)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1)
    tokens = torch.randint(model.vocab, (args.batch, model.context))

    def step():
        optimizer.zero_grad(set_to_none=True)
        model(tokens, tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()

    def answer(**values):
        print(json.dumps(values), flush=True)

    step()
    answer(tokens=tokens.numel(), parameters=sum(p.numel() for p in model.parameters()), torch=torch.__version__)
    for line in sys.stdin:
        if line.strip() != "sample":
            break
        start = time.perf_counter()
        step()
        answer(seconds=time.perf_counter() - start)
    answer(resident_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


main()
