// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Quote} from "../Quote.sol";
import {ParameterTree} from "./ParameterTree.sol";

/// @title What terms must be like to be funded at all
library Terms {
    /// @notice The longest time from funding to `revealBy`. With the two bounds below nothing is
    /// locked for ever: 37 days after the funding at the latest anyone can refund a trade, unless
    /// it was revealed, and 30 days after the reveal at the latest anyone can finalize it.
    uint256 internal constant MAX_REVEAL_DELAY = 30 days;

    /// @notice The longest time from `revealBy` to a refund.
    uint256 internal constant MAX_GRACE = 7 days;

    /// @notice The longest time from the reveal to the payment.
    uint256 internal constant MAX_DISPUTE_WINDOW = 30 days;

    /// @notice A trade without a price has nothing to settle.
    error NoPrice(bytes32 tradeId);

    /// @notice The fee is more than the price that it is taken from.
    error FeeAbovePrice(uint256 fee, uint256 price);

    /// @notice Money credited to this account could never be withdrawn.
    error BadPayee(address account);

    /// @notice It is `time` now; the quote could be funded until `fundBy`.
    error FundingClosed(uint256 time, uint256 fundBy);

    /// @notice `revealBy` is not after `fundBy`, or it is after `latest`.
    error BadDeadlines(uint256 fundBy, uint256 revealBy, uint256 latest);

    /// @notice A refund would open too long after `revealBy`.
    error GraceTooLong(uint256 grace, uint256 maximum);

    /// @notice The payment would be pending for too long.
    error DisputeWindowTooLong(uint256 disputeWindow, uint256 maximum);

    /// @notice Reverts unless the terms can be funded now.
    function requireFundable(Quote calldata quote) internal view {
        if (quote.price == 0) revert NoPrice(quote.tradeId);
        if (quote.fee > quote.price) revert FeeAbovePrice(quote.fee, quote.price);
        _requirePayee(quote.seller);
        if (quote.fee != 0) _requirePayee(quote.feeRecipient);
        uint256 fundBy = quote.fundBy;
        if (block.timestamp > fundBy) revert FundingClosed(block.timestamp, fundBy);
        uint256 latest;
        unchecked {
            latest = block.timestamp + MAX_REVEAL_DELAY;
        }
        uint256 revealBy = quote.revealBy;
        if (revealBy <= fundBy || revealBy > latest) revert BadDeadlines(fundBy, revealBy, latest);
        if (quote.grace > MAX_GRACE) revert GraceTooLong(quote.grace, MAX_GRACE);
        if (quote.disputeWindow > MAX_DISPUTE_WINDOW) {
            revert DisputeWindowTooLong(quote.disputeWindow, MAX_DISPUTE_WINDOW);
        }
        // Else no leaf could ever be shown in a dispute.
        ParameterTree.requireLeafCount(quote.leafCount, quote.byteLength);
    }

    function _requirePayee(address account) private view {
        if (account == address(0) || account == address(this)) revert BadPayee(account);
    }
}
