//! Processes on a host: started by a line of shell, output kept, ended with their handle.

use std::{
    fmt,
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::world::{Host, PATIENCE, World, wait_within};

/// Numbers the output files, so that their order is the order of the story.
static STARTED: AtomicUsize = AtomicUsize::new(0);

/// What a finished command left.
pub(crate) struct Output {
    /// Exit code; 128 + the signal's number when one ended it.
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exit code {}\n{}{}", self.code, self.stdout, self.stderr)
    }
}

/// A running process; killed when dropped, its output shown when the test is failing.
pub(crate) struct Proc {
    child: Child,
    title: String,
    out: PathBuf,
    err: PathBuf,
    finished: bool,
}

impl Proc {
    pub(crate) fn start(host: &Host, line: &str) -> Self {
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let file = |kind: &str| World::path("log").join(format!("{number:03}.{kind}"));
        let (out, err) = (file("out"), file("err"));
        let (stdout, stderr) = (File::create(&out).unwrap(), File::create(&err).unwrap());
        let bin = World::path("bin").display().to_string();
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", line])
            .env_clear()
            .env(
                "PATH",
                format!("{bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
            )
            .env("HOME", "/root")
            .env("LC_ALL", "C.UTF-8")
            .env("PYTHONUNBUFFERED", "1")
            .env("RUST_BACKTRACE", "1")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr);
        let child = host.enter(move || command.spawn()).expect("a shell starts");
        let title = format!("{number:03} {}: {line}", host.name());
        Self {
            child,
            title,
            out,
            err,
            finished: false,
        }
    }

    /// Returns its number.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns what it has printed on standard output so far.
    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.out).unwrap()).into_owned()
    }

    /// Returns what it has printed on standard error so far.
    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.err).unwrap()).into_owned()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for the end.
    #[track_caller]
    pub(crate) fn finish(mut self, patience: Duration) -> Output {
        let status = self.wait(patience);
        self.finished = true;
        Output {
            code: code_of(status),
            stdout: self.stdout(),
            stderr: self.stderr(),
        }
    }

    #[track_caller]
    fn wait(&mut self, patience: Duration) -> ExitStatus {
        let what = format!("the end of `{}`", self.title);
        wait_within(patience, &what, || self.child.try_wait().unwrap())
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    #[track_caller]
    pub(crate) fn stop(mut self) -> Output {
        self.signal(Signal::SIGTERM);
        self.finish(PATIENCE)
    }

    /// Ends it at once (SIGKILL), as a crash would.
    pub(crate) fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        self.wait(PATIENCE);
        self.finished = true;
    }

    pub(crate) fn signal(&mut self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        if self.is_running() {
            kill(pid, signal).unwrap();
        }
    }
}

impl Drop for Proc {
    #[expect(
        clippy::print_stderr,
        reason = "a failing test tells what its processes said"
    )]
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- {}\n{}{}", self.title, self.stdout(), self.stderr());
        }
        if !self.finished {
            self.signal(Signal::SIGKILL);
            drop(self.child.wait());
        }
    }
}

fn code_of(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}
