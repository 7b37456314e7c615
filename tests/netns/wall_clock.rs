//! Wall clocks that are set while data flows. Linux has no namespace for the wall clock, so the node
//! is started with a library before libc's that adds a host's own offset to it.

use std::{fs, time::Duration};

use crate::{
    lab::{Lab, address, in_lab, start_node_by, status},
    motion::wait_for_path,
    stream::{ALLOW, Stream},
    world::{World, now, recovered, wait_for, wait_within},
};

/// Adds the seconds in the file `$SKEW` to the wall clock of the program it is preloaded into.
const SKEW: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *time) {
    static int file = -1;
    int result = syscall(SYS_clock_gettime, clock, time);
    if (clock == CLOCK_REALTIME) {
        char text[32] = {0};
        if (file < 0) file = open(getenv("SKEW"), O_RDONLY | O_CLOEXEC);
        if (pread(file, text, sizeof text - 1, 0) > 0) time->tv_sec += atoll(text);
    }
    return result;
}
"#;

/// What starts node A with a wall clock that [`set_clock`] sets.
pub(crate) const SKEWED: &str = "SKEW=/mnt/skew LD_PRELOAD=/mnt/skew.so";

const DAY: i64 = 86_400;

/// No packet is lost when a clock is set; what may be lost is this machine's.
const SET: Duration = Duration::from_secs(1);

/// Sets the wall clock of node A ahead of everybody else's.
pub(crate) fn set_clock(seconds: i64) {
    // In place, since the library keeps the file open; padded, so that nothing longer is left.
    fs::write(World::path("skew"), format!("{seconds:<20}")).unwrap();
}

/// Makes what [`SKEWED`] names.
pub(crate) fn make_skewed(lab: &Lab) {
    fs::write(World::path("skew.c"), SKEW).unwrap();
    let a = &lab.site.a;
    a.ok("cc -shared -fPIC -o /mnt/skew.so /mnt/skew.c");
    set_clock(0);
}

/// Starts node A anew with a clock that can be set, and a stream from it that goes directly.
fn streaming(lab: &mut Lab) -> Stream {
    make_skewed(lab);
    let a = &lab.site.a;
    lab.node_a.take().unwrap().stop();
    lab.node_a = Some(start_node_by(a, SKEWED));
    lab.trust(ALLOW);
    let stream = Stream::start(a, &lab.site.b, &address(&lab.site.b));
    stream.flows();
    wait_for_path(lab, "direct");
    stream
}

/// Issue 3: a clock jumps forward and back by minutes and days; data goes on, and the registry, which
/// does not believe such a clock, is there again when it is right.
#[test]
fn data_goes_on_when_a_clock_is_set() {
    in_lab(|lab| {
        let stream = streaming(lab);
        for (what, seconds) in [
            ("10 minutes ahead", 600),
            ("5 days ahead", 5 * DAY),
            ("set right", 0),
            ("5 days back", -5 * DAY),
            ("set right again", 0),
        ] {
            let since = now();
            set_clock(seconds);
            lab.site.a.ok("agentnet ping b --count 3");
            let outage = stream.outage_since(since);
            recovered(&format!("clock {what}"), outage);
            assert!(outage < SET, "{what}: {outage:?}");
        }
        wait_for("the registry is connected", || {
            status(&lab.site.a)["agents"][0]["registry"]["state"] == "connected"
        });
    });
}

/// A node that crashes while its clock is wrong may be kept from its gateway and registry; both have
/// it again soon after the clock is right, and data flows.
#[test]
fn a_restart_while_a_clock_is_wrong_is_cured_with_the_clock() {
    in_lab(|lab| {
        let stream = streaming(lab);
        for (what, seconds) in [("5 days ahead", 5 * DAY), ("5 days back", -5 * DAY)] {
            set_clock(seconds);
            lab.node_a.take().unwrap().kill();
            lab.node_a = Some(start_node_by(&lab.site.a, SKEWED));

            set_clock(0);
            let since = now();
            // Both may have refused it, and are asked ever more rarely: up to 15 s and 60 s.
            wait_within(
                Duration::from_secs(70),
                "gateway and registry again",
                || {
                    let agent = &status(&lab.site.a)["agents"][0];
                    let is = |link: &str| agent[link]["state"] == "connected";
                    (is("registry") && is("gateway")).then_some(())
                },
            );
            stream.flows();
            recovered(
                &format!("a clock {what} set right after a restart"),
                since.elapsed(),
            );
        }
    });
}
