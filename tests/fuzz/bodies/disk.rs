//! Files: settings, what daemons keep, and the host's DNS settings.

use std::{
    cell::OnceCell,
    fs,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use agentnet::config::{self, Flags, GatewaySettings, NodeSettings, RegistrySettings, Settings};
use agentnet::engine::{Engine, Time, membership::State};
use agentnet::gateway::recovery::{RECOVERY_VERSION, Recovery};
use agentnet::id::UnixTime;
use agentnet::node::owner::Owner;
use agentnet::os::{
    clock,
    dns::{self, ResolvConf},
    files::StateFile,
};
use agentnet::registry::init;
use serde::{Serialize, de::DeserializeOwned};

use super::input::Input;
use super::memory::bounded;

/// A folder of this thread, removed when it ends.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("agentnet-fuzz-{}-{n}", process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("the temporary folder takes files");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What stays behind is in the temporary folder.
        let _gone = fs::remove_dir_all(&self.0);
    }
}

/// Names a file of this thread.
fn place(name: &str) -> PathBuf {
    thread_local!(static FOLDER: OnceCell<Folder> = const { OnceCell::new() });
    FOLDER.with(|folder| folder.get_or_init(Folder::new).0.join(name))
}

/// Makes a folder of this thread called `name`.
fn folder(name: &str) -> PathBuf {
    let path = place(name);
    fs::create_dir_all(&path).expect("the temporary folder takes folders");
    path
}

/// Writes `bytes` to a file of this thread called `name`.
fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = place(name);
    fs::write(&path, bytes).expect("the temporary folder takes files");
    path
}

/// The three settings files; or one setting of the node, as its environment variable.
pub(super) fn config(data: &[u8]) {
    let mut input = Input::new(data);
    let (kind, bytes) = (input.byte(), input.rest());
    match kind % 4 {
        0 => settings::<NodeSettings>(bytes),
        1 => settings::<GatewaySettings>(bytes),
        2 => settings::<RegistrySettings>(bytes),
        _ => environment(bytes),
    }
}

fn settings<S: Settings>(bytes: &[u8]) {
    let path = file("settings.toml", bytes);
    let none = |_: &str| None;
    let read = bounded(bytes, 512, 64 * 1024, || {
        config::load::<S>(Some(&path), &none, Flags::default())
    });
    let Ok(read) = read else { return };
    let written = toml::to_string(&read).expect("settings are TOML");
    let path = file("settings.toml", written.as_bytes());
    let again = config::load::<S>(Some(&path), &none, Flags::default());
    let again = again.expect("what was written is read");
    assert_eq!(toml::to_string(&again).as_ref(), Ok(&written));
}

fn environment(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let at = usize::from(input.byte()) % NodeSettings::KEYS.len();
    let name = config::env_name::<NodeSettings>(NodeSettings::KEYS[at]);
    let Ok(text) = std::str::from_utf8(input.rest()) else {
        return;
    };
    let env = |asked: &str| (asked == name).then(|| text.to_owned());
    let read = config::load::<NodeSettings>(None, &env, Flags::default());
    if let Err(error) = read {
        let told = error.to_string();
        assert!(
            told.contains(&name) || !told.contains("environment"),
            "{told}"
        );
    }
}

/// What nodes, gateways, owners and registries keep, and what starts from it.
pub(super) fn state(data: &[u8]) {
    let mut input = Input::new(data);
    let (kind, bytes) = (input.byte(), input.rest());
    match kind % 4 {
        0 => node(bytes),
        1 => {
            if let Some(recovery) = kept::<Recovery>(bytes, RECOVERY_VERSION) {
                assert_eq!(again(&recovery, RECOVERY_VERSION), recovery);
            }
        }
        2 => owner(bytes),
        _ => registry(bytes),
    }
}

/// The file of one network in its owner's directory.
fn owner(bytes: &[u8]) {
    let folder = folder("networks");
    fs::write(folder.join("acme.json"), bytes).expect("the temporary folder takes files");
    let state = folder.parent().expect("it is in a folder");
    let listed = bounded(bytes, 128, 64 * 1024, || Owner::new(state).list());
    if let Ok(networks) = listed {
        assert!(networks.len() <= 1, "one file, {} networks", networks.len());
    }
    // What is damaged is told and not written over.
    let left = fs::read(folder.join("acme.json"));
    assert_eq!(left.expect("it is still there"), bytes);
}

