//! Every number of the protocol's behaviour over time. `docs/protocol.md` §Constants is the normative list.

use std::time::Duration;

/// A session asks for its successor after this many datagrams sent, all lanes together. AES-GCM with packets of up to
/// 2^11 bytes keeps its confidentiality advantage under 2^-57 up to 2^28 packets (RFC 9001 §B.1.1).
pub const REKEY_AFTER_MESSAGES: u64 = 1 << 28;
/// A session seals and opens nothing beyond this many datagrams, all lanes together: room for a slow rekey.
pub const REJECT_AFTER_MESSAGES: u64 = 1 << 29;
/// The same by bytes sent, for datagrams longer than 2^11 bytes: 2^35 blocks of 16 bytes, the bound behind the other.
pub const REKEY_AFTER_BYTES: u64 = 1 << 39;
/// The same by bytes sent, for the end.
pub const REJECT_AFTER_BYTES: u64 = 1 << 40;
/// The initiator of a session that sends all the time has asked for its successor at this age.
pub const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// Up to so long after it is due, at random, a successor is asked for, so that a proxy's many peers do not rekey in step.
pub const REKEY_JITTER: Duration = Duration::from_secs(10);
/// At this age a session seals and opens nothing more, and its keys are zeroed.
pub const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
/// An initiator that only receives asks for a new session at this age: time for some retries before the end.
pub const REKEY_AFTER_TIME_RECEIVING: Duration = Duration::from_secs(165);

/// A worker that finds a session due for rekey says so again after this long.
pub const REKEY_REQUEST_INTERVAL: Duration = Duration::from_secs(5);

/// Waits before the second, third, fourth, fifth initiation of one attempt; later ones wait as long as the last entry. The
/// first is short, because the message that a lost datagram costs a second for is often the one that a restart waits for.
pub const RETRY_INTERVALS: [Duration; 5] = [
    Duration::from_millis(250),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(5),
];
/// Up to this much, and not more than a third, is added to each wait, at random.
pub const RETRY_JITTER: Duration = Duration::from_millis(333);
/// An attempt begins at least so long after the last initiation of the one before.
pub const MIN_INITIATION_INTERVAL: Duration = Duration::from_secs(1);
/// An attempt ends after this long without an answer, unless the peer has a persistent keepalive.
pub const GIVE_UP_AFTER: Duration = Duration::from_secs(90);
/// A responder takes at most one initiation of a peer in this interval.
pub const MIN_ACCEPTED_INITIATION_INTERVAL: Duration = Duration::from_millis(20);
/// A wall clock that is off by less from what it was believed to say has not been set.
pub const CLOCK_STEP: Duration = Duration::from_secs(1);
/// A peer whose initiations are refused for their timestamps is initiated to, at most this often and only if nothing was
/// heard from it for as long.
pub const CALL_BACK_INTERVAL: Duration = Duration::from_secs(1);
/// The owner is told of refused initiations of one peer, and of all strangers together, at most this often.
pub const REFUSAL_TOLD_INTERVAL: Duration = Duration::from_secs(1);
/// Two sessions of opposite roles made within this interval came from simultaneous initiations.
pub const SIMULTANEOUS_INTERVAL: Duration = Duration::from_secs(10);

/// Links and paths of lanes are watched for this long after the last data.
pub const PING_AFTER_DATA: Duration = Duration::from_secs(3);
/// A link that is watched is pinged this often.
pub const LIVENESS_INTERVAL: Duration = Duration::from_millis(200);
/// A link that is only kept connected is pinged when nothing was heard for so long.
pub const CONNECTED_INTERVAL: Duration = Duration::from_secs(1);
/// All links together are pinged at most this often: with more of them, each more rarely. A ping and its pong cost about
/// 10 us of a core (measured, `docs/performance.md`).
pub const LIVENESS_PINGS_PER_SECOND: u32 = 2_000;
/// Once a ping has found no answer, and nothing else was heard, the next follow after so long.
pub const LIVENESS_RETRY_INTERVAL: Duration = Duration::from_millis(50);
/// After so many pings in a row, with nothing heard, the peer is dead. At a loss of 5 % each way that happens by chance once
/// in 120 million pings.
pub const LIVENESS_PINGS_UNANSWERED: u32 = 8;
/// An answer is missed after a round trip and four times its variation, but not sooner than this.
pub const LIVENESS_MIN_PATIENCE: Duration = Duration::from_millis(50);
/// Nor later, and after so long while no round trip is known.
pub const LIVENESS_MAX_PATIENCE: Duration = Duration::from_millis(500);
/// A peer that is dead while its session lasts is pinged this often.
pub const LIVENESS_DEAD_INTERVAL: Duration = Duration::from_secs(1);
/// So many pongs bring a dead peer back to life: a link that answers now and then is not up.
pub const LIVENESS_PONGS_TO_REVIVE: u32 = 3;
/// A ping that was not answered for this long, two of the longest patiences, is lost.
pub const PING_LOST_AFTER: Duration = Duration::from_secs(1);
/// A link that loses this share of its pings is degraded,
pub const DEGRADED_ABOVE_LOSS: f64 = 0.25;
/// until it loses no more than this.
pub const DEGRADED_UNTIL_LOSS: f64 = 0.10;

