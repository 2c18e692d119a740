/* Hashes of whole leaves and whole levels of the tree of parameters, by the SHA extensions.
 *
 * The rules are those of node/protocol/merkle.py:
 *
 *     leaf = SHA-256(0x00 ‖ u64be index ‖ u32be length ‖ bytes)      1 to 1,024 bytes
 *     node = SHA-256(0x01 ‖ left ‖ right)
 *
 * node/protocol/plain_tree_hashing.py has the same three functions by hashlib, and is what is used
 * where this module cannot be imported: it was not built, or the processor lacks the
 * instructions, which importing it finds out. So there is no other SHA-256 in here.
 *
 * One round waits for the one before it, and the instruction for two rounds takes twice as
 * long as it keeps its unit busy. Two messages of as many blocks are therefore hashed side by
 * side, in the time of one. Every message is laid out and padded in a buffer of our own first:
 * a copy of a leaf costs little beside hashing it, and nothing is read beyond what was given.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#if defined(__x86_64__) && defined(__GNUC__)

#include <cpuid.h>
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define WITH_SHA __attribute__((target("sha,sse4.1,ssse3")))

enum {
    DIGEST = 32,
    BLOCK = 64,
    LEAF = 1024,
    LEAF_PREFIX = 13, /* domain, index, length */
    LENGTH_FIELD = 8, /* at the end of a padded message: its length in bits */
    LEAF_BLOCKS = (LEAF_PREFIX + LEAF + 1 + LENGTH_FIELD + BLOCK - 1) / BLOCK,
    NODE_BYTES = 1 + 2 * DIGEST,
    NODE_BLOCKS = (NODE_BYTES + 1 + LENGTH_FIELD + BLOCK - 1) / BLOCK,
    /* Bytes from which other threads may run meanwhile: whoever gives the interpreter's lock
       away may wait for milliseconds to have it back, which is long for a few leaves. */
    WORTH_UNLOCKING = 64 * LEAF,
};

/* ---------------------------------------------------------------------------- SHA-256 */

/* FIPS 180-4, section 4.2.2. */
static const uint32_t CONSTANTS[64] __attribute__((aligned(16))) = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

/* Rounds 4g to 4g+3 of both messages, whose words for them are in a and b. */
#define ROUNDS(g, a, b)                                                                \
    do {                                                                               \
        const __m128i constants = _mm_load_si128((const __m128i *)(CONSTANTS + 4 * (g))); \
        const __m128i for_a = _mm_add_epi32(a, constants);                             \
        const __m128i for_b = _mm_add_epi32(b, constants);                             \
        a_cdgh = _mm_sha256rnds2_epu32(a_cdgh, a_abef, for_a);                         \
        b_cdgh = _mm_sha256rnds2_epu32(b_cdgh, b_abef, for_b);                         \
        a_abef = _mm_sha256rnds2_epu32(a_abef, a_cdgh, _mm_shuffle_epi32(for_a, 0x0e)); \
        b_abef = _mm_sha256rnds2_epu32(b_abef, b_cdgh, _mm_shuffle_epi32(for_b, 0x0e)); \
    } while (0)

/* The four words of a message that follow after sixteen of them. */
#define NEXT_WORDS(w0, w1, w2, w3)                                                     \
    _mm_sha256msg2_epu32(                                                              \
        _mm_add_epi32(_mm_sha256msg1_epu32(w0, w1), _mm_alignr_epi8(w3, w2, 4)), w3)

/* The same rounds, and words 4g+16 to 4g+19 in the place of those that they used up. */
#define ROUNDS_AND_WORDS(g, a0, a1, a2, a3, b0, b1, b2, b3) \
    do {                                                    \
        ROUNDS(g, a0, b0);                                  \
        a0 = NEXT_WORDS(a0, a1, a2, a3);                    \
        b0 = NEXT_WORDS(b0, b1, b2, b3);                    \
    } while (0)

#define WORDS(message, i) \
    _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)((message) + 16 * (i))), big_endian)

