"""The learned token: with tokens of zeros it is the method that fills with zeros."""

from typing import Any

import torch


def test_a_learned_token_of_zeros_is_zero_fill(kit: Any) -> None:
    learned, zero, batch = kit.build("learned_token").eval(), kit.build("zero_fill").eval(), kit.batch(kit.mixed())
    state = {name: value for name, value in learned.state_dict().items() if "missing_token" not in name}
    zero.load_state_dict(state)
    with torch.no_grad():
        before = learned(batch).logits
        for token in learned.missing_token.values():  # type: ignore[union-attr,operator]
            token.zero_()
        assert torch.allclose(learned(batch).logits, zero(batch).logits, atol=1e-6)
        assert not torch.allclose(before, zero(batch).logits, atol=1e-6)