/// After so many pings in a row, with nothing heard, the peer's other endpoints are probed.
pub const ALTERNATIVE_AFTER_PINGS: u32 = 3;
/// An initiation that was not answered goes to the peer's other endpoints after this long (RFC 8305 §5).
pub const ALTERNATIVE_DELAY: Duration = Duration::from_millis(250);
/// A peer's other endpoints are tried in turn, one in this interval after the first two: seven of them within a second.
pub const CANDIDATE_INTERVAL: Duration = Duration::from_millis(150);
/// Of all peers together at most so many are tried: with more peers, each more rarely.
pub const CANDIDATES_PER_SECOND: u32 = 1_000;
/// Endpoints that come before the one in use are probed this often.
pub const PREFERRED_PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// One of them is used again after it has answered so often in a row.
pub const PREFERRED_PONGS: u32 = 5;
/// An unanswered attempt for a watched link is repeated at the second of `RETRY_INTERVALS` for this long, then like others.
pub const EAGER_RETRY_FOR: Duration = Duration::from_secs(60);
/// While nobody answers the newest initiation for a watched link, the same is sent again this often, and up to a third more. A
/// peer whose queue a flood keeps full gets one of so many, twice until it has seen a cookie.
pub const REPEAT_INTERVAL: Duration = Duration::from_millis(100);
/// From the beginning of an attempt on. Whoever has been given a cookie goes on for [`EAGER_RETRY_FOR`]: the peer lives, and
/// somebody floods it.
pub const REPEAT_FOR: Duration = Duration::from_secs(3);

/// While data passes, the path of each lane is tried this often: or once in a round trip, where that is longer.
pub const LANE_PING_INTERVAL: Duration = Duration::from_millis(400);
/// Pings of a lane in a row without an answer after which its path is lost, and the lane takes that of lane 0.
pub const LANE_PINGS_UNANSWERED: usize = 3;
/// Not heard of for this long, the path of a lane is forgotten: shorter than translators remember UDP.
pub const LANE_PATH_LIFETIME: Duration = Duration::from_secs(5);
/// Probes of a path that gives no answer grow apart, from [`LANE_PING_INTERVAL`] up to this.
pub const LANE_PROBE_MAX_INTERVAL: Duration = Duration::from_secs(15);

/// A path's MTU is looked for from here on, in bytes of UDP payload (RFC 8899 §5.1.2, BASE_PLPMTU).
pub const PATH_BASE_LEN: u16 = 1200;
/// Where even that is lost, datagrams are this long: what an IPv4 packet of 576 bytes holds (RFC 791 §3.1).
pub const PATH_FLOOR_LEN: u16 = 548;
/// What is found is within so many bytes of what the path carries.
pub const PATH_SEARCH_STEP: u16 = 8;
/// While data passes, a path is shown again so often that it carries what it is used for.
pub const PATH_CONFIRM_INTERVAL: Duration = Duration::from_millis(250);
/// The same for a watched link without data, and for the base where it was lost.
pub const PATH_IDLE_INTERVAL: Duration = Duration::from_secs(5);
/// All paths together are shown to carry it at most this often: with more of them, each more rarely.
pub const PATH_PROBES_PER_SECOND: u32 = 2_000;
/// Once a probe has found no answer, the next follow after so long.
pub const PATH_RETRY_INTERVAL: Duration = Duration::from_millis(50);
/// After so many probes in a row without an answer, while small datagrams are answered, the path has shrunk. At a loss of
/// 5 % each way that happens by chance once in a million times.
pub const PATH_PROBES_CONFIRMING: u32 = 6;
/// After so many, a larger size is not carried. By chance: once in ten thousand times; it is tried again.
pub const PATH_PROBES_SEARCHING: u32 = 4;
/// Larger sizes than what was found are tried this often.
pub const PATH_RAISE_INTERVAL: Duration = Duration::from_secs(30);

/// An interface's MTU that is found from the paths is no larger: what a path of 9,216 bytes carries over IPv4, the largest that
/// Ethernet switches commonly have. Beyond, fewer segments of a superpacket would be left to share a send.
pub const MTU_MOST: u16 = 9156;
/// An interface's MTU grows by no less than one part in so many: a path of 1,500 bytes carries 1,440 over IPv4, which is no reason to change 1,420.
pub const MTU_MIN_GAIN: u32 = 8;
/// An interface's MTU shrinks when no peer's path has carried it for so long.
pub const MTU_LOWER_AFTER: Duration = Duration::from_secs(60);

/// Lanes of one session and direction, at most: what an announced number may cost us in replay windows.
pub const MAX_LANES: u8 = 64;
/// Counters behind the newest of a lane that are still accepted, once each.
pub const REPLAY_WINDOW: u64 = 8192;

