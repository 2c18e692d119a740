// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Credits} from "./Credits.sol";

/// @title Money that repeat traders leave here for their next trades
/// @notice A deposit pays for whatever its owner consents to by a signature, without a call of its
/// own. It can be taken back only after a notice of 30 days, longer than any reveal is awaited after a
/// funding.
///
/// Whoever sees an amount in `deposits` can rely on it for that long: it leaves for nothing but trades. A
/// notice sets what it is of apart at once; that is spent after all else, until it is released, and is no
/// deposit again but by another notice. So no notice can be given in store for money that comes later.
abstract contract Deposits is Credits {
    struct Notice {
        uint128 amount;
        uint64 from;
    }

    /// @notice From the notice to the day on which a deposit can be taken back.
    uint256 public constant DEPOSIT_NOTICE = 30 days;

    /// @notice What an account has left here for its trades, by asset; less what it gave notice of.
    mapping(address asset => mapping(address account => uint256 amount)) public deposits;

    /// @notice What an account is taking back, and from when on it can.
    mapping(address asset => mapping(address account => Notice)) public noticeOf;

    /// @notice `amount` more can be spent on trades of the account.
    event Deposited(address indexed asset, address indexed account, uint256 amount);

    /// @notice The account takes `amount` back, from `from` on.
    event DepositNotice(address indexed asset, address indexed account, uint256 amount, uint256 from);

    /// @notice `amount` of a deposit can be withdrawn now.
    event DepositReleased(address indexed asset, address indexed account, uint256 amount);

    /// @notice There is no notice to act on, or its time has not come.
    error NoticeNotDue(uint256 time, uint256 from);

    /// @notice The deposit does not hold so much.
    error DepositTooSmall(address asset, address account, uint256 held, uint256 needed);

    /// @notice Leaves money here for the trades of an account. ETH comes with the call; of a token the
    /// amount must be approved.
    function deposit(address asset, address account, uint256 amount) external payable {
        uint256 due = asset == ETH ? amount : 0;
        if (msg.value != due) revert WrongPayment(ETH, msg.value, due);
        _requireRecipient(account);
        _deposit(asset, account, amount);
        if (asset != ETH) _pull(asset, msg.sender, amount);
    }

    /// @notice Leaves what the caller is owed here for its next trades.
    function depositCredits(address asset, uint256 amount) external {
        uint256 owed = credits[asset][msg.sender];
        if (amount == 0 || owed < amount) revert NothingOwed(asset, msg.sender, owed);
        unchecked {
            credits[asset][msg.sender] = owed - amount;
        }
        _deposit(asset, msg.sender, amount);
    }

    /// @notice Says how much of what it has here the caller takes back: no more than that. A later notice
    /// replaces it; one of nothing makes all of it a deposit again.
    function giveDepositNotice(address asset, uint128 amount) external {
        uint256 held = deposits[asset][msg.sender];
        held = _sum(asset, msg.sender, held, noticeOf[asset][msg.sender].amount);
        if (held < amount) revert DepositTooSmall(asset, msg.sender, held, amount);
        unchecked {
            deposits[asset][msg.sender] = held - amount;
        }
        uint64 from = uint64(block.timestamp + DEPOSIT_NOTICE);
        noticeOf[asset][msg.sender] = Notice(amount, from);
        emit DepositNotice(asset, msg.sender, amount, from);
    }

    /// @notice Credits the caller what it gave notice of, or what of it is left.
    function releaseDeposit(address asset) external {
        Notice memory notice = noticeOf[asset][msg.sender];
        if (notice.amount == 0 || block.timestamp < notice.from) {
            revert NoticeNotDue(block.timestamp, notice.from);
        }
        delete noticeOf[asset][msg.sender];
        _credit(asset, msg.sender, notice.amount);
        emit DepositReleased(asset, msg.sender, notice.amount);
    }

    function _deposit(address asset, address account, uint256 amount) internal {
        deposits[asset][account] = _sum(asset, account, deposits[asset][account], amount);
        emit Deposited(asset, account, amount);
    }

    function _spend(address asset, address account, uint256 amount) internal {
        uint256 held = deposits[asset][account];
        unchecked {
            if (held >= amount) {
                deposits[asset][account] = held - amount;
                return;
            }
            uint256 leaving = noticeOf[asset][account].amount;
            if (leaving < amount - held) {
                revert DepositTooSmall(asset, account, held + leaving, amount);
            }
            deposits[asset][account] = 0;
            noticeOf[asset][account].amount = uint128(leaving - (amount - held));
        }
    }
}
