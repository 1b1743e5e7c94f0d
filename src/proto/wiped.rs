//! Memory that is zeroed when its owner is done with it, for secrets inside types that do not do it themselves.

use std::mem::{ManuallyDrop, MaybeUninit};
use std::ops::{Deref, DerefMut};

use zeroize::Zeroize as _;

/// A boxed value, so that moving it leaves no copy behind, whose memory is zeroed after it was dropped. What the value
/// itself keeps on the heap is left to its own drop.
pub(super) struct Wiped<T>(Box<ManuallyDrop<T>>);

impl<T> Wiped<T> {
    pub(super) fn new(value: T) -> Self {
        Self(Box::new(ManuallyDrop::new(value)))
    }
}

impl<T: Default> Default for Wiped<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> Deref for Wiped<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for Wiped<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T> Drop for Wiped<T> {
    #[expect(unsafe_code, reason = "the types in it do not zero what they held")]
    fn drop(&mut self) {
        // SAFETY: the value is not used after this: the box frees its memory without dropping a `ManuallyDrop`'s content.
        unsafe { drop_and_zero(&mut self.0) }
    }
}

/// # Safety
/// The value must not be used as a `T` afterwards.
#[expect(unsafe_code, reason = "the types in it do not zero what they held")]
unsafe fn drop_and_zero<T>(value: &mut ManuallyDrop<T>) {
    let value: *mut ManuallyDrop<T> = value;
    // SAFETY: dropped once, since the caller does not use it again; after that its memory, borrowed here, is plain bytes.
    unsafe {
        ManuallyDrop::drop(&mut *value);
        (*value.cast::<MaybeUninit<T>>()).zeroize();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn the_value_is_dropped_once() {
        struct Counted<'a>(&'a Cell<u32>);
        impl Drop for Counted<'_> {
            fn drop(&mut self) {
                self.0.set(self.0.get() + 1);
            }
        }
        let drops = Cell::new(0);
        let wiped = Wiped::new(Counted(&drops));
        assert_eq!(drops.get(), 0);
        drop(wiped);
        assert_eq!(drops.get(), 1);
    }

    #[test]
    #[expect(unsafe_code, reason = "looks at the memory afterwards, which only works for plain bytes")]
    fn the_memory_is_zeroed() {
        let mut secret = ManuallyDrop::new([7u8; 100]);
        // SAFETY: bytes have no drop, and any bytes are valid bytes.
        unsafe { drop_and_zero(&mut secret) };
        assert_eq!(*secret, [0; 100]);
    }
}