/* Write the hashes of two padded messages of `blocks` blocks each; they may be the same. */
WITH_SHA static void
sha256_of_two(const uint8_t *a, const uint8_t *b, size_t blocks, uint8_t *hash_a, uint8_t *hash_b)
{
    const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    /* FIPS 180-4, section 5.3.3, in the order that the instructions want */
    __m128i a_abef = _mm_set_epi32(0x6a09e667, (int)0xbb67ae85, 0x510e527f, (int)0x9b05688c);
    __m128i a_cdgh = _mm_set_epi32(0x3c6ef372, (int)0xa54ff53a, 0x1f83d9ab, 0x5be0cd19);
    __m128i b_abef = a_abef, b_cdgh = a_cdgh;

    for (; blocks > 0; blocks--, a += BLOCK, b += BLOCK) {
        const __m128i old_a_abef = a_abef, old_a_cdgh = a_cdgh;
        const __m128i old_b_abef = b_abef, old_b_cdgh = b_cdgh;
        __m128i a0 = WORDS(a, 0), a1 = WORDS(a, 1), a2 = WORDS(a, 2), a3 = WORDS(a, 3);
        __m128i b0 = WORDS(b, 0), b1 = WORDS(b, 1), b2 = WORDS(b, 2), b3 = WORDS(b, 3);
        ROUNDS_AND_WORDS(0, a0, a1, a2, a3, b0, b1, b2, b3);
        ROUNDS_AND_WORDS(1, a1, a2, a3, a0, b1, b2, b3, b0);
        ROUNDS_AND_WORDS(2, a2, a3, a0, a1, b2, b3, b0, b1);
        ROUNDS_AND_WORDS(3, a3, a0, a1, a2, b3, b0, b1, b2);
        ROUNDS_AND_WORDS(4, a0, a1, a2, a3, b0, b1, b2, b3);
        ROUNDS_AND_WORDS(5, a1, a2, a3, a0, b1, b2, b3, b0);
        ROUNDS_AND_WORDS(6, a2, a3, a0, a1, b2, b3, b0, b1);
        ROUNDS_AND_WORDS(7, a3, a0, a1, a2, b3, b0, b1, b2);
        ROUNDS_AND_WORDS(8, a0, a1, a2, a3, b0, b1, b2, b3);
        ROUNDS_AND_WORDS(9, a1, a2, a3, a0, b1, b2, b3, b0);
        ROUNDS_AND_WORDS(10, a2, a3, a0, a1, b2, b3, b0, b1);
        ROUNDS_AND_WORDS(11, a3, a0, a1, a2, b3, b0, b1, b2);
        ROUNDS(12, a0, b0);
        ROUNDS(13, a1, b1);
        ROUNDS(14, a2, b2);
        ROUNDS(15, a3, b3);
        a_abef = _mm_add_epi32(a_abef, old_a_abef);
        a_cdgh = _mm_add_epi32(a_cdgh, old_a_cdgh);
        b_abef = _mm_add_epi32(b_abef, old_b_abef);
        b_cdgh = _mm_add_epi32(b_cdgh, old_b_cdgh);
    }

#define STORE(hash, abef, cdgh)                                                             \
    do {                                                                                    \
        const __m128i abcd = _mm_shuffle_epi32(_mm_unpackhi_epi64(abef, cdgh), 0xb1);       \
        const __m128i efgh = _mm_shuffle_epi32(_mm_unpacklo_epi64(abef, cdgh), 0xb1);       \
        _mm_storeu_si128((__m128i *)(hash), _mm_shuffle_epi8(abcd, big_endian));            \
        _mm_storeu_si128((__m128i *)((hash) + 16), _mm_shuffle_epi8(efgh, big_endian));     \
    } while (0)
    STORE(hash_a, a_abef, a_cdgh);
    STORE(hash_b, b_abef, b_cdgh);
#undef STORE
}

static void
put_big_endian(uint8_t *at, uint64_t value, int bytes)
{
    while (bytes-- > 0) {
        at[bytes] = (uint8_t)value;
        value >>= 8;
    }
}

/* Fill a message of `length` bytes up to whole blocks: section 5.1.1. Returns their number. */
static size_t
pad(uint8_t *message, size_t length)
{
    const size_t blocks = (length + 1 + LENGTH_FIELD + BLOCK - 1) / BLOCK;
    const size_t end = blocks * BLOCK - LENGTH_FIELD;
    message[length] = 0x80;
    memset(message + length + 1, 0, end - length - 1);
    put_big_endian(message + end, (uint64_t)length * 8, LENGTH_FIELD);
    return blocks;
}

/* ------------------------------------------------------------------- leaves and nodes */

