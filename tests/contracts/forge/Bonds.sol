// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {BrokerQuorum} from "../../../contracts/src/BrokerQuorum.sol";
import {BrokerRegistry} from "../../../contracts/src/BrokerRegistry.sol";
import {Credits} from "../../../contracts/src/Credits.sol";
import {DeliveryCourt} from "../../../contracts/src/DeliveryCourt.sol";
import {IBrokerRegistry, SignedQuote} from "../../../contracts/src/IBrokerRegistry.sol";
import {ParameterEscrow} from "../../../contracts/src/ParameterEscrow.sol";
import {Quote} from "../../../contracts/src/Quote.sol";
import {Play} from "./Play.sol";

/// @dev The brokers of a market: they come with a bond, leave with it, or lose it.
abstract contract Bonds is Play {
    struct Standing {
        uint256 bond;
        uint256 leavesAt;
        bool listed;
        bool slashed;
        bool seated;
    }

    bytes32 internal constant BATCH_TYPEHASH = keccak256("Batch(bytes32[] quotes)");
    uint256 private constant BOND = 1 ether;
    address private constant NOBODY = address(0xdead);

    BrokerRegistry internal immutable registry;
    ParameterEscrow internal immutable escrow;
    mapping(bytes32 tradeId => bool) internal vouched;
    mapping(address broker => Standing) private _standings;
    mapping(address account => uint256) private _credits;

    constructor() {
        registry = new BrokerRegistry(BOND);
        escrow = new ParameterEscrow(registry, new DeliveryCourt(), 1, brokers);
        for (uint256 i = 0; i < BROKERS; ++i) bond(i, BOND);
    }

    function bond(uint256 who, uint256 amount) public {
        address broker = brokers[who % BROKERS];
        Standing storage standing = _standings[broker];
        amount %= 2 * BOND;
        bool taken = !standing.slashed && standing.leavesAt == 0 && standing.bond + amount >= BOND;
        attempt(taken, "bond", broker, amount, address(registry), abi.encodeCall(IBrokerRegistry.bond, ()));
        if (!taken) return;
        standing.bond += amount;
        bytes memory serve = abi.encodeCall(IBrokerRegistry.serve, (address(escrow)));
        attempt(true, "serve", broker, 0, address(registry), serve);
        standing.listed = standing.seated = true;
        bytes memory seat = abi.encodeCall(BrokerQuorum.seat, (broker));
        attempt(true, "seat", broker, 0, address(escrow), seat);
    }

    function giveNotice(uint256 who) public {
        if (who >> 8 & 3 != 0) return; // else nobody would be left
        address broker = brokers[who % BROKERS];
        Standing storage standing = _standings[broker];
        bool given = standing.bond != 0 && standing.leavesAt == 0;
        bytes memory notice = abi.encodeCall(IBrokerRegistry.giveNotice, ());
        attempt(given, "giveNotice", broker, 0, address(registry), notice);
        if (!given) return;
        standing.leavesAt = time() + registry.EXIT_DELAY();
        standing.seated = false;
    }

    function takeBond(uint256 who) public {
        address broker = brokers[who % BROKERS];
        Standing storage standing = _standings[broker];
        bool left = standing.leavesAt != 0 && time() >= standing.leavesAt;
        bytes memory take = abi.encodeCall(IBrokerRegistry.takeBond, ());
        attempt(left, "takeBond", broker, 0, address(registry), take);
        if (!left) return;
        _credits[broker] += standing.bond;
        delete _standings[broker];
    }

    /// @dev Two quotes of one trade that a broker signed, or one of them twice.
    function equivocate(uint256 who, bool twice) public {
        address broker = brokers[who % BROKERS];
        if (who >> 8 & 7 != 0) twice = false;
        Quote memory quote;
        quote.buyer = party(who >> 16);
        SignedQuote memory one = _signedQuote(broker, quote, who >> 32 & 1 == 1);
        Quote memory other = abi.decode(abi.encode(quote), (Quote));
        if (twice) other.price = 1;
        SignedQuote memory two = _signedQuote(broker, other, who >> 33 & 1 == 1);
        bool proved = twice && _standings[broker].bond != 0;
        address reporter = party(who >> 24);
        bytes memory proof =
            abi.encodeCall(IBrokerRegistry.proveEquivocation, (address(escrow), broker, one, two));
        attempt(proved, "proveEquivocation", reporter, 0, address(registry), proof);
        if (proved) _slash(broker, quote.buyer, reporter);
    }

    function withdrawBond(uint256 who) public {
        address account = who & 1 == 0 ? party(who >> 1) : brokers[(who >> 1) % BROKERS];
        bool owed = _credits[account] != 0;
        bytes memory withdraw = abi.encodeCall(Credits.withdraw, (ETH, account));
        attempt(owed, "withdrawBond", party(who >> 16), 0, address(registry), withdraw);
        _credits[account] = 0;
    }

    /// @dev A broker that sits, from some place on; any one where nobody does.
    function sitting(uint256 seed) internal view returns (address broker, bool sits) {
        for (uint256 i = 0; i < BROKERS && !sits; ++i) {
            broker = brokers[(seed % BROKERS + i) % BROKERS];
            sits = _standings[broker].seated;
        }
    }

    /// @dev Of an encryptor that signed the quote itself.
    function punish(Quote memory quote, address reporter) internal {
        if (!vouched[quote.tradeId] || !_standings[quote.encryptor].listed) return;
        _slash(quote.encryptor, quote.buyer, reporter);
    }

    function typed(bytes32 struct_) internal view returns (bytes32) {
        return keccak256(abi.encodePacked(hex"1901", domainOf("pm-node", address(escrow)), struct_));
    }

    /// @dev The registry holds the bonds and what it owes, as the books have them.
    function checkBonds() internal view {
        uint256 due = _credits[NOBODY];
        check(registry.credits(ETH, NOBODY) == due, "credits of nobody");
        for (uint256 i = 0; i < BROKERS; ++i) {
            address broker = brokers[i];
            Standing storage standing = _standings[broker];
            (uint256 up,,) = registry.brokerOf(broker);
            check(up == standing.bond, "bond");
            check(registry.credits(ETH, broker) == _credits[broker], "registry credits of a broker");
            bool sits = escrow.seatOf(broker) == BrokerQuorum.Seat.Taken;
            check(sits == standing.seated, "seat");
            check(!sits || up >= BOND, "a broker sits without a bond");
            due += up + _credits[broker];
        }
        for (uint256 i = 0; i < PARTIES; ++i) {
            check(registry.credits(ETH, party(i)) == _credits[party(i)], "registry credits of a party");
            due += _credits[party(i)];
        }
        check(address(registry).balance == due, "registry holds bonds and credits");
    }

    function _slash(address broker, address victim, address reporter) private {
        uint256 amount = _standings[broker].bond;
        uint256 tenth = amount / 10;
        delete _standings[broker];
        _standings[broker].slashed = true;
        _credits[victim] += tenth - tenth / 2;
        _credits[reporter] += tenth / 2;
        _credits[NOBODY] += amount - tenth;
    }

    /// @dev By itself, or in a batch beside another one.
    function _signedQuote(address broker, Quote memory quote, bool inBatch)
        private
        view
        returns (SignedQuote memory)
    {
        bytes32 digest = escrow.quoteDigest(quote);
        if (!inBatch) return SignedQuote(quote, new bytes32[](0), 0, signed(broker, digest));
        bytes32[] memory batch = new bytes32[](2);
        batch[1] = digest;
        bytes32 struct_ = keccak256(abi.encode(BATCH_TYPEHASH, keccak256(abi.encodePacked(batch))));
        return SignedQuote(quote, batch, 1, signed(broker, typed(struct_)));
    }
}
