//! Kernels that lack what newer ones have: it is done without, or told.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use crate::{
    lab::{A, B, Lab, MARKER, address},
    run::{USER, befriend},
    world::{World, in_world, wait_for},
};

/// Runs a program to whom the kernel is as old as Linux 4.9 (2016), as far as calls and options can tell: seccomp(2)
/// answers instead.
const OLD: &str = r#"
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static const int newer[] = {
    SYS_statx, SYS_pkey_alloc, SYS_rseq, SYS_io_uring_setup, SYS_pidfd_send_signal, SYS_pidfd_open,
    SYS_open_tree, SYS_move_mount, SYS_fsopen, SYS_fsconfig, SYS_fsmount, SYS_fspick, SYS_clone3,
    SYS_close_range, SYS_openat2, SYS_pidfd_getfd, SYS_faccessat2, SYS_process_madvise,
    SYS_epoll_pwait2, SYS_mount_setattr, SYS_quotactl_fd, SYS_landlock_create_ruleset,
    SYS_landlock_add_rule, SYS_landlock_restrict_self, SYS_process_mrelease, SYS_futex_waitv,
};
static struct sock_filter filter[128];
static unsigned short length;

static void put(unsigned short code, unsigned k, unsigned char yes, unsigned char no) {
    filter[length++] = (struct sock_filter){ code, yes, no, k };
}

#define LOAD(field) put(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field), 0, 0)
#define IF(value, yes, no) put(BPF_JMP | BPF_JEQ | BPF_K, value, yes, no)
#define IF_SET(bits, yes, no) put(BPF_JMP | BPF_JSET | BPF_K, bits, yes, no)
#define ANSWER(what) put(BPF_RET | BPF_K, what, 0, 0)

int main(int count, char **args) {
    LOAD(nr);
    for (unsigned i = 0; i < sizeof newer / sizeof *newer; i++) {
        IF(newer[i], 0, 1);
        ANSWER(SECCOMP_RET_ERRNO | ENOSYS);
    }
    /* SOL_UDP: UDP_SEGMENT, UDP_GRO */
    IF(SYS_setsockopt, 0, 7);
    LOAD(args[1]);
    IF(17, 0, 3);
    LOAD(args[2]);
    IF(103, 2, 0);
    IF(104, 1, 0);
    ANSWER(SECCOMP_RET_ALLOW);
    ANSWER(SECCOMP_RET_ERRNO | ENOPROTOOPT);
    /* TUNSETOFFLOAD with TUN_F_USO4 or TUN_F_USO6 */
    IF(SYS_ioctl, 0, 4);
    LOAD(args[1]);
    IF(0x400454d0, 0, 2);
    LOAD(args[2]);
    IF_SET(0x60, 1, 0);
    ANSWER(SECCOMP_RET_ALLOW);
    ANSWER(SECCOMP_RET_ERRNO | EINVAL);

    struct sock_fprog program = { length, filter };
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) {
        perror("seccomp");
        return 1;
    }
    execvp(args[1], args + 1);
    perror(args[1]);
    return 127;
}
"#;

/// Has every `agentnet` of the world find an old kernel.
fn grow_old(world: &World) {
    let host = world.host("maker");
    fs::write(World::path("old.c"), OLD).unwrap();
    host.ok("cc -o /mnt/old /mnt/old.c");
    // Calls are refused: dd's copy would not be, so this is what shows it.
    let said = host.run("/mnt/old python3 -c 'import os; os.pidfd_open(1)'");
    assert!(said.stderr.contains("Function not implemented"), "{said}");
    let program = World::path("bin/agentnet");
    let real = fs::read_link(&program).unwrap();
    fs::remove_file(&program).unwrap();
    put(
        &program,
        &format!("#!/bin/sh\nexec /mnt/old {} \"$@\"\n", real.display()),
    );
}

fn put(path: &Path, script: &str) {
    fs::write(path, script).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Issue 6, bad input: registry, gateway, nodes and programs work on a kernel of 2016, and `doctor` tells what it lacks.
#[test]
fn all_works_on_an_old_kernel() {
    in_world(|world| {
        grow_old(world);
        let lab = Lab::up(world);
        let (a, b) = (&lab.site.a, &lab.site.b);
        lab.trust("tcp/8000");
        let _page = lab.serve_page();

        lab.page_within(Duration::from_secs(20), "the page arrives");
        // Much of it too, without segments being merged by the kernel.
        fs::write(World::path("www/much"), vec![7; 8 << 20]).unwrap();
        let sum = a.ok("sha256sum /mnt/www/much | cut -c-64");
        let got = a.ok(&format!(
            "curl -sS --max-time 60 http://{B}:8000/much | sha256sum | cut -c-64"
        ));
        assert_eq!(got, sum);
        let said = a.run("agentnet doctor").to_string();
        assert!(said.contains("code: no_landlock"), "{said}");

        b.ok("agentnet trust auto add --from '*' --allow tcp/8000");
        lab.token("more", "--name worker");
        let ran = a.start(&format!(
            "exec {USER} agentnet run --token-file /mnt/more.token -- sh -c \
             '{} && curl -sS --max-time 20 http://{B}:8000/'",
            befriend()
        ));
        let ran = ran.finish(Duration::from_secs(60));
        assert!(ran.code == 0 && ran.stdout.contains(MARKER), "{ran}");

        let own = address(a);
        assert!(a.ok(&format!("getent hosts {A}")).contains(&own));
        let node = lab.node_a.unwrap();
        assert_eq!(node.stop().code, 0);
        wait_for("its device is gone", || {
            a.run("ip link show agn0").code != 0
        });
    });
}
