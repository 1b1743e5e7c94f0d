"""Computes a transcript: reads the fixed inputs as JSON, writes them with every message and intermediate value as JSON.

    python3 transcript.py < inputs > transcript
    python3 transcript.py verify FILE...      recomputes transcripts from the inputs in them, and compares
"""

import json
import sys

import peer
from peer import SUITES, x25519_public


def as_text(value):
    """Byte strings in hexadecimal, everything else as it is."""
    if isinstance(value, (bytes, bytearray)):
        return value.hex()
    if isinstance(value, dict):
        return {key: as_text(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_text(part) for part in value]
    return value


def initiation(suite, inputs, given, cookie):
    """The record of one initiation, and the initiation itself."""
    responder = x25519_public(bytes.fromhex(inputs["responder_private_key"]))
    stamp = peer.timestamp(given["unix_seconds"], given["unix_nanoseconds"])
    sent = peer.SentInitiation(
        suite, bytes.fromhex(inputs["initiator_private_key"]), responder, given["sender_index"], stamp, given["lanes"],
        bytes.fromhex(given["ephemeral_private_key"]), bytes.fromhex(given["ml_kem_seed"]),
    )
    message = peer.with_macs(sent.message, responder, cookie)
    record = {
        "given": given,
        "timestamp": stamp,
        "prologue": peer.prologue(message[:8]),
        "noise": list(sent.noise.trace),
        "cookie": cookie or b"",
        "mac1": message[-32:-16],
        "mac2": message[-16:],
        "message": message,
    }
    return record, sent


def cookie_reply(inputs, given, message):
    responder = x25519_public(bytes.fromhex(inputs["responder_private_key"]))
    address, secret = bytes.fromhex(given["address"]), bytes.fromhex(given["secret"])
    cookie = peer.make_cookie(secret, address, given["port"])
    reply = peer.cookie_reply(message, responder, cookie, bytes.fromhex(given["nonce"]))
    assert peer.open_cookie(reply, responder, message[-32:-16]) == cookie
    return {"given": given, "cookie": cookie, "message": reply}


def response(suite, inputs, given, preshared_key, sent, message):
    """The record of the response, and the two transport keys."""
    received = peer.ReceivedInitiation(suite, bytes.fromhex(inputs["responder_private_key"]), message)
    initiator = x25519_public(bytes.fromhex(inputs["initiator_private_key"]))
    assert received.static == initiator and received.noise.trace[-1]["ck"] == sent.noise.trace[-1]["ck"]
    before = len(received.noise.trace)
    *keys, answer = received.respond(
        preshared_key, given["sender_index"], given["lanes"],
        bytes.fromhex(given["ephemeral_private_key"]), bytes.fromhex(given["ml_kem_message"]),
    )
    answer = peer.with_macs(answer, initiator, None)
    assert list(sent.consume(answer, preshared_key)) == [*keys, given["lanes"]]
    record = {
        "given": given,
        "ml_kem_shared_secret": received.shared_secret,
        "noise": received.noise.trace[before:],
        "mac1": answer[-32:-16],
        "mac2": answer[-16:],
        "message": answer,
    }
    return record, keys


def transport(suite, given, keys, indices):
    plaintext = b"".join(
        peer.frame(part["kind"], part["flags"], bytes.fromhex(part["body"])) for part in given["frames"]
    )
    plaintext += bytes(given["padding"])
    is_initiator = given["from"] == "initiator"
    key, index = (keys[0], indices[1]) if is_initiator else (keys[1], indices[0])
    number = given["lane"] * 2**48 + given["counter"]
    datagram = peer.seal_transport(suite, key, given["lane"], index, given["counter"], plaintext)
    return {
        "given": given,
        "plaintext": plaintext,
        "nonce": suite.nonce(number),
        "associated_data": datagram[:12],
        "message": datagram,
    }


def handshake(suite, inputs, given):
    preshared_key = bytes.fromhex(given["preshared_key"])
    record = {"preshared_key": given["preshared_key"], "initiations": [], "cookie_replies": []}
    cookie = None
    for number, one in enumerate(given["initiations"]):
        made, sent = initiation(suite, inputs, one, cookie)
        record["initiations"].append(made)
        if number < len(given["cookie_replies"]):
            reply = cookie_reply(inputs, given["cookie_replies"][number], made["message"])
            record["cookie_replies"].append(reply)
            cookie = reply["cookie"]
    answer, keys = response(
        suite, inputs, given["response"], preshared_key or bytes(32), sent, record["initiations"][-1]["message"]
    )
    record["response"] = answer
    record["initiator_to_responder_key"], record["responder_to_initiator_key"] = keys
    indices = sent.index, given["response"]["sender_index"]
    record["transport"] = [transport(suite, one, keys, indices) for one in given["transport"]]
    return record


def transcript(inputs):
    suite = SUITES[inputs["suite"]]
    responder = x25519_public(bytes.fromhex(inputs["responder_private_key"]))
    initiator = x25519_public(bytes.fromhex(inputs["initiator_private_key"]))
    return as_text({
        "about": "docs/protocol.md, section 18; byte strings in hexadecimal, what is \"given\" was chosen",
        "suite": inputs["suite"],
        "noise_name": suite.name.decode(),
        "initiator_private_key": inputs["initiator_private_key"],
        "initiator_public_key": initiator,
        "responder_private_key": inputs["responder_private_key"],
        "responder_public_key": responder,
        "initiator_mac1_key": peer.mac1_key(initiator),
        "initiator_cookie_key": peer.cookie_key(initiator),
        "responder_mac1_key": peer.mac1_key(responder),
        "responder_cookie_key": peer.cookie_key(responder),
        "handshakes": [handshake(suite, inputs, given) for given in inputs["handshakes"]],
    })


def inputs_of(made):
    """What was given for a transcript."""
    given = lambda records: [record["given"] for record in records]
    return {
        **{key: made[key] for key in ("suite", "initiator_private_key", "responder_private_key")},
        "handshakes": [
            {
                "preshared_key": one["preshared_key"],
                "response": one["response"]["given"],
                **{key: given(one[key]) for key in ("initiations", "cookie_replies", "transport")},
            }
            for one in made["handshakes"]
        ],
    }


def main(arguments):
    if arguments[:1] != ["verify"]:
        json.dump(transcript(json.load(sys.stdin)), sys.stdout, indent=1)
        print()
        return 0
    for name in arguments[1:]:
        with open(name) as file:
            made = json.load(file)
        if transcript(inputs_of(made)) != made:
            print(f"{name}: differs")
            return 1
        print(f"{name}: right")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
