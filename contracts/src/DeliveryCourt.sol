// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Delivery, Evidence} from "./lib/Delivery.sol";
import {Quote} from "./Quote.sol";

/// @title DeliveryCourt
/// @notice Judges evidence of a bad delivery. It holds no money and remembers nothing.
/// @dev Apart from the escrow for the size of its code alone.
contract DeliveryCourt {
    /// @notice Reverts unless the evidence proves a leaf of the goods to be bad.
    function requireBad(Quote calldata quote, Evidence calldata evidence) external view {
        Delivery.requireBad(quote, evidence);
    }
}
