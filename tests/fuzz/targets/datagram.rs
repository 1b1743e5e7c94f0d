//! `cargo fuzz run --fuzz-dir tests/fuzz datagram tests/fuzz/corpus/datagram`
#![no_main]

#[path = "../bodies/datagram.rs"]
mod datagram;
#[path = "../rewound.rs"]
mod rewound;

use datagram::World;

#[global_allocator]
static WORLD: rewound::Rewound<World> = rewound::Rewound::new();

libfuzzer_sys::fuzz_target!(|data: &[u8]| WORLD.run(World::new, |world| world.do_steps(data)));
