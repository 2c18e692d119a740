// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Evidence} from "./lib/Delivery.sol";
import {Quote} from "./Quote.sol";

/// @title The settlement of one parameter trade
/// @notice A buyer's payment waits here until the key of the goods is public, or until it goes back.
///
///     None ──fund──► Funded ──reveal──► Revealed ──finalize──► Paid
///                      │                    │
///                      └─refund─► Refunded  └─dispute─► Disputed
///
///     fund      the buyer, with the signatures of a quorum of brokers, not after `fundBy`
///     reveal    whoever knows the secret, for as long as the trade is Funded
///     dispute   whoever holds the proof of a bad leaf, within `disputeWindow` of the reveal
///     finalize  anyone, once `disputeWindow` seconds have passed since the reveal
///     refund    anyone, once `revealBy + grace` has passed without a reveal
///
/// Paid, Refunded and Disputed are terminal. They only credit; money leaves by `withdraw`.
///
/// Only a digest of the terms is stored, so every call brings the whole quote again.
interface IParameterEscrow {
    /// @notice Where a trade stands. Paid, Refunded and Disputed are never left.
    enum State {
        None,
        Funded,
        Revealed,
        Paid,
        Refunded,
        Disputed
    }

    /// @notice The buyer's payment is locked.
    event Funded(bytes32 indexed tradeId, address indexed buyer, address indexed seller, uint256 price);

    /// @notice The secret is public, and the payment pending.
    event Revealed(bytes32 indexed tradeId, bytes32 secret);

    /// @notice The seller was credited `toSeller`, and the fee recipient `fee`; together the price.
    event Paid(bytes32 indexed tradeId, uint256 toSeller, uint256 fee);

    /// @notice The buyer was credited the whole price.
    event Refunded(bytes32 indexed tradeId, uint256 amount);

    /// @notice A leaf of the goods was proved to be bad; the buyer was credited the whole price.
    event Disputed(bytes32 indexed tradeId, uint256 index, uint256 amount);

    /// @notice The trade is in `state`, from which this step does not lead on.
    error WrongState(bytes32 tradeId, State state);

    /// @notice The quote is not the one that was funded under its trade id.
    error WrongTerms(bytes32 tradeId, bytes26 funded, bytes26 supplied);

    /// @notice It is `time` now; the step opens at `notBefore`.
    error TooEarly(uint256 time, uint256 notBefore);

    /// @notice It is `time` now; a dispute was heard until `until`.
    error DisputeClosed(uint256 time, uint256 until);

    /// @notice Only the buyer may accept the terms by funding them.
    error NotBuyer(address caller, address buyer);

    /// @notice There is not one signature, or secret, for each quote.
    error LengthsDiffer(uint256 quotes, uint256 others);

    /// @notice Locks the price of a trade. Only for the buyer, and only once for a trade id. ETH comes
    /// with the call; of a token the price must be approved.
    /// @param quote the terms
    /// @param signatures of a quorum of brokers over `quoteDigest(quote)`, see `BrokerQuorum`
    function fund(Quote calldata quote, bytes calldata signatures) external payable;

    /// @notice `fund` with a token that takes signed approvals (ERC-2612), in one transaction.
    function fundWithPermit(
        Quote calldata quote,
        bytes calldata signatures,
        uint256 deadline,
        uint8 v,
        bytes32 r,
        bytes32 s
    ) external;

    /// @notice `fund` for several trades of the caller, or for none of them.
    function fundMany(Quote[] calldata quotes, bytes[] calldata signatures) external payable;

    /// @notice Publishes the secret. Accepted from anyone, and late too, until the trade is refunded.
    /// @param quote the terms that were funded
    /// @param secret the preimage of `secretCommitment`
    function reveal(Quote calldata quote, bytes32 secret) external;

    /// @notice `reveal` for several trades; those that are not Funded any more are passed over.
    function revealMany(Quote[] calldata quotes, bytes32[] calldata secrets) external;

    /// @notice Credits the buyer for a leaf that is not what was offered, within the dispute window.
    /// For anyone who holds the proof. An encryptor that signed the quote as a broker loses its bond: the
    /// caller is the reporter then, and whoever copies its transaction and is mined first is that in its
    /// place. To the buyer the price goes back either way.
    function dispute(Quote calldata quote, Evidence calldata evidence) external;

    /// @notice Credits the seller and the fee recipient, after the dispute window. For anyone to call.
    function finalize(Quote calldata quote) external;

    /// @notice `finalize` for several trades; those that are not Revealed any more are passed over.
    function finalizeMany(Quote[] calldata quotes) external;

    /// @notice Credits the buyer, after `revealBy + grace` without a reveal. For anyone to call.
    function refund(Quote calldata quote) external;

    /// @notice The state of a trade, and the Unix time at which it was entered (0 for None).
    function tradeOf(bytes32 tradeId) external view returns (State state, uint64 since);

    /// @notice The first 26 bytes of the digest of the quote that was funded (0 for None). A seller
    /// compares it with its own quote before it reveals: a trade id alone does not say which terms.
    function termsOf(bytes32 tradeId) external view returns (bytes26);

    /// @notice The EIP-712 digest of a quote in this escrow's domain: what a broker signs.
    function quoteDigest(Quote calldata quote) external view returns (bytes32);
}
