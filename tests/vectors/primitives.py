"""The primitives that docs/protocol.md names in its section 3, written from their standards, with Python's own library only.

Slow, not constant-time, for tests: never for traffic.
"""

import hashlib
import hmac
import struct


class InvalidTag(Exception):
    """An AEAD's tag does not verify."""


# Hashes and MACs

def hkdf(hash_name, chaining_key, material, outputs):
    """Noise specification, section 4.3."""
    key = hmac.digest(chaining_key, material, hash_name)
    results, last = [], b""
    for number in range(1, outputs + 1):
        last = hmac.digest(key, last + bytes([number]), hash_name)
        results.append(last)
    return results


def blake2s_mac(key, data):
    """Keyed BLAKE2s with 16 bytes of output (RFC 7693)."""
    return hashlib.blake2s(data, key=key, digest_size=16).digest()


# X25519 (RFC 7748, section 5)

P = 2**255 - 19


def x25519(private, public):
    scalar = int.from_bytes(private, "little")
    scalar = (scalar & ~7 & (2**255 - 1)) | 2**254
    x1 = int.from_bytes(public, "little") & (2**255 - 1)
    x2, z2, x3, z3, swap = 1, 0, x1, 1, 0
    for position in reversed(range(255)):
        bit = scalar >> position & 1
        if swap ^ bit:
            x2, z2, x3, z3 = x3, z3, x2, z2
        swap = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        da, cb = d * a % P, c * b % P
        x3, z3 = (da + cb) ** 2 % P, x1 * (da - cb) ** 2 % P
        aa, bb = a * a % P, b * b % P
        x2, z2 = aa * bb % P, (aa - bb) * (aa + 121665 * (aa - bb)) % P
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, P - 2, P) % P).to_bytes(32, "little")


def x25519_public(private):
    return x25519(private, (9).to_bytes(32, "little"))


# ChaCha20-Poly1305 (RFC 8439) and XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03)

def _chacha_rounds(state):
    def quarter(a, b, c, d):
        for x, y, z, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            state[x] = state[x] + state[y] & 0xFFFFFFFF
            mixed = state[z] ^ state[x]
            state[z] = (mixed << turn | mixed >> (32 - turn)) & 0xFFFFFFFF

    for _ in range(10):
        for column in range(4):
            quarter(column, 4 + column, 8 + column, 12 + column)
        for column in range(4):
            quarter(column, 4 + (column + 1) % 4, 8 + (column + 2) % 4, 12 + (column + 3) % 4)


def _chacha_state(key, last_words):
    return list(struct.unpack("<4I", b"expand 32-byte k") + struct.unpack("<8I", key) + struct.unpack("<4I", last_words))


def _chacha20(key, nonce, counter, length):
    stream = b""
    while len(stream) < length:
        state = _chacha_state(key, struct.pack("<I", counter) + nonce)
        mixed = state[:]
        _chacha_rounds(mixed)
        stream += struct.pack("<16I", *(a + b & 0xFFFFFFFF for a, b in zip(state, mixed)))
        counter += 1
    return stream[:length]


def _hchacha20(key, nonce):
    state = _chacha_state(key, nonce)
    _chacha_rounds(state)
    return struct.pack("<8I", *state[:4], *state[12:])


