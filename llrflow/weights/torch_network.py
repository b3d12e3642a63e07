"""A network that llrflow exported, in PyTorch; needs this file, model.pt and model.json, and PyTorch alone.

    from network import load
    net = load("folder with the three files")   # a torch.nn.Module in evaluation mode
    net(images)                                 # [B,C,H,W] in [0,1] -> logits [B,K]

Its state_dict is that of model.pt, whose names are those of the layout that model.json names.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]

STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def load(folder: str | Path) -> Network:
    """The network in a folder, in evaluation mode."""
    record = json.loads((Path(folder) / "model.json").read_text())
    weights = torch.load(Path(folder) / "model.pt", weights_only=True)
    return Network(record["network"], record["names"], weights).eval()


class Network(torch.nn.Module):
    """Images [B,C,H,W] in [0,1] -> logits [B,K]. BatchNorm uses its moving statistics, in training mode too."""

    def __init__(self, config: dict[str, Any], names: dict[str, str], weights: dict[str, Any]) -> None:
        """`config` is the `model` block of a spec, `names` has the names in `weights` by those in llrflow."""
        super().__init__()
        self._config, self._names = config, names
        for name, tensor in weights.items():
            *path, last = name.split(".")
            module: Any = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, torch.nn.Module())
                module = module._modules[part]
            if last.startswith("running_"):
                module.register_buffer(last, tensor)
            else:
                module.register_parameter(last, torch.nn.Parameter(tensor))
        for name in ("mean", "std"):
            self.register_buffer(f"_{name}", torch.tensor(config[name]).reshape(1, -1, 1, 1), persistent=False)

    def forward(self, images: Any) -> Any:
        """Logits [B,K]."""
        return getattr(self, f"_{self._config['type']}")((images - self._mean) / self._std)

    def _get(self, ours: str) -> Any:
        """A parameter or a buffer by its name in llrflow; None where there is none."""
        found: Any = self
        if ours not in self._names:
            return None
        for part in self._names[ours].split("."):
            found = getattr(found, part)
        return found

    def _conv(self, h: Any, name: str, stride: int = 1, groups: int = 1) -> Any:
        weight = self._get(f"{name}/w")
        edges = [around(side, weight.shape[-1], stride, self._config.get("padding", "same")) for side in h.shape[2:]]
        h = F.pad(h, (*edges[1], *edges[0]))
        return F.conv2d(h, weight, self._get(f"{name}/b"), stride, groups=groups)

    def _linear(self, h: Any, name: str) -> Any:
        return F.linear(h, self._get(f"{name}/w"), self._get(f"{name}/b"))

    def _norm(self, h: Any, name: str) -> Any:
        kind, scale, offset = self._config["norm"], self._get(f"{name}/scale"), self._get(f"{name}/offset")
        if kind == "batch":
            mean, variance = (self._get(f"{name}/~/{which}_ema/average") for which in ("mean", "var"))
            return F.batch_norm(h, mean, variance, scale, offset, eps=1e-5)
        groups = next(g for g in (8, 4, 2, 1) if h.shape[1] % g == 0)
        return F.group_norm(h, groups, scale, offset, eps=1e-5) if kind == "group" else h

    def _layer_norm(self, h: Any, name: str) -> Any:
        """Over the last axis."""
        return F.layer_norm(h, h.shape[-1:], self._get(f"{name}/scale"), self._get(f"{name}/offset"), 1e-6)

    def _act(self, h: Any) -> Any:
        return getattr(torch if self._config["activation"] == "tanh" else F, self._config["activation"])(h)

    def _activated(self, h: Any, name: str) -> Any:
        return self._act(self._norm(h, name))

    def _mlp(self, h: Any) -> Any:
        return self._dense(h, ["linear", *(f"linear_{n}" for n in range(1, len(self._config["widths"]) + 1))])

    def _cnn(self, h: Any) -> Any:
        channels = self._config["channels"]
        strides = self._config["strides"] or (1, *(2 for _ in channels[1:]))
        for n, stride in enumerate(strides):
            h = self._activated(self._conv(h, f"conv2_d_{n}" if n else "conv2_d", stride), f"norm_{n}")
        return self._dense(h, ["linear", "linear_1"] if self._config["dense"] else ["linear"])

    def _dense(self, h: Any, names: list[str]) -> Any:
        h = h.permute(0, 2, 3, 1).flatten(1)  # llrflow has the channels last
        for name in names[:-1]:
            h = self._act(self._linear(h, name))
        return self._linear(h, names[-1])

    def _resnet(self, h: Any) -> Any:
        config = self._config
        h = self._conv(h, "stem")
        for stage in range(len(config["widths"])):
            for block in range(config["blocks"]):
                h = self._pre(h, f"stage{stage}_block{block}_", 2 if stage and not block else 1)
        return self._pooled(self._activated(h, "final_norm"))

    def _wide_resnet(self, h: Any) -> Any:
        h = self._stages(self._stem(h, False), [(self._config["depth"] - 4) // 6] * 3, self._pre)
        return self._pooled(self._activated(h, "final_norm"))

    def _resnet_v2(self, h: Any) -> Any:
        h = self._stages(self._stem(h, False), STAGES[self._config["depth"]], self._pre)
        return self._pooled(self._activated(h, "final_norm") if self._config.get("final_norm", True) else h)

    _preact_resnet = _resnet_v2

    def _resnet_v1(self, h: Any) -> Any:
        return self._pooled(self._stages(self._stem(h, True), STAGES[self._config["depth"]], self._post))

    _denoise_resnet = _resnet_v1

    def _stem(self, h: Any, activated: bool) -> Any:
        imagenet = self._config["stem"] == "imagenet"
        h = self._conv(h, "stem", 2 if imagenet else 1)
        h = self._activated(h, "stem_norm") if activated else h
        if not imagenet:
            return h
        edges = [around(side, 3, 2, self._config.get("padding", "same")) for side in h.shape[2:]]
        return F.max_pool2d(F.pad(h, (*edges[1], *edges[0]), value=-math.inf), 3, 2)

    def _stages(self, h: Any, counts: Any, block: Any) -> Any:
        for stage, count in enumerate(counts):
            for number in range(count):
                h = block(h, f"stage{stage}_block{number}/", 2 if stage and not number else 1)
            if self._config["type"] == "denoise_resnet":
                h = self._denoised(h, f"stage{stage}_denoise")
        return h

    def _pre(self, h: Any, at: str, stride: int) -> Any:
        """A pre-activation block of two or three convolutions."""
        count = 3 if self._get(f"{at}conv3/w") is not None else 2
        out = self._activated(h, f"{at}norm1")
        if self._get(f"{at}shortcut/w") is not None:
            raw = self._config.get("shortcut") == "raw"
            h = self._conv(h if raw else out, f"{at}shortcut", stride)
        for n in range(1, count + 1):
            out = self._activated(out, f"{at}norm{n}") if n > 1 else out
            out = self._conv(out, f"{at}conv{n}", stride if n == count - 1 else 1)
        return h + out

    def _post(self, h: Any, at: str, stride: int) -> Any:
        """A post-activation block of two or three convolutions."""
        count, out = 3 if self._get(f"{at}conv3/w") is not None else 2, h
        for n in range(1, count + 1):
            out = self._norm(self._conv(out, f"{at}conv{n}", stride if n == count - 1 else 1), f"{at}norm{n}")
            out = self._act(out) if n < count else out
        if self._get(f"{at}shortcut/w") is not None:
            h = self._norm(self._conv(h, f"{at}shortcut", stride), f"{at}shortcut_norm")
        return self._act(h + out)

    def _denoised(self, h: Any, name: str) -> Any:
        parts = [self._conv(h, f"{name}_{part}") if self._config["embed"] else h for part in ("theta", "phi")]
        theta, phi, values = (part.flatten(2) for part in (*parts, h))
        if self._config["denoise"] == "gaussian":
            affinity = torch.softmax(torch.einsum("bdi,bdj->bij", theta, phi) / math.sqrt(theta.shape[1]), -1)
            out = torch.einsum("bij,bcj->bci", affinity, values)
        else:
            out = torch.einsum("bdi,bdc->bci", theta, torch.einsum("bdj,bcj->bdc", phi, values)) / theta.shape[2]
        return h + self._norm(self._conv(out.reshape(h.shape), f"{name}_conv"), f"{name}_norm")

    def _pooled(self, h: Any) -> Any:
        return self._linear(h.mean((2, 3)), "logits")

    def _vit(self, h: Any) -> Any:
        config = self._config
        h = self._conv(h, "patches", config["patch"]).flatten(2).transpose(1, 2)
        if config["pool"] == "token":
            h = torch.cat([self._get("~/token").expand(len(h), -1, -1), h], 1)
        h = h + self._get("~/positions")
        for block in range(config["depth"]):
            at = f"block{block}/"
            q, k, v = self._heads(self._linear(self._layer_norm(h, f"{at}norm1"), f"{at}qkv"))
            weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1)
            h = h + self._linear((weights @ v).transpose(1, 2).flatten(2), f"{at}projection")
            h = h + self._expanded(self._layer_norm(h, f"{at}norm2"), at)
        h = self._layer_norm(h, "final_norm")
        return self._linear(h[:, 0] if config["pool"] == "token" else h.mean(1), "logits")

    def _heads(self, qkv: Any) -> Any:
        return qkv.reshape(*qkv.shape[:2], 3, self._config["heads"], -1).permute(2, 0, 3, 1, 4)

    def _expanded(self, h: Any, at: str) -> Any:
        return self._linear(self._act(self._linear(h, f"{at}expand")), f"{at}contract")

    def _convnext(self, h: Any) -> Any:
        config, last = self._config, lambda h: h.permute(0, 2, 3, 1)
        h = self._layer_norm(last(self._conv(h, "stem", config["patch"])), "stem_norm")
        for stage, depth in enumerate(config["depths"]):  # [B,H,W,C]
            if stage:
                h = self._layer_norm(h, f"stage{stage}_downsample_norm")
                h = last(self._conv(h.permute(0, 3, 1, 2), f"stage{stage}_downsample", 2))
            for block in range(depth):
                at = f"stage{stage}_block{block}/"
                out = last(self._conv(h.permute(0, 3, 1, 2), f"{at}depthwise", groups=h.shape[-1]))
                h = h + self._get(f"{at}~/scale") * self._expanded(self._layer_norm(out, f"{at}norm"), at)
        return self._linear(self._layer_norm(h.mean((1, 2)), "final_norm"), "logits")


def around(side: int, kernel: int, stride: int, padding: str) -> tuple[int, int]:
    """Zeros before and after a side: `torch`, as many on both ends; `same`, one more at the end if they are odd."""
    if padding == "torch":
        before = max(0, kernel - stride + 1) // 2
        return before, before
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2
