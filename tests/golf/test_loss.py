"""The fused cross-entropy against torch's own in float64: value and gradient."""

import pytest
import torch
import torch.nn.functional as F

from sprat.golf.loss import ROWS, cross_entropy


@pytest.mark.parametrize("n", [1, ROWS, 2 * ROWS + 3])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-6), (torch.bfloat16, 0.01)])
def test_value_and_gradient_are_those_of_torch_in_float64(n, dtype, near):
    generator = torch.Generator().manual_seed(n)
    logits = (30 * torch.randn(n, 71, generator=generator)).to(dtype).requires_grad_()
    target = torch.randint(71, (n,), generator=generator)
    truth = logits.detach().double().requires_grad_()
    expected = F.cross_entropy(truth, target)
    (3.0 * expected).backward()

    found = cross_entropy(logits, target)
    (3.0 * found).backward()

    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert logits.grad.dtype == dtype
    assert (logits.grad - truth.grad).abs().max() <= near * truth.grad.abs().max()


def test_logits_out_of_reach_of_an_exponential():
    logits = torch.tensor([[1e4, 0.0], [0.0, 1e4]], requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([0, 0]))
    loss.backward()
    assert loss.item() == 5000
    assert logits.grad.tolist() == [[0, 0], [-0.5, 0.5]]
