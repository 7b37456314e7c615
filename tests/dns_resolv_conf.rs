//! A resolv.conf becomes ours and comes back exactly, whatever happened in between.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs::{self, Permissions};
use std::net::Ipv6Addr;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use agentnet::os::dns::{Applied, DnsError, ResolvConf, Reverted, Settings};

const OURS: [Ipv6Addr; 1] = [Ipv6Addr::new(0xfd11, 0x2233, 0x4455, 1, 0, 0, 0, 0xa)];

const ORIGINAL: &str =
    "# by hand\nnameserver 192.0.2.1\nnameserver 2001:db8::53\nsearch corp.example\noptions edns0";

/// A folder of its own, removed at the end.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("agentnet-dns-{name}-{}", std::process::id()));
        fs::create_dir_all(path.join("etc")).unwrap();
        fs::create_dir_all(path.join("state")).unwrap();
        Self(path)
    }

    fn with(name: &str, text: &str) -> Self {
        let place = Self::new(name);
        fs::write(place.file(), text).unwrap();
        place
    }

    fn file(&self) -> PathBuf {
        self.0.join("etc/resolv.conf")
    }

    fn backup(&self) -> PathBuf {
        self.0.join("state/resolv-conf.json")
    }

    /// What a daemon that starts here knows.
    fn owner(&self) -> ResolvConf {
        ResolvConf::new(self.file(), &self.0.join("state")).behind_stub(self.0.join("etc/behind"))
    }

    fn apply(&self) -> Result<Applied, DnsError> {
        self.owner().apply(&OURS, &["acme.agent".to_owned()])
    }

    fn now(&self) -> Settings {
        Settings::parse(&fs::read(self.file()).unwrap())
    }

    fn is_ours(&self) -> bool {
        self.now().nameservers.iter().any(|n| n.address == OURS[0])
    }

    /// Nothing but the file itself is left.
    fn is_clean(&self) -> bool {
        let count = |folder| fs::read_dir(self.0.join(folder)).unwrap().count();
        count("etc") <= 1 && count("state") == 0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn upstream(applied: &Applied) -> Vec<String> {
    applied.upstream.iter().map(ToString::to_string).collect()
}

#[test]
fn a_file_becomes_ours_and_comes_back() {
    let place = Place::with("file", ORIGINAL);
    fs::set_permissions(place.file(), Permissions::from_mode(0o640)).unwrap();
    let before = fs::metadata(place.file()).unwrap();

    let applied = place.apply().unwrap();

    assert_eq!(upstream(&applied), ["192.0.2.1:53", "[2001:db8::53]:53"]);
    assert_eq!(applied.search, ["corp.example"]);
    let now = place.now();
    assert_eq!(
        (now.nameservers.len(), now.nameservers[0].address),
        (1, OURS[0].into())
    );
    assert_eq!(now.search, ["acme.agent", "corp.example"]);
    assert_eq!(now.kept, ["options edns0"]);
    assert_eq!(place.owner().revert().unwrap(), Reverted::Restored);
    let after = fs::metadata(place.file()).unwrap();
    assert_eq!(fs::read_to_string(place.file()).unwrap(), ORIGINAL);
    assert_eq!(
        (after.mode(), after.uid(), after.gid()),
        (before.mode(), before.uid(), before.gid())
    );
    assert!(place.is_clean());
    assert_eq!(place.owner().revert().unwrap(), Reverted::Nothing);
}

#[test]
fn a_look_tells_what_will_be_and_changes_nothing() {
    let place = Place::with("look", ORIGINAL);

    let looked = place.owner().look(&OURS).unwrap();

    assert_eq!(fs::read_to_string(place.file()).unwrap(), ORIGINAL);
    assert!(place.is_clean());
    assert_eq!(place.apply().unwrap(), looked);
    assert_eq!(
        place.owner().look(&OURS).unwrap(),
        looked,
        "nor is ours ever the original"
    );
}

#[test]
fn a_symlink_comes_back_and_its_target_is_never_written() {
    let place = Place::new("symlink");
    let target = place.0.join("stub");
    fs::write(&target, ORIGINAL).unwrap();
    symlink("../stub", place.file()).unwrap();

    let applied = place.apply().unwrap();

    assert_eq!(applied.upstream.len(), 2);
    assert!(place.is_ours() && !fs::symlink_metadata(place.file()).unwrap().is_symlink());
    // The target lives on: what it says now is what counts after a crash.
    fs::write(&target, "nameserver 192.0.2.9\n").unwrap();
    assert_eq!(upstream(&place.apply().unwrap()), ["192.0.2.9:53"]);
    assert_eq!(place.owner().revert().unwrap(), Reverted::Restored);
    assert_eq!(fs::read_link(place.file()).unwrap(), Path::new("../stub"));
    assert_eq!(
        fs::read_to_string(target).unwrap(),
        "nameserver 192.0.2.9\n"
    );
    assert!(place.is_clean());
}

#[test]
fn where_nothing_was_nothing_is_left() {
    let place = Place::new("missing");

    let applied = place.apply().unwrap();

    assert_eq!(
        upstream(&applied),
        ["127.0.0.1:53"],
        "as resolv.conf(5) says"
    );
    assert_eq!(fs::metadata(place.file()).unwrap().mode() & 0o777, 0o644);
    assert_eq!(place.owner().revert().unwrap(), Reverted::Restored);
    assert!(!place.file().exists() && place.is_clean());
    symlink("nowhere", place.file()).unwrap();
    assert_eq!(upstream(&place.apply().unwrap()), ["127.0.0.1:53"]);
    assert_eq!(place.owner().revert().unwrap(), Reverted::Restored);
    assert_eq!(fs::read_link(place.file()).unwrap(), Path::new("nowhere"));
}

#[test]
fn after_a_crash_the_original_is_still_the_original() {
    let place = Place::with("crash", ORIGINAL);
    place.apply().unwrap();

    for _ in 0..3 {
        assert_eq!(
            upstream(&place.apply().unwrap()),
            ["192.0.2.1:53", "[2001:db8::53]:53"]
        );
    }
    let more = [OURS[0], "fd11:2233:4455:2::a".parse().unwrap()];
    let applied = place.owner().apply(&more, &[]).unwrap();

    assert_eq!(
        (applied.search, place.now().nameservers.len()),
        (vec!["corp.example".into()], 2)
    );
    assert_eq!(place.owner().revert().unwrap(), Reverted::Restored);
    assert_eq!(fs::read_to_string(place.file()).unwrap(), ORIGINAL);
}

/// A daemon that died while it wrote in place leaves the beginning of a file.
#[test]
fn a_half_written_file_is_known_as_ours() {
    let place = Place::with("half", ORIGINAL);
    place.apply().unwrap();
    let ours = fs::read(place.file()).unwrap();

    for half in [
        &ours[..0],
        &ours[..3],
        &ours[..ours.len() - 4],
        &ORIGINAL.as_bytes()[..9],
    ] {
        fs::write(place.file(), half).unwrap();
        assert_eq!(place.apply().unwrap().upstream.len(), 2);
        assert!(place.is_ours());
        fs::write(place.file(), half).unwrap();
        assert_eq!(place.owner().revert().unwrap(), Reverted::Restored);
        assert_eq!(fs::read_to_string(place.file()).unwrap(), ORIGINAL);
        place.apply().unwrap();
    }
}

#[test]
fn what_somebody_else_wrote_since_stays() {
    let place = Place::with("theirs", ORIGINAL);
    let theirs = "# by dhclient\nnameserver 192.0.2.77\n";
    place.apply().unwrap();
    fs::write(place.file(), theirs).unwrap();

    assert_eq!(place.owner().revert().unwrap(), Reverted::LeftTheirs);
    assert_eq!(fs::read_to_string(place.file()).unwrap(), theirs);
    assert!(place.is_clean());
    place.apply().unwrap();
    fs::write(place.file(), "nameserver 192.0.2.78\n").unwrap();
    assert_eq!(
        upstream(&place.apply().unwrap()),
        ["192.0.2.78:53"],
        "theirs is the original now"
    );
    place.owner().revert().unwrap();
    assert_eq!(
        fs::read_to_string(place.file()).unwrap(),
        "nameserver 192.0.2.78\n"
    );
    place.apply().unwrap();
    fs::remove_file(place.file()).unwrap();
    assert_eq!(place.owner().revert().unwrap(), Reverted::LeftTheirs);
    assert!(!place.file().exists());
}

#[test]
fn a_line_added_to_ours_does_not_make_it_theirs() {
    let place = Place::with("added", ORIGINAL);
    place.apply().unwrap();
    let mut text = fs::read_to_string(place.file()).unwrap();
    text.insert_str(0, "options attempts:9\n");
    fs::write(place.file(), text).unwrap();

    assert_eq!(place.owner().revert().unwrap(), Reverted::Restored);
    assert_eq!(fs::read_to_string(place.file()).unwrap(), ORIGINAL);
}

#[test]
fn another_daemons_file_is_no_original() {
    let place = Place::with("orphan", ORIGINAL);
    place.apply().unwrap();
    let ours = fs::read(place.file()).unwrap();
    fs::remove_file(place.backup()).unwrap();

    let error = place.apply().unwrap_err();

    assert!(matches!(error, DnsError::Orphan(_)), "{error}");
    assert!(error.cure().contains("nameservers"));
    assert_eq!(fs::read(place.file()).unwrap(), ours);
    assert!(!place.backup().exists());
    assert_eq!(place.owner().revert().unwrap(), Reverted::Nothing);
}

#[test]
fn a_damaged_backup_is_told_and_kept() {
    let place = Place::with("damaged", ORIGINAL);
    place.apply().unwrap();
    fs::write(place.backup(), "{").unwrap();

    assert!(matches!(place.apply(), Err(DnsError::Backup { .. })));
    assert!(matches!(
        place.owner().revert(),
        Err(DnsError::Backup { .. })
    ));
    assert_eq!(fs::read_to_string(place.backup()).unwrap(), "{");
}

#[test]
fn only_a_file_of_settings_is_replaced() {
    let place = Place::new("folder");
    fs::create_dir(place.file()).unwrap();
    assert!(matches!(place.apply(), Err(DnsError::NoSettings(_))));
    fs::remove_dir(place.file()).unwrap();
    fs::write(place.file(), vec![b'\n'; 70_000]).unwrap();
    assert!(matches!(place.apply(), Err(DnsError::NoSettings(_))));
    assert!(place.is_clean());
}

/// netbird#5199: systemd-resolved takes its nameservers from this very file.
#[test]
fn a_stub_is_passed_over_for_who_stands_behind_it() {
    let place = Place::with("stub", "nameserver 127.0.0.53\noptions edns0\n");
    assert_eq!(
        upstream(&place.apply().unwrap()),
        ["127.0.0.53:53"],
        "better than nobody"
    );

    let behind = format!(
        "nameserver 192.0.2.53\nnameserver {}\nnameserver 127.0.0.53",
        OURS[0]
    );
    fs::write(place.0.join("etc/behind"), behind).unwrap();

    assert_eq!(upstream(&place.apply().unwrap()), ["192.0.2.53:53"]);
}

#[test]
fn our_own_address_is_never_an_upstream() {
    let text = format!(
        "nameserver {}\nnameserver 192.0.2.1\nnameserver fe80::1%lo\n",
        OURS[0]
    );
    let place = Place::with("own", &text);

    let applied = place.apply().unwrap();

    assert_eq!(upstream(&applied), ["192.0.2.1:53", "[fe80::1%1]:53"]);
}

#[test]
fn a_new_path_gives_the_old_one_back() {
    let place = Place::with("moved", ORIGINAL);
    place.apply().unwrap();
    let other = place.0.join("etc/other.conf");
    fs::write(&other, "nameserver 192.0.2.2\n").unwrap();

    let owner = ResolvConf::new(other.clone(), &place.0.join("state"));
    let applied = owner.apply(&OURS, &[]).unwrap();

    assert_eq!(upstream(&applied), ["192.0.2.2:53"]);
    assert_eq!(fs::read_to_string(place.file()).unwrap(), ORIGINAL);
    owner.revert().unwrap();
    assert_eq!(
        fs::read_to_string(&other).unwrap(),
        "nameserver 192.0.2.2\n"
    );
}