/// The files of a registry's keys, each preceded by its length but the last.
fn registry(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let folder = folder("registry");
    let files = init::Files::in_dir(&folder);
    let kept = [
        (files.key(), input.long_chunk()),
        (files.tls(), input.long_chunk()),
        (files.statement(), input.rest()),
    ];
    for (path, bytes) in &kept {
        fs::write(path, bytes).expect("the temporary folder takes files");
    }
    let Ok(identity) = bounded(bytes, 128, 64 * 1024, || init::load(&files)) else {
        return;
    };
    assert_eq!(identity.statement.subject(), identity.key.did());
    assert_eq!(
        identity.statement.claims().pin,
        identity.tls.pin().to_string()
    );
}

/// The state file of a node.
fn node(bytes: &[u8]) {
    let Some(state) = kept::<State>(bytes, 1) else {
        return;
    };
    let json = serde_json::to_value(again(&state, 1)).expect("a state is JSON");
    assert_eq!(serde_json::to_value(&state).ok(), Some(json));
    let unix = UnixTime::from_secs(1_800_000_000);
    let time = Time {
        now: clock::now(),
        unix,
    };
    let mut engine = Engine::new(state, [1; 32], time);
    engine.handle_timeout(time);
    for local in engine.locals().collect::<Vec<_>>() {
        assert!(
            engine
                .membership(local)
                .is_some_and(|m| m.address() == Some(local))
        );
        let _record = engine.record(local, time);
    }
    while engine.poll_event().is_some() {}
    assert_eq!(
        engine.poll_transmit(),
        None,
        "nothing before a gateway is found"
    );
}

fn kept<T: DeserializeOwned>(bytes: &[u8], version: u32) -> Option<T> {
    let path = file("state.json", bytes);
    let read = bounded(bytes, 128, 64 * 1024, || {
        StateFile::open::<T>(&path, version)
    });
    read.ok().and_then(|(_, state)| state)
}

fn again<T: DeserializeOwned + Serialize>(state: &T, version: u32) -> T {
    let path = file("again.json", b"");
    fs::remove_file(&path).expect("it was just made");
    let (file, _) = StateFile::open::<T>(&path, version).expect("there is none");
    file.save(state).expect("it was read");
    let (_, state) = StateFile::open::<T>(&path, version).expect("it was written");
    state.expect("it was written")
}

/// The host's resolv.conf, and what we kept of it.
pub(super) fn resolv_conf(data: &[u8]) {
    const OURS: [std::net::Ipv6Addr; 1] = [std::net::Ipv6Addr::new(
        0xfd11, 0x2233, 0x4455, 1, 0, 0, 0, 0xa,
    )];
    let mut input = Input::new(data);
    let backup = input.long_chunk();
    let text = input.rest();
    let settings = bounded(text, 32, 4096, || dns::Settings::parse(text));
    let search = ["acme.agent".to_owned()];
    let written = settings.render(&OURS, &search, "the backup");
    let again = dns::Settings::parse(written.as_bytes());
    assert_eq!(again.kept, settings.kept);
    assert_eq!(again.nameservers.len(), 1, "nobody but us is asked");
    assert_eq!(again.search[0], search[0]);

    let path = file("resolv.conf", text);
    let folder = path.parent().expect("it is in a folder");
    let owner = ResolvConf::new(path.clone(), folder).behind_stub(folder.join("none"));
    take_over(&owner, &OURS, &search, (&path, text));
    if !backup.is_empty() {
        // A backup that says another path would be restored there; only ours is tried.
        let named = format!("\"path\":{:?}", path.display().to_string());
        let kept = String::from_utf8_lossy(backup).replace("\"path\":0", &named);
        if kept.contains(&named) && kept.matches("path").count() == 1 && !kept.contains("symlink") {
            file("resolv-conf.json", kept.as_bytes());
            drop((owner.look(&OURS), owner.revert()));
        }
    }
}

/// Taking over and giving back leaves the file as it was.
fn take_over(
    owner: &ResolvConf,
    ours: &[std::net::Ipv6Addr],
    search: &[String],
    (path, text): (&Path, &[u8]),
) {
    let looked = owner.look(ours);
    let applied = owner.apply(ours, search);
    assert_eq!(looked.is_ok(), applied.is_ok());
    let (Ok(looked), Ok(applied)) = (looked, applied) else {
        return;
    };
    assert_eq!(looked, applied);
    assert!(
        applied.upstream.iter().all(|server| server.ip() != ours[0]),
        "no loop"
    );
    owner.revert().expect("it is there");
    assert_eq!(fs::read(path).expect("it is there"), text);
}
