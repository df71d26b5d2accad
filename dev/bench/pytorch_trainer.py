"""The models of bench_train in PyTorch, as fast as we know how to write them, for comparison on the same machine.

bench_train starts it (`make bench-compare`, or --pytorch PYTHON) and alternates its samples with ours. It reads the
weights and the batch that our process began with, trains four steps on them and tells their losses: the comparison
counts only if they are ours.

What makes it fast on a CPU, each measured against the plain way:
- matrix products go to MKL or to oneDNN, whichever is faster here. torch calls MKL, which takes AVX2 code on other
  makers' processors where oneDNN takes AVX-512;
- the loss keeps no copy of the logits and makes their gradient in their own memory; torch.compile makes its own;
- scaled_dot_product_attention, fused AdamW and gradient clipping over all tensors at once;
- memory is not given back to the system after every step (MALLOC_*, set by bench_train).

Debian's torch uses OpenBLAS, which in some environments falls back to a kernel several times slower than the machine's;
OPENBLAS_CORETYPE names the right one (SkylakeX for AVX-512, Haswell for AVX2).
"""
import argparse
import json
import os
import struct
import sys
import time

arguments = argparse.ArgumentParser()
arguments.add_argument("--worker", required=True, help="size_kind: tiny_dense, medium_mot, gpt2_switch, ...")
arguments.add_argument("--weights", required=True, help="safetensors with initial parameters, tokens and targets")
arguments.add_argument("--heads", type=int, required=True)
arguments.add_argument("--mode", choices=["eager", "compile"], default="eager")
arguments.add_argument("--threads", type=int, default=2)
arguments.add_argument("--profile", action="store_true", help="print where the time of one step goes, to stderr")
args = arguments.parse_args()
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(args.threads)

import torch  # noqa: E402  after the number of threads is set
import torch.nn.functional as F  # noqa: E402
from torch import library, nn  # noqa: E402

LEARNING_RATE, CHECKED_STEPS = 1e-3, 4  # as in train_worker.h
GROUP, CAPACITY, BALANCE = 32, 1.25, 0.01


# ---------------------------------------------------------------------------------------------------- matrix products

def onednn(x, weight):
    """x weight^T; both may be transposed views."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


if args.mode == "compile" and hasattr(library, "custom_op"):
    # The compiler knows this product with constant weights only; as an operator of our own it leaves it as it is.
    onednn = library.custom_op("bench::product", onednn, mutates_args=(),
                               schema="(Tensor x, Tensor weight) -> Tensor")
    onednn.register_fake(lambda x, weight: x.new_empty(*x.shape[:-1], weight.shape[0]))


class OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return onednn(x, weight)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        rows, grads = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        return onednn(grad, weight.t()), onednn(grads.t(), rows.t())


class OneDnnExperts(torch.autograd.Function):
    """out[e] = x[e] weight[e]^T. oneDNN's batched product is not to be had from Python, so one call for each expert."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return torch.stack([onednn(a, w) for a, w in zip(x, weight)])

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        dx = torch.stack([onednn(g, w.t()) for g, w in zip(grad, weight)])
        return dx, torch.stack([onednn(g.t(), a.t()) for g, a in zip(grad, x)])


def batched_linear(x, weight):
    return torch.bmm(x, weight.transpose(1, 2))


class Products:
    """How to multiply: `linear` for [..., in] by [out, in], `experts` for [E, rows, in] by [E, out, in]."""

    linear, experts, of_matrices = staticmethod(F.linear), staticmethod(batched_linear), staticmethod(F.linear)
    made_by = "torch's default"

    @classmethod
    def choose(cls, rows, d):
        """Takes oneDNN if it is faster for a feed-forward's first matrix, forward and backward."""
        if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            return
        x, w = torch.randn(rows, d, requires_grad=True), torch.randn(4 * d, d, requires_grad=True)
        grad = torch.randn(rows, 4 * d)

        def best(linear):
            seconds = []
            for _ in range(7):
                start = time.perf_counter()
                linear(x, w).backward(grad)
                seconds.append(time.perf_counter() - start)
            return min(seconds)

        if best(OneDnnLinear.apply) < best(F.linear):
            cls.linear, cls.experts, cls.of_matrices = OneDnnLinear.apply, OneDnnExperts.apply, staticmethod(onednn)
            cls.made_by = "oneDNN"


