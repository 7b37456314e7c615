//! Counts what a thread allocates, to hold parsers to memory in proportion to their input.
#![expect(unsafe_code, reason = "an allocator is unsafe to write")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

/// The allocator of the process, with a count per thread.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // Fails only while the thread is being torn down, when nobody measures.
    let counted = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        held.get()
    });
    if let Ok(now) = counted {
        // Same.
        let _ended = MOST.try_with(|most| most.set(most.get().max(now)));
    }
}

// SAFETY: everything is the system allocator's; counting neither allocates nor panics.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both may exist for a moment.
        count(size.cast_signed());
        // SAFETY: the caller keeps the contract of `realloc`.
        let moved = unsafe { System.realloc(at, layout, size) };
        count(-layout.size().cast_signed());
        moved
    }
}

/// Runs `act` on `input`; panics if it held more than `factor` times the input, and `floor` bytes
/// for what does not depend on it.
#[track_caller]
pub(super) fn bounded<T>(input: &[u8], factor: usize, floor: usize, act: impl FnOnce() -> T) -> T {
    let before = HELD.get();
    MOST.set(before);
    let result = act();
    let used = usize::try_from(MOST.get() - before).unwrap_or(0);
    let limit = input.len() * factor + floor;
    assert!(
        used <= limit,
        "{used} bytes held for {} of input",
        input.len()
    );
    result
}

/// Returns how many bytes this thread holds now; less those another thread freed for it.
pub(super) fn held() -> isize {
    HELD.get()
}
