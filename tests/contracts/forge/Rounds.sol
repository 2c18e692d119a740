// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {BrokerRegistry} from "../../../contracts/src/BrokerRegistry.sol";
import {Clearing, ClearingHouse, Opening, Sibling} from "../../../contracts/src/ClearingHouse.sol";
import {Credits} from "../../../contracts/src/Credits.sol";
import {IBrokerRegistry} from "../../../contracts/src/IBrokerRegistry.sol";
import {Play, vm} from "./Play.sol";

/// @dev Rounds of a clearing house whose brokers all sit, and what is done with them in any order.
abstract contract Rounds is Play {
    uint256 private constant LEAVES = 4;
    uint256 private constant CHALLENGE = 10;
    bytes32 private constant OPENING_TYPEHASH = keccak256(
        "Opening(bytes32 round,address asset,uint64 payBy,uint64 postBy,uint64 challengePeriod)"
    );
    bytes32 private constant CLEARING_TYPEHASH =
        keccak256("Clearing(bytes32 round,bytes32 root,uint256 sum,uint64 leaves,uint64 version)");

    struct Round {
        Opening opening;
        uint256 pot;
        uint256 claimed;
        uint256 reclaimed;
        uint256 version;
        uint256 postedAt;
        bool inflated;
        bool[LEAVES] done;
        uint256[LEAVES] amounts;
        Clearing clearing;
    }

    ClearingHouse internal immutable house;
    Round[] internal rounds;
    mapping(bytes32 round => mapping(address account => uint256)) private _paid;

    constructor() {
        BrokerRegistry registry = new BrokerRegistry(1);
        house = new ClearingHouse(registry, CHALLENGE, 1, brokers);
        for (uint256 i = 0; i < BROKERS; ++i) {
            vm.deal(brokers[i], 1);
            vm.prank(brokers[i]);
            registry.bond{value: 1}();
            vm.prank(brokers[i]);
            IBrokerRegistry(registry).serve(address(house));
            house.seat(brokers[i]);
        }
    }

    function wait(uint256 seconds_) external {
        vm.warp(time() + seconds_ % 60);
    }

    /// @dev Long enough, now and then, for roots to expire: rounds would be rare if it were often.
    function waitLong(uint256 seed) external {
        if (seed % 8 == 0) vm.warp(time() + house.EXPIRY());
    }

    function open(uint256 seed, bool again, bool hasty) external {
        Round memory round;
        uint256 shortest = hasty ? CHALLENGE - 1 : CHALLENGE;
        round.opening = Opening({
            round: bytes32(rounds.length + 1),
            asset: assetOf(seed),
            payBy: uint64(time() + (seed >> 8) % 60),
            postBy: 0,
            challengePeriod: uint64(shortest + (hasty ? 0 : (seed >> 16) % 40))
        });
        round.opening.postBy = uint64(round.opening.payBy + 1 + (seed >> 24) % 100);
        again = again && rounds.length != 0;
        if (again) round.opening.round = bytes32(1 + seed % rounds.length);
        bytes memory call = abi.encodeCall(
            ClearingHouse.open,
            (round.opening, _signed(seed >> 32, keccak256(abi.encode(OPENING_TYPEHASH, round.opening))))
        );
        bool taken = !again && !hasty;
        attempt(taken, "open", party(seed), 0, address(house), call);
        if (taken) rounds.push(round);
    }

    function pay(uint256 which, uint256 who, uint256 amount) external {
        if (rounds.length == 0) return;
        Round storage round = _round(which);
        amount %= 1 ether;
        (bytes32 id, address asset) = (round.opening.round, round.opening.asset);
        bool taken = time() <= round.opening.payBy;
        uint256 value = provide(asset, party(who), amount, address(house));
        bytes memory call = abi.encodeCall(ClearingHouse.pay, (id, party(who >> 8), amount));
        attempt(taken, "pay", party(who), value, address(house), call);
        if (!taken) return;
        round.pot += amount;
        _paid[id][party(who >> 8)] += amount;
        books[asset].locked += amount;
    }

    /// @dev A root over the pot, or over more than the pot: then its sum is a lie.
    function post(uint256 which, uint256 shares, bool inflated) external {
        if (rounds.length == 0) return;
        Round storage round = _round(which);
        bytes32 id = round.opening.round;
        uint256[LEAVES] memory amounts;
        uint256 left = round.pot;
        for (uint256 i = 0; i < LEAVES - 1; ++i) {
            amounts[i] = (shares >> 64 * i) % (left + 1);
            left -= amounts[i];
        }
        amounts[LEAVES - 1] = inflated ? left + 1 : left;
        (bytes32 root,,) = _tree(id, amounts, 0);
        bool lied = shares & 7 == 0;
        uint256 sum = lied ? round.pot + 1 : round.pot;
        bool taken = !lied && time() > round.opening.payBy && time() <= round.opening.postBy
            && !_stands(round);
        bytes32 struct_ =
            keccak256(abi.encode(CLEARING_TYPEHASH, id, root, sum, LEAVES, round.version));
        bytes memory call =
            abi.encodeCall(ClearingHouse.post, (id, root, sum, uint64(LEAVES), _signed(which, struct_)));
        attempt(taken, "post", party(which), 0, address(house), call);
        if (!taken) return;
        uint64 standsFrom = uint64(time() + round.opening.challengePeriod + 1);
        round.clearing = Clearing(id, root, sum, uint64(LEAVES), round.opening.asset, standsFrom);
        round.amounts = amounts;
        round.inflated = inflated;
        round.version += 1;
        round.postedAt = time();
    }

    function veto(uint256 which) external {
        if (rounds.length == 0) return;
        Round storage round = _round(which);
        bool taken = round.postedAt != 0 && !_stands(round);
        bytes memory call = abi.encodeCall(ClearingHouse.veto, (round.opening.round));
        attempt(taken, "veto", brokers[which % BROKERS], 0, address(house), call);
        if (taken) round.postedAt = 0;
    }

    function claim(uint256 which, uint256 index) public {
        if (rounds.length == 0) return;
        Round storage round = _round(which);
        index %= LEAVES;
        (,, Sibling[] memory path) = _tree(round.opening.round, round.amounts, index);
        bool taken =
            round.postedAt != 0 && _stands(round) && !round.inflated && !round.done[index];
        (uint256 amount, address account) = (round.amounts[index], party(index));
        bytes memory call =
            abi.encodeCall(ClearingHouse.claim, (round.clearing, index, account, amount, path));
        attempt(taken, "claim", party(which), 0, address(house), call);
        if (!taken) return;
        round.done[index] = true;
        round.claimed += amount;
        check(round.claimed <= round.pot, "claimed <= pot");
        _credit(round.opening.asset, account, amount);
    }

    function expire(uint256 which) public {
        if (rounds.length == 0) return;
        Round storage round = _round(which);
        uint256 ends = round.postedAt + round.opening.challengePeriod + 1 + house.EXPIRY();
        bool taken = round.postedAt != 0 && time() >= ends;
        bytes memory call = abi.encodeCall(ClearingHouse.expire, (round.opening.round));
        attempt(taken, "expire", party(which), 0, address(house), call);
        if (!taken) return;
        round.postedAt = 0;
    }

    /// @dev What comes back of a root that expired is bounded by what was paid, and by the whole rest: the
    /// contract alone says how much it is, and `checkMoney` that it has it.
    function reclaim(uint256 which, uint256 who) public {
        if (rounds.length == 0) return;
        Round storage round = _round(which);
        (bytes32 id, address asset) = (round.opening.round, round.opening.asset);
        uint256 paid = _paid[id][party(who)];
        bool taken = paid != 0 && time() > round.opening.postBy && round.postedAt == 0;
        bytes memory call = abi.encodeCall(ClearingHouse.reclaim, (id, party(who)));
        uint256 before = house.credits(asset, party(who));
        attempt(taken, "reclaim", party(which), 0, address(house), call);
        if (!taken) return;
        uint256 amount = house.credits(asset, party(who)) - before;
        uint256 share = paid * (round.pot - round.claimed) / round.pot;
        check(amount >= share && amount <= paid, "a share of the rest");
        check(amount <= share + PARTIES, "a wei of rounding from each");
        _paid[id][party(who)] = 0;
        round.reclaimed += amount;
        check(round.claimed + round.reclaimed <= round.pot, "claimed + reclaimed <= pot");
        _credit(asset, party(who), amount);
    }

    function withdraw(uint256 who) public {
        (address asset, address account) = (assetOf(who), party(who >> 1));
        bytes memory call = abi.encodeCall(Credits.withdraw, (asset, account));
        bool owed = books[asset].credits[account] != 0;
        attempt(owed, "withdraw", party(who >> 16), 0, address(house), call);
        books[asset].credits[account] = 0;
    }

    /// @dev Money held = what rounds have yet to pay out + credits, account by account.
    function checkMoney() internal view {
        for (uint256 a = 0; a < 2; ++a) {
            address asset = assetOf(a);
            uint256 due = books[asset].locked;
            for (uint256 i = 0; i < PARTIES; ++i) {
                uint256 owed = house.credits(asset, party(i));
                check(owed == books[asset].credits[party(i)], "credits");
                due += owed;
            }
            check(held(asset, address(house)) == due, "held = rounds + credits");
        }
    }

    /// @dev When all is over, each round is claimed to the last wei, or taken back to the last wei, or
    /// both: also one under a root whose sum is a lie, that nobody vetoed and nobody can claim under.
    function endRounds() internal {
        for (uint256 r = 0; r < rounds.length; ++r) {
            for (uint256 i = 0; i < PARTIES; ++i) {
                reclaim(r, i);
                claim(r, i);
            }
            Round storage round = rounds[r];
            if (round.postedAt == 0) continue;
            check(round.inflated || round.claimed == round.pot, "claimed = pot at the end");
        }
        vm.warp(time() + house.EXPIRY());
        for (uint256 r = 0; r < rounds.length; ++r) {
            expire(r);
            for (uint256 i = 0; i < PARTIES; ++i) reclaim(r, i);
            Round storage round = rounds[r];
            check(round.claimed + round.reclaimed == round.pot, "claimed + reclaimed = pot at the end");
        }
        for (uint256 a = 0; a < 2; ++a) {
            check(books[assetOf(a)].locked == 0, "money is left in rounds");
        }
    }

    function _round(uint256 which) private view returns (Round storage) {
        return rounds[which % rounds.length];
    }

    function _credit(address asset, address account, uint256 amount) private {
        books[asset].locked -= amount;
        books[asset].credits[account] += amount;
    }

    function _stands(Round storage round) private view returns (bool) {
        return round.postedAt != 0 && time() > round.postedAt + round.opening.challengePeriod;
    }

    function _signed(uint256 seed, bytes32 struct_) private view returns (bytes memory) {
        bytes32 domain = domainOf("pm-node clearing", address(house));
        return signed(
            brokers[seed % BROKERS], keccak256(abi.encodePacked(hex"1901", domain, struct_))
        );
    }

    /// @dev The tree over four leaves, and what lies beside the way of one of them.
    function _tree(bytes32 id, uint256[LEAVES] memory amounts, uint256 index)
        private
        view
        returns (bytes32 root, uint256 sum, Sibling[] memory path)
    {
        Sibling[LEAVES] memory nodes;
        for (uint256 i = 0; i < LEAVES; ++i) {
            bytes memory leaf = abi.encodePacked(bytes1(0), id, i, party(i), amounts[i]);
            nodes[i] = Sibling(keccak256(leaf), amounts[i]);
        }
        Sibling[2] memory above = [_above(nodes[0], nodes[1]), _above(nodes[2], nodes[3])];
        Sibling memory top = _above(above[0], above[1]);
        path = new Sibling[](2);
        path[0] = nodes[index ^ 1];
        path[1] = above[index >> 1 ^ 1];
        return (top.hash, top.sum, path);
    }

    function _above(Sibling memory left, Sibling memory right) private pure returns (Sibling memory) {
        bytes memory node = abi.encodePacked(bytes1(0x01), left.hash, left.sum, right.hash, right.sum);
        return Sibling(keccak256(node), left.sum + right.sum);
    }
}
