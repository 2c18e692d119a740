// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ChaCha20} from "./ChaCha20.sol";
import {ParameterTree} from "./ParameterTree.sol";
import {Quote} from "../Quote.sol";

/// @notice What a buyer shows to prove that the goods are not what was offered.
/// @param secret what the seller revealed
/// @param dh the X25519 secret that buyer and encryptor share; its commitment is in the quote
/// @param index which leaf is bad
/// @param leaf the bytes of the goods there, as they were delivered
/// @param goodsPath the hashes beside it, up to `goodsRoot`
/// @param offered the hash of the leaf that was offered at this index
/// @param offerPath the hashes beside that, up to `offerRoot`
struct Evidence {
    bytes32 secret;
    bytes32 dh;
    uint64 index;
    bytes leaf;
    bytes32[] goodsPath;
    bytes32 offered;
    bytes32[] offerPath;
}

/// @title The judgement of a delivery
/// @notice The goods are what was offered, XOR ChaCha20 under
///
///     key = SHA-256(0x02 ‖ secret ‖ dh ‖ trade id)
///
/// Leaf i begins at block 16·i of the stream, so that it can be opened alone. The goods are bad if
/// one leaf under `goodsRoot` does not open to the leaf of that index under `offerRoot`.
library Delivery {
    uint256 private constant BLOCKS_PER_LEAF = ParameterTree.LEAF_BYTES / 64;

    /// @dev What stands before the bytes of a leaf where it is hashed: 0x00 ‖ index ‖ length.
    uint256 private constant LEAF_PREFIX = 13;

    /// @notice The secret is not the one that the quote commits to.
    error WrongSecret(bytes32 tradeId, bytes32 commitment, bytes32 digest);

    /// @notice The shared secret is not the one that the quote commits to.
    error WrongSharedSecret(bytes32 tradeId, bytes32 commitment, bytes32 digest);

    /// @notice The leaf and its path do not come to the root of the goods.
    error NotInGoods(uint256 index, bytes32 root, bytes32 goodsRoot);

    /// @notice The hash and its path do not come to the root of the offer.
    error NotInOffer(uint256 index, bytes32 root, bytes32 offerRoot);

    /// @notice The leaf opens to just what was offered.
    error GoodLeaf(bytes32 tradeId, uint256 index);

    /// @notice Reverts unless the evidence proves a leaf to be bad.
    function requireBad(Quote calldata quote, Evidence calldata evidence) internal view {
        uint256 index = evidence.index;
        bytes calldata leaf = evidence.leaf;
        uint256 length = ParameterTree.lengthOf(index, quote.leafCount, quote.byteLength);
        if (leaf.length != length) revert ParameterTree.WrongLeafLength(index, leaf.length, length);
        requireSecret(quote, evidence.secret);
        bytes32 shared = sha256(abi.encodePacked(evidence.dh, quote.tradeId));
        if (shared != quote.dhCommitment) {
            revert WrongSharedSecret(quote.tradeId, quote.dhCommitment, shared);
        }

        uint256 buffer = _hashed(index, leaf);
        bytes32 root = ParameterTree.rootOf(
            _sha256(buffer, LEAF_PREFIX + length),
            index,
            evidence.goodsPath,
            quote.leafCount,
            quote.byteLength
        );
        if (root != quote.goodsRoot) revert NotInGoods(index, root, quote.goodsRoot);
        root = ParameterTree.rootOf(
            evidence.offered, index, evidence.offerPath, quote.leafCount, quote.byteLength
        );
        if (root != quote.offerRoot) revert NotInOffer(index, root, quote.offerRoot);

        bytes32 key =
            sha256(abi.encodePacked(bytes1(0x02), evidence.secret, evidence.dh, quote.tradeId));
        ChaCha20.xorInPlace(key, index * BLOCKS_PER_LEAF, buffer + LEAF_PREFIX, length);
        if (_sha256(buffer, LEAF_PREFIX + length) == evidence.offered) {
            revert GoodLeaf(quote.tradeId, index);
        }
    }

    /// @notice Reverts unless the secret is the one that the quote commits to.
    function requireSecret(Quote calldata quote, bytes32 secret) internal pure {
        bytes32 digest = sha256(abi.encodePacked(secret));
        if (digest != quote.secretCommitment) {
            revert WrongSecret(quote.tradeId, quote.secretCommitment, digest);
        }
    }

    /// @dev Lays out in memory what is hashed of a leaf, with room up to a whole block behind it.
    function _hashed(uint256 index, bytes calldata leaf) private pure returns (uint256 buffer) {
        assembly ("memory-safe") {
            buffer := mload(0x40)
            mstore(0x40, and(add(add(buffer, add(leaf.length, 13)), 0x7f), not(0x1f)))
            // 0x00 ‖ u64 index ‖ u32 length, and then the bytes
            mstore(buffer, shl(152, or(shl(32, index), leaf.length)))
            calldatacopy(add(buffer, 13), leaf.offset, leaf.length)
        }
    }

    function _sha256(uint256 start, uint256 length) private view returns (bytes32 digest) {
        bool hashed;
        assembly ("memory-safe") {
            hashed := staticcall(gas(), 2, start, length, 0, 0x20)
            hashed := and(hashed, eq(returndatasize(), 0x20))
            digest := mload(0)
        }
        if (!hashed) revert ParameterTree.HashingFailed();
    }
}
