//! The simulator's clock and randomness, per thread.
//!
//! boringtun reads the clock and takes random bytes itself. This test binary therefore defines
//! `clock_gettime`, `getrandom` and `syscall`, which the linker prefers to libc's: on a thread that
//! runs a [`Simulation`] they answer from it, on every other they enter the kernel.
#![expect(unsafe_code, reason = "the functions replaced are C's")]

use std::{arch::asm, cell::Cell, ffi::c_long, slice, time::Duration};

use nix::{errno::Errno, libc};

thread_local! {
    /// Time since both epochs; `None` on a thread that simulates nothing.
    static NOW: Cell<Option<Duration>> = const { Cell::new(None) };
    static RANDOM: Cell<u64> = const { Cell::new(0) };
    /// How far the wall clock of the host whose turn it is runs ahead, in milliseconds.
    static SKEW: Cell<i64> = const { Cell::new(0) };
}

/// When every simulation begins: 2027, after all that is built today.
const EPOCH: Duration = Duration::from_secs(1_800_000_000);

/// Simulated time and seeded randomness on this thread, until dropped.
#[derive(Debug)]
pub(crate) struct Simulation(());

impl Simulation {
    /// Begins at the epoch of simulations, with random bytes that follow from `seed`.
    pub(crate) fn start(seed: u64) -> Self {
        NOW.set(Some(EPOCH));
        RANDOM.set(seed);
        SKEW.set(0);
        Self(())
    }

    /// Lets `step` pass.
    pub(crate) fn advance(&self, step: Duration) {
        let Self(()) = self;
        NOW.set(NOW.get().map(|now| now + step));
    }

    /// Sets how far the wall clock is off the true one; the other clocks are not.
    pub(crate) fn set_skew(&self, milliseconds: i64) {
        let Self(()) = self;
        SKEW.set(milliseconds);
    }
}

impl Drop for Simulation {
    fn drop(&mut self) {
        NOW.set(None);
    }
}

/// A wall clock that is wrong, until dropped; the monotonic one is right.
#[derive(Debug)]
pub(crate) struct Skew(i64);

impl Skew {
    /// Sets the wall clock `seconds` ahead of what it should be.
    pub(crate) fn of(seconds: i64) -> Self {
        Self(SKEW.replace(seconds * 1000))
    }
}

impl Drop for Skew {
    fn drop(&mut self) {
        SKEW.set(self.0);
    }
}

/// Returns the simulated time; `None` also while the thread is being torn down.
fn simulated() -> Option<Duration> {
    NOW.try_with(Cell::get).ok().flatten()
}

/// Returns the time that a clock shows; only the wall clock of a host may be off.
fn shown(now: Duration, clock: libc::clockid_t) -> Duration {
    let skew = if clock == libc::CLOCK_REALTIME {
        SKEW.try_with(Cell::get).unwrap_or_default()
    } else {
        0
    };
    let off = Duration::from_millis(skew.unsigned_abs());
    if skew < 0 {
        now.saturating_sub(off)
    } else {
        now + off
    }
}

/// Fills `bytes` from the seed by SplitMix64; false on a thread that simulates nothing.
fn fill(bytes: &mut [u8]) -> bool {
    if simulated().is_none() {
        return false;
    }
    for byte in bytes {
        let next = RANDOM.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        RANDOM.set(next);
        let mixed = (next ^ (next >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        *byte = (mixed >> 33).to_le_bytes()[0];
    }
    true
}

/// Enters the kernel, as libc's `syscall` does.
///
/// # Safety
/// The arguments are what system call `number` takes.
#[cfg(target_arch = "x86_64")]
unsafe fn enter_kernel(number: c_long, args: [c_long; 6]) -> c_long {
    let result: c_long;
    // SAFETY: the kernel keeps all registers but rcx and r11; the caller vouches for the arguments.
    unsafe {
        asm!("syscall", inlateout("rax") number => result,
            in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
            in("r10") args[3], in("r8") args[4], in("r9") args[5],
            lateout("rcx") _, lateout("r11") _);
    }
    with_errno(result)
}

/// Enters the kernel, as libc's `syscall` does.
///
/// # Safety
/// The arguments are what system call `number` takes.
#[cfg(target_arch = "aarch64")]
unsafe fn enter_kernel(number: c_long, args: [c_long; 6]) -> c_long {
    let result: c_long;
    // SAFETY: the kernel keeps all registers but x0; the caller vouches for the arguments.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") args[0] => result,
            in("x1") args[1], in("x2") args[2], in("x3") args[3],
            in("x4") args[4], in("x5") args[5]);
    }
    with_errno(result)
}

fn with_errno(result: c_long) -> c_long {
    match i32::try_from(-result) {
        Ok(code @ 1..=4095) => {
            Errno::from_raw(code).set();
            -1
        }
        Ok(_) | Err(_) => result,
    }
}

// SAFETY: same signature and meaning as libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> i32 {
    let Some(now) = simulated() else {
        let args = [c_long::from(clock), time as c_long, 0, 0, 0, 0];
        // SAFETY: the caller gave a place for a timespec.
        return unsafe { enter_kernel(libc::SYS_clock_gettime, args) } as i32;
    };
    let now = shown(now, clock);
    let (tv_sec, tv_nsec) = (now.as_secs() as i64, i64::from(now.subsec_nanos()));
    // SAFETY: the caller gave a place for a timespec.
    unsafe { time.write(libc::timespec { tv_sec, tv_nsec }) };
    0
}

