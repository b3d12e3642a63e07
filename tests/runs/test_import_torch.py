"""PyTorch's networks of every known layout, imported: the same logits and gradients; and out again."""

import importlib.util
import json
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import llrflow
from llrflow.base.errors import CheckpointError, SpecError
from llrflow.runs.exports import export_to
from llrflow.runs.importing import import_model

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'llrflow[torch]'")
nn, F = torch.nn, torch.nn.functional


def conv(a, b, size, stride=1, padding=None):
    return nn.Conv2d(a, b, size, stride, size // 2 if padding is None else padding, bias=False)


class Wide(nn.Module):
    """RobustBench's names."""

    class Block(nn.Module):
        def __init__(self, a, b, stride):
            super().__init__()
            self.bn1, self.conv1 = nn.BatchNorm2d(a), conv(a, b, 3, stride)
            self.bn2, self.conv2 = nn.BatchNorm2d(b), conv(b, b, 3)
            self.convShortcut = conv(a, b, 1, stride) if a != b else None

        def forward(self, x):
            out = F.relu(self.bn1(x))
            shortcut = x if self.convShortcut is None else self.convShortcut(out)
            return shortcut + self.conv2(F.relu(self.bn2(self.conv1(out))))

    class Group(nn.Module):
        def __init__(self, count, a, b, stride):
            super().__init__()
            self.layer = nn.Sequential(*(Wide.Block(a if not n else b, b, 1 if n else stride) for n in range(count)))

        def forward(self, x):
            return self.layer(x)

    def __init__(self, depth, width):
        super().__init__()
        count, (a, b, c, d) = (depth - 4) // 6, (16, 16 * width, 32 * width, 64 * width)
        self.conv1, self.bn1, self.fc = conv(3, a, 3), nn.BatchNorm2d(d), nn.Linear(d, 10)
        self.block1, self.block2 = Wide.Group(count, a, b, 1), Wide.Group(count, b, c, 2)
        self.sub_block1, self.block3 = Wide.Group(1, a, b, 1), Wide.Group(count, c, d, 2)

    def forward(self, x):
        x = F.relu(self.bn1(self.block3(self.block2(self.block1(self.conv1(x))))))
        return self.fc(F.avg_pool2d(x, x.shape[-1]).flatten(1))


class DeepMind(nn.Module):
    """DeepMind's names, SiLU, images normalised by buffers, strides padded at the end alone."""

    class Block(nn.Module):
        def __init__(self, a, b, stride):
            super().__init__()
            self.batchnorm_0, self.conv_0 = nn.BatchNorm2d(a), conv(a, b, 3, stride, 0)
            self.batchnorm_1, self.conv_1 = nn.BatchNorm2d(b), conv(b, b, 3)
            self.shortcut = conv(a, b, 1, stride) if a != b else None
            self.edges = (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1)

        def forward(self, x):
            out = F.silu(self.batchnorm_0(x))
            shortcut = x if self.shortcut is None else self.shortcut(out)
            return shortcut + self.conv_1(F.silu(self.batchnorm_1(self.conv_0(F.pad(out, self.edges)))))

    class Group(nn.Module):
        def __init__(self, a, b, stride):
            super().__init__()
            self.block = nn.Sequential(DeepMind.Block(a, b, stride), DeepMind.Block(b, b, 1))

        def forward(self, x):
            return self.block(x)

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.49, 0.48, 0.44])[:, None, None])
        self.register_buffer("std", torch.tensor([0.25, 0.24, 0.26])[:, None, None])
        self.init_conv = conv(3, 16, 3)
        self.layer = nn.Sequential(DeepMind.Group(16, 32, 1), DeepMind.Group(32, 64, 2), DeepMind.Group(64, 128, 2))
        self.batchnorm, self.logits = nn.BatchNorm2d(128), nn.Linear(128, 10)

    def forward(self, x):
        x = F.silu(self.batchnorm(self.layer(self.init_conv((x - self.mean) / self.std))))
        return self.logits(x.mean((2, 3)))


