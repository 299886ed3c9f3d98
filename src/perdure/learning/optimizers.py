"""The optimizers that `training.optimizer` chooses: AdamW, SGD and two forms of Muon."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from perdure.errors import InputError
from perdure.learning.training import Training
from perdure.models import adapters

Group = dict[str, Any]
"""A parameter group, or only its settings, in the format of torch's optimizers."""
MOMENTUM = 0.9
"""The momentum of SGD."""
MUON_MOMENTUM = 0.95
"""The momentum of both forms of Muon, which is torch's default."""
DAMPING = 1e-6
"""The share of the largest eigenvalue of S that is added to all of them before 1 / √S."""
ROUNDING = 1e-6
"""Singular values of a gradient in single precision below this share of the largest are noise."""
SINGULAR = 1e-8
"""Eigenvalues of S up to this share of the largest count as zero: see `inverse_root`."""


def divided(groups: list[Group], model: nn.Module, training: Training) -> list[Group]:
    """Return the parameter groups in the form that the chosen optimizer needs.

    Both forms of Muon move only matrices of the module, which become the first group. The
    second group contains the other parameters of the method, such as biases; the third,
    as before, the heads. With `lora_muon`, the second group has the learning rate of the heads.

    Parameters
    ----------
    groups
        Two groups: the method's parameters, and the heads.

    Raises
    ------
    InputError
        The optimizer needs both factors of LoRA, but only one of them is trained.
    """
    if training.optimizer not in ("muon", "lora_muon"):
        return groups
    module, heads = groups
    trained = {id(parameter) for parameter in module["params"]}
    if training.optimizer == "muon":
        matrices = [one for one in _matrices(model) if id(one) in trained]
    else:
        matrices = []
        for A, B in adapters.factors(model).values():
            count = (id(A) in trained) + (id(B) in trained)
            if count == 0:  # the module stays as it is
                continue
            if count == 1:
                raise InputError(
                    "`optimizer: lora_muon` moves both factors of LoRA, but the method trains "
                    "only one of them: use `optimizer: muon`."
                )
            matrices += [A, B]
    chosen = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in module["params"] if id(parameter) not in chosen]
    # The rate of `lora_muon`, a singular value, would not suit AdamW.
    rate = heads["lr"] if training.optimizer == "lora_muon" else module["lr"]
    return [{**module, "params": matrices}, {**module, "params": others, "lr": rate}, heads]


def make(groups: list[Group], training: Training) -> Optimizer:
    """Return the optimizer that the settings choose, for groups from `divided`."""
    rate, decay = training.learning_rate, training.weight_decay
    if training.optimizer in (None, "adamw"):
        return torch.optim.AdamW(groups, lr=rate, weight_decay=decay)
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, weight_decay=decay, momentum=MOMENTUM)
    matrices, *others = groups
    if training.optimizer == "lora_muon":
        of_matrices = LoRAMuon(
            [matrices],
            lr=rate,
            weight_decay=decay,
            momentum=MUON_MOMENTUM,
        )
    else:
        of_matrices = torch.optim.Muon(
            [matrices],
            lr=rate,
            weight_decay=decay,
            momentum=MUON_MOMENTUM,
            # With this adjustment, an entry moves about as far as in a step of AdamW.
            adjust_lr_fn="match_rms_adamw",
        )
    of_others = torch.optim.AdamW(others, lr=rate, weight_decay=decay)
    return MuonAndAdamW([of_matrices, of_others])


def _matrices(model: nn.Module) -> list[nn.Parameter]:
    """Return the matrices of the module, except changes of embeddings, which are tables."""
    tables: set[int] = set()
    for layer in adapters.layers(model):
        if isinstance(layer.get_base_layer(), nn.Embedding):
            tables |= {id(parameter) for parameter in layer.parameters()}  # pyright: ignore
    matrices = []
    for parameter in adapters.trainable(model).values():
        if parameter.ndim == 2 and id(parameter) not in tables:
            matrices.append(parameter)
    return matrices