/* Lay out leaf `index` of 1 to LEAF bytes. Returns the number of its blocks. */
static size_t
lay_out_leaf(uint8_t message[LEAF_BLOCKS * BLOCK], uint64_t index, const uint8_t *data, size_t length)
{
    message[0] = 0;
    put_big_endian(message + 1, index, 8);
    put_big_endian(message + 9, length, 4);
    memcpy(message + LEAF_PREFIX, data, length);
    return pad(message, LEAF_PREFIX + length);
}

/* Hash the leaves of `length` bytes, the first of them leaf `index`, into 32 bytes for each. */
static void
hash_leaves(const uint8_t *data, size_t length, uint64_t index, uint8_t *hashes)
{
    uint8_t one[LEAF_BLOCKS * BLOCK], other[LEAF_BLOCKS * BLOCK];
    for (; length >= 2 * LEAF; length -= 2 * LEAF, data += 2 * LEAF, hashes += 2 * DIGEST) {
        lay_out_leaf(one, index++, data, LEAF);
        lay_out_leaf(other, index++, data + LEAF, LEAF);
        sha256_of_two(one, other, LEAF_BLOCKS, hashes, hashes + DIGEST);
    }
    while (length > 0) { /* one whole leaf, a part of one, both, or none */
        const size_t taken = length < LEAF ? length : LEAF;
        const size_t blocks = lay_out_leaf(one, index++, data, taken);
        sha256_of_two(one, one, blocks, hashes, hashes);
        length -= taken, data += taken, hashes += DIGEST;
    }
}

/* The same for two blobs of one length. */
static void
hash_leaves_of_two(const uint8_t *a, const uint8_t *b, size_t length, uint64_t index,
                   uint8_t *hashes_a, uint8_t *hashes_b)
{
    uint8_t one[LEAF_BLOCKS * BLOCK], other[LEAF_BLOCKS * BLOCK];
    while (length > 0) {
        const size_t taken = length < LEAF ? length : LEAF;
        const size_t blocks = lay_out_leaf(one, index, a, taken);
        lay_out_leaf(other, index++, b, taken);
        sha256_of_two(one, other, blocks, hashes_a, hashes_b);
        length -= taken, a += taken, b += taken, hashes_a += DIGEST, hashes_b += DIGEST;
    }
}

/* Hash pairs of 32 bytes into half as many nodes. */
static void
hash_nodes(const uint8_t *pairs, size_t nodes, uint8_t *hashes)
{
    uint8_t one[NODE_BLOCKS * BLOCK], other[NODE_BLOCKS * BLOCK];
    one[0] = other[0] = 1;
    pad(one, NODE_BYTES);
    pad(other, NODE_BYTES);
    for (; nodes >= 2; nodes -= 2, pairs += 4 * DIGEST, hashes += 2 * DIGEST) {
        memcpy(one + 1, pairs, 2 * DIGEST);
        memcpy(other + 1, pairs + 2 * DIGEST, 2 * DIGEST);
        sha256_of_two(one, other, NODE_BLOCKS, hashes, hashes + DIGEST);
    }
    if (nodes == 1) {
        memcpy(one + 1, pairs, 2 * DIGEST);
        sha256_of_two(one, one, NODE_BLOCKS, hashes, hashes);
    }
}

/* ------------------------------------------------------------------------- the module */

/* Run `work`, without the interpreter's lock if `bytes` are many. */
#define RUN(bytes, work)                       \
    do {                                       \
        if ((bytes) >= WORTH_UNLOCKING) {      \
            Py_BEGIN_ALLOW_THREADS             \
            work;                              \
            Py_END_ALLOW_THREADS               \
        } else {                               \
            work;                              \
        }                                      \
    } while (0)

/* Room for one hash for each leaf of `length` bytes; or an error, if a leaf's index does not
   fit 64 bits. */
static PyObject *
room_for_hashes(Py_ssize_t length, PyObject *first_index, uint64_t *first)
{
    const Py_ssize_t leaves = length / LEAF + (length % LEAF != 0);
    const unsigned long long index = PyLong_AsUnsignedLongLong(first_index);
    if (index == (unsigned long long)-1 && PyErr_Occurred()) {
        return NULL;
    }
    if (leaves > 0 && (uint64_t)(leaves - 1) > UINT64_MAX - index) {
        PyErr_SetString(PyExc_OverflowError, "a leaf index fits 64 bits");
        return NULL;
    }
    *first = index;
    return PyBytes_FromStringAndSize(NULL, leaves * DIGEST);
}

