//! Threads that go before all ordinary ones.

use std::io;

use nix::libc;

/// The lowest of real-time priorities: before every ordinary thread, after whatever else runs so.
static PRIORITY: libc::c_int = 1;

/// Has the calling thread run before ordinary ones (SCHED_RR of sched(7)); what it starts does not.
/// The kernel leaves others 5 % of the time even if it never waits (sched_rt_runtime_us).
#[expect(unsafe_code, reason = "no library at hand offers this call")]
pub fn go_first() -> io::Result<()> {
    let policy = libc::SCHED_RR | libc::SCHED_RESET_ON_FORK;
    // The kernel itself is called, since musl's function refuses; its sched_param is the priority alone.
    let call = libc::SYS_sched_setscheduler;
    // SAFETY: the call reads `PRIORITY`, which is static, and 0 names the calling thread.
    let result = unsafe { libc::syscall(call, 0, policy, &raw const PRIORITY) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// Whoever may gets it, for the calling thread alone; who may not is told so.
    #[test]
    fn a_thread_goes_first_or_is_told_why_not() {
        let policy = || {
            let stat = fs::read_to_string("/proc/thread-self/stat").unwrap();
            let (_, fields) = stat.rsplit_once(") ").unwrap();
            // Field 41 of proc_pid_stat(5), of which the first two were cut off.
            fields.split(' ').nth(38).unwrap().to_owned()
        };
        let thread = std::thread::spawn(move || {
            let done = go_first();
            (done.map_err(|error| error.raw_os_error()), policy())
        });

        match thread.join().unwrap() {
            (Ok(()), policy) => assert_eq!(policy, libc::SCHED_RR.to_string()),
            (Err(errno), policy) => {
                assert_eq!((errno, policy.as_str()), (Some(libc::EPERM), "0"));
            }
        }
        assert_eq!(policy(), "0");
    }
}