class MuonAndAdamW(Optimizer):
    """A form of Muon and AdamW as one optimizer; each trains some of the parameter groups.

    The groups and the state are shared with the optimizers, so a schedule changes the
    rates of both, and one `state_dict` contains everything.
    """

    def __init__(self, optimizers: Sequence[Optimizer]):
        groups = []
        for optimizer in optimizers:
            groups += optimizer.param_groups
        self.optimizers = list(optimizers)
        super().__init__(groups, {})
        self._share()

    def _share(self) -> None:
        """Give each optimizer its part of the groups, and the common state."""
        first = 0
        for optimizer in self.optimizers:
            count = len(optimizer.param_groups)
            optimizer.param_groups = self.param_groups[first : first + count]
            optimizer.state = self.state
            first += count

    def __setstate__(self, state: dict[str, Any]) -> None:
        # `load_state_dict` replaces the groups and the state by new objects.
        super().__setstate__(state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore
        for optimizer in self.optimizers:
            optimizer.step()


class LoRAMuon(Optimizer):
    """Muon for the product B A of LoRA's factors, instead of each factor by itself.

    With the momentum m ← β m + (1 − β) g of each factor, S_A = A Aᵀ and S_B = Bᵀ B:

        ΔB = −η/2 · msign(m_B S_A^(−½)) S_A^(−½),  ΔA = −η/2 · S_B^(−½) msign(S_B^(−½) m_A)
        B ← s B + ΔB / s,  A ← s A + ΔA / s,  s = √(1 − η · weight decay)

    msign(M) = U Vᵀ for the singular value decomposition M = U Σ Vᵀ. All singular values of
    ΔB A and of B ΔA are η/2, or less in directions in which A or B is below about a
    thousandth of its largest singular value, because of `DAMPING`. So η is the largest
    singular value by which the product can change, up to terms of second order. B is zero at
    first: then A does not move, as no change of it would change the product. Nor does A move in
    directions that B maps to zero. Singular values of m that are zero stay zero.

    Parameters
    ----------
    groups
        Parameter groups, each of which contains A and B of one layer after another.

    References
    ----------
    LoRA-Muon, arXiv 2606.12921, there with W = A Bᵀ.
    """

    def __init__(self, groups: list[Group], *, lr: float, weight_decay: float, momentum: float):
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore
        for group in self.param_groups:
            for As, Bs in self._by_shape(group["params"]):
                self._move(As, Bs, group)

    def _by_shape(self, parameters: Sequence[Tensor]) -> list[tuple[list[Tensor], list[Tensor]]]:
        """Return the factors of layers of equal shape, which are moved together."""
        by_shape: dict[tuple[torch.Size, torch.Size], tuple[list[Tensor], list[Tensor]]] = {}
        for A, B in zip(parameters[::2], parameters[1::2], strict=True):
            if A.grad is None or B.grad is None:  # no pass has used this layer
                continue
            As, Bs = by_shape.setdefault((A.shape, B.shape), ([], []))
            As.append(A)
            Bs.append(B)
        return list(by_shape.values())

    def _move(self, As: Sequence[Tensor], Bs: Sequence[Tensor], group: Group) -> None:
        """Take a step with the factors of several layers."""
        # In double precision: the Gram matrices square the condition numbers.
        A = torch.stack(list(As)).double()
        B = torch.stack(list(Bs)).double()
        m_A = self._momentum(As, group["momentum"]).double()
        m_B = self._momentum(Bs, group["momentum"]).double()
        R_A = inverse_root(A @ A.mT)
        R_B = inverse_root(B.mT @ B)
        half = group["lr"] / 2
        change_of_A = -half * R_B @ polar((R_B @ m_A).mT).mT
        change_of_B = -half * polar(m_B @ R_A) @ R_A
        s = (1 - group["lr"] * group["weight_decay"]) ** 0.5
        for old, new in ((As, s * A + change_of_A / s), (Bs, s * B + change_of_B / s)):
            for parameter, value in zip(old, new, strict=True):
                parameter.copy_(value)

    def _momentum(self, parameters: Sequence[Tensor], beta: float) -> Tensor:
        """Update the momentum of parameters of equal shape, and return it stacked."""
        momenta = []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            momentum = state["momentum_buffer"]
            assert parameter.grad is not None
            momentum.lerp_(parameter.grad, 1 - beta)
            momenta.append(momentum)
        return torch.stack(momenta)


def inverse_root(S: Float[Tensor, "*layers r r"]) -> Float[Tensor, "*layers r r"]:
    """Return S^(−½) of symmetric matrices without negative eigenvalues; 0 where S is singular.

    Eigenvalues up to `SINGULAR` times the largest one become 0; the others are first raised
    by `DAMPING` times the largest one.

    S is a Gram matrix of a factor, such as Bᵀ B. Where a singular value of B is a share ε of
    the largest, so is the gradient of A, which is Bᵀ G, while its rounding error stays at
    about `ROUNDING`. With ε = √`SINGULAR` = 1e-4 the error is 1 %, and with a smaller ε soon
    all of it. `polar` would make a unit vector of this noise, and S^(−½) multiply it by up
    to 1 / √`DAMPING`. B is singular after the first step if the gradient G has a lower rank
    than LoRA, because a batch has fewer answers than `rank`.
    """
    eigenvalues, vectors = torch.linalg.eigh(S)
    largest = eigenvalues[..., -1:].clamp_min(0)
    counts = eigenvalues > SINGULAR * largest
    roots = torch.where(counts, eigenvalues + DAMPING * largest, 1.0).rsqrt()
    roots = torch.where(counts, roots, 0.0)
    return vectors * roots[..., None, :] @ vectors.mT


def polar(M: Float[Tensor, "*layers n r"]) -> Float[Tensor, "*layers n r"]:
    """Return U Vᵀ for M = U Σ Vᵀ; singular values that are zero up to rounding stay zero."""
    eigenvalues, vectors = torch.linalg.eigh(M.mT @ M)
    largest = eigenvalues[..., -1:]
    counts = eigenvalues > ROUNDING**2 * largest
    roots = torch.where(counts, eigenvalues, 1.0).rsqrt()
    roots = torch.where(counts, roots, 0.0)
    return M @ (vectors * roots[..., None, :] @ vectors.mT)
