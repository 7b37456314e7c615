//! The units in a real systemd, booted from a tree of its own (scripts/systemd-tree) and gone afterwards.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Where scripts/systemd-tree leaves it.
const TREE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/systemd-tree");

const PROGRAM: &str = env!("CARGO_BIN_EXE_agentnet");

/// What is tested, as it lies in the repository and as a package puts it.
const FILES: [(&str, &str); 8] = [
    (
        "systemd/agentnet.service",
        "/usr/lib/systemd/system/agentnet.service",
    ),
    (
        "systemd/agentnet-gateway.service",
        "/usr/lib/systemd/system/agentnet-gateway.service",
    ),
    (
        "systemd/agentnet-registry.service",
        "/usr/lib/systemd/system/agentnet-registry.service",
    ),
    (
        "systemd/agentnet-dns.path",
        "/usr/lib/systemd/system/agentnet-dns.path",
    ),
    (
        "systemd/agentnet-dns.service",
        "/usr/lib/systemd/system/agentnet-dns.service",
    ),
    (
        "systemd/agentnet.rules",
        "/usr/share/polkit-1/rules.d/agentnet.rules",
    ),
    (
        "systemd/agentnet.tmpfiles",
        "/usr/lib/tmpfiles.d/agentnet.conf",
    ),
    (
        "systemd/agentnet.sysusers",
        "/usr/lib/sysusers.d/agentnet.conf",
    ),
];

/// Runs a script of this folder when the system is up.
const RUNNER: &str = "
[Unit]
After=systemd-sysusers.service systemd-tmpfiles-setup.service dbus.service
[Service]
Type=exec
ExecStart=/bin/bash /shared/run
";

/// Returns the options that put the files of the repository where a package puts them.
fn by_hand() -> Vec<String> {
    let root = env!("CARGO_MANIFEST_DIR");
    let mut binds = FILES
        .map(|(from, to)| format!("--bind-ro={root}/{from}:{to}"))
        .to_vec();
    binds.push(format!("--bind-ro={PROGRAM}:/usr/bin/agentnet"));
    binds
}

/// Makes the Debian package of the program that is tested, and returns where it lies.
fn package() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let made = Command::new(root.join("scripts/package"))
        .arg("--built")
        .arg(Path::new(PROGRAM).parent().unwrap())
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let mut made = fs::read_dir(root.join("target/package")).unwrap();
    let deb = made.find_map(|entry| {
        let path = entry.unwrap().path();
        path.extension()
            .is_some_and(|end| end == "deb")
            .then_some(path)
    });
    deb.unwrap()
}

/// Boots the tree with `binds`, runs `script` in it, and returns what it said; it must end with success.
fn boots(name: &str, script: &str, mut binds: Vec<String>) -> String {
    assert!(
        Path::new(TREE).exists(),
        "no tree to boot: run scripts/systemd-tree first"
    );
    let shared = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("systemd-{name}"));
    if shared.exists() {
        fs::remove_dir_all(&shared).unwrap();
    }
    fs::create_dir_all(&shared).unwrap();
    let prelude = include_str!("prelude.sh");
    fs::write(shared.join("run"), format!("{prelude}\n{script}")).unwrap();
    fs::write(shared.join("runner.service"), RUNNER).unwrap();
    let runner = shared.join("runner.service");
    binds.extend([
        format!(
            "--bind-ro={}:/etc/systemd/system/runner.service",
            runner.display()
        ),
        format!("--bind={}:/shared", shared.display()),
        "--bind=/dev/net/tun".to_owned(),
    ]);
    let flags = "--quiet --register=no --keep-unit --boot --private-network --volatile=overlay";
    // Forbidden there unless asked for.
    let calls = "landlock_create_ruleset landlock_add_rule landlock_restrict_self";
    let booted = Command::new("timeout")
        .args(["200", "systemd-nspawn"])
        .args(flags.split(' '))
        .arg(format!("--system-call-filter={calls}"))
        .args(["-D", TREE, "-M", &format!("agentnet-{name}")])
        .args(binds)
        .arg("systemd.wants=runner.service")
        .output()
        .unwrap();
    let said = fs::read_to_string(shared.join("log")).unwrap_or_default();
    assert!(
        booted.status.success(),
        "{}\n{said}\n{}",
        booted.status,
        String::from_utf8_lossy(&booted.stdout)
    );
    said
}

