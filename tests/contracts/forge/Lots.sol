// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Batch, Movement, Payout, Spending, newMovement} from "../../../contracts/src/Batch.sol";
import {Batches} from "../../../contracts/src/Batches.sol";
import {Quote} from "../../../contracts/src/Quote.sol";
import {Trades} from "./Trades.sol";

/// @dev Trades in batches of one to three, from deposits.
abstract contract Lots is Trades {
    /// @dev What the calls about a batch bring, and what a quorum signed.
    struct Papers {
        Batch batch;
        Spending[] spendings;
        address[] accounts;
        bytes signature;
    }

    struct Course {
        bytes32 id;
        uint256 revealed;
        uint256 returned;
        uint256 since;
        bool closed;
    }

    bytes32 private constant CONSENT_TYPEHASH = 
        keccak256("Consent(bytes32[] quotes,uint256 nonce,uint64 closesBy)");

    bytes[] private _papers;
    Course[] private _courses;
    uint256 private _nonce;
    uint256 private _touched;

    function lockBatch(uint256 seed, uint256 money) external {
        Papers memory papers;
        uint256 count = 1 + seed % 3;
        papers.spendings = new Spending[](count);
        papers.accounts = new address[](3 * count);
        bytes32[] memory digests = new bytes32[](count);
        for (uint256 i = 0; i < count; ++i) {
            uint256 other = uint256(keccak256(abi.encode(seed, i)));
            (Quote memory quote,,) = _agreed(other, money & 1 | (other << 1 ^ money & ~uint256(1)));
            digests[i] = escrow.quoteDigest(quote);
            papers.accounts[3 * i] = quote.seller;
            papers.accounts[3 * i + 1] = quote.feeRecipient;
            papers.accounts[3 * i + 2] = quote.buyer;
            papers.spendings[i] = _spending(quote, digests[i], i);
            _deposit(quote.asset, quote.buyer, quote.price);
            if (other >> 200 & 3 == 0) _giveNotice(quote.asset, quote.buyer, uint128(quote.price));
        }
        (address broker, bool sits) = sitting(seed >> 8);
        papers.signature = signed(
            broker, typed(keccak256(abi.encode(BATCH_TYPEHASH, keccak256(abi.encodePacked(digests)))))
        );
        bytes memory answer = _lock(sits, papers);
        if (!sits) return;
        Course storage course = _courses.push();
        (course.id, papers.batch) = abi.decode(answer, (bytes32, Batch));
        course.since = time();
        _papers.push(abi.encode(papers));
        _touched = _courses.length - 1;
        for (uint256 i = 0; i < count; ++i) {
            Quote memory quote = papers.spendings[i].quotes[0];
            spend(quote.asset, quote.buyer, quote.price);
            books[quote.asset].locked += quote.price;
            vouched[quote.tradeId] = broker == quote.encryptor;
        }
    }

    /// @dev A consent is good once.
    function lockAgain(uint256 which) external {
        if (_courses.length == 0) return;
        (Papers memory papers,) = _lot(which);
        _lock(false, papers);
    }

    function revealBatch(uint256 which, uint256 mask, bool honest) external {
        if (_courses.length == 0) return;
        (Papers memory papers, Course storage course) = _lot(which);
        uint256 count = papers.spendings.length;
        mask &= (1 << count) - 1;
        bytes32[] memory secrets = new bytes32[](count);
        for (uint256 i = 0; i < count; ++i) {
            Quote memory quote = papers.spendings[i].quotes[0];
            secrets[i] = mask >> i & 1 == 1 ? secretOf(quote.tradeId) : quote.secretCommitment;
        }
        if (!honest) secrets[which % count] = bytes32(which);
        bool taken = honest && !course.closed && mask & ~course.revealed != 0
            && time() <= papers.batch.closesFrom + papers.batch.disputeWindow;
        bytes memory call = abi.encodeCall(Batches.revealBatch, (papers.batch, secrets, mask));
        attempt(taken, "revealBatch", party(which), 0, address(escrow), call);
        if (!taken) return;
        course.revealed |= mask;
        course.since = time();
    }

    function disputeLeg(uint256 which, uint256 leg, uint256 who) external {
        if (_courses.length == 0) return;
        (Papers memory papers, Course storage course) = _lot(which);
        leg %= papers.spendings.length;
        Quote memory quote = papers.spendings[leg].quotes[0];
        bool taken = !course.closed && course.revealed >> leg & 1 == 1 && isBad(quote)
            && course.returned >> leg & 1 == 0 && time() <= course.since + papers.batch.disputeWindow;
        bytes memory call = abi.encodeCall(
            Batches.disputeLeg, (papers.batch, _digests(papers), leg, quote, evidenceOf(quote))
        );
        attempt(taken, "disputeLeg", party(who), 0, address(escrow), call);
        if (!taken) return;
        course.returned |= 1 << leg;
        books[quote.asset].locked -= quote.price;
        credit(quote.asset, quote.buyer, quote.price);
        punish(quote, party(who));
    }

    function closeBatch(uint256 which) external {
        if (_courses.length == 0) return;
        (Papers memory papers, Course storage course) = _lot(which);
        uint256 count = papers.spendings.length;
        Payout[] memory payouts = new Payout[](3 * count);
        for (uint256 i = 0; i < count; ++i) {
            Quote memory quote = papers.spendings[i].quotes[0];
            payouts[3 * i] = Payout(quote.seller, 0, quote.price - quote.fee);
            payouts[3 * i + 1] = Payout(quote.feeRecipient, 0, quote.fee);
            payouts[3 * i + 2] = Payout(quote.buyer, 0, 0);
        }
        bool taken = !course.closed && course.returned == 0 && course.revealed == (1 << count) - 1
            && time() > course.since + papers.batch.disputeWindow;
        bytes memory call = abi.encodeCall(Batches.closeBatch, (papers.batch, payouts));
        attempt(taken, "closeBatch", party(which), 0, address(escrow), call);
        if (taken) _close(papers, course);
    }

    function closeBatchByLeg(uint256 which) public {
        if (_courses.length == 0) return;
        (Papers memory papers, Course storage course) = _lot(which);
        uint256 count = papers.spendings.length;
        Movement[] memory movements = new Movement[](count);
        for (uint256 i = 0; i < count; ++i) {
            Quote memory quote = papers.spendings[i].quotes[0];
            movements[i] = newMovement(
                quote.price, quote.fee, papers.spendings[i].payer, papers.spendings[i].payees[0]
            );
        }
        bool taken = !course.closed
            && (course.revealed == (1 << count) - 1 || time() > papers.batch.closesFrom)
            && (course.revealed == 0 || time() > course.since + papers.batch.disputeWindow);
        bytes memory call =
            abi.encodeCall(Batches.closeBatchByLeg, (papers.batch, papers.accounts, movements));
        attempt(taken, "closeBatchByLeg", party(which), 0, address(escrow), call);
        if (taken) _close(papers, course);
    }

    /// @dev The batch that was touched last stands as the books have it.
    function checkBatch() internal view {
        if (_courses.length != 0) _checkCourse(_courses[_touched]);
    }

    /// @dev Long after the last deadline anyone can close any batch.
    function endBatches() internal {
        for (uint256 i = 0; i < _courses.length; ++i) {
            _checkCourse(_courses[i]);
            closeBatchByLeg(i);
            check(_courses[i].closed, "a batch without an end");
            _checkCourse(_courses[i]);
        }
    }

    function _lock(bool expected, Papers memory papers) private returns (bytes memory) {
        bytes memory call =
            abi.encodeCall(Batches.lockBatch, (papers.spendings, papers.accounts, papers.signature));
        return attempt(expected, "lockBatch", papers.accounts[0], 0, address(escrow), call);
    }

    function _spending(Quote memory quote, bytes32 digest, uint256 leg)
        private
        returns (Spending memory spending)
    {
        spending.quotes = new Quote[](1);
        spending.quotes[0] = quote;
        spending.payees = new uint16[](1);
        spending.payees[0] = uint16(3 * leg | (3 * leg + 1) << 8);
        spending.payer = uint8(3 * leg + 2);
        spending.nonce = ++_nonce;
        spending.closesBy = uint64(time() + 1_000);
        bytes32 struct_ = keccak256(
            abi.encode(
                CONSENT_TYPEHASH, keccak256(abi.encode(digest)), spending.nonce, spending.closesBy
            )
        );
        spending.consent = signed(quote.buyer, typed(struct_));
    }

    function _digests(Papers memory papers) private view returns (bytes32[] memory digests) {
        digests = new bytes32[](papers.spendings.length);
        for (uint256 i = 0; i < digests.length; ++i) {
            digests[i] = escrow.quoteDigest(papers.spendings[i].quotes[0]);
        }
    }

    function _lot(uint256 which) private returns (Papers memory papers, Course storage course) {
        _touched = which % _courses.length;
        return (abi.decode(_papers[_touched], (Papers)), _courses[_touched]);
    }

    function _close(Papers memory papers, Course storage course) private {
        course.closed = true;
        for (uint256 i = 0; i < papers.spendings.length; ++i) {
            if (course.returned >> i & 1 == 1) continue;
            Quote memory quote = papers.spendings[i].quotes[0];
            books[quote.asset].locked -= quote.price;
            if (course.revealed >> i & 1 == 0) {
                books[quote.asset].deposits[quote.buyer] += quote.price;
                continue;
            }
            credit(quote.asset, quote.seller, quote.price - quote.fee);
            credit(quote.asset, quote.feeRecipient, quote.fee);
        }
    }

    function _checkCourse(Course storage course) private view {
        (bool open,, uint64 revealed, uint64 returned) = escrow.batchOf(course.id);
        check(open != course.closed, "state of a batch");
        if (open) check(revealed == course.revealed && returned == course.returned, "bits of a batch");
    }
}
