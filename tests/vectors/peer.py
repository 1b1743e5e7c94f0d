"""A peer written from docs/protocol.md alone, in Python without any library. The numbers in comments are its sections.

For tests: it is slow, and it knows one other peer.
"""

import hashlib
import hmac
import random
import struct

import primitives
from primitives import InvalidTag, blake2s_mac, hkdf, x25519, x25519_public

# 16
REKEY_AFTER_TIME, REKEY_JITTER, REKEY_AFTER_TIME_RECEIVING, REJECT_AFTER_TIME = 120, 10, 165, 180
REKEY_AFTER_MESSAGES, REJECT_AFTER_MESSAGES = 2**28, 2**29
REKEY_AFTER_BYTES, REJECT_AFTER_BYTES = 2**39, 2**40
RETRY_INTERVALS, RETRY_JITTER, MIN_INITIATION_INTERVAL, GIVE_UP_AFTER = (0.25, 1, 2, 4, 5), 0.333, 1, 90
MIN_ACCEPTED_INITIATION_INTERVAL, SIMULTANEOUS_INTERVAL = 0.020, 10
# 11.3 leaves open how silence is found: this peer does not ping.
PATIENCE = 15
COOKIE_LIFETIME, COOKIE_SECRET_LIFETIME = 115, 120
MAX_LANES, REPLAY_WINDOW = 64, 8192
LANE_PATH_LIFETIME = 5
LANE_PATHS = 0x01

INITIATION, RESPONSE, COOKIE_REPLY, TRANSPORT = 1, 2, 3, 4
VERSION = 1
INITIATION_LEN, RESPONSE_LEN, COOKIE_REPLY_LEN, MIN_TRANSPORT_LEN = 1340, 1188, 64, 28
PADDING, PACKET, CONTROL = 0, 1, 2
CHECKSUM_PARTIAL, CONTINUES = 1, 2
PING, PONG, GOODBYE, PROBE, DRAINING = 1, 2, 3, 4, 5
# A datagram with one ping, pong or probe; with a pong and a probe.
PROBE_DATAGRAM_LEN, PONG_AND_PROBE_LEN = 41, 54


class Refused(Exception):
    """A message that must be dropped; its text is for people only."""


# 3. Suites

class Suite:
    def __init__(self, byte, name, hash_name, cipher, nonce_format):
        self.byte, self.name, self.hash_name = byte, name, hash_name
        self.cipher, self.nonce_format = cipher, nonce_format

    def hash(self, data):
        return hashlib.new(self.hash_name, data).digest()

    def nonce(self, number):
        return struct.pack(self.nonce_format, number)

    def seal(self, key, number, associated, plaintext):
        return self.cipher(key).seal(self.nonce(number), associated, plaintext)

    def open(self, key, number, associated, sealed):
        return self.cipher(key).open(self.nonce(number), associated, sealed)


