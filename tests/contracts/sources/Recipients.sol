// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Credits} from "../../../contracts/src/Credits.sol";
import {IParameterEscrow} from "../../../contracts/src/IParameterEscrow.sol";
import {Quote} from "../../../contracts/src/Quote.sol";

/// @dev A buyer that, when it is paid, tries everything again that could pay it once more.
contract Reentrant {
    IParameterEscrow private immutable ESCROW;
    uint256 public payments;
    bytes4 public withdrawAnswer;
    bytes4 public refundAnswer;
    bytes private _refund;

    constructor(IParameterEscrow escrow) {
        ESCROW = escrow;
    }

    receive() external payable {
        payments += 1;
        withdrawAnswer = _try(abi.encodeCall(Credits.withdraw, (address(0), address(this))));
        refundAnswer = _try(_refund);
    }

    function fund(Quote calldata quote, bytes calldata signature) external payable {
        _refund = abi.encodeCall(IParameterEscrow.refund, (quote));
        ESCROW.fund{value: msg.value}(quote, signature);
    }

    function _try(bytes memory call) private returns (bytes4) {
        (bool succeeded, bytes memory answer) = address(ESCROW).call(call);
        return succeeded ? bytes4(0) : bytes4(answer);
    }
}

/// @dev An account that takes no money, and answers at length.
contract Refusing {
    receive() external payable {
        assembly ("memory-safe") {
            revert(0, 100000)
        }
    }
}
