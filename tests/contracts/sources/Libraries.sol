// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ChaCha20} from "../../../contracts/src/lib/ChaCha20.sol";
import {ParameterTree} from "../../../contracts/src/lib/ParameterTree.sol";

/// @dev The two libraries that a dispute stands on, to be called by themselves.
contract Libraries {
    function xored(bytes32 key, uint64 counter, bytes calldata data) external pure returns (bytes memory) {
        bytes memory whole = new bytes((data.length + 63) / 64 * 64);
        uint256 start;
        assembly ("memory-safe") {
            start := add(whole, 0x20)
            calldatacopy(start, data.offset, data.length)
        }
        ChaCha20.xorInPlace(key, counter, start, data.length);
        assembly ("memory-safe") {
            mstore(whole, data.length)
        }
        return whole;
    }

    function lengthOf(uint256 index, uint256 leafCount, uint256 byteLength) external pure returns (uint256) {
        return ParameterTree.lengthOf(index, leafCount, byteLength);
    }

    function depthOf(uint256 leafCount) external pure returns (uint256) {
        return ParameterTree.depthOf(leafCount);
    }

    function rootOf(bytes32 leaf, uint256 index, bytes32[] calldata path, uint256 leafCount, uint256 byteLength)
        external
        view
        returns (bytes32)
    {
        return ParameterTree.rootOf(leaf, index, path, leafCount, byteLength);
    }
}
