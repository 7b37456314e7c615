//! What is left when a part of `agentnet run` is killed: nothing.

use crate::{
    lab::Lab,
    process::Proc,
    run::{PARTS, USER},
    surroundings::changes,
    world::{Host, in_world, wait_for},
};

/// A program with children that try to outlive it, and a state that is kept in memory.
fn start(host: &Host, name: &str) -> Proc {
    let program = host.start(&format!(
        "exec {USER} agentnet run --token-file /mnt/all.token --name {name} -- sh -c \
         '(setsid sleep 1001 &); sleep 1002 & echo begun; sleep 1003'"
    ));
    wait_for("it runs", || {
        program.stdout().contains("begun") && host.run("pgrep -f '^sleep 1003'").code == 0
    });
    program
}

#[track_caller]
fn nothing_is_left(host: &Host, before: &str, what: &str) {
    wait_for(what, || {
        host.run(PARTS).code == 1 && host.run("pgrep sleep").code == 1
    });
    assert_eq!(changes(host), before, "{what}");
}

/// Issue 6: whichever part is killed, the others end, the program's own children too.
#[test]
fn whatever_is_killed_nothing_is_left() {
    in_world(|world| {
        let lab = Lab::services(world);
        lab.token("all", "--name '*' --uses 10");
        let a = &lab.site.a;
        let before = changes(a);

        start(a, "one").kill();
        nothing_is_left(a, &before, "the node was killed");

        let program = start(a, "two");
        a.ok("kill -9 $(pgrep -f '^agentnet inside')");
        let ended = program.finish(std::time::Duration::from_secs(20));
        assert_eq!(ended.code, 125, "{ended}");
        assert!(ended.stderr.contains("code: ended_inside"), "{ended}");
        nothing_is_left(a, &before, "the process inside was killed");

        let program = start(a, "three");
        a.ok("kill -9 $(pgrep -f '^sleep 1003')");
        let ended = program.finish(std::time::Duration::from_secs(20));
        assert_eq!(ended.code, 128 + 9, "{ended}");
        nothing_is_left(a, &before, "the program was killed");

        // While it joins, the registry silent.
        a.ok("ip route add blackhole 198.51.100.1/32");
        let program = a.start(&format!(
            "exec {USER} agentnet run --token-file /mnt/all.token --name four -- echo never"
        ));
        wait_for("it began", || {
            a.run("pgrep -f '^agentnet inside'").code == 0
        });
        let ended = program.stop();
        assert!([125, 128 + 15].contains(&ended.code), "{ended}");
        assert_eq!(ended.stdout, "");
        a.ok("ip route del blackhole 198.51.100.1/32");
        nothing_is_left(a, &before, "it was ended before the program began");
    });
}
