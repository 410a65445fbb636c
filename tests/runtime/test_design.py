"""The descent reads what its engine gives, and says what it lacks."""

from collections.abc import Mapping

import numpy as np
import pytest

from intaglio.errors import InputError
from intaglio.runtime.design import Array, Descent

START = np.array([[1.0, -2.0], [0.5, 0.25]], dtype=np.float32)


def bowls(z: Array) -> Mapping[str, Array]:
    """Two bowls, around 0 and around 1, and a score that grows along the first entry."""
    return {
        "forward_gradient": 2 * z,
        "backward_gradient": 2 * (z - 1),
        "score_gradient": np.zeros_like(z) + np.array([1, 0], dtype=z.dtype),
    }


def test_the_balance_leans_to_the_loss_whose_step_raises_the_score() -> None:
    """Against the gradient of the second bowl lies what raises the score: less of the first."""
    descent = Descent(bowls, START)
    list(descent.run(12))
    assert (descent.balance < 0.5).all()
    fixed = Descent(bowls, START, adapt_balance=False)
    list(fixed.run(200))
    assert (fixed.balance == 0.5).all()
    np.testing.assert_allclose(fixed.designs, 0.5, atol=0.02)


def test_rows_go_by_themselves() -> None:
    both, one = (Descent(bowls, start, adapt_rate=True) for start in (START, START[1:]))
    list(both.run(5))
    list(one.run(5))
    np.testing.assert_allclose(both.designs[1:], one.designs)


def test_what_the_engine_lacks_is_named() -> None:
    with pytest.raises(InputError, match="no output 'forward_gradient', it has loss"):
        Descent(lambda z: {"loss": z}, START).step()
    broken = {**bowls(START), "score_gradient": np.full_like(START, np.nan)}
    with pytest.raises(InputError, match="'score_gradient' of shape"):
        Descent(lambda _: broken, START).step()
    with pytest.raises(InputError, match="between 0 and 1"):
        Descent(bowls, START, balance=2.0)
