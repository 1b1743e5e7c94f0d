//! Memory that is put back as it was before each run, for a target whose world takes far longer to build than a run takes
//! in it: handshakes cost hundreds of times what a refused datagram does. Unlike a world that is only kept, it carries
//! nothing from one run to the next, so that a finding needs its own data alone.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A world and all that a run allocates. A run that needs more is a finding.
const LEN: usize = 64 << 20;

/// The system's allocator outside of a run; in it, one that only counts up.
pub(crate) struct Rewound<T> {
    memory: UnsafeCell<[u8; LEN]>,
    used: AtomicUsize,
    is_in_use: AtomicBool,
    built: UnsafeCell<Option<Built<T>>>,
}

struct Built<T> {
    world: *mut T,
    /// What was in the memory when it had been built.
    image: Vec<u8>,
}

// SAFETY: a fuzzer runs its target in one thread, and no thread of Rust's stands beside it.
unsafe impl<T> Sync for Rewound<T> {}

impl<T> Rewound<T> {
    pub(crate) const fn new() -> Self {
        Self {
            memory: UnsafeCell::new([0; LEN]),
            used: AtomicUsize::new(0),
            is_in_use: AtomicBool::new(false),
            built: UnsafeCell::new(None),
        }
    }

    /// Has `run` do what it likes with what `build` built before the first run. Neither may leave anything outside that
    /// points to what it allocated.
    pub(crate) fn run(&self, build: impl FnOnce() -> T, run: impl FnOnce(&mut T)) {
        // SAFETY: there is one thread, and neither `build` nor `run` can come here.
        let built = unsafe { &mut *self.built.get() };
        let start = self.memory.get().cast::<u8>();
        let Built { world, image } = built.get_or_insert_with(|| {
            let world = self.used_in(|| Box::into_raw(Box::new(build())));
            let used = self.used.load(Ordering::Relaxed);
            // SAFETY: as much as that lies in the memory, and is only read.
            Built { world, image: unsafe { std::slice::from_raw_parts(start, used) }.to_vec() }
        });
        // SAFETY: what the image was taken of; what the last run left there is not used any more.
        unsafe { ptr::copy_nonoverlapping(image.as_ptr(), start, image.len()) };
        self.used.store(image.len(), Ordering::Relaxed);
        // SAFETY: the world lies in the memory, which is as it was when the world had been built.
        self.used_in(|| run(unsafe { &mut **world }));
    }

    fn used_in<R>(&self, work: impl FnOnce() -> R) -> R {
        self.is_in_use.store(true, Ordering::Relaxed);
        let result = work();
        self.is_in_use.store(false, Ordering::Relaxed);
        result
    }
}

// SAFETY: what the memory hands out is aligned, lies in it and is handed out once in a run; the rest is the system
// allocator's doing, and each gets back only its own.
unsafe impl<T> GlobalAlloc for Rewound<T> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !self.is_in_use.load(Ordering::Relaxed) {
            // SAFETY: the caller keeps the same contract.
            return unsafe { System.alloc(layout) };
        }
        let memory = self.memory.get().cast::<u8>();
        let free = memory.wrapping_add(self.used.load(Ordering::Relaxed));
        let offset = free.addr().next_multiple_of(layout.align()) - memory.addr();
        match offset.checked_add(layout.size()).filter(|end| *end <= LEN) {
            Some(end) => {
                self.used.store(end, Ordering::Relaxed);
                memory.wrapping_add(offset)
            }
            None => ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        let start = self.memory.get().addr();
        if !(start..start + LEN).contains(&pointer.addr()) {
            // SAFETY: the caller keeps the same contract.
            unsafe { System.dealloc(pointer, layout) }
        }
    }
}
