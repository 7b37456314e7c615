//! Hosts that do not let programs have namespaces: each is told by name, with its cure.

use std::fs;

use crate::{
    lab::Lab,
    run::{USER, wait_for_the_end},
    surroundings::changes,
    world::{Host, World, in_world},
};

/// Has calls of the C library fail in programs it is preloaded into.
const NO_MORE: &str = r#"
#include <errno.h>
#include <pthread.h>
#include <spawn.h>
#ifdef NO_PROCESSES
int posix_spawnp(pid_t *p, const char *f, const posix_spawn_file_actions_t *a,
                 const posix_spawnattr_t *t, char *const v[], char *const e[]) { return EAGAIN; }
#else
int pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*f)(void *), void *x) { return EAGAIN; }
#endif
"#;

/// Asserts that running a program fails as its own, says `words`, and leaves nothing.
#[track_caller]
fn cannot(host: &Host, prefix: &str, words: &[&str]) {
    let before = changes(host);
    let run = format!("{prefix} agentnet run --token-file /mnt/all.token --name a -- echo never");
    let said = host.fails(125, &run);
    for word in words.iter().chain(&["hint: ", "code: "]) {
        assert!(said.contains(word), "no `{word}` in: {said}");
    }
    assert!(!said.contains("never\n"), "{said}");
    assert_eq!(changes(host), before);
    wait_for_the_end(host);
}

/// Issue 6, bad input: each obstacle has a clear error and leaves nothing behind.
#[test]
fn what_is_in_the_way_is_told_with_its_cure() {
    in_world(|world| {
        let lab = Lab::services(world);
        lab.token("all", "--name '*' --uses 10");
        let a = &lab.site.a;

        // Limits hold for whoever is below; the test's own world is not touched.
        let limited = |setting: &str, value: u32| {
            format!(
                "unshare --user --map-root-user sh -c 'echo {value} > /proc/sys/user/{setting} && \
                 exec \"$@\"' -"
            )
        };
        let none = limited("max_user_namespaces", 0);
        cannot(
            a,
            &none,
            &["max_user_namespaces", "code: user_namespaces_off"],
        );
        let no_networks = limited("max_net_namespaces", 0);
        cannot(a, &no_networks, &["code: too_many_namespaces"]);

        a.ok("mount -t tmpfs none /dev/net");
        cannot(
            a,
            USER,
            &["/dev/net/tun", "modprobe tun", "code: tun_missing"],
        );
        a.ok(
            "umount /dev/net && mount --bind /dev/net/tun /dev/net/tun && \
              mount -o remount,bind,nodev /dev/net/tun",
        );
        cannot(a, USER, &["/dev/net/tun", "chmod 0666", "code: tun_denied"]);
        a.ok("umount /dev/net/tun");

        fs::write(World::path("none.c"), NO_MORE).unwrap();
        a.ok("cc -shared -fPIC -o /mnt/threads.so /mnt/none.c && \
              cc -shared -fPIC -DNO_PROCESSES -o /mnt/processes.so /mnt/none.c");
        for library in ["threads", "processes"] {
            let prefix = format!("{USER} env LD_PRELOAD=/mnt/{library}.so");
            cannot(a, &prefix, &["ulimit -u", "code: too_many_processes"]);
        }

        a.fails(2, "agentnet run --token-file - -- true");
        a.fails(2, "agentnet run --name a -- true");
        let said = a.fails(125, &format!("{USER} agentnet run --state /mnt/x -- true"));
        assert!(said.contains("agentnet join"), "{said}");
        let said = a.fails(1, "agentnet inside -- true");
        assert!(said.contains("agentnet run"), "{said}");
    });
}

/// Issue 6, bad input: nothing of the host need be written.
#[test]
fn a_host_that_is_read_only_is_enough() {
    in_world(|world| {
        let lab = Lab::services(world);
        lab.token("all", "--name '*' --uses 10");
        let a = &lab.site.a;
        let run = format!("{USER} agentnet run --token-file /mnt/all.token");
        a.ok("mount -o remount,ro,bind /etc || mount -o remount,ro /etc");
        a.ok("mount -t tmpfs -o ro none /run && mount -t tmpfs -o ro none /var/lib");

        let said = a.ok(&format!("{run} --name a -- cat /etc/resolv.conf"));
        assert!(said.contains("nameserver fd"), "{said}");

        // Without the file the C library asks this host, and gets an answer.
        a.ok("mount -t tmpfs none /etc && mount -o remount,ro,bind /etc");
        let said = a.ok(&format!("{run} --name b -- getent hosts b.acme.agent"));
        assert!(said.starts_with("fd"), "{said}");
    });
}
