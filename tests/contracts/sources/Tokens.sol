// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";

/// @dev A token as it should be, with signed approvals; anybody mints.
contract Token is ERC20Permit {
    constructor() ERC20("Token", "TOK") ERC20Permit("Token") {}

    function mint(address account, uint256 amount) external {
        _mint(account, amount);
    }
}

/// @dev A token that keeps a hundredth of each transfer.
contract FeeToken is ERC20 {
    constructor() ERC20("Fee", "FEE") {}

    function mint(address account, uint256 amount) external {
        _mint(account, amount);
    }

    function _update(address from, address to, uint256 amount) internal override {
        super._update(from, to, amount);
        if (from != address(0) && to != address(0)) super._update(to, address(0), amount / 100);
    }
}

/// @dev A token that makes one call of somebody's choice in the midst of each transfer, and keeps
/// what came of it.
contract CallingToken is ERC20 {
    address public target;
    bytes public data;
    bytes public answer;
    bool public succeeded;

    constructor() ERC20("Calling", "CALL") {}

    function mint(address account, uint256 amount) external {
        _mint(account, amount);
    }

    function callNext(address target_, bytes calldata data_) external {
        (target, data) = (target_, data_);
    }

    function _update(address from, address to, uint256 amount) internal override {
        if (target != address(0)) {
            address called = target;
            target = address(0);
            (succeeded, answer) = called.call(data);
        }
        super._update(from, to, amount);
    }
}

/// @dev A token of the old kind, whose functions return nothing.
contract NoReturnToken {
    mapping(address account => uint256) public balanceOf;
    mapping(address owner => mapping(address spender => uint256)) public allowance;

    function mint(address account, uint256 amount) external {
        balanceOf[account] += amount;
    }

    function approve(address spender, uint256 amount) external {
        allowance[msg.sender][spender] = amount;
    }

    function transfer(address to, uint256 amount) external {
        _move(msg.sender, to, amount);
    }

    function transferFrom(address from, address to, uint256 amount) external {
        allowance[from][msg.sender] -= amount;
        _move(from, to, amount);
    }

    function _move(address from, address to, uint256 amount) private {
        balanceOf[from] -= amount;
        balanceOf[to] += amount;
    }
}

/// @dev A token that changes balances by itself: whenever somebody says so, or at the end of the next
/// transfer.
contract RebasingToken is ERC20 {
    address private _next;

    constructor() ERC20("Rebasing", "REB") {}

    function mint(address account, uint256 amount) external {
        _mint(account, amount);
    }

    function rebase(address account, uint256 balance) external {
        if (balance > balanceOf(account)) _mint(account, balance - balanceOf(account));
        else _burn(account, balanceOf(account) - balance);
    }

    function emptyNext(address account) external {
        _next = account;
    }

    function _update(address from, address to, uint256 amount) internal override {
        super._update(from, to, amount);
        address emptied = _next;
        if (emptied == address(0) || from == address(0)) return;
        _next = address(0);
        _burn(emptied, balanceOf(emptied));
    }
}
