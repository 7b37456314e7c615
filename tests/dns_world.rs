//! The resolver and resolv.conf together, under the C library, in a world of their own.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use agentnet::engine::names::Zone;
use agentnet::id::{FullName, OverlayIp, Suffix};
use agentnet::node::resolver::{Directory, Found, Resolver, Settings, Upstream};
use agentnet::os::dns::{Applied, DnsError, ResolvConf, Reverted};
use async_trait::async_trait;
use hickory_proto::op::Message;
use hickory_proto::rr::{RData, Record, RecordType, rdata::A};
use tokio::net::UdpSocket;
use tokio::time::timeout;

const HERE: &str = "fd11:2233:4455:1::a";
const OTHER: &str = "fd11:2233:4455:1::c";
const B: &str = "fd11:2233:4455:1::b";
const ORIGINAL: &str = "nameserver 127.0.0.9\nsearch corp.example\noptions timeout:1\n";

/// Longest wait for a fact; only reached when something is wrong.
const PATIENCE: Duration = Duration::from_secs(10);

struct OnlyB;

#[async_trait]
impl Directory for OnlyB {
    async fn by_name(&self, _asker: OverlayIp, name: &FullName) -> Found {
        match name.to_string().as_str() {
            "b.acme.agent" => Found::Yes(B.parse().unwrap()),
            _ => Found::No,
        }
    }

    async fn by_address(&self, _asker: OverlayIp, address: OverlayIp) -> Option<FullName> {
        let known = address == B.parse().unwrap();
        known.then(|| FullName::parse("b.acme.agent", &Suffix::default()).unwrap())
    }
}

/// Runs the test again inside of fresh namespaces; true when we are there.
fn inside(test: &str) -> bool {
    if std::env::var_os("AGENTNET_WORLD").is_some() {
        return true;
    }
    let ended = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--mount", "--pid"])
        .args(["--fork", "--kill-child", "--mount-proc"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("AGENTNET_WORLD", "1")
        .status()
        .unwrap();
    assert!(ended.success());
    false
}

fn run(line: &str) {
    let mut words = line.split(' ');
    let mut command = Command::new(words.next().unwrap());
    assert!(command.args(words).status().unwrap().success(), "{line}");
}

/// Returns what the C library finds; empty when it finds nothing.
async fn getent(line: &str) -> String {
    let mut command = tokio::process::Command::new("getent");
    let output = command.args(line.split(' ')).output();
    let output = timeout(PATIENCE, output).await.unwrap().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Puts `text` at `path` of this world alone; the machine's own file must never be written.
fn cover(path: &str, text: &str, scratch: &Path) -> PathBuf {
    let file = scratch.join(path.replace('/', "_"));
    fs::write(&file, text).unwrap();
    run(&format!("mount --bind {} {path}", file.display()));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut points = mounts.lines().filter_map(|l| l.split(' ').nth(4));
    assert!(points.any(|point| point == path), "{path} is not covered");
    file
}

/// A private folder for files that are no mounts of their own.
fn scratch() -> PathBuf {
    // This world's own processes see it, nobody else does, and it ends with them.
    run("mount -t tmpfs none /mnt");
    PathBuf::from("/mnt")
}

async fn nameserver(listen: &str, address: Ipv4Addr) {
    let socket = UdpSocket::bind((listen, 53)).await.unwrap();
    tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            let query = Message::from_vec(&buffer[..length]).unwrap();
            let mut reply = Message::response(query.id, query.op_code);
            reply.add_query(query.queries[0].clone());
            let name = query.queries[0].name().clone();
            if query.queries[0].query_type() == RecordType::A {
                reply.add_answer(Record::from_rdata(name, 60, RData::A(A(address))));
            }
            socket
                .send_to(&reply.to_vec().unwrap(), from)
                .await
                .unwrap();
        }
    });
}

async fn resolver(applied: Applied, search: &[String]) -> Resolver {
    let settings = Settings {
        listen: format!("[{HERE}]:53").parse().unwrap(),
        asker: HERE.parse().unwrap(),
        zone: Zone {
            suffix: Suffix::default(),
            prefixes: vec!["fd11:2233:4455:1::/64".parse().unwrap()],
            retries: Zone::retries(search, &applied.search),
        },
        upstream: Upstream::Forward(applied.upstream),
    };
    Resolver::start(settings, Arc::new(OnlyB)).await.unwrap()
}

