// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {LowLevelCall} from "@openzeppelin/contracts/utils/LowLevelCall.sol";

import {IParameterEscrow} from "./IParameterEscrow.sol";
import {Trade, newTrade} from "./Trade.sol";

/// @title ParameterEscrow
/// @notice Atomic exchange of a payment for the key of encrypted parameters.
/// @dev No owner, no pause, no upgrade. Every step checks, then writes, then (in `withdraw` alone)
/// sends, so that there is nothing for a reentrant call to find half done.
contract ParameterEscrow is IParameterEscrow, EIP712 {
    /// @notice The EIP-712 type of a quote.
    bytes32 public constant QUOTE_TYPEHASH = keccak256(
        "Quote(bytes32 tradeId,address buyer,address seller,address encryptor,address asset,"
        "uint256 price,uint256 fee,address feeRecipient,bytes32 offerRoot,bytes32 goodsRoot,"
        "uint64 leafCount,uint64 byteLength,bytes32 secretCommitment,bytes32 dhCommitment,"
        "uint64 fundBy,uint64 revealBy,uint64 grace,uint64 disputeWindow,bytes32 receiptHash)"
    );

    /// @notice The longest time from funding to `revealBy`. With the two bounds below nothing is
    /// locked for ever: 37 days after the funding at the latest anyone can refund a trade, unless
    /// it was revealed, and 30 days after the reveal at the latest anyone can finalize it.
    uint256 public constant MAX_REVEAL_DELAY = 30 days;

    /// @notice The longest time from `revealBy` to a refund.
    uint256 public constant MAX_GRACE = 7 days;

    /// @notice The longest time from the reveal to the payment.
    uint256 public constant MAX_DISPUTE_WINDOW = 30 days;

    address public immutable broker;

    mapping(address account => uint256 amount) public credits;
    mapping(bytes32 tradeId => Trade trade) private _trades;

    constructor(address broker_) EIP712("pm-node", "1") {
        if (broker_ == address(0)) revert NoBroker();
        broker = broker_;
    }

    /// @inheritdoc IParameterEscrow
    function fund(Quote calldata quote, bytes calldata brokerSignature) external payable {
        State state = _trades[quote.tradeId].stateOf();
        if (state != State.None) revert WrongState(quote.tradeId, state);
        if (msg.sender != quote.buyer) revert NotBuyer(msg.sender, quote.buyer);
        _checkMoney(quote);
        _checkTimes(quote);

        bytes32 digest = quoteDigest(quote);
        // An error leaves `recovered` zero, which no broker is.
        (address recovered,,) = ECDSA.tryRecoverCalldata(digest, brokerSignature);
        if (recovered != broker) revert BadSignature(recovered, broker);

        _trades[quote.tradeId] = newTrade(bytes26(digest), State.Funded);
        emit Funded(quote.tradeId, quote.buyer, quote.seller, quote.price);
    }

    /// @inheritdoc IParameterEscrow
    function reveal(Quote calldata quote, bytes32 secret) external {
        Trade trade = _tradeIn(State.Funded, quote);
        bytes32 digest = sha256(abi.encode(secret));
        if (digest != quote.secretCommitment) {
            revert WrongSecret(quote.tradeId, quote.secretCommitment, digest);
        }

        _trades[quote.tradeId] = trade.moved(State.Revealed);
        emit Revealed(quote.tradeId, secret);
    }

    /// @inheritdoc IParameterEscrow
    function finalize(Quote calldata quote) external {
        Trade trade = _tradeIn(State.Revealed, quote);
        _checkPast(uint256(trade.sinceOf()) + quote.disputeWindow);

        _trades[quote.tradeId] = trade.moved(State.Paid);
        uint256 toSeller = quote.price - quote.fee;
        credits[quote.seller] += toSeller;
        if (quote.fee != 0) credits[quote.feeRecipient] += quote.fee;
        emit Paid(quote.tradeId, toSeller, quote.fee);
    }

    /// @inheritdoc IParameterEscrow
    function refund(Quote calldata quote) external {
        Trade trade = _tradeIn(State.Funded, quote);
        _checkPast(uint256(quote.revealBy) + quote.grace);

        _trades[quote.tradeId] = trade.moved(State.Refunded);
        credits[quote.buyer] += quote.price;
        emit Refunded(quote.tradeId, quote.price);
    }

    /// @inheritdoc IParameterEscrow
    function withdraw(address account) external {
        uint256 amount = credits[account];
        if (amount == 0) revert NothingOwed(account);

        credits[account] = 0;
        emit Withdrawn(account, amount);
        if (!LowLevelCall.callNoReturn(account, amount, "")) revert WithdrawalFailed(account, amount);
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
        bytes32 typeHash = QUOTE_TYPEHASH;
        bytes32 structHash;
        // Each of the 19 fields fills one word of the calldata, as it does in EIP-712, so that the
        // encoding is a copy. A word that is too large for its type makes a digest nobody signs.
        assembly ("memory-safe") {
            let encoded := mload(0x40)
            mstore(encoded, typeHash)
            calldatacopy(add(encoded, 0x20), quote, 0x260)
            structHash := keccak256(encoded, 0x280)
        }
        return _hashTypedDataV4(structHash);
    }

    /// @dev The trade, which must be in `expected`, and under these very terms.
    function _tradeIn(State expected, Quote calldata quote) private view returns (Trade trade) {
        trade = _trades[quote.tradeId];
        if (trade.stateOf() != expected) revert WrongState(quote.tradeId, trade.stateOf());
        bytes26 terms = bytes26(quoteDigest(quote));
        if (trade.termsOf() != terms) revert WrongTerms(quote.tradeId, trade.termsOf(), terms);
    }

    /// @dev The second `last` is over.
    function _checkPast(uint256 last) private view {
        if (block.timestamp <= last) revert TooEarly(block.timestamp, last + 1);
    }

    function _checkMoney(Quote calldata quote) private view {
        if (quote.asset != address(0)) revert UnsupportedAsset(quote.asset);
        if (quote.price == 0) revert NoPrice(quote.tradeId);
        if (msg.value != quote.price) revert WrongPayment(msg.value, quote.price);
        if (quote.fee > quote.price) revert FeeAbovePrice(quote.fee, quote.price);
        _checkRecipient(quote.seller);
        if (quote.fee != 0) _checkRecipient(quote.feeRecipient);
    }

    function _checkRecipient(address account) private view {
        if (account == address(0) || account == address(this)) revert BadRecipient(account);
    }

    function _checkTimes(Quote calldata quote) private view {
        if (block.timestamp > quote.fundBy) revert FundingClosed(block.timestamp, quote.fundBy);
        uint256 latest = block.timestamp + MAX_REVEAL_DELAY;
        if (quote.revealBy <= quote.fundBy || quote.revealBy > latest) {
            revert BadDeadlines(quote.fundBy, quote.revealBy, latest);
        }
        if (quote.grace > MAX_GRACE) revert GraceTooLong(quote.grace, MAX_GRACE);
        if (quote.disputeWindow > MAX_DISPUTE_WINDOW) {
            revert DisputeWindowTooLong(quote.disputeWindow, MAX_DISPUTE_WINDOW);
        }
    }
}
