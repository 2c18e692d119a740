// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {LowLevelCall} from "@openzeppelin/contracts/utils/LowLevelCall.sol";

/// @title Money that accounts are owed, by asset, and its two ways: in, and out
/// @notice Nothing is ever pushed: what somebody is owed is credited, and drawn by a call of its own.
abstract contract Credits {
    using SafeERC20 for IERC20;

    /// @notice Stands for ETH where an asset is named.
    address public constant ETH = address(0);

    /// @notice What an account can draw, by asset.
    mapping(address asset => mapping(address account => uint256 amount)) public credits;

    bool private transient _pulling;

    /// @notice `amount` of the account's credits went to `recipient`.
    event Withdrawn(address indexed asset, address indexed account, address recipient, uint256 amount);

    /// @notice Nothing, or less than was asked for, is owed to the account.
    error NothingOwed(address asset, address account, uint256 owed);

    /// @notice The recipient would not take the money; it stays credited.
    error WithdrawalFailed(address recipient, uint256 amount);

    /// @notice Money credited to this account could never be withdrawn.
    error BadRecipient(address account);

    /// @notice What an account has would be more than a word can hold: only of a token that lies.
    error SumTooLarge(address asset, address account, uint256 held, uint256 amount);

    /// @notice What came is not what is due: ETH beside a token, too much or too little, or a token
    /// that keeps a part of each transfer.
    error WrongPayment(address asset, uint256 received, uint256 due);

    /// @notice There is no contract at the address of the asset.
    error NotAToken(address asset);

    /// @notice A token called back while it was being collected.
    error Reentered();

    /// @notice Sends an account all that it is owed of an asset. For anyone to call; it goes to the
    /// account alone.
    function withdraw(address asset, address account) external {
        uint256 amount = credits[asset][account];
        if (amount == 0) revert NothingOwed(asset, account, 0);
        _draw(asset, account, account, amount);
    }

    /// @notice Sends some of the caller's own credits to whomever it names.
    function withdrawTo(address asset, address recipient, uint256 amount) external {
        _requireRecipient(recipient);
        if (amount == 0 || credits[asset][msg.sender] < amount) {
            revert NothingOwed(asset, msg.sender, credits[asset][msg.sender]);
        }
        _draw(asset, msg.sender, recipient, amount);
    }

    function _draw(address asset, address account, address recipient, uint256 amount) private {
        unchecked {
            credits[asset][account] -= amount; // both callers have compared
        }
        emit Withdrawn(asset, account, recipient, amount);
        if (asset != ETH) {
            IERC20(asset).safeTransfer(recipient, amount);
        } else if (!LowLevelCall.callNoReturn(recipient, amount, "")) {
            revert WithdrawalFailed(recipient, amount);
        }
    }

    function _credit(address asset, address account, uint256 amount) internal {
        credits[asset][account] = _sum(asset, account, credits[asset][account], amount);
    }

    function _sum(address asset, address account, uint256 held, uint256 amount)
        internal
        pure
        returns (uint256)
    {
        if (amount > type(uint256).max - held) revert SumTooLarge(asset, account, held, amount);
        unchecked {
            return held + amount;
        }
    }

    /// @dev Collects exactly `amount` of a token. While it does, no other collection begins: a token
    /// that calls back could have one transfer counted twice.
    function _pull(address asset, address from, uint256 amount) internal {
        if (_pulling) revert Reentered();
        _requireToken(asset);
        _pulling = true;
        uint256 before = IERC20(asset).balanceOf(address(this));
        IERC20(asset).safeTransferFrom(from, address(this), amount);
        uint256 held = IERC20(asset).balanceOf(address(this));
        uint256 received = held < before ? 0 : held - before;
        if (received != amount) revert WrongPayment(asset, received, amount);
        _pulling = false;
    }

    function _requireToken(address asset) internal view {
        if (asset.code.length == 0) revert NotAToken(asset);
    }

    function _requireRecipient(address account) internal view {
        if (account == address(0) || account == address(this)) revert BadRecipient(account);
    }
}
