"""A PyTorch module as a JAX function: attacks run in JAX, the network and its derivative in PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from llrflow.base.errors import SpecError


def from_torch(module: Any) -> Callable[[jax.Array], jax.Array]:
    """A `torch.nn.Module` of images [B,C,H,W] in [0,1] as a function of images [B,H,W,C], for `llrflow.attack`.

    It returns the module's logits [B,K], and its derivative is PyTorch's own, of first order in reverse mode
    (`jax.grad`, `jax.vjp`). Images go to the module's device and floating-point type, logits come back in that of the
    images. The module is asked anew in every call, so weights may change in between; nothing is written to it, no
    parameter's `grad` either. Under `jax.jit` and `jax.vmap` it is called as it is (`jax.pure_callback`): each query
    copies the images to PyTorch and back, and a derivative takes another forward pass, so that an attack takes longer
    than on a function in JAX. Needs `pip install 'llrflow[torch]'`. Raises SpecError where it is no module, is in
    training mode, or does not return [B,K].
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise SpecError("from_torch", "needs PyTorch", "pip install 'llrflow[torch]'") from None
    if not isinstance(module, torch.nn.Module):
        raise SpecError("from_torch", f"got {type(module).__name__}", "pass a torch.nn.Module")
    inside = TorchModule(torch, module)
    inside.check_mode()

    @jax.custom_vjp
    def logits(images: jax.Array) -> jax.Array:
        shape = jax.ShapeDtypeStruct((len(images), inside.classes(images.shape[1:])), images.dtype)
        return jax.pure_callback(inside.logits, shape, images, vmap_method="expand_dims")

    def pull(images: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
        shape = jax.ShapeDtypeStruct(images.shape, images.dtype)
        return (jax.pure_callback(inside.pull, shape, images, cotangent, vmap_method="expand_dims"),)

    logits.defvjp(lambda images: (logits(images), images), pull)
    return logits


class TorchModule:
    """The module on NumPy arrays; leading axes before [B,H,W,C] are those of `jax.vmap`."""

    def __init__(self, torch: Any, module: Any) -> None:
        """`torch` is the package, which is imported where it is used alone."""
        self.torch, self.module = torch, module

    def check_mode(self) -> None:
        """SpecError while any part is in training mode."""
        training = [name for name, part in self.module.named_modules() if part.training]
        if training:
            part = f"the module's part {training[0]!r}" if training[0] else "the module"
            raise SpecError("from_torch", f"{part} is in training mode", "call module.eval() first")

    def classes(self, image_shape: tuple[int, ...]) -> int:
        """K, from one grey image [H,W,C]."""
        return self._run(np.full((1, *image_shape), 0.5, np.float32), False)[1].shape[1]

    def logits(self, images: Any) -> np.ndarray:
        """[...,B,H,W,C] -> [...,B,K]."""
        found = self._run(images, False)[1]
        return _to_numpy(found, images.dtype).reshape(*images.shape[:-3], -1)

    def pull(self, images: Any, cotangent: Any) -> np.ndarray:
        """The gradient of <cotangent, logits>, [...,B,H,W,C]; cotangent [...,B,K]."""
        lead, dtype = np.broadcast_shapes(images.shape[:-4], cotangent.shape[:-2]), images.dtype
        if math.prod(images.shape[:-4]) > 1:  # else one forward pass serves all cotangents
            images = np.broadcast_to(images, lead + images.shape[-4:])
            cotangent = np.broadcast_to(cotangent, lead + cotangent.shape[-2:])
        inputs, logits = self._run(images, True)
        weights = self._to_torch(cotangent, logits).reshape(-1, *logits.shape)
        found = self.torch.stack([self._gradient(inputs, logits, weight) for weight in weights])
        return _to_numpy(found.movedim(-3, -1), dtype).reshape(*lead, *images.shape[-4:])

    def _run(self, images: Any, differentiated: bool) -> tuple[Any, Any]:
        """(images [N,C,H,W], logits [N,K]) in PyTorch."""
        torch = self.torch
        self.check_mode()
        like = next((p for p in self.module.parameters() if p.is_floating_point()), torch.zeros(()))
        with torch.inference_mode(False), torch.set_grad_enabled(differentiated):
            inputs = self._to_torch(images, like).reshape(-1, *images.shape[-3:]).movedim(-1, -3).contiguous()
            logits = self.module(inputs.requires_grad_(differentiated))
        if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != len(inputs):
            got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            fix = f"return logits [B,K], here [{len(inputs)}, classes]"
            raise SpecError("from_torch", f"the module returns {got}", fix)
        return inputs, logits

    def _gradient(self, inputs: Any, logits: Any, weight: Any) -> Any:
        if not logits.requires_grad:  # it detaches its input, and has no parameters
            return self.torch.zeros_like(inputs)
        # Of the images alone: `backward` would write to the parameters.
        (gradient,) = self.torch.autograd.grad(logits, inputs, weight, retain_graph=True, allow_unused=True)
        return self.torch.zeros_like(inputs) if gradient is None else gradient

    def _to_torch(self, array: Any, like: Any) -> Any:
        """A copy on the device and in the type of a tensor."""
        wide = np.float64 if array.dtype == np.float64 else np.float32  # PyTorch does not know NumPy's bfloat16
        return self.torch.from_numpy(np.array(array, wide)).to(like.device, like.dtype)


def _to_numpy(tensor: Any, dtype: Any) -> np.ndarray:
    wide = tensor.double() if dtype == np.float64 else tensor.float()
    return wide.detach().cpu().numpy().astype(dtype)
