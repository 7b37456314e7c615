//! The last lines of this process's log, for `agentnet bugreport`.

use std::{
    collections::VecDeque,
    io,
    sync::{Mutex, PoisonError},
};

/// Lines kept, and bytes of each: what happened before a failure, in 128 KB.
const MAX_LINES: usize = 256;
const MAX_LINE: usize = 512; // bytes

/// One, as a process has one log.
static LINES: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());

/// Keeps what is written to it; each write is a line.
#[derive(Clone, Copy, Debug, Default)]
pub struct Recent;

impl io::Write for Recent {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let kept = bytes.get(..MAX_LINE).unwrap_or(bytes);
        let line = String::from_utf8_lossy(kept).trim_end().to_owned();
        // A line is whole or not there, whoever panicked.
        let mut lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() >= MAX_LINES {
            lines.pop_front();
        }
        lines.push_back(line);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns the lines, oldest first.
pub fn lines() -> Vec<String> {
    let lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
    lines.iter().cloned().collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_newest_lines_are_kept_and_none_is_long() {
        for n in 0..MAX_LINES + 10 {
            let line = format!("{n} {}\n", "x".repeat(2 * MAX_LINE));
            Recent.write_all(line.as_bytes()).unwrap();
        }

        let lines = lines();

        assert_eq!(lines.len(), MAX_LINES);
        assert!(lines.iter().all(|line| line.len() <= MAX_LINE));
        let last = format!("{} x", MAX_LINES + 9);
        assert!(lines.last().is_some_and(|line| line.starts_with(&last)));
    }
}
