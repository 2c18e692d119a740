// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";

import {BrokerQuorum} from "./BrokerQuorum.sol";
import {Credits} from "./Credits.sol";
import {IBrokerRegistry} from "./IBrokerRegistry.sol";

/// @notice What is agreed on before a round begins.
/// @param asset what is paid in and out: an ERC-20 token, or zero for ETH
/// @param payBy the last second in which participants can pay in
/// @param postBy the last second in which a root can be posted
/// @param challengePeriod seconds in which a posted root can be vetoed or replaced
struct Opening {
    bytes32 round;
    address asset;
    uint64 payBy;
    uint64 postBy;
    uint64 challengePeriod;
}

/// @notice The root of a round; every claim brings it again.
/// @param sum what all leaves come to: the pot
/// @param standsFrom the second from which on it can be claimed under
struct Clearing {
    bytes32 round;
    bytes32 root;
    uint256 sum;
    uint64 leaves;
    address asset;
    uint64 standsFrom;
}

/// @notice A node beside the path of a claim.
struct Sibling {
    bytes32 hash;
    uint256 sum;
}

/// @title ClearingHouse
/// @notice Money without goods: what a round of a mechanism collects and pays out (participation
/// fees, refunds, Shapley payouts).
///
///     None ──open──► Collecting ──post──► Posted ──challenge period──► claim, claim, …
///                        │   ▲              │                             │
///                        │   └────veto──────┘                          expire
///                        │                                                │
///                        └──no root stands by `postBy`────────────────────┴──► reclaim, …
///
/// A quorum of brokers opens a round and, once nobody can pay in any more, posts a Merkle-sum root
/// whose sum must be the pot. Within the challenge period the quorum can replace it, and any one
/// broker can veto it. A root that stands is claimed leaf by leaf: anybody may call, and the account
/// in the leaf is credited. If none stands in time, everybody takes back what they paid. And what
/// nobody has claimed half a year after a root stands (lost accounts, leaves that nobody knows of, a
/// root of nothing) is taken back too, by each who paid in as much of it as it paid of the pot.
///
///     leaf = keccak256(0x00 ‖ round ‖ index ‖ account ‖ amount)
///     node = keccak256(0x01 ‖ left hash ‖ left sum ‖ right hash ‖ right sum)
///
/// A claim adds up the sums along its path to the pot, so that no set of claims is worth more than
/// the pot, whatever the quorum signed. What was claimed and what was taken back come to the pot in the
/// end, to the wei: what rounding keeps from one who takes back is there for those after it, and the
/// last one takes all that is left.
contract ClearingHouse is BrokerQuorum, Credits, EIP712 {
    /// @dev What is kept of a round.
    /// @param postedAt when the root that is there was posted, 0 if there is none
    /// @param leaves how many it has
    /// @param version how many roots were posted
    /// @param pot what was paid in and not taken back: all of `paidIn`
    /// @param taken what of it was claimed under a root that expired, and is missing for those who take
    /// back; 0 before
    /// @param clearing the hash of the `Clearing` that is there
    struct Round {
        address asset;
        uint64 payBy;
        uint64 postBy;
        uint32 challengePeriod;
        uint64 postedAt;
        uint32 leaves;
        uint64 version;
        uint128 pot;
        uint128 taken;
        bytes32 clearing;
    }

    /// @notice The longest time from opening a round to `payBy`, from there to `postBy`, and of a
    /// challenge: after 90 days all money of a round can be claimed, or taken back if no root stands.
    uint256 public constant MAX_WINDOW = 30 days;

    /// @notice How long a root can be claimed under at the least; then anybody can end it.
    uint256 public constant EXPIRY = 180 days;

    /// @notice Who posts a root pays for a slot for each 127 leaves: 6 million gas for so many.
    uint256 public constant MAX_LEAVES = 1 << 15;

    /// @notice The shortest challenge of a round: what brokers have to look at a root and veto it.
    uint256 public immutable minimumChallenge;

    /// @dev How many leaves one word says of whether they were claimed.
    uint256 private constant LEAVES_A_WORD = 127;

    /// @dev Above the bits of a word, what its leaves that were claimed come to.
    uint256 private constant AMOUNT_AT = 128;

    bytes32 private constant OPENING_TYPEHASH = keccak256(
        "Opening(bytes32 round,address asset,uint64 payBy,uint64 postBy,uint64 challengePeriod)"
    );
    bytes32 private constant CLEARING_TYPEHASH =
        keccak256("Clearing(bytes32 round,bytes32 root,uint256 sum,uint64 leaves,uint64 version)");

    mapping(bytes32 round => Round) private _rounds;

    /// @dev By the hash of a `Clearing`, which leaves were claimed, 127 to a word, in the low bits. The
    /// next bit of each word is set for as long as this is the root of its round: so a claim reads and
    /// writes one slot and no more, and whoever posts pays for filling it. The high half is what the
    /// leaves of the word that were claimed come to: at most the pot, which is half a word.
    mapping(bytes32 clearing => mapping(uint256 word => uint256 bits)) private _claimed;

    /// @notice What an account paid into a round and has not taken back.
    mapping(bytes32 round => mapping(address account => uint256 amount)) public paidIn;

    /// @notice A round collects until `payBy`, and is posted until `postBy`.
    event RoundOpened(bytes32 indexed round, address indexed asset, uint256 payBy, uint256 postBy);

    /// @notice Somebody paid for the account.
    event PaidIn(bytes32 indexed round, address indexed account, uint256 amount);

    /// @notice This root holds from `standsFrom` on, unless it is vetoed or replaced before.
    event Posted(bytes32 indexed round, Clearing clearing, uint256 version);

    /// @notice A broker took this root back.
    event Vetoed(bytes32 indexed round, address indexed broker, uint256 version);

    /// @notice The account of a leaf was credited.
    event Claimed(bytes32 indexed round, uint256 index, address indexed account, uint256 amount);

    /// @notice The root can be claimed under no more: `claimed` was, and `rest` is taken back.
    event Expired(bytes32 indexed round, uint256 claimed, uint256 rest);

    /// @notice The account was credited what it had paid, for no root came; or its share of what was not
    /// claimed.
    event Reclaimed(bytes32 indexed round, address indexed account, uint256 amount);

    /// @notice A round is opened once.
    error RoundExists(bytes32 round);

    /// @notice No such round was opened.
    error NoSuchRound(bytes32 round);

    /// @notice A time is over, out of order, or further away than `MAX_WINDOW`; or the challenge is
    /// shorter than `minimumChallenge`, or that itself is none, or longer than `MAX_WINDOW`.
    error BadWindows(uint256 payBy, uint256 postBy, uint256 challengePeriod);

    /// @notice It is `time` now; the round collected until `payBy`.
    error CollectionOver(uint256 time, uint256 payBy);

    /// @notice There would be more in the pot than half a word can say.
    error PotTooLarge(uint256 pot, uint256 amount);

    /// @notice It is `time` now; a root is posted after `payBy` and until `postBy`, and money taken back
    /// after that.
    error NotPosting(uint256 time, uint256 payBy, uint256 postBy);

    /// @notice What the leaves come to is not what was paid in.
    error SumIsNotThePot(uint256 sum, uint256 pot);

    /// @notice A root of no leaves, or of too many.
    error BadLeafCount(uint256 leaves, uint256 maximum);

    /// @notice There is no root to veto, or to end.
    error NothingPosted(bytes32 round);

    /// @notice The root posted at `since` cannot be replaced any more, nor money be taken back.
    error RootStands(uint256 time, uint256 since);

    /// @notice It is `time` now; the root can be claimed under from `standsFrom` on.
    error RootDoesNotStand(uint256 time, uint256 standsFrom);

    /// @notice It is `time` now; the root can be ended from `expiresAt` on.
    error NotExpired(uint256 time, uint256 expiresAt);

    /// @notice The leaf was claimed.
    error AlreadyClaimed(bytes32 round, uint256 index);

    /// @notice This is not the root that is posted: it was replaced, or vetoed, or expired, or never was;
    /// or it has no such leaf.
    error NotTheClearing(bytes32 round);

    /// @notice There is no such leaf.
    error NoSuchLeaf(uint256 index, uint256 leaves);

    /// @notice The leaf and its path come to another root, to another sum, or to more than a word.
    error NotInRoot(bytes32 hash, uint256 sum, bytes32 root, uint256 pot);

    /// @notice The path does not have one node for each level over leaves up to `last`.
    error WrongPathLength(uint256 given, uint256 last);

    /// @notice The account paid nothing in, or took it back.
    error NothingToReclaim(bytes32 round, address account);

    constructor(
        IBrokerRegistry registry_,
        uint256 minimumChallenge_,
        uint256 threshold_,
        address[] memory brokers
    ) EIP712("pm-node clearing", "1") BrokerQuorum(registry_, threshold_, brokers) {
        if (minimumChallenge_ == 0 || minimumChallenge_ > MAX_WINDOW) {
            revert BadWindows(0, 0, minimumChallenge_);
        }
        minimumChallenge = minimumChallenge_;
    }

    /// @notice Opens a round, signed by a quorum.
    function open(Opening calldata opening, bytes calldata signatures) external {
        if (_rounds[opening.round].payBy != 0) revert RoundExists(opening.round);
        if (
            opening.payBy < block.timestamp || opening.payBy > block.timestamp + MAX_WINDOW
                || opening.postBy <= opening.payBy || opening.postBy - opening.payBy > MAX_WINDOW
                || opening.challengePeriod < minimumChallenge || opening.challengePeriod > MAX_WINDOW
        ) revert BadWindows(opening.payBy, opening.postBy, opening.challengePeriod);
        _requireQuorum(_hashTypedDataV4(keccak256(abi.encode(OPENING_TYPEHASH, opening))), signatures);
        Round storage round = _rounds[opening.round];
        round.asset = opening.asset;
        round.payBy = opening.payBy;
        round.postBy = opening.postBy;
        round.challengePeriod = uint32(opening.challengePeriod); // at most `MAX_WINDOW`
        emit RoundOpened(opening.round, opening.asset, opening.payBy, opening.postBy);
    }

    /// @notice Pays into a round, for an account that takes it back if no root comes.
    function pay(bytes32 id, address account, uint256 amount) external payable {
        Round storage round = _round(id);
        if (block.timestamp > round.payBy) revert CollectionOver(block.timestamp, round.payBy);
        uint256 due = round.asset == ETH ? amount : 0;
        if (msg.value != due) revert WrongPayment(ETH, msg.value, due);
        _requireRecipient(account);
        uint256 pot = round.pot;
        if (amount > type(uint128).max - pot) revert PotTooLarge(pot, amount);
        round.pot = uint128(pot + amount);
        paidIn[id][account] += amount; // at most the pot
        emit PaidIn(id, account, amount);
        if (round.asset != ETH) _pull(round.asset, msg.sender, amount);
    }

    /// @notice Posts the root of a round, or another one while the first can be challenged.
    function post(bytes32 id, bytes32 root, uint256 sum, uint64 leaves, bytes calldata signatures)
        external
    {
        Round storage round = _round(id);
        if (block.timestamp <= round.payBy || block.timestamp > round.postBy) {
            revert NotPosting(block.timestamp, round.payBy, round.postBy);
        }
        if (_stands(round)) revert RootStands(block.timestamp, round.postedAt);
        if (sum != round.pot) revert SumIsNotThePot(sum, round.pot);
        if (leaves == 0 || leaves > MAX_LEAVES) revert BadLeafCount(leaves, MAX_LEAVES);
        uint64 version = round.version; // one more for each root: never that many
        _requireQuorum(
            _hashTypedDataV4(
                keccak256(abi.encode(CLEARING_TYPEHASH, id, root, sum, leaves, version))
            ),
            signatures
        );
        _clear(round);
        round.version = version + 1;
        round.postedAt = uint64(block.timestamp); // at most `postBy`
        round.leaves = uint32(leaves); // at most `MAX_LEAVES`
        // 2^64 seconds are no time of this chain, nor 31 days before them.
        uint64 standsFrom = uint64(block.timestamp) + round.challengePeriod + 1;
        Clearing memory clearing = Clearing(id, root, sum, leaves, round.asset, standsFrom);
        bytes32 hash = keccak256(abi.encode(clearing));
        round.clearing = hash;
        for (uint256 word = 0; word * LEAVES_A_WORD < leaves; ++word) {
            _claimed[hash][word] = 1 << LEAVES_A_WORD;
        }
        emit Posted(id, clearing, version);
    }

    /// @notice Takes a root back within its challenge period. For any one broker of the market.
    function veto(bytes32 id) external {
        Round storage round = _round(id);
        if (seatOf[msg.sender] != Seat.Taken) revert NotSeated(0, msg.sender);
        if (round.postedAt == 0) revert NothingPosted(id);
        if (_stands(round)) revert RootStands(block.timestamp, round.postedAt);
        _remove(round);
        emit Vetoed(id, msg.sender, round.version - 1); // one was posted
    }

    /// @notice Credits the account of a leaf what is due to it. For anyone to call.
    /// @dev A leaf of nobody, or of this contract, can not be claimed: its money would be lost. It is
    /// taken back once the root expires.
    function claim(
        Clearing calldata clearing,
        uint256 index,
        address account,
        uint256 amount,
        Sibling[] calldata path
    ) external {
        bytes32 id = clearing.round;
        bytes32 hash = _hashOf(clearing);
        uint256 word = index / LEAVES_A_WORD;
        uint256 bits = _claimed[hash][word];
        if (bits == 0) revert NotTheClearing(id);
        if (block.timestamp < clearing.standsFrom) {
            revert RootDoesNotStand(block.timestamp, clearing.standsFrom);
        }
        _requireLeaf(clearing, index, account, amount, path);
        uint256 bit = 1 << index % LEAVES_A_WORD;
        if (bits & bit != 0) revert AlreadyClaimed(id, index);
        _requireRecipient(account);
        // No set of leaves is worth more than the pot, so that the high half never runs over. And every
        // credit is less than 2^128, of which nobody can be owed so many that they would.
        unchecked {
            _claimed[hash][word] = (bits | bit) + (amount << AMOUNT_AT);
        }
        _credit(clearing.asset, account, amount);
        emit Claimed(id, index, account, amount);
    }

    /// @notice Ends a root that could be claimed under for `EXPIRY`. What was not claimed is for those who
    /// paid in; nothing is claimed any more. For anyone to call.
    function expire(bytes32 id) external {
        Round storage round = _round(id);
        uint256 posted = round.postedAt;
        if (posted == 0) revert NothingPosted(id);
        uint256 expiresAt = posted + round.challengePeriod + 1 + EXPIRY;
        if (block.timestamp < expiresAt) revert NotExpired(block.timestamp, expiresAt);
        // `postBy` was before that: no other root comes.
        uint256 taken = _remove(round);
        uint256 pot = round.pot;
        round.taken = uint128(taken); // at most the pot
        emit Expired(id, taken, pot - taken);
    }

    /// @notice Gives an account back what it paid, where no root stands and none can come any more; or,
    /// where a root expired, as much of what was not claimed as it paid of the pot, rounded down: what
    /// that leaves is for those who take back later. For anyone to call.
    function reclaim(bytes32 id, address account) external {
        Round storage round = _round(id);
        if (block.timestamp <= round.postBy) revert NotPosting(block.timestamp, round.payBy, round.postBy);
        if (round.postedAt != 0) revert RootStands(block.timestamp, round.postedAt);
        uint256 paid = paidIn[id][account];
        if (paid == 0) revert NothingToReclaim(id, account);
        paidIn[id][account] = 0;
        (uint256 pot, uint256 taken) = (round.pot, round.taken);
        // Of half words, so that the product is a word. As 0 < paid <= pot and taken <= pot, the amount is
        // at most what is left and at most `paid`, and `paid - amount` rounds up what is missing of it:
        // at most `taken`. Then taken <= pot holds again, and whoever is last has paid the whole pot.
        uint256 amount = paid * (pot - taken) / pot;
        round.pot = uint128(pot - paid);
        round.taken = uint128(taken - (paid - amount));
        _credit(round.asset, account, amount);
        emit Reclaimed(id, account, amount);
    }

    /// @notice What is known of a round.
    function roundOf(bytes32 id) external view returns (Round memory) {
        return _rounds[id];
    }

    /// @notice Whether a leaf of the root that stands was claimed. Of one that expired nothing is known.
    function claimed(bytes32 id, uint256 index) external view returns (bool) {
        return _claimed[_rounds[id].clearing][index / LEAVES_A_WORD] >> index % LEAVES_A_WORD & 1 == 1;
    }

    /// @dev Takes the root that is there away; returns what was claimed under it.
    function _remove(Round storage round) private returns (uint256 taken) {
        taken = _clear(round);
        round.postedAt = 0;
        round.leaves = 0;
        round.clearing = 0;
    }

    /// @dev Makes the root that is there, if there is one, a root no more; returns what was claimed under
    /// it, which is nothing while it can be challenged.
    function _clear(Round storage round) private returns (uint256 taken) {
        bytes32 hash = round.clearing;
        uint256 leaves = round.leaves;
        for (uint256 word = 0; word * LEAVES_A_WORD < leaves; ++word) {
            taken += _claimed[hash][word] >> AMOUNT_AT;
            delete _claimed[hash][word];
        }
    }

    /// @dev `keccak256(abi.encode(clearing))`, for what is a word a field already.
    function _hashOf(Clearing calldata clearing) private pure returns (bytes32 hash) {
        assembly ("memory-safe") {
            let encoded := mload(0x40)
            calldatacopy(encoded, clearing, 0xc0)
            hash := keccak256(encoded, 0xc0)
        }
    }

    function _round(bytes32 id) private view returns (Round storage round) {
        round = _rounds[id];
        if (round.payBy == 0) revert NoSuchRound(id);
    }

    function _stands(Round storage round) private view returns (bool) {
        uint256 posted = round.postedAt;
        return posted != 0 && block.timestamp > posted + round.challengePeriod;
    }

    function _requireLeaf(
        Clearing calldata clearing,
        uint256 index,
        address account,
        uint256 amount,
        Sibling[] calldata path
    ) private pure {
        uint256 last = clearing.leaves - 1; // `post` takes no root of no leaves
        if (index > last) revert NoSuchLeaf(index, clearing.leaves);
        if (last >> path.length != 0 || (path.length != 0 && last >> (path.length - 1) == 0)) {
            revert WrongPathLength(path.length, last);
        }
        (bytes32 hash, uint256 sum, bool over) = _top(clearing.round, index, account, amount, path);
        if (over || hash != clearing.root || sum != clearing.sum) {
            revert NotInRoot(hash, sum, clearing.root, clearing.sum);
        }
    }

    /// @dev What a leaf and the nodes beside its way come to; `over` if a sum ran over.
    function _top(
        bytes32 round,
        uint256 index,
        address account,
        uint256 amount,
        Sibling[] calldata path
    ) private pure returns (bytes32 hash, uint256 sum, bool over) {
        assembly ("memory-safe") {
            // 0x00 ‖ round ‖ index ‖ account ‖ amount, and then 0x01 ‖ left ‖ sum ‖ right ‖ sum
            let buffer := mload(0x40)
            let left := add(buffer, 1)
            mstore(buffer, 0)
            mstore(left, round)
            mstore(add(left, 0x20), index)
            mstore(add(left, 0x40), shl(96, account))
            mstore(add(left, 0x54), amount)
            hash := keccak256(buffer, 0x75)
            sum := amount
            mstore8(buffer, 0x01)
            let beside := path.offset
            for { let end := add(beside, shl(6, path.length)) } lt(beside, end) {
                beside := add(beside, 0x40)
            } {
                // A set bit of the index: the node is the right one of the two.
                let side := shl(6, and(index, 1))
                index := shr(1, index)
                mstore(add(left, side), hash)
                mstore(add(left, add(side, 0x20)), sum)
                calldatacopy(add(left, xor(side, 0x40)), beside, 0x40)
                hash := keccak256(buffer, 0x81)
                let more := calldataload(add(beside, 0x20))
                sum := add(sum, more)
                over := or(over, lt(sum, more))
            }
        }
    }
}
