// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// @title The settlement of one parameter trade
/// @notice A buyer's payment waits here until the key of the goods is public, or until it goes back.
///
///     None ──fund──► Funded ──reveal──► Revealed ──finalize──► Paid
///                      │
///                      └──────refund──► Refunded
///
///     fund      the buyer, with the broker's signature, not after `fundBy`
///     reveal    whoever knows the secret, for as long as the trade is Funded
///     finalize  anyone, once `disputeWindow` seconds have passed since the reveal
///     refund    anyone, once `revealBy + grace` has passed without a reveal
///
/// Paid and Refunded are terminal. Both only credit; money leaves by `withdraw`.
///
/// Only a digest of the terms is stored, so every call brings the whole quote again.
interface IParameterEscrow {
    /// @notice Where a trade stands. Paid and Refunded are never left.
    enum State {
        None,
        Funded,
        Revealed,
        Paid,
        Refunded
    }

    /// @notice The terms of one trade, signed by the broker as EIP-712 typed data.
    /// @param tradeId keccak256(buyer, seller, offerDigest, buyerNonce): derived, never chosen
    /// @param buyer who funds, and is refunded
    /// @param seller who is paid
    /// @param encryptor who made the ciphertext and knows the secret, in most trades the seller
    /// @param asset the settlement asset; zero is ETH, and nothing else is accepted yet
    /// @param price what the buyer pays, in wei, the fee included
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
    /// @param disputeWindow seconds between the reveal and the payment
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

    /// @notice The buyer's payment is locked.
    event Funded(bytes32 indexed tradeId, address indexed buyer, address indexed seller, uint256 price);

    /// @notice The secret is public, and the payment pending.
    event Revealed(bytes32 indexed tradeId, bytes32 secret);

    /// @notice The seller was credited `toSeller`, and the fee recipient `fee`; together the price.
    event Paid(bytes32 indexed tradeId, uint256 toSeller, uint256 fee);

    /// @notice The buyer was credited the whole price.
    event Refunded(bytes32 indexed tradeId, uint256 amount);

    /// @notice `amount` of the account's credits was sent to it.
    event Withdrawn(address indexed account, uint256 amount);

    /// @notice The escrow cannot be built on a broker that is nobody.
    error NoBroker();

    /// @notice The trade is in `state`, from which this step does not lead on.
    error WrongState(bytes32 tradeId, State state);

    /// @notice The quote is not the one that was funded under its trade id.
    error WrongTerms(bytes32 tradeId, bytes26 funded, bytes26 supplied);

    /// @notice It is `time` now; the step opens at `notBefore`.
    error TooEarly(uint256 time, uint256 notBefore);

    /// @notice Only the buyer may accept the terms by funding them.
    error NotBuyer(address caller, address buyer);

    /// @notice It is `time` now; the quote could be funded until `fundBy`.
    error FundingClosed(uint256 time, uint256 fundBy);

    /// @notice The asset is not one in which this escrow settles.
    error UnsupportedAsset(address asset);

    /// @notice A trade without a price has nothing to settle.
    error NoPrice(bytes32 tradeId);

    /// @notice The payment is not exactly the price.
    error WrongPayment(uint256 sent, uint256 price);

    /// @notice The fee is more than the price that it is taken from.
    error FeeAbovePrice(uint256 fee, uint256 price);

    /// @notice Money credited to this account could never be withdrawn.
    error BadRecipient(address account);

    /// @notice `revealBy` is not after `fundBy`, or it is after `latest`.
    error BadDeadlines(uint256 fundBy, uint256 revealBy, uint256 latest);

    /// @notice A refund would open too long after `revealBy`.
    error GraceTooLong(uint256 grace, uint256 maximum);

    /// @notice The payment would be pending for too long.
    error DisputeWindowTooLong(uint256 disputeWindow, uint256 maximum);

    /// @notice The signature is malformed (`recovered` is zero), or not the broker's over these terms.
    error BadSignature(address recovered, address broker);

    /// @notice The secret is not the one that the quote commits to.
    error WrongSecret(bytes32 tradeId, bytes32 commitment, bytes32 digest);

    /// @notice Nothing is owed to the account.
    error NothingOwed(address account);

    /// @notice The account would not take the money; it stays credited.
    error WithdrawalFailed(address account, uint256 amount);

    /// @notice Locks the price of a trade. Only for the buyer, and only once for a trade id.
    /// @param quote the terms
    /// @param brokerSignature the broker's 65 bytes r ‖ s ‖ v over `quoteDigest(quote)`, low s only
    function fund(Quote calldata quote, bytes calldata brokerSignature) external payable;

    /// @notice Publishes the secret. Accepted from anyone, and late too, until the trade is refunded.
    /// @param quote the terms that were funded
    /// @param secret the preimage of `secretCommitment`
    function reveal(Quote calldata quote, bytes32 secret) external;

    /// @notice Credits the seller and the fee recipient, after the dispute window. For anyone to call.
    function finalize(Quote calldata quote) external;

    /// @notice Credits the buyer, after `revealBy + grace` without a reveal. For anyone to call.
    function refund(Quote calldata quote) external;

    /// @notice Sends an account all that it is owed. For anyone to call; it goes to the account alone.
    function withdraw(address account) external;

    /// @notice The one account whose signature makes a quote fundable here.
    function broker() external view returns (address);

    /// @notice What an account can withdraw, in wei.
    function credits(address account) external view returns (uint256);

    /// @notice The state of a trade, and the Unix time at which it was entered (0 for None).
    function tradeOf(bytes32 tradeId) external view returns (State state, uint64 since);

    /// @notice The first 26 bytes of the digest of the quote that was funded (0 for None). A seller
    /// compares it with its own quote before it reveals: a trade id alone does not say which terms.
    function termsOf(bytes32 tradeId) external view returns (bytes26);

    /// @notice The EIP-712 digest of a quote in this escrow's domain: what the broker signs.
    function quoteDigest(Quote calldata quote) external view returns (bytes32);
}
