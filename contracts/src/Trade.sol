// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IParameterEscrow} from "./IParameterEscrow.sol";

/// @notice All that is kept of a trade, in one word: terms (26 bytes) ‖ since (5 bytes) ‖ state (1 byte).
/// The highest bit of the state says whether the encryptor is one of the brokers that signed the terms.
/// @dev A value type and not a struct, so that the compiler writes the slot once. To pass other terms
/// off as those of a funded trade takes a second preimage of 208 bits; to prepare two quotes of one
/// truncated digest before either is signed takes 2^104 tries.
type Trade is uint256;

// An encryptor that signed the terms as a broker answers for the goods with its bond.
uint256 constant VOUCHED = 0x80;

using {termsOf, sinceOf, stateOf, isVouched, moved} for Trade global;

/// @notice A trade that is funded now; `vouched` is `VOUCHED`, or zero.
function newTrade(bytes26 terms, uint256 vouched) view returns (Trade) {
    return Trade.wrap(
        uint256(bytes32(terms)) | (block.timestamp << 8) | vouched | uint256(IParameterEscrow.State.Funded)
    );
}

/// @notice The same trade, entering `state` now.
function moved(Trade trade, IParameterEscrow.State state) view returns (Trade) {
    return Trade.wrap(
        uint256(bytes32(termsOf(trade))) | (block.timestamp << 8) | (Trade.unwrap(trade) & VOUCHED)
            | uint256(state)
    );
}

/// @notice The first 26 bytes of the digest of the quote that was funded.
function termsOf(Trade trade) pure returns (bytes26) {
    return bytes26(bytes32(Trade.unwrap(trade)));
}

/// @notice The Unix time at which the trade entered its state; 2^40 seconds are 34,000 years.
function sinceOf(Trade trade) pure returns (uint64) {
    return uint40(Trade.unwrap(trade) >> 8);
}

/// @notice Where the trade stands.
function stateOf(Trade trade) pure returns (IParameterEscrow.State) {
    return IParameterEscrow.State(Trade.unwrap(trade) & (VOUCHED - 1));
}

/// @notice Whether the encryptor is one of the brokers that signed the terms.
function isVouched(Trade trade) pure returns (bool) {
    return Trade.unwrap(trade) & VOUCHED != 0;
}
