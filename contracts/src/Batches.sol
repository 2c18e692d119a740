// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";

import {MAX_BATCH_PRICE, Batch, Movement, Payout, Spending, newMovement} from "./Batch.sol";
import {BrokerQuorum} from "./BrokerQuorum.sol";
import {Deposits} from "./Deposits.sol";
import {DeliveryCourt} from "./DeliveryCourt.sol";
import {IParameterEscrow} from "./IParameterEscrow.sol";
import {Evidence} from "./lib/Delivery.sol";
import {Terms} from "./lib/Terms.sol";
import {Quote} from "./Quote.sol";

/// @title Many trades, settled from deposits with one storage slot
/// @notice lockBatch takes the prices out of the buyers' deposits, revealBatch publishes the secrets,
/// and closeBatch pays, account by account: what an account sold pays for what it bought, so that the
/// two legs of a mutual trade, and all else that the same accounts have with one another, settle as one
/// movement of the difference. While a batch is open the price of each trade is locked whole, for any one
/// may turn out bad. The promises are those of a single trade: no key without locked money, no payment
/// before the dispute window is over, and the buyer's price back where no secret came or a leaf was bad.
abstract contract Batches is BrokerQuorum, Deposits, EIP712 {
    /// @notice As many trades as there are bits for them.
    uint256 public constant MAX_LEGS = 64;

    bytes32 private constant BATCH_TYPEHASH = keccak256("Batch(bytes32[] quotes)");
    bytes32 private constant CONSENT_TYPEHASH = 
        keccak256("Consent(bytes32[] quotes,uint256 nonce,uint64 closesBy)");

    /// @dev What a batch is made of, trade by trade, while it is put together.
    struct Lists {
        bytes32[] digests;
        bytes32[] commitments;
        Movement[] movements;
        Payout[] payouts;
    }

    uint256 private constant CLOSED = type(uint256).max;

    /// @notice Who judges what is shown in a dispute.
    DeliveryCourt public immutable court;

    /// @dev 1 in the lowest bit, 40 bits of time of the lock or the last reveal, 64 bits of trades
    /// revealed, 64 of trades whose price went back, 64 of trades whose encryptor is one of the brokers
    /// that signed them; zero before the lock, and `CLOSED` at the end.
    mapping(bytes32 batch => uint256 state) private _batches;
    mapping(address buyer => mapping(uint256 word => uint256 bits)) private _nonces;

    /// @notice The prices of these trades are locked. All that any later call has to bring can be made
    /// from this event, the secrets, the buyer's own quote and its evidence: the transaction of the lock
    /// need not be found. What `closeBatch` brings is the sum of what the movements give each account.
    /// @param digests of the quotes, trade by trade
    /// @param commitments to the secrets, trade by trade
    /// @param accounts whom the movements name by their places
    /// @param movements who pays and gets what, trade by trade: see `Movement`
    event BatchLocked(
        bytes32 indexed batchId,
        Batch batch,
        bytes32[] digests,
        bytes32[] commitments,
        address[] accounts,
        Movement[] movements
    );

    /// @notice Secrets of a batch are public: of each trade of `mask`, in order.
    event BatchRevealed(bytes32 indexed batchId, uint256 mask, bytes32[] secrets);

    /// @notice A leaf of one trade of a batch was proved to be bad; its buyer was credited the price.
    event LegDisputed(bytes32 indexed batchId, uint256 leg, uint256 index, uint256 amount);

    /// @notice Everybody was paid.
    event BatchClosed(bytes32 indexed batchId);

    /// @notice A buyer takes back whatever consents it signed with this nonce.
    event ConsentCancelled(address indexed buyer, uint256 nonce);

    /// @notice A batch of no trades, or of more trades or accounts than it can have.
    error BadBatch(uint256 legs, uint256 accounts);

    /// @notice These very trades were locked together before.
    error BatchExists(bytes32 batchId);

    /// @notice All trades of a batch are in one asset.
    error MixedAssets(address asset, address other);

    /// @notice A consent is good once, and none that the buyer cancelled.
    error NonceUsed(address buyer, uint256 nonce);

    /// @notice The buyer did not sign these quotes with this nonce.
    error NoConsent(address buyer);

    /// @notice A consent is of one buyer.
    error MixedBuyers(address buyer, address other);

    /// @notice A spending without quotes, or without payees for each of them.
    error BadSpending(uint256 place, uint256 quotes, uint256 payees);

    /// @notice Trade ids do not ascend within a spending; a trade has no place twice.
    error TradesUnsorted(bytes32 before, bytes32 tradeId);

    /// @notice The price does not fit in a movement.
    error PriceTooLarge(bytes32 tradeId, uint256 price, uint256 maximum);

    /// @notice Until `closes` somebody could hold the price of this spending, which is longer than its
    /// buyer consented to.
    error ClosesTooLate(uint256 place, uint256 closes, uint256 closesBy);

    /// @notice The account named for this trade is not its buyer or seller, or does not get its fee.
    error WrongPayee(uint256 leg, address named, address expected);

    /// @notice No such batch was locked, or it is closed.
    error UnknownBatch(bytes32 batchId);

    /// @notice What was brought is not what the batch was locked with.
    error WrongPart(bytes32 given, bytes32 expected);

    /// @notice The batch has no such trade.
    error NoSuchLeg(uint256 leg, uint256 legs);

    /// @notice A trade whose secret is not public cannot be disputed.
    error NotRevealed(uint256 leg);

    /// @notice The price of this trade went back to its buyer already.
    error LegSettled(uint256 leg);

    /// @notice All secrets of `mask` are public already.
    error NothingNew(uint256 mask, uint256 revealed);

    /// @notice It is `time` now; reveals were taken until `last`, which is `closesFrom + disputeWindow`:
    /// each one puts the payment of all trades off.
    error RevealsOver(uint256 time, uint256 last);

    /// @notice Not all trades are revealed and good: such a batch is closed leg by leg.
    error NotAllGood(uint256 revealed, uint256 returned);

    constructor(DeliveryCourt court_) {
        court = court_;
    }

    /// @notice Locks the prices of trades in their buyers' deposits. For anyone who has the signatures.
    /// Trades that were funded by themselves are refused. The other way round a buyer that funds what it
    /// has in a batch, or consents to one trade with two nonces, pays twice: each is an authorisation of
    /// its own, and to look costs a slot for each trade.
    /// @param spendings the trades, by buyer
    /// @param accounts whoever is to be paid
    /// @param signatures of a quorum of brokers over `Batch(bytes32[] quotes)`
    function lockBatch(
        Spending[] calldata spendings,
        address[] calldata accounts,
        bytes calldata signatures
    ) external returns (bytes32 batchId, Batch memory batch) {
        Lists memory lists = _lists(spendings, accounts);
        // There is a spending, and each has a quote: `_lists` refuses all else.
        batch.asset = spendings[0].quotes[0].asset;
        batch.count = uint8(lists.digests.length);
        uint256 first = 0;
        for (uint256 i = 0; i < spendings.length; ++i) {
            _spendAll(spendings[i], accounts, lists, first, batch);
            first += spendings[i].quotes.length;
        }
        batch.quotes = keccak256(abi.encodePacked(lists.digests));
        batch.commitments = keccak256(abi.encodePacked(lists.commitments));
        batch.movements = keccak256(abi.encode(accounts, lists.movements));
        batch.payouts = keccak256(abi.encode(_netted(lists.payouts)));
        address[] memory signers = _requireQuorum(
            _hashTypedDataV4(keccak256(abi.encode(BATCH_TYPEHASH, batch.quotes))), signatures
        );
        batchId = keccak256(abi.encode(batch));
        if (_batches[batchId] != 0) revert BatchExists(batchId);
        uint256 closes = uint256(batch.closesFrom) + 2 * uint256(batch.disputeWindow);
        _batches[batchId] = 1 | block.timestamp << 8 | _vouched(spendings, signers, closes) << 176;
        emit BatchLocked(
            batchId, batch, lists.digests, lists.commitments, accounts, lists.movements
        );
    }

    /// @notice Publishes secrets of a batch. `secrets` has one entry for each trade: its secret where
    /// `mask` has a bit, else its commitment. Accepted from anyone, until the batch is closed, and until
    /// the second `closesFrom + disputeWindow` at the latest: so the payment is put off until
    /// `closesFrom + 2 * disputeWindow` at the latest, 97 days after the lock.
    /// @dev After `closesFrom` the batch can be closed before a reveal is mined, whose secret is public
    /// then and not paid for: nobody should begin to reveal so late.
    function revealBatch(Batch calldata batch, bytes32[] calldata secrets, uint256 mask) external {
        (bytes32 batchId, uint256 state) = _open(batch);
        uint256 last = uint256(batch.closesFrom) + batch.disputeWindow;
        if (block.timestamp > last) revert RevealsOver(block.timestamp, last);
        if (secrets.length != batch.count) {
            revert IParameterEscrow.LengthsDiffer(batch.count, secrets.length);
        }
        bytes32[] memory commitments = new bytes32[](secrets.length);
        for (uint256 i = 0; i < secrets.length; ++i) {
            commitments[i] = mask >> i & 1 == 0 ? secrets[i] : sha256(abi.encodePacked(secrets[i]));
        }
        _requirePart(keccak256(abi.encodePacked(commitments)), batch.commitments);
        mask &= _all(batch);
        uint256 revealed = _revealedOf(state);
        if (mask | revealed == revealed) revert NothingNew(mask, revealed);
        _batches[batchId] =
            state & ~(uint256(type(uint40).max) << 8) | block.timestamp << 8 | mask << 48;
        emit BatchRevealed(batchId, mask, secrets);
    }

    /// @notice `ParameterEscrow.dispute` for one trade of a batch.
    /// @param leg which of the batch
    /// @param digests of all its quotes
    function disputeLeg(
        Batch calldata batch,
        bytes32[] calldata digests,
        uint256 leg,
        Quote calldata quote,
        Evidence calldata evidence
    ) external {
        (bytes32 batchId, uint256 state) = _open(batch);
        if (leg >= batch.count) revert NoSuchLeg(leg, batch.count);
        _requirePart(keccak256(abi.encodePacked(digests)), batch.quotes);
        // So many digests hash to this as the batch has trades: there is one at this place.
        _requirePart(_hashTypedDataV4(quote.structHash()), digests[leg]);
        if (_revealedOf(state) >> leg & 1 == 0) revert NotRevealed(leg);
        if (_returnedOf(state) >> leg & 1 == 1) revert LegSettled(leg);
        uint256 until = _sinceOf(state) + batch.disputeWindow;
        if (block.timestamp > until) {
            revert IParameterEscrow.DisputeClosed(block.timestamp, until);
        }
        court.requireBad(quote, evidence);
        _batches[batchId] = state | 1 << 112 << leg;
        _credit(batch.asset, quote.buyer, quote.price);
        emit LegDisputed(batchId, leg, evidence.index, quote.price);
        if (state >> 176 >> leg & 1 == 1) _punish(quote);
    }

    /// @notice Pays a batch whose trades are all revealed and good. For anyone to call.
    function closeBatch(Batch calldata batch, Payout[] calldata payouts) external {
        (bytes32 batchId, uint256 state) = _open(batch);
        if (_revealedOf(state) != _all(batch) || _returnedOf(state) != 0) {
            revert NotAllGood(_revealedOf(state), _returnedOf(state));
        }
        _requirePast(_sinceOf(state) + batch.disputeWindow);
        _requirePart(keccak256(abi.encode(payouts)), batch.payouts);
        _batches[batchId] = CLOSED;
        for (uint256 i = 0; i < payouts.length; ++i) {
            Payout calldata payout = payouts[i];
            if (payout.toDeposit != 0) _deposit(batch.asset, payout.account, payout.toDeposit);
            if (payout.amount != 0) _credit(batch.asset, payout.account, payout.amount);
        }
        emit BatchClosed(batchId);
    }

    /// @notice Pays those trades of a batch that are revealed and good, and gives the prices of those
    /// that were not revealed in time back to the buyers' deposits. For anyone to call.
    function closeBatchByLeg(
        Batch calldata batch,
        address[] calldata accounts,
        Movement[] calldata movements
    ) external {
        (bytes32 batchId, uint256 state) = _open(batch);
        if (_revealedOf(state) != _all(batch)) _requirePast(batch.closesFrom);
        if (_revealedOf(state) != 0) _requirePast(_sinceOf(state) + batch.disputeWindow);
        _requirePart(keccak256(abi.encode(accounts, movements)), batch.movements);
        _batches[batchId] = CLOSED;
        // Of a movement that was locked, each place that is used is one of the accounts, and the fee is
        // a part of the price.
        for (uint256 i = 0; i < movements.length; ++i) {
            Movement moved = movements[i];
            if (_returnedOf(state) >> i & 1 == 1) continue;
            if (_revealedOf(state) >> i & 1 == 0) {
                _deposit(batch.asset, accounts[moved.payerOf()], moved.priceOf());
                continue;
            }
            uint256 fee = moved.feeOf();
            _credit(batch.asset, accounts[moved.sellerOf()], moved.priceOf() - fee);
            if (fee != 0) _credit(batch.asset, accounts[moved.feeRecipientOf()], fee);
        }
        emit BatchClosed(batchId);
    }

    /// @notice Makes what the caller consented to with this nonce void, unless it is locked already.
    function cancelConsent(uint256 nonce) external {
        _useNonce(msg.sender, nonce);
        emit ConsentCancelled(msg.sender, nonce);
    }

    /// @notice Whether a batch is locked and not closed, since when it stands as it does, and by trade
    /// which secrets are public and which prices went back.
    function batchOf(bytes32 batchId)
        external
        view
        returns (bool open, uint64 since, uint64 revealed, uint64 returned)
    {
        uint256 state = _batches[batchId];
        if (state == 0 || state == CLOSED) return (false, 0, 0, 0);
        return (true, _sinceOf(state), _revealedOf(state), _returnedOf(state));
    }

    /// @notice Whether a nonce of a buyer's consents was used.
    function nonceUsed(address buyer, uint256 nonce) external view returns (bool) {
        return _nonces[buyer][nonce >> 8] >> (nonce & 0xff) & 1 == 1;
    }

    function _lists(Spending[] calldata spendings, address[] calldata accounts)
        private
        pure
        returns (Lists memory lists)
    {
        uint256 count = 0;
        for (uint256 i = 0; i < spendings.length; ++i) {
            uint256 quotes = spendings[i].quotes.length;
            if (quotes == 0 || quotes != spendings[i].payees.length) {
                revert BadSpending(i, quotes, spendings[i].payees.length);
            }
            count += quotes;
        }
        if (count == 0 || count > MAX_LEGS || accounts.length > 256) revert BadBatch(count, accounts.length);
        lists.digests = new bytes32[](count);
        lists.commitments = new bytes32[](count);
        lists.movements = new Movement[](count);
        lists.payouts = new Payout[](accounts.length);
        for (uint256 i = 0; i < accounts.length; ++i) lists.payouts[i].account = accounts[i];
    }

    /// @dev Takes the trades of one buyer, from place `first` of the lists on.
    function _spendAll(
        Spending calldata spending,
        address[] calldata accounts,
        Lists memory lists,
        uint256 first,
        Batch memory batch
    ) private {
        Quote[] calldata quotes = spending.quotes;
        address buyer = quotes[0].buyer;
        _requirePayee(accounts, spending.payer, buyer, first);
        bytes32[] memory asked = new bytes32[](quotes.length);
        bytes32 before = 0;
        uint256 total = 0;
        for (uint256 i = 0; i < quotes.length; ++i) {
            Quote calldata quote = quotes[i];
            if (quote.buyer != buyer) revert MixedBuyers(buyer, quote.buyer);
            if (quote.asset != batch.asset) revert MixedAssets(batch.asset, quote.asset);
            if (quote.tradeId <= before) revert TradesUnsorted(before, quote.tradeId);
            before = quote.tradeId;
            _requireNone(before);
            Terms.requireFundable(quote);
            if (quote.price > MAX_BATCH_PRICE) {
                revert PriceTooLarge(before, quote.price, MAX_BATCH_PRICE);
            }
            total += quote.price; // of 64 numbers of 112 bits
            asked[i] = _hashTypedDataV4(quote.structHash());
            _list(quote, spending, i, asked[i], accounts, lists, first + i);
            uint64 end = quote.revealBy + quote.grace; // within 37 days from now, as the terms are
            if (end > batch.closesFrom) batch.closesFrom = end;
            if (quote.disputeWindow > batch.disputeWindow) batch.disputeWindow = quote.disputeWindow;
        }
        bytes32 digest = _hashTypedDataV4(
            keccak256(
                abi.encode(
                    CONSENT_TYPEHASH,
                    keccak256(abi.encodePacked(asked)),
                    spending.nonce,
                    spending.closesBy
                )
            )
        );
        // By key first: only of a buyer that is a contract is the account touched (ERC-1271).
        (address signer,,) = ECDSA.tryRecoverCalldata(digest, spending.consent);
        if (
            (signer != buyer || signer == address(0))
                && !SignatureChecker.isValidERC1271SignatureNowCalldata(buyer, digest, spending.consent)
        ) revert NoConsent(buyer);
        _useNonce(buyer, spending.nonce);
        _spend(batch.asset, buyer, total);
        lists.payouts[spending.payer].toDeposit += total; // what it spent, until `_netted`
    }

    /// @dev Of each account, what it gets against what it spent: of this the deposit gets back what it
    /// can, and so the trades of two accounts with one another move the difference, once.
    function _netted(Payout[] memory payouts) private pure returns (Payout[] memory) {
        for (uint256 i = 0; i < payouts.length; ++i) {
            Payout memory payout = payouts[i];
            if (payout.amount < payout.toDeposit) payout.toDeposit = payout.amount;
            payout.amount -= payout.toDeposit;
        }
        return payouts;
    }

    function _useNonce(address buyer, uint256 nonce) private {
        uint256 bit = 1 << (nonce & 0xff);
        uint256 used = _nonces[buyer][nonce >> 8];
        if (used & bit != 0) revert NonceUsed(buyer, nonce);
        _nonces[buyer][nonce >> 8] = used | bit;
    }

    function _list(
        Quote calldata quote,
        Spending calldata spending,
        uint256 i,
        bytes32 digest,
        address[] calldata accounts,
        Lists memory lists,
        uint256 place
    ) private pure {
        uint16 payees = spending.payees[i];
        lists.digests[place] = digest;
        lists.commitments[place] = quote.secretCommitment;
        lists.movements[place] = newMovement(quote.price, quote.fee, spending.payer, payees);
        _requirePayee(accounts, payees & 0xff, quote.seller, place);
        // Sums of at most 128 numbers of 112 bits.
        lists.payouts[payees & 0xff].amount += quote.price - quote.fee;
        if (quote.fee == 0) return;
        _requirePayee(accounts, payees >> 8, quote.feeRecipient, place);
        lists.payouts[payees >> 8].amount += quote.fee;
    }

    function _requirePayee(
        address[] calldata accounts,
        uint256 place,
        address account,
        uint256 leg
    ) private pure {
        if (place >= accounts.length) revert WrongPayee(leg, address(0), account);
        if (accounts[place] != account) revert WrongPayee(leg, accounts[place], account);
    }

    /// @dev Those trades whose encryptor is one of the signers: no broker answers with its bond for what
    /// others say that it encrypted. And no buyer's price is locked for longer than it consented to.
    function _vouched(Spending[] calldata spendings, address[] memory signers, uint256 closes)
        private
        pure
        returns (uint256 mask)
    {
        uint256 bit = 1;
        for (uint256 i = 0; i < spendings.length; ++i) {
            if (closes > spendings[i].closesBy) revert ClosesTooLate(i, closes, spendings[i].closesBy);
            Quote[] calldata quotes = spendings[i].quotes;
            for (uint256 j = 0; j < quotes.length; ++j) {
                if (_isAmong(signers, quotes[j].encryptor)) mask |= bit;
                bit <<= 1;
            }
        }
    }

    function _open(Batch calldata batch)
        private
        view
        returns (bytes32 batchId, uint256 state)
    {
        batchId = keccak256(abi.encode(batch));
        state = _batches[batchId];
        if (state == 0 || state == CLOSED) revert UnknownBatch(batchId);
    }

    function _sinceOf(uint256 state) private pure returns (uint40) {
        return uint40(state >> 8);
    }

    function _revealedOf(uint256 state) private pure returns (uint64) {
        return uint64(state >> 48);
    }

    function _returnedOf(uint256 state) private pure returns (uint64) {
        return uint64(state >> 112);
    }

    /// @dev A bit for each trade; a batch that was locked has 64 at most.
    function _all(Batch calldata batch) private pure returns (uint256) {
        return (1 << batch.count) - 1;
    }

    function _requirePart(bytes32 given, bytes32 expected) private pure {
        if (given != expected) revert WrongPart(given, expected);
    }

    /// @dev The second `last` is over.
    function _requirePast(uint256 last) internal view {
        if (block.timestamp <= last) revert IParameterEscrow.TooEarly(block.timestamp, last + 1);
    }

    /// @dev Reverts with `WrongState` if a trade of this id was funded by itself.
    function _requireNone(bytes32 tradeId) internal view virtual;

    /// @dev An encryptor loses its bond that vouched for the goods: it is one of the brokers that signed
    /// their quote, and so sat when the trade was funded.
    function _punish(Quote calldata quote) internal {
        // A bond that is gone already does not keep the buyer from its money. But a call that fails is
        // not passed over: whoever disputes could make it fail, by the gas that it sends.
        if (!registry.answersTo(quote.encryptor, address(this))) return;
        registry.convict(quote.encryptor, quote.buyer, msg.sender);
    }
}
