// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// @notice The terms of one trade, signed by brokers as EIP-712 typed data. Frozen: what was signed
/// once stays valid.
/// @param tradeId keccak256(buyer, seller, offerDigest, buyerNonce): derived, never chosen
/// @param buyer who funds, and is refunded
/// @param seller who is paid
/// @param encryptor who made the ciphertext and knows the secret, in most trades the seller
/// @param asset the settlement asset: an ERC-20 token, or zero for ETH
/// @param price what the buyer pays, in the asset's smallest unit, the fee included
/// @param fee the part of the price that goes to `feeRecipient`, taken only from a paid trade
/// @param feeRecipient who gets the fee; it may be zero where the fee is
/// @param offerRoot weights root of the offered tensors, as the seller signed it
/// @param goodsRoot weights root of the ciphertext
/// @param leafCount leaves under either root
/// @param byteLength bytes under either root
/// @param secretCommitment SHA-256 of the secret
/// @param dhCommitment SHA-256(dh ‖ tradeId), opened only in a dispute
/// @param fundBy the last second in which the trade can be funded
/// @param revealBy the last second in which the seller should reveal
/// @param grace seconds after `revealBy` before a refund, so that no late reveal goes unpaid
/// @param disputeWindow seconds between the reveal and the payment, in which a dispute is heard
/// @param receiptHash digest of the broker's receipt: what was measured
struct Quote {
    bytes32 tradeId;
    address buyer;
    address seller;
    address encryptor;
    address asset;
    uint256 price;
    uint256 fee;
    address feeRecipient;
    bytes32 offerRoot;
    bytes32 goodsRoot;
    uint64 leafCount;
    uint64 byteLength;
    bytes32 secretCommitment;
    bytes32 dhCommitment;
    uint64 fundBy;
    uint64 revealBy;
    uint64 grace;
    uint64 disputeWindow;
    bytes32 receiptHash;
}

// The EIP-712 type of a quote.
bytes32 constant QUOTE_TYPEHASH = keccak256(
    "Quote(bytes32 tradeId,address buyer,address seller,address encryptor,address asset,"
    "uint256 price,uint256 fee,address feeRecipient,bytes32 offerRoot,bytes32 goodsRoot,"
    "uint64 leafCount,uint64 byteLength,bytes32 secretCommitment,bytes32 dhCommitment,"
    "uint64 fundBy,uint64 revealBy,uint64 grace,uint64 disputeWindow,bytes32 receiptHash)"
);

/// @notice The EIP-712 struct hash of a quote.
/// @dev Each of the 19 fields fills one word of the calldata, as it does in EIP-712, so that the
/// encoding is a copy. A word that is too large for its type makes a digest nobody signs.
function structHash(Quote calldata quote) pure returns (bytes32 hash) {
    bytes32 typeHash = QUOTE_TYPEHASH;
    assembly ("memory-safe") {
        let encoded := mload(0x40)
        mstore(encoded, typeHash)
        calldatacopy(add(encoded, 0x20), quote, 0x260)
        hash := keccak256(encoded, 0x280)
    }
}

using {structHash} for Quote global;