class ResNet(nn.Module):
    """torchvision's names; with `shortcut` and a small stem those of kuangliu's for CIFAR."""

    class Block(nn.Module):
        def __init__(self, a, width, stride, bottleneck, shortcut):
            super().__init__()
            b = 4 * width if bottleneck else width
            sizes = [(a, width, 1, 1), (width, width, 3, stride), (width, b, 1, 1)]
            for n, one in enumerate(sizes if bottleneck else [(a, b, 3, stride), (b, b, 3, 1)], 1):
                setattr(self, f"conv{n}", conv(*one))
                setattr(self, f"bn{n}", nn.BatchNorm2d(one[1]))
            self.count, self.shortcut_name = (3 if bottleneck else 2), shortcut
            if stride > 1 or a != b:
                setattr(self, shortcut, nn.Sequential(conv(a, b, 1, stride), nn.BatchNorm2d(b)))

        def forward(self, x):
            out = x
            for n in range(1, self.count + 1):
                out = getattr(self, f"bn{n}")(getattr(self, f"conv{n}")(out))
                out = F.relu(out) if n < self.count else out
            return F.relu(out + (getattr(self, self.shortcut_name)(x) if hasattr(self, self.shortcut_name) else x))

    def __init__(self, counts, bottleneck, width=4, shortcut="downsample", head="fc"):
        super().__init__()
        self.imagenet = shortcut == "downsample"
        self.conv1, self.bn1 = conv(3, width, 7, 2) if self.imagenet else conv(3, width, 3), nn.BatchNorm2d(width)
        a, self.head = width, head
        for stage, count in enumerate(counts):
            blocks = []
            for n in range(count):
                w, stride = width * 2**stage, 2 if stage and not n else 1
                blocks.append(ResNet.Block(a, w, stride, bottleneck, shortcut))
                a = 4 * w if bottleneck else w
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        setattr(self, head, nn.Linear(a, 10))

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(x, 3, 2, 1) if self.imagenet else x
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return getattr(self, self.head)(x.mean((2, 3)))


class PreAct(nn.Module):
    """kuangliu's names; `final` with a norm before the last layer, `raw` with RobustBench's older shortcut."""

    class Block(nn.Module):
        def __init__(self, a, b, stride, raw):
            super().__init__()
            self.bn1, self.conv1 = nn.BatchNorm2d(a), conv(a, b, 3, stride)
            self.bn2, self.conv2 = nn.BatchNorm2d(b), conv(b, b, 3)
            self.raw = raw
            if stride > 1 or a != b:
                self.shortcut = nn.Sequential(conv(a, b, 1, stride))

        def forward(self, x):
            out = F.relu(self.bn1(x))
            shortcut = self.shortcut(x if self.raw else out) if hasattr(self, "shortcut") else x
            return shortcut + self.conv2(F.relu(self.bn2(self.conv1(out))))

    def __init__(self, final=True, raw=False, width=4):
        super().__init__()
        self.conv1, a = conv(3, width, 3), width
        for stage in range(4):
            b = width * 2**stage
            blocks = PreAct.Block(a, b, 2 if stage else 1, raw), PreAct.Block(b, b, 1, raw)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            a = b
        if final:
            self.bn = nn.BatchNorm2d(a)
        self.final, self.linear = final, nn.Linear(a, 10)

    def forward(self, x):
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        x = F.relu(self.bn(x)) if self.final else x
        return self.linear(F.avg_pool2d(x, x.shape[-1]).flatten(1))


class ViT(nn.Module):
    """timm's names."""

    class Block(nn.Module):
        def __init__(self, width, heads):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
            self.attn, self.mlp, self.heads = nn.Module(), nn.Module(), heads
            self.attn.qkv, self.attn.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x):
            b, n, c = x.shape
            qkv = self.attn.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
            x = x + self.attn.proj(F.scaled_dot_product_attention(*qkv).transpose(1, 2).reshape(b, n, c))
            return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))

    def __init__(self, width=12, depth=2, heads=3, patch=8, tokens=16):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens + 1, width))
        self.blocks = nn.Sequential(*(ViT.Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width, 1e-6), nn.Linear(width, 10)

    def forward(self, x):
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


class ConvNeXt(nn.Module):
    """timm's names."""

    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.conv_dw = nn.Conv2d(width, width, 7, padding=3, groups=width)
            self.norm, self.mlp = nn.LayerNorm(width, 1e-6), nn.Module()
            self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
            self.gamma = nn.Parameter(torch.ones(width))

        def forward(self, x):
            out = self.norm(self.conv_dw(x).permute(0, 2, 3, 1))
            return x + (self.gamma * self.mlp.fc2(F.gelu(self.mlp.fc1(out)))).permute(0, 3, 1, 2)

    class Norm(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    class Stage(nn.Module):
        def __init__(self, a, b, depth):
            super().__init__()
            down = nn.Sequential(ConvNeXt.Norm(a, 1e-6), nn.Conv2d(a, b, 2, 2))
            self.downsample = nn.Identity() if a == b else down
            self.blocks = nn.Sequential(*(ConvNeXt.Block(b) for _ in range(depth)))

        def forward(self, x):
            return self.blocks(self.downsample(x))

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, 4), ConvNeXt.Norm(8, 1e-6))
        self.stages = nn.Sequential(ConvNeXt.Stage(8, 8, 1), ConvNeXt.Stage(8, 16, 2))
        self.head = nn.Module()
        self.head.norm, self.head.fc = nn.LayerNorm(16, 1e-6), nn.Linear(16, 10)

    def forward(self, x):
        return self.head.fc(self.head.norm(self.stages(self.stem(x)).mean((2, 3))))


