//! Where the fuzzer of datagrams begins.

use underpass::proto::constants::GIVE_UP_AFTER;

/// One step of the datagram target's data.
fn step(mode: u8, bytes: &[u8]) -> Vec<u8> {
    [&[mode], &u16::try_from(bytes.len()).expect("a short step").to_le_bytes()[..], bytes].concat()
}

fn message(kind: u8, length: usize) -> Vec<u8> {
    let mut message = vec![0; length];
    message[..3].copy_from_slice(&[kind, 1, 1]);
    message
}

fn later(milliseconds: u16) -> Vec<u8> {
    [&[3], &milliseconds.to_le_bytes()[..]].concat()
}

pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let packet = |source: u8| {
        let mut packet = vec![0x45, 0, 0, 20, 0, 0, 0, 0, 64, 59, 0, 0];
        packet.extend([10, 77, 0, source, 10, 77, 0, 1]);
        packet
    };
    let frame = |kind: u8, flags: u8, body: &[u8]| [&[kind, flags, body.len() as u8, 0], body].concat();
    let ping = frame(2, 0, &[1, 1, 2, 3, 4, 5, 6, 7, 8]);
    let goodbye = frame(2, 0, &[3]);
    let half_minute = later(30_000);
    let ages = GIVE_UP_AFTER.as_secs() as usize / 30 * 3;
    vec![
        (
            "raw-of-every-kind",
            [1340, 1188, 64, 28].iter().zip(1..).flat_map(|(n, k)| step(0, &message(k, *n))).collect(),
        ),
        ("mac1-of-every-kind", [1340, 1188, 64].iter().zip(1..).flat_map(|(n, k)| step(1, &message(k, *n))).collect()),
        ("flood", step(1, &message(1, 1340)).repeat(25)),
        ("keepalive", step(2, &[])),
        ("packed", step(2, &[frame(1, 0, &packet(2)), ping.clone(), frame(1, 2, &packet(2)), vec![0; 7]].concat())),
        ("spoofed", step(2, &frame(1, 0, &packet(3)))),
        ("partial-without-transport", step(2, &frame(1, 1, &packet(2)))),
        ("frame-too-long", step(2, &[1, 0, 255, 255, 0x45])),
        ("goodbye", [step(2, &goodbye), later(5000), step(2, &ping)].concat()),
        ("ages", [step(2, &frame(1, 0, &packet(2))), half_minute.repeat(ages), step(2, &ping)].concat()),
    ]
}