/// Issue 6: the three services start in order, are ready when `systemctl start` returns, run as they must,
/// come back when killed, and leave the host as it was.
#[test]
#[ignore = "boots a systemd: scripts/test runs it where that is possible"]
fn services_start_serve_come_back_and_leave_nothing() {
    let said = boots("services", include_str!("services.sh"), by_hand());

    assert!(said.contains("all is as before"), "{said}");
}

/// Issue 6: the package is installed, used, upgraded, removed and purged, and the host is as before: addresses,
/// routes, DNS, users, every file.
#[test]
#[ignore = "boots a systemd: scripts/test runs it where that is possible"]
fn the_package_works_and_leaves_the_host_as_it_was() {
    let deb = package();
    let binds = vec![format!("--bind-ro={}:/shared/agentnet.deb", deb.display())];
    let said = boots("package", include_str!("package.sh"), binds);

    assert!(said.contains("all is as before"), "{said}");
}

/// Issue 6: agents of one host that are bound to users and a service can neither send from another's address nor
/// see its traffic, reach each other by consent, and leave no rule behind.
#[test]
#[ignore = "boots a systemd: scripts/test runs it where that is possible"]
fn agents_that_are_bound_are_for_their_own_programs_alone() {
    let said = boots("bound", include_str!("bound.sh"), by_hand());

    assert!(said.contains("each has its own"), "{said}");
}

/// A daemon that hangs is killed and started again by the watchdog; one that works is not.
#[test]
#[ignore = "boots a systemd: scripts/test runs it where that is possible"]
fn one_that_hangs_is_started_again() {
    let said = boots("watchdog", include_str!("watchdog.sh"), by_hand());

    assert!(said.contains("the watchdog did it"), "{said}");
}

/// Issue 6, bad input: `agentnet run` at every limit of processes tells so or works, and ends a program that
/// multiplies until it is stopped, whichever of its own parts is killed.
#[test]
#[ignore = "boots a systemd: scripts/test runs it where that is possible"]
fn limits_of_processes_are_told_and_nothing_outlives_a_run() {
    let said = boots("limits", include_str!("limits.sh"), by_hand());

    assert!(said.contains("nothing is left"), "{said}");
}

/// Boots the tree for a script about DNS, where the owner of the host's DNS is installed as `flavour`.
fn boots_for_dns(flavour: &str, script: &str) -> String {
    let dns = include_str!("dns.sh");
    boots(
        &format!("dns-{flavour}"),
        &format!("echo {flavour} >/shared/flavour\n{dns}\n{script}"),
        by_hand(),
    )
}

/// tailscale#7257, netbird#4060: systemd-resolved asks the node for agents' names and for nothing else, in whatever
/// order both start, and the node's own user suffices.
#[test]
#[ignore = "boots a systemd: scripts/test runs it where that is possible"]
fn resolved_asks_for_agents_names_and_nothing_else() {
    let said = boots_for_dns("resolved", include_str!("dns_resolved.sh"));

    assert!(said.contains("resolved does as it should"), "{said}");
}

/// Root writes `/etc/resolv.conf` for a node that may not, again for a new lease and a new agent, and puts it back
/// when the node was killed.
#[test]
#[ignore = "boots a systemd: scripts/test runs it where that is possible"]
fn root_writes_the_file_for_a_node_that_may_not() {
    let said = boots_for_dns("file", include_str!("dns_file.sh"));

    assert!(said.contains("the file is as it should be"), "{said}");
}

/// tailscale#7257: NetworkManager that writes resolv.conf itself names the node, also with a new lease and after its
/// own restart.
#[test]
#[ignore = "boots a systemd: scripts/test runs it where that is possible"]
fn network_manager_names_the_node_in_the_file_it_writes() {
    let said = boots_for_dns("network-manager", include_str!("dns_network_manager.sh"));

    assert!(said.contains("NetworkManager does as it should"), "{said}");
}

/// Debian's resolvconf takes the node's record for the only one.
#[test]
#[ignore = "boots a systemd: scripts/test runs it where that is possible"]
fn resolvconf_of_debian_names_the_node_alone() {
    let said = boots_for_dns("resolvconf", include_str!("dns_resolvconf.sh"));

    assert!(said.contains("resolvconf does as it should"), "{said}");
}

/// openresolv takes the node's record for the only one.
#[test]
#[ignore = "boots a systemd: scripts/test runs it where that is possible"]
fn openresolv_names_the_node_alone() {
    let said = boots_for_dns("openresolv", include_str!("dns_resolvconf.sh"));

    assert!(said.contains("resolvconf does as it should"), "{said}");
}
