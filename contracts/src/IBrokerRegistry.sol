// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Quote} from "./Quote.sol";

/// @notice A quote and its signature by a broker: over the quote, or over a batch that has it.
/// @param quote the terms
/// @param batch the digests of all quotes of the batch, in order; none if the quote was signed by itself
/// @param place which of the batch is this quote
/// @param signature r ‖ s ‖ v, or what a broker that is a contract accepts (ERC-1271)
struct SignedQuote {
    Quote quote;
    bytes32[] batch;
    uint256 place;
    bytes signature;
}

/// @title The bonds of brokers
/// @notice A broker puts up a bond, names the markets that it serves, and can leave with its bond
/// only long after the last quote that it signed was settled. Until then anyone can prove that it
/// signed two quotes for one trade, and a market that it serves can convict it of a bad delivery.
interface IBrokerRegistry {
    /// @notice A broker put money up; `bond` is what it has up in all.
    event Bonded(address indexed broker, uint256 amount, uint256 bond);

    /// @notice A broker's signature counts in a market.
    event Serving(address indexed broker, address indexed market);

    /// @notice A broker gave notice: it serves no market any more, and may leave from `leavesAt` on.
    event NoticeGiven(address indexed broker, uint256 leavesAt);

    /// @notice A broker left with its bond.
    event Left(address indexed broker, uint256 bond);

    /// @notice A broker lost its bond: so much went to the victim and to the reporter, together a tenth
    /// at most, and `burnt` to nobody.
    event Slashed(
        address indexed broker,
        address indexed victim,
        address indexed reporter,
        uint256 toVictim,
        uint256 toReporter,
        uint256 burnt
    );

    /// @notice The bond would not be what a broker needs at the least.
    error BondTooSmall(uint256 bond, uint256 minimum);

    /// @notice The broker has nothing up.
    error NoBond(address broker);

    /// @notice Who was slashed is a broker no more: the same proof would slash it again.
    error WasSlashed(address broker);

    /// @notice The broker serves as many markets as it can.
    error TooManyMarkets(uint256 maximum);

    /// @notice The broker is leaving.
    error HasGivenNotice(address broker);

    /// @notice The broker has not said that it leaves.
    error NoNotice(address broker);

    /// @notice It is `time` now; the bond is up until `leavesAt`.
    error TooEarlyToLeave(uint256 time, uint256 leavesAt);

    /// @notice These are not two quotes of one trade id.
    error NotAConflict(bytes32 first, bytes32 second);

    /// @notice The digest of the quote does not stand at its place in the batch.
    error NotInBatch(bytes32 digest, uint256 place);

    /// @notice The broker did not sign this.
    error NotSignedBy(address broker, bytes32 digest);

    /// @notice The caller is no market that the broker serves.
    error NotServedBy(address market, address broker);

    /// @notice With so little gas a market might not be told who sits there no more.
    error TooLittleGas(uint256 left, uint256 needed);

    /// @notice Puts up a bond, or adds to it. Only before a notice.
    function bond() external payable;

    /// @notice Lets the caller's signature count in a market that lists it.
    function serve(address market) external;

    /// @notice Serves no market from now on. The bond stays up until `EXIT_DELAY` has passed.
    function giveNotice() external;

    /// @notice Takes the bond back.
    function takeBond() external;

    /// @notice Slashes a broker that signed two quotes for one trade of one market, each by itself or in
    /// a batch. The buyer of the first is the victim. For anyone; the caller is the reporter, and whoever
    /// copies its transaction and is mined first is that in its place.
    /// @param market whose quotes they are: the verifying contract of their domain
    /// @param broker who signed both. A contract is asked now: what it does not accept any more proves
    /// nothing.
    function proveEquivocation(
        address market,
        address broker,
        SignedQuote calldata first,
        SignedQuote calldata second
    ) external;

    /// @notice Slashes a broker for goods that it encrypted, under a quote that it signed, and that a
    /// market found to be bad. For the markets that it serves, or served when it gave notice.
    function convict(address broker, address victim, address reporter) external;

    /// @notice Whether a market can convict a broker: it has a bond up, and serves that market, or did
    /// when it gave notice.
    function answersTo(address broker, address market) external view returns (bool);

    /// @notice Whether a broker's signature counts in a market.
    function serves(address broker, address market) external view returns (bool);
}
