//! A program under `agentnet run` is to its caller as if it were run without.

use std::time::Duration;

use crate::{
    lab::Lab,
    run::USER,
    world::{Host, in_world, wait_for},
};

/// Brings up registry and gateway, and joins `a` on host a without its node.
pub(super) fn joined(lab: &Lab) -> &Host {
    lab.token("a", "--name a");
    let a = &lab.site.a;
    a.ok("agentnet join --state /mnt/a --token-file /mnt/a.token --name a");
    a
}

/// Issue 6: exit code, streams and signals pass through.
#[test]
fn exit_codes_streams_and_signals_are_the_programs() {
    in_world(|world| {
        let lab = Lab::services(world);
        let a = joined(&lab);
        let run = format!("{USER} agentnet run --state /mnt/a");

        a.fails(7, &format!("{run} -- sh -c 'exit 7'"));
        a.fails(128 + 9, &format!("{run} -- sh -c 'kill -9 $$'"));
        let said = a.fails(127, &format!("{run} -- no-such-program"));
        assert!(said.contains("no-such-program"), "{said}");
        a.fails(126, &format!("{run} -- /etc/passwd"));
        a.fails(2, "agentnet run");

        let ran = a.run(&format!(
            "printf 'in\\nput' | {run} sh -c 'cat; echo error >&2; printf \"%s|\" \"$@\"' - -a '' 'b c'"
        ));
        assert_eq!(
            (ran.stdout.as_str(), ran.stderr.as_str()),
            ("in\nput-a||b c|", "error\n")
        );
        // Whoever reads the output knows when the program closed it, and it knows when they left.
        let program = a.start(&format!(
            "{run} -- sh -c 'echo told; exec >&-; exec sleep 1000' | {{ cat; echo closed; }}"
        ));
        wait_for("the end of its output is seen", || {
            program.stdout() == "told\nclosed\n"
        });
        a.ok(
            "kill $(pgrep -f '^agentnet run'); while pgrep -f '^agentnet run'; do sleep 0.05; done",
        );
        let ran = a.run(&format!("{run} -- yes | head -n 1"));
        assert_eq!((ran.code, ran.stdout.as_str()), (0, "y\n"), "{ran}");

        for (signal, code) in [("TERM", 143), ("INT", 130), ("HUP", 129), ("USR1", 138)] {
            let mut program = a.start(&format!(
                "exec {run} -- sh -c 'echo begun; exec sleep 1000'"
            ));
            wait_for("it runs", || program.stdout().contains("begun"));
            assert!(program.is_running());
            a.ok(&format!("kill -{signal} {}", program.id()));
            assert_eq!(
                program.finish(Duration::from_secs(20)).code,
                code,
                "{signal}"
            );
        }
        let program = a.start(&format!(
            "exec {run} -- sh -c 'trap \"echo caught; exit 3\" TERM; echo begun; \
             while :; do sleep 0.1; done'"
        ));
        wait_for("it runs", || program.stdout().contains("begun"));
        let ended = program.stop();
        assert_eq!((ended.code, ended.stdout.as_str()), (3, "begun\ncaught\n"));
        // What the caller has it ignore, it ignores.
        let program = a.start(&format!(
            "trap '' HUP; exec {run} -- sh -c 'echo begun; kill -HUP $$; echo here'"
        ));
        assert_eq!(
            program.finish(Duration::from_secs(20)).stdout,
            "begun\nhere\n"
        );
    });
}

/// spec/field-lessons.md: works as the first process of a container: takes in orphans, passes signals
/// on.
#[test]
fn as_the_first_process_it_takes_in_orphans() {
    in_world(|world| {
        let lab = Lab::services(world);
        let a = joined(&lab);
        let contained = "unshare --pid --fork --kill-child --mount-proc";

        // One that the program leaves behind while it runs, and one of somebody else in the container.
        let program = a.start(&format!(
            "exec {contained} agentnet run --state /mnt/a -- sh -c \
             '(setsid sh -c \"sleep 0.1\" &) ; echo first is $(cat /proc/1/comm); \
              while pgrep -x sleep; do sleep 0.05; done; \
              until ! ps -e -o stat= | grep -q Z; do sleep 0.05; done; echo none left; \
              trap \"exit 6\" TERM; echo begun; while :; do sleep 0.1; done'"
        ));
        wait_for("it runs", || program.stdout().contains("begun"));
        let inside = a.ok("pgrep -f '^agentnet run '");
        a.ok(&format!(
            "nsenter --target {inside} --pid --mount sh -c '(sh -c \"exit 1\" &)'"
        ));
        wait_for("the stranger's orphan is taken in", || {
            let all = format!("nsenter --target {inside} --pid --mount ps -e -o stat=");
            !a.ok(&all).contains('Z')
        });
        a.ok(&format!("kill -TERM {inside}"));

        let ended = program.finish(Duration::from_secs(20));
        assert_eq!(ended.code, 6, "{ended}");
        assert!(ended.stdout.contains("first is agentnet\n"), "{ended}");
        assert!(ended.stdout.contains("none left\n"), "{ended}");
    });
}

/// Issue 6: a job that is stopped ends when it is told to, as a shell and a service manager do it.
#[test]
fn a_stopped_job_ends_when_it_is_told_to() {
    in_world(|world| {
        let lab = Lab::services(world);
        let a = joined(&lab);
        let is_stopped = |pid: u32| a.ok(&format!("ps -o stat= -p {pid}")).starts_with('T');

        for (end, code) in [("-TERM", 143), ("-KILL", 137)] {
            let program = a.start(&format!(
                "exec {USER} agentnet run --state /mnt/a -- sh -c 'echo begun; exec sleep 1004'"
            ));
            wait_for("it runs", || {
                program.stdout().contains("begun") && a.run("pgrep -f '^sleep 1004'").code == 0
            });
            a.ok("kill -STOP $(pgrep -f '^sleep 1004')");
            wait_for("all of it stops", || is_stopped(program.id()));

            // What ends a stopped job is followed by this.
            a.ok(&format!(
                "kill {end} {0}; kill -CONT {0} || true",
                program.id()
            ));

            assert_eq!(program.finish(Duration::from_secs(20)).code, code, "{end}");
            wait_for("nothing is left", || {
                a.run("pgrep -f '^sleep 1004'").code != 0
            });
        }
    });
}
