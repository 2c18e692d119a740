// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Token} from "../sources/Tokens.sol";

/// @dev What is asked of forge.
interface Vm {
    function addr(uint256 key) external pure returns (address);
    function sign(uint256 key, bytes32 digest) external pure returns (uint8 v, bytes32 r, bytes32 s);
    function warp(uint256 time) external;
    function getBlockTimestamp() external view returns (uint256);
    function deal(address account, uint256 balance) external;
    function prank(address sender) external;
}

Vm constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));

/// @dev Functions of a contract that forge is not to call by itself.
struct FuzzSelector {
    address addr;
    bytes4[] selectors;
}

/// @dev Something came of a call that the books do not know.
error Broken(string what);

/// @dev A cast with keys, a clock, a token, and books of what a contract owes.
abstract contract Play {
    struct Books {
        uint256 locked;
        uint256 forced;
        mapping(address account => uint256) credits;
        mapping(address account => uint256) deposits;
    }

    address internal constant ETH = address(0);
    uint256 internal constant PARTIES = 5;
    uint256 internal constant BROKERS = 8;
    bytes32 private constant DOMAIN_TYPEHASH =
        keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");

    Token internal immutable token = new Token();
    address[] internal brokers;
    address[] private _parties;
    mapping(address account => uint256) internal keys;

    /// @dev By asset.
    mapping(address asset => Books) internal books;

    constructor() {
        for (uint256 i = 0; i < PARTIES + BROKERS; ++i) keys[vm.addr(i + 1)] = i + 1;
        for (uint256 i = 0; i < PARTIES; ++i) _parties.push(vm.addr(i + 1));
        for (uint256 i = PARTIES; i < PARTIES + BROKERS; ++i) {
            brokers.push(vm.addr(i + 1));
            for (uint256 j = brokers.length - 1; j > 0 && brokers[j] < brokers[j - 1]; --j) {
                (brokers[j], brokers[j - 1]) = (brokers[j - 1], brokers[j]);
            }
        }
    }

    function party(uint256 seed) internal view returns (address) {
        return _parties[seed % PARTIES];
    }

    function assetOf(uint256 seed) internal view returns (address) {
        return seed & 1 == 0 ? ETH : address(token);
    }

    /// @dev The compiler takes the time of a block for a constant.
    function time() internal view returns (uint256) {
        return vm.getBlockTimestamp();
    }

    function signed(address signer, bytes32 digest) internal view returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(keys[signer], digest);
        return abi.encodePacked(r, s, v);
    }

    function domainOf(string memory name, address place) internal view returns (bytes32) {
        return keccak256(
            abi.encode(DOMAIN_TYPEHASH, keccak256(bytes(name)), keccak256("1"), block.chainid, place)
        );
    }

    /// @dev Makes a call, which must come to what the books expect.
    function attempt(
        bool expected,
        string memory what,
        address sender,
        uint256 value,
        address target,
        bytes memory data
    ) internal returns (bytes memory answer) {
        if (value != 0) vm.deal(sender, value);
        vm.prank(sender);
        bool succeeded;
        (succeeded, answer) = target.call{value: value}(data);
        if (succeeded != expected) revert Broken(what);
    }

    /// @dev Lets an account have so much of an asset that it can spend there; returns the ETH to send.
    function provide(address asset, address account, uint256 amount, address spender)
        internal
        returns (uint256 value)
    {
        if (asset == ETH) return amount;
        token.mint(account, amount);
        vm.prank(account);
        token.approve(spender, amount);
        return 0;
    }

    function held(address asset, address account) internal view returns (uint256) {
        return asset == ETH ? account.balance : token.balanceOf(account);
    }

    function check(bool holds, string memory what) internal pure {
        if (!holds) revert Broken(what);
    }

    function min(uint256 a, uint256 b) internal pure returns (uint256) {
        return a < b ? a : b;
    }
}
