//! Private worlds of hosts: each host has its own network, mounts, host name, /etc, /run and state.

use std::{
    env,
    fs::{self, File},
    net::UdpSocket,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::{self, Command},
    thread,
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};

use crate::capture::Capture;
use crate::process::{Output, Proc};

/// Set in the process that runs inside the private namespaces.
const INSIDE: &str = "AGENTNET_WORLD";
/// A tmpfs that all hosts of one world share, gone with the world.
const SCRATCH: &str = "/mnt";
/// What lines with a measurement begin with.
const RECOVERED: &str = "recovery:";
const MEASURED: &str = "measured:";
/// How long anything that should happen may take before the test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Runs `body` in fresh user, network, mount and process namespaces, by running this test again
/// there; nothing of the machine changes and every process started ends with the test.
pub(crate) fn in_world<F: FnOnce(&World)>(body: F) {
    in_world_of::<F>(body);
}

/// Does what [`in_world`] does for the test whose closure is of type `Test`.
pub(crate) fn in_world_of<Test>(body: impl FnOnce(&World)) {
    if env::var_os(INSIDE).is_some() {
        return body(&World::new());
    }
    let closure = std::any::type_name::<Test>();
    let test = closure
        .split_once("::")
        .unwrap()
        .1
        .rsplit_once("::")
        .unwrap()
        .0;
    let flags = "--user --map-root-user --net --mount --pid --fork --kill-child --mount-proc";
    let inner = Command::new("unshare")
        .args(flags.split(' '))
        .arg(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare (util-linux) is installed");
    let said = [inner.stdout, inner.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(
        inner.status.success() && said.contains("1 passed"),
        "{test} in its world:\n{said}"
    );
    for line in said.lines().filter(|line| is_shown(line)) {
        show(line);
    }
}

/// Tells what was measured, for docs/benchmarks.md.
pub(crate) fn measured(what: &str) {
    show(&format!("{MEASURED} {what}"));
}

/// Tells how long a recovery took, for the table in docs/recovery.md.
pub(crate) fn recovered(what: &str, outage: Duration) {
    show(&format!("{RECOVERED} {what}: {} ms", outage.as_millis()));
}

fn is_shown(line: &str) -> bool {
    line.starts_with(RECOVERED) || line.starts_with(MEASURED)
}

#[expect(clippy::print_stdout, reason = "a measurement is shown with the test")]
fn show(line: &str) {
    println!("{line}");
}

/// Returns the time; the one place where these tests read the clock.
#[expect(clippy::disallowed_methods, reason = "real processes run in real time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Asks `fact` until it gives a value; fails the test with `what` when `patience` runs out.
#[track_caller]
pub(crate) fn wait_within<T>(
    patience: Duration,
    what: &str,
    mut fact: impl FnMut() -> Option<T>,
) -> T {
    let start = now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(value) = fact() {
            return value;
        }
        assert!(
            start.elapsed() < patience,
            "{what}: not within {patience:?}"
        );
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Asks `fact` until it holds, as patiently as any wait here.
#[track_caller]
pub(crate) fn wait_for(what: &str, mut fact: impl FnMut() -> bool) {
    wait_within(PATIENCE, what, || fact().then_some(()));
}

/// The private namespaces' shared scratch; makes hosts.
pub(crate) struct World(());

impl World {
    fn new() -> Self {
        let none = None::<&str>;
        mount(Some("none"), SCRATCH, Some("tmpfs"), MsFlags::empty(), none).unwrap();
        let bin = Self::path("bin");
        fs::create_dir(&bin).unwrap();
        fs::create_dir(Self::path("log")).unwrap();
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_agentnet"), bin.join("agentnet")).unwrap();
        Self(())
    }

    /// Returns a place that every host sees at the same path.
    pub(crate) fn path(name: &str) -> PathBuf {
        Path::new(SCRATCH).join(name)
    }

    /// Makes a host that has nothing but a loopback interface.
    pub(crate) fn host(&self, name: &str) -> Host {
        let _world = self;
        let own = Self::path(name);
        for dir in ["etc-upper", "etc-work", "etc-copy"] {
            fs::create_dir_all(own.join(dir)).unwrap();
        }
        let (net, mnt, uts) = thread::scope(|scope| {
            scope
                .spawn(|| make_namespaces(name, &own))
                .join()
                .expect("a host can be made")
        });
        let host = Host {
            name: name.to_owned(),
            net,
            mnt,
            uts,
        };
        host.ok("ip link set lo up");
        host
    }
}

/// Gives the calling thread namespaces of its own and returns handles that keep them.
fn make_namespaces(name: &str, own: &Path) -> (File, File, File) {
    let namespaces = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS;
    unshare(CloneFlags::CLONE_FS | namespaces).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let named = Command::new("hostname").arg(name).status().unwrap();
    assert!(named.success());
    own_etc(own);
    put(
        "/etc/nsswitch.conf",
        "passwd: files\ngroup: files\nhosts: files dns\n",
    );
    put("/etc/resolv.conf", "");
    for dir in ["/run", "/var/lib"] {
        mount(Some("none"), dir, Some("tmpfs"), MsFlags::empty(), none).unwrap();
    }
    mount(Some("none"), "/sys", Some("sysfs"), MsFlags::empty(), none).unwrap();
    let open = |kind: &str| File::open(format!("/proc/thread-self/ns/{kind}")).unwrap();
    (open("net"), open("mnt"), open("uts"))
}

/// Lays a private, writable /etc over the machine's.
fn own_etc(own: &Path) {
    let show = |dir: &str| own.join(dir).display().to_string();
    let (upper, work, copy) = (show("etc-upper"), show("etc-work"), show("etc-copy"));
    let options = format!("lowerdir=/etc,upperdir={upper},workdir={work},userxattr");
    let overlay = Some("overlay");
    if mount(
        overlay,
        "/etc",
        overlay,
        MsFlags::empty(),
        Some(options.as_str()),
    )
    .is_ok()
    {
        return;
    }
    // Some kernels and containers refuse an overlay here; what cannot be read is not needed.
    let copied = Command::new("cp")
        .args(["-a", "/etc/.", &copy])
        .output()
        .unwrap();
    assert!(
        Path::new(&copy).join("passwd").exists(),
        "cannot copy /etc: {copied:?}"
    );
    mount(
        Some(copy.as_str()),
        "/etc",
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .unwrap();
}

/// Puts a file in place of one that may be another user's.
fn put(path: &str, text: &str) {
    let new = format!("{path}.new");
    fs::write(&new, text).unwrap();
    if fs::rename(&new, path).is_err() {
        // A container runtime has bind-mounted it: it cannot be replaced, only written.
        fs::remove_file(&new).unwrap();
        fs::write(path, text).unwrap();
    }
}

/// One host of the world.
pub(crate) struct Host {
    name: String,
    net: File,
    mnt: File,
    uts: File,
}

impl Host {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Returns what `ip` takes for "in this host's network".
    fn netns(&self) -> String {
        format!("/proc/{}/fd/{}", process::id(), self.net.as_raw_fd())
    }

    /// Does `work` on a thread that stands on this host: its sockets, files and children are here.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let enter = || {
            unshare(CloneFlags::CLONE_FS).unwrap();
            setns(&self.mnt, CloneFlags::CLONE_NEWNS).unwrap();
            setns(&self.net, CloneFlags::CLONE_NEWNET).unwrap();
            setns(&self.uts, CloneFlags::CLONE_NEWUTS).unwrap();
            work()
        };
        match thread::scope(|scope| scope.spawn(enter).join()) {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Starts a command (of the shell's language) and lets it run.
    pub(crate) fn start(&self, line: &str) -> Proc {
        Proc::start(self, line)
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, line: &str) -> Output {
        self.start(line).finish(PATIENCE)
    }

    /// Runs a command that must succeed; returns what it printed, without the last line break.
    #[track_caller]
    pub(crate) fn ok(&self, line: &str) -> String {
        let output = self.run(line);
        assert_eq!(output.code, 0, "{}: {line}\n{output}", self.name);
        output.stdout.trim_end().to_owned()
    }

    /// Runs a command that must fail with exit code `code`; returns what it said on both outputs.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, line: &str) -> String {
        let output = self.run(line);
        assert_eq!(output.code, code, "{}: {line}\n{output}", self.name);
        output.to_string()
    }

    /// Opens a plain UDP socket here.
    pub(crate) fn udp(&self, address: &str) -> UdpSocket {
        let socket = self
            .enter(|| UdpSocket::bind(address))
            .expect("the address is free");
        socket
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        socket
    }

    /// Records every frame that passes any interface of this host from now on.
    pub(crate) fn capture(&self) -> Capture {
        Capture::start(self)
    }

    /// Makes a bridge. Its address is its own: one that it took from its ports would change as others come, and
    /// neighbours that keep the old one lose what they send for half a minute.
    pub(crate) fn bridge(&self, name: &str) {
        self.ok(&format!(
            "ip link add {name} address 02:00:00:00:00:01 type bridge && ip link set {name} up"
        ));
    }

    /// Waits until routers forward IPv6 from here to `address`: they ask for neighbours once the kernel has found
    /// their own link-local addresses to be unique.
    pub(crate) fn wait_for_ipv6(&self, address: &str) {
        let ask = format!("ping -6 -c 1 -W 1 -q {address}");
        wait_for("IPv6 passes", || self.run(&ask).code == 0);
    }

    /// Joins `interface` here and `far` on `other` by a cable, both up.
    pub(crate) fn link(&self, interface: &str, other: &Self, far: &str) {
        let (here, there) = (self.netns(), other.netns());
        self.ok(&format!(
            "ip link add {interface} netns {here} type veth peer name {far} netns {there} && \
             ip link set {interface} up"
        ));
        other.ok(&format!("ip link set {far} up"));
    }
}
