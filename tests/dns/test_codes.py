"""Numbers and their names agree with dnspython's, and labels of metrics are a bounded set."""

from __future__ import annotations

import dns.rcode
import dns.rdatatype
import pytest

from canal_dns.dns.codes import Ede, Rcode, Type, rcode_text, type_label, type_text


@pytest.mark.parametrize("member", list(Type))
def test_types_are_iana_s(member):
    assert dns.rdatatype.to_text(dns.rdatatype.RdataType.make(member)) in (member.name, f"TYPE{member:d}")


@pytest.mark.parametrize("member", list(Rcode))
def test_response_codes_are_iana_s(member):
    assert dns.rcode.to_text(dns.rcode.Rcode.make(member)) in (member.name, "BADVERS", f"{member:d}")


def test_extended_errors_are_rfc_8914_s():
    assert {member.name: int(member) for member in Ede} == {
        "OTHER": 0,
        "NOT_READY": 14,
        "NO_REACHABLE_AUTHORITY": 22,
        "NETWORK_ERROR": 23,
    }


def test_texts_of_unlisted_numbers():
    assert (type_text(1), type_text(666), type_text(0)) == ("A", "TYPE666", "TYPE0")
    assert (rcode_text(3), rcode_text(11)) == ("NXDOMAIN", "RCODE11")


def test_labels_are_a_bounded_set():
    assert len({type_label(number) for number in range(65536)}) == len(Type) + 1
    assert type_label(666) == "other"
