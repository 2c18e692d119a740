// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Credits} from "../../../contracts/src/Credits.sol";
import {Deposits} from "../../../contracts/src/Deposits.sol";
import {IParameterEscrow} from "../../../contracts/src/IParameterEscrow.sol";
import {ChaCha20} from "../../../contracts/src/lib/ChaCha20.sol";
import {Evidence} from "../../../contracts/src/lib/Delivery.sol";
import {Quote} from "../../../contracts/src/Quote.sol";
import {Bonds} from "./Bonds.sol";
import {vm} from "./Play.sol";

/// @dev Single trades, deposits and withdrawals, in any order and at any time.
abstract contract Trades is Bonds {
    /// @dev What is known of a trade beside its terms.
    struct Deal {
        IParameterEscrow.State state;
        uint64 since;
        bool published;
    }

    Quote[] internal quotes;
    mapping(bytes32 tradeId => Deal) private _deals;
    mapping(address asset => mapping(address account => Deposits.Notice)) private _notices;
    uint256 private _last;
    uint256 private _terms;

    function wait(uint256 seconds_) external {
        vm.warp(time() + (seconds_ >> 8 & 31 == 0 ? seconds_ % 40 days : seconds_ % 60));
    }

    /// @dev As its buyer ought to, or in one of the ways in which it is refused.
    function fund(uint256 seed, uint256 money, uint256 how) external {
        (Quote memory quote, bytes memory signature, bool sits) = _agreed(seed, money);
        how %= 16;
        if (how == 1) quote.price += 1;
        if (how == 2) vm.warp(quote.fundBy + 1);
        if (how == 3 && quotes.length != 0) quote = quotes[seed % quotes.length];
        address sender = how == 4 ? brokers[0] : quote.buyer;
        uint256 value = provide(quote.asset, sender, quote.price, address(escrow));
        if (how == 5) value += 1;
        bool taken = sits && (how == 0 || how > 5 || (how == 3 && quotes.length == 0));
        bytes memory call = abi.encodeCall(IParameterEscrow.fund, (quote, signature));
        attempt(taken, "fund", sender, value, address(escrow), call);
        if (!taken) return;
        quotes.push(quote);
        _last = quotes.length - 1;
        _move(quote, IParameterEscrow.State.Funded);
        books[quote.asset].locked += quote.price;
    }

    function reveal(uint256 which, bool honest) external {
        if (quotes.length == 0) return;
        Quote memory quote = _chosen(which);
        bytes32 secret = honest ? secretOf(quote.tradeId) : bytes32(which);
        bool taken = honest && _deals[quote.tradeId].state == IParameterEscrow.State.Funded;
        bytes memory call = abi.encodeCall(IParameterEscrow.reveal, (quote, secret));
        attempt(taken, "reveal", party(which), 0, address(escrow), call);
        if (!taken) return;
        _move(quote, IParameterEscrow.State.Revealed);
        _deals[quote.tradeId].published = sha256(abi.encode(secret)) == quote.secretCommitment;
    }

    function dispute(uint256 which, uint256 who) external {
        if (quotes.length == 0) return;
        Quote memory quote = _chosen(which);
        Deal storage deal = _deals[quote.tradeId];
        bool taken = deal.state == IParameterEscrow.State.Revealed && isBad(quote)
            && time() <= deal.since + quote.disputeWindow;
        bytes memory call = abi.encodeCall(IParameterEscrow.dispute, (quote, evidenceOf(quote)));
        attempt(taken, "dispute", party(who), 0, address(escrow), call);
        if (!taken) return;
        _end(quote, IParameterEscrow.State.Disputed);
        credit(quote.asset, quote.buyer, quote.price);
        punish(quote, party(who));
    }

    function finalize(uint256 which) public {
        if (quotes.length == 0) return;
        Quote memory quote = _chosen(which);
        Deal storage deal = _deals[quote.tradeId];
        bool taken = deal.state == IParameterEscrow.State.Revealed
            && time() > deal.since + quote.disputeWindow;
        bytes memory call = abi.encodeCall(IParameterEscrow.finalize, (quote));
        attempt(taken, "finalize", party(which), 0, address(escrow), call);
        if (!taken) return;
        check(deal.published, "a seller is paid whose secret is not public");
        _end(quote, IParameterEscrow.State.Paid);
        credit(quote.asset, quote.seller, quote.price - quote.fee);
        credit(quote.asset, quote.feeRecipient, quote.fee);
    }

    function refund(uint256 which) public {
        if (quotes.length == 0) return;
        Quote memory quote = _chosen(which);
        bool taken = _deals[quote.tradeId].state == IParameterEscrow.State.Funded
            && time() > quote.revealBy + quote.grace;
        bytes memory call = abi.encodeCall(IParameterEscrow.refund, (quote));
        attempt(taken, "refund", party(which), 0, address(escrow), call);
        if (!taken) return;
        _end(quote, IParameterEscrow.State.Refunded);
        credit(quote.asset, quote.buyer, quote.price);
    }

    function withdraw(uint256 who, bool own) public {
        (address asset, address account) = (assetOf(who), party(who >> 1));
        uint256 owed = books[asset].credits[account];
        bytes memory call = own
            ? abi.encodeCall(Credits.withdrawTo, (asset, brokers[0], owed))
            : abi.encodeCall(Credits.withdraw, (asset, account));
        address sender = own ? account : party(who >> 16);
        attempt(owed != 0, "withdraw", sender, 0, address(escrow), call);
        books[asset].credits[account] = 0;
    }

    function deposit(uint256 who, uint256 amount) external {
        _deposit(assetOf(who), party(who >> 1), amount % 1 ether);
    }

    function depositCredits(uint256 who, uint256 amount) external {
        (address asset, address account) = (assetOf(who), party(who >> 1));
        uint256 owed = books[asset].credits[account];
        amount %= owed + 2;
        bool taken = amount != 0 && amount <= owed;
        bytes memory call = abi.encodeCall(Deposits.depositCredits, (asset, amount));
        attempt(taken, "depositCredits", account, 0, address(escrow), call);
        if (!taken) return;
        books[asset].credits[account] -= amount;
        books[asset].deposits[account] += amount;
    }

    function giveDepositNotice(uint256 who, uint128 amount) external {
        (address asset, address account) = (assetOf(who), party(who >> 1));
        uint256 all = books[asset].deposits[account] + _notices[asset][account].amount;
        _giveNotice(asset, account, uint128(amount % (all + all / 8 + 1)));
    }

    function releaseDeposit(uint256 who) external {
        (address asset, address account) = (assetOf(who), party(who >> 1));
        Deposits.Notice memory notice = _notices[asset][account];
        bool taken = notice.amount != 0 && time() >= notice.from;
        bytes memory call = abi.encodeCall(Deposits.releaseDeposit, (asset));
        attempt(taken, "releaseDeposit", account, 0, address(escrow), call);
        if (!taken) return;
        delete _notices[asset][account];
        credit(asset, account, notice.amount);
    }

    /// @dev Money that nobody asked for: it stays, and is nobody's.
    function force(uint256 asset_, uint256 amount) external {
        address asset = assetOf(asset_);
        amount %= 1 ether;
        books[asset].forced += amount;
        if (asset == ETH) vm.deal(address(escrow), address(escrow).balance + amount);
        else token.mint(address(escrow), amount);
    }

    /// @dev Money held = open trades + credits + deposits (+ forced), account by account.
    function checkMoney() internal view {
        for (uint256 a = 0; a < 2; ++a) {
            address asset = assetOf(a);
            uint256 due = books[asset].locked + books[asset].forced;
            for (uint256 i = 0; i < PARTIES; ++i) {
                address account = party(i);
                uint256 owed = escrow.credits(asset, account);
                uint256 left = escrow.deposits(asset, account);
                check(owed == books[asset].credits[account], "credits");
                check(left == books[asset].deposits[account], "deposit");
                (uint128 leaving,) = escrow.noticeOf(asset, account);
                check(leaving == _notices[asset][account].amount, "notice");
                due += owed + left + leaving;
            }
            check(held(asset, address(escrow)) == due, "held = open trades + credits + deposits");
        }
        if (quotes.length != 0) _checkTrade(quotes[_last]);
    }

    /// @dev Long after the last deadline anyone can end any trade; ended ones stay as they are.
    function endTrades() internal {
        for (uint256 i = 0; i < quotes.length; ++i) {
            _checkTrade(quotes[i]);
            finalize(i);
            refund(i);
            _checkTrade(quotes[i]);
            IParameterEscrow.State state = _deals[quotes[i].tradeId].state;
            check(uint8(state) > uint8(IParameterEscrow.State.Revealed), "a trade without an end");
        }
    }

    function credit(address asset, address account, uint256 amount) internal {
        books[asset].credits[account] += amount;
    }

    /// @dev Terms that can be funded now, and the signature of a broker, if one sits.
    function _agreed(uint256 seed, uint256 money)
        internal
        returns (Quote memory quote, bytes memory signature, bool sits)
    {
        quote.tradeId = keccak256(abi.encode(++_terms));
        quote.buyer = party(seed);
        quote.seller = party(seed >> 8);
        quote.encryptor = seed >> 16 & 3 == 0 ? brokers[(seed >> 18) % BROKERS] : quote.seller;
        if (seed >> 16 & 15 == 0) (quote.encryptor,) = sitting(seed >> 72); // who signs below
        quote.asset = assetOf(money);
        quote.price = 1 + (money >> 1) % 1 ether;
        quote.fee = (money >> 128) % (quote.price + 1);
        quote.feeRecipient = party(seed >> 24);
        quote.fundBy = uint64(time() + (seed >> 32) % 100);
        quote.revealBy = uint64(quote.fundBy + 1 + (seed >> 40) % 100);
        quote.grace = uint64((seed >> 48) % 50);
        quote.disputeWindow = uint64((seed >> 56) % 100);
        quote.receiptHash = bytes32(seed >> 64 & 1); // bad goods, where it is 1
        _describeGoods(quote);
        address broker;
        (broker, sits) = sitting(seed >> 72);
        signature = signed(broker, escrow.quoteDigest(quote));
        vouched[quote.tradeId] = broker == quote.encryptor;
    }

    function _giveNotice(address asset, address account, uint128 amount) internal {
        Deposits.Notice storage notice = _notices[asset][account];
        uint256 all = books[asset].deposits[account] + notice.amount;
        bytes memory call = abi.encodeCall(Deposits.giveDepositNotice, (asset, amount));
        attempt(amount <= all, "giveDepositNotice", account, 0, address(escrow), call);
        if (amount > all) return;
        (notice.amount, notice.from) = (amount, uint64(time() + 30 days));
        books[asset].deposits[account] = all - amount;
    }

    /// @dev Out of the deposit, and what is short out of what the account gave notice of.
    function spend(address asset, address account, uint256 amount) internal {
        uint256 first = min(amount, books[asset].deposits[account]);
        books[asset].deposits[account] -= first;
        _notices[asset][account].amount -= uint128(amount - first);
    }

    function _deposit(address asset, address account, uint256 amount) internal {
        uint256 value = provide(asset, account, amount, address(escrow));
        bytes memory call = abi.encodeCall(Deposits.deposit, (asset, account, amount));
        attempt(true, "deposit", account, value, address(escrow), call);
        books[asset].deposits[account] += amount;
    }

    function isBad(Quote memory quote) internal pure returns (bool) {
        return quote.receiptHash != 0;
    }

    function secretOf(bytes32 tradeId) internal pure returns (bytes32) {
        return keccak256(abi.encode(tradeId, "secret"));
    }

    function evidenceOf(Quote memory quote) internal pure returns (Evidence memory evidence) {
        evidence.secret = secretOf(quote.tradeId);
        evidence.dh = _sharedOf(quote.tradeId);
        evidence.leaf = abi.encode(_goodsOf(quote));
        evidence.offered = _leafHash(_plainOf(quote.tradeId));
    }

    /// @dev One short leaf.
    function _describeGoods(Quote memory quote) private pure {
        (quote.leafCount, quote.byteLength) = (1, 32);
        quote.secretCommitment = sha256(abi.encode(secretOf(quote.tradeId)));
        quote.dhCommitment = sha256(abi.encode(_sharedOf(quote.tradeId), quote.tradeId));
        quote.offerRoot = _rootOf(_leafHash(_plainOf(quote.tradeId)));
        quote.goodsRoot = _rootOf(_leafHash(_goodsOf(quote)));
    }

    function _goodsOf(Quote memory quote) private pure returns (bytes32 goods) {
        bytes32 id = quote.tradeId;
        bytes32 key = sha256(abi.encodePacked(bytes1(0x02), secretOf(id), _sharedOf(id), id));
        bytes memory block_ = abi.encode(_plainOf(id), 0);
        uint256 start;
        assembly ("memory-safe") {
            start := add(block_, 0x20)
        }
        ChaCha20.xorInPlace(key, 0, start, 32);
        goods = bytes32(block_);
        if (isBad(quote)) goods ^= bytes32(uint256(1));
    }

    function _plainOf(bytes32 tradeId) private pure returns (bytes32) {
        return keccak256(abi.encode(tradeId, "parameters"));
    }

    function _sharedOf(bytes32 tradeId) private pure returns (bytes32) {
        return keccak256(abi.encode(tradeId, "dh"));
    }

    function _leafHash(bytes32 leaf) private pure returns (bytes32) {
        return sha256(abi.encodePacked(bytes1(0), uint64(0), uint32(32), leaf));
    }

    function _rootOf(bytes32 top) private pure returns (bytes32) {
        return sha256(abi.encodePacked(bytes1(0x03), uint64(1), uint64(32), top));
    }

    function _chosen(uint256 which) private returns (Quote memory) {
        _last = which % quotes.length;
        return quotes[_last];
    }

    function _move(Quote memory quote, IParameterEscrow.State state) private {
        _deals[quote.tradeId].state = state;
        _deals[quote.tradeId].since = uint64(time());
    }

    function _end(Quote memory quote, IParameterEscrow.State state) private {
        _move(quote, state);
        books[quote.asset].locked -= quote.price;
    }

    function _checkTrade(Quote memory quote) private view {
        (IParameterEscrow.State state, uint64 since) = escrow.tradeOf(quote.tradeId);
        Deal storage deal = _deals[quote.tradeId];
        check(state == deal.state && since == deal.since, "state of a trade");
    }
}