/// B-005: unmodified programs find agents by name, and everything else as before.
#[test]
fn the_c_library_finds_agents_and_everything_else() {
    if !inside("the_c_library_finds_agents_and_everything_else") {
        return;
    }
    for line in [
        "ip link set lo up",
        &format!("ip addr add {HERE}/128 dev lo nodad"),
        &format!("ip addr add {OTHER}/128 dev lo nodad"),
        "ip addr add 192.0.2.200/32 dev lo",
    ] {
        run(line);
    }
    let state = scratch();
    cover("/etc/nsswitch.conf", "hosts: files dns\n", &state);
    let mounted = cover("/etc/resolv.conf", ORIGINAL, &state);
    let inode = fs::metadata(&mounted).unwrap().ino();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        nameserver("127.0.0.9", [192, 0, 2, 1].into()).await;
        assert!(getent("ahosts www.example.com").await.contains("192.0.2.1"));
        let owner = ResolvConf::new("/etc/resolv.conf".into(), &state);

        let search = ["acme.agent".to_owned()];
        let applied = owner.apply(&[HERE.parse().unwrap()], &search).unwrap();
        let resolver = resolver(applied, &search).await;

        for line in [
            "ahosts b.acme.agent",
            "ahosts b",
            "ahosts B.Acme.Agent.",
            "hosts b.acme.agent",
        ] {
            assert!(getent(line).await.contains(B), "{line}");
        }
        assert!(getent(&format!("hosts {B}")).await.contains("b.acme.agent"));
        assert!(getent("ahosts www.example.com").await.contains("192.0.2.1"));
        for line in [
            "ahosts c.acme.agent",
            "ahosts x.other.agent.",
            "ahosts acme.agent.",
        ] {
            assert_eq!(getent(line).await, "", "{line}");
        }
        a_stranger_is_not_answered(&resolver).await;
        resolver.stop().await;
        assert_eq!(owner.revert().unwrap(), Reverted::Restored);
        assert!(getent("ahosts www.example.com").await.contains("192.0.2.1"));
    });
    assert_eq!(fs::read_to_string(&mounted).unwrap(), ORIGINAL);
    let after = fs::metadata(&mounted).unwrap().ino();
    assert_eq!(after, inode, "a mounted file is rewritten in place");
}

/// Whoever does not ask from this agent's own address does not see with its eyes.
async fn a_stranger_is_not_answered(resolver: &Resolver) {
    let socket = UdpSocket::bind((OTHER, 0)).await.unwrap();
    socket.connect(resolver.local()).await.unwrap();
    let before = resolver.stats();
    socket.send(&[0; 12]).await.unwrap();
    let counted = async {
        while resolver.stats().strangers == before.strangers {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, counted).await.unwrap();
    assert_eq!(resolver.stats().queries, before.queries);
}

#[test]
fn what_cannot_be_written_is_told_and_stays() {
    if !inside("what_cannot_be_written_is_told_and_stays") {
        return;
    }
    let place = scratch();
    let file = place.join("etc/resolv.conf");
    let link = place.join("link/resolv.conf");
    for folder in ["etc", "link", "state"] {
        fs::create_dir(place.join(folder)).unwrap();
        if folder != "state" {
            let folder = place.join(folder);
            run(&format!("mount -t tmpfs none {}", folder.display()));
        }
    }
    fs::write(&file, ORIGINAL).unwrap();
    symlink("../target", &link).unwrap();
    fs::write(place.join("target"), ORIGINAL).unwrap();
    for folder in ["etc", "link"] {
        run(&format!(
            "mount -o remount,ro {}",
            place.join(folder).display()
        ));
    }

    for path in [&file, &link] {
        let owner = ResolvConf::new(path.clone(), &place.join("state"));
        let error = owner.apply(&[HERE.parse().unwrap()], &[]).unwrap_err();

        assert!(matches!(error, DnsError::Unwritable { .. }), "{error:?}");
        assert!(error.cure().contains("--dns none"));
        assert_eq!(fs::read_to_string(path).unwrap(), ORIGINAL);
        assert_eq!(
            fs::read_dir(place.join("state")).unwrap().count(),
            0,
            "nothing half done"
        );
    }
    writable_file_in_a_read_only_folder(&place, &file);
}

/// As in a container whose root is read-only: the file alone may be written.
fn writable_file_in_a_read_only_folder(place: &Path, file: &Path) {
    let mounted = place.join("mounted");
    fs::write(&mounted, ORIGINAL).unwrap();
    run(&format!(
        "mount --bind {} {}",
        mounted.display(),
        file.display()
    ));
    let owner = ResolvConf::new(file.to_owned(), &place.join("state"));

    let applied = owner.apply(&[HERE.parse().unwrap()], &[]).unwrap();

    assert_eq!(applied.upstream, ["127.0.0.9:53".parse().unwrap()]);
    assert!(fs::read_to_string(&mounted).unwrap().contains(HERE));
    assert_eq!(owner.revert().unwrap(), Reverted::Restored);
    assert_eq!(fs::read_to_string(&mounted).unwrap(), ORIGINAL);
}
