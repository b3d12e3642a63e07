"""`from_torch`: a PyTorch module under the attacks is what it is in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llrflow
from llrflow.base.errors import SpecError

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'llrflow[torch]'")
KEY = jax.random.key(0)
LINF = {"norm": "linf", "epsilon": 0.1}


class Normalized(torch.nn.Module):
    """(x - mean) / std, as the networks of RobustBench begin."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4914, 0.4822, 0.4465])[None, :, None, None])
        self.register_buffer("std", torch.tensor([0.2471, 0.2435, 0.2616])[None, :, None, None])

    def forward(self, x):
        return (x - self.mean) / self.std


class Block(torch.nn.Module):
    """A pre-activation block of a WideResNet."""

    def __init__(self, width, out, stride):
        super().__init__()
        conv = lambda a, b, size, stride: torch.nn.Conv2d(a, b, size, stride, size // 2, bias=False)  # noqa: E731
        first = torch.nn.BatchNorm2d(width), torch.nn.ReLU(), conv(width, out, 3, stride)
        self.body = torch.nn.Sequential(*first, torch.nn.BatchNorm2d(out), torch.nn.ReLU(), conv(out, out, 3, 1))
        self.shortcut = conv(width, out, 1, stride)

    def forward(self, x):
        return self.body(x) + self.shortcut(x)


def wide_resnet(seed=0):
    torch.manual_seed(seed)
    stem, body = torch.nn.Conv2d(3, 8, 3, 1, 1, bias=False), [Block(8, 16, 1), Block(16, 32, 2)]
    head = torch.nn.BatchNorm2d(32), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    net = torch.nn.Sequential(Normalized(), stem, *body, *head, torch.nn.Linear(32, 5))
    with torch.no_grad():
        for _ in range(3):
            net(torch.rand(32, 3, 8, 8))  # moving statistics of some images
    return net.eval()


def linear(w, b):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(*w.shape[::-1])).eval()
    with torch.no_grad():
        net[1].weight.copy_(torch.from_numpy(w))
        net[1].bias.copy_(torch.from_numpy(b))
    return net


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(size=(6, 8, 8, 3)).astype(np.float32)


def in_torch(net, x, cotangent=None):
    """Logits of images [B,H,W,C], or the gradient of <cotangent, logits>, by PyTorch alone."""
    inputs = torch.from_numpy(np.array(x)).movedim(-1, 1).requires_grad_()
    logits = net(inputs)
    if cotangent is None:
        return logits.detach().numpy()
    return torch.autograd.grad(logits, inputs, torch.from_numpy(cotangent))[0].movedim(1, -1).numpy()


def test_values_and_derivatives_are_pytorchs_under_jit_and_vmap(images):
    net = wide_resnet()
    function, close = llrflow.from_torch(net), {"rtol": 1e-4, "atol": 1e-5}
    cotangents = np.eye(5, dtype=np.float32)[[[0, 1, 2, 3, 4, 0], [4, 4, 0, 1, 1, 2]]]
    np.testing.assert_allclose(function(images), in_torch(net, images), **close)
    wanted = np.stack([in_torch(net, images, c) for c in cotangents])

    @jax.jit
    def pulled(x):
        logits, pull = jax.vjp(function, x)
        return logits, jax.vmap(lambda c: pull(c)[0])(cotangents)

    for found, right in zip(pulled(images), (in_torch(net, images), wanted), strict=True):
        np.testing.assert_allclose(found, right, **close)
    one = lambda image, c: jax.grad(lambda image: jnp.vdot(c, function(image[None])[0]))(image)  # noqa: E731
    np.testing.assert_allclose(jax.vmap(one)(images, cotangents[0]), wanted[0], **close)
    alike = jax.vmap(jax.grad(lambda image: function(image[None]).sum()))(images)  # one cotangent for all
    np.testing.assert_allclose(alike, in_torch(net, images, np.ones((6, 5), np.float32)), **close)
    assert function(images.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    assert all(p.grad is None for p in net.parameters())


def test_its_precision_is_its_own(images):
    net = wide_resnet().double()
    found, gradient = jax.value_and_grad(lambda x: llrflow.from_torch(net)(x).sum())(images)
    right = in_torch(net, images.astype(np.float64), np.ones((6, 5)))
    assert found.dtype == gradient.dtype == np.float32
    np.testing.assert_allclose(gradient, right, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("config", ["apgd_ce", "deepfool", {"type": "square", "queries": 50}], ids=str)
def test_attacks_find_what_they_find_on_the_same_function_in_jax(config, images):
    rng = np.random.default_rng(1)
    w, b = rng.normal(size=(5, 192)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    flat = lambda x: jnp.moveaxis(x, -1, 1).reshape(len(x), -1)  # noqa: E731
    in_jax = lambda x: jnp.tanh((flat(x) @ w.T + b) / 10)  # noqa: E731
    net = torch.nn.Sequential(*linear(w / 10, b / 10), torch.nn.Tanh()).eval()
    y = np.asarray(in_jax(images)).argmax(1)
    config = {"steps": 10, "type": config} if isinstance(config, str) else config
    theirs, ours = (llrflow.attack(f, images, y, LINF, config, KEY) for f in (in_jax, llrflow.from_torch(net)))
    np.testing.assert_allclose(ours.x_adv, theirs.x_adv, atol=1e-4)
    np.testing.assert_array_equal(ours.queries, theirs.queries)
    assert (jnp.abs(theirs.x_adv - images).max(axis=(1, 2, 3)) > 0.01).all()


def test_a_robustbench_style_network_is_attacked_and_changes_are_seen(images):
    net, other = wide_resnet(), wide_resnet(seed=1)
    functions = [llrflow.from_torch(net), llrflow.from_torch(other)]
    config = {"type": "pgd", "steps": 5, "maximize": "cross_entropy"}

    def success(function, judge):
        y = in_torch(judge, images).argmax(1)
        result = llrflow.attack(function, images, y, LINF, config, KEY)
        wrong = in_torch(judge, np.asarray(result.x_adv)).argmax(1) != y
        np.testing.assert_array_equal(result.success, wrong)
        return wrong

    assert success(functions[0], net).any() and success(functions[1], other).any()
    with torch.no_grad():
        for p in net.parameters():
            p.neg_()
    success(functions[0], net)
    assert all(p.grad is None for p in net.parameters())
    net[2].train()
    with pytest.raises(SpecError, match=r"the module's part '2' is in training mode"):
        success(functions[0], net)


def test_without_a_path_to_its_input_the_gradient_is_zero(images):
    class Detached(torch.nn.Module):
        def forward(self, x):
            return x.detach().flatten(1)[:, :5]

    function = llrflow.from_torch(Detached().eval())
    assert not jax.grad(lambda x: function(x).sum())(images).any()


def test_wrong_input_is_one_line(images):
    with pytest.raises(SpecError, match=r"from_torch: got function; pass a torch.nn.Module"):
        llrflow.from_torch(lambda x: x)
    with pytest.raises(SpecError, match=r"the module is in training mode; call module.eval\(\) first"):
        llrflow.from_torch(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Identity(), torch.nn.Dropout()).train())
    with pytest.raises(SpecError, match=r"the module returns \(1, 3, 8, 8\); return logits \[B,K\]"):
        llrflow.from_torch(Normalized().eval())(images)
