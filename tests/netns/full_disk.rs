//! Disks without room: what cannot be kept is refused and told, nothing is lost, and all works again when there
//! is room.

use crate::{
    lab::{A, B, Lab, start_node, status, wait_attached},
    run::{USER, wait_for_the_end},
    surroundings::changes,
    world::{Host, in_world, wait_for},
};

/// Leaves so many pages free on the disk that states are on.
fn leave_room(host: &Host, pages: u32) {
    host.ok(&format!(
        "echo > /var/lib/full && mount -o remount,size=$(($(df -k --output=used /var/lib | tail -n 1) + 4 * {pages}))k /var/lib"
    ));
}

fn make_room(host: &Host) {
    host.ok("mount -o remount,size=64m /var/lib");
}

#[track_caller]
fn says(said: &str, words: &[&str]) {
    for word in words {
        assert!(said.contains(word), "no `{word}` in: {said}");
    }
}

/// Issue 6, bad input: a join that cannot be kept takes no use of the token, or is done by the same key later.
#[test]
fn a_join_that_finds_no_room_is_done_when_there_is_some() {
    in_world(|world| {
        let lab = Lab::services(world);
        lab.token("a", "--name a --uses 1");
        lab.token("c", "--name c --uses 1");
        let a = &lab.site.a;
        let join = "agentnet join --token-file";

        // Wherever it runs out of room: what the try before wrote is there each time.
        for step in 0.. {
            leave_room(a, step / 3);
            let ran = a.run(&format!("{join} /mnt/a.token"));
            if ran.code == 0 {
                assert!(step > 3, "{step}");
                break;
            }
            let said = ran.to_string();
            says(&said, &["No space left", "hint: free", "code: disk_full"]);
            let files = a.ok("find /var/lib/agentnet -name '*.tmp'");
            assert_eq!(files, "");
        }

        make_room(a);
        let _node = start_node(a);
        wait_attached(a);
        // By the daemon.
        let agents = || status(a)["agents"].as_array().unwrap().len();
        for pages in 0.. {
            leave_room(a, pages);
            let ran = a.run(&format!("{join} /mnt/c.token"));
            if ran.code == 0 {
                break;
            }
            says(
                &ran.to_string(),
                &["No space left", "hint: free", "code: state_unsaved"],
            );
            assert_eq!(agents(), 1);
        }
        wait_attached(a);
        assert_eq!(agents(), 2);
    });
}

/// Issue 6, bad input: trust that is not on disk is told so, and is on disk as soon as there is room.
#[test]
fn what_could_not_be_written_is_written_when_there_is_room() {
    in_world(|world| {
        let mut lab = Lab::up(world);
        let a = &lab.site.a;
        leave_room(a, 0);

        let said = a.fails(1, &format!("agentnet trust request {B}"));
        says(
            &said,
            &["No space left", "hint: free", "code: state_unsaved"],
        );
        says(&a.ok("agentnet status"), &["the state cannot be written"]);
        make_room(a);
        wait_for("it is written", || {
            !a.ok("agentnet status").contains("cannot be written")
        });

        lab.node_a.take().unwrap().kill();
        lab.node_a = Some(start_node(a));
        wait_for("the request is there", || {
            lab.site.b.ok("agentnet trust pending --json").contains(A)
        });
        lab.site
            .b
            .ok(&format!("agentnet trust approve {A} --allow any"));
        wait_for("the name resolves", || {
            a.run(&format!("getent ahosts {B}")).code == 0
        });
    });
}

/// Issue 6, bad input: programs that keep nothing need no disk; those that do are told.
#[test]
fn a_program_runs_beside_a_full_disk() {
    in_world(|world| {
        let lab = Lab::services(world);
        lab.token("all", "--name '*' --uses 10");
        let a = &lab.site.a;
        a.ok("mkdir /var/lib/mine && mount -t tmpfs -o size=4k none /run && echo > /run/full");
        let run = format!("{USER} agentnet run --token-file /mnt/all.token");
        leave_room(a, 0);
        let before = changes(a);

        let said = a.ok(&format!("{run} --name b -- getent hosts b.acme.agent"));
        assert!(said.starts_with("fd"), "{said}");
        let said = a.fails(
            125,
            &format!("{run} --state /var/lib/mine --name c -- true"),
        );
        says(&said, &["No space left", "hint: free", "code: disk_full"]);
        a.ok("rm /var/lib/mine/lock");
        assert_eq!(changes(a), before);
        wait_for_the_end(a);
        make_room(a);
        a.ok(&format!("{run} --state /var/lib/mine --name c -- true"));
    });
}

/// Issue 6, bad input: a registry whose disk is full changes nothing, answers what it knows, and goes on by itself.
#[test]
fn a_registry_without_room_goes_on_when_there_is_some() {
    in_world(|world| {
        let mut lab = Lab::up(world);
        lab.token("c", "--name c --uses 1");
        lab.trust("tcp/8000");
        let page = lab.serve_page();
        leave_room(&lab.site.public, 0);

        let join = "agentnet join --token-file /mnt/c.token";
        let said = lab.site.a.fails(1, join);
        says(&said, &["disk is full", "hint: "]);
        wait_for("data flows", || lab.page_arrives());
        // It starts on a full disk too.
        drop(lab.registry.take());
        lab.start_registry();
        for _ in 0..2 {
            says(&lab.site.a.fails(1, join), &["disk is full"]);
        }
        make_room(&lab.site.public);
        lab.site.a.ok(join);
        drop(page);
    });
}