static PyObject *
leaf_hashes(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Py_buffer data;
    PyObject *first_index;
    uint64_t first;
    if (!PyArg_ParseTuple(arguments, "y*O:leaf_hashes", &data, &first_index)) {
        return NULL;
    }
    PyObject *hashes = room_for_hashes(data.len, first_index, &first);
    if (hashes != NULL) {
        uint8_t *into = (uint8_t *)PyBytes_AS_STRING(hashes);
        RUN(data.len, hash_leaves(data.buf, (size_t)data.len, first, into));
    }
    PyBuffer_Release(&data);
    return hashes;
}

static PyObject *
leaf_hashes_of_two(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Py_buffer one, other;
    PyObject *first_index, *of_one = NULL, *of_other = NULL, *both = NULL;
    uint64_t first;
    if (!PyArg_ParseTuple(arguments, "y*y*O:leaf_hashes_of_two", &one, &other, &first_index)) {
        return NULL;
    }
    if (one.len != other.len) {
        PyErr_Format(PyExc_ValueError, "%zd bytes beside %zd", one.len, other.len);
        goto done;
    }
    of_one = room_for_hashes(one.len, first_index, &first);
    if (of_one == NULL) {
        goto done;
    }
    of_other = PyBytes_FromStringAndSize(NULL, PyBytes_GET_SIZE(of_one));
    if (of_other == NULL) {
        goto done;
    }
    {
        uint8_t *into_one = (uint8_t *)PyBytes_AS_STRING(of_one);
        uint8_t *into_other = (uint8_t *)PyBytes_AS_STRING(of_other);
        RUN(one.len,
            hash_leaves_of_two(one.buf, other.buf, (size_t)one.len, first, into_one, into_other));
    }
    both = PyTuple_Pack(2, of_one, of_other);
done:
    Py_XDECREF(of_one);
    Py_XDECREF(of_other);
    PyBuffer_Release(&one);
    PyBuffer_Release(&other);
    return both;
}

static PyObject *
parents(PyObject *Py_UNUSED(module), PyObject *argument)
{
    Py_buffer hashes;
    PyObject *above = NULL;
    if (PyObject_GetBuffer(argument, &hashes, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    if (hashes.len % (2 * DIGEST) != 0) {
        PyErr_Format(PyExc_ValueError, "%zd bytes are no whole number of pairs", hashes.len);
    } else {
        above = PyBytes_FromStringAndSize(NULL, hashes.len / 2);
    }
    if (above != NULL) {
        const size_t nodes = (size_t)hashes.len / (2 * DIGEST);
        uint8_t *into = (uint8_t *)PyBytes_AS_STRING(above);
        RUN(hashes.len, hash_nodes(hashes.buf, nodes, into));
    }
    PyBuffer_Release(&hashes);
    return above;
}

static PyMethodDef FUNCTIONS[] = {
    {"leaf_hashes", leaf_hashes, METH_VARARGS, NULL},
    {"leaf_hashes_of_two", leaf_hashes_of_two, METH_VARARGS, NULL},
    {"parents", parents, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

/* CPUID: leaf 1, ECX 9 (SSSE3) and 19 (SSE4.1); leaf 7, EBX 29 (SHA). */
static int
can_run_here(void)
{
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & (1u << 9)) || !(c & (1u << 19))) {
        return 0;
    }
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & (1u << 29));
}

#else

static PyMethodDef FUNCTIONS[] = {{NULL, NULL, 0, NULL}};

static int
can_run_here(void)
{
    return 0;
}

#endif

static int
start(PyObject *Py_UNUSED(module))
{
    if (!can_run_here()) {
        PyErr_SetString(PyExc_ImportError, "this processor has no SHA extensions that we know of");
        return -1;
    }
    return 0;
}

static PyModuleDef_Slot SLOTS[] = {{Py_mod_exec, start}, {0, NULL}};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT,
    .m_name = "node.protocol._tree_hashing",
    .m_doc = "Hashes of leaves and nodes by the SHA extensions of the processor.",
    .m_methods = FUNCTIONS,
    .m_slots = SLOTS,
};

PyMODINIT_FUNC
PyInit__tree_hashing(void)
{
    return PyModuleDef_Init(&MODULE);
}
