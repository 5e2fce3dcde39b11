"""Nothing leaves the machine: the suite itself runs with sockets blocked, and the block works."""

from __future__ import annotations

import socket

import pytest


@pytest.mark.parametrize("address", [("192.0.2.1", 80), ("2001:db8::1", 443, 0, 0)])
def test_connections_beyond_this_machine_are_refused(address: tuple[object, ...]) -> None:
    family = socket.AF_INET6 if ":" in str(address[0]) else socket.AF_INET
    try:
        made = socket.socket(family, socket.SOCK_STREAM)
    except OSError:
        pytest.skip("this machine has no such addresses")
    with made, pytest.raises(RuntimeError, match="network"):
        made.connect(address)
    with pytest.raises(RuntimeError, match="network"):
        socket.create_connection((str(address[0]), 80), timeout=0.1)


def test_names_are_not_looked_up() -> None:
    with pytest.raises(RuntimeError, match="network"):
        socket.getaddrinfo("example.org", 80)


def test_this_machine_can_be_reached() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        with socket.create_connection(server.getsockname(), timeout=5):
            pass
