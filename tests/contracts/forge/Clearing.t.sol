// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {FuzzSelector, vm} from "./Play.sol";
import {Rounds} from "./Rounds.sol";

contract House is Rounds {
    function checkAll() external view {
        checkMoney();
    }

    /// @dev Whatever was done, everybody gets out what is theirs.
    function endAll() external {
        vm.warp(time() + 100 days);
        endRounds();
        for (uint256 who = 0; who < 2 * PARTIES; ++who) withdraw(who);
        checkMoney();
    }
}

contract ClearingInvariants {
    House private _house;

    function setUp() external {
        _house = new House();
    }

    function targetContracts() external view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(_house);
    }

    function excludeSelectors() external view returns (FuzzSelector[] memory excluded) {
        excluded = new FuzzSelector[](1);
        excluded[0] = FuzzSelector(address(_house), new bytes4[](1));
        excluded[0].selectors[0] = House.endAll.selector;
    }

    /// @dev Money held = rounds + credits; claimed + reclaimed <= pot, and = pot at the end.
    function invariant_clearing() external view {
        _house.checkAll();
    }

    function afterInvariant() external {
        _house.endAll();
    }
}
