// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";

import {IBrokerRegistry} from "./IBrokerRegistry.sol";

/// @title The brokers of a market, of whom a quorum must sign
/// @notice Who may ever be a broker here, and how many must sign, is fixed when the market is
/// deployed. Of those, a broker signs for as long as it sits: it takes its seat when the registry
/// says that it serves this market, under a bond, and loses it when the registry says so no more:
/// it gave notice, or was slashed.
/// @dev The seats are a copy of what the registry knows, so that a signature costs one storage read
/// and no call. The registry brings the copy up to date; where it could not, anyone can.
abstract contract BrokerQuorum {
    enum Seat {
        Stranger,
        Empty,
        Taken
    }

    /// @notice A broker may sign from now on.
    event Seated(address indexed broker);

    /// @notice A broker may sign no more.
    event Unseated(address indexed broker);

    /// @notice A quorum of none, or of more than there are brokers.
    error BadQuorum(uint256 threshold, uint256 brokers);

    /// @notice The account is not one of this market's brokers.
    error NotABroker(address account);

    /// @notice The registry does not know the broker to serve this market.
    error NotServing(address broker);

    /// @notice The registry knows the broker to serve this market.
    error StillServing(address broker);

    /// @notice There are fewer signatures than a quorum.
    error BelowQuorum(uint256 given, uint256 needed);

    /// @notice A signature is not of 65 bytes, has a high s, or recovers to nobody; or the contract
    /// that it names does not accept it.
    error BadSignature(uint256 position);

    /// @notice The signer has no seat. A signature over other terms recovers to a stranger.
    error NotSeated(uint256 position, address signer);

    /// @notice Signers come in ascending order, each once.
    error SignersUnsorted(address before, address signer);

    /// @dev A signature by key: r ‖ s ‖ v.
    uint256 private constant SIGNATURE_BYTES = 65;

    /// @notice Where brokers put up their bonds.
    IBrokerRegistry public immutable registry;

    /// @notice How many brokers must sign.
    uint256 public immutable threshold;

    /// @notice Whether an account may be a broker here, and whether it sits.
    mapping(address account => Seat seat) public seatOf;

    constructor(IBrokerRegistry registry_, uint256 threshold_, address[] memory brokers) {
        if (threshold_ == 0 || threshold_ > brokers.length) revert BadQuorum(threshold_, brokers.length);
        registry = registry_;
        threshold = threshold_;
        address last = address(0);
        for (uint256 i = 0; i < brokers.length; ++i) {
            if (brokers[i] <= last) revert SignersUnsorted(last, brokers[i]);
            last = brokers[i];
            seatOf[last] = Seat.Empty;
            if (registry_.serves(last, address(this))) _seat(last);
        }
    }

    /// @notice Seats a broker of this market that serves it under a bond. For anyone to call.
    function seat(address broker) external {
        if (seatOf[broker] == Seat.Stranger) revert NotABroker(broker);
        if (!registry.serves(broker, address(this))) revert NotServing(broker);
        if (seatOf[broker] != Seat.Taken) _seat(broker);
    }

    /// @notice Unseats a broker that gave notice or was slashed. The registry calls it; anyone may.
    function unseat(address broker) external {
        if (seatOf[broker] != Seat.Taken) return;
        if (registry.serves(broker, address(this))) revert StillServing(broker);
        seatOf[broker] = Seat.Empty;
        emit Unseated(broker);
    }

    function _seat(address broker) private {
        seatOf[broker] = Seat.Taken;
        emit Seated(broker);
    }

    /// @dev Reverts unless `threshold` seated brokers signed `digest`, and says who. `signatures` are so
    /// many times 65 bytes r ‖ s ‖ v, by ascending signer. Where v is 0 a contract signs (ERC-1271): r is
    /// its address, and s where in `signatures` its own signature lies, behind 32 bytes of length.
    function _requireQuorum(bytes32 digest, bytes calldata signatures)
        internal
        view
        returns (address[] memory signers)
    {
        uint256 needed = threshold;
        unchecked {
            // A quorum is at most all brokers, who were listed in one transaction.
            if (signatures.length < needed * SIGNATURE_BYTES) {
                revert BelowQuorum(signatures.length / SIGNATURE_BYTES, needed);
            }
        }
        assembly ("memory-safe") {
            // An array of `needed` addresses, each of which is written below.
            signers := mload(0x40)
            mstore(0x40, add(signers, shl(5, add(needed, 1))))
            mstore(signers, needed)
        }
        address last = address(0);
        for (uint256 position = 0; position < needed; ++position) {
            bytes32 r;
            bytes32 s;
            uint8 v;
            assembly ("memory-safe") {
                let start := add(signatures.offset, mul(position, SIGNATURE_BYTES))
                r := calldataload(start)
                s := calldataload(add(start, 0x20))
                v := byte(0, calldataload(add(start, 0x40)))
            }
            address signer;
            if (v == 0) {
                signer = _contractThatSigned(digest, r, s, signatures, position);
            } else {
                (signer,,) = ECDSA.tryRecover(digest, v, r, s);
                if (signer == address(0)) revert BadSignature(position);
            }
            if (seatOf[signer] != Seat.Taken) revert NotSeated(position, signer);
            if (signer <= last) revert SignersUnsorted(last, signer);
            last = signer;
            assembly ("memory-safe") {
                mstore(add(add(signers, 0x20), shl(5, position)), signer)
            }
        }
    }

    /// @dev Whether a broker is one of those that signed.
    function _isAmong(address[] memory signers, address account) internal pure returns (bool found) {
        assembly ("memory-safe") {
            let last := add(signers, shl(5, mload(signers)))
            for { let at := signers } lt(at, last) {} {
                at := add(at, 0x20)
                found := or(found, eq(mload(at), account))
            }
        }
    }

    function _contractThatSigned(
        bytes32 digest,
        bytes32 r,
        bytes32 s,
        bytes calldata signatures,
        uint256 position
    ) private view returns (address signer) {
        signer = address(uint160(uint256(r)));
        uint256 start = uint256(s);
        if (start > signatures.length || signatures.length - start < 32) revert BadSignature(position);
        uint256 length = uint256(bytes32(signatures[start:][:32]));
        start += 32;
        if (length > signatures.length - start) revert BadSignature(position);
        // Whom to ask comes first: no stranger's contract is called.
        if (seatOf[signer] != Seat.Taken) revert NotSeated(position, signer);
        if (
            !SignatureChecker.isValidERC1271SignatureNowCalldata(
                signer, digest, signatures[start:][:length]
            )
        ) revert BadSignature(position);
    }
}
