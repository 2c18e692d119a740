// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Lots} from "./Lots.sol";
import {FuzzSelector, vm} from "./Play.sol";

contract Market is Lots {
    function checkAll() external view {
        checkMoney();
        checkBonds();
        checkBatch();
    }

    /// @dev Whatever was done, everybody gets out what is theirs.
    function endAll() external {
        vm.warp(time() + 100 days);
        endTrades();
        endBatches();
        for (uint256 who = 0; who < 2 * PARTIES; ++who) withdraw(who, false);
        for (uint256 a = 0; a < 2; ++a) check(books[assetOf(a)].locked == 0, "money is left locked");
        checkMoney();
        checkBonds();
    }
}

contract MarketInvariants {
    Market private _market;

    function setUp() external {
        _market = new Market();
    }

    function targetContracts() external view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(_market);
    }

    function excludeSelectors() external view returns (FuzzSelector[] memory excluded) {
        excluded = new FuzzSelector[](1);
        excluded[0] = FuzzSelector(address(_market), new bytes4[](1));
        excluded[0].selectors[0] = Market.endAll.selector;
    }

    /// @dev Money held = open trades + credits + deposits + bonds; every trade and batch stands where
    /// its last successful call put it.
    function invariant_market() external view {
        _market.checkAll();
    }

    function afterInvariant() external {
        _market.endAll();
    }
}
