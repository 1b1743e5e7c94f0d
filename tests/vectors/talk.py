"""A peer on standard input and output, for a test that carries its datagrams and its time.

One JSON object per line in, one per line out. The first line in is the configuration.
"""

import json
import sys

from peer import Peer

BYTES = ("private_key", "public_key", "preshared_key")


def main():
    config = json.loads(sys.stdin.readline())
    config.update({key: bytes.fromhex(config[key]) for key in BYTES if config.get(key)})
    config["remote_sources"] = [bytes.fromhex(source) for source in config["remote_sources"]]
    peer = Peer(config)
    print(json.dumps({"public_key": peer.public.hex()}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        now = command["now"]
        peer.handle_timeout(now)
        match command["do"]:
            case "datagrams":
                for source, datagram in command["datagrams"]:
                    peer.handle_datagram(now, source, bytes.fromhex(datagram))
                peer.deliver_train()
            case "packet":
                peer.send_packet(now, bytes.fromhex(command["packet"]), command["lane"], command["flags"])
            case "frames":
                peer.send_frames(now, bytes.fromhex(command["frames"]), command["lane"])
            case "ping":
                peer.ping(now)
            case "under_load":
                peer.under_load = command["under_load"]
            case "shutdown":
                peer.shutdown(now)
        answer = {
            "datagrams": [(to, datagram.hex()) for to, datagram in peer.datagrams],
            "packets": [(packet.hex(), joined) for packet, joined in peer.packets],
            "refused": peer.refused,
            "events": peer.events,
            "has_session": bool(peer.usable(now)),
            "endpoint": peer.endpoint,
        }
        peer.datagrams, peer.packets, peer.refused, peer.events = [], [], [], []
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
