// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// @title The ChaCha20 stream (RFC 8439 §2.3) with a 64-bit block counter and a nonce of zeros
/// @dev A row of the state, four words of 32 bits, is one word of the EVM: word i lies in the low
/// half of the i-th quarter from the top. A quarter round is done on the four columns at once, and
/// on the diagonals after the rows were turned by whole quarters. The high halves take the carries
/// of the sums: rows a and c are sums of at most 41 words and never need to be masked before the
/// end; b and d are masked before they are rotated, and `x * (2^32 + 1)` puts a word twice side by
/// side, so that one shift rotates it.
library ChaCha20 {
    /// @notice XORs the keystream from block `counter` on over memory, in whole blocks of 64 bytes.
    /// @param key the 32 bytes of the key
    /// @param counter the first block; it goes on without a wrap past 2^32
    /// @param start where in memory
    /// @param length how many bytes; what follows them up to a whole block is changed too
    function xorInPlace(bytes32 key, uint256 counter, uint256 start, uint256 length) internal pure {
        assembly ("memory-safe") {
            // Reverses the bytes of each of the eight words of 32 bits.
            function flip(x) -> y {
                let odd := 0x00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff
                y := or(and(shr(8, x), odd), shl(8, and(x, odd)))
                odd := 0x0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff
                y := or(and(shr(16, y), odd), shl(16, and(y, odd)))
            }
            // Spreads the four words in the low half of x to one in each quarter.
            function spread(x) -> y {
                y := or(and(shl(64, x), shl(128, 0xffffffffffffffff)), and(x, 0xffffffffffffffff))
                y := and(
                    or(y, shl(32, y)), 0x00000000ffffffff00000000ffffffff00000000ffffffff00000000ffffffff
                )
            }
            // Closes two rows of one word in each quarter up to the 32 bytes that they stand for.
            function close(x, y) -> z {
                let pairs := 0x0000000000000000ffffffffffffffff0000000000000000ffffffffffffffff
                x := and(or(x, shr(32, x)), pairs)
                y := and(or(y, shr(32, y)), pairs)
                z := flip(
                    or(
                        shl(128, or(shr(64, x), x)),
                        and(or(shr(64, y), y), 0xffffffffffffffffffffffffffffffff)
                    )
                )
            }

            let low := 0x00000000ffffffff00000000ffffffff00000000ffffffff00000000ffffffff
            // "expand 32-byte k"
            let keyB := flip(key)
            let keyC := spread(and(keyB, 0xffffffffffffffffffffffffffffffff))
            keyB := spread(shr(128, keyB))

            for { let end := add(start, length) } lt(start, end) { start := add(start, 64) } {
                let a := 0x0000000061707865000000003320646e0000000079622d32000000006b206574
                let b := keyB
                let c := keyC
                let d := or(shl(192, and(counter, 0xffffffff)), shl(128, shr(32, counter)))

                for { let round := 0 } lt(round, 10) { round := add(round, 1) } {
                    a := add(a, b)
                    d := and(shr(16, mul(and(xor(d, a), low), 0x100000001)), low)
                    c := add(c, d)
                    b := and(shr(20, mul(and(xor(b, c), low), 0x100000001)), low)
                    a := add(a, b)
                    d := and(shr(24, mul(and(xor(d, a), low), 0x100000001)), low)
                    c := add(c, d)
                    b := and(shr(25, mul(and(xor(b, c), low), 0x100000001)), low)

                    b := or(shl(64, b), shr(192, b))
                    c := or(shl(128, c), shr(128, c))
                    d := or(shl(192, d), shr(64, d))

                    a := add(a, b)
                    d := and(shr(16, mul(and(xor(d, a), low), 0x100000001)), low)
                    c := add(c, d)
                    b := and(shr(20, mul(and(xor(b, c), low), 0x100000001)), low)
                    a := add(a, b)
                    d := and(shr(24, mul(and(xor(d, a), low), 0x100000001)), low)
                    c := add(c, d)
                    b := and(shr(25, mul(and(xor(b, c), low), 0x100000001)), low)

                    b := or(shl(192, b), shr(64, b))
                    c := or(shl(128, c), shr(128, c))
                    d := or(shl(64, d), shr(192, d))
                }

                a := and(add(a, 0x0000000061707865000000003320646e0000000079622d32000000006b206574), low)
                b := and(add(b, keyB), low)
                mstore(start, xor(mload(start), close(a, b)))
                c := and(add(c, keyC), low)
                d := and(add(d, or(shl(192, and(counter, 0xffffffff)), shl(128, shr(32, counter)))), low)
                mstore(add(start, 32), xor(mload(add(start, 32)), close(c, d)))
                counter := add(counter, 1)
            }
        }
    }
}
