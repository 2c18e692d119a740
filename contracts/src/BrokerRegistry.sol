// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {MessageHashUtils} from "@openzeppelin/contracts/utils/cryptography/MessageHashUtils.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";

import {BrokerQuorum} from "./BrokerQuorum.sol";
import {Credits} from "./Credits.sol";
import {IBrokerRegistry, SignedQuote} from "./IBrokerRegistry.sol";

/// @title BrokerRegistry
/// @notice See `IBrokerRegistry`. No owner, no pause, no upgrade.
/// @dev Of a slashed bond a tenth leaves at most: half of that for the victim, who is served first, and
/// the other half for the reporter. The rest goes to nobody. So a broker that is buyer, reporter and
/// culprit in one leaves nine tenths behind: nobody slashes itself out of its bond, or takes it along
/// before its exit delay is over. A victim has no loss to be made good from the bond: of a bad delivery
/// the buyer gets its whole price back from the payment, which is pending, and of two quotes of one
/// trade id one is funded at most. What both get is for the gas and the trouble of the proof.
contract BrokerRegistry is IBrokerRegistry, Credits {
    /// @notice From the notice to the day on which a bond can be taken back. A broker that vouched for
    /// goods sat when they were paid for, so that its notice came later: its bond is up for 100 days from
    /// the funding. After 37 of these anyone can refund a trade that is not revealed (30 days to
    /// `revealBy`, 7 of grace); a dispute takes 30 days from the reveal: it finds the bond up if the reveal
    /// came within 70 days of the funding. A batch takes its last reveal 67 days after the lock, so that
    /// its last dispute is over after 97.
    uint256 public constant EXIT_DELAY = 100 days;

    /// @notice What leaves a slashed bond, for the victim and the reporter: one part of so many.
    uint256 public constant SLASH_SHARE = 10;

    /// @notice The most markets that one broker serves: its notice must reach them all.
    uint256 public constant MAX_MARKETS = 16;

    /// @notice What a market may spend on being told that a broker sits there no more.
    uint256 private constant UNSEAT_GAS = 60_000;

    /// @notice What must be left for the call to get as much: 63 of 64 parts go with it (EIP-150).
    uint256 private constant GAS_TO_UNSEAT = UNSEAT_GAS * 64 / 63 + 5_000;

    bytes32 private constant DOMAIN_TYPEHASH =
        keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");

    bytes32 private constant BATCH_TYPEHASH = keccak256("Batch(bytes32[] quotes)");

    struct Broker {
        uint256 bond;
        uint64 leavesAt;
        address[] markets;
    }

    /// @notice The least bond under which a broker serves a market.
    uint256 public immutable minimumBond;

    /// @notice Who lost a bond, and is not taken as a broker again.
    mapping(address account => bool) public wasSlashed;

    mapping(address broker => Broker) private _brokers;
    mapping(address broker => mapping(address market => bool)) private _listed;

    constructor(uint256 minimumBond_) {
        minimumBond = minimumBond_;
    }

    /// @inheritdoc IBrokerRegistry
    function bond() external payable {
        if (wasSlashed[msg.sender]) revert WasSlashed(msg.sender);
        Broker storage broker = _brokers[msg.sender];
        if (broker.leavesAt != 0) revert HasGivenNotice(msg.sender);
        broker.bond += msg.value;
        if (broker.bond == 0 || broker.bond < minimumBond) revert BondTooSmall(broker.bond, minimumBond);
        emit Bonded(msg.sender, msg.value, broker.bond);
    }

    /// @inheritdoc IBrokerRegistry
    function serve(address market) external {
        Broker storage broker = _brokers[msg.sender];
        if (broker.bond == 0) revert NoBond(msg.sender);
        if (broker.leavesAt != 0) revert HasGivenNotice(msg.sender);
        if (_listed[msg.sender][market]) return;
        if (broker.markets.length == MAX_MARKETS) revert TooManyMarkets(MAX_MARKETS);
        broker.markets.push(market);
        _listed[msg.sender][market] = true;
        emit Serving(msg.sender, market);
    }

    /// @inheritdoc IBrokerRegistry
    function giveNotice() external {
        Broker storage broker = _brokers[msg.sender];
        if (broker.bond == 0) revert NoBond(msg.sender);
        if (broker.leavesAt != 0) revert HasGivenNotice(msg.sender);
        broker.leavesAt = uint64(block.timestamp + EXIT_DELAY);
        emit NoticeGiven(msg.sender, broker.leavesAt);
        _unseat(msg.sender, broker.markets);
    }

    /// @inheritdoc IBrokerRegistry
    function takeBond() external {
        Broker storage broker = _brokers[msg.sender];
        if (broker.leavesAt == 0) revert NoNotice(msg.sender);
        if (block.timestamp < broker.leavesAt) revert TooEarlyToLeave(block.timestamp, broker.leavesAt);
        uint256 amount = _forget(msg.sender);
        _credit(ETH, msg.sender, amount);
        emit Left(msg.sender, amount);
    }

    /// @inheritdoc IBrokerRegistry
    function proveEquivocation(
        address market,
        address broker,
        SignedQuote calldata first,
        SignedQuote calldata second
    ) external {
        bytes32 domain = _domainOf(market);
        bytes32 one = MessageHashUtils.toTypedDataHash(domain, first.quote.structHash());
        bytes32 other = MessageHashUtils.toTypedDataHash(domain, second.quote.structHash());
        if (first.quote.tradeId != second.quote.tradeId || one == other) revert NotAConflict(one, other);
        _requireSigned(broker, domain, one, first);
        _requireSigned(broker, domain, other, second);
        // Two buyers of one trade: either may be the culprit's own, and neither gets a part.
        bool same = first.quote.buyer == second.quote.buyer;
        _slash(broker, same ? first.quote.buyer : address(0xdead), msg.sender);
    }

    /// @inheritdoc IBrokerRegistry
    function convict(address broker, address victim, address reporter) external {
        if (!_listed[broker][msg.sender]) revert NotServedBy(msg.sender, broker);
        _slash(broker, victim, reporter);
    }

    /// @inheritdoc IBrokerRegistry
    function answersTo(address broker, address market) external view returns (bool) {
        return _listed[broker][market];
    }

    /// @inheritdoc IBrokerRegistry
    function serves(address broker, address market) external view returns (bool) {
        Broker storage found = _brokers[broker];
        return _listed[broker][market] && found.leavesAt == 0 && found.bond != 0 && found.bond >= minimumBond;
    }

    /// @notice What a broker has up, when it may leave (0 before a notice), and whom it serves.
    function brokerOf(address account)
        external
        view
        returns (uint256 bond_, uint64 leavesAt, address[] memory markets)
    {
        Broker storage broker = _brokers[account];
        return (broker.bond, broker.leavesAt, broker.markets);
    }

    /// @dev By key first, as a market does: code at the broker's address, which it may have put there
    /// since, does not undo what its key signed.
    function _requireSigned(
        address broker,
        bytes32 domain,
        bytes32 digest,
        SignedQuote calldata signed
    ) private view {
        bytes32[] calldata batch = signed.batch;
        if (batch.length != 0) {
            if (signed.place >= batch.length || batch[signed.place] != digest) {
                revert NotInBatch(digest, signed.place);
            }
            bytes32 quotes = keccak256(abi.encodePacked(batch));
            digest = MessageHashUtils.toTypedDataHash(
                domain, keccak256(abi.encode(BATCH_TYPEHASH, quotes))
            );
        }
        (address signer,,) = ECDSA.tryRecoverCalldata(digest, signed.signature);
        if (
            (signer != broker || signer == address(0))
                && !SignatureChecker.isValidERC1271SignatureNowCalldata(broker, digest, signed.signature)
        ) revert NotSignedBy(broker, digest);
    }

    function _slash(address account, address victim, address reporter) private {
        address[] memory markets = _brokers[account].markets;
        uint256 amount = _forget(account);
        if (amount == 0) revert NoBond(account);
        wasSlashed[account] = true;
        uint256 toReporter = amount / SLASH_SHARE / 2;
        uint256 toVictim = amount / SLASH_SHARE - toReporter;
        uint256 burnt = amount - toVictim - toReporter;
        _credit(ETH, victim, toVictim);
        _credit(ETH, reporter, toReporter);
        _credit(ETH, address(0xdead), burnt);
        emit Slashed(account, victim, reporter, toVictim, toReporter, burnt);
        _unseat(account, markets);
    }

    function _forget(address account) private returns (uint256 amount) {
        Broker storage broker = _brokers[account];
        amount = broker.bond;
        for (uint256 i = 0; i < broker.markets.length; ++i) {
            delete _listed[account][broker.markets[i]];
        }
        delete _brokers[account];
    }

    /// @dev Tells the markets. One that fails harms none but itself: a broker could have named any
    /// contract here, and must not be able to stop its own slashing. Nor may whoever calls make a
    /// market fail by the gas that it sends.
    function _unseat(address account, address[] memory markets) private {
        for (uint256 i = 0; i < markets.length; ++i) {
            if (markets[i].code.length == 0) continue;
            if (gasleft() < GAS_TO_UNSEAT) revert TooLittleGas(gasleft(), GAS_TO_UNSEAT);
            try BrokerQuorum(markets[i]).unseat{gas: UNSEAT_GAS}(account) {} catch {}
        }
    }

    function _domainOf(address market) private view returns (bytes32) {
        return keccak256(
            abi.encode(DOMAIN_TYPEHASH, keccak256("pm-node"), keccak256("1"), block.chainid, market)
        );
    }
}
