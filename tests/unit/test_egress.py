"""Which addresses may be connected to."""

from __future__ import annotations

import pytest

from worker.effects.http import is_address
from worker.policy.egress import EgressPolicy, parse_networks

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
def test_every_spelling_of_an_address_is_known_as_one(host: str) -> None:
    assert is_address(host)


def test_text_that_is_no_address_is_refused() -> None:
    assert EgressPolicy().refusal("example.com")
