"""The deterministic deployment proxy: calldata is a salt and the init code, for CREATE2.

It stands at this address, with this code, on most public chains; the development chain has
it from its genesis on. Source: github.com/Arachnid/deterministic-deployment-proxy.
"""

from __future__ import annotations

from typing import Final

from node.protocol.types import Address

FACTORY: Final = Address("0x4e59b44847b379578588920cA78FbF26c0B4956C")
FACTORY_CODE: Final = bytes.fromhex(
    "7fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffe0"
    "3601600081602082378035828234f58015156039578182fd5b8082525050506014600cf3"
)
