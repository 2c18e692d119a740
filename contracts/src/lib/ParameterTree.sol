// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// @title The Merkle tree of a parameter set
/// @notice Leaves of 1 KiB, the last of which may be shorter:
///
///     leaf = SHA-256(0x00 ‖ u64be index ‖ u32be length ‖ bytes)
///     node = SHA-256(0x01 ‖ left ‖ right)
///     root = SHA-256(0x03 ‖ u64be leaf count ‖ u64be byte length ‖ top)
///
/// The tree is perfect; levels of odd length are padded, never by a copy. A path is exactly as long
/// as the tree is deep, and a leaf binds its index and its length: neither padding nor a node can
/// pass for a leaf.
library ParameterTree {
    uint256 internal constant LEAF_BYTES = 1024;

    /// @notice There is no such leaf.
    error NoSuchLeaf(uint256 index, uint256 leafCount);

    /// @notice The leaf at this index has another length.
    error WrongLeafLength(uint256 index, uint256 given, uint256 expected);

    /// @notice The path does not have one hash for each level.
    error WrongPathLength(uint256 given, uint256 expected);

    /// @notice The leaf count is not that of so many bytes.
    error WrongLeafCount(uint256 leafCount, uint256 byteLength);

    /// @notice The precompiled contract of SHA-256 failed, for want of gas.
    error HashingFailed();

    /// @notice The length of a leaf. Reverts unless there is such a leaf.
    function lengthOf(uint256 index, uint256 leafCount, uint256 byteLength)
        internal
        pure
        returns (uint256 length)
    {
        requireLeafCount(leafCount, byteLength);
        if (index >= leafCount) revert NoSuchLeaf(index, leafCount);
        uint256 left = byteLength - index * LEAF_BYTES;
        return left < LEAF_BYTES ? left : LEAF_BYTES;
    }

    /// @notice Reverts unless so many bytes, at least one, make so many leaves.
    function requireLeafCount(uint256 leafCount, uint256 byteLength) internal pure {
        unchecked {
            // Of a byte length near 2^256 this is zero, which is refused as well.
            if (leafCount == 0 || leafCount != (byteLength + (LEAF_BYTES - 1)) / LEAF_BYTES) {
                revert WrongLeafCount(leafCount, byteLength);
            }
        }
    }

    /// @notice The height of the tree: ⌈log2⌉ of the leaf count.
    function depthOf(uint256 leafCount) internal pure returns (uint256 depth) {
        for (uint256 rest = leafCount - 1; rest != 0; rest >>= 1) ++depth;
    }

    /// @notice The root over a leaf hash and the path beside it, from the leaf up.
    function rootOf(
        bytes32 leaf,
        uint256 index,
        bytes32[] calldata path,
        uint256 leafCount,
        uint256 byteLength
    ) internal view returns (bytes32 root) {
        uint256 depth = depthOf(leafCount);
        if (path.length != depth) revert WrongPathLength(path.length, depth);
        bool hashed = true;
        assembly ("memory-safe") {
            let buffer := mload(0x40) // 0x01 ‖ left ‖ right
            mstore8(buffer, 0x01)
            let left := add(buffer, 1)
            root := leaf
            for { let level := 0 } lt(level, depth) { level := add(level, 1) } {
                // A set bit of the index: the node is the right one of the two.
                let side := shl(5, and(shr(level, index), 1))
                mstore(add(left, side), root)
                mstore(add(left, xor(side, 0x20)), calldataload(add(path.offset, shl(5, level))))
                hashed := and(hashed, staticcall(gas(), 2, buffer, 65, 0, 0x20))
                hashed := and(hashed, eq(returndatasize(), 0x20))
                root := mload(0)
            }
        }
        if (!hashed) revert HashingFailed();
        return sha256(abi.encodePacked(bytes1(0x03), uint64(leafCount), uint64(byteLength), root));
    }
}