SUITES = {
    1: Suite(1, b"Noise_IKpsk2_25519_AESGCM_SHA256", "sha256", primitives.Aes256Gcm, ">4xQ"),
    2: Suite(2, b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s", "blake2s", primitives.ChaCha20Poly1305, "<4xQ"),
}


def dh(private, public):
    secret = x25519(private, public)
    if secret == bytes(32):
        raise Refused("a low-order point")
    return secret


# 5.4 Noise. `trace` collects every intermediate value.

class Noise:
    def __init__(self, suite, prologue, responder_public):
        self.suite, self.trace = suite, []
        self.h = suite.name.ljust(32, b"\0") if len(suite.name) <= 32 else suite.hash(suite.name)
        self.ck, self.k, self.n = self.h, None, 0
        self.mix_hash(prologue)
        self.mix_hash(responder_public)
        self.note("start")

    def note(self, step, **values):
        self.trace.append({"step": step, **values, "ck": self.ck, "k": self.k, "h": self.h})

    def mix_hash(self, data):
        self.h = self.suite.hash(self.h + data)

    def mix_key(self, data):
        self.ck, self.k = hkdf(self.suite.hash_name, self.ck, data, 2)
        self.n = 0

    def ephemeral(self, public):
        self.mix_hash(public)
        self.mix_key(public)
        self.note("e", public=public)

    def dh(self, step, private, public):
        secret = dh(private, public)
        self.mix_key(secret)
        self.note(step, secret=secret)

    def psk(self, psk):
        self.ck, mixed, self.k = hkdf(self.suite.hash_name, self.ck, psk, 3)
        self.n = 0
        self.mix_hash(mixed)
        self.note("psk", psk=psk)

    def seal(self, step, plaintext):
        sealed = self.suite.seal(self.k, self.n, self.h, plaintext)
        self.n += 1
        self.mix_hash(sealed)
        self.note(step, plaintext=plaintext, sealed=sealed)
        return sealed

    def open(self, step, sealed):
        try:
            plaintext = self.suite.open(self.k, self.n, self.h, sealed)
        except InvalidTag:
            raise Refused(f"{step} does not decrypt") from None
        self.n += 1
        self.mix_hash(sealed)
        self.note(step, plaintext=plaintext, sealed=sealed)
        return plaintext

    def split(self):
        return hkdf(self.suite.hash_name, self.ck, b"", 2)


# 5.1 to 5.5 The handshake

def prologue(initiation_header):
    return b"underpass v1 handshake" + initiation_header


def timestamp(seconds, nanoseconds):
    return struct.pack(">QI", 2**62 + 10 + seconds, nanoseconds)


def parameters(lanes, features):
    return bytes([lanes, features, 0, 0, 0, 0, 0, 0])


def read_parameters(parameters):
    if not 1 <= parameters[0] <= MAX_LANES:
        raise Refused("a wrong number of lanes")
    return parameters[0], parameters[1]


def make_psk(suite, preshared_key, shared_secret, response_header, ciphertext):
    return suite.hash(b"underpass v1 psk" + preshared_key + shared_secret + suite.hash(response_header + ciphertext))


class SentInitiation:
    """What an initiator keeps until the response. `message` has no MACs yet."""

    def __init__(self, suite, private, responder_public, index, stamp, lanes, ephemeral, ml_kem_seed, features=0):
        self.suite, self.private, self.ephemeral = suite, private, ephemeral
        header = struct.pack("<BBBBI", INITIATION, VERSION, suite.byte, 0, index)
        encapsulation_key, self.decapsulation_key = primitives.ml_kem_keygen(ml_kem_seed[:32], ml_kem_seed[32:])
        self.index, self.noise = index, Noise(suite, prologue(header), responder_public)
        public = x25519_public(ephemeral)
        self.noise.ephemeral(public)
        self.noise.dh("es", ephemeral, responder_public)
        static = self.noise.seal("s", x25519_public(private))
        self.noise.dh("ss", private, responder_public)
        payload = self.noise.seal("payload", stamp + parameters(lanes, features) + encapsulation_key)
        self.message = header + public + static + payload

    def consume(self, response, preshared_key):
        """Our key, the responder's key and its lanes. On failure the initiation stays answerable."""
        noise, before = self.noise, (self.noise.h, self.noise.ck, self.noise.k, self.noise.n, len(self.noise.trace))
        try:
            ciphertext, ephemeral = response[12:1100], response[1100:1132]
            self.shared_secret = primitives.ml_kem_decapsulate(self.decapsulation_key, ciphertext)
            noise.ephemeral(ephemeral)
            noise.dh("ee", self.ephemeral, ephemeral)
            noise.dh("se", self.private, ephemeral)
            noise.psk(make_psk(self.suite, preshared_key, self.shared_secret, response[:12], ciphertext))
            lanes, self.remote_features = read_parameters(noise.open("payload", response[1132:1156]))
            return (*noise.split(), lanes)
        except Refused:
            noise.h, noise.ck, noise.k, noise.n = before[:4]
            del noise.trace[before[4]:]
            raise


class ReceivedInitiation:
    def __init__(self, suite, private, message):
        self.suite, self.index = suite, struct.unpack_from("<I", message, 4)[0]
        self.noise = noise = Noise(suite, prologue(message[:8]), x25519_public(private))
        self.ephemeral = message[8:40]
        noise.ephemeral(self.ephemeral)
        noise.dh("es", private, self.ephemeral)
        self.static = noise.open("s", message[40:88])
        noise.dh("ss", private, self.static)
        payload = noise.open("payload", message[88:1308])
        self.timestamp, self.encapsulation_key = payload[:12], payload[20:]
        self.lanes, self.features = read_parameters(payload[12:20])

    def respond(self, preshared_key, index, lanes, ephemeral, ml_kem_message, features=0):
        """The initiator's key, our key, and the response without MACs."""
        noise, suite = self.noise, self.suite
        try:
            self.shared_secret, ciphertext = primitives.ml_kem_encapsulate(self.encapsulation_key, ml_kem_message)
        except ValueError as error:
            raise Refused(str(error)) from None
        header = struct.pack("<BBBBII", RESPONSE, VERSION, suite.byte, 0, index, self.index)
        public = x25519_public(ephemeral)
        noise.ephemeral(public)
        noise.dh("ee", ephemeral, self.ephemeral)
        noise.dh("se", ephemeral, self.static)
        noise.psk(make_psk(suite, preshared_key, self.shared_secret, header, ciphertext))
        payload = noise.seal("payload", parameters(lanes, features))
        return (*noise.split(), header + ciphertext + public + payload)


# 6. MACs and cookies

def mac1_key(receiver):
    return hashlib.blake2s(b"underpass v1 mac1" + receiver).digest()


def cookie_key(receiver):
    return hashlib.blake2s(b"underpass v1 cookie" + receiver).digest()


def with_macs(message, receiver, cookie):
    message += blake2s_mac(mac1_key(receiver), message)
    return message + (blake2s_mac(cookie, message) if cookie else bytes(16))


def mac1_is_right(message, receiver):
    return hmac.compare_digest(blake2s_mac(mac1_key(receiver), message[:-32]), message[-32:-16])


def mac2_is_right(message, cookie):
    return hmac.compare_digest(blake2s_mac(cookie, message[:-16]), message[-16:])


def make_cookie(secret, address, port):
    return blake2s_mac(secret, address + struct.pack("<H", port))


def cookie_reply(message, receiver, cookie, nonce):
    cipher, short_nonce = primitives.xchacha20poly1305(cookie_key(receiver), nonce)
    sealed = cipher.seal(short_nonce, message[-32:-16], cookie)
    return struct.pack("<BBHI", COOKIE_REPLY, VERSION, 0, struct.unpack_from("<I", message, 4)[0]) + nonce + sealed


def open_cookie(reply, receiver, mac1):
    cipher, short_nonce = primitives.xchacha20poly1305(cookie_key(receiver), reply[8:32])
    try:
        return cipher.open(short_nonce, mac1, reply[32:])
    except InvalidTag:
        raise Refused("a cookie reply that does not decrypt") from None


# 7. Transport data

def transport_header(lane, index, counter):
    return struct.pack("<BBI", TRANSPORT, lane, index) + counter.to_bytes(6, "little")


def seal_transport(suite, key, lane, index, counter, plaintext):
    header = transport_header(lane, index, counter)
    return header + suite.seal(key, lane * 2**48 + counter, header, plaintext)


class ReplayWindow:
    def __init__(self):
        self.next, self.accepted = 0, set()

    def check(self, counter):
        if counter < self.next and (self.next - counter > REPLAY_WINDOW or counter in self.accepted):
            raise Refused("a replay")

    def accept(self, counter):
        """Whether it is the newest."""
        newest = counter >= self.next
        self.accepted.add(counter)
        self.next = max(self.next, counter + 1)
        self.accepted = {known for known in self.accepted if self.next - known <= REPLAY_WINDOW}
        return newest


class Session:
    def __init__(self, now, suite, is_initiator, keys, indices, lanes, remote_features):
        self.suite, self.is_initiator, self.created_at = suite, is_initiator, now
        self.send_key, self.receive_key = keys if is_initiator else reversed(keys)
        self.local_index, self.remote_index = indices
        self.counters, self.sent_bytes = [0] * lanes[0], 0
        self.windows = [ReplayWindow() for _ in range(lanes[1])]
        # 12.1: where the initiator's lanes but the first come from, if we follow their paths, and when that was heard
        self.follows_paths = not is_initiator and lanes[1] > 1 and bool(remote_features & LANE_PATHS)
        self.paths = {}
        # Where they were seen without having proven that they receive there
        self.seen = {}

    def is_expired(self, now):
        return now - self.created_at >= REJECT_AFTER_TIME

    def seal(self, now, lane, plaintext):
        """The datagram, and whether a successor is to be asked for."""
        if self.is_expired(now) or sum(self.counters) >= REJECT_AFTER_MESSAGES or self.sent_bytes >= REJECT_AFTER_BYTES:
            raise Refused("the session has ended")
        counter = self.counters[lane]
        self.counters[lane] += 1
        datagram = seal_transport(self.suite, self.send_key, lane, self.remote_index, counter, plaintext)
        self.sent_bytes += len(datagram)
        old = self.is_initiator and now - self.created_at >= REKEY_AFTER_TIME - REKEY_JITTER
        used = sum(self.counters) >= REKEY_AFTER_MESSAGES or self.sent_bytes >= REKEY_AFTER_BYTES
        return datagram, old or used

    def open(self, now, datagram):
        """The plaintext, lane and counter, and whether the counter is the newest of its lane."""
        lane, counter = datagram[1], int.from_bytes(datagram[6:12], "little")
        if self.is_expired(now) or counter >= REJECT_AFTER_MESSAGES:
            raise Refused("the session has ended")
        if lane >= len(self.windows):
            raise Refused("an unknown lane")
        self.windows[lane].check(counter)
        try:
            number = lane * 2**48 + counter
            plaintext = self.suite.open(self.receive_key, number, datagram[:12], datagram[12:])
        except InvalidTag:
            raise Refused("transport data that does not verify") from None
        return plaintext, lane, counter, self.windows[lane].accept(counter)


# 8, 9. Frames

def frame(kind, flags, body):
    return struct.pack("<BBH", kind, flags, len(body)) + body


def control_frame(kind, token=b""):
    return frame(CONTROL, 0, bytes([kind]) + token)


def read_frames(plaintext):
    """Yields packets as (PACKET, flags, packet) and control frames as (CONTROL, type, rest)."""
    while len(plaintext) >= 4:
        kind, flags, length = struct.unpack_from("<BBH", plaintext)
        body, plaintext = plaintext[4:4 + length], plaintext[4 + length:]
        if kind == PADDING or len(body) < length:
            return
        if kind == PACKET and flags & ~(CHECKSUM_PARTIAL | CONTINUES) == 0:
            yield PACKET, flags, body
        if kind == CONTROL and body and not (body[0] in (PING, PONG, PROBE) and length < 9):
            yield CONTROL, body[0], body[1:]


class IpPacket:
    """8.1: raises Refused for what is not one whole packet."""

    def __init__(self, data):
        version = data[0] >> 4 if data else 0
        if version == 4 and len(data) >= 20:
            self.header_len, total = (data[0] & 15) * 4, int.from_bytes(data[2:4], "big")
            self.source, self.destination, self.protocol = data[12:16], data[16:20], data[9]
            self.is_fragment = int.from_bytes(data[6:8], "big") & 0x3FFF != 0
        elif version == 6 and len(data) >= 40:
            self.header_len, total = 40, int.from_bytes(data[4:6], "big") + 40
            self.source, self.destination, self.protocol = data[8:24], data[24:40], data[6]
            self.is_fragment = False
        else:
            raise Refused("not an IP packet")
        if total != len(data) or not 20 <= self.header_len <= total:
            raise Refused("lengths that disagree")
        self.data, self.version = data, version

    def transport(self):
        """Protocol and lengths of the headers up to and with TCP's or UDP's, or None."""
        header = self.data[self.header_len:]
        if self.is_fragment:
            return None
        if self.protocol == 17 and len(header) >= 8:
            return 17, self.header_len, self.header_len + 8
        if self.protocol == 6 and len(header) >= 20 and 20 <= header[12] // 16 * 4 <= len(header):
            return 6, self.header_len, self.header_len + header[12] // 16 * 4
        return None

    def with_checksum(self):
        """The packet with its TCP or UDP checksum computed."""
        protocol, start, _ = self.transport()
        at = start + (16 if protocol == 6 else 6)
        data = bytearray(self.data)
        data[at:at + 2] = bytes(2)
        segment = bytes(data[start:])
        pseudo_header = self.source + self.destination + struct.pack(">II", len(segment), protocol)
        checksum = internet_checksum(pseudo_header + segment)
        data[at:at + 2] = (checksum or 0xFFFF if protocol == 17 else checksum).to_bytes(2, "big")
        return bytes(data)


def internet_checksum(data):
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


# 8.2 Trains

CWR, PSH, FIN = 0x80, 0x08, 0x01


class Train:
    """Packets that were cut from one superpacket, first to last; rebuilt when it is taken."""

    def __init__(self, packet):
        self.packets = [packet]

    def payload(self, packet):
        return packet.data[packet.transport()[2]:]

    def append(self, packet):
        """Whether `packet` belongs to it."""
        first, last = self.packets[0], self.packets[-1]
        if first.transport() is None or packet.transport() != first.transport() or packet.version != first.version:
            return False
        payload, size = self.payload(packet), len(self.payload(first))
        total = first.transport()[2] + sum(len(self.payload(part)) for part in self.packets) + len(payload)
        if not 1 <= len(payload) <= size or len(self.payload(last)) < size or total > 65535:
            return False
        if self.invariant(packet) != self.invariant(first) or not self.is_next_tcp(packet):
            return False
        if first.transport()[0] == 17 and not all(self.udp_length_is_right(part) for part in (first, packet)):
            return False
        self.packets.append(packet)
        return True

    @staticmethod
    def udp_length_is_right(packet):
        start = packet.transport()[1]
        return int.from_bytes(packet.data[start + 4:start + 6], "big") == len(packet.data) - start

    def is_next_tcp(self, packet):
        protocol, start, _ = packet.transport()
        if protocol != 6:
            return True
        first, last = self.packets[0], self.packets[-1]
        sequence = lambda part: int.from_bytes(part.data[start + 4:start + 8], "big")
        sent = sum(len(self.payload(part)) for part in self.packets)
        flags, earlier = packet.data[start + 13], last.data[start + 13]
        fits = flags & CWR == 0 and earlier & (FIN | PSH) == 0
        return fits and sequence(packet) == (sequence(first) + sent) % 2**32

    @staticmethod
    def invariant(packet):
        """The headers without what cutting changes."""
        protocol, start, end = packet.transport()
        header = bytearray(packet.data[:end])
        changed = [2, 3, 4, 5, 10, 11] if packet.version == 4 else [4, 5]
        changed += [start + at for at in ((4, 5, 6, 7, 16, 17) if protocol == 6 else (4, 5, 6, 7))]
        for at in changed:
            header[at] = 0
        if protocol == 6:
            header[start + 13] &= ~(CWR | PSH | FIN)
        return bytes(header)

    def superpacket(self):
        """The one packet that the packets were, with its checksums computed."""
        first, last = self.packets[0], self.packets[-1]
        protocol, start, end = first.transport()
        data = bytearray(first.data[:end] + b"".join(self.payload(packet) for packet in self.packets))
        if protocol == 6:
            data[start + 13] |= last.data[start + 13] & (FIN | PSH)
        else:
            data[start + 4:start + 6] = (len(data) - start).to_bytes(2, "big")
        if first.version == 4:
            data[2:4], data[10:12] = len(data).to_bytes(2, "big"), bytes(2)
            data[10:12] = internet_checksum(bytes(data[:start])).to_bytes(2, "big")
        else:
            data[4:6] = (len(data) - 40).to_bytes(2, "big")
        return IpPacket(bytes(data)).with_checksum()


# 10 to 14. The peer

class Attempt:
    def __init__(self, now):
        self.started_at, self.initiations, self.pending, self.retry_at = now, 0, None, now


class Peer:
    """One peer that knows one other. What it wants to say is in `datagrams` and `packets`, emptied by the caller."""

    def __init__(self, config):
        self.private, self.remote = config["private_key"], config["public_key"]
        self.public = x25519_public(self.private)
        self.preshared_key = config.get("preshared_key") or bytes(32)
        self.suite, self.lanes = SUITES[config.get("suite", 1)], config.get("lanes", 1)
        self.endpoint, self.unix_time = config.get("endpoint"), config["unix_time"]
        self.persistent_keepalive = config.get("persistent_keepalive")
        self.remote_sources = config["remote_sources"]
        self.random = random.Random(config["seed"])
        self.under_load = False
        self.datagrams, self.packets, self.refused, self.events = [], [], [], []
        self.current = self.next = self.attempt = self.rekey = None
        self.retired, self.staged = [], []
        self.last_initiation_at = self.last_accepted_at = None
        self.last_timestamp, self.newest_timestamp = bytes(12), bytes(12)
        self.cookie, self.last_mac1 = None, None
        self.cookie_secret = None
        self.unanswered_since = self.last_active = None
        self.train, self.train_position = None, None
        self.pings = {}
        # 12: where this peer was told, or has learnt, that the other receives; what was asked where; the answered address.
        self.proven, self.questions, self.answered = {self.endpoint}, {}, None
        self.remote_drains = False

    # Inputs

    def handle_datagram(self, now, source, datagram):
        kind = datagram[0] if datagram else 0
        lengths = {INITIATION: INITIATION_LEN, RESPONSE: RESPONSE_LEN, COOKIE_REPLY: COOKIE_REPLY_LEN}
        try:
            if kind == TRANSPORT and len(datagram) >= MIN_TRANSPORT_LEN:
                return self.handle_transport(now, source, datagram)
            if lengths.get(kind) != len(datagram) or datagram[1] != VERSION:
                raise Refused("malformed")
            if kind == COOKIE_REPLY:
                return self.handle_cookie_reply(now, datagram)
            handle = self.handle_initiation if kind == INITIATION else self.handle_response
            return handle(now, source, datagram)
        except Refused as reason:
            self.refused.append(str(reason))

    def send_packet(self, now, packet, lane=0, flags=0):
        if self.usable(now):
            self.send_frames(now, frame(PACKET, flags, packet), lane)
        else:
            self.staged = self.staged[-127:] + [(packet, flags)]
            self.begin_attempt(now)

    def ping(self, now):
        token = self.random.randbytes(8)
        self.pings[token] = now
        self.send_frames(now, control_frame(PING, token))

    def shutdown(self, now):
        self.send_frames(now, control_frame(GOODBYE))
        self.current = self.next = self.attempt = None
        self.retired = []

    def handle_timeout(self, now):
        self.forget_sessions(lambda session: session.is_expired(now))
        if self.attempt and now >= self.attempt.retry_at:
            if now - self.attempt.started_at >= GIVE_UP_AFTER and not self.persistent_keepalive:
                self.attempt, self.staged = None, []
                self.events.append("gave up")
            else:
                self.send_initiation(now)
        if self.rekey and now >= self.rekey[1]:
            if self.rekey[0] is self.current:
                self.begin_attempt(now)
            self.rekey = None
        if self.persistent_keepalive:
            if not self.usable(now):
                self.begin_attempt(now)
            elif now >= self.last_active + self.persistent_keepalive:
                self.send_frames(now, bytes(PROBE_DATAGRAM_LEN - MIN_TRANSPORT_LEN))
        if self.unanswered_since is not None and now >= self.unanswered_since + PATIENCE:
            self.unanswered_since = None
            if self.usable(now):
                self.begin_attempt(now)

    # 5.6 to 5.8, 6

    def begin_attempt(self, now):
        if self.attempt or not self.endpoint:
            return
        self.attempt = Attempt(now)
        if self.last_initiation_at is None or now >= self.last_initiation_at + MIN_INITIATION_INTERVAL:
            self.send_initiation(now)
        else:
            self.attempt.retry_at = self.last_initiation_at + MIN_INITIATION_INTERVAL

    def send_initiation(self, now):
        attempt = self.attempt
        stamp = timestamp(int(self.unix_time + now), int((self.unix_time + now) % 1 * 10**9))
        if stamp <= self.newest_timestamp:
            stamp = (int.from_bytes(self.newest_timestamp, "big") + 1).to_bytes(12, "big")
        self.newest_timestamp = stamp
        attempt.pending = SentInitiation(
            self.suite, self.private, self.remote, self.new_index(), stamp, self.lanes,
            self.random.randbytes(32), self.random.randbytes(64), LANE_PATHS,
        )
        interval = RETRY_INTERVALS[min(attempt.initiations, len(RETRY_INTERVALS) - 1)]
        attempt.retry_at = now + interval + self.random.uniform(0, min(RETRY_JITTER, interval / 3))
        attempt.initiations += 1
        self.last_initiation_at = now
        self.send_handshake(now, self.endpoint, attempt.pending.message)

    def send_handshake(self, now, destination, message):
        fresh = self.cookie is not None and now - self.cookie[1] < COOKIE_LIFETIME
        message = with_macs(message, self.remote, self.cookie[0] if fresh else None)
        self.last_mac1 = message[-32:-16]
        self.datagrams.append((destination, message))
        self.on_sent(now, False)

    def handle_initiation(self, now, source, message):
        if not mac1_is_right(message, self.public):
            raise Refused("mac1")
        self.demand_cookie(now, source, message)
        if message[2] not in SUITES:
            raise Refused("an unknown suite")
        received = ReceivedInitiation(SUITES[message[2]], self.private, message)
        if received.static != self.remote:
            raise Refused("a stranger")
        if received.timestamp <= self.last_timestamp:
            raise Refused("a replayed initiation")
        if self.last_accepted_at is not None and now - self.last_accepted_at < MIN_ACCEPTED_INITIATION_INTERVAL:
            raise Refused("too soon")
        index = self.new_index()
        *keys, response = received.respond(
            self.preshared_key, index, self.lanes, self.random.randbytes(32), self.random.randbytes(32), LANE_PATHS
        )
        self.last_timestamp, self.last_accepted_at = received.timestamp, now
        self.on_received(now)
        self.send_handshake(now, source, response)
        self.answered = source
        self.next = Session(
            now, received.suite, False, keys, (index, received.index), (self.lanes, received.lanes), received.features
        )

    def handle_response(self, now, source, message):
        sender, receiver = struct.unpack_from("<II", message, 4)
        pending = self.attempt and self.attempt.pending
        if not pending or pending.index != receiver:
            raise Refused("an answer to nothing")
        if not mac1_is_right(message, self.public):
            raise Refused("mac1")
        self.demand_cookie(now, source, message)
        if message[2] != pending.suite.byte:
            raise Refused("another suite")
        *keys, lanes = pending.consume(message, self.preshared_key)
        self.on_received(now)
        self.attempt = None
        lanes = self.lanes, lanes
        session = Session(now, pending.suite, True, keys, (receiver, sender), lanes, pending.remote_features)
        if self.next and not (self.is_simultaneous(self.next, session) and self.remote > self.public):
            self.retire(self.next)
            self.next = None
        self.retire(self.current)
        self.current = session
        self.on_seen(now, source, len(message))
        self.events.append("initiated")
        self.ping(now)
        self.send_staged(now)

    def handle_cookie_reply(self, now, message):
        index = struct.unpack_from("<I", message, 4)[0]
        awaited = [self.attempt.pending.index] if self.attempt and self.attempt.pending else []
        awaited += [self.next.local_index] if self.next else []
        if index not in awaited or not self.last_mac1:
            raise Refused("an answer to nothing")
        self.cookie = open_cookie(message, self.remote, self.last_mac1), now
        self.last_mac1 = None
        self.events.append("cookie")

    def demand_cookie(self, now, source, message):
        """13: this peer demands one of everybody while it is told to be under load."""
        if not self.under_load:
            return
        if self.cookie_secret is None or now - self.cookie_secret[1] >= COOKIE_SECRET_LIFETIME:
            self.cookie_secret = self.random.randbytes(32), now
        cookie = make_cookie(self.cookie_secret[0], source.encode(), 0)
        if not mac2_is_right(message, cookie):
            self.datagrams.append((source, cookie_reply(message, self.public, cookie, self.random.randbytes(24))))
            raise Refused("a cookie is demanded")

    def new_index(self):
        return self.random.getrandbits(32)

    # 7, 10, 12

    def handle_transport(self, now, source, datagram):
        index = struct.unpack_from("<I", datagram, 2)[0]
        session = next((session for session in self.sessions() if session.local_index == index), None)
        if session is None:
            raise Refused("an unknown session")
        plaintext, lane, counter, newest = session.open(now, datagram)
        if session is self.next:
            self.confirm(now)
        first = plaintext[:1] + plaintext[4:5]
        newest &= first not in (bytes([CONTROL, PROBE]), bytes([CONTROL, PONG])) and session is self.current
        if newest and lane and session.follows_paths:
            self.on_lane_seen(now, session, lane, source, len(datagram), first[:1] == bytes([PACKET]))
        elif newest:
            self.on_seen(now, source, len(datagram))
        self.on_received(now)
        if session is self.current and session.is_initiator and now - session.created_at >= REKEY_AFTER_TIME_RECEIVING:
            self.rekey_soon(now)
        position = (session.local_index, lane, counter)
        answered = False
        for order, (kind, number, body) in enumerate(read_frames(plaintext)):
            if kind == PACKET:
                self.handle_packet(number, body, position)
            elif number not in (PING, PROBE):
                self.handle_control(now, session, number, body)
            elif not answered and (number == PING or order == 0):
                # One answer for each datagram, and to a probe only where nothing else of it can be answered there.
                answered = True
                self.answer(now, session, lane, source, (number, body), len(datagram))

    def on_seen(self, now, source, length):
        """12: the endpoint moves to where the other has proven that it receives, and else is asked for."""
        if source in self.proven or source == self.endpoint:
            self.endpoint = source
        elif length >= PROBE_DATAGRAM_LEN:
            self.send_frames(now, self.question(source, None), destination=source)

    def on_lane_seen(self, now, session, lane, source, length, is_data):
        """12.1: the same of a lane; what begins with a ping is answered there by the pong."""
        if source == self.endpoint:
            session.paths.pop(lane, None)
            session.seen.pop(lane, None)
        elif session.paths.get(lane, (None, 0))[0] == source:
            session.paths[lane] = source, now
        elif is_data and length >= PROBE_DATAGRAM_LEN:
            self.send_frames(now, self.question(source, lane), destination=source)
        else:
            session.seen[lane] = source

    def question(self, source, lane):
        token = self.random.randbytes(8)
        self.questions[token] = source, lane
        return control_frame(PROBE, token)

    def confirm(self, now):
        confirmed, self.next = self.next, None
        self.proven.add(self.answered)
        ours_wins = (
            self.current and self.current.is_initiator and self.is_simultaneous(self.current, confirmed)
            and confirmed.created_at <= self.current.created_at and self.public > self.remote
        )
        if ours_wins:
            self.retire(confirmed)
        else:
            self.retire(self.current)
            self.current = confirmed
        self.attempt = None
        self.events.append("confirmed")
        self.send_staged(now)

    @staticmethod
    def is_simultaneous(one, other):
        apart = abs(one.created_at - other.created_at)
        return one.is_initiator != other.is_initiator and apart < SIMULTANEOUS_INTERVAL

    def sessions(self):
        return [session for session in (self.current, self.next, *self.retired) if session]

    def retire(self, session):
        if session:
            self.retired = sorted([session, *self.retired], key=lambda session: -session.created_at)[:3]

    def forget_sessions(self, ends):
        self.current = None if self.current and ends(self.current) else self.current
        self.next = None if self.next and ends(self.next) else self.next
        self.retired = [session for session in self.retired if not ends(session)]

    def usable(self, now):
        return self.current and not self.current.is_expired(now)

    def send_frames(self, now, frames, lane=0, destination=None):
        if not self.usable(now):
            return
        datagram, rekey_due = self.current.seal(now, lane, frames)
        self.datagrams.append((destination or self.endpoint_of(now, lane), datagram))
        self.on_sent(now, frames[:1] == bytes([PACKET]))
        if rekey_due:
            self.rekey_soon(now)

    def endpoint_of(self, now, lane):
        endpoint, heard_at = self.current.paths.get(lane % len(self.current.windows), (None, 0))
        return endpoint if endpoint and now < heard_at + LANE_PATH_LIFETIME else self.endpoint

    def rekey_soon(self, now):
        """An attempt for the successor of the current session is due."""
        if not self.rekey or self.rekey[0] is not self.current:
            latest = self.current.created_at + REKEY_AFTER_TIME_RECEIVING
            wait = max(0, min(REKEY_JITTER, latest - now))
            self.rekey = self.current, now + self.random.uniform(0, wait)

    def send_staged(self, now):
        staged, self.staged = self.staged, []
        for packet, flags in staged:
            self.send_packet(now, packet, 0, flags)

    # 8, 9

    def handle_packet(self, flags, body, position):
        follows, self.train_position = self.follows(position), None
        try:
            packet = IpPacket(body)
            if packet.source not in self.remote_sources:
                raise Refused("a source that is not the peer's")
            if flags & CHECKSUM_PARTIAL and not packet.transport():
                raise Refused("a partial checksum without a transport header")
        except Refused as reason:
            self.refused.append(str(reason))
            return
        joins = follows and flags == CHECKSUM_PARTIAL | CONTINUES and self.train and self.train.append(packet)
        if not joins:
            self.deliver_train()
            if flags & CHECKSUM_PARTIAL:
                self.train = Train(packet)
            else:
                self.packets.append((body, 1))
        self.train_position = position

    def follows(self, position):
        """Whether the packet frame before is the last one that was joined."""
        if self.train_position is None:
            return False
        session, lane, counter = position
        return self.train_position in (position, (session, lane, counter - 1))

    def deliver_train(self):
        """Called by the caller when no more datagrams wait."""
        if self.train:
            packets = self.train.packets
            whole = packets[0].with_checksum() if len(packets) == 1 else self.train.superpacket()
            self.packets.append((whole, len(packets)))
        self.train = self.train_position = None

    def answer(self, now, session, lane, source, asked, length):
        kind, token = asked
        pong = control_frame(PONG, token[:8])
        if kind == PROBE:
            self.send_frames(now, pong, destination=source)
        elif not (lane and session.follows_paths):
            self.send_frames(now, pong)
        else:
            asks = session.seen.get(lane) == source and length >= PONG_AND_PROBE_LEN
            self.send_frames(now, (self.question(source, lane) if asks else b"") + pong, destination=source)

    def handle_control(self, now, session, kind, rest):
        if kind == PONG and rest[:8] in self.questions:
            source, lane = self.questions.pop(rest[:8])
            if lane is None:
                self.proven.add(source)
                self.endpoint = source
            elif self.current:
                self.current.paths[lane] = source, now
        elif kind == PONG and self.pings.pop(rest[:8], None) is not None:
            self.events.append("pong")
        elif kind == DRAINING:
            self.remote_drains = rest[:1] != b"\0"
        elif kind == GOODBYE:
            self.forget_sessions(lambda other: other.created_at <= session.created_at)
            self.events.append("goodbye")

    # 11

    def on_sent(self, now, is_data):
        self.last_active = now
        if is_data and self.unanswered_since is None:
            self.unanswered_since = now

    def on_received(self, now):
        self.unanswered_since, self.last_active = None, now
