"""No reply over UDP to whoever may be forged is longer than three times its query (TYP-01)."""

import pytest

from tests.meta import amplification


@pytest.mark.parametrize(("what", "size", "forged", "private"), list(amplification.ratios()), ids=str)
def test_at_most_three_times(what, size, forged, private):
    assert 0 < forged <= 3
    assert forged <= private


def test_what_is_measured_is_what_there_is():
    """The private ones are as long as they get: without the limit the demand would be missed."""
    private = {what: ratio for what, _, _, ratio in amplification.ratios()}
    assert private["forwarded: 1 KiB of text, EDNS"] > 20
    assert private["a bound name, 20 VIPs"] > 6
    assert private["a bound name, 1 VIP"] < 2
