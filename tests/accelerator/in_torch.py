"""The same steps in PyTorch, as public code writes them: channels_last, autocast, LLR by double backpropagation."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from typing import Any

from setting import NETWORKS, Box, Setting, arguments, emit

EPSILON, STEP = 8 / 255, 2 / 255
SECONDS, LEAST = 1.0, 3
DRY = {"WRN-10-1": Setting({"type": "wide_resnet", "depth": 10, "width": 1}, (8, 8, 3), 10, (4,))}


def network(setting: Setting) -> Any:
    """WRN or PreActResNet-18 (pre-activation blocks), or ResNet-50 (bottlenecks)."""
    import torch.nn.functional as F
    from torch import nn

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.norms = nn.ModuleList([nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)])
            self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
            changes = stride > 1 or inputs != outputs
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None

        def forward(self, h: Any) -> Any:
            out = F.relu(self.norms[0](h))
            h = h if self.shortcut is None else self.shortcut(out)
            return h + self.second(F.relu(self.norms[1](self.first(out))))

    class Bottleneck(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            inner = outputs // 4
            sizes = ((inputs, inner, 1, 1), (inner, inner, 3, stride), (inner, outputs, 1, 1))
            parts = []
            for number, (before, after, kernel, step) in enumerate(sizes):
                convolution = nn.Conv2d(before, after, kernel, step, kernel // 2, bias=False)
                parts += [convolution, nn.BatchNorm2d(after), *([nn.ReLU()] if number < 2 else [])]
            self.body, self.shortcut = nn.Sequential(*parts), nn.Identity()
            if stride > 1 or inputs != outputs:
                projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
                self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

        def forward(self, h: Any) -> Any:
            return F.relu(self.body(h) + self.shortcut(h))

    def staged(block: Any, first: int, widths: list[int], counts: list[int]) -> Any:
        blocks, before = [], first
        for stage, (width, count) in enumerate(zip(widths, counts, strict=True)):
            for number in range(count):
                blocks.append(block(before, width, 2 if stage and not number else 1))
                before = width
        return nn.Sequential(*blocks)

    kind, fields = setting.model["type"], setting.model
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    if kind == "resnet_v1":
        stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        body = staged(Bottleneck, 64, [256, 512, 1024, 2048], [3, 4, 6, 3])
        return nn.Sequential(*stem, body, *pooled, nn.Linear(2048, setting.classes))
    first, widths, counts = 64, [64, 128, 256, 512], [2, 2, 2, 2]
    if kind == "wide_resnet":
        first, widths = 16, [base * fields["width"] for base in (16, 32, 64)]
        counts = [(fields["depth"] - 4) // 6] * 3
    stem, body = nn.Conv2d(3, first, 3, 1, 1, bias=False), staged(Block, first, widths, counts)
    ending = [nn.BatchNorm2d(widths[-1]), nn.ReLU(), *pooled, nn.Linear(widths[-1], setting.classes)]
    return nn.Sequential(stem, body, *ending)


def steps(model: Any, x: Any, y: Any, search: int, precision: str) -> dict[str, Callable[[], None]]:
    """One optimizer step of each method."""
    import torch
    import torch.nn.functional as F

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    inner = (1, 2, 3)

    def logits(images: Any) -> Any:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            return model(images).float()

    def losses(images: Any) -> Any:
        return F.cross_entropy(logits(images), y, reduction="none")

    def divergence(images: Any, clean: Any) -> Any:
        return F.kl_div(F.log_softmax(logits(images), 1), clean, reduction="sum")

    def update(objective: Any) -> None:
        optimizer.zero_grad(set_to_none=True)
        objective.backward()
        optimizer.step()

    def searched(value: Callable[[Any], Any], steps: int, size: float) -> Any:
        delta = torch.empty_like(x).uniform_(-EPSILON, EPSILON)
        for _ in range(steps):
            delta.requires_grad_()
            (ascent,) = torch.autograd.grad(value(delta), delta)
            delta = (delta.detach() + size * ascent.sign()).clamp(-EPSILON, EPSILON)
            delta = (x + delta).clamp(0, 1) - x
        return delta.detach()

    def pgd() -> None:
        update(losses(x + searched(lambda delta: losses(x + delta).sum(), search, STEP)).mean())

    def trades() -> None:
        clean = F.softmax(logits(x), 1).detach()
        delta = searched(lambda delta: divergence(x + delta, clean), search, STEP)
        outputs = logits(x)
        kl = F.kl_div(F.log_softmax(logits(x + delta), 1), F.softmax(outputs, 1), reduction="batchmean")
        update(F.cross_entropy(outputs, y) + 6.0 * kl)

    def llr() -> None:
        images = x.detach().requires_grad_()
        loss = losses(images)
        (gradient,) = torch.autograd.grad(loss.sum(), images, create_graph=True)
        fixed, direction = loss.detach(), gradient.detach()

        def error(delta: Any) -> Any:
            return (losses(x + delta) - fixed - (delta * direction).sum(inner)).abs().sum()

        delta = searched(error, 2, 1.25 * EPSILON)
        slope = (delta * gradient).sum(inner)
        update((loss + 4.0 * (losses(x + delta) - loss - slope).abs() + 3.0 * slope.abs()).mean())

    return {
        "standard": lambda: update(losses(x).mean()),
        "LLR-2": llr,
        f"PGD-{search}": pgd,
        f"TRADES-{search}": trades,
    }


def main(dry: bool, seconds: float) -> None:
    if importlib.util.find_spec("torch") is None:
        emit(cut="PyTorch: it is not installed")
        return
    import torch

    device = "cuda" if torch.cuda.is_available() and not dry else "cpu"
    if device == "cpu" and not dry:
        emit(cut="PyTorch: it finds no GPU")
        return
    torch.backends.cudnn.benchmark = True
    box, wait = Box(seconds), torch.cuda.synchronize if device == "cuda" else lambda: None
    networks = DRY if dry else NETWORKS
    for precision in ("bfloat16", "tf32", "float32"):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
        for name, setting in networks.items():
            batch = setting.batches[0]
            model = network(setting).to(device, memory_format=torch.channels_last).train()
            x = torch.rand(batch, 3, *setting.image_shape[:2], device=device)
            x = x.contiguous(memory_format=torch.channels_last)
            y = torch.randint(0, setting.classes, (batch,), device=device)
            for method, step in steps(model, x, y, 2 if dry else 10, precision).items():
                row = {"network": name, "method": method, "precision": precision, "batch": batch}
                if not box.room(f"PyTorch {name} {method} {precision}"):
                    continue
                began = time.perf_counter()
                try:
                    step()
                    wait()
                    once = time.perf_counter()
                    step()
                    wait()
                    count = 1 if dry else max(LEAST, round(SECONDS / (time.perf_counter() - once)))
                    first = time.perf_counter()
                    for _ in range(count):
                        step()
                    wait()
                    rate = batch * count / (time.perf_counter() - first)
                except RuntimeError as error:  # out of memory is one
                    emit(**row, torch_refused=str(error).splitlines()[0][:160])
                else:
                    emit(**row, torch_images_per_second=rate, torch=torch.__version__)
                box.took(time.perf_counter() - began)


if __name__ == "__main__":
    given = arguments()
    main(given.dry, given.seconds)
