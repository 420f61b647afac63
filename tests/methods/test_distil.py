"""Distillation: the loss and its gradient against the formula as it is written, and what the teacher keeps."""

from __future__ import annotations

import pytest
import torch
from test_heal import CONTEXTS, model

from sprat.methods import distil
from sprat.methods.distil import Teacher, divergence


@pytest.mark.parametrize("rows", [1, 64, 150])
def test_loss_and_gradient_are_the_formula(rows):
    random = torch.Generator().manual_seed(rows)
    teacher, given = (3 * torch.randn(rows, 70, generator=random) for _ in range(2))
    mine, plain = given.clone().requires_grad_(), given.double().requires_grad_()
    loss = divergence(teacher, mine)
    (0.25 * loss).backward()

    p = teacher.double().softmax(-1)
    wanted = (p * (p.log() - plain.log_softmax(-1))).sum(-1).mean()
    (0.25 * wanted).backward()
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    assert torch.allclose(mine.grad, plain.grad.float(), atol=1e-7)


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
@pytest.mark.parametrize("room", [0, 1 << 20])
def test_the_teacher_says_what_its_model_does_and_the_same_again(family, room, monkeypatch):
    monkeypatch.setattr(distil, "_KEPT_BYTES", room)
    made = model(family)
    teacher = Teacher(made)
    for turn in range(2):
        for ids in (CONTEXTS[0], CONTEXTS[1], CONTEXTS[1, :10]):
            with torch.no_grad():
                wanted = made(input_ids=ids[None], use_cache=False).logits[0, distil.SKIP :]
            assert torch.allclose(teacher.logits(ids), wanted, atol=1e-5), turn
    assert len(teacher._kept) == (3 if room else 0)