def randomised(net, side=32):
    """Random numbers everywhere, moving statistics as well, and logits of about 1; in evaluation mode."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, array in net.state_dict().items():
            if name.endswith("running_var") or (array.ndim == 1 and name.endswith("weight")):
                array.uniform_(0.5, 1.5)
            elif array.ndim <= 1 and array.is_floating_point():
                array.normal_(0, 0.2)
            elif name.endswith(("cls_token", "pos_embed")):
                array.normal_(0, 0.5)
            elif array.ndim > 1 and "mean" not in name and "std" not in name:
                array.normal_(0, (2 / array[0].numel()) ** 0.5)
        head = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
        head.weight /= net.eval()(torch.rand(8, 3, side, side)).std()
    return net


PLAIN = {"mean": [0.0], "std": [1.0]}
NETWORKS = {
    "wide": (lambda: Wide(10, 2), {"type": "wide_resnet", "depth": 10, "width": 2, **PLAIN}, 32),
    "deepmind": (DeepMind, {"type": "wide_resnet", "depth": 16, "width": 2}, 32),
    "resnet50": (
        lambda: ResNet((3, 4, 6, 3), True), {"type": "resnet_v1", "depth": 50, "width": 4, **PLAIN}, 64
    ),
    "cifar": (
        lambda: ResNet((2, 2, 2, 2), False, shortcut="shortcut", head="linear"),
        {"type": "resnet_v1", "depth": 18, "width": 4, **PLAIN},
        32,
    ),
    "preact": (PreAct, {"type": "preact_resnet", "width": 4, "shortcut": "activated", **PLAIN}, 32),
    "preact final raw": (
        lambda: PreAct(True, True), {"type": "preact_resnet", "width": 4, "shortcut": "raw", **PLAIN}, 32
    ),
    "preact raw": (
        lambda: PreAct(False, True), {"type": "preact_resnet", "width": 4, "shortcut": "raw", **PLAIN}, 32
    ),
    "vit": (ViT, {"type": "vit", "width": 12, "depth": 2, "heads": 3, "patch": 8, **PLAIN}, 32),
    "convnext": (ConvNeXt, {"type": "convnext", "depths": [1, 2], "widths": [8, 16], **PLAIN}, 32),
}  # fmt: skip


@pytest.fixture(scope="module")
def spec_of(tiny, write_spec, tmp_path_factory):
    """spec_of(model block, side of the images) -> path of a spec."""
    folder = tmp_path_factory.mktemp("specs")

    def write(model, side):
        spec = tiny()
        options = {"height": side, "width": side, "train": 256, "test": 48}
        spec["data"] = {"name": "synthetic", "options": options, "dir": spec["data"]["dir"]}
        spec["model"], spec["threat"] = model, {"norm": "linf", "epsilon": 8 / 255}
        return write_spec(folder / f"{len(list(folder.iterdir()))}.yaml", spec)

    return write


def both(net, model, side, seed=0):
    """(logits, gradient of a fixed mixture of them) of PyTorch and of ours, on the same images."""
    rng = np.random.default_rng(seed)
    images, mixture = rng.random((4, side, side, 3), np.float32), rng.normal(size=(4, 10)).astype(np.float32)
    inputs = torch.from_numpy(images).movedim(-1, 1).requires_grad_()
    logits = net(inputs)
    (gradient,) = torch.autograd.grad(logits, inputs, torch.from_numpy(mixture))
    ours, pull = jax.vjp(model.logits, images)
    theirs = logits.detach().numpy(), gradient.movedim(1, -1).numpy()
    return theirs, (np.asarray(ours), np.asarray(pull(mixture)[0]))


def assert_alike(net, model, side):
    (logits, gradient), (ours, pulled) = both(net, model, side)
    assert np.ptp(logits) > 0.5
    np.testing.assert_allclose(ours, logits, atol=1e-4)
    assert np.linalg.norm(pulled - gradient) <= 1e-3 * np.linalg.norm(gradient)


@pytest.fixture(scope="module")
def imported(spec_of, tmp_path_factory):
    """imported(name) -> (the network in PyTorch, the run folder it was imported into)."""
    made = {}

    def make(name):
        if name not in made:
            network, model, side = NETWORKS[name]
            net, folder = randomised(network(), side), tmp_path_factory.mktemp("imported")
            weights = {f"module.{n}": array for n, array in net.state_dict().items()}
            torch.save({"state_dict": weights, "epoch": 7, "args": ["x", 0.5]}, folder / "net.pth")
            import_model(folder / "net.pth", spec_of(model, side), folder / "run")
            made[name] = net, folder / "run"
        return made[name]

    return make


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_and_gradients_are_those_of_pytorch(name, imported):
    net, run = imported(name)
    assert_alike(net, llrflow.load_model(run), NETWORKS[name][2])


def test_a_layer_that_normalises_belongs_to_the_model(spec_of, tmp_path):
    class Normalised(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.normalize, self.model = nn.Module(), inner
            self.normalize.register_buffer("mean", torch.tensor([0.5, 0.4, 0.3])[None, :, None, None])
            self.normalize.register_buffer("std", torch.tensor([0.3, 0.2, 0.25])[None, :, None, None])

        def forward(self, x):
            return self.model((x - self.normalize.mean) / self.normalize.std)

    network, model, side = NETWORKS["preact"]
    net = Normalised(randomised(network())).eval()
    torch.save(net.state_dict(), tmp_path / "net.pt")
    bare = {name: value for name, value in model.items() if name not in PLAIN}
    record = import_model(tmp_path / "net.pt", spec_of(bare, side), tmp_path / "run")
    assert record.imported.set["model.mean"] == [0.5, 0.4, 0.3]
    assert_alike(net, llrflow.load_model(tmp_path / "run"), side)


def test_half_precision_and_views_are_read_as_pytorch_reads_them(tmp_path):
    from llrflow.weights.torch_file import read_torch

    whole = torch.arange(24.0).reshape(4, 6)
    held = {
        "half": whole.half(),
        "bf": whole.bfloat16(),
        "t": whole.t(),
        "part": whole[1:3, ::2],
        "parameter": nn.Parameter(whole),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 3),
        "n": [1, 2.5, "x", None, np.int64(4)],
    }
    torch.save(held, tmp_path / "a.pt")
    found = read_torch(tmp_path / "a.pt")
    for name, tensor in held.items():
        if name != "n":
            np.testing.assert_array_equal(found[name].astype(float), tensor.detach().double().numpy())
    assert found["n"][:4] == held["n"][:4] and found["n"][4] == 4


def test_whole_modules_and_files_of_old_versions_are_refused(tmp_path, spec_of):
    spec = spec_of(NETWORKS["vit"][1], 32)
    torch.save(nn.Linear(2, 3), tmp_path / "module.pt")
    torch.save({"w": torch.ones(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for file, says in (("module.pt", "could run any program: nothing was run"), ("old.pth", "before 1.6")):
        with pytest.raises(CheckpointError, match=says):
            import_model(tmp_path / file, spec, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def network_py(folder):
    spec = importlib.util.spec_from_file_location("exported_network", folder / "network.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(folder)


@pytest.mark.parametrize("name", ["preact", "convnext"])
def test_out_again_they_are_what_came_in(name, imported, tmp_path):
    net, run = imported(name)
    folder, record = export_to("torch", run, tmp_path / "out")
    weights = torch.load(folder / "model.pt", weights_only=True)
    ours = {n: array for n, array in net.state_dict().items() if not n.endswith("num_batches_tracked")}
    assert weights.keys() == ours.keys() and all(torch.equal(weights[n], ours[n]) for n in ours)
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network_py(folder)(x), net(x), rtol=1e-5, atol=1e-5)
    shortcut = ", shortcut activated" if name == "preact" else ""
    assert (
        f"must have activation {'relu' if name == 'preact' else 'gelu'}{shortcut}, mean [0.0], std [1.0]"
        in record.described
    )
    assert record.difference < 1e-4 and json.loads((folder / "model.json").read_text())["layout"] == record.layout


@pytest.mark.parametrize(
    ("model", "side"),
    [
        ({"type": "mlp", "widths": [8, 6], "activation": "tanh"}, 8),
        ({"type": "cnn", "channels": [4, 6], "dense": 8, "norm": "batch"}, 9),
        ({"type": "resnet", "widths": [4, 8], "norm": "group"}, 9),
        ({"type": "wide_resnet", "depth": 10, "width": 1, "norm": "none", "stem": "imagenet"}, 33),
        ({"type": "denoise_resnet", "depth": 18, "width": 4, "stem": "cifar", "padding": "torch"}, 16),
        ({"type": "denoise_resnet", "depth": 18, "width": 4, "stem": "cifar", "denoise": "dot_product"}, 16),
        ({"type": "resnet_v2", "depth": 50, "width": 2}, 32),
        ({"type": "vit", "width": 8, "depth": 1, "heads": 2, "patch": 3, "pool": "mean", "activation": "gelu"}, 8),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else "",
)  # fmt: skip
def test_every_network_goes_out(model, side, spec_of, tmp_path):
    from llrflow.program.compile import compile_spec
    from llrflow.runs.export_torch import _arrays, _layout_of
    from llrflow.weights.torch_network import Network

    program = compile_spec(llrflow.load_spec(spec_of(model, side)), training=False)
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda a: rng.uniform(0.1, 0.6, a.shape).astype(np.float32), program.abstract_state())

    class Held:
        variables = state.params, state.model_state

    block = program.spec.model
    weights, names = _arrays(Held, _layout_of(block)[1])
    tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
    net = Network({"type": model["type"], **block.model_dump()}, names, tensors).eval()
    images = rng.random((2, side, side, 3), np.float32)
    with torch.no_grad():
        theirs = net(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    ours = np.asarray(program.logits_fn(*Held.variables)(images))
    np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-3 * np.abs(ours).max())
    torch.save(tensors, tmp_path / "model.pt")
    said = spec_of({**model, "mean": list(block.mean), "std": list(block.std)}, side)
    import_model(tmp_path / "model.pt", said, tmp_path / "back")
    np.testing.assert_allclose(llrflow.load_model(tmp_path / "back").logits(images), ours, rtol=1e-5)


def test_what_other_programs_would_compute_otherwise_has_our_names(imported, spec_of, tmp_path, monkeypatch):
    import types

    from llrflow.runs import export_torch

    model = {"type": "wide_resnet", "depth": 10, "width": 1, "padding": "torch"}
    for norm, layout in (("batch", "RobustBench WideResNet"), ("group", "llrflow"), ("none", "llrflow")):
        block = llrflow.load_spec(spec_of({**model, "norm": norm}, 32)).model
        assert export_torch._layout_of(block)[0] == layout
    _, run = imported("convnext")
    other = {"convnext": types.SimpleNamespace(origin="plugin")}
    monkeypatch.setattr(export_torch, "entries", lambda group: other)
    with pytest.raises(SpecError, match="knows nothing of convnext, which is no network of llrflow's"):
        export_to("torch", run, tmp_path / "out")


def test_attacked_here_they_fool_there(imported, spec_of, tmp_path):
    net, run = imported("preact")
    model = llrflow.load_model(run)
    images = np.random.default_rng(3).random((48, 32, 32, 3), np.float32)
    labels = np.asarray(model.predict(images))
    found = model.attack(images, labels, {"type": "auto_attack"})
    folder, _ = export_to("torch", run, tmp_path / "out")
    back = import_model(folder / "model.pt", spec_of(NETWORKS["preact"][1], 32), tmp_path / "back")
    assert back.imported.layout == "PreActResNet with a final norm"
    exported, again = network_py(folder), llrflow.load_model(tmp_path / "back")
    assert found.success.mean() > 0.5
    for x in (images, np.asarray(found.x_adv)):
        with torch.no_grad():
            theirs = [n(torch.from_numpy(np.array(x)).movedim(-1, 1)).argmax(1).numpy() for n in (net, exported)]
        for predicted in (*theirs, np.asarray(again.predict(x))):
            np.testing.assert_array_equal(predicted, model.predict(x))


MEASURE = """
import resource, sys, time
from llrflow.runs.importing import import_model
began = time.monotonic()
import_model(*sys.argv[1:])
print(time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_a_wide_resnet_28_10_comes_in_soon_and_in_little_memory(spec_of, tmp_path):
    took = {}
    for depth, width in ((28, 1), (28, 10)):
        net = randomised(Wide(depth, width))
        torch.save(net.state_dict(), tmp_path / f"{width}.pt")
        spec = spec_of({"type": "wide_resnet", "depth": depth, "width": width, **PLAIN}, 32)
        arguments = [sys.executable, "-c", MEASURE, tmp_path / f"{width}.pt", spec, tmp_path / f"run{width}"]
        began = time.monotonic()
        done = subprocess.run(arguments, capture_output=True, text=True, check=True)
        took[width] = *map(float, done.stdout.split()), time.monotonic() - began
    size = (tmp_path / "10.pt").stat().st_size
    assert took[10][2] <= 20 and took[10][1] - took[1][1] <= 3 * size
    assert_alike(net, llrflow.load_model(tmp_path / "run10"), 32)