class HeadLoss(torch.autograd.Function):
    """Mean cross entropy of x weight^T, with both gradients made on the way: one buffer of logits, overwritten."""

    CHUNK_BYTES = 128 << 20

    @staticmethod
    def forward(ctx, x, weight, targets):
        count, vocabulary = x.shape[0], weight.shape[0]
        chunk = max(256, HeadLoss.CHUNK_BYTES // (4 * vocabulary))
        multiply = Products.of_matrices
        loss, dx, dweight = x.new_zeros(()), torch.empty_like(x), None
        for first in range(0, count, chunk):
            rows, wanted = x[first:first + chunk], targets[first:first + chunk, None]
            logs = torch.log_softmax(multiply(rows, weight), -1)
            loss -= logs.gather(1, wanted).sum()
            grad = logs.exp_()
            grad.scatter_add_(1, wanted, grad.new_full((), -1.0).expand_as(wanted))
            grad /= count
            dx[first:first + chunk] = multiply(grad, weight.t())
            part = multiply(grad.t(), rows.t())
            dweight = part if dweight is None else dweight.add_(part)
        ctx.save_for_backward(dx, dweight)
        return loss / count

    @staticmethod
    def backward(ctx, grad):
        return *(g.mul_(grad) for g in ctx.saved_tensors), None


def plain_head_loss(x, weight, targets):
    return F.cross_entropy(Products.linear(x, weight), targets)


# ------------------------------------------------------------------------------------------------------------- model

class Attention(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.qkv, self.proj = p["qkv.weight"], p["proj.weight"]

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = Products.linear(x, self.qkv).view(B, T, 3, args.heads, -1).permute(2, 0, 3, 1, 4)
        if hasattr(F, "scaled_dot_product_attention"):
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            future = torch.ones(T, T, dtype=torch.bool).triu(1)
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
            out = scores.masked_fill(future, float("-inf")).softmax(-1) @ v
        return Products.linear(out.transpose(1, 2).reshape(B, T, C), self.proj), 0


class FeedForward(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.up, self.down = p["up.weight"], p["down.weight"]

    def forward(self, x):
        return Products.linear(F.gelu(Products.linear(x, self.up), approximate="tanh"), self.down), 0


class MixtureOfTokens(nn.Module):
    """Groups of sequences at one position. Laying the tokens out by position first costs one copy and makes every
    product one torch.bmm of contiguous matrices."""

    def __init__(self, p):
        super().__init__()
        self.controller, self.up, self.down = p["controller.weight"], p["experts.up.weight"], p["experts.down.weight"]

    def forward(self, x):
        B, T, C = x.shape
        x = x.transpose(0, 1).reshape(-1, GROUP, C)                                  # [R, g, C]
        weights = Products.linear(x, self.controller).softmax(1)                     # [R, g, E]
        mixed = torch.bmm(weights.transpose(1, 2), x).transpose(0, 1)                # [E, R, C]
        hidden = Products.experts(mixed.contiguous(), self.up).relu()                # [E, R, F]
        out = Products.experts(hidden, self.down).transpose(0, 1)                    # [R, E, C]
        return torch.bmm(weights, out.contiguous()).view(T, B, C).transpose(0, 1), 0


class TokenChoice(nn.Module):
    """Switch: one expert for every token, a fixed number of rows for every expert. As in our timings, token n goes to
    expert n mod E, whatever the router says; everything else is done as if it had said so."""

    def __init__(self, p):
        super().__init__()
        self.router, self.up, self.down = p["router.weight"], p["experts.up.weight"], p["experts.down.weight"]

    def forward(self, x):
        B, T, C = x.shape
        N, E = B * T, self.router.shape[0]
        x = x.reshape(N, C)
        probs = Products.linear(x, self.router).softmax(-1)
        expert = torch.arange(N) % E
        counts = torch.zeros(E, dtype=torch.long).scatter_add_(0, expert, torch.ones_like(expert))
        capacity = min(int(CAPACITY * N / E), N)
        order = torch.argsort(expert, stable=True)
        rank = torch.empty_like(order).scatter_(0, order, torch.arange(N) - (counts.cumsum(0) - counts)[expert[order]])
        kept = rank < capacity
        row = torch.where(kept, expert * capacity + rank, E * capacity)  # the last row takes what is dropped
        gathered = x.new_zeros(E * capacity + 1, C).index_copy(0, row, x)
        hidden = Products.experts(gathered[:-1].view(E, capacity, C), self.up).relu()
        out = Products.experts(hidden, self.down).view(-1, C).index_select(0, row.clamp(max=E * capacity - 1))
        gate = probs.gather(1, expert[:, None]) * kept[:, None]
        balance = BALANCE * E / N * (counts * probs.mean(0)).sum()
        return (gate * out).view(B, T, C), balance


BLOCKS = {"qkv.weight": Attention, "up.weight": FeedForward, "controller.weight": MixtureOfTokens,
          "router.weight": TokenChoice}


class Model(nn.Module):
    """Made of the parameters that there are."""

    def __init__(self, tensors):
        super().__init__()
        p = {name: nn.Parameter(tensor) for name, tensor in tensors.items()}
        self.token, self.position = p["embedding.token.weight"], p["embedding.position.weight"]
        self.final_norm = p["final_norm.weight"]
        self.norms, self.blocks = nn.ParameterList(), nn.ModuleList()
        while f"blocks.{len(self.blocks)}.norm.weight" in p:
            prefix = f"blocks.{len(self.blocks)}."
            own = {name[len(prefix):]: q for name, q in p.items() if name.startswith(prefix)}
            self.norms.append(own["norm.weight"])
            self.blocks.append(next(kind for name, kind in BLOCKS.items() if name in own)(own))
        self.head_loss = plain_head_loss if args.mode == "compile" else HeadLoss.apply

    def forward(self, tokens, targets):
        """The cross entropy, and what is added to it before it is differentiated."""
        def norm(x, weight):
            return F.layer_norm(x, weight.shape, weight, None, 1e-5)

        x = F.embedding(tokens, self.token) + self.position[:tokens.shape[1]]
        extra = 0
        for weight, block in zip(self.norms, self.blocks):
            out, loss = block(norm(x, weight))
            x, extra = x + out, extra + loss
        x = norm(x, self.final_norm)
        return self.head_loss(x.view(-1, x.shape[-1]), self.token, targets.view(-1)), extra


# ---------------------------------------------------------------------------------------------------------- training

def read_safetensors(path):
    """Tensors by name: 8 bytes length of a JSON header, the header, the data."""
    tensors = {}
    with open(path, "rb") as file:
        size, = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            file.seek(8 + size + begin)
            dtype = {"F32": torch.float32, "I32": torch.int32}[entry["dtype"]]
            data = torch.frombuffer(bytearray(file.read(end - begin)), dtype=dtype)
            tensors[name] = data.view(entry["shape"]).clone()  # torch's own, aligned memory
    return tensors


def peak_resident_bytes():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


def make_optimizer(parameters):
    options = dict(lr=LEARNING_RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    try:
        return torch.optim.AdamW(parameters, fused=True, **options)
    except (TypeError, RuntimeError):  # older versions fuse on GPUs only
        return torch.optim.AdamW(parameters, foreach=True, **options)


def main():
    torch.set_num_threads(args.threads)
    tensors = read_safetensors(args.weights)
    tokens, targets = (tensors.pop(name).long() for name in ("tokens", "targets"))
    model = Model(tensors)
    Products.choose(tokens.numel(), model.token.shape[1])
    del tensors
    parameters = list(model.parameters())
    optimizer = make_optimizer(parameters)
    loss_of = torch.compile(model) if args.mode == "compile" else model

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss, extra = loss_of(tokens, targets)
        (loss + extra).backward()
        norm = nn.utils.clip_grad_norm_(parameters, 0.5, foreach=True)
        optimizer.step()
        return loss.item(), norm.item()

    def answer(**values):
        print(json.dumps(values), flush=True)

    checked = [step() for _ in range(CHECKED_STEPS)]
    answer(tokens=tokens.numel(), parameters=sum(p.numel() for p in parameters), torch=torch.__version__,
           products=Products.made_by, losses=[loss for loss, _ in checked], norms=[norm for _, norm in checked])
    if args.profile:
        with torch.profiler.profile() as profiler:
            step()
        print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25), file=sys.stderr)
    for line in sys.stdin:
        if line.strip() != "sample":
            break
        start = time.perf_counter()
        step()
        answer(seconds=time.perf_counter() - start)
    answer(resident_bytes=peak_resident_bytes())


main()
