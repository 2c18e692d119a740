// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Quote} from "./Quote.sol";

/// @notice What one buyer spends in a batch, with one signature.
/// @param quotes the terms of its trades, by ascending trade id; all of a batch are in one asset
/// @param payees for each trade, which of the batch's accounts is its seller (low byte) and which
/// gets its fee (next)
/// @param payer which of the batch's accounts is the buyer
/// @param nonce of the consent, each good once
/// @param closesBy until when, at the latest, the buyer lets its prices be locked
/// @param consent the buyer's signature over `Consent(bytes32[] quotes,uint256 nonce,uint64 closesBy)`
struct Spending {
    Quote[] quotes;
    uint16[] payees;
    uint8 payer;
    uint256 nonce;
    uint64 closesBy;
    bytes consent;
}

/// @notice What is kept of a batch, as its hash; every later call brings it again.
/// @param asset what all its trades are paid in
/// @param count how many trades it has
/// @param closesFrom the last moment at which trades that are not revealed must be waited for: the
/// latest of all quotes
/// @param disputeWindow seconds from the last reveal to the payment: the longest of all quotes. Reveals
/// are taken for so long after `closesFrom`: `closesFrom + 2 * disputeWindow`, after which anyone can
/// close the batch, is not after any buyer's `closesBy`. A seller sees it before it reveals
/// @param commitments hash of the secret commitments
/// @param quotes hash of the quotes' digests
/// @param movements hash of the accounts, and of who pays and gets what in each trade
/// @param payouts hash of what each account gets in all, if every trade is good
struct Batch {
    address asset;
    uint8 count;
    uint64 closesFrom;
    uint64 disputeWindow;
    bytes32 commitments;
    bytes32 quotes;
    bytes32 movements;
    bytes32 payouts;
}

/// @notice Who pays and gets what in one trade of a batch, in one word: price (14 bytes) ‖ fee (14 bytes)
/// ‖ 0 ‖ and, as places among the batch's accounts, who pays ‖ who gets the fee ‖ who sells (a byte each).
type Movement is uint256;

using {priceOf, feeOf, payerOf, feeRecipientOf, sellerOf} for Movement global;

/// @notice A movement; the price, and so the fee, is at most `MAX_BATCH_PRICE`.
function newMovement(uint256 price, uint256 fee, uint8 payer, uint16 payees) pure returns (Movement) {
    return Movement.wrap(price << 144 | fee << 32 | uint256(payer) << 16 | payees);
}

// 5e33: of a token with 18 decimals that is 5e15 whole ones.
uint256 constant MAX_BATCH_PRICE = type(uint112).max;

/// @notice What the buyer pays, the fee included.
function priceOf(Movement movement) pure returns (uint256) {
    return Movement.unwrap(movement) >> 144;
}

/// @notice The part of the price that goes to the fee recipient.
function feeOf(Movement movement) pure returns (uint256) {
    return uint112(Movement.unwrap(movement) >> 32);
}

/// @notice Which of the accounts is the buyer.
function payerOf(Movement movement) pure returns (uint256) {
    return uint8(Movement.unwrap(movement) >> 16);
}

/// @notice Which of the accounts gets the fee; it says nothing where there is none.
function feeRecipientOf(Movement movement) pure returns (uint256) {
    return uint8(Movement.unwrap(movement) >> 8);
}

/// @notice Which of the accounts is the seller.
function sellerOf(Movement movement) pure returns (uint256) {
    return uint8(Movement.unwrap(movement));
}

/// @notice What an account gets of a batch, if every trade is good.
/// @param toDeposit what it sold pays for what it bought: so much goes back to its deposit, at most
/// what its trades took from there
/// @param amount what is left, which it is credited
struct Payout {
    address account;
    uint256 toDeposit;
    uint256 amount;
}