/// Packets that wait for a session of one peer, at most. The oldest goes first.
pub const MAX_STAGED_PACKETS: usize = 128;
/// Bytes of packets that wait for a session of one peer, at most.
pub const MAX_STAGED_BYTES: usize = 256 * 1024;

/// A cookie's secret is replaced after this long.
pub const COOKIE_SECRET_LIFETIME: Duration = Duration::from_secs(120);
/// A received cookie is used for this long: five seconds less than its secret lives.
pub const COOKIE_LIFETIME: Duration = Duration::from_secs(115);

/// Handshake messages per second and source address (IPv6: /64) that are worked on, in bursts of as many.
pub const HANDSHAKES_PER_SECOND_AND_SOURCE: u32 = 20;
/// The same for a source address that shows a valid cookie: many peers may stand behind one NAT.
pub const HANDSHAKES_PER_SECOND_AND_PROVEN_SOURCE: u32 = 200;
/// Handshake messages per second, all sources with a valid cookie together, which share them evenly. One from a stranger
/// costs two X25519 results: a sixth of a core.
pub const HANDSHAKES_PER_SECOND_PROVEN: u32 = 1_000;
/// Handshake messages per second, all sources together, above which every source must show a cookie. One handshake
/// costs 0.4 ms (measured, `docs/performance.md`): this is a fifth of a core.
pub const HANDSHAKES_PER_SECOND_UNDER_LOAD: u32 = 500;
/// A handshake message without a cookie is worked on once in so many times what one takes, at most: where that is longer than
/// usual, since others have the processor, a sixth of the time.
pub const TIMES_PER_HANDSHAKE: u32 = 6;
/// The same with a cookie: a third of the time.
pub const TIMES_PER_HANDSHAKE_PROVEN: u32 = 3;
/// A message takes no longer than this by that reckoning.
pub const MAX_HANDSHAKE_TIME: Duration = Duration::from_millis(20);
/// Source addresses remembered by the rate limiter, at most, and as many with a cookie; when full, unknown ones must show one.
pub const MAX_LIMITED_SOURCES: usize = 4096;

/// The number of moves of a peer that are looked into per second; then the newest counts.
pub const ROAMS_PER_SECOND: u32 = 10;
/// The same at once: a new session and a move may follow each other closely.
pub const ROAMS_AT_ONCE: u32 = 3;
/// The time between two looks, and between two questions whether a lane is where it seems to be.
pub const ROAM_INTERVAL: Duration = Duration::from_millis(100);
/// After the end of draining, so many pongs say so.
pub const DRAINING_PONGS: u32 = 10;
/// A peer that said it was draining is so no more after so many pongs that don't say it: it has restarted.
pub const PONGS_TO_UNDRAIN: u32 = 5;

/// Control frames of a peer that are heeded, and datagrams from elsewhere that are looked into, per second: twice what an
/// honest one needs for the paths of 64 lanes, each pinged every 400 ms and answering as often.
pub const NOTICES_PER_SECOND: u32 = 1000;
/// The same at once: more than a ping and a pong on each of 64 lanes, twice.
pub const NOTICES_AT_ONCE: u32 = 512;
/// Control frames of one datagram that are heeded, one of them a ping or a probe: all that any sender packs together.
pub const MAX_CONTROL_FRAMES: u32 = 4;
/// Frames of one datagram that bring no packet, control frames among them; the rest of a datagram with more of them is not read.
pub const MAX_WASTED_FRAMES: u32 = 16;
/// ICMP errors and resets per second that one peer's packets, or packets to it, are answered with.
pub const ANSWERS_PER_SECOND: u32 = 100;
/// The same at once.
pub const ANSWERS_AT_ONCE: u32 = 50;

/// An answer by UDP or to a ping may pass for this long after what it answers: no less than what translators must keep
/// open (RFC 4787 §4.3).
pub const FLOW_LIFETIME: Duration = Duration::from_secs(120);
/// Exchanges by UDP and pings with one peer that are remembered, at most: half a megabyte, once there are so many.
pub const MAX_FLOWS: usize = 1 << 15;
/// A TCP connection of a machine behind this one may be answered for this long after that machine's last segment: as long
/// as translators must keep one open (RFC 5382 §5).
pub const CONNECTION_LIFETIME: Duration = Duration::from_secs(2 * 3600 + 4 * 60);
/// TCP connections of machines behind this one with one peer that are remembered, at most: a megabyte once there are so many, and
/// none where there are no such machines.
pub const MAX_CONNECTIONS: usize = 1 << 16;
/// A fragment may pass for this long after the first of its packet: as long as Linux waits to put one together.
pub const FRAGMENT_LIFETIME: Duration = Duration::from_secs(30);
/// Packets in fragments of one peer that are remembered, at most.
pub const MAX_FRAGMENTED_PACKETS: usize = 1 << 10;
