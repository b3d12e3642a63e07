"""Time an LLR-2 step of WRN-16-4 at 32x32x3 against PyTorch's, in one process, the two taking turns.

python tests/figures/against_torch.py [ROUNDS] prints a line of JSON. Needs torch, installed by hand. PyTorch's step is
written as public code writes it: channels_last, the linear term by double backpropagation. Same network (batch norm),
batch of 64, uniform start, two sign steps, SGD with momentum; both have all cores.
"""

import json
import os
import sys
import time

# As `llrflow` has it: a device may wait for another for as long as PyTorch has the cores.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_collective_call_terminate_timeout_seconds=86400")

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import llrflow
from llrflow.program.state import Batch

BATCH, DEPTH, WIDTH, EPSILON, LAMBDA, MU = 64, 16, 4, 8 / 255, 4.0, 3.0


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        changes = stride > 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        out = F.silu(self.norm1(h))
        h = h if self.shortcut is None else self.shortcut(out)
        return h + self.conv2(F.silu(self.norm2(self.conv1(out))))


class WideResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths = [16, *(base * WIDTH for base in (16, 32, 64))]
        blocks = []
        for stage in range(3):
            for number in range((DEPTH - 4) // 6):
                stride = 2 if stage > 0 and number == 0 else 1
                blocks.append(Block(widths[stage] if number == 0 else widths[stage + 1], widths[stage + 1], stride))
        self.stem, self.blocks = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.Sequential(*blocks)
        self.norm, self.logits = nn.BatchNorm2d(widths[-1]), nn.Linear(widths[-1], 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        h = self.blocks(self.stem((images - 0.5) / 0.25))
        return self.logits(F.silu(self.norm(h)).mean((2, 3)))


class Theirs:
    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.model = WideResNet().to(memory_format=torch.channels_last).train()
        x = torch.from_numpy(images.astype(np.float32) / 255).permute(0, 3, 1, 2)
        self.x, self.y = x.contiguous(memory_format=torch.channels_last), torch.from_numpy(labels).long()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.parameters = sum(p.numel() for p in self.model.parameters())

    def losses(self, images: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.model(images), self.y, reduction="none")

    def step(self) -> None:
        inner = (1, 2, 3)
        x = self.x.detach().requires_grad_()
        loss = self.losses(x)
        (gradient,) = torch.autograd.grad(loss.sum(), x, create_graph=True)
        fixed_loss, fixed_gradient = loss.detach(), gradient.detach()
        delta = torch.empty_like(self.x).uniform_(-EPSILON, EPSILON)
        for _ in range(2):
            delta.requires_grad_()
            error = (self.losses(self.x + delta) - fixed_loss - (delta * fixed_gradient).sum(inner)).abs()
            (ascent,) = torch.autograd.grad(error.sum(), delta)
            delta = (delta.detach() + 1.25 * EPSILON * ascent.sign()).clamp(-EPSILON, EPSILON)
            delta = (self.x + delta).clamp(0, 1) - self.x
        slope = (delta * gradient).sum(inner)
        error = (self.losses(self.x + delta) - loss - slope).abs()
        objective = (loss + LAMBDA * error + MU * slope.abs()).mean()
        self.optimizer.zero_grad()
        objective.backward()
        self.optimizer.step()


class Ours:
    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        at = {"at": "llr"}
        spec = {
            "llrflow": 1,
            "name": "against-torch",
            "data": {"name": "synthetic"},
            "model": {"type": "wide_resnet", "depth": DEPTH, "width": WIDTH, "activation": "silu"},
            "threat": {"norm": "linf", "epsilon": EPSILON},
            "objective": {
                "perturbations": {"llr": {"maximize": {"type": "local_linearity"}, "steps": 2}},
                "terms": {
                    "gamma": {"type": "local_linearity", "weight": LAMBDA, **at},
                    "slope": {"type": "gradient_inner_product", "weight": MU, **at},
                },
            },
            "optimizer": {"type": "sgd", "learning_rate": 0.1, "momentum": 0.9},
            "train": {"steps": 1000, "batch_size": BATCH},
        }
        self.program = llrflow.compile(llrflow.load_spec(spec))
        self.state, self.batch = self.program.init(), Batch(images, labels, np.arange(BATCH, dtype=np.int32))
        shapes = self.program.abstract_state().params
        self.parameters = sum(leaf.size for module in shapes.values() for leaf in module.values())

    def step(self) -> None:
        self.state, metrics = self.program.train_step(self.state, self.batch, 0)
        float(np.asarray(metrics["objective"])[0])


def main(rounds: int = 7) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (BATCH, 32, 32, 3), np.uint8), rng.integers(0, 10, BATCH, np.int32)
    sides = {"llrflow": Ours(images, labels), "torch": Theirs(images, labels)}
    assert len({side.parameters for side in sides.values()}) == 1, {n: s.parameters for n, s in sides.items()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for step in range(rounds + 1):
        for name, side in sides.items():
            began = time.perf_counter()
            side.step()
            if step:
                times[name].append(time.perf_counter() - began)
    medians = {name: round(float(np.median(taken)), 3) for name, taken in times.items()}
    ratio = float(np.median(np.array(times["llrflow"]) / np.array(times["torch"])))
    print(json.dumps({**medians, "ratio": round(ratio, 3), "parameters": sides["torch"].parameters}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
