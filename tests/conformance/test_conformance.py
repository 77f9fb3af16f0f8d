"""Every case of cases.json, each as a test; they run once, together, with `workers: 0` (`make conformance`: with 2 as well)."""

import pytest

from tests.conformance.lab import load
from tests.conformance.run import FAILED, NOT_RUN, Run, covered

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(900)]

CASES = load()


@pytest.fixture(scope="module")
def outcomes(request):
    wanted = {
        item.callspec.params["ident"] for item in request.session.items if "ident" in getattr(item, "callspec", _NONE).params
    }
    return Run([case for case in CASES.values() if case.id in wanted], workers=0).all()


class _NONE:
    params = ()


@pytest.mark.parametrize("ident", CASES)
def test_case(ident, outcomes):
    outcome = outcomes[ident]
    if outcome.status == NOT_RUN:
        pytest.skip(f"{outcome.status}: {outcome.text}")
    assert outcome.status != FAILED, f"{ident} ({CASES[ident].query}): {outcome.text}\nexpected: {CASES[ident].expected}"


@pytest.mark.parametrize("ident", CASES)
def test_every_case_has_a_judge(ident):
    assert covered(CASES[ident]), f"{ident}: {CASES[ident].check} needs a check of its own"