def _poly1305(key, data):
    r = int.from_bytes(key[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    total = 0
    for at in range(0, len(data), 16):
        total = (total + int.from_bytes(data[at:at + 16] + b"\x01", "little")) * r % (2**130 - 5)
    return (total + int.from_bytes(key[16:], "little") & 2**128 - 1).to_bytes(16, "little")


def _xor(data, stream):
    return bytes(a ^ b for a, b in zip(data, stream))


def _padded(data):
    return data + bytes(-len(data) % 16)


class ChaCha20Poly1305:
    def __init__(self, key):
        self.key = key

    def _tag(self, nonce, associated, ciphertext):
        lengths = struct.pack("<QQ", len(associated), len(ciphertext))
        return _poly1305(_chacha20(self.key, nonce, 0, 32), _padded(associated) + _padded(ciphertext) + lengths)

    def seal(self, nonce, associated, plaintext):
        ciphertext = _xor(plaintext, _chacha20(self.key, nonce, 1, len(plaintext)))
        return ciphertext + self._tag(nonce, associated, ciphertext)

    def open(self, nonce, associated, sealed):
        ciphertext, tag = sealed[:-16], sealed[-16:]
        if len(sealed) < 16 or not hmac.compare_digest(tag, self._tag(nonce, associated, ciphertext)):
            raise InvalidTag
        return _xor(ciphertext, _chacha20(self.key, nonce, 1, len(ciphertext)))


def xchacha20poly1305(key, nonce):
    """The cipher and the nonce to use it with."""
    return ChaCha20Poly1305(_hchacha20(key, nonce[:16])), bytes(4) + nonce[16:]


# AES-256-GCM (FIPS 197, NIST SP 800-38D)

def _make_sbox():
    sbox, p, q = [0] * 256, 1, 1
    while True:
        p = (p ^ p << 1 ^ (0x11B if p & 0x80 else 0)) & 0xFF
        for shift in (1, 2, 4):
            q ^= q << shift
        q &= 0xFF
        if q & 0x80:
            q ^= 0x09
        rotated = [(q << turn | q >> (8 - turn)) & 0xFF for turn in (1, 2, 3, 4)]
        sbox[p] = q ^ rotated[0] ^ rotated[1] ^ rotated[2] ^ rotated[3] ^ 0x63
        if p == 1:
            break
    sbox[0] = 0x63
    return bytes(sbox)


SBOX = _make_sbox()
DOUBLE = [(x << 1) ^ (0x11B if x & 0x80 else 0) for x in range(256)]


class Aes256Gcm:
    def __init__(self, key):
        self.round_keys = self._expand(key)
        self.h = int.from_bytes(self._block(bytes(16)), "big")

    @staticmethod
    def _expand(key):
        words, constant = [key[at:at + 4] for at in range(0, 32, 4)], 1
        while len(words) < 60:
            word = words[-1]
            if len(words) % 8 == 0:
                word = word[1:] + word[:1]
                word = bytes([SBOX[word[0]] ^ constant, *(SBOX[byte] for byte in word[1:])])
                constant = DOUBLE[constant]
            elif len(words) % 8 == 4:
                word = bytes(SBOX[byte] for byte in word)
            words.append(_xor(words[-8], word))
        return [b"".join(words[at:at + 4]) for at in range(0, 60, 4)]

    def _block(self, block):
        state = _xor(block, self.round_keys[0])
        for number in range(1, 15):
            state = [SBOX[state[(at + at % 4 * 4) % 16]] for at in range(16)]
            if number < 14:
                mixed = []
                for column in range(0, 16, 4):
                    a, b, c, d = state[column:column + 4]
                    everything = a ^ b ^ c ^ d
                    mixed += [
                        a ^ everything ^ DOUBLE[a ^ b], b ^ everything ^ DOUBLE[b ^ c],
                        c ^ everything ^ DOUBLE[c ^ d], d ^ everything ^ DOUBLE[d ^ a],
                    ]
                state = mixed
            state = _xor(state, self.round_keys[number])
        return state

    def _stream(self, nonce, length):
        blocks = range(2, 2 + (length + 15) // 16)
        return b"".join(self._block(nonce + counter.to_bytes(4, "big")) for counter in blocks)

    def _tag(self, nonce, associated, ciphertext):
        lengths = struct.pack(">QQ", len(associated) * 8, len(ciphertext) * 8)
        data, total = _padded(associated) + _padded(ciphertext) + lengths, 0
        for at in range(0, len(data), 16):
            total = self._multiply(total ^ int.from_bytes(data[at:at + 16], "big"))
        return _xor(total.to_bytes(16, "big"), self._block(nonce + b"\0\0\0\1"))

    def _multiply(self, x):
        product, v = 0, self.h
        for position in reversed(range(128)):
            if x >> position & 1:
                product ^= v
            v = v >> 1 ^ (0xE1 << 120 if v & 1 else 0)
        return product

    def seal(self, nonce, associated, plaintext):
        ciphertext = _xor(plaintext, self._stream(nonce, len(plaintext)))
        return ciphertext + self._tag(nonce, associated, ciphertext)

    def open(self, nonce, associated, sealed):
        ciphertext, tag = sealed[:-16], sealed[-16:]
        if len(sealed) < 16 or not hmac.compare_digest(tag, self._tag(nonce, associated, ciphertext)):
            raise InvalidTag
        return _xor(ciphertext, self._stream(nonce, len(ciphertext)))


# ML-KEM-768 (FIPS 203; the algorithms' numbers are its own)

Q, N, K, DU, DV = 3329, 256, 3, 10, 4


def _bit_reversed(value):
    return int(f"{value:07b}"[::-1], 2)


ZETAS = [pow(17, _bit_reversed(i), Q) for i in range(128)]
GAMMAS = [pow(17, 2 * _bit_reversed(i) + 1, Q) for i in range(128)]


def _encode(polynomial, bits):
    """Algorithm 5."""
    return sum(value << bits * at for at, value in enumerate(polynomial)).to_bytes(32 * bits, "little")


def _decode(data, bits):
    """Algorithm 6, without the reduction for 12 bits."""
    number, mask = int.from_bytes(data, "little"), (1 << bits) - 1
    return [number >> bits * at & mask for at in range(N)]


def _compress(polynomial, bits):
    return [((value << bits) + Q // 2) // Q % (1 << bits) for value in polynomial]


def _decompress(polynomial, bits):
    return [(value * Q + (1 << bits - 1)) >> bits for value in polynomial]


def _sample_ntt(seed):
    """Algorithm 7."""
    stream, values = hashlib.shake_128(seed).digest(2016), []
    for at in range(0, len(stream), 3):
        a, b, c = stream[at:at + 3]
        values += [value for value in (a + 256 * (b % 16), b // 16 + 16 * c) if value < Q]
    assert len(values) >= N, "2016 bytes are not enough once in 2^200 keys"
    return values[:N]


def _sample_cbd(seed, number):
    """Algorithm 8 for eta = 2, over the PRF of section 4.1."""
    bits = int.from_bytes(hashlib.shake_256(seed + bytes([number])).digest(128), "little")
    ones = [bits >> at & 1 for at in range(4 * N)]
    return [(ones[at] + ones[at + 1] - ones[at + 2] - ones[at + 3]) % Q for at in range(0, 4 * N, 4)]


def _ntt(polynomial):
    """Algorithm 9."""
    f, zeta, length = polynomial[:], iter(ZETAS[1:]), 128
    while length >= 2:
        for start in range(0, N, 2 * length):
            factor = next(zeta)
            for j in range(start, start + length):
                t = factor * f[j + length]
                f[j], f[j + length] = (f[j] + t) % Q, (f[j] - t) % Q
        length //= 2
    return f


def _ntt_inverse(polynomial):
    """Algorithm 10."""
    f, zeta, length = polynomial[:], iter(reversed(ZETAS[1:])), 2
    while length <= 128:
        for start in range(0, N, 2 * length):
            factor = next(zeta)
            for j in range(start, start + length):
                t = f[j]
                f[j], f[j + length] = (t + f[j + length]) % Q, factor * (f[j + length] - t) % Q
        length *= 2
    return [value * 3303 % Q for value in f]


def _multiply_ntts(f, g):
    """Algorithms 11 and 12."""
    product = []
    for i, gamma in enumerate(GAMMAS):
        a0, a1, b0, b1 = f[2 * i], f[2 * i + 1], g[2 * i], g[2 * i + 1]
        product += [(a0 * b0 + a1 * b1 * gamma) % Q, (a0 * b1 + a1 * b0) % Q]
    return product


def _add(*polynomials):
    return [sum(values) % Q for values in zip(*polynomials)]


def _dot(f, g):
    return _add(*(_multiply_ntts(a, b) for a, b in zip(f, g)))


def _matrix(rho):
    return [[_sample_ntt(rho + bytes([j, i])) for j in range(K)] for i in range(K)]


def ml_kem_keygen(d, z):
    """Algorithm 16: the encapsulation key and the decapsulation key."""
    seeds = hashlib.sha3_512(d + bytes([K])).digest()
    rho, sigma = seeds[:32], seeds[32:]
    s = [_ntt(_sample_cbd(sigma, i)) for i in range(K)]
    e = [_ntt(_sample_cbd(sigma, K + i)) for i in range(K)]
    t = [_add(_dot(row, s), error) for row, error in zip(_matrix(rho), e)]
    encapsulation_key = b"".join(_encode(part, 12) for part in t) + rho
    return encapsulation_key, (b"".join(_encode(part, 12) for part in s), encapsulation_key, z)


def _encrypt(encapsulation_key, message, seed):
    """Algorithm 14."""
    t = [_decode(encapsulation_key[384 * i:384 * i + 384], 12) for i in range(K)]
    a = _matrix(encapsulation_key[-32:])
    y = [_ntt(_sample_cbd(seed, i)) for i in range(K)]
    e1 = [_sample_cbd(seed, K + i) for i in range(K)]
    u = [_add(_ntt_inverse(_dot([row[i] for row in a], y)), e1[i]) for i in range(K)]
    v = _add(_ntt_inverse(_dot(t, y)), _sample_cbd(seed, 2 * K), _decompress(_decode(message, 1), 1))
    return b"".join(_encode(_compress(part, DU), DU) for part in u) + _encode(_compress(v, DV), DV)


def ml_kem_encapsulate(encapsulation_key, m):
    """Section 7.2: the shared secret and the ciphertext; raises ValueError where the input check fails."""
    parts = [_decode(encapsulation_key[384 * i:384 * i + 384], 12) for i in range(K)]
    if len(encapsulation_key) != 1184 or any(value >= Q for part in parts for value in part):
        raise ValueError("not an encapsulation key")
    secrets = hashlib.sha3_512(m + hashlib.sha3_256(encapsulation_key).digest()).digest()
    return secrets[:32], _encrypt(encapsulation_key, m, secrets[32:])


def ml_kem_decapsulate(decapsulation_key, ciphertext):
    """Algorithm 18."""
    s, encapsulation_key, z = decapsulation_key
    u = [_decompress(_decode(ciphertext[320 * i:320 * i + 320], DU), DU) for i in range(K)]
    v = _decompress(_decode(ciphertext[960:], DV), DV)
    s = [_decode(s[384 * i:384 * i + 384], 12) for i in range(K)]
    noise = _ntt_inverse(_dot(s, [_ntt(part) for part in u]))
    message = _encode(_compress([(a - b) % Q for a, b in zip(v, noise)], 1), 1)
    secrets = hashlib.sha3_512(message + hashlib.sha3_256(encapsulation_key).digest()).digest()
    if _encrypt(encapsulation_key, message, secrets[32:]) == ciphertext:
        return secrets[:32]
    return hashlib.shake_256(z + ciphertext).digest(32)
