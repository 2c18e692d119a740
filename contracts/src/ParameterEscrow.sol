// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Permit.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";

import {Batches} from "./Batches.sol";
import {BrokerQuorum} from "./BrokerQuorum.sol";
import {DeliveryCourt} from "./DeliveryCourt.sol";
import {IBrokerRegistry} from "./IBrokerRegistry.sol";
import {IParameterEscrow} from "./IParameterEscrow.sol";
import {Delivery, Evidence} from "./lib/Delivery.sol";
import {Terms} from "./lib/Terms.sol";
import {Quote} from "./Quote.sol";
import {Trade, VOUCHED, newTrade} from "./Trade.sol";

/// @title ParameterEscrow
/// @notice Atomic exchange of a payment for the key of encrypted parameters.
/// @dev No owner, no pause, no upgrade. Every step checks, then writes, then calls out (a token, the
/// registry, or whoever withdraws), so that there is nothing for a reentrant call to find half done;
/// the one exception, a token that is collected, is behind `Credits._pull`.
contract ParameterEscrow is IParameterEscrow, Batches {
    mapping(bytes32 tradeId => Trade trade) private _trades;

    constructor(
        IBrokerRegistry registry_,
        DeliveryCourt court_,
        uint256 threshold_,
        address[] memory brokers
    )
        EIP712("pm-node", "1")
        BrokerQuorum(registry_, threshold_, brokers)
        Batches(court_)
    {}

    /// @inheritdoc IParameterEscrow
    function fund(Quote calldata quote, bytes calldata signatures) external payable {
        uint256 due = _fund(quote, signatures);
        if (msg.value != due) revert WrongPayment(ETH, msg.value, due);
    }

    /// @inheritdoc IParameterEscrow
    function fundWithPermit(
        Quote calldata quote,
        bytes calldata signatures,
        uint256 deadline,
        uint8 v,
        bytes32 r,
        bytes32 s
    ) external {
        if (quote.asset == ETH) revert WrongPayment(ETH, 0, quote.price);
        _requireToken(quote.asset);
        // Whoever saw the permit may have used it already: the transfer shows whether it holds.
        try IERC20Permit(quote.asset).permit(
            msg.sender, address(this), quote.price, deadline, v, r, s
        ) {} catch {}
        _fund(quote, signatures);
    }

    /// @inheritdoc IParameterEscrow
    function fundMany(Quote[] calldata quotes, bytes[] calldata signatures) external payable {
        _requireSameLength(quotes.length, signatures.length);
        uint256 due = 0;
        // Nobody sends so much that a sum which ends at the largest number would be enough.
        for (uint256 i = 0; i < quotes.length; ++i) {
            due = Math.saturatingAdd(due, _fund(quotes[i], signatures[i]));
        }
        if (msg.value != due) revert WrongPayment(ETH, msg.value, due);
    }

    /// @inheritdoc IParameterEscrow
    function reveal(Quote calldata quote, bytes32 secret) external {
        _reveal(_tradeIn(State.Funded, quote), quote, secret);
    }

    /// @inheritdoc IParameterEscrow
    function revealMany(Quote[] calldata quotes, bytes32[] calldata secrets) external {
        _requireSameLength(quotes.length, secrets.length);
        for (uint256 i = 0; i < quotes.length; ++i) {
            if (_trades[quotes[i].tradeId].stateOf() != State.Funded) continue;
            _reveal(_tradeIn(State.Funded, quotes[i]), quotes[i], secrets[i]);
        }
    }

    /// @inheritdoc IParameterEscrow
    function dispute(Quote calldata quote, Evidence calldata evidence) external {
        Trade trade = _tradeIn(State.Revealed, quote);
        uint256 until = uint256(trade.sinceOf()) + quote.disputeWindow;
        if (block.timestamp > until) revert DisputeClosed(block.timestamp, until);
        court.requireBad(quote, evidence);

        _trades[quote.tradeId] = trade.moved(State.Disputed);
        _credit(quote.asset, quote.buyer, quote.price);
        emit Disputed(quote.tradeId, evidence.index, quote.price);
        if (trade.isVouched()) _punish(quote);
    }

    /// @inheritdoc IParameterEscrow
    function finalize(Quote calldata quote) external {
        _finalize(_tradeIn(State.Revealed, quote), quote);
    }

    /// @inheritdoc IParameterEscrow
    function finalizeMany(Quote[] calldata quotes) external {
        for (uint256 i = 0; i < quotes.length; ++i) {
            if (_trades[quotes[i].tradeId].stateOf() != State.Revealed) continue;
            _finalize(_tradeIn(State.Revealed, quotes[i]), quotes[i]);
        }
    }

    /// @inheritdoc IParameterEscrow
    function refund(Quote calldata quote) external {
        Trade trade = _tradeIn(State.Funded, quote);
        _requirePast(uint256(quote.revealBy) + quote.grace);

        _trades[quote.tradeId] = trade.moved(State.Refunded);
        _credit(quote.asset, quote.buyer, quote.price);
        emit Refunded(quote.tradeId, quote.price);
    }

    /// @inheritdoc IParameterEscrow
    function tradeOf(bytes32 tradeId) external view returns (State state, uint64 since) {
        Trade trade = _trades[tradeId];
        return (trade.stateOf(), trade.sinceOf());
    }

    /// @inheritdoc IParameterEscrow
    function termsOf(bytes32 tradeId) external view returns (bytes26) {
        return _trades[tradeId].termsOf();
    }

    /// @inheritdoc IParameterEscrow
    function quoteDigest(Quote calldata quote) public view returns (bytes32) {
        return _hashTypedDataV4(quote.structHash());
    }

    /// @dev Returns the ETH that is due for it.
    function _fund(Quote calldata quote, bytes calldata signatures) private returns (uint256 due) {
        _requireNone(quote.tradeId);
        if (msg.sender != quote.buyer) revert NotBuyer(msg.sender, quote.buyer);
        Terms.requireFundable(quote);
        bytes32 digest = quoteDigest(quote);
        bool vouched = _isAmong(_requireQuorum(digest, signatures), quote.encryptor);

        _trades[quote.tradeId] = newTrade(bytes26(digest), vouched ? VOUCHED : 0);
        emit Funded(quote.tradeId, msg.sender, quote.seller, quote.price);
        if (quote.asset == ETH) return quote.price;
        _pull(quote.asset, msg.sender, quote.price);
    }

    function _reveal(Trade trade, Quote calldata quote, bytes32 secret) private {
        Delivery.requireSecret(quote, secret);

        _trades[quote.tradeId] = trade.moved(State.Revealed);
        emit Revealed(quote.tradeId, secret);
    }

    function _finalize(Trade trade, Quote calldata quote) private {
        _requirePast(uint256(trade.sinceOf()) + quote.disputeWindow);

        _trades[quote.tradeId] = trade.moved(State.Paid);
        uint256 toSeller = quote.price - quote.fee;
        _credit(quote.asset, quote.seller, toSeller);
        if (quote.fee != 0) _credit(quote.asset, quote.feeRecipient, quote.fee);
        emit Paid(quote.tradeId, toSeller, quote.fee);
    }

    /// @inheritdoc Batches
    function _requireNone(bytes32 tradeId) internal view override {
        Trade trade = _trades[tradeId];
        if (Trade.unwrap(trade) != 0) revert WrongState(tradeId, trade.stateOf());
    }

    /// @dev The trade, which must be in `expected`, and under these very terms.
    function _tradeIn(State expected, Quote calldata quote) private view returns (Trade trade) {
        trade = _trades[quote.tradeId];
        if (trade.stateOf() != expected) revert WrongState(quote.tradeId, trade.stateOf());
        bytes26 terms = bytes26(quoteDigest(quote));
        if (trade.termsOf() != terms) revert WrongTerms(quote.tradeId, trade.termsOf(), terms);
    }

    function _requireSameLength(uint256 quotes, uint256 others) private pure {
        if (quotes != others) revert LengthsDiffer(quotes, others);
    }
}
