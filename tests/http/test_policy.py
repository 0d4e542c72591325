"""Which addresses may be connected to."""

from __future__ import annotations

import pytest

from worker.http.client import is_address
from worker.http.policy import EgressPolicy, parse_hosts, parse_networks, parse_ports

pytestmark = pytest.mark.unit

PRIVATE = [
    "127.0.0.1", "127.8.9.10", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254",
    "168.63.129.16", "100.64.0.1", "0.0.0.0", "192.88.99.1", "198.18.0.1", "224.0.0.1",
    "255.255.255.255", "240.0.0.1", "::", "::1", "fe80::1", "fe80::1%eth0", "fd00:ec2::254",
    "fc00::1", "fec0::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254",
    "::127.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::7f00:1", "2002:7f00:1::",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:db8::1", "3fff::1", "5f00::1",
]  # fmt: skip
PUBLIC = ["1.1.1.1", "8.8.8.8", "2606:4700:4700::1111", "::ffff:1.1.1.1"]


@pytest.mark.parametrize("address", PRIVATE)
def test_a_private_address_is_refused(address: str) -> None:
    assert EgressPolicy().refusal(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_allowed(address: str) -> None:
    assert EgressPolicy().refusal(address) is None


def test_the_operator_allows_a_network_and_no_more() -> None:
    policy = EgressPolicy(parse_networks("10.1.0.0/16, fd00::/8"))
    assert policy.refusal("10.1.2.3") is None
    assert policy.refusal("::ffff:10.1.2.3") is None
    assert policy.refusal("fd00::1") is None
    assert policy.refusal("10.2.0.1")


@pytest.mark.parametrize("host", ["127.1", "0x7f.1", "2130706433", "017700000001", "[::1]", "0"])
def test_every_spelling_of_an_address_is_recognized(host: str) -> None:
    assert is_address(host)


def test_text_that_is_not_an_address_is_refused() -> None:
    assert EgressPolicy().refusal("example.com")


def test_ports_are_read_as_a_list_of_ports_and_ranges() -> None:
    assert parse_ports("443, 8000-8002") == frozenset({443, 8000, 8001, 8002})
    assert parse_ports(" ") is None
    for bad in ("0", "65536", "9-8", "x", "1-"):
        with pytest.raises(ValueError, match=r"port|invalid"):
            parse_ports(bad)


def test_a_plain_name_allows_itself_and_a_starred_one_those_below() -> None:
    policy = EgressPolicy(hosts=parse_hosts("Hooks.Internal., *.svc.local"))
    for host in ("hooks.internal", "HOOKS.internal.", "a.svc.local", "a.b.svc.local"):
        assert policy.refusal("10.0.0.1", host) is None
    for host in ("", "x.hooks.internal", "svc.local", "evilsvc.local", "hooks.internal.evil"):
        assert policy.refusal("10.0.0.1", host)
    for address in ("169.254.169.254", "fd00:ec2::254", "100.100.100.200", "0.0.0.0", "224.0.0.1"):
        assert policy.refusal(address, "hooks.internal")


def test_an_allowed_host_in_unicode_is_matched_as_it_is_looked_up() -> None:
    policy = EgressPolicy(hosts=parse_hosts("*.B\xdcCHER.example, stra\xdfe.example."))
    for host in ("a.xn--bcher-kva.example", "xn--strae-oqa.example"):
        assert policy.refusal("10.0.0.1", host) is None
    assert policy.refusal("10.0.0.1", "strasse.example") is not None