// SAFETY: same signature and meaning as libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut u8, length: usize, flags: u32) -> isize {
    let args = [
        buffer as c_long,
        length as c_long,
        c_long::from(flags),
        0,
        0,
        0,
    ];
    // SAFETY: the caller gave `length` bytes of room.
    unsafe { syscall(libc::SYS_getrandom, args[0], args[1], args[2], 0, 0, 0) as isize }
}

/// The crate getrandom enters the kernel through libc's `syscall` too.
// SAFETY: same meaning as libc's; all its callers pass words.
#[unsafe(no_mangle)]
unsafe extern "C" fn syscall(
    number: c_long,
    a: c_long,
    b: c_long,
    c: c_long,
    d: c_long,
    e: c_long,
    f: c_long,
) -> c_long {
    if number == libc::SYS_getrandom && b > 0 {
        // SAFETY: the caller gave `b` bytes of room at `a`.
        let bytes = unsafe { slice::from_raw_parts_mut(a as *mut u8, b as usize) };
        if fill(bytes) {
            return b;
        }
    }
    // SAFETY: the caller vouches for the arguments.
    unsafe { enter_kernel(number, [a, b, c, d, e, f]) }
}

#[cfg(test)]
mod tests {
    use std::{
        process::Command,
        thread,
        time::{Instant, SystemTime, UNIX_EPOCH},
    };

    use boringtun::{
        noise::{Tunn, TunnResult},
        x25519::{PublicKey, StaticSecret},
    };

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[expect(clippy::disallowed_methods, reason = "it is this clock that is tested")]
    fn clocks() -> (Instant, SystemTime) {
        (Instant::now(), SystemTime::now())
    }

    fn tunnel(own: u8, peer: u8, index: u32) -> Tunn {
        let peer = PublicKey::from(&StaticSecret::from([peer; 32]));
        Tunn::new(StaticSecret::from([own; 32]), peer, None, None, index, None)
    }

    /// Completes a handshake that `a` begins; returns its first message.
    fn shake(a: &mut Tunn, b: &mut Tunn) -> Vec<u8> {
        let (mut first, mut second, mut third) = ([0; 2048], [0; 2048], [0; 2048]);
        let TunnResult::WriteToNetwork(init) = a.format_handshake_initiation(&mut first, true)
        else {
            panic!("no initiation");
        };
        let sent = init.to_vec();
        let TunnResult::WriteToNetwork(response) = b.decapsulate(None, init, &mut second) else {
            panic!("no response");
        };
        let TunnResult::WriteToNetwork(keepalive) = a.decapsulate(None, response, &mut third)
        else {
            panic!("no confirmation");
        };
        let confirmed = b.decapsulate(None, keepalive, &mut second);
        assert!(matches!(confirmed, TunnResult::Done));
        sent
    }

    #[test]
    fn both_clocks_of_std_are_simulated() {
        let simulation = Simulation::start(1);
        let (instant, system) = clocks();

        simulation.advance(7 * SECOND);

        let (later, system_later) = clocks();
        assert_eq!(later - instant, 7 * SECOND);
        assert_eq!(system_later.duration_since(system).unwrap(), 7 * SECOND);
    }

    #[test]
    fn a_skew_moves_the_wall_clock_alone() {
        let simulation = Simulation::start(1);
        let (instant, system) = clocks();

        simulation.set_skew(-90_000);

        let (later, system_later) = clocks();
        assert_eq!(later, instant);
        assert_eq!(system.duration_since(system_later).unwrap(), 90 * SECOND);
    }

    #[test]
    fn other_threads_and_what_comes_after_keep_the_real_clock() {
        let since_epoch = || clocks().1.duration_since(UNIX_EPOCH).unwrap();
        let before = since_epoch();
        let simulation = Simulation::start(1);

        let other = thread::spawn(since_epoch).join().unwrap();
        assert_eq!(since_epoch(), EPOCH);
        drop(simulation);

        assert!(other >= before && other < before + 60 * SECOND);
        assert!(since_epoch() >= other);
    }

    #[test]
    fn other_programs_keep_the_real_clock() {
        let _simulation = Simulation::start(1);

        let date = Command::new("date").arg("+%s").output().unwrap();

        let seconds = String::from_utf8(date.stdout)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        assert_ne!(Duration::from_secs(seconds), EPOCH);
    }

    #[test]
    fn boringtun_asks_for_new_keys_after_two_simulated_minutes() {
        let simulation = Simulation::start(1);
        let (mut a, mut b) = (tunnel(7, 9, 1), tunnel(9, 7, 2));
        shake(&mut a, &mut b);
        let (mut buffer, mut sealed, mut packet) = ([0; 2048], [0; 2048], [0; 48]);
        (packet[0], packet[5]) = (0x60, 8);

        simulation.advance(121 * SECOND);
        assert!(matches!(a.update_timers(&mut buffer), TunnResult::Done));
        a.encapsulate(&packet, &mut sealed);

        let TunnResult::WriteToNetwork(message) = a.update_timers(&mut buffer) else {
            panic!("no new handshake");
        };
        assert_eq!(message[0], 1);
    }

    #[test]
    fn a_restarted_boringtun_shakes_hands_an_hour_later() {
        let simulation = Simulation::start(1);
        let (mut a, mut b) = (tunnel(7, 9, 1), tunnel(9, 7, 2));
        shake(&mut a, &mut b);

        simulation.advance(3600 * SECOND);
        shake(&mut a, &mut b);
        simulation.advance(Duration::from_millis(1));
        shake(&mut tunnel(7, 9, 3), &mut b);
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes() {
        let run = |seed| {
            let _simulation = Simulation::start(seed);
            shake(&mut tunnel(7, 9, 1), &mut tunnel(9, 7, 2))
        };

        assert_eq!(run(5), run(5));
        assert_ne!(run(5), run(6));
    }
}
